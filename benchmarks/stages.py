"""Where a run of a LockedTask spends its time in a pool child, as ``tasks.py --stages`` asks: the profile of what a lock costs.

A sampling profiler sees too little of what lasts 100 µs, and one that counts each call makes it twice as long. So a dozen
functions are timed in the real child, each without what it calls of the others; the median of all runs is told. A child has
slept before each run, and others have used its core: what is timed here takes thrice as long as in a loop.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from celery import signals

from celery_lockbeat import Lock, LockedTask
from celery_lockbeat.locks.child import Note
from celery_lockbeat.stores.redis.locks import RedisLocks
from celery_lockbeat.stores.redis.node import Line
from celery_lockbeat.stores.redis.servers import Servers

RUN = "the run: its lock's key and names, its story"
#: stage -> the functions of it
STAGES: dict[str, list[tuple[Any, str]]] = {
    RUN: [(LockedTask, "_run_locked")],
    "the lock's states and its renewal": [(Lock, "take"), (Lock, "end")],
    "notes for the parent, which frees what a dead child held": [
        (Note, "unrenewed"),
        (Note, "renewed"),
        (Note, "forget"),
    ],
    "the store: keys and answers": [(RedisLocks, "acquire"), (RedisLocks, "release")],
    "the client: a connection, packing and reading": [(Servers, "ask_one")],
}
SERVER = "sending, and waiting for the server"


class Stopwatch:
    """The time of each stage in each run, in seconds."""

    def __init__(self) -> None:
        self.runs: list[dict[str, float]] = []
        self._run: dict[str, float] = defaultdict(float)
        #: of each function that goes on: what those of others took that it has called
        self._inside: list[float] = []

    def timing(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Make the same function, which is timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            self._inside.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - started
                self._run[stage] += took - self._inside.pop()
                if self._inside:
                    self._inside[-1] += took
                else:
                    self.runs.append(dict(self._run))
                    self._run.clear()

        return timed


class TimedSocket:
    """A connection's socket, of which two methods are timed."""

    def __init__(self, sock: Any, watch: Stopwatch) -> None:
        self._sock = sock
        self.sendall = watch.timing(SERVER, sock.sendall)
        self.recv = watch.timing(SERVER, sock.recv)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def measure(directory: str) -> None:
    """Time the runs of this process's children; each leaves its runs in a file in ``directory`` when it ends."""
    watch = Stopwatch()
    for stage, functions in STAGES.items():
        for owner, name in functions:
            setattr(owner, name, watch.timing(stage, getattr(owner, name)))
    connect = Line.open

    def open_line(line: Any, timeout: float) -> None:
        connect(line, timeout)
        if not isinstance(line.connection._sock, TimedSocket):
            line.connection._sock = TimedSocket(line.connection._sock, watch)

    Line.open = open_line

    @signals.worker_process_shutdown.connect(weak=False)
    def write(**_: object) -> None:
        Path(directory, f"stages.{os.getpid()}").write_text(json.dumps(watch.runs))


def medians(directory: str) -> dict[str, float]:
    """Return the seconds of each stage, of all runs of all children but the first ones of each."""
    runs = [run for file in Path(directory).glob("stages.*") for run in json.loads(file.read_text())[100:]]
    if not runs:
        return {}
    return {stage: statistics.median(run.get(stage, 0.0) for run in runs) for stage in (*STAGES, SERVER)}


def told(stages: dict[str, float]) -> Iterable[tuple[str, str]]:
    """Name the stages and their microseconds, the last of them the sum."""
    for stage, seconds in {**stages, "in all": sum(stages.values())}.items():
        yield stage, f"{seconds * 1e6:.0f}"

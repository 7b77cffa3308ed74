"""Who looks at the broker's queue from outside, and what must hold of all that it sees."""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import redis
from servers import Server, wait_until

from celery_lockbeat.clock import monotonic


@dataclass(frozen=True)
class Arrival:
    """A message of a beat, as it lies in the broker: ``at`` is this host's monotonic clock, ``pid`` who sent it."""

    at: float
    entry: str
    run: int
    due: str
    task_id: str
    pid: int


class Reader:
    """Reads a queue with plain redis-py, and takes nothing from it but, if asked to, what it passes on to a worker's queue.

    It reads by the distance from the queue's far end, so it misses nothing and sees nothing twice, whatever the broker suffers.
    """

    def __init__(self, server: Server, queue: str, *, pass_on_to: str | None = None) -> None:
        self._client = server.client()
        self._queue = queue
        self._pass_on_to = pass_on_to
        self._arrivals: list[Arrival] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        seen = 0
        while not self._end.wait(0.005):
            try:
                length = int(self._client.llen(self._queue))
                if length <= seen:
                    continue
                raw = self._client.lrange(self._queue, -length, -(seen + 1))[::-1]
                if self._pass_on_to:
                    self._client.lpush(self._pass_on_to, *raw)
            except redis.RedisError:
                continue
            now = time.monotonic()
            self._arrivals += [_arrival(now, json.loads(message)["headers"]) for message in raw]
            seen += len(raw)

    def arrivals(self, entry: str | None = None, *, since: float = 0.0) -> list[Arrival]:
        return [each for each in list(self._arrivals) if entry in (None, each.entry) and each.at >= since]

    def of(self, entry: str, run: int) -> list[Arrival]:
        return [each for each in self.arrivals(entry) if each.run == run]

    def entries(self) -> set[str]:
        return {each.entry for each in self.arrivals()}

    def firsts(self, entry: str) -> list[Arrival]:
        """The first arrival of each run, in order of time."""
        firsts: dict[int, Arrival] = {}
        for each in self.arrivals(entry):
            firsts.setdefault(each.run, each)
        return list(firsts.values())

    def wait_for_more(self, *entries: str, count: int = 1, timeout: float = 20) -> None:
        """Wait until so many runs of each entry have come that were not there at the call."""
        wanted = {entry: len(self.firsts(entry)) + count for entry in entries}
        wait_until(
            lambda: all(len(self.firsts(entry)) >= total for entry, total in wanted.items()),
            timeout,
            f"{count} more ticks of {entries}",
        )

    def gaps(self, entry: str) -> list[tuple[Arrival, Arrival]]:
        return list(pairwise(self.arrivals(entry)))

    def longest_gap(self, entry: str, *, since: float = 0.0) -> float:
        return max((b.at - a.at for a, b in self.gaps(entry) if a.at >= since), default=0.0)

    def assert_each_run_once(self, claimed: dict[str, int], waiting: set[tuple[str, int]]) -> None:
        """P2: of the runs that were ``claimed``, 1 to n of each entry, none is lost, and none has two task ids.

        Those that are ``waiting`` to be taken over, in the hands of beats that have ended, may have been published or not.
        """
        runs_of = defaultdict(set)
        for each in self.arrivals():
            runs_of[each.task_id].add((each.entry, each.run))
        assert all(len(runs) == 1 for runs in runs_of.values()), "two runs under one task id"
        for entry, count in claimed.items():
            ids = defaultdict(set)
            for each in self.arrivals(entry):
                ids[each.run].add(each.task_id)
            lost = sorted(run for run in range(1, count + 1) if run not in ids and (entry, run) not in waiting)
            assert not lost, f"lost of {entry}: {lost}"
            assert max(ids, default=0) <= count, f"{entry} has run more often than it was claimed"
            doubled = {run: each for run, each in ids.items() if len(each) > 1}
            assert not doubled, f"doubled of {entry}: {doubled}"

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        self._client.close()


def _arrival(at: float, headers: dict[str, object]) -> Arrival:
    tick = headers["lockbeat"]
    pid = int(str(headers["origin"]).partition("@")[0].removeprefix("gen"))
    return Arrival(at, tick["entry"], tick["run"], tick["due"], str(headers["id"]), pid)


@dataclass(frozen=True)
class Pending:
    """A claim in the store; ``pid`` is the beat's that has it, and ``overdue`` says whether anybody may take it over."""

    task_id: str
    entry: str
    run: int
    pid: int
    overdue: bool


class Book:
    """What the store has in it, read past our code: claims, and how often each entry was claimed."""

    def __init__(self, *, server: Server | None = None, prefix: str = "lockbeat:", path: Path | None = None) -> None:
        self._client = server.client() if server is not None else None
        self._beat = f"{prefix}{{beat:processes}}"
        self._path = path

    def pending(self, pid: int | None = None) -> list[Pending]:
        if self._client is not None:
            seconds, micros = self._client.time()
            until = dict(self._client.zrange(f"{self._beat}:pending", 0, -1, withscores=True))
            late = {task_id for task_id, ms in until.items() if ms <= seconds * 1000 + micros / 1000}
            claims = [_pending(*each, late) for each in self._client.hgetall(f"{self._beat}:claims").items()]
        else:
            rows = self._rows("SELECT task_id, entry, run, replica, until FROM lockbeat_claim")
            claims = [
                Pending(task_id, entry.decode(), run, _pid(replica), until <= monotonic())
                for task_id, entry, run, replica, until in rows
            ]
        return [each for each in claims if pid in (None, each.pid)]

    def claimed(self) -> dict[str, int]:
        if self._client is not None:
            return {
                entry: int(state.split()[0]) for entry, state in self._client.hgetall(f"{self._beat}:entries").items()
            }
        return {name.decode(): count for name, count in self._rows("SELECT name, count FROM lockbeat_entry")}

    def listed_by(self, pid: int) -> int:
        """How many entries the beat of this process has listed so far; in Redis only."""
        assert self._client is not None
        names = self._client.scan_iter(f"{self._beat}:names:*-{pid}-*".replace("{", "[{]"), count=1000)
        return sum(int(self._client.scard(name)) for name in names)

    def has_left(self, pid: int) -> bool:
        """Whether the beat of this process has said that it leaves; in the memory store only."""
        return [seen for name, seen in self._rows("SELECT name, seen FROM lockbeat_replica") if _pid(name) == pid] == [
            -math.inf
        ]

    def _rows(self, query: str) -> list[tuple]:
        assert self._path is not None
        with contextlib.closing(sqlite3.connect(f"file:{self._path / 'state.db'}?mode=ro", uri=True)) as connection:
            return connection.execute(query).fetchall()

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


def _pending(task_id: str, claim: str, overdue: set[str]) -> Pending:
    replica, run, length, rest = claim.split(" ", 3)
    return Pending(task_id, rest[: int(length)], int(run), _pid(replica), task_id in overdue)


def _pid(replica: str) -> int:
    return int(replica.rsplit("-", 2)[1])

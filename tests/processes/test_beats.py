"""Replicas of the beat that are killed, frozen and cut off, with nobody but a reader of the broker's queue to tell of it.

Each run is numbered and has one task id, so what is lost and what is doubled shows in the queue. Where bodies count, the
messages are passed on to a worker, and its tasks tell the witness.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fleet import Fleet, Process
from servers import Server
from ticks import Book, Pending, Reader

#: What two noisy cores, on which beats start all the time, may add to any deadline.
SLACK = 1.5

JOINED = "has joined the replicas"


def every(seconds: float | str, task: str = "nobody", **more: object) -> dict[str, object]:
    return {"task": task, "schedule": seconds, **more}


class Beats:
    """Replicas of one schedule, the store they share, and the reader of their queue."""

    def __init__(self, fleet: Fleet, reader: Reader, book: Book, schedule: dict[str, dict[str, object]]) -> None:
        self.fleet, self.reader, self.book, self.schedule = fleet, reader, book, schedule
        self.alive: dict[str, Process] = {}
        self.held: list[tuple[float, Pending]] = []  # what the killed ones had claimed, and when they were killed
        self.kills = 0

    def start(self, *names: str, **settings: Any) -> list[Process]:
        """Start replicas that are not running; return them at once."""
        for name in names:
            self.alive[name] = self.fleet.beat(name, settings.pop("schedule", self.schedule), **settings)
        return [self.alive[name] for name in names]

    def joined(self) -> list[str]:
        return [name for name, beat in self.alive.items() if JOINED in beat.log()[beat.log_before :]]

    def kill(self, name: str) -> None:
        beat = self.alive.pop(name)
        beat.kill()
        self.kills += 1
        self.held += [(time.monotonic(), each) for each in self.book.pending(beat.pid)]

    def stop(self) -> None:
        """End all replicas as a deploy does: each settles what it has published."""
        for beat in self.alive.values():
            assert beat.terminate() == 0
        self.alive.clear()

    def assert_each_run_once(self) -> None:
        self.reader.assert_each_run_once({name: count for name, count in self.book.claimed().items() if count})


@pytest.fixture
def make_beats(make_fleet, broker: Server, locks: Server) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:

        def make(schedule: dict[str, dict[str, object]], *, driver: str = "redis", **settings: object) -> Beats:
            fleet = make_fleet(lockbeat_driver=driver, lockbeat_redis_url=locks.url, **settings)
            fleet.settings["lockbeat_key_prefix"] = prefix = f"{fleet.queue}:"
            reader = stack.enter_context(contextlib.closing(Reader(broker, fleet.queue)))
            where = {"server": locks, "prefix": prefix} if driver == "redis" else {"path": fleet.directory / "memory"}
            book = stack.enter_context(contextlib.closing(Book(**where)))
            return Beats(fleet, reader, book, schedule)

        yield make


# -- replicas that die -------------------------------------------------------------------------------------------------

SOAK = float(os.environ.get("LOCKBEAT_TEST_SOAK_SECONDS", "1200"))


@pytest.mark.parametrize(
    ("driver", "seconds"),
    [
        pytest.param("redis", 24.0, id="redis"),
        pytest.param("memory", 12.0, id="memory"),
        pytest.param("redis", SOAK, id="soak-redis", marks=[pytest.mark.soak, pytest.mark.timeout(SOAK + 300)]),
        pytest.param("memory", SOAK, id="soak-memory", marks=[pytest.mark.soak, pytest.mark.timeout(SOAK + 300)]),
    ],
)
def test_no_tick_is_lost_or_doubled_or_late_however_many_beats_are_killed(make_beats, driver, seconds):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    claim_ttl = 2.0
    seconds_entries = [f"second-{i}" for i in range(5)]
    schedule = {name: every(1.0) for name in seconds_entries}
    schedule |= {"half": every(0.5), "third": every(0.3), "fast": every(0.1)}
    beats = make_beats(schedule, driver=driver, lockbeat_claim_ttl=claim_ttl)
    reader = beats.reader
    names = ["a", "b", "c"]
    beats.start(*names)
    reader.wait_for_more("second-0")
    started = time.monotonic()
    massacred = False
    while time.monotonic() < started + seconds:
        # the moments are what is random here: there is nothing to wait for
        time.sleep(chance.uniform(0.05, 1.0))
        joined = beats.joined()
        if len(joined) == len(names) and (not massacred or chance.random() < 0.2):
            victims, massacred = chance.sample(joined, len(joined) - 1), True
        else:
            victims = chance.sample(joined, 1) if len(joined) > 1 and chance.random() < 0.6 else []
        for victim in victims:
            beats.kill(victim)
        missing = [name for name in names if name not in beats.alive]
        if missing and chance.random() < 0.7:
            beats.start(chance.choice(missing))
    for entry in seconds_entries:
        reader.wait_for_more(entry)
    beats.stop()

    beats.assert_each_run_once()
    assert massacred
    assert sum(len(reader.firsts(entry)) for entry in seconds_entries) >= 5 * (seconds - 4)
    for entry in seconds_entries:
        for before, after in reader.gaps(entry):
            gap = after.at - before.at
            in_dead_hands = [
                at for at, claim in beats.held if claim.entry == entry and before.at < at + SLACK and at < after.at
            ]
            allowed = 1.0 + claim_ttl + SLACK if in_dead_hands else 1.5
            assert gap <= allowed, f"{entry}: {gap:.2f} s between {before} and {after}; held: {beats.held}"
    gaps = sorted(
        (after.at - before.at for entry in seconds_entries for before, after in reader.gaps(entry)), reverse=True
    )
    print(
        f"{beats.kills} kills, {len(reader.arrivals())} messages, {len(beats.held)} claims held, longest gaps {gaps[:5]}"
    )

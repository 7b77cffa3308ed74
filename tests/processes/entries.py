"""Entries that are created, changed, disabled and deleted while beats die and freeze, and what must hold of all their messages.

Who tells of it is a reader of the broker's queue, which no worker empties: each message carries in its arguments of which
life of which entry it is, and the version of the definition that it was made of.
"""

from __future__ import annotations

import abc
import contextlib
import itertools
import json
import random
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

import redis
from fleet import Fleet, Process
from servers import Server, wait_until

CLAIM_TTL = 2.0

#: What two noisy cores may add to the moment at which a message is seen.
SLACK = 0.4

#: And to a deadline of three beats, all of which may start at the same time.
MUCH_SLACK = 2.5


class Arrival(NamedTuple):
    at: float  # on this host's monotonic clock
    life: int
    version: int
    run: int
    due: float
    task_id: str


class Reader(threading.Thread):
    """Notes each message that comes into a queue; it reads by the distance from its far end, so it misses none."""

    def __init__(self, server: Server, queue: str) -> None:
        super().__init__(daemon=True)
        self._client, self._queue = server.client(), queue
        self._end = threading.Event()
        self._arrivals: list[Arrival] = []
        self.start()

    def run(self) -> None:
        seen = 0
        while not self._end.wait(0.005):
            with contextlib.suppress(redis.RedisError):
                length = self._client.llen(self._queue)
                new = self._client.lrange(self._queue, -length, -(seen + 1))[::-1] if length > seen else []
                now = time.monotonic()
                self._arrivals += [_arrival(now, json.loads(message)["headers"]) for message in new]
                seen += len(new)

    def arrivals(self) -> dict[int, list[Arrival]]:
        """By lives, in order of time."""
        lives = defaultdict(list)
        for each in list(self._arrivals):
            lives[each.life].append(each)
        return lives

    def close(self) -> None:
        self._end.set()
        self.join()
        self._client.close()


def _arrival(now: float, headers: dict) -> Arrival:
    life, version = json.loads(headers["argsrepr"].replace("(", "[").replace(")", "]"))
    tick = headers["lockbeat"]
    due = datetime.fromisoformat(tick["due"]).timestamp()
    return Arrival(now, life, version, tick["run"], due, headers["id"])


@dataclass
class Life:
    """An entry from its creation to its deletion, and when its user was told that so it is."""

    number: int
    name: str
    interval: float
    created: float
    changed: list[tuple[float, int]] = field(default_factory=list)
    disabled: list[list[float]] = field(default_factory=list)  # from, to
    deleted: float | None = None
    once: bool = False

    @property
    def is_disabled(self) -> bool:
        return bool(self.disabled) and self.disabled[-1][1] == float("inf")


class User(abc.ABC):
    """Changes entries at random, and remembers what it did."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._numbers = itertools.count(1)
        self.lives: list[Life] = []
        self.alive: dict[str, Life] = {}

    @abc.abstractmethod
    def save_new(self, life: Life) -> None:
        """Make the entry of a life, with its number and version 0 as arguments."""

    @abc.abstractmethod
    def save(self, life: Life, *, version: int | None = None, enabled: bool | None = None) -> None:
        """Change the entry."""

    @abc.abstractmethod
    def remove(self, life: Life) -> None:
        """Delete the entry."""

    def create(self, name: str, interval: float, *, once: bool = False) -> Life:
        life = Life(next(self._numbers), name, interval, time.monotonic(), once=once)
        self.save_new(life)
        self.lives.append(life)
        self.alive[name] = life
        return life

    def do_something(self, names: list[str], intervals: list[float]) -> None:
        name = self._chance.choice(names)
        life = self.alive.get(name)
        if life is None:
            self.create(name, self._chance.choice(intervals))
        else:
            self._chance.choice([self.change, self.change, self.turn_off_or_on, self.delete])(life)

    def change(self, life: Life) -> None:
        version = len(life.changed) + 1
        self.save(life, version=version)
        life.changed.append((time.monotonic(), version))

    def turn_off_or_on(self, life: Life) -> None:
        if life.is_disabled:
            life.disabled[-1][1] = time.monotonic()
            self.save(life, enabled=True)
        else:
            self.save(life, enabled=False)
            life.disabled.append([time.monotonic(), float("inf")])

    def delete(self, life: Life) -> None:
        self.remove(life)
        life.deleted = time.monotonic()
        del self.alive[life.name]


class Beats:
    """Three of them; at least one is always there and awake."""

    def __init__(self, fleet: Fleet, chance: random.Random, scheduler: str) -> None:
        self._fleet, self._chance, self._scheduler = fleet, chance, scheduler
        self._numbers = itertools.count()
        self.running: list[Process] = []
        self.frozen: list[tuple[float, Process]] = []
        self.kills = self.freezes = 0

    def start(self) -> None:
        arguments = ["beat", "-S", self._scheduler, "-l", "INFO", "--pidfile="]
        self.running.append(self._fleet._start(f"beat{next(self._numbers)}", arguments, {}))

    def awake(self) -> list[Process]:
        frozen = [beat for _, beat in self.frozen]
        return [beat for beat in self.running if "has joined" in beat.log() and beat not in frozen]

    def do_something(self) -> None:
        for until, beat in self.frozen:
            if time.monotonic() >= until:
                beat.thaw()
        self.frozen = [each for each in self.frozen if time.monotonic() < each[0]]
        awake = self.awake()
        if len(self.running) < 3:
            self.start()
        elif len(awake) > 1:
            victim = self._chance.choice(awake)
            if self._chance.random() < 0.5:
                victim.kill()
                self.running.remove(victim)
                self.kills += 1
            else:
                victim.freeze()
                self.frozen.append((time.monotonic() + self._chance.uniform(0.3, 3.0), victim))
                self.freezes += 1

    def stop(self) -> None:
        for _, beat in self.frozen:
            beat.thaw()
        self.frozen = []
        # one that is still starting would die of the signal
        wait_until(lambda: len(self.awake()) == len(self.running), 60, "all beats have joined")
        for beat in self.running:
            beat.process.send_signal(signal.SIGTERM)
        for beat in self.running:
            wait_until(lambda beat=beat: beat.process.poll() is not None, 20, f"it ends: {beat.log()[-3000:]}")
            assert beat.process.returncode == 0, beat.log()[-3000:]


def change_while_beats_die(beats: Beats, change: Callable[[], object], chance: random.Random) -> None:
    """Let three beats be killed and frozen while the user changes entries, for twenty seconds and until there were some."""
    for _ in range(3):
        beats.start()
    wait_until(lambda: len(beats.awake()) == 3, 60, "three beats have joined")
    end = time.monotonic() + 20
    while time.monotonic() < end or min(beats.kills, beats.freezes) < 3:
        # the moments are what is random here: there is nothing to wait for
        time.sleep(chance.uniform(0.02, 0.3))
        change()
        if chance.random() < 0.25:
            beats.do_something()


def assert_each_has_run_as_it_should(
    user: User, beats: Beats, steady: Iterable[Life], arrivals: Mapping[int, list[Arrival]]
) -> None:
    for life in user.lives:
        assert_nothing_is_doubled(life, arrivals[life.number])
        assert_nothing_runs_after_its_end(life, arrivals[life.number])
        assert_nothing_is_lost(life, arrivals[life.number])
    for life in steady:
        assert_is_on_time(arrivals[life.number])
    print(
        f"{beats.kills} kills, {beats.freezes} freezes, {len(user.lives)} lives, {sum(map(len, arrivals.values()))} messages"
    )
    assert beats.kills >= 3
    assert beats.freezes >= 3
    assert len([life for life in user.lives if life.deleted]) >= 10


def assert_nothing_is_doubled(life: Life, arrivals: list[Arrival]) -> None:
    ids = defaultdict(set)
    for each in arrivals:
        ids[each.run].add(each.task_id)
    assert all(len(each) == 1 for each in ids.values()), (life, arrivals)
    dues = [due for _, due in sorted({(each.run, each.due) for each in arrivals})]
    assert all(after - before > 0.9 * life.interval for before, after in itertools.pairwise(dues)), (life, arrivals)


def assert_it_has_run_once(arrivals: list[Arrival]) -> None:
    assert len({each.task_id for each in arrivals}) == 1, arrivals


def assert_nothing_runs_after_its_end(life: Life, arrivals: list[Arrival]) -> None:
    for each in arrivals:
        if life.deleted is not None:
            assert each.at <= life.deleted + life.interval + SLACK, (life, each)
        for off, on in life.disabled:
            assert not off + life.interval + SLACK < each.at < on, (life, each)
        for at, version in life.changed:
            assert each.version >= version or each.at <= at + life.interval + SLACK, (life, each)


def assert_nothing_is_lost(life: Life, arrivals: list[Arrival]) -> None:
    """All runs are there, but those that a dead beat had in its hands when the entry was deleted or disabled."""
    seen = {each.run: each.at for each in arrivals}
    ends = [off for off, _ in life.disabled] + ([life.deleted] if life.deleted else [])
    for run in set(range(1, max(seen, default=0) + 1)) - set(seen):
        after = min(at for other, at in seen.items() if other > run)
        assert any(end > after - life.interval - MUCH_SLACK - CLAIM_TTL for end in ends), (life, run, arrivals)


def assert_is_on_time(arrivals: list[Arrival]) -> None:
    firsts: dict[int, float] = {}
    for each in arrivals:
        firsts.setdefault(each.run, each.at)
    times = sorted(firsts.values())
    assert len(times) >= 15
    gaps = [after - before for before, after in itertools.pairwise(times)]
    # one that a dead beat had in its hands comes late, and never more than that
    assert max(gaps) <= 1.0 + CLAIM_TTL + MUCH_SLACK, gaps

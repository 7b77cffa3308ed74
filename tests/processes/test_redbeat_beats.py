"""Three real beats over RedBeat's entries, which are created, changed, disabled and deleted while the beats die and freeze."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator

import pytest
from celery import Celery
from celery.schedules import schedule
from entries import (
    CLAIM_TTL,
    Beats,
    Life,
    Reader,
    User,
    assert_is_on_time,
    assert_nothing_is_doubled,
    assert_nothing_is_lost,
    assert_nothing_runs_after_its_end,
)
from fleet import Fleet
from redbeat import RedBeatSchedulerEntry
from servers import Server, wait_until


class RedBeatUser(User):
    """By RedBeat's API."""

    def __init__(self, app: Celery, chance: random.Random) -> None:
        super().__init__(chance)
        self._app = app

    def save_new(self, life: Life) -> None:
        every = schedule(life.interval, app=self._app)
        RedBeatSchedulerEntry(life.name, "nobody", every, args=[life.number, 0], app=self._app).save()

    def save(self, life: Life, *, version: int | None = None, enabled: bool | None = None) -> None:
        entry = self._load(life)
        if version is not None:
            entry.args = [life.number, version]
        if enabled is not None:
            entry.enabled = enabled
        entry.save()

    def remove(self, life: Life) -> None:
        self._load(life).delete()

    def _load(self, life: Life) -> RedBeatSchedulerEntry:
        key = RedBeatSchedulerEntry.generate_key(self._app, life.name)
        return RedBeatSchedulerEntry.from_key(key, app=self._app)


@pytest.fixture
def fleet(make_fleet, locks: Server) -> Fleet:
    fleet = make_fleet(lockbeat_redis_url=locks.url, lockbeat_claim_ttl=CLAIM_TTL, redbeat_redis_url=locks.url)
    fleet.settings |= {"lockbeat_key_prefix": f"{fleet.queue}:", "redbeat_key_prefix": f"{fleet.queue}-redbeat:"}
    return fleet


@pytest.fixture
def reader(fleet: Fleet, broker: Server) -> Iterator[Reader]:
    with contextlib.closing(Reader(broker, fleet.queue)) as reader:
        yield reader


@pytest.fixture
def app(fleet: Fleet) -> Iterator[Celery]:
    app = Celery("user", broker=fleet.settings["broker_url"], set_as_current=False)
    app.conf.update({name: value for name, value in fleet.settings.items() if name.startswith("redbeat")})
    with contextlib.closing(app):
        yield app


def test_entries_change_while_beats_die_and_nothing_is_lost_doubled_or_run_after_its_end(fleet, reader, app, locks):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    user = RedBeatUser(app, chance)
    beats = Beats(fleet, chance, "celery_lockbeat.contrib.redbeat:LockedRedBeatScheduler")
    steady = [user.create(f"steady-{n}", 1.0) for n in range(5)]
    names = [f"entry-{n}" for n in range(8)]
    for _ in range(3):
        beats.start()
    wait_until(lambda: len(beats.awake()) == 3, 60, "three beats have joined")
    end = time.monotonic() + 20
    while time.monotonic() < end or min(beats.kills, beats.freezes) < 3:
        # the moments are what is random here: there is nothing to wait for
        time.sleep(chance.uniform(0.02, 0.3))
        user.do_something(names, [0.7, 1.0, 1.5])
        if chance.random() < 0.25:
            beats.do_something()
    _wait_until_all_is_settled(fleet, locks)
    beats.stop()

    arrivals = reader.arrivals()
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


def _wait_until_all_is_settled(fleet: Fleet, locks: Server) -> None:
    with locks.client() as client:
        claims = f"{fleet.settings['lockbeat_key_prefix']}{{beat:processes}}:claims"
        before = set(client.hkeys(claims))
        wait_until(lambda: not before & set(client.hkeys(claims)), 30, "what is claimed is published or taken over")

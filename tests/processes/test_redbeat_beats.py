"""Three real beats over RedBeat's entries, which are created, changed, disabled and deleted while the beats die and freeze."""

from __future__ import annotations

import contextlib
import random
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
    assert_each_has_run_as_it_should,
    change_while_beats_die,
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
    change_while_beats_die(beats, lambda: user.do_something(names, [0.7, 1.0, 1.5]), chance)
    _wait_until_all_is_settled(fleet, locks)
    beats.stop()
    assert_each_has_run_as_it_should(user, beats, steady, reader.arrivals())


def _wait_until_all_is_settled(fleet: Fleet, locks: Server) -> None:
    with locks.client() as client:
        claims = f"{fleet.settings['lockbeat_key_prefix']}{{beat:processes}}:claims"
        before = set(client.hkeys(claims))
        wait_until(lambda: not before & set(client.hkeys(claims)), 30, "what is claimed is published or taken over")

"""Three real beats over django-celery-beat's entries, all in PostgreSQL, while entries change and beats die and freeze."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import time
from collections.abc import Iterator

import pytest
from entries import (
    CLAIM_TTL,
    Beats,
    Life,
    Reader,
    User,
    assert_is_on_time,
    assert_it_has_run_once,
    assert_nothing_is_doubled,
    assert_nothing_is_lost,
    assert_nothing_runs_after_its_end,
)
from fleet import Fleet
from postgres import Postgres
from servers import Server, wait_until

SCHEDULER = "celery_lockbeat.contrib.django:LockedDatabaseScheduler"


class DjangoUser(User):
    """By the models, as the admin does."""

    def save_new(self, life: Life) -> None:
        from django_celery_beat.models import IntervalSchedule, PeriodicTask

        every, _ = IntervalSchedule.objects.get_or_create(every=life.interval, period="seconds")
        PeriodicTask.objects.create(
            name=life.name, task="nobody", interval=every, args=json.dumps([life.number, 0]), one_off=life.once
        )

    def save(self, life: Life, *, version: int | None = None, enabled: bool | None = None) -> None:
        row = self._row(life)
        if version is not None:
            row.args = json.dumps([life.number, version])
        if enabled is not None:
            row.enabled = enabled
        # as a form does, but for the columns of its runs
        row.save(update_fields=["args", "enabled", "last_run_at", "date_changed"] if enabled is not None else ["args"])

    def remove(self, life: Life) -> None:
        self._row(life).delete()

    def _row(self, life: Life):
        from django_celery_beat.models import PeriodicTask

        return PeriodicTask.objects.get(name=life.name)


@pytest.fixture
def fleet(make_fleet, database: Postgres) -> Fleet:
    return make_fleet(
        lockbeat_driver="database",
        lockbeat_claim_ttl=CLAIM_TTL,
        test_django_database=database.database,
        result_expires=None,
        beat_max_loop_interval=2,
    )


@pytest.fixture
def reader(fleet: Fleet, broker: Server) -> Iterator[Reader]:
    with contextlib.closing(Reader(broker, fleet.queue)) as reader:
        yield reader


def test_entries_change_while_beats_die_and_nothing_is_lost_doubled_or_run_after_its_end(fleet, reader, database):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    user, beats = DjangoUser(chance), Beats(fleet, chance, SCHEDULER)
    steady = [user.create(f"steady-{n}", 1) for n in range(5)]
    names, numbers = [f"entry-{n}" for n in range(8)], itertools.count()
    for _ in range(3):
        beats.start()
    wait_until(lambda: len(beats.awake()) == 3, 60, "three beats have joined")
    end = time.monotonic() + 20
    while time.monotonic() < end or min(beats.kills, beats.freezes) < 3:
        # the moments are what is random here: there is nothing to wait for
        time.sleep(chance.uniform(0.02, 0.3))
        user.do_something(names, [1, 2])
        if chance.random() < 0.1:
            user.create(f"once-{next(numbers)}", 1, once=True)
        if chance.random() < 0.25:
            beats.do_something()
    once = [life for life in user.lives if life.once]
    wait_until(lambda: all(reader.arrivals()[life.number] for life in once), 30, "what is to run once has run")
    _wait_until_all_is_settled(database)
    beats.stop()

    arrivals = reader.arrivals()
    for life in user.lives:
        assert_nothing_is_doubled(life, arrivals[life.number])
        assert_nothing_runs_after_its_end(life, arrivals[life.number])
        assert_nothing_is_lost(life, arrivals[life.number])
    for life in steady:
        assert_is_on_time(arrivals[life.number])
    for life in once:
        assert_it_has_run_once(arrivals[life.number])
        assert not user._row(life).enabled
    print(
        f"{beats.kills} kills, {beats.freezes} freezes, {len(user.lives)} lives, {sum(map(len, arrivals.values()))} messages"
    )
    assert once
    assert beats.kills >= 3
    assert beats.freezes >= 3
    assert len([life for life in user.lives if life.deleted]) >= 10


def test_a_database_that_dies_and_hangs_delays_what_is_due_and_no_tick_is_lost_or_doubled(fleet, reader, database):
    user, beats = DjangoUser(random.Random(0)), Beats(fleet, random.Random(0), SCHEDULER)
    lives = [user.create(f"steady-{n}", 1) for n in range(20)]
    for _ in range(3):
        beats.start()
    wait_until(lambda: len(beats.awake()) == 3, 60, "three beats have joined")
    for _ in range(3):
        _wait_for_more(reader, lives, 2)
        database.kill()
        database.start()
    _wait_for_more(reader, lives, 2)
    database.pause()
    # longer than a claim lasts
    time.sleep(2 * CLAIM_TTL)
    database.resume()
    _wait_for_more(reader, lives, 2)
    _wait_until_all_is_settled(database)
    beats.stop()
    arrivals = reader.arrivals()
    for life in lives:
        assert_nothing_is_doubled(life, arrivals[life.number])
        assert_nothing_is_lost(life, arrivals[life.number])


def _wait_for_more(reader: Reader, lives: list[Life], count: int) -> None:
    before = {number: len(arrivals) for number, arrivals in reader.arrivals().items()}
    wait_until(
        lambda: all(len(reader.arrivals()[life.number]) >= before.get(life.number, 0) + count for life in lives),
        40,
        "ticks go on",
    )


def _wait_until_all_is_settled(database: Postgres) -> None:
    def claims() -> set[str]:
        return {task_id for (task_id,) in database.query("SELECT task_id FROM lockbeat_claim")}

    before = claims()
    wait_until(lambda: not before & claims(), 30, "what is claimed is published or taken over")

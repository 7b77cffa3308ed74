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
    MUCH_SLACK,
    Beats,
    Life,
    Reader,
    User,
    assert_each_has_run_as_it_should,
    assert_it_has_run_once,
    assert_nothing_is_doubled,
    assert_nothing_is_lost,
    change_while_beats_die,
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

    def change() -> None:
        user.do_something(names, [1, 2])
        if chance.random() < 0.1:
            user.create(f"once-{next(numbers)}", 1, once=True)

    change_while_beats_die(beats, change, chance)
    once = [life for life in user.lives if life.once]
    wait_until(lambda: all(reader.arrivals()[life.number] for life in once), 30, "what is to run once has run")
    _wait_until_all_is_settled(database)
    beats.stop()

    arrivals = reader.arrivals()
    for life in once:
        assert_it_has_run_once(arrivals[life.number])
        assert not user._row(life).enabled
    assert once
    assert_each_has_run_as_it_should(user, beats, steady, arrivals)


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


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_entries_go_on_while_djangos_database_is_away_and_changes_count_when_it_is_back(
    make_fleet, broker, database, how
):
    """With the ticks in Redis, as most projects have them."""
    from django.db import connections

    settings = {"lockbeat_claim_ttl": CLAIM_TTL, "result_expires": None, "beat_max_loop_interval": 2}
    # a database of its own, whose rows have the keys of another's
    fleet = make_fleet(test_django_database=database.database, lockbeat_key_prefix=f"{how}:", **settings)
    user, beats = DjangoUser(random.Random(0)), Beats(fleet, random.Random(0), SCHEDULER)
    kept, deleted = user.create("kept", 1), user.create("deleted", 1)
    once = user.create("once", 6, once=True)
    for _ in range(2):
        beats.start()
    with contextlib.closing(Reader(broker, fleet.queue)) as reader:
        wait_until(lambda: len(beats.awake()) == 2, 60, "two beats have joined")
        _wait_for_more(reader, [kept, deleted], 2)
        if how == "killed":
            connections["default"].close()
            database.kill()
        else:
            database.pause()
        away = time.monotonic()
        _wait_for_more(reader, [kept, deleted], 5)
        wait_until(lambda: reader.arrivals()[once.number], 20, "what is to run once has run")
        if how == "killed":
            database.start()
        else:
            database.resume()
        gone = time.monotonic() - away
        user.delete(deleted)
        wait_until(lambda: all("is back after" in beat.log() for beat in beats.running), 30, "all beats have it back")
        _wait_for_more(reader, [kept], 3)
        beats.stop()
        arrivals = reader.arrivals()
    for life in (kept, deleted, once):
        assert_nothing_is_doubled(life, arrivals[life.number])
        assert_nothing_is_lost(life, arrivals[life.number])
    # one that hangs is given up after two seconds, and asked again after some more
    at_most = deleted.deleted + (2 if how == "killed" else 10) + MUCH_SLACK
    assert all(each.at < at_most for each in arrivals[deleted.number])
    assert gone >= 3
    assert_it_has_run_once(arrivals[once.number])
    assert not user._row(once).enabled
    assert user._row(kept).total_run_count == max(each.run for each in arrivals[kept.number])
    gaps = [after.at - before.at for before, after in itertools.pairwise(arrivals[kept.number])]
    assert max(gaps) < 1 + 2 * 2 + MUCH_SLACK, gaps
    for beat in beats.running:
        assert beat.log().count("entries go on as they were") == 1, beat.log()


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

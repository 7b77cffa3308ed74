"""While Django's database is away, entries whose ticks are claimed elsewhere go on as last known. Time is simulated.

Real databases that are killed and frozen: tests/processes/test_django_beats.py.
"""

from __future__ import annotations

import contextlib
import sqlite3

import djangos
import pytest


@pytest.fixture
def make_world(make_django_world):
    return make_django_world


@contextlib.contextmanager
def away():
    """Let Django's database answer nothing; the tests change it before and after."""
    from django.db import connection
    from django.db.utils import OperationalError

    def refuse(*_):
        raise OperationalError("server closed the connection unexpectedly")

    with connection.execute_wrapper(refuse):
        yield


def said(caplog, text):
    return [record for record in caplog.records if text in record.getMessage()]


def test_entries_go_on_as_last_known_which_is_said_once(world, caplog):
    from django_celery_beat.models import CrontabSchedule

    caplog.set_level("INFO", "celery_lockbeat.beat")
    world.create(every=10)
    world.create("cron", crontab=CrontabSchedule.objects.create(minute="*/2"), task="cron", args="[1]")
    world.create("once", every=50, one_off=True, task="once")
    world.start()
    world.run(25)
    with away():
        world.run(300)
    world.run(30)
    assert world.times() == pytest.approx(list(range(10, 360, 10)), abs=1)
    assert world.times("cron") == pytest.approx([120, 240], abs=1)
    assert world.messages("cron")[0].args == [1]
    assert world.times("once") == pytest.approx([50], abs=1)
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == world.replicas, errors
    assert "entries go on as they were when it last did, and changes count when it is back" in errors[0]
    assert len(said(caplog, "Django's database is back after 30")) == world.replicas


def test_what_ran_meanwhile_is_written_down_when_it_is_back(world):
    world.create(every=10)
    world.create("once", every=50, one_off=True, task="once")
    world.start()
    world.run(25)
    with away():
        world.run(100)
    world.run(3)
    row = world.row()
    assert row.total_run_count == 12
    assert world.at(120) <= row.last_run_at < world.at(121)
    assert world.row("once").enabled is False
    world.stop()
    world.start()
    world.run(100)
    assert world.times("once") == pytest.approx([50], abs=1)
    assert len(world.times()) == 22


def test_deletions_and_edits_count_as_soon_as_it_is_back(world):
    for name in ("deleted", "disabled", "edited", "kept"):
        world.create(name, 10, name)
    world.start()
    world.run(25)
    with away():
        world.run(43)
    # by a host that reached it all the time
    world.row("deleted").delete()
    world.update("disabled", enabled=False, last_run_at=None)
    world.update("edited", args="[1]")
    world.run(60)
    assert world.times("deleted") == pytest.approx([10, 20, 30, 40, 50, 60], abs=1)
    assert world.times("disabled") == pytest.approx([10, 20, 30, 40, 50, 60], abs=1)
    assert len(world.times("kept")) == 12
    assert [message.args for message in world.messages("edited")] == 6 * [[]] + 6 * [[1]]


def test_a_deletion_past_all_signals_counts_as_soon_as_it_is_back(world):
    from django_celery_beat.models import PeriodicTask

    world.create()
    world.start()
    world.run(25)
    with away():
        world.run(10)
    PeriodicTask.objects.filter(name="a")._raw_delete("default")
    world.run(60)
    assert world.times() == pytest.approx([10, 20, 30], abs=1)


def test_a_beat_that_knows_nothing_yet_waits_for_it(make_world, caplog):
    world = make_world()
    world.create()
    with away():
        world.start()
        world.run(65)
    assert world.times() == []
    assert said(caplog, "Django's database does not answer")
    world.run(10)
    assert world.times() == pytest.approx([65], abs=2.5)


def test_a_beat_that_comes_while_it_is_away_leaves_the_ticks_to_those_that_know_them(make_world):
    world = make_world(2)
    world.create()
    world.start()
    first, second = world.beats
    world.run(25)
    second.close()
    with away():
        world.replicas = 1
        world.start()
        late = world.beats
        world.beats = [first, *late]
        world.run(60)
    world.run(30)
    assert world.times() == pytest.approx(list(range(10, 120, 10)), abs=1)


def test_what_a_dead_beat_had_claimed_is_sent_by_one_that_knows_its_row(make_world):
    world = make_world(2)
    world.create()
    world.start()
    victim, other = world.beats

    def die(_ticks):
        raise SystemExit

    victim.scheduler._publisher.publish = die
    world.simulation.world.run(victim, seconds=9)
    with away():
        with pytest.raises(SystemExit):
            world.simulation.world.run(victim, seconds=5)
        world.beats = [other]
        world.run(25)
    assert [message.run for message in world.messages()] == [1, 2, 3]


def test_what_a_dead_beat_had_claimed_of_a_row_that_nobody_knows_waits_for_it(make_world):
    world = make_world(2)
    world.create("b", task="b")
    world.start()
    victim, other = world.beats
    # the other one is frozen, and has not seen it
    world.simulation.world.elapsed += 0.5
    world.create(every=5)

    def die(_ticks):
        raise SystemExit

    victim.scheduler._publisher.publish = die
    with pytest.raises(SystemExit):
        world.simulation.world.run(victim, seconds=8)
    world.beats = [other]
    with away():
        world.run(12)
        assert world.times() == []
    world.run(10)
    assert world.messages()[0].run == 1
    assert len({message.id for message in world.messages()}) == len(world.messages())


def test_one_that_is_to_run_once_and_was_changed_meanwhile_is_not_disabled_for_the_run_before(make_world):
    world = make_world()
    world.create(every=30, one_off=True)
    world.start()
    world.run(25)
    with away():
        world.run(10)
    assert world.times() == pytest.approx([30], abs=1)
    # by a user, to whom the database was there, before the beat has reached it again
    row = world.row()
    row.args = "[1]"
    row.save()
    world.run(40)
    assert world.times() == pytest.approx([30, 65], abs=2)
    assert world.row().enabled is False


def test_with_the_ticks_in_the_same_database_it_waits(make_world, caplog):
    world = make_world()
    world.create()
    world.start(lockbeat_driver="database")
    world.run(15)
    with away():
        world.run(60)
    assert world.times() == pytest.approx([10], abs=1)
    assert said(caplog, "beat waits for the store of its ticks: Django's database does not answer")
    world.run(13)
    assert world.times() == pytest.approx([10, 75, 85], abs=2.5)


def test_two_that_want_to_write_in_sqlite_at_once_begin_anew_and_nothing_is_said(tmp_path):
    """As two beats do that are started together, and write down the same static entries."""
    from django.db import connections, transaction

    from celery_lockbeat.contrib.django.database import Database

    tries = []

    class Ours(Database):
        alias = djangos.use(djangos.make_sqlite(tmp_path / "db.sqlite3"))

    with contextlib.closing(sqlite3.connect(tmp_path / "db.sqlite3", isolation_level=None)) as other:

        def write():
            tries.append(len(tries))
            try:
                with transaction.atomic(using=Ours.alias), connections[Ours.alias].cursor() as cursor:
                    cursor.execute("SELECT boot FROM lockbeat_host")
                    if len(tries) < 4:
                        other.execute("BEGIN IMMEDIATE")
                    cursor.execute("INSERT INTO lockbeat_host VALUES ('x')")
            finally:
                if other.in_transaction:
                    other.execute("ROLLBACK")

        Ours(None, None).query(write)
        assert other.execute("SELECT boot FROM lockbeat_host").fetchall() == [("x",)]
    assert len(tries) == 4
    connections[Ours.alias].close()

"""What django-celery-beat's documentation tells of it (README, docs, help texts of 2.8 and 2.9), on one of our beats and on three.

Time is simulated; the tables are in an SQLite file.
"""

from __future__ import annotations

import logging
import sys
from itertools import pairwise

import pytest
from simulation import let_them_sleep
from worlds import die_with_a_claim

from celery_lockbeat import ConfigurationError, cron, timeout
from celery_lockbeat.contrib.schedulers import entries_of, names_of
from celery_lockbeat.insight.doctor.facts import gather
from celery_lockbeat.insight.doctor.rules import examine
from celery_lockbeat.schedules import Cron


@pytest.fixture
def make_world(make_django_world):
    return make_django_world


# -- entries -----------------------------------------------------------------------------------------------------------


def test_an_entry_that_is_created_in_another_process_runs_at_its_interval(world):
    world.start()
    world.run(3)
    world.create(
        args="[1, 2]", kwargs='{"x": 3}', queue="q", priority=7, headers='{"h": 1}', expire_seconds=60, every=10
    )
    world.run(31)
    assert world.times() == pytest.approx([13, 23, 33], abs=0.3)
    message = world.messages()[0]
    assert (message.args, message.kwargs, message.queue, message.entry) == ([1, 2], {"x": 3}, "q", "a")
    assert message.headers["h"] == 1
    assert message.headers["periodic_task_name"] == "a"
    assert message.headers["expires"] is not None
    assert message.properties["priority"] == 7


def test_what_runs_is_written_into_its_row(world):
    world.create("a", 10)
    world.create("b", 25)
    world.start()
    world.run(31)
    assert {name: world.row(name).total_run_count for name in "ab"} == {"a": 3, "b": 1}
    assert world.at(30) <= world.row("a").last_run_at < world.at(30.5)
    assert world.at(25) <= world.row("b").last_run_at < world.at(25.5)


def test_a_crontab_runs_in_its_own_timezone(world):
    from django_celery_beat.models import CrontabSchedule

    # 00:02 UTC
    berlin = CrontabSchedule.objects.create(minute="2", hour="2", timezone="Europe/Berlin")
    often = CrontabSchedule.objects.create(minute="*/2")
    world.create("berlin", crontab=berlin, task="berlin")
    world.create("often", crontab=often, task="often")
    world.start()
    world.run(300)
    assert world.times("berlin") == pytest.approx([120], abs=0.5)
    assert world.times("often") == pytest.approx([120, 240], abs=0.5)


@pytest.fixture
def sleepy(monkeypatch):
    """Beats that look every five minutes, so that days go by."""
    let_them_sleep(monkeypatch)
    monkeypatch.setattr("celery_lockbeat.beat.replicas.LOOK_EVERY", 300.0)
    return {"beat_max_loop_interval": 300, "lockbeat_claim_ttl": 1200}


def test_a_crontab_far_ahead_runs_at_its_time_and_not_before(world, sleepy):
    from django_celery_beat.models import CrontabSchedule

    world.create(crontab=CrontabSchedule.objects.create(minute="30", hour="14"))
    world.start(**sleepy)
    world.run(86400)
    assert world.times() == pytest.approx([14.5 * 3600], abs=0.5)


def test_a_solar_schedule_runs_when_the_sun_does(make_world, sleepy):
    from django_celery_beat.models import SolarSchedule

    world = make_world()
    when = SolarSchedule.objects.create(event="solar_noon", latitude="52.5", longitude="13.4")
    world.create(solar=when)
    world.create("later", solar=when, start_time=world.at(1.5 * 86400), task="later")
    world.start(**sleepy)
    world.run(3 * 86400)
    noon, next_noon, third = world.times()
    assert 10.9 * 3600 < noon < 11.3 * 3600
    assert 23.9 * 3600 < next_noon - noon < 24.1 * 3600
    assert world.times("later") == pytest.approx([third], abs=1.1)


def test_a_clocked_entry_runs_once_at_its_time(world):
    from django_celery_beat.models import ClockedSchedule

    world.create(clocked=ClockedSchedule.objects.create(clocked_time=world.at(150)), one_off=True)
    world.start()
    world.run(400)
    assert world.times() == pytest.approx([150], abs=0.5)
    assert world.row().enabled is False


def test_an_entry_that_is_to_run_once_runs_once_and_is_disabled(world):
    world.create(one_off=True)
    world.create("b", task="b")
    world.start()
    world.run(60)
    assert world.times() == pytest.approx([10], abs=0.5)
    row = world.row()
    assert (row.enabled, row.last_run_at, row.total_run_count) == (False, None, 0)
    assert len(world.times("b")) == 6 or len(world.times("b")) == 5


@pytest.mark.parametrize("how", ["saved", "by the admin's action"])
def test_what_has_run_once_runs_once_more_when_it_is_enabled_again(world, how):
    world.create(one_off=True)
    world.start()
    for more in range(1, 3):
        world.run(20)
        assert len(world.times()) == more
        if how == "saved":
            row = world.row()
            row.enabled = True
            row.save()
        else:
            world.update(enabled=True)
    world.run(60)
    assert len(world.times()) == 3


def test_an_entry_starts_at_its_start_time_and_then_at_once(world):
    world.create(every=100, start_time=world.at(30))
    world.start()
    world.run(250)
    assert world.times() == pytest.approx([30, 130, 230], abs=1.1)
    assert world.messages()[0].headers["lockbeat"]["due"].startswith("2026-06-01T00:00:3")


def test_an_entry_that_expires_runs_no_more_and_is_disabled(world):
    world.create(expires=world.at(35))
    world.start()
    world.run(80)
    assert world.times() == pytest.approx([10, 20, 30], abs=0.3)
    assert world.row().enabled is False


# -- changes -----------------------------------------------------------------------------------------------------------


def test_a_change_is_seen_within_the_loop_interval(world):
    world.create(every=3600)
    world.start()
    world.run(60)
    row = world.row()
    row.interval = world.every(20)
    row.save()
    world.run(45)
    # what has never run counts from its last change
    assert world.times() == pytest.approx([80, 100], abs=0.5)


def test_a_change_of_the_schedule_itself_is_seen(world):
    world.create(every=3600)
    world.start()
    world.run(60)
    interval = world.row().interval
    interval.every = 20
    interval.save()
    world.run(25)
    assert world.times() == pytest.approx([60, 80], abs=2)


def test_arguments_that_change_at_the_last_moment_are_the_ones_that_are_sent(world):
    world.create(args='["old"]')
    world.start()
    world.run(19.9)
    from django_celery_beat.models import PeriodicTask

    # nothing tells of it
    PeriodicTask.objects.filter(name="a").update(args='["new"]')
    world.run(1)
    assert [message.args for message in world.messages()] == [["old"], ["new"]]


@pytest.mark.parametrize("how", ["saved", "updated"])
def test_a_disabled_entry_does_not_run_until_it_is_enabled_again(world, how):
    row = world.create()
    world.start()
    world.run(15)
    if how == "saved":
        row = world.row()
        row.enabled = False
        row.save()
    else:
        world.update(enabled=False, last_run_at=None)
    world.run(60)
    assert world.times() == pytest.approx([10], abs=0.3)
    assert world.row().last_run_at is None
    row = world.row()
    row.enabled = True
    row.save()
    world.run(21)
    assert world.times() == pytest.approx([10, 85, 95], abs=1)
    assert world.row().total_run_count == 3


def test_an_entry_that_is_off_for_a_moment_counts_from_when_it_is_on_again(world):
    world.create()
    world.start()
    world.run(15.2)
    for enabled in (False, True):
        row = world.row()
        row.enabled = enabled
        row.save()
    world.run(24)
    assert world.times() == pytest.approx([10, 25.2, 35.2], abs=0.5)


def test_a_deleted_entry_runs_no_more(world):
    world.create()
    world.start()
    world.run(19.9)
    world.row().delete()
    world.run(60)
    assert world.times() == pytest.approx([10], abs=0.3)
    assert all("a" not in [entry.name for entry in beat.scheduler.schedule.values()] for beat in world.beats)


def test_an_entry_that_is_deleted_past_all_signals_runs_no_more(world):
    from django_celery_beat.models import PeriodicTask

    world.create()
    world.start()
    world.run(19.9)
    PeriodicTask.objects.filter(name="a")._raw_delete("default")
    world.run(60)
    assert world.times() == pytest.approx([10], abs=0.3)


def test_an_entry_that_is_created_anew_begins_anew(world):
    world.create(every=10)
    world.start()
    world.run(25)
    world.row().delete()
    world.create(every=4)
    world.run(9)
    assert world.times() == pytest.approx([10, 20, 29, 33], abs=0.5)
    assert world.row().total_run_count == 2


def test_a_renamed_entry_goes_on(world):
    world.create()
    world.start()
    world.run(15)
    row = world.row()
    row.name = "z"
    row.save()
    world.run(10)
    assert world.times() == pytest.approx([10, 20], abs=0.5)
    assert [message.run for message in world.messages()] == [1, 2]
    assert world.messages()[1].entry == "z"


def test_a_last_run_that_is_reset_lets_the_schedule_begin_anew(world):
    """As the README has it for a change of the time zone."""
    world.create(every=300)
    world.start()
    world.run(400)
    assert world.times() == pytest.approx([300], abs=0.5)
    world.update(last_run_at=None)
    world.run(5)
    # counted from its last change, which is more than five minutes ago
    assert world.times() == pytest.approx([300, 401], abs=2)
    world.stop()
    world.start()
    world.run(280)
    assert len(world.times()) == 2
    assert [message.run for message in world.messages()] == [1, 2]


def test_a_last_run_that_is_reset_while_no_beat_is_there_counts_too(world):
    world.create(every=300)
    world.start()
    world.run(400)
    world.stop()
    world.update(last_run_at=None)
    world.start()
    world.run(5)
    assert world.times() == pytest.approx([300, 400], abs=2)


def test_what_was_due_while_no_beat_was_there_runs_once(world):
    world.create()
    world.start()
    world.run(15)
    world.stop()
    world.run(100)
    world.start()
    world.run(5)
    assert world.times() == pytest.approx([10, 115], abs=0.5)


# -- the admin ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def admin(make_world):
    """A world, and the function that carries out one of the admin's actions."""
    from celery import _state
    from django.contrib.auth import get_user_model
    from django.test import Client, override_settings
    from django_celery_beat.models import PeriodicTask

    world = make_world(3)
    client, current = Client(), _state._tls.current_app
    client.force_login(get_user_model().objects.create_superuser("admin"))

    def act(action):
        pks = list(PeriodicTask.objects.filter(name="a").values_list("pk", flat=True))
        url = "/admin/django_celery_beat/periodictask/"
        done = client.post(url, {"action": action, "_selected_action": pks}, follow=True)
        assert done.status_code == 200
        return done.content.decode()

    with override_settings(CELERY_BEAT_SCHEDULER="celery_lockbeat.contrib.django:LockedDatabaseScheduler"):
        yield world, act
    _state._tls.current_app = current


def test_the_admins_actions_reach_all_beats(admin):
    world, act = admin
    world.create()
    world.start()
    world.run(15)
    assert "successfully disabled" in act("disable_tasks")
    world.run(60)
    assert len(world.times()) == 1
    assert "successfully enabled" in act("enable_tasks")
    world.run(9)
    assert len(world.times()) == 1
    world.run(3)
    assert len(world.times()) == 2  # counted from when it was enabled
    assert "successfully toggled" in act("toggle_tasks")
    world.run(60)
    assert len(world.times()) == 2


def test_the_admin_runs_selected_tasks_and_takes_ours_for_a_database_scheduler(admin):
    world, act = admin
    world.create(every=60, args="[1]", queue="q")
    app = world.app()

    @app.task(name="t")
    def t(n):
        pass

    app.set_current()
    page = act("run_tasks")
    assert "1 task was successfully run" in page
    assert "wrong" not in page.lower()
    (message,) = world.messages()
    assert (message.args, message.queue, message.headers["periodic_task_name"]) == ([1], "q", "a")
    world.start()
    world.run(65)
    assert len(world.times()) == 2


# -- static entries ----------------------------------------------------------------------------------------------------


def test_static_entries_are_stored_and_kept_up_to_date_and_a_disabled_one_stays_so(world):
    from django_celery_beat.models import PeriodicTasks

    static = {"static": {"task": "t", "schedule": 10.0, "args": (16,), "options": {"queue": "q", "expire_seconds": 9}}}
    world.start(static)
    world.run(15)
    row = world.row("static")
    assert (row.total_run_count, row.args, row.queue, row.expire_seconds) == (1, "[16]", "q", 9)
    world.stop()
    changed = PeriodicTasks.last_change()
    world.start(static)
    assert PeriodicTasks.last_change() == changed  # nothing was written
    world.stop()
    world.start({"static": {**static["static"], "args": (17,)}, "other": {"task": "o", "schedule": 5.0}})
    world.run(6)
    assert [message.args for message in world.messages()] == [[16], [17]]
    world.update("static", enabled=False)
    world.stop()
    world.start(static)
    world.run(30)
    assert len(world.times()) == 2


def test_what_the_tables_cannot_keep_of_the_static_entries_runs_all_the_same(world):
    def settings(app):
        def body():
            pass

        cron("2 9 * * *", name="tokyo", timezone="Asia/Tokyo", app=app, shared=False)(body)
        timeout(7, name="once", app=app, shared=False)(body)
        cron("* * * * *", name="spread", jitter=30, app=app, shared=False)(body)
        app.conf.beat_schedule = {**app.conf.beat_schedule, "often": {"task": "often", "schedule": 2.5}}
        app.finalize()

    from celery_lockbeat.contrib.django import LockedDatabaseScheduler

    apps = [world.app() for _ in range(world.replicas)]
    for app in apps:
        settings(app)
    world.beats = [world.simulation.beat(app, scheduler=LockedDatabaseScheduler) for app in apps]
    world.run(130)
    assert world.times("once") == pytest.approx([7], abs=0.3)
    assert world.times("often")[:3] == pytest.approx([2.5, 5, 7.5], abs=0.4)
    assert world.times("tokyo") == pytest.approx([120], abs=0.3)
    assert str(world.row("tokyo").crontab.timezone) == "Asia/Tokyo"
    spread = Cron("* * * * *", jitter=30).bound_to("spread")
    assert all(beat.scheduler.schedule["spread"].schedule == spread for beat in world.beats)


def test_the_default_entry_is_there(world, sleepy):
    world.start(result_expires=3600, **sleepy)
    assert world.row("celery.backend_cleanup").task == "celery.backend_cleanup"
    world.run(86400)
    assert world.times("celery.backend_cleanup") == pytest.approx([4 * 3600], abs=1)


def test_a_static_entry_that_is_broken_is_skipped(make_world, caplog):
    world = make_world()
    world.start({"wrong": {"schedule": "nonsense", "x": 1}, "right": {"task": "t", "schedule": 10.0}})
    world.run(15)
    assert len(world.times()) == 1
    assert "wrong" in caplog.text


# -- in turn with plain django-celery-beat -----------------------------------------------------------------------------


def test_the_schedule_tells_the_entries_before_the_first_tick_as_django_celery_beats(make_world):
    """Its own tests read it so (django-celery-beat 2.9, t/unit/test_schedulers.py)."""
    from django_celery_beat.schedulers import DatabaseScheduler

    from celery_lockbeat.contrib.django import LockedDatabaseScheduler

    world = make_world()
    world.create("a")
    world.create("off", enabled=False)
    settings = {"static": {"task": "s", "schedule": 10.0}, "half": {"task": "h", "schedule": 0.5}}
    ours = LockedDatabaseScheduler(app=world.app(settings))
    assert {name: entry.task for name, entry in ours.schedule.items()} == {"a": "t", "static": "s", "half": "h"}
    assert all(isinstance(ours.schedule[name], ours.Entry) for name in ("a", "static"))
    del settings["half"]
    assert LockedDatabaseScheduler(app=world.app(settings)).schedule.keys() == {"a", "static"}
    assert DatabaseScheduler(app=world.app(settings)).schedule.keys() == {"a", "static"}


def test_a_lazy_scheduler_reads_what_is_there_and_stores_nothing(make_world):
    from celery_lockbeat.contrib.django import LockedDatabaseScheduler

    world = make_world()
    world.create("a")
    beat = world.simulation.beat(world.app())
    beat.scheduler = LockedDatabaseScheduler(app=world.app({"static": {"task": "s", "schedule": 10.0}}), lazy=True)
    assert beat.scheduler.schedule.keys() == {"a"}
    world.simulation.world.run(beat, seconds=11)
    assert len(world.times()) == 1
    assert beat.scheduler.schedule.keys() == {"a"}
    beat.close()


# -- replicas that die, and what they leave ----------------------------------------------------------------------------


def nothing_is_kept(world):
    (beat,) = world.beats
    answer = world.simulation.store.beats.claim(beat.scheduler._name, "somebody", [], ttl=1)
    return (answer.overdue, answer.next_overdue) == ([], None)


@pytest.mark.parametrize("one_off", [False, True])
def test_what_a_dead_beat_has_claimed_is_published_by_another_one(make_world, one_off):
    world = make_world(2)
    world.create("b", task="b", one_off=one_off)
    world.start()
    die_with_a_claim(world)
    world.run(12)
    assert world.times("b") == pytest.approx([15] if one_off else [15, 20], abs=1.5)
    assert [message.run for message in world.messages("b")] == ([1] if one_off else [1, 2])
    assert nothing_is_kept(world)


@pytest.mark.parametrize("one_off", [False, True])
@pytest.mark.parametrize("what", ["deleted", "disabled", "created anew"])
def test_what_a_dead_beat_has_claimed_is_not_published_when_the_entry_was(make_world, what, one_off):
    world = make_world(2)
    world.create(one_off=one_off)
    world.start()
    die_with_a_claim(world)
    if what == "disabled":
        world.update(enabled=False)
    else:
        world.row().delete()
    if what == "created anew":
        world.create(every=1000)
    world.run(60)
    assert world.times() == []
    assert nothing_is_kept(world)


def test_a_beat_that_comes_while_a_dead_one_has_a_claim_does_not_run_it_twice(make_world):
    world = make_world(2)
    world.create(one_off=True)
    world.create("b", task="b")
    world.start()
    die_with_a_claim(world)
    world.stop()
    world.replicas = 1
    world.start()
    world.run(12)
    assert len(world.times()) == 1
    assert [message.run for message in world.messages("b")] == [1, 2]


def test_a_beat_that_was_frozen_before_it_publishes_looks_once_more(make_world):
    world = make_world()
    world.create()
    world.create("b", task="b")
    (beat,) = world.start()
    publish = beat.scheduler._publisher.publish

    def freeze_and_publish(ticks):
        from django_celery_beat.models import PeriodicTask

        PeriodicTask.objects.filter(name="a").delete()
        world.simulation.world.elapsed += 1.0
        publish(ticks)

    beat.scheduler._publisher.publish = freeze_and_publish
    world.run(11.5)
    assert world.times() == []
    assert world.times("b") == pytest.approx([11], abs=0.5)


# -- what is broken ----------------------------------------------------------------------------------------------------


def break_them(world):
    """Rows with all sorts of nonsense; return their names."""
    from django.db import connection
    from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

    world.create("args that are no JSON", args="{")
    world.create("args that are no list", args='{"a": 1}')
    world.create("kwargs that are no mapping", kwargs="[1]")
    world.create("headers that are no JSON", headers="nonsense")
    world.create("no interval at all", interval=IntervalSchedule.objects.create(every=0, period="seconds"), every=None)
    world.create("a period of nobody's", interval=IntervalSchedule.objects.create(every=1, period="moons"), every=None)
    world.create("a crontab that is none", crontab=CrontabSchedule.objects.create(minute="99"))
    world.create("a zone of nobody's", crontab=CrontabSchedule.objects.create(minute="1"))
    world.create("no schedule")
    PeriodicTask.objects.filter(name="no schedule").update(interval=None)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE django_celery_beat_crontabschedule SET timezone = 'Moon/Crater' WHERE minute = '1'")
    return set(PeriodicTask.objects.values_list("name", flat=True))


def test_broken_entries_are_logged_with_their_names_and_stop_no_other(make_world, caplog):
    world = make_world()
    names = break_them(world)
    world.create("good", 5)
    world.start()
    world.run(51)
    assert len(world.times()) == 10
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    for name in names:
        assert len([error for error in errors if repr(name) in error]) == 1, (name, errors)
    # and each comes to life when it is mended
    assert world.row("args that are no JSON").enabled
    world.update("args that are no JSON", args='["mended"]')
    world.run(11)
    assert ["mended"] in [message.args for message in world.messages()]


def test_an_entry_that_breaks_while_it_is_known_stops(world, caplog):
    world.create()
    world.create("b", task="b")
    world.start()
    world.run(15)
    world.update(kwargs="{")
    world.run(20)
    assert len(world.times()) == 1
    assert len(world.times("b")) == 3
    assert "entry 'a' is skipped" in caplog.text


# -- queries -----------------------------------------------------------------------------------------------------------


def test_no_tick_makes_more_queries_with_more_entries(make_world):
    from django.db import connection

    most = {}
    for count in (2, 80):
        world = make_world()
        from django_celery_beat.models import PeriodicTask

        PeriodicTask.objects.all().delete()
        for n in range(count):
            world.create(f"{count}-{n}", 10)
        (beat,) = world.start()
        world.run(15)
        asked = []

        def count_it(execute, sql, params, many, context, asked=asked):
            asked.append(sql)
            return execute(sql, params, many, context)

        per_tick = []
        tick = beat.scheduler.tick

        def ticked(tick=tick, asked=asked, per_tick=per_tick):
            asked.clear()
            rest = tick()
            per_tick.append(list(asked))
            return rest

        beat.scheduler.tick = ticked
        with connection.execute_wrapper(count_it):
            world.run(30)
        assert len(world.messages()) == 4 * count
        most[count] = max(per_tick, key=len)
        world.stop()
    assert len(most[2]) == len(most[80]), most
    # the change at the look, the rows of what is due, and the runs that are written
    assert len(most[80]) <= 3


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aware", [True, False])
def test_a_project_without_timezones_is_understood(make_world, aware):
    from django.test import override_settings

    with override_settings(USE_TZ=False, TIME_ZONE="Europe/Berlin", DJANGO_CELERY_BEAT_TZ_AWARE=aware):
        world = make_world()
        naive = lambda: world.now.astimezone(zone).replace(tzinfo=None)  # noqa: E731
        from django.utils import timezone as django_timezone

        zone = django_timezone.get_default_timezone()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("django.utils.timezone.now", naive)
            if not aware:
                from django_celery_beat.schedulers import ModelEntry

                patch.setattr(ModelEntry, "_default_now", lambda self: world.now.replace(tzinfo=None))
            world.create()
            world.start()
            world.run(25)
            world.stop()
            world.start()
            world.run(10)
            times = world.times()
            world.stop()
    assert times[0] == pytest.approx(10, abs=0.5)
    assert len(times) == 3
    gaps = [round(b - a, 1) for a, b in pairwise(times)]
    assert all(9.5 <= gap <= 11 for gap in gaps), times


def test_a_django_celery_beat_that_is_too_old_is_refused(make_world, monkeypatch):
    from celery_lockbeat.contrib import versions
    from celery_lockbeat.contrib.django import LockedDatabaseScheduler

    monkeypatch.setattr(versions, "version", lambda name: {"django-celery-beat": "2.7.0"}[name])
    with pytest.raises(ConfigurationError, match=r"django-celery-beat is 2\.7\.0; allowed: 2\.8 or newer"):
        LockedDatabaseScheduler(app=make_world().app())


def test_lazy_and_real_construction_touch_no_database(make_world):
    from django.db import connection

    from celery_lockbeat.contrib.django import LockedDatabaseScheduler

    def refuse(*_):
        raise AssertionError

    app = make_world().app()
    with connection.execute_wrapper(refuse):
        for lazy in (True, False):
            LockedDatabaseScheduler(app=app, lazy=lazy).close()


def test_without_django_celery_beat_the_extra_is_named(monkeypatch):
    from celery_lockbeat.contrib import django as contrib

    monkeypatch.setitem(sys.modules, "django_celery_beat", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'celery-lockbeat\[django\]'"):
        _ = contrib.LockedDatabaseScheduler
    with pytest.raises(AttributeError):
        _ = contrib.nonsense


# -- for those who look at the entries ---------------------------------------------------------------------------------


def test_doctor_reads_the_entries_in_the_tables_and_writes_none(make_world):
    from django_celery_beat.models import PeriodicTask

    world = make_world()
    app = world.app({"static": {"task": "t", "schedule": 10}}, beat_scheduler="lockbeat-django")
    world.create("Sync 7", task="sync")
    world.create("without a task", task="")
    world.create("off", task="gone", enabled=False)
    world.create("broken")
    PeriodicTask.objects.filter(name="broken").update(args="[")
    found = entries_of(app)
    assert found.tasks == {"Sync 7": "sync", "static": "t"}
    assert found.broken.keys() == {"without a task", "broken"}
    assert PeriodicTask.objects.count() == 4
    findings = {(finding.kind.name, finding.about) for finding in examine(gather(app))}
    assert {("broken-entry", "entry broken"), ("broken-entry", "entry without a task")} <= findings
    assert ("unknown-task", "entry Sync 7") in findings


def test_entries_are_known_by_the_names_that_users_gave_them(world):
    world.create("Sync 7")
    world.start({"static": {"task": "t", "schedule": 10}, "half": {"task": "t", "schedule": 0.5}})
    keys = {entry.name for entry in world.simulation.store.beats.status("simulated").entries}
    assert any(key.startswith("periodictask:") for key in keys)
    assert set(names_of(world.app(beat_scheduler="lockbeat-django"), keys).values()) == {"Sync 7", "static", "half"}
    announced = ["celery_lockbeat.contrib.django.scheduler:LockedDatabaseScheduler"]
    assert set(names_of(world.app(), keys, announced).values()) == {"Sync 7", "static", "half"}, "started with -S"
    world.row("Sync 7").delete()
    assert set(names_of(world.app(), keys, announced).values()) > {"static", "half"}, "what is deleted keeps its key"


def test_a_row_is_the_same_for_all_beats_and_what_the_tables_cannot_keep_is_compared(make_world):
    world = make_world(2)
    world.create("a", 10)
    one, other = world.start({"half": {"task": "t", "schedule": 0.5}})
    world.run(30)
    assert one.scheduler._announcements._definitions.keys() == {"half"}
    world.update("a", args="[1]")
    other.app.conf.beat_schedule = {"half": {"task": "t", "schedule": 0.5, "args": (1,)}}
    world.run(60)
    assert not one.scheduler._announcements._differences

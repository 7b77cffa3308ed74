"""What RedBeat's documentation tells of it (README, config, tasks, design of 2.4), on one of our beats and on three.

Time is simulated, but for RedBeat's own Redis, which has no use for it.
"""

from __future__ import annotations

import json
import logging
from datetime import datetime, timedelta, timezone

import pytest
from celery.beat import Scheduler
from celery.schedules import crontab, schedule, solar
from celery.signals import beat_init
from redbeat import RedBeatScheduler, RedBeatSchedulerEntry
from redbeat.schedulers import ensure_conf, get_redis
from redbeat.schedules import rrule
from simulation import every
from worlds import die_with_a_claim

from celery_lockbeat import ConfigurationError, cron, timeout
from celery_lockbeat.contrib import versions
from celery_lockbeat.contrib.redbeat import LockedRedBeatScheduler, policy_headers
from celery_lockbeat.contrib.redbeat.hashes import Look
from celery_lockbeat.contrib.schedulers import entries_of, names_of
from celery_lockbeat.insight.doctor.facts import gather
from celery_lockbeat.insight.doctor.rules import examine


@pytest.fixture
def make_world(make_redbeat_world):
    return make_redbeat_world


# -- entries -----------------------------------------------------------------------------------------------------------


def test_an_entry_that_is_saved_from_another_process_runs_at_its_interval(world):
    world.start()
    world.run(3)
    world.entry(args=[1, 2], kwargs={"x": 3}, options={"queue": "q"}).save()
    world.run(31)
    assert world.times() == pytest.approx([13, 23, 33], abs=0.3)
    message = world.messages()[0]
    assert (message.args, message.kwargs, message.queue, message.entry) == ([1, 2], {"x": 3}, "q", "a")


def test_an_entry_is_inserted_into_redis_by_hand(world):
    world.start()
    definition = {"name": "a", "task": "t", "schedule": {"__type__": "interval", "every": 5, "relative": False}}
    world.redis.hset("redbeat:a", "definition", json.dumps(definition))
    world.redis.zadd("redbeat::schedule", {"redbeat:a": 0})
    world.run(12)
    # never run: due now
    assert world.times() == pytest.approx([1, 6, 11], abs=1.2)
    assert world.messages()[0].headers["lockbeat"]["due"].startswith("2026-06-01T00:00:0")


def test_what_runs_is_written_down_for_everybody_to_list(world):
    world.entry("a", 10.0).save()
    world.entry("b", 25.0).save()
    world.start()
    world.run(31)
    conf = ensure_conf(world.user)
    keys = get_redis(world.user).zrange(conf.schedule_key, 0, -1)
    entries = {key: RedBeatSchedulerEntry.from_key(key, app=world.user) for key in keys}
    assert {key: each.total_run_count for key, each in entries.items()} == {"redbeat:a": 3, "redbeat:b": 1}
    assert world.now - entries["redbeat:a"].last_run_at < timedelta(seconds=2)
    for name, interval in ("a", 10), ("b", 25):
        assert world.score(name) == int(entries[f"redbeat:{name}"].last_run_at.timestamp()) + interval


def test_a_crontab_and_a_recurrence_rule_run_when_they_say(world):
    world.entry("cron", crontab(minute="*/2"), task="cron").save()
    start = world.now + timedelta(seconds=30)
    world.entry("rule", rrule("SECONDLY", interval=40, count=3, dtstart=start), task="rule").save()
    world.start()
    world.run(250)
    assert world.times("cron") == pytest.approx([120, 240], abs=1)
    assert world.times("rule") == pytest.approx([30, 70, 110], abs=1)
    assert world.score("rule") == -1  # there is no next one


def test_a_rule_that_is_over_comes_to_life_when_it_is_saved_anew(world):
    world.entry(when=rrule("SECONDLY", interval=5, count=1, dtstart=world.now + timedelta(seconds=5))).save()
    world.start()
    world.run(20)
    assert world.score() == -1
    world.entry(when=rrule("SECONDLY", interval=5, count=2, dtstart=world.now + timedelta(seconds=4))).save()
    world.run(12)
    assert world.times() == pytest.approx([5, 24, 29], abs=1.5)


def test_a_timezone_of_the_app_is_that_of_its_crontabs_and_scores_are_utc(make_world):
    world = make_world()
    world.user.conf.timezone = "Europe/Berlin"
    world.entry(when=crontab(minute="2", hour="2")).save()  # 00:02 UTC
    world.start(timezone="Europe/Berlin")
    assert world.score() == datetime(2026, 6, 1, 0, 2, tzinfo=timezone.utc).timestamp()
    world.run(150)
    assert world.times() == pytest.approx([120], abs=1)


# -- changes -----------------------------------------------------------------------------------------------------------


def test_a_change_of_the_definition_is_in_force_when_the_entry_is_next_due(world):
    world.entry(args=["old"]).save()
    world.start()
    world.run(15)
    definition = json.loads(world.redis.hget("redbeat:a", "definition"))
    # nothing but the definition tells of it
    world.redis.hset("redbeat:a", "definition", json.dumps({**definition, "args": ["new"]}))
    world.run(10)
    assert [message.args for message in world.messages()] == [["old"], ["new"]]


def test_a_shorter_interval_is_followed_within_the_loop_interval(world):
    world.entry(when=3600.0).save()
    world.start()
    world.run(60)
    entry = world.load()
    entry.schedule = schedule(20.0, app=world.user)
    entry.save()
    world.run(25)
    assert world.times() == pytest.approx([60, 80], abs=2)


def test_a_disabled_entry_does_not_run_until_it_is_enabled_again(world):
    world.entry(enabled=False).save()
    world.start()
    world.run(60)
    assert world.times() == []
    entry = world.load()
    entry.enabled = True
    entry.save()
    world.run(15)
    first, *rest = world.times()
    assert first < 66
    entry = world.load()
    entry.enabled = False
    entry.save()
    world.run(60)
    assert world.times() == [first, *rest]


def test_a_deleted_entry_runs_no_more_and_leaves_nothing_behind(world):
    world.entry().save()
    world.start()
    world.run(19.5)
    world.load().delete()
    world.run(60)
    assert world.times() == pytest.approx([10], abs=0.3)
    assert set(world.redis.keys("redbeat*")) <= {"redbeat::statics"}
    assert all(not beat.scheduler.schedule for beat in world.beats)


def test_an_entry_that_is_deleted_as_soon_as_it_runs_leaves_nothing_behind(make_world):
    """As a task does that deletes its own entry."""
    world = make_world()
    world.entry().save()
    (beat,) = world.start()
    record = beat.scheduler.record_runs

    def delete_and_record(keys):
        world.load().delete()
        record(keys)

    beat.scheduler.record_runs = delete_and_record
    world.run(30)
    assert world.times() == pytest.approx([10], abs=0.3)
    assert not world.redis.exists("redbeat:a")
    assert world.redis.zcard("redbeat::schedule") == 0


def test_an_entry_that_is_created_anew_begins_anew(world):
    world.entry(when=10.0).save()
    world.start()
    world.run(25)
    world.load().delete()
    world.entry(when=4.0).save()
    world.run(9)
    assert world.times() == pytest.approx([10, 20, 29, 33], abs=0.5)
    assert world.load().total_run_count == 2


def test_reschedule_counts_the_interval_from_now_or_from_when_it_says(world):
    world.entry(when=60.0).save()
    world.start()
    world.run(50)
    world.load().reschedule()
    world.run(65)  # to 115: due at 110
    assert world.times() == pytest.approx([110], abs=1)
    long_ago = datetime(2020, 1, 1, tzinfo=timezone.utc)
    for more in (1, 2):
        # the same moment each time
        world.load().reschedule(last_run_at=long_ago)
        world.run(5)
        assert len(world.times()) == 1 + more


def test_reschedule_wins_over_a_run_that_is_being_written_down(make_world):
    world = make_world()
    world.entry().save()
    (beat,) = world.start()
    record = beat.scheduler.record_runs
    later = world.now + timedelta(seconds=100)

    def reschedule_and_record(keys):
        beat.scheduler.record_runs = record
        world.load().reschedule(last_run_at=later)
        record(keys)

    beat.scheduler.record_runs = reschedule_and_record
    world.run(60)
    assert world.times() == pytest.approx([10], abs=0.3)
    assert world.load().last_run_at == later


def test_an_application_that_sets_the_meta_decides_when_the_interval_begins(world):
    world.entry(when=10.0).save()
    world.start()
    world.run(12)
    meta = json.loads(world.redis.hget("redbeat:a", "meta"))
    meta["last_run_at"]["second"] += 5  # it ran so much later than it was sent
    world.redis.hset("redbeat:a", "meta", json.dumps(meta))
    world.run(20)
    assert world.times() == pytest.approx([10, 25], abs=1)


# -- static entries ----------------------------------------------------------------------------------------------------


def test_static_entries_are_stored_kept_up_to_date_and_removed_with_their_release(world):
    world.start({"static": {"task": "t", "schedule": 10.0, "args": (16, 16)}})
    world.run(15)
    assert world.load("static").total_run_count == 1
    last_run_at = world.load("static").last_run_at
    world.stop()
    world.start({"static": {"task": "t", "schedule": 10.0, "args": (17, 17)}, "other": {"task": "o", "schedule": 5.0}})
    assert world.load("static").last_run_at == last_run_at
    world.run(6)
    assert [message.args for message in world.messages()] == [[16, 16], [17, 17]]
    world.stop()
    world.start({"other": {"task": "o", "schedule": 5.0}})
    with pytest.raises(KeyError):
        world.load("static")
    world.run(20)
    assert len(world.times()) == 2


def test_what_redbeat_cannot_keep_of_the_static_entries_runs_all_the_same(world):
    def body():
        pass

    def settings(app):
        cron("2 9 * * *", name="tokyo", timezone="Asia/Tokyo", app=app, shared=False)(body)
        timeout(7, name="once", app=app, shared=False)(body)
        app.conf.beat_schedule = {
            **app.conf.beat_schedule,
            "sun": {"task": "sun", "schedule": solar("sunset", 52.5, 13.4)},
        }
        app.finalize()

    # as plain RedBeat may have left it: in the app's timezone
    world.entry("tokyo", crontab(minute="2", hour="9"), task="tokyo").save()
    apps = [world.app() for _ in range(world.replicas)]
    for app in apps:
        settings(app)
    world.beats = [world.simulation.beat(app, scheduler=LockedRedBeatScheduler) for app in apps]
    world.run(20)
    assert world.times("once") == pytest.approx([7], abs=0.3)
    for beat in world.beats:
        entries = beat.scheduler.schedule
        assert set(entries) == {"tokyo", "once", "sun"}
        assert str(entries["tokyo"].schedule.tz) == "Asia/Tokyo"


# -- in turn with plain RedBeat ----------------------------------------------------------------------------------------


def test_a_tick_that_was_not_published_is_run_by_whoever_comes_next_and_once(world):
    world.entry(when=10.0).save()
    world.start()
    world.run(5)
    world.simulation.world.broker.down = True
    world.run(10)
    world.stop()
    world.simulation.world.broker.down = False
    world.plain(5)  # it sees the tick of second 10
    world.start()
    world.run(17)
    assert world.times() == pytest.approx([15, 25, 35], abs=1.5)


# -- replicas that die, and what they leave ----------------------------------------------------------------------------


def test_what_a_dead_beat_has_claimed_is_published_by_another_one(make_world):
    world = make_world(2)
    world.entry(when=60.0).save()
    world.entry("b", when=10.0, task="b").save()
    world.start()
    die_with_a_claim(world)
    world.run(12)
    assert world.times("b") == pytest.approx([15, 20], abs=1.5)
    assert [message.run for message in world.messages("b")] == [1, 2]


@pytest.mark.parametrize("what", ["deleted", "disabled", "created anew"])
def test_what_a_dead_beat_has_claimed_is_not_published_when_the_entry_was(make_world, what):
    world = make_world(2)
    world.entry(when=10.0).save()
    world.start()
    die_with_a_claim(world)
    entry = world.load()
    if what == "disabled":
        entry.enabled = False
        entry.save()
    else:
        entry.delete()
    if what == "created anew":
        world.entry(when=1000.0).save()
    world.run(60)
    assert world.times() == []
    # nobody keeps it for later
    (beat,) = world.beats
    store = world.simulation.store
    answer = store.beats.claim(beat.scheduler._name, "somebody", [], ttl=1)
    assert (answer.overdue, answer.next_overdue) == ([], None)


def test_what_a_dead_beat_has_claimed_is_published_though_the_entry_was_rescheduled(make_world):
    world = make_world(2)
    world.entry(when=10.0).save()
    world.start()
    die_with_a_claim(world)
    world.load().reschedule()
    world.run(15)
    assert world.times() == pytest.approx([15, 20], abs=1.5)


def test_a_beat_that_was_frozen_before_it_publishes_looks_once_more(make_world):
    world = make_world()
    world.entry().save()
    world.entry("b", task="b").save()
    (beat,) = world.start()
    publish = beat.scheduler._publisher.publish

    def freeze_and_publish(ticks):
        world.load().delete()
        world.simulation.world.elapsed += 1.0
        publish(ticks)

    beat.scheduler._publisher.publish = freeze_and_publish
    world.run(11.5)
    assert world.times() == []
    assert world.times("b") == pytest.approx([11], abs=0.5)


# -- a Redis that loses its data -----------------------------------------------------------------------------------------


def said(caplog, level, text="lost its data"):
    return [each.getMessage() for each in caplog.records if each.levelno == level and text in each.getMessage()]


def test_static_entries_are_put_back_into_a_redis_that_comes_back_empty_and_the_others_are_told_once(world, caplog):
    world.entry("dynamic", task="d").save()
    world.start({"static": every(10, args=["x"]), "later": {"task": "l", "schedule": crontab(hour="9", minute="0")}})
    world.run(35.5)
    world.redis.flushall()
    world.run(3)
    assert world.load("static").total_run_count == 3
    assert world.load("later").schedule == crontab(hour="9", minute="0")
    assert {*said(caplog, logging.WARNING)} == {
        "RedBeat's Redis has lost its data: the static entries are put back: 'later', 'static'"
    }
    world.run(100)
    assert world.times() == pytest.approx(range(10, 131, 10), abs=1)
    assert world.load("static").total_run_count == 13
    assert len(world.times("d")) == 3
    assert said(caplog, logging.ERROR) == [
        "RedBeat's Redis has lost its data: these entries are gone, save them again: 'dynamic'"
    ]
    # and the next time, too
    world.redis.flushall()
    world.run(1.2)
    assert world.load("static").total_run_count == 13
    assert len(said(caplog, logging.ERROR)) == 1


def test_of_two_beats_that_put_an_entry_back_the_later_one_undoes_no_run(make_world):
    world = make_world(2)
    one, late = world.start({"static": every(10)})
    world.run(15)
    world.redis.flushall()
    world.simulation.world.run(one, seconds=10)
    assert world.load("static").total_run_count == 2
    hashes = late.scheduler._hashes
    look = hashes.look

    def look_too_early():
        hashes.look = look
        return Look({}, has_statics=False, lock_rest=None)

    hashes.look = look_too_early
    world.run(2)
    assert world.load("static").total_run_count == 2
    world.run(8)
    assert world.times() == pytest.approx([10, 20, 30], abs=1.5)


def test_entries_that_are_all_gone_are_told_where_none_is_static(world, caplog):
    for name in "ab":
        world.entry(name).save()
    world.start()
    world.run(5)
    world.redis.flushall()
    world.run(60)
    errors = said(caplog, logging.ERROR)
    assert len(errors) == world.replicas
    assert {*errors} == {
        "RedBeat's Redis has lost its data, unless somebody has deleted them all: these entries are gone, save them again: 'a', 'b'"
    }


def test_a_static_entry_whose_hash_is_gone_is_put_back_within_seconds(world, caplog):
    world.start({"static": {"task": "t", "schedule": crontab(hour="9", minute="0")}, "other": every(60, "o")})
    world.run(5)
    world.redis.delete("redbeat:static")
    world.run(3)
    assert world.load("static").schedule == crontab(hour="9", minute="0")
    assert said(caplog, logging.WARNING, "put back") == ["static entry 'static' was gone from Redis, and is put back"]
    world.run(60)
    assert len(said(caplog, logging.WARNING, "put back")) == 1
    assert said(caplog, logging.ERROR, "") == []


def test_a_static_entry_whose_hash_is_gone_when_it_is_due_runs_all_the_same(make_world):
    world = make_world()
    (beat,) = world.start({"static": every(10)})
    world.run(5)
    reread = beat.scheduler.reread

    def lose_and_reread(keys):
        world.redis.delete("redbeat:static")
        return reread(keys)

    beat.scheduler.reread = lose_and_reread
    world.run(30)
    assert world.times() == pytest.approx([10, 20, 30], abs=1)


def test_what_is_deleted_stays_deleted_until_the_next_start(world, caplog):
    world.entry("dynamic").save()
    world.start({"static": every(10), "other": every(10, "o")})
    world.run(5)
    world.load("static").delete()
    world.load("dynamic").delete()
    world.run(20)
    assert world.times() == []
    assert said(caplog, logging.ERROR, "") == said(caplog, logging.WARNING, "put back") == []
    world.stop()
    world.start({"static": every(10), "other": every(10, "o")})
    assert world.load("static")


def test_a_release_without_its_static_entries_is_not_undone_by_beats_of_the_one_before(make_world, caplog):
    world = make_world()
    (old,) = world.start({"static": every(10)})
    world.run(5)
    (new,) = world.start({})
    world.beats = [old, new]
    world.run(20)
    assert world.times() == []
    assert set(world.redis.keys("redbeat*")) == {"redbeat::statics"}
    assert said(caplog, logging.ERROR, "") == said(caplog, logging.WARNING, "put back") == []


# -- what other software finds ---------------------------------------------------------------------------------------------


def test_what_wraps_redbeats_apply_async_sees_each_tick_once_as_with_redbeat(world, monkeypatch):
    """As Sentry does it, which wraps Celery's apply_entry, too (sentry-sdk 2, integrations/celery/beat.py)."""
    seen = []

    def wrap(owner, name):
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            scheduler, entry = args
            seen.append((name, entry.name, isinstance(scheduler, owner), kwargs["producer"] is scheduler.producer))
            entry.options["headers"] = {**entry.options.pop("headers", {}), "check-in": len(seen)}
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    wrap(Scheduler, "apply_entry")
    wrap(RedBeatScheduler, "apply_async")
    world.entry(options={"headers": {"mine": 1}}).save()
    world.start()
    world.run(25)
    assert seen == [("apply_async", "a", True, True)] * 2
    assert [each.headers["check-in"] for each in world.messages()] == [1, 2]
    assert [each.headers["mine"] for each in world.messages()] == [1, 1]
    assert [each.run for each in world.messages()] == [1, 2]


def test_a_subclass_that_overrides_apply_entry_or_apply_async_is_called(make_world):
    world, calls = make_world(), []

    class Mine(LockedRedBeatScheduler):
        def apply_entry(self, entry, producer=None):
            calls.append(("apply_entry", entry.name))
            super().apply_entry(entry, producer=producer)

        def apply_async(self, entry, producer=None, **kwargs):
            calls.append(("apply_async", entry.name))
            return super().apply_async(entry, producer=producer, **kwargs)

    world.entry().save()
    world.beats = [world.simulation.beat(world.app(), scheduler=Mine)]
    world.run(15)
    assert calls == [("apply_entry", "a"), ("apply_async", "a")]
    assert len(world.messages()) == 1


def test_the_schedule_tells_the_entries_before_the_first_tick_by_their_names_as_redbeats(make_world):
    world = make_world()
    world.entry("a").save()
    settings = {"static": every(10)}
    ours = LockedRedBeatScheduler(app=world.app(settings))
    assert {name: entry.task for name, entry in ours.schedule.items()} == {"a": "t", "static": "t"}
    theirs = RedBeatScheduler(app=world.app(settings, beat_max_loop_interval=60))
    # the one that comes next
    assert theirs.schedule.keys() == {"a"}


def test_a_lazy_scheduler_reads_what_is_there_and_stores_nothing(make_world):
    world = make_world()
    world.entry("a").save()
    beat = world.simulation.beat(world.app())
    beat.scheduler = LockedRedBeatScheduler(app=world.app({"static": every(10)}), lazy=True)
    assert set(beat.scheduler.schedule) == {"a"}
    world.simulation.world.run(beat, seconds=11)
    assert len(world.times()) == 1
    assert set(world.redis.keys("redbeat*")) == {"redbeat:a", "redbeat::schedule"}


# -- beside plain RedBeat --------------------------------------------------------------------------------------------------


def test_a_plain_redbeat_beside_ours_is_an_error_within_a_minute_and_its_end_is_told(world, caplog):
    caplog.set_level(logging.INFO)
    world.start({"static": every(3600)})
    world.run(5)
    plain = world.simulation.beat(world.app(redbeat_lock_timeout=1500), scheduler=RedBeatScheduler)
    beat_init.send(sender=plain)
    assert plain.scheduler.lock is not None
    world.run(150)
    errors = said(caplog, logging.ERROR, "plain RedBeat runs beside this one")
    assert len(errors) == pytest.approx(3 * world.replicas, abs=world.replicas)
    assert "it holds RedBeat's lock 'redbeat::lock'" in errors[0]
    plain.close()
    world.run(5)
    assert len(said(caplog, logging.INFO, "nobody holds RedBeat's lock")) == world.replicas
    world.run(100)
    assert said(caplog, logging.ERROR, "plain RedBeat") == errors


def test_doctor_finds_a_plain_redbeat_beside_ours(make_world, tmp_path):
    world = make_world()

    def found(settings=None, **more):
        app = world.app(settings, beat_scheduler="lockbeat-redbeat", lockbeat_driver="memory", **more)
        app.conf.lockbeat_memory_path = str(tmp_path / "memory")
        facts = gather(app)
        return facts.plain_redbeat, "plain-redbeat" in {finding.kind.name for finding in examine(facts)}

    plain = world.simulation.beat(world.app(redbeat_lock_timeout=1500), scheduler=RedBeatScheduler)
    assert found() == (None, False)
    beat_init.send(sender=plain)
    # none of ours is there, so nothing is doubled
    told, is_finding = found()
    assert told == "somebody holds RedBeat's lock 'redbeat::lock', for another 1500 s"
    assert not is_finding
    assert found(redbeat_lock_key=None) == (None, False)
    plain.close()
    assert found() == (None, False)


# -- settings ----------------------------------------------------------------------------------------------------------


def test_there_is_no_leader_lock_whatever_the_settings(make_world):
    world = make_world(3)
    world.entry().save()
    beats = world.start(redbeat_lock_key="redbeat:mine", redbeat_lock_timeout=1000)
    for beat in beats:
        beat_init.send(sender=beat)  # it would wait for the lock here
        assert beat.scheduler.lock is None
        assert "lock" not in beat.scheduler.info
    world.run(15)
    assert not [key for key in world.redis.keys("redbeat*") if "lock" in key or "mine" in key]
    assert len(world.times()) == 1


def test_the_key_prefix_is_redbeats(make_world):
    world = make_world(3)
    world.user.conf.redbeat_key_prefix = "mine:"
    world.entry().save()
    world.start({"static": {"task": "t", "schedule": 10.0}}, redbeat_key_prefix="mine:")
    world.run(15)
    assert len(world.times()) == 2
    assert set(world.redis.keys("*")) == {"mine:a", "mine:static", "mine::schedule", "mine::statics"}


def test_a_redbeat_that_is_too_old_is_refused(make_world, monkeypatch):
    monkeypatch.setattr(versions, "version", lambda name: {"celery-redbeat": "2.1.1"}[name])
    with pytest.raises(ConfigurationError, match=r"celery-redbeat is 2\.1\.1; allowed: 2\.2 or newer"):
        LockedRedBeatScheduler(app=make_world().user)


def test_lazy_and_real_construction_touch_no_redis(make_app):
    app = make_app(redbeat_redis_url="redis://127.0.0.1:1/0")
    for lazy in (True, False):
        LockedRedBeatScheduler(app=app, lazy=lazy).close()


# -- what is broken ----------------------------------------------------------------------------------------------------

BROKEN = {
    "no json": "{",
    "no mapping": "[1, 2]",
    "no task": '{"name": "x", "schedule": {"__type__": "interval", "every": 5, "relative": false}}',
    "no schedule": '{"name": "x", "task": "t"}',
    "a schedule of nobody's": '{"name": "x", "task": "t", "schedule": {"__type__": "lunar"}}',
    "a crontab that is none": '{"name": "x", "task": "t", "schedule": {"__type__": "crontab", "minute": "99"}}',
    "unknown fields": '{"name": "x", "task": "t", "schedule": {"__type__": "interval", "every": 5, "relative": false}, "y": 1}',
}


def test_broken_definitions_are_logged_with_their_names_once_a_minute_and_stop_no_other(make_world, caplog):
    world = make_world()
    for name, definition in BROKEN.items():
        world.redis.hset(f"redbeat:{name}", "definition", definition)
        world.redis.zadd("redbeat::schedule", {f"redbeat:{name}": 0})
    world.redis.set("redbeat:no hash", "x")
    world.redis.hset("redbeat:bad meta", mapping={"definition": GOOD, "meta": "{"})
    world.redis.zadd("redbeat::schedule", {"redbeat:no hash": 0, "redbeat:bad meta": 0})
    world.entry("good", 5.0).save()
    world.start()
    world.run(50)
    assert len(world.times()) == 10
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    for name in [*BROKEN, "no hash", "bad meta"]:
        assert len([error for error in errors if repr(f"redbeat:{name}") in error]) == 1, (name, errors)
    # and each comes to life when it is mended
    world.redis.hset("redbeat:no json", "definition", GOOD)
    world.run(3)
    assert [message.args for message in world.messages()].count(["mended"]) == 1


GOOD = json.dumps(
    {
        "name": "mended",
        "task": "t",
        "args": ["mended"],
        "schedule": {"__type__": "interval", "every": 50, "relative": False},
    }
)


def test_an_entry_that_breaks_while_it_is_known_stops(world, caplog):
    world.entry().save()
    world.entry("b", task="b").save()
    world.start()
    world.run(15)
    world.redis.hset("redbeat:a", "definition", "{")
    world.run(20)
    assert len(world.times()) == 1
    assert len(world.times("b")) == 3
    assert "redbeat:a" in caplog.text


def test_a_key_without_an_entry_is_taken_off_the_schedule_as_redbeat_does(world):
    world.redis.zadd("redbeat::schedule", {"redbeat:gone": 0})
    world.entry().save()
    world.start()
    world.run(15)
    assert world.score("gone") is None
    assert len(world.times()) == 1


def test_a_static_entry_that_is_broken_is_skipped_or_stored_anew(make_world, caplog):
    world = make_world()
    world.redis.hset("redbeat:anew", "definition", "{")
    world.start({"wrong": {"schedule": "nonsense", "x": 1}, "anew": {"task": "t", "schedule": 10.0}})
    world.run(15)
    assert len(world.times()) == 1
    assert "wrong" in caplog.text


# -- for those who look at the entries ---------------------------------------------------------------------------------


def test_doctor_reads_the_entries_that_redbeat_keeps_and_writes_none(world):
    app = world.app({"static": {"task": "t", "schedule": 10}}, beat_scheduler="lockbeat-redbeat")
    world.entry("sync-7", task="sync").save()
    world.entry("without a task", task="").save()
    world.entry("off", task="gone", enabled=False).save()
    world.redis.hset("redbeat:broken", "definition", "{")
    world.redis.zadd("redbeat::schedule", {"redbeat:broken": 1})
    before = {key: world.redis.type(key) for key in world.redis.keys("redbeat*")}
    found = entries_of(app)
    assert found.tasks == {"sync-7": "sync", "static": "t"}
    assert found.broken.keys() == {"without a task", "broken"}
    assert {key: world.redis.type(key) for key in world.redis.keys("redbeat*")} == before
    findings = {(finding.kind.name, finding.about) for finding in examine(gather(app))}
    assert {("broken-entry", "entry broken"), ("broken-entry", "entry without a task")} <= findings
    assert ("unknown-task", "entry sync-7") in findings


def test_entries_are_known_by_the_names_that_users_gave_them(world):
    world.entry("sync-7").save()
    world.start({"static": {"task": "t", "schedule": 10}})
    app = world.app(beat_scheduler="lockbeat-redbeat")
    keys = {entry.name for entry in world.simulation.store.beats.status("simulated").entries}
    assert any(key.startswith("redbeat:sync-7@") for key in keys)
    assert set(names_of(app, keys).values()) == {"sync-7", "static"}
    plain = world.app()
    announced = ["celery_lockbeat.contrib.redbeat:LockedRedBeatScheduler"]
    assert set(names_of(plain, keys, announced).values()) == {"sync-7", "static"}, "beats that were started with -S"


# -- policies ----------------------------------------------------------------------------------------------------------


def away(world, seconds):
    for beat in world.beats:
        beat.close()
    world.beats.clear()
    world.run(seconds)


@pytest.mark.parametrize(
    ("policy", "dues"),
    [
        ({"catchup": "all"}, [60, 120, 180, 240, 300, 360]),
        ({"catchup": "none"}, [60, 360]),
        ({"catchup": "all", "catchup_limit": 2}, [60, 240, 300, 360]),
        ({"max_runs": 1}, [60]),
    ],
)
def test_an_entry_has_a_policy_of_its_own_and_plain_redbeat_still_reads_it(world, policy, dues):
    entry = world.entry("a", crontab(), options={"headers": policy_headers(**policy), "queue": "q"})
    entry.save()
    world.run(1)
    world.start()
    world.run(70)
    away(world, 265)
    world.start()
    world.run(30)
    found = [datetime.fromisoformat(message.headers["lockbeat"]["due"]) for message in world.messages()]
    start = datetime(2026, 6, 1, tzinfo=timezone.utc)
    assert [(due - start).total_seconds() for due in found] == dues
    assert all("lockbeat_policy" not in message.headers and message.queue == "q" for message in world.messages())
    again = RedBeatSchedulerEntry.from_key("redbeat:a", app=world.user)
    assert (again.task, again.options["queue"], again.schedule) == (entry.task, "q", crontab())


def test_an_entrys_runs_are_told_what_to_pause_after_so_many_failures(world):
    world.entry("a", options={"headers": policy_headers(pause_after_failures=3)}).save()
    world.start()
    world.run(25)
    told = [message.headers["lockbeat"]["pause_after"] for message in world.messages()]
    assert told
    assert {json.dumps(each) for each in told} == {'[3, "redbeat:a"]'}


def test_a_policy_that_is_wrong_stops_no_other_entry(world, caplog):
    for name, policy in ("a", {"catchup": "some"}), ("b", 3), ("c", {"start": "noon"}):
        world.entry(name, options={"headers": {"lockbeat_policy": policy}}).save()
    world.entry("d").save()
    world.start()
    world.run(25)
    assert {message.entry for message in world.messages()} == {"d"}
    for wrong in (
        "catchup of entry 'a' is 'some'",
        "lockbeat_policy of entry 'b' is 3",
        "start of entry 'c' is 'noon'",
    ):
        assert wrong in caplog.text
    with pytest.raises(ConfigurationError, match="catchup of policy_headers"):
        policy_headers(catchup="some")

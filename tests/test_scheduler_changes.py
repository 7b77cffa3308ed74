"""Schedules that change while beats run, by hand and by deploys, in simulated time on each store."""

from __future__ import annotations

import sys
import threading
from datetime import timedelta

import pytest
from celery.schedules import crontab, schedule
from simulation import Stores, every, let_them_sleep

from celery_lockbeat import LockedScheduler
from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.stores.base import OVERDUE_AT_ONCE, Claim, EntryState

HOUR = 3600.0


def near(times, expected, tolerance=1.5):
    """Changes are seen within a second or so."""
    assert len(times) == len(expected), (times, expected)
    assert all(abs(one - other) <= tolerance for one, other in zip(times, expected, strict=True)), (times, expected)
    return True


@pytest.fixture
def app(simulation):
    return simulation.app({"old": every(10, "old")})


# -- at run time -------------------------------------------------------------------------------------------------------


def test_an_entry_that_is_added_at_run_time_fires_from_then_on(simulation, app):
    beat = simulation.beat(app)
    simulation.world.run(beat, seconds=25)
    app.conf.beat_schedule["new"] = every(10, "new")
    simulation.world.run(beat, seconds=25)
    assert near(simulation.times()["new"], [35, 45])
    assert near(simulation.times()["old"], [10, 20, 30, 40, 50][:4])


def test_a_whole_new_schedule_takes_the_place_of_the_old(simulation, app):
    beat = simulation.beat(app)
    simulation.world.run(beat, seconds=25)
    app.conf.beat_schedule = {"new": every(10, "new")}
    simulation.world.run(beat, seconds=25)
    assert near(simulation.times()["old"], [10, 20])
    assert near(simulation.times()["new"], [35, 45])


@pytest.mark.parametrize(
    "change",
    [
        lambda definition: definition.update(schedule=3.0),
        lambda definition: definition.update(schedule=timedelta(seconds=3)),
        lambda definition: definition.update(schedule=schedule(3)),
    ],
)
def test_a_schedule_that_is_changed_in_place_takes_effect_at_once_and_counts_from_the_last_run(simulation, app, change):
    app.conf.beat_schedule["old"]["schedule"] = 1000.0
    beat = simulation.beat(app)
    simulation.world.run(beat, seconds=10)
    change(app.conf.beat_schedule["old"])
    simulation.world.run(beat, seconds=10)
    assert near(simulation.times()["old"], [10.5, 13.5, 16.5, 19.5][: len(simulation.times()["old"])])
    assert len(simulation.times()["old"]) in (3, 4)


def test_a_schedule_that_is_made_longer_holds_back_the_next_run(simulation, app):
    beat = simulation.beat(app)
    simulation.world.run(beat, seconds=15)
    app.conf.beat_schedule["old"]["schedule"] = 30.0
    simulation.world.run(beat, seconds=60)
    assert near(simulation.times()["old"], [10, 40, 70])


def test_task_arguments_and_options_that_are_changed_in_place_go_with_the_next_message(simulation, app):
    beat = simulation.beat(app)
    simulation.world.run(beat, seconds=15)
    app.conf.beat_schedule["old"].update(task="other", args=[5], kwargs={"k": 6}, options={"queue": "q"})
    simulation.world.run(beat, seconds=10)
    first, second = simulation.messages
    assert (first.task, first.args, first.queue) == ("old", [], "celery")
    assert (second.task, second.args, second.kwargs, second.queue) == ("other", [5], {"k": 6}, "q")
    assert (second.entry, second.run) == ("old", 2)


def test_entries_that_change_all_the_time_keep_no_more_old_plans_than_there_are_entries(simulation):
    app = simulation.app({"first": every(HOUR / 2), **{f"e{n}": every(HOUR, "later") for n in range(20)}})
    beat = simulation.beat(app)
    heap = 0
    for change in range(30):
        for entry in app.conf.beat_schedule.values():
            if entry["task"] == "later":
                entry["args"] = [change]
        simulation.world.run(beat, seconds=2)
        heap = max(heap, len(beat.scheduler._agenda._heap))
    assert len(beat.scheduler._agenda) == 21
    assert heap <= 2 * 21
    app.conf.beat_schedule = {"first": every(HOUR / 2), "e0": every(HOUR, "later")}
    simulation.world.run(beat, seconds=2)
    assert len(beat.scheduler._agenda._heap) <= 2 * 2
    simulation.world.run(beat, seconds=2 * HOUR)
    assert {task: len(times) for task, times in simulation.times().items()} == {"t": 4, "later": 2}


def test_an_entry_that_is_removed_at_run_time_fires_no_more(simulation, app):
    app.conf.beat_schedule["stays"] = every(10, "stays")
    beat = simulation.beat(app)
    simulation.world.run(beat, seconds=25)
    del app.conf.beat_schedule["old"]
    simulation.world.run(beat, seconds=25)
    assert near(simulation.times()["old"], [10, 20])
    assert near(simulation.times()["stays"], [10, 20, 30, 40])


def test_all_can_be_removed_and_added_again(simulation, app):
    beat = simulation.beat(app)
    simulation.world.run(beat, seconds=15)
    app.conf.beat_schedule.clear()
    simulation.world.run(beat, seconds=15)
    app.conf.beat_schedule["old"] = every(10, "old")
    simulation.world.run(beat, seconds=15)
    assert near(simulation.times()["old"], [10, 41])


def test_a_schedule_that_is_wrong_at_the_start_is_refused_with_its_name_and_one_at_run_time_is_told(
    simulation, app, caplog
):
    for wrong in (
        {"task": "t", "schedule": "often"},
        {"task": "t", "schedul": 5},
        {"task": "t"},
        {"schedule": 5},
        5,
        "x",
    ):
        with pytest.raises(ConfigurationError, match=r"beat_schedule\['wrong'\].*allowed"):
            simulation.beat({"wrong": wrong})
    beat = simulation.beat(app)
    simulation.world.run(beat, seconds=15)
    app.conf.beat_schedule["wrong"] = {"task": "t", "schedule": "often"}
    app.conf.beat_schedule["nothing"] = 5
    app.conf.beat_schedule["old"]["schedule"] = "rarely"
    simulation.world.run(beat, seconds=20)
    assert near(simulation.times()["old"], [10, 20, 30])
    assert caplog.text.count("beat_schedule['wrong'] is") == 1
    assert caplog.text.count("beat_schedule['nothing'] is 5") == 1
    assert caplog.text.count("beat_schedule['old'] is") == 1


def test_a_schedule_that_another_thread_changes_all_the_time_ends_no_beat(simulation, app):
    app.conf.beat_schedule.update({f"many{number}": every(HOUR, "many") for number in range(300)})
    beat = simulation.beat(app)
    over = threading.Event()

    def change():
        number = 0
        while not over.is_set():
            number += 1
            app.conf.beat_schedule[f"another{number % 50}"] = every(HOUR, "many")
            app.conf.beat_schedule.pop(f"another{(number + 25) % 50}", None)

    thread = threading.Thread(target=change)
    thread.start()
    switch_interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        simulation.world.run(beat, seconds=50)
    finally:
        sys.setswitchinterval(switch_interval)
        over.set()
        thread.join()
    assert len(simulation.times()["old"]) == 4


def test_periodic_tasks_may_be_added_before_and_after_the_start(simulation):
    app = simulation.app()
    app.add_periodic_task(10, app.signature("before"), name="before")
    beat = simulation.beat(app)
    simulation.world.run(beat, seconds=15)
    app.add_periodic_task(10, app.signature("after", args=(1,)), name="after", expires=5)
    app.add_periodic_task(crontab(), app.signature("without a name"))
    simulation.world.run(beat, seconds=50)
    assert near(simulation.times()["before"], [10, 20, 30, 40, 50, 60])
    assert near(simulation.times()["after"], [25, 35, 45, 55])
    assert near(simulation.times()["without a name"], [60])
    assert next(each for each in simulation.messages if each.task == "after").headers["expires"]


def test_periodic_tasks_may_be_added_when_the_app_is_configured_and_when_it_is_finalized(simulation):
    app = simulation.world.app()
    vars(app)["lockbeat_stores"] = Stores(simulation.store)

    @app.on_after_configure.connect
    def configured(sender, **_):
        sender.add_periodic_task(10, sender.signature("configured"), name="configured")

    @app.on_after_finalize.connect
    def finalized(sender, **_):
        sender.add_periodic_task(10, sender.signature("finalized"), name="finalized")

    app.finalize()
    simulation.world.run(simulation.beat(app), seconds=25)
    assert near(simulation.times()["configured"], [10, 20], 0.1)
    assert near(simulation.times()["finalized"], [10, 20], 0.1)


def test_an_entry_may_be_added_to_the_scheduler_itself_and_taken_out_again(simulation, app):
    beat = simulation.beat(app)
    simulation.world.run(beat, seconds=5)
    beat.scheduler.add(name="added", task="added", schedule=timedelta(seconds=10))
    simulation.world.run(beat, seconds=30)
    del beat.scheduler.schedule["added"]
    simulation.world.run(beat, seconds=30)
    assert near(simulation.times()["added"], [15, 25, 35][: len(simulation.times()["added"])])
    assert len(simulation.times()["old"]) == 6


# -- deploys -----------------------------------------------------------------------------------------------------------


def test_a_new_release_that_changes_a_schedule_is_followed_at_once(simulation):
    old = simulation.beat({"e": every(10 * HOUR)})
    simulation.world.run(old, seconds=100)
    old.close()
    new = simulation.beat({"e": every(60)})
    simulation.world.run(new, seconds=150)
    # overdue by the new schedule: at once, and then each minute
    assert near(simulation.times()["t"], [100, 160, 220])


def test_while_two_releases_differ_in_a_schedule_each_tick_of_both_is_sent_once(simulation):
    old, new = simulation.beat({"e": every(20)}), simulation.beat({"e": every(30)})
    simulation.world.run(old, new, seconds=205)
    # the shorter one leads: each run moves the other's on
    assert near(simulation.times()["t"], list(range(20, 205, 20)))
    assert [message.run for message in simulation.messages] == list(range(1, 11))


def test_an_entry_that_comes_back_at_run_time_does_not_replay_its_past(simulation, monkeypatch):
    let_them_sleep(monkeypatch)
    app = simulation.app({"e": every(600), "other": every(HOUR, "other")}, lockbeat_claim_ttl=60)
    beat = simulation.beat(app)
    simulation.world.run(beat, seconds=650)
    entry = app.conf.beat_schedule.pop("e")
    simulation.world.run(beat, seconds=2000)
    app.conf.beat_schedule["e"] = entry
    simulation.world.run(beat, seconds=700)
    assert near(simulation.times()["t"], [600, 3250], 20)


def test_an_entry_that_comes_back_in_a_later_release_does_not_replay_its_past(simulation, monkeypatch):
    let_them_sleep(monkeypatch)
    with_it, without = {"e": every(600), "other": every(HOUR, "other")}, {"other": every(HOUR, "other")}
    for release, seconds in ((with_it, 650), (without, 2000)):
        beat = simulation.beat(release, lockbeat_claim_ttl=60)
        simulation.world.run(beat, seconds=seconds)
        beat.close()
    simulation.world.run(simulation.beat(with_it, lockbeat_claim_ttl=60), seconds=700)
    assert near(simulation.times()["t"], [600, 3250], 2)


def test_a_crontab_that_comes_back_does_not_run_at_once(simulation, monkeypatch):
    let_them_sleep(monkeypatch)
    app = simulation.app({"e": every(crontab(minute=0)), "other": every(HOUR, "other")}, lockbeat_claim_ttl=60)
    beat = simulation.beat(app)
    simulation.world.run(beat, seconds=HOUR + 60)
    entry = app.conf.beat_schedule.pop("e")
    simulation.world.run(beat, seconds=2 * HOUR)
    app.conf.beat_schedule["e"] = entry
    simulation.world.run(beat, seconds=1800)
    assert near(simulation.times()["t"], [HOUR])


def test_a_rolling_update_neither_loses_nor_doubles_a_tick_of_the_entries_of_both_releases(simulation):
    old = simulation.beat({"both": every(10, "both"), "old": every(10, "old")})
    simulation.world.run(old, seconds=25)
    new = simulation.beat({"both": every(10, "both"), "new": every(10, "new")})
    simulation.world.run(old, new, seconds=40)
    old.close()
    simulation.world.run(new, seconds=40)
    assert near(simulation.times()["both"], list(range(10, 105, 10)))
    assert near(simulation.times()["old"], list(range(10, 65, 10)))
    assert near(simulation.times()["new"], list(range(35, 105, 10)))
    for entry in ("both", "old", "new"):
        runs = simulation.world.broker.runs(entry)
        assert runs == list(range(1, len(runs) + 1))


def left_behind(simulation, app, entries, claim_ttl=5.0):
    """Let a beat that dies between claim and publish leave a claim of each entry."""
    name = app.main
    store = simulation.store.store
    store.beats.join(name, "dead")
    store.beats.list_entries(name, "dead", [(entry, EntryState(0, "t")) for entry in entries], complete=True)
    for start in range(0, len(entries), 100):
        claims = [
            Claim(f"id of {entry}", entry, EntryState(1, simulation.world.now().isoformat()), {"due": entry})
            for entry in entries[start : start + 100]
        ]
        store.beats.claim(name, "dead", claims, ttl=claim_ttl)


def test_a_claim_that_only_the_other_release_knows_is_left_to_it(simulation):
    new = simulation.beat({"new": every(HOUR)})
    left_behind(simulation, new.app, ["old"])
    simulation.world.run(new, seconds=60)
    assert simulation.messages == []
    old = simulation.beat({"old": every(HOUR)})
    simulation.world.run(new, old, seconds=5)
    (message,) = simulation.messages
    assert (message.id, message.entry, message.run) == ("id of old", "old", 1)
    assert message.headers["lockbeat"]["due"] == "old"


@pytest.mark.parametrize("strangers", [OVERDUE_AT_ONCE - 1, OVERDUE_AT_ONCE, 3 * OVERDUE_AT_ONCE + 7])
def test_claims_that_only_another_release_knows_do_not_hide_those_that_this_one_knows(simulation, strangers):
    beat = simulation.beat({f"ours{number}": every(HOUR) for number in range(5)})
    left_behind(simulation, beat.app, [f"strange{number}" for number in range(strangers)])
    simulation.world.elapsed += 0.5
    left_behind(simulation, beat.app, [f"ours{number}" for number in range(5)])
    simulation.world.run(beat, seconds=20)
    assert sorted(message.id for message in simulation.messages) == [f"id of ours{number}" for number in range(5)]
    assert beat.ticks < 60


def test_all_that_a_dead_beat_has_left_is_published_however_much_it_is(simulation):
    entries = [f"e{number}" for number in range(350)]
    beat = simulation.beat({entry: every(HOUR) for entry in entries})
    left_behind(simulation, beat.app, entries)
    simulation.world.run(beat, seconds=10)
    assert sorted(message.id for message in simulation.messages) == sorted(f"id of {entry}" for entry in entries)


def test_beats_of_two_apps_in_one_store_have_nothing_to_do_with_each_other(simulation):
    ours, theirs = (
        simulation.app({"e": every(10, "ours")}, name="shop"),
        simulation.app({"e": every(10, "theirs")}, name="blog"),
    )
    simulation.world.run(simulation.beat(ours), simulation.beat(theirs), seconds=35)
    assert len(simulation.times()["ours"]) == len(simulation.times()["theirs"]) == 3


def test_a_scheduler_that_is_made_for_the_banner_only_does_nothing(simulation):
    app = simulation.app({"e": every(10)})
    LockedScheduler(app=app, lazy=True)
    assert not simulation.store.calls

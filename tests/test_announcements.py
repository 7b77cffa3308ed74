"""What beats tell each other about their entries: who sends what, in simulated time, and what is said about it."""

from __future__ import annotations

import logging
import subprocess
import sys
from datetime import timedelta
from functools import partial

import pytest
from celery import Celery
from celery.beat import BeatLazyFunc, ScheduleEntry
from celery.schedules import crontab, schedule, solar
from simulation import every

from celery_lockbeat import LockedTask
from celery_lockbeat.beat.announcements import LASTS, definition_of
from celery_lockbeat.membership.identity import locks_of_tasks
from celery_lockbeat.schedules.when import Timeout
from celery_lockbeat.stores.base import Claim, EntryState

MINUTE = 60.0

OLD = {"e": every(1, args=("old",)), "same": every(1)}
NEW = {"e": every(1, args=("new",)), "same": every(1)}


def sent(simulation, entry="e", since=0.0):
    return [message.args for message in simulation.messages if message.entry == entry and message.at >= since]


def assert_each_second(simulation, entry, since, until, slack=0.1):
    times = [message.at for message in simulation.messages if message.entry == entry and since <= message.at < until]
    assert abs(len(times) - (until - since)) <= 1 + slack * (until - since), times


def told(caplog, level):
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == level and "defined otherwise" in record.msg
    ]


# -- who sends what ----------------------------------------------------------------------------------------------------


def test_the_newer_definition_wins_within_a_minute_and_no_tick_is_lost_or_doubled(simulation):
    world = simulation.world
    old = simulation.beat(OLD)
    world.run(old, seconds=MINUTE)
    new = simulation.beat(NEW)
    begun = world.elapsed
    world.run(old, new, seconds=MINUTE)
    settled = world.elapsed
    world.run(old, new, seconds=5 * MINUTE)
    assert sent(simulation, since=settled) == [["new"]] * len(sent(simulation, since=settled))
    for entry in ("e", "same"):
        runs = world.broker.runs(entry)
        assert runs == list(range(1, len(runs) + 1))
        assert_each_second(simulation, entry, begun, world.elapsed)


@pytest.mark.parametrize("ends", ["is killed", "leaves"])
def test_when_the_last_beat_with_the_newer_definition_is_gone_the_older_one_goes_on_within_seconds(simulation, ends):
    world = simulation.world
    old, new = simulation.beat(OLD), simulation.beat(OLD)
    world.run(old, new, seconds=MINUTE)
    new.close()
    new = simulation.beat(NEW)
    world.run(old, new, seconds=2 * MINUTE)
    if ends == "leaves":
        new.close()
    gone = world.elapsed
    world.run(old, seconds=2 * MINUTE)
    later = [message.at for message in simulation.messages if message.entry == "e" and message.at > gone]
    # an interval begins anew with the run that waited
    assert later[0] - gone < (15 if ends == "is killed" else 4)
    assert [message.args for message in simulation.messages if message.entry == "e" and message.at > gone] == [
        ["old"]
    ] * len(later)
    assert len(later) > 90
    runs = world.broker.runs("e")
    assert runs == list(range(1, len(runs) + 1))


def test_after_a_rolling_update_all_send_again_and_a_release_that_comes_back_is_the_older_one(simulation):
    world = simulation.world
    beats = [simulation.beat(OLD) for _ in range(3)]
    world.run(*beats, seconds=MINUTE)
    for schedule_ in (NEW, OLD):
        for number in range(3):
            beats[number].close()
            beats[number] = simulation.beat(schedule_)
            world.run(*beats, seconds=2 * MINUTE)
            newest = "new" if any(beat.app.conf.beat_schedule == NEW for beat in beats) else "old"
            since = world.elapsed - MINUTE
            assert sent(simulation, since=since) == [[newest]] * len(sent(simulation, since=since))
            assert_each_second(simulation, "e", since, world.elapsed)


def test_a_tick_that_a_dead_beat_has_left_is_not_taken_over_with_an_older_definition(simulation):
    world = simulation.world
    old = simulation.beat({"e": every(3600, args=("old",))})
    world.run(old, seconds=1)
    new = simulation.beat({"e": every(3600, args=("new",))})
    world.run(old, new, seconds=MINUTE)
    store = simulation.store.store
    for run in range(1, 4):
        due = world.now().isoformat()
        store.beats.claim(
            "simulated", "dead", [Claim(f"left-{run}", "e", EntryState(run, due), {"due": due})], ttl=0.001
        )
        world.run(old, seconds=2)
        assert len(simulation.messages) == run - 1, "it is left to the other, who is slow, but there"
        world.run(old, new, seconds=10)
    assert [(message.id, message.args) for message in simulation.messages] == [
        (f"left-{run}", ["new"]) for run in range(1, 4)
    ]
    new.close()
    store.beats.claim("simulated", "dead", [Claim("last", "e", EntryState(4, due), {"due": due})], ttl=0.001)
    world.run(old, seconds=10)
    assert (simulation.messages[-1].id, simulation.messages[-1].args) == ("last", ["old"])


def test_an_entry_that_is_changed_at_run_time_counts_from_then_on(simulation):
    world = simulation.world
    one, other = simulation.beat(OLD), simulation.beat(OLD)
    world.run(one, other, seconds=MINUTE)
    one.app.conf.beat_schedule = NEW
    world.run(one, other, seconds=MINUTE)
    since = world.elapsed
    world.run(one, other, seconds=MINUTE)
    assert sent(simulation, since=since) == [["new"]] * len(sent(simulation, since=since))
    other.app.conf.beat_schedule = NEW
    world.run(one, other, seconds=MINUTE)
    assert not one.scheduler._announcements._differences
    assert not other.scheduler._announcements._differences


def test_a_store_that_forgets_everything_leaves_no_entry_to_nobody(simulation):
    world = simulation.world
    old = simulation.beat(OLD)
    world.run(old, seconds=MINUTE)
    new = simulation.beat(NEW)
    world.run(old, new, seconds=2 * MINUTE)
    store = simulation.store.store
    for kind in ("member", "entries", "definition"):
        names = [each.name for each in store.announcements.announced("simulated", kind)]
        store.announcements.announce("simulated", kind, dict.fromkeys(names, ""), ttl=0)
    world.run(old, new, seconds=4 * MINUTE)
    assert_each_second(simulation, "e", world.elapsed - MINUTE, world.elapsed)


def test_a_replica_that_announces_nothing_goes_on_as_it_did_and_nothing_is_said_of_it(simulation, caplog):
    world = simulation.world
    old = simulation.beat({"e": every(1, args=("old",))})  # of release 0.1.0
    old.scheduler._announcements.look = lambda *_, **__: []
    new = simulation.beat({"e": every(1, args=("new",))})
    world.run(old, new, seconds=2 * MINUTE)
    assert ["old"] in sent(simulation, since=MINUTE), "whoever is first has the tick"
    assert not new.scheduler._announcements._differences
    assert_each_second(simulation, "e", 0, world.elapsed)
    runs = world.broker.runs("e")
    assert runs == list(range(1, len(runs) + 1))
    assert not told(caplog, logging.WARNING)


def test_what_cannot_be_announced_stops_no_tick(simulation, caplog):
    world = simulation.world
    simulation.store.fails = lambda name: "before" if name in ("announce", "announced") else None
    with caplog.at_level(logging.INFO, logger="celery_lockbeat.beat"):
        beats = [simulation.beat(OLD), simulation.beat(NEW)]
        world.run(*beats, seconds=2 * MINUTE)
    assert_each_second(simulation, "e", 0, world.elapsed)
    assert len([record for record in caplog.records if "cannot announce" in record.msg]) == 2
    for beat in beats:
        beat.close()


def test_ten_thousand_entries_are_announced_in_parts_and_their_agreement_costs_two_small_calls(simulation):
    world = simulation.world
    schedule_ = {f"entry {number}": every(3600.0 * 24, args=(number,)) for number in range(2000)}
    beats = [simulation.beat(schedule_) for _ in range(2)]
    world.run(*beats, seconds=MINUTE)
    calls = simulation.store.calls
    store, sizes = simulation.store.store, []
    announce = store.announcements.announce
    store.announcements.announce = lambda app, kind, told, ttl: (
        sizes.append(sum(map(len, told.values()))) or announce(app, kind, told, ttl=ttl)
    )
    before = calls["announce"] + calls["announced"]
    world.run(*beats, seconds=10 * MINUTE)
    # each of two, every 5 s, and every 20 s
    assert calls["announce"] + calls["announced"] - before <= 2 * (120 + 30) + 10
    assert max(sizes) < 1000


# -- what is said ------------------------------------------------------------------------------------------------------


def test_a_difference_is_a_warning_within_a_minute_and_an_error_when_it_lasts_named_by_entry_and_replica(
    simulation, caplog
):
    world = simulation.world
    old = simulation.beat(OLD)
    world.run(old, seconds=MINUTE)
    new = simulation.beat(NEW)
    caplog.set_level(logging.INFO, logger="celery_lockbeat.beat")
    world.run(old, new, seconds=MINUTE)
    first, second = sorted(told(caplog, logging.WARNING), key=lambda text: "left to them" in text)
    mine, theirs = new.scheduler._replica.name, old.scheduler._replica.name
    assert f"by {theirs} than by this beat, {mine}: e: sent here, ours being newer" in first
    assert f"by {mine} than by this beat, {theirs}: e: left to them, theirs being newer" in second
    assert not told(caplog, logging.ERROR)
    world.run(old, new, seconds=LASTS)
    lasting = told(caplog, logging.ERROR)
    assert len(lasting) == 2
    assert all("two apps are called 'simulated'" in text for text in lasting)
    world.run(old, new, seconds=LASTS)
    assert len(told(caplog, logging.ERROR)) == 2
    new.close()
    world.run(old, seconds=MINUTE)
    assert "define their entries alike again" in caplog.text


def test_two_apps_of_one_name_are_an_error_and_do_not_share_the_ticks_of_one_entry_silently(simulation, caplog):
    world = simulation.world
    shop = simulation.beat({"report": every(1, "shop.report"), "only here": every(1)})
    mail = simulation.beat({"report": every(1, "mail.report"), "only there": every(1)})
    caplog.set_level(logging.WARNING, logger="celery_lockbeat.beat")
    world.run(shop, mail, seconds=LASTS + MINUTE)
    assert len(told(caplog, logging.ERROR)) == 2
    since = world.elapsed
    world.run(shop, mail, seconds=MINUTE)
    assert {message.task for message in simulation.messages if message.entry == "report" and message.at > since} in (
        {"mail.report"},
        {"shop.report"},
    )
    for entry in ("report", "only here", "only there"):
        assert_each_second(simulation, entry, since, world.elapsed)


# -- what a definition is ----------------------------------------------------------------------------------------------


def lazily():
    return 1


def keyed(x):
    return x


class Bare:
    def __init__(self, value):
        self.value = value


def entry(**changes):
    fields = {"name": "e", "task": "t", "schedule": 10, "args": (1, "a"), "kwargs": {"b": 2}, "options": {"queue": "q"}}
    return ScheduleEntry(app=Celery(set_as_current=False), **{**fields, **changes})


def digest(**changes):
    one = entry(**changes)
    return definition_of(one, one.schedule)


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "other"},
        {"schedule": 11},
        {"schedule": crontab(minute=1)},
        {"schedule": solar("sunset", 1, 2)},
        {"args": (1, "b")},
        {"kwargs": {"b": 3}},
        {"options": {"queue": "other"}},
        {"args": (Bare(1),)},
        {"args": (Bare(2),)},
        {"kwargs": {"b": BeatLazyFunc(lazily)}},
        {"kwargs": {"b": BeatLazyFunc(lazily, 1)}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_an_entry_is_made_of_makes_another_definition(changes):
    assert digest(**changes) != digest()


def test_definitions_are_told_apart_and_equal_ones_are_not(simulation):
    same = [
        ({"schedule": 10}, {"schedule": timedelta(seconds=10)}),
        ({"schedule": crontab(minute="*/5")}, {"schedule": crontab(minute="*/5")}),
        ({"kwargs": {"a": 1, "b": 2}}, {"kwargs": {"b": 2, "a": 1}}),
        ({"args": [1, "a"]}, {"args": (1, "a")}),
        ({"args": (Bare(1),)}, {"args": (Bare(1),)}),
        ({"schedule": Timeout(5)}, {"schedule": Timeout(5)}),
        ({"kwargs": {"b": BeatLazyFunc(lazily)}}, {"kwargs": {"b": BeatLazyFunc(lazily)}}),
    ]
    for one, other in same:
        assert digest(**one) == digest(**other), one
    other = [
        ({"schedule": Timeout(5)}, {"schedule": Timeout(6)}),
        ({"schedule": crontab(minute="*/5")}, {"schedule": crontab(minute="*/6")}),
        ({"schedule": schedule(10)}, {"schedule": schedule(10, relative=True)}),
    ]
    for one, another in other:
        assert digest(**one) != digest(**another), one


OTHER_PROCESS = """
import sys
sys.path[:0] = {path!r}
from test_announcements import digest, Bare
print(digest(args=({{"x", "y", "z", ("a", 1)}}, Bare([1, {{"k": {{"p", "q"}}}}]))))
"""


def test_a_definition_is_the_same_in_all_processes():
    code = OTHER_PROCESS.format(path=sys.path)
    seeds = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        for seed in ("1", "2")
    ]
    assert (
        seeds[0].stdout
        == seeds[1].stdout
        == digest(args=({"x", "y", "z", ("a", 1)}, Bare([1, {"k": {"p", "q"}}]))) + "\n"
    )


def test_what_is_nested_without_an_end_has_a_definition(simulation):
    endless = []
    endless.append(endless)
    assert digest(args=(endless,))


# -- what must be equal ------------------------------------------------------------------------------------------------


def test_what_the_lock_of_each_task_is_is_told_without_a_password(make_app, server):
    app = make_app(lockbeat_connections={"other": server.url.replace("//", "//:secret@")}, lockbeat_driver="redis")
    task = partial(app.task, base=LockedTask)
    task(name="plain")(lazily)
    task(name="keyed", lock_key="k:{x}")(keyed)
    task(name="called", lock_key=lambda: "k")(lazily)
    task(name="elsewhere", lock_connection="other")(lazily)
    task(name="here", lock_driver="memory")(lazily)
    task(name="off", lock_enabled=False)(lazily)
    app.task(name="unlocked")(lazily)
    place = server.url.rpartition("@")[2]
    locks = locks_of_tasks(app)
    assert locks.pop("called").startswith("lock_key by test_announcements.test_what")
    wanted = {
        "plain": "lock_key 'plain' in the app's store",
        "keyed": "lock_key 'k:{x}' in the app's store",
        "elsewhere": f"lock_key 'elsewhere' in {place}",
        "here": "lock_key 'here' in memory",
        "off": "no lock",
        "unlocked": "no lock",
    }
    # other tests may have shared tasks
    assert {name: lock for name, lock in locks.items() if name in wanted} == wanted


# -- who is there ------------------------------------------------------------------------------------------------------


def test_a_beat_that_falls_silent_is_told_as_gone_within_40_s_and_one_that_leaves_has_left(simulation, caplog):
    world = simulation.world
    watching, killed, leaving = (simulation.beat(OLD) for _ in range(3))
    caplog.set_level(logging.INFO, logger="celery_lockbeat.beat")

    def said() -> list[tuple[str, str]]:
        about = ("is gone", "has left", "is back")
        return [
            (record.levelname, record.getMessage())
            for record in caplog.records
            if any(each in record.msg for each in about)
        ]

    world.run(watching, killed, leaving, seconds=MINUTE)
    assert said() == []
    leaving.close()
    world.run(watching, seconds=40)  # nobody else: the other beat may be frozen
    gone, left = sorted(said(), reverse=True)
    assert left == ("INFO", f"beat {leaving.scheduler._replica.name} has left")
    assert gone[0] == "WARNING"
    assert gone[1].startswith(f"beat {killed.scheduler._replica.name} is gone: nothing was heard of it for ")
    world.run(watching, seconds=MINUTE)
    assert len(said()) == 2
    caplog.clear()
    world.run(watching, killed, seconds=40)
    # the frozen one sees only now that another has left
    assert sorted(said()) == sorted(
        [
            ("INFO", f"beat {killed.scheduler._replica.name} is back"),
            ("INFO", f"beat {leaving.scheduler._replica.name} has left"),
        ]
    )


def test_a_beat_that_dies_just_after_its_start_is_told_as_gone_by_those_who_were_there_and_by_no_later_one(
    simulation, caplog
):
    world = simulation.world
    watching, killed = (simulation.beat(OLD) for _ in range(2))
    caplog.set_level(logging.INFO, logger="celery_lockbeat.beat")
    world.run(watching, killed, seconds=5)
    world.run(watching, seconds=MINUTE)
    later = simulation.beat(OLD)
    world.run(watching, later, seconds=MINUTE)
    [told] = [record.getMessage() for record in caplog.records if "is gone" in record.msg]
    assert told.startswith(f"beat {killed.scheduler._replica.name} is gone")

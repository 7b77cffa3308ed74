"""What becomes of the ticks that nobody fired: three replicas that come and go, or are killed, in simulated days.

The oracle knows when each tick was due, counting minutes, and shares no code with the beats.
"""

from __future__ import annotations

import random
import time
from datetime import datetime, timedelta, timezone
from functools import partial
from itertools import pairwise

import pytest
from celery.schedules import crontab, schedule
from servers import wait_until

from celery_lockbeat import ConfigurationError, signals
from celery_lockbeat.schedules import Cron, Every, Once

UTC = timezone.utc
DAY = 86400
START = datetime(2026, 6, 1, tzinfo=UTC)


def at(seconds):
    return START + timedelta(seconds=seconds)


def told(message):
    tick = message.headers["lockbeat"]
    due, previous = datetime.fromisoformat(tick["due"]), tick.get("previous_due")
    return (due - START).total_seconds(), previous and (datetime.fromisoformat(previous) - START).total_seconds()


def dues(simulation, entry="e"):
    return [told(message)[0] for message in simulation.messages if message.entry == entry]


def origins(simulation, entry="e"):
    return [message.headers["lockbeat"].get("origin") for message in simulation.messages if message.entry == entry]


@pytest.fixture
def missed():
    """Each event that tells of missed ticks: (entry, count, last due)."""
    found = []

    def note(schedule, count, reason, last_due=None, tick=None, **_):
        if schedule not in ("e", "late"):  # of a test before, which a thread has said since
            return
        found.append((schedule, count, (datetime.fromisoformat(last_due or tick) - START).total_seconds(), reason))

    signals.tick_missed.connect(note)
    yield Said(found)
    signals.tick_missed.disconnect(note)


class Said:
    """What was said, which a thread does: it is waited for."""

    def __init__(self, found):
        self._found = found

    def are(self, *expected):
        wait_until(lambda: len(self._found) >= len(expected), 10, f"it is said: {expected}")
        time.sleep(0.05 if not expected else 0)
        assert [each[:3] for each in self._found] == list(expected)

    def all_of(self, count):
        wait_until(lambda: sum(each[1] for each in self._found) >= count, 10, f"{count} are missed")
        return list(self._found)

    @property
    def why(self):
        return self._found[0][3]


def minutely(**policy):
    return {"e": {"task": "t", "schedule": Cron("* * * * *", **policy)}}


def away_for_an_hour(simulation, entries, seconds=3605, **settings):
    """Run for two minutes and a half, be away, and run for a minute and a half, and some seconds."""
    first = simulation.beat(entries, **settings)
    simulation.world.run(first, seconds=150)
    first.close()
    simulation.world.run(seconds=seconds)
    simulation.world.run(simulation.beat(entries, **settings), seconds=95)


def test_latest_is_one_run_for_all_that_nobody_fired(simulation, missed):
    away_for_an_hour(simulation, minutely())
    assert dues(simulation) == [60, 120, 3720, 3780, 3840]
    assert origins(simulation) == [None, None, "catchup", None, None]
    # a body that processes what is later than the one, and not later than the other, leaves nothing out
    assert [told(each) for each in simulation.messages] == [
        *((60, None), (120, 60), (3720, 120), (3780, 3720), (3840, 3780))
    ]
    missed.are(("e", 59, 3660))
    assert "stands for them" in missed.why


def test_all_is_each_tick_oldest_first_under_an_id_and_a_number_of_its_own(simulation, missed):
    away_for_an_hour(simulation, minutely(catchup="all"))
    assert dues(simulation) == list(range(60, 3841, 60))
    assert simulation.world.broker.runs("e") == list(range(1, 65))
    assert len({message.id for message in simulation.messages}) == 64
    assert [told(each)[1] for each in simulation.messages[1:]] == list(range(60, 3781, 60))
    missed.are()


def test_none_is_only_what_is_in_time(simulation, missed):
    away_for_an_hour(simulation, minutely(catchup="none"))
    assert dues(simulation) == [60, 120, 3780, 3840]
    missed.are(("e", 60, 3720))
    assert "catchup is 'none'" in missed.why


def test_what_is_late_by_less_than_lockbeat_late_after_is_in_time(simulation, missed):
    away_for_an_hour(simulation, minutely(catchup="none"), lockbeat_late_after=40)
    assert dues(simulation)[2] == 3720
    missed.are(("e", 59, 3660))


def test_no_more_than_the_limit_are_caught_up_with_and_these_are_the_newest(simulation, missed):
    away_for_an_hour(simulation, minutely(catchup="all", catchup_limit=10))
    assert dues(simulation) == [60, 120, *range(3180, 3841, 60)]
    missed.are(("e", 50, 3120))
    assert "catchup_limit" in missed.why


@pytest.mark.parametrize(("catchup", "first"), [("all", 3240), ("latest", 3720)])
def test_what_is_older_than_the_window_is_missed_whatever_else_is_said(simulation, missed, catchup, first):
    away_for_an_hour(simulation, minutely(catchup=catchup, catchup_window=540))
    assert dues(simulation)[2] == first
    count = 51 if catchup == "all" else 59
    assert sum(each[1] for each in missed.all_of(count)) == count


def test_a_tick_that_no_worker_may_begin_any_more_is_not_sent(simulation, missed):
    away_for_an_hour(simulation, minutely(catchup="all", start_within=100))
    assert dues(simulation) == [60, 120, 3660, 3720, 3780, 3840]
    missed.are(("e", 58, 3600))
    assert "start_within" in missed.why
    (last,) = simulation.messages[-1:]
    assert datetime.fromisoformat(last.headers["expires"]) == at(3840 + 100)


def test_who_was_away_for_a_day_sends_no_flood_and_starves_nobody(simulation):
    entries = {**minutely(catchup="all", catchup_limit=10_000), "other": {"task": "o", "schedule": Every(1)}}
    first = simulation.beat(entries)
    simulation.world.run(first, seconds=30)
    first.close()
    simulation.world.run(seconds=DAY)
    simulation.messages.clear()
    beat = simulation.beat(entries)
    simulation.world.run(beat, seconds=5)
    others = [message.at - DAY - 30 for message in simulation.messages if message.entry == "other"]
    assert [round(each) for each in others] == [0, 1, 2, 3, 4, 5][: len(others)]
    assert len(others) >= 5
    assert dues(simulation) == [60.0 * n for n in range(1, len(dues(simulation)) + 1)]
    simulation.world.run(beat, seconds=10)
    assert dues(simulation) == [60.0 * n for n in range(1, 1441)]


# -- jitter, from when to when, how often ------------------------------------------------------------------------------


def test_jitter_puts_each_tick_off_alike_for_all_replicas_and_leaves_its_due_as_it_is(simulation):
    entries = minutely(jitter=30)
    simulation.world.run(*(simulation.beat(entries) for _ in range(3)), seconds=900)
    assert dues(simulation) == [60.0 * n for n in range(1, len(dues(simulation)) + 1)]
    offsets = [message.at - told(message)[0] for message in simulation.messages]
    assert min(offsets) >= 0
    assert max(offsets) <= 30.1
    assert len({round(each) for each in offsets}) > 5
    policy = entries["e"]["schedule"].policy
    assert offsets == pytest.approx([policy.offset("e", at(due)) for due in dues(simulation)], abs=0.11)


def test_what_jitter_spreads_over_many_entries_goes_out_in_few_batches(simulation, monkeypatch):
    entries = {f"e{number}": {"task": "t", "schedule": Every(10, jitter=2)} for number in range(150)}
    beat, calls, beats = simulation.beat(entries), [], simulation.store.store.beats
    simulation.world.run(beat, seconds=15)
    claim = beats.claim

    def count(*args, **more):
        calls.append(args)
        return claim(*args, **more)

    monkeypatch.setattr(beats, "claim", count)
    simulation.messages.clear()
    simulation.world.run(beat, seconds=10)
    assert len(simulation.messages) == 150
    # those of twenty moments, or one more, and looks for what others have left
    assert len(calls) < 40
    offsets = {round(message.at - told(message)[0], 1) for message in simulation.messages}
    assert min(offsets) >= 0
    assert max(offsets) <= 2
    assert len(offsets) >= 15


def test_no_tick_before_start_and_none_from_end_on(simulation, caplog):
    caplog.set_level("INFO", "celery_lockbeat.beat")
    entries = minutely(start=at(180), end=at(360))
    simulation.world.run(simulation.beat(entries), simulation.beat(entries), seconds=500)
    assert dues(simulation) == [180, 240, 300]
    simulation.world.run(simulation.beat(entries), seconds=300)
    assert dues(simulation) == [180, 240, 300]
    assert sum("is over" in record.getMessage() for record in caplog.records) == 3


def test_an_entry_that_has_had_its_runs_never_runs_again(simulation, caplog):
    caplog.set_level("INFO", "celery_lockbeat.beat")
    entries = minutely(max_runs=3)
    beats = [simulation.beat(entries), simulation.beat(entries)]
    simulation.world.run(*beats, seconds=400)
    for beat in beats:
        beat.close()
    simulation.world.run(simulation.beat(entries), seconds=400)
    assert dues(simulation) == [60, 120, 180]
    assert any("has had its 3 runs" in record.getMessage() for record in caplog.records)


def test_run_at_start_is_once_when_the_entry_is_first_known_to_any_beat(simulation):
    entries = {"e": {"task": "t", "schedule": Every(600, run_at_start=True)}}
    beat = simulation.beat(entries)
    simulation.world.run(beat, simulation.beat(entries), seconds=300)
    beat.close()
    simulation.world.run(simulation.beat(entries), seconds=400)
    assert simulation.times()["t"] == pytest.approx([0, 600], abs=0.1)


def test_an_interval_does_not_drift_by_what_its_ticks_are_late(simulation):
    entries = {"e": {"task": "t", "schedule": Every(7)}}
    beats = [simulation.beat(entries, skew=skew) for skew in (0, 2)]
    simulation.world.run(*beats, seconds=350)
    grid = dues(simulation)
    assert len(grid) in (49, 50)
    assert [b - a for a, b in pairwise(grid)] == [7.0] * (len(grid) - 1)


def test_what_is_due_once_after_a_cold_start_may_be_put_off_and_come_too_late(simulation, missed):
    entries = {
        "e": {"task": "t", "schedule": Once(after=5, jitter=20)},
        "late": {"task": "l", "schedule": Once(after=5, start_within=2)},
    }
    simulation.store.fails = lambda name: "before" if name == "claim" and simulation.world.elapsed < 10 else None
    simulation.world.run(*(simulation.beat(entries) for _ in range(3)), seconds=40)
    (message,) = simulation.messages
    assert 5 <= message.at < 25.2
    assert message.task == "t"
    assert "start_within" in missed.all_of(1)[0][3]


@pytest.mark.parametrize(
    ("late", "policy", "comes"),
    [
        (20, {}, True),
        (20, {"catchup": "none"}, True),
        (60, {}, False),
        (60, {"catchup_window": 300}, True),
        (60, {"catchup_window": 300, "catchup": "none"}, False),
        (60, {"catchup_window": 300, "start_within": 30}, False),
        (400, {"catchup_window": 300}, False),
    ],
)
def test_what_comes_once_and_is_first_listed_after_its_time_comes_in_time_or_within_its_window(
    simulation, late, policy, comes
):
    entries = {"e": {"task": "t", "schedule": Once(at=at(100), **policy)}}
    simulation.world.run(seconds=100 + late)
    beats = [simulation.beat(entries) for _ in range(2)]
    simulation.world.run(*beats, seconds=30)
    beats[0].close()
    simulation.world.run(simulation.beat(entries), seconds=30)
    assert dues(simulation) == ([100] if comes else [])


def test_ticks_that_were_passed_over_while_it_was_paused_are_among_its_runs(simulation):
    beat = simulation.beat(minutely(max_runs=3))
    simulation.world.run(beat, seconds=61)
    controls = simulation.store.store.controls
    controls.pause("simulated", ["e"], "")
    simulation.world.run(beat, seconds=60)
    controls.resume("simulated", ["e"])
    simulation.world.run(beat, seconds=600)
    assert dues(simulation) == [60, 180]


# -- what others define ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", [crontab(), schedule(60), 60.0])
def test_the_same_keywords_for_celerys_own_schedules_by_patterns_of_names(simulation, missed, when):
    entries = {"report-daily": {"task": "t", "schedule": when}, "other": {"task": "o", "schedule": crontab()}}
    policies = {"report-*": {"catchup": "all"}, "*-daily": {"catchup_limit": 5}}
    away_for_an_hour(simulation, entries, lockbeat_entries=policies)
    assert dues(simulation, "report-daily") == [60, 120, *range(3480, 3841, 60)]
    assert len(dues(simulation, "other")) == 5


@pytest.mark.parametrize(
    ("policies", "wrong"),
    [
        ({"e": {"jitters": 3}}, "jitter"),
        ({"e": {"catchup": "some"}}, "'some'; allowed: 'latest', 'all', 'none'"),
        ({"e": {"jitter": 90}}, "jitter of lockbeat_entries"),
        ({"e": {"run_at_start": True}}, "run_at_start"),
        ({"e": 3}, "lockbeat_entries"),
        ([], "lockbeat_entries"),
    ],
)
def test_what_is_wrong_in_lockbeat_entries_is_refused_at_start_up(simulation, policies, wrong):
    with pytest.raises(ConfigurationError, match=wrong) as refused:
        simulation.beat(minutely(), lockbeat_entries=policies)
    assert "lockbeat_entries" in str(refused.value)
    assert "allowed: " in str(refused.value)


# -- on any number of replicas, through kills --------------------------------------------------------------------------


def sometimes(store, every, name):
    """Lose each so-manieth answer to a claim."""
    return "after" if name == "claim" and store.calls[name] % every == 0 else None


@pytest.mark.parametrize("catchup", ["all", "latest", "none"])
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 20))])
def test_through_kills_and_hours_of_being_away_each_tick_is_what_the_policy_says_once(
    simulation, missed, catchup, seed
):
    """Each minute is published once, or counted as missed once; with ``all`` it is published, in order."""
    chance = random.Random(f"{catchup} {seed}")
    entries = minutely(catchup=catchup, catchup_limit=1000)
    beats = [simulation.beat(entries)]
    simulation.world.run(*beats, seconds=1)  # from now on the entry is known
    for _ in range(14):
        while len(beats) < 3 and chance.random() < 0.8:
            beats.append(simulation.beat(entries, skew=chance.choice([0, 0, 0.4, -0.4])))
        if beats and chance.random() < 0.5:
            beats.pop(chance.randrange(len(beats)))  # killed, with whatever it has in its hands
        if chance.random() < 0.2:
            beats.clear()
            simulation.world.run(seconds=chance.uniform(60, 9_000))
        simulation.store.fails = partial(sometimes, simulation.store, chance.randrange(3, 30))
        simulation.world.run(*beats, seconds=chance.uniform(1, 150))
    simulation.store.fails = lambda _name: None
    simulation.world.run(*(beats or [simulation.beat(entries)]), seconds=130)
    found = dues(simulation)
    end = int(max(found))
    once = list(dict.fromkeys(found))
    by_id = {message.id for message in simulation.messages}
    assert len(by_id) == len(once)  # what was sent twice had one id
    if catchup == "all":
        assert sorted(once) == list(range(60, end + 1, 60))
        # what is caught up with waits for what was due before it, also where that is in dead hands; what is in time does not
        for due, origin in dict(zip(found, origins(simulation), strict=True)).items():
            assert origin is None or set(range(60, int(due), 60)) <= set(once[: once.index(due)])
        missed.are()
    else:
        assert once == sorted(once)
        said = {(last, number) for _, number, last, _ in missed.all_of(end // 60 - len(once)) if last <= end}
        assert len(once) + sum(number for _, number in said) == end // 60

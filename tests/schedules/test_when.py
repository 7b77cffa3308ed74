"""Cron, Every and Once as Celery's schedules: in a beat of ours and in another's, compared, copied, pickled and shown."""

from __future__ import annotations

import copy
import pickle
from datetime import datetime, timedelta, timezone
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.beat import PersistentScheduler, Scheduler
from celery.schedules import crontab, schedule

from celery_lockbeat.schedules import Cron, Every, Once
from celery_lockbeat.schedules.dues import dues_between, iter_dues, next_due, previous_due, shortest_gap
from celery_lockbeat.schedules.policy import Policy
from celery_lockbeat.schedules.when import NEVER, Timeout, bound, policy_of

UTC = timezone.utc
START = datetime(2026, 6, 1, tzinfo=UTC)
HOUR, DAY = 3600.0, 86400.0


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def app(**settings) -> Celery:
    made = Celery("when", set_as_current=False)
    made.conf.update(timezone="UTC", **settings)
    return made


class Clock:
    """A schedule's now."""

    def __init__(self, at: datetime = START) -> None:
        self.at = at

    def __call__(self) -> datetime:
        return self.at


# -- what they are -----------------------------------------------------------------------------------------------------

MADE = {
    "Cron('*/15 8-18 * * mon-fri')": lambda: Cron("*/15 8-18 * * mon-fri"),
    "Cron('*/10 * * * * *', timezone='Europe/Berlin')": lambda: Cron("*/10 * * * * *", timezone="Europe/Berlin"),
    "Cron('0 0 L * *', timezone='UTC', jitter=60, catchup='all')": lambda: Cron(
        "0 0 L * *", timezone=ZoneInfo("UTC"), jitter=60, catchup="all"
    ),
    "Cron('@daily', start=2026-06-01T00:00:00+00:00, max_runs=3)": lambda: Cron("@daily", start=START, max_runs=3),
    "Every(90)": lambda: Every(90),
    "Every(0.25, jitter=0.1, run_at_start=True)": lambda: Every(timedelta(seconds=0.25), jitter=0.1, run_at_start=True),
    "Once(after=5)": lambda: Once(after=5),
    "Once(after=5, start_within=60)": lambda: Once(after=timedelta(seconds=5), start_within=60),
    "Once(at=2026-06-01T00:00:00+00:00)": lambda: Once(at=START),
}


@pytest.mark.parametrize("text", MADE)
def test_they_are_equal_by_what_they_say_and_survive_pickle_and_copy(text):
    one, other = MADE[text](), MADE[text]()
    assert repr(one) == text
    for twin in (other, pickle.loads(pickle.dumps(one)), copy.copy(one), copy.deepcopy(one)):
        assert twin == one
        assert hash(twin) == hash(one)
        assert type(twin) is type(one)
        assert repr(twin) == text
        assert twin.definition == one.definition
    assert all((one == make()) == (key == text) for key, make in MADE.items())


def test_what_celery_can_say_is_celerys_too():
    when = Cron("*/15 8-18 * * Monday-fri", timezone="Europe/Berlin")
    assert isinstance(when, crontab)
    assert (when._orig_minute, when._orig_hour, when._orig_day_of_week) == ("*/15", "8-18", "mon-fri")
    assert when.day_of_week == {1, 2, 3, 4, 5}
    assert str(when.tz) == "Europe/Berlin"
    assert Cron("0 0 * * 7").day_of_week == {0}
    assert isinstance(Cron("@daily"), crontab)
    assert isinstance(Every(5), schedule)
    assert Every(5).seconds == 5
    assert when != crontab("*/15", "8-18", "mon-fri")
    assert Every(5) != schedule(5)


@pytest.mark.parametrize(
    "expression",
    [
        "* * * * * *",
        "0 0 L * *",
        "0 0 L-1 * *",
        "0 0 * * 5#2",
        "0 0 * * 5L",
        "0 0 LW * *",
        "0 0 1 * mon",
        "5/10 * * * *",
    ],
)
def test_what_celery_cannot_say_is_none_of_its_crontabs(expression):
    assert not isinstance(Cron(expression), crontab)


def test_what_has_a_start_or_an_end_is_none_of_celerys_crontabs_for_who_keeps_its_fields_would_lose_them():
    assert not isinstance(Cron("0 0 * * *", start=START), crontab)
    assert not isinstance(Cron("0 0 * * *").with_policy(Policy(end=START)), crontab)
    assert isinstance(Cron("0 0 * * *", jitter=5, max_runs=3), crontab)


def test_the_same_times_make_equal_crons_however_they_are_written():
    assert Cron("0 0 * * MON") == Cron("0  0 * * monday") != Cron("0 0 * * tue")
    assert Cron("0 0 0 * * *") == Cron("@midnight") == Cron("0 0 * * *")
    assert Cron("0 0 * * *", timezone="Europe/Berlin") != Cron("0 0 * * *", timezone="Europe/Paris")
    assert Cron("0 0 * * *") != Cron("0 0 * * *", jitter=1)
    # over a change of the clocks these are not the same
    assert Cron("0 0,12 * * *") != Cron("0 */12 * * *")


def test_the_policy_of_a_schedule_is_its_own_or_the_default():
    assert policy_of(Every(5, max_runs=2)) == Policy(max_runs=2)
    assert policy_of(crontab()) == policy_of(5) == Policy()


def test_with_another_policy_it_is_the_same_schedule():
    one = Cron("H 0 * * *", timezone="Europe/Berlin", catchup="all").bound_to("report")
    other = one.with_policy(Policy(jitter=5))
    assert (other.expression, other.timezone, other.name, other.policy) == (
        "H 0 * * *",
        "Europe/Berlin",
        "report",
        Policy(jitter=5),
    )
    assert one.policy == Policy(catchup="all")
    assert one.with_policy(one.policy) is one


def test_bound_to_an_entry_its_name_decides_h_and_jitter_and_what_has_neither_stays_as_it_is():
    plain = Cron("0 0 * * *")
    assert bound(plain, "a") is plain
    celerys = crontab()
    assert bound(celerys, "a") is celerys
    hashed = Cron("H H * * *", timezone="UTC")
    one, other = bound(hashed, "a"), bound(hashed, "b")
    assert one != other != hashed
    assert bound(one, "a") is one
    assert bound(one, "b") == other
    assert next_due(one, START) != next_due(other, START)
    twin = pickle.loads(pickle.dumps(one))
    assert twin == one
    assert next_due(twin, START) == next_due(one, START)
    assert (one.minute, one.hour) == ({next_due(one, START).minute}, {next_due(one, START).hour})
    spread = [bound(Every(60, jitter=30), name) for name in "ab"]
    assert spread[0] != spread[1]


# -- dues --------------------------------------------------------------------------------------------------------------


def test_a_cron_is_due_from_its_start_on_and_before_its_end():
    when = Cron("0 * * * *", timezone="UTC", start=after(2 * HOUR), end=after(5 * HOUR))
    assert list(iter_dues(when, START)) == [after(hours * HOUR) for hours in (2, 3, 4)]
    assert next_due(when, after(4 * HOUR)) is None
    assert previous_due(when, after(9 * HOUR)) == after(4 * HOUR)
    assert previous_due(when, after(2 * HOUR)) is None
    assert dues_between(when, START, after(DAY)) == (3, after(4 * HOUR))
    assert dues_between(when, after(4 * HOUR), after(DAY)) is None
    assert dues_between(when, START, after(2 * HOUR - 1)) is None


def test_parts_of_a_second_are_neither_lost_nor_counted_twice():
    when = Cron("* * * * * *", timezone="UTC")
    half = timedelta(seconds=0.5)
    assert next_due(when, START) == after(1)
    assert next_due(when, START + half) == after(1)
    assert previous_due(when, after(1)) == START
    assert previous_due(when, START + half) == START
    assert dues_between(when, START, after(10)) == (10, after(10))
    assert dues_between(when, START + half, after(10) + half) == (10, after(10))
    bounded = Cron("* * * * * *", timezone="UTC", start=START + half, end=after(3) + half)
    assert list(iter_dues(bounded, after(-5))) == [after(1), after(2), after(3)]


def test_every_is_due_so_long_after_it_was_due_last():
    when = Every(90)
    assert next_due(when, START) == after(90)
    assert previous_due(when, START) == after(-90)
    assert list(islice(iter_dues(when, START), 3)) == [after(90), after(180), after(270)]
    assert dues_between(when, START, after(269)) == (2, after(180))
    assert dues_between(when, START, after(89)) is None
    assert shortest_gap(when) == 90


def test_every_with_a_start_is_due_at_it_and_each_so_many_seconds_after_it():
    when = Every(90, start=after(100), end=after(370))
    assert list(iter_dues(when, START)) == [after(100), after(190), after(280)]
    assert next_due(when, after(123)) == after(190)
    assert previous_due(when, after(DAY)) == after(280)
    assert previous_due(when, after(280)) == after(190)
    assert previous_due(when, after(281)) == after(280)
    assert previous_due(when, after(100)) is None
    assert dues_between(when, START, after(DAY)) == (3, after(280))
    assert dues_between(when, after(100), after(280)) == (2, after(280))
    assert dues_between(when, after(280), after(DAY)) is None
    with_end = Every(90, end=after(200))
    assert list(iter_dues(with_end, START)) == [after(90), after(180)]
    assert dues_between(with_end, START, after(DAY)) == (2, after(180))


def test_once_at_a_moment_is_due_then():
    when = Once(at=after(60))
    assert next_due(when, START) == after(60)
    assert next_due(when, after(60)) is None
    assert previous_due(when, after(60)) is None
    assert previous_due(when, after(61)) == after(60)
    assert dues_between(when, START, after(60)) == (1, after(60))
    assert dues_between(when, after(60), after(DAY)) is None
    assert shortest_gap(when) is None


def test_once_after_a_start_is_a_timeout_of_which_nobody_can_tell_when_it_is_due():
    when = Once(after=5)
    assert isinstance(when, Timeout)
    assert when == Timeout(5)
    assert when.seconds == 5
    assert next_due(when, START) is previous_due(when, START) is dues_between(when, START, after(DAY)) is None
    assert not isinstance(Once(at=START), Timeout)


def test_dues_come_in_utc_so_that_their_differences_are_the_time_that_passes():
    when = Cron("0 1,4 * * *", timezone="Europe/Berlin")
    one, other = islice(iter_dues(when, datetime(2026, 10, 24, 20, tzinfo=UTC)), 2)
    assert other - one == timedelta(hours=4)
    assert one.tzinfo is UTC


# -- is it due? --------------------------------------------------------------------------------------------------------


def test_in_a_beat_of_ours_last_run_at_is_when_it_was_due_last():
    now = Clock(after(HOUR - 1))
    when = Cron("0 * * * *", timezone="UTC", nowfun=now)
    assert tuple(when.is_due(START)) == (False, 1)
    now.at = after(HOUR)
    assert tuple(when.is_due(START)) == (True, HOUR)
    now.at = after(HOUR + 20)
    assert tuple(when.is_due(START)) == (True, HOUR - 20)
    assert tuple(when.is_due(after(HOUR))) == (False, HOUR - 20)


def test_in_another_beat_last_run_at_is_when_it_was_sent():
    now = Clock(after(HOUR + 0.25))
    when = Cron("0 * * * *", timezone="UTC", nowfun=now)
    assert tuple(when.is_due(after(0.3))) == (True, HOUR - 0.25)
    assert tuple(when.is_due(after(HOUR + 0.25))) == (False, HOUR - 0.25)
    # one that was away fires once for all that it has missed
    now.at = after(10 * HOUR)
    assert when.is_due(after(HOUR + 0.25)).is_due
    assert not when.is_due(after(10 * HOUR)).is_due
    every = Every(60, nowfun=now)
    assert tuple(every.is_due(after(10 * HOUR - 59))) == (False, 1)
    assert tuple(every.is_due(after(10 * HOUR - 60))) == (True, 60)
    assert tuple(every.is_due(after(0))) == (True, 60)


def test_a_naive_time_is_utc_as_for_celerys():
    when = Cron("0 * * * *", timezone="Asia/Kolkata", nowfun=lambda: after(HOUR).replace(tzinfo=None))
    assert tuple(when.is_due(START.replace(tzinfo=None))) == (True, HOUR / 2)
    assert when.remaining_estimate(START.replace(tzinfo=None)) == timedelta(seconds=-HOUR / 2)


def test_a_tick_is_put_off_by_its_jitter():
    now = Clock()
    when = bound(Cron("0 * * * *", timezone="UTC", jitter=600, nowfun=now), "report")
    offset = when.policy.offset("report", after(HOUR))
    assert 0 < offset < 600
    now.at = after(HOUR)
    assert tuple(when.is_due(START)) == pytest.approx((False, offset))
    now.at = after(HOUR + offset)
    assert when.is_due(START).is_due
    assert when.is_due(START).next == pytest.approx(HOUR - offset + when.policy.offset("report", after(2 * HOUR)))
    # whatever a beat writes down as its last run: when it was due, or when it was sent
    assert not when.is_due(after(HOUR)).is_due
    assert not when.is_due(now.at).is_due
    every = bound(Every(60, jitter=50, nowfun=now), "report")
    assert every.remaining_estimate(now.at) == timedelta(
        seconds=60 + every.policy.offset("report", now.at + timedelta(seconds=60))
    )


def test_what_has_ended_is_not_due_any_more():
    now = Clock(after(DAY))
    for when in (
        Cron("0 * * * *", timezone="UTC", end=after(HOUR), nowfun=now),
        Every(60, end=after(30), nowfun=now),
        Once(at=after(-1), nowfun=now),
    ):
        assert tuple(when.is_due(START)) == (False, NEVER)
        assert when.remaining_estimate(START) == timedelta(seconds=NEVER)
    assert tuple(Once(at=after(1), nowfun=now).is_due(START)) == (True, NEVER)
    assert tuple(Cron("0 0 * * *", timezone="UTC", end=after(DAY + 1), nowfun=now).is_due(START)) == (True, NEVER)


def test_what_is_too_late_for_celerys_crontab_is_so_for_a_cron():
    made = app(beat_cron_starting_deadline=60)
    now = Clock()
    ours, theirs = Cron("0 * * * *", nowfun=now, app=made), crontab(minute=0, nowfun=now, app=made)
    for late in (0, 30, 60, 61, 300, 3599):
        now.at = after(HOUR + late)
        assert tuple(ours.is_due(START)) == tuple(theirs.is_due(START)), late
    spread = bound(Cron("0 * * * *", nowfun=now, app=made, jitter=3000), "report")
    fires = HOUR + spread.policy.offset("report", after(HOUR))
    for late, is_due in ((1, True), (59, True), (61, False)):
        now.at = after(fires + late)
        assert spread.is_due(START).is_due is is_due


def test_what_has_never_run_is_due_whatever_year_that_is_said_by():
    for zone in ("UTC", "America/New_York", "Asia/Tokyo"):
        when = Cron("0 * * * *", timezone=zone, nowfun=lambda: after(HOUR / 2))
        for never in (datetime.min, datetime.min.replace(tzinfo=UTC)):
            assert tuple(when.is_due(never)) == (True, HOUR / 2)
        assert previous_due(when, datetime.min.replace(tzinfo=UTC)) is None


def test_its_zone_is_that_of_its_app_whichever_that_is_just_now():
    when = Cron("0 0 * * *", nowfun=lambda: START)
    whole = []
    for zone in ("UTC", "Asia/Kolkata", "UTC"):
        made = app()
        made.conf.timezone = zone
        when.app = made
        whole.append(when.is_due(START).next)
    assert whole == [DAY, 18.5 * HOUR, DAY]


# -- beats that are not ours -------------------------------------------------------------------------------------------


def schedules() -> dict[str, object]:
    return {
        "cron": Cron("*/15 * * * *", timezone="Europe/Berlin"),
        "seconds": Cron("*/20 * * * * *", end=after(100)),
        "every": Every(600, start=after(120)),
        "once": Once(at=after(1000)),
        "after": Once(after=100),
    }


@pytest.fixture
def driver():
    return "memory"


@pytest.mark.parametrize("scheduler", [Scheduler, PersistentScheduler])
def test_celerys_own_beats_fire_them(simulation, scheduler, tmp_path):
    file = {"schedule_filename": str(tmp_path / "schedule")} if scheduler is PersistentScheduler else {}
    entries = {name: {"task": name, "schedule": when} for name, when in schedules().items()}
    beat = simulation.celery(entries, scheduler, **file)
    simulation.world.run(beat, seconds=2400)
    found = {name: [round(at) for at in times] for name, times in beat.broker.times().items()}
    assert found == {
        "cron": [900, 1800],
        "seconds": [20, 40, 60, 80],
        "every": [120, 720, 1320, 1920],
        "once": [1000],
        "after": [100],
    }
    beat.close()
    again = simulation.celery(entries, scheduler, **file)
    simulation.world.run(again, seconds=900)
    # the one that keeps them does not forget, and the other begins anew; one moment is past for both
    assert "once" not in again.broker.times()
    again.close()


def test_add_periodic_task_takes_them(simulation):
    made = simulation.app()
    made.add_periodic_task(Every(60), made.signature("t"), name="every")
    assert made.conf.beat_schedule["every"]["schedule"] == Every(60)

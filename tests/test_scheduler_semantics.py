"""The same ticks as Celery's own beat, in simulated time, on each store; Celery's scheduler is the oracle."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import celery
import hypothesis
import pytest
from celery.beat import PersistentScheduler
from celery.schedules import BaseSchedule, crontab, schedstate, schedule, solar
from hypothesis import strategies as st
from simulation import Beat, Broker, assert_same, every, let_them_sleep, named

from celery_lockbeat import LockedScheduler

HOUR = 3600.0
DAY = 24 * HOUR

#: As many seconds a beat may sleep here: nothing but its entries wakes it.
SETTINGS = {"lockbeat_claim_ttl": 3600, "beat_max_loop_interval": 900}

#: Over changes of the clocks, in the polar day and with a deadline older Celerys answer otherwise, raise, or search for minutes.
with_todays_celery = pytest.mark.skipif(celery.VERSION < (5, 7), reason="compared with Celery 5.7 and newer")


@pytest.fixture(autouse=True)
def _sleepers(monkeypatch):
    let_them_sleep(monkeypatch)


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.soak)])
def driver(request):
    """When a schedule is due is no matter of the store."""
    return request.param


@pytest.fixture
def same_ticks(simulation):
    """Run both beats side by side, and compare."""

    def run(schedules, seconds, **settings):
        settings = {**SETTINGS, **settings}
        ours = simulation.beat(named(schedules), **settings)
        theirs = simulation.celery(named(schedules), **settings)
        simulation.world.run(ours, theirs, seconds=seconds)
        assert_same(simulation.times(), theirs.broker.times())
        return simulation.times()

    return run


# -- DST ---------------------------------------------------------------------------------------------------------------

#: A day before the clocks change, UTC.
CHANGES = {
    "Berlin, spring": ("Europe/Berlin", "2026-03-28T01:00:00.250000+00:00"),
    "Berlin, autumn": ("Europe/Berlin", "2026-10-24T01:00:00.250000+00:00"),
    "New York, spring": ("America/New_York", "2026-03-07T07:00:00.250000+00:00"),
    "New York, autumn": ("America/New_York", "2026-10-31T06:00:00.250000+00:00"),
    "Lord Howe, autumn": ("Australia/Lord_Howe", "2026-04-03T15:00:00.250000+00:00"),
    "Lord Howe, spring": ("Australia/Lord_Howe", "2026-10-02T15:30:00.250000+00:00"),
    "Kolkata": ("Asia/Kolkata", "2026-03-28T01:00:00.250000+00:00"),
}


def crontabs():
    return {
        "every 15 minutes": crontab(minute="*/15"),
        "hourly": crontab(minute=0),
        "in the night": crontab(minute=30, hour="1-3"),
        "at 2:30": crontab(minute=30, hour=2),
        "at 2:00": crontab(minute=0, hour=2),
        "at 1:45": crontab(minute=45, hour=1),
        "at midnight": crontab(minute=0, hour=0),
        "on sundays": crontab(minute=15, hour=2, day_of_week="sunday"),
        "by day of month": crontab(minute=15, hour=2, day_of_month="1-31"),
        "by month": crontab(minute=10, hour="*/6", month_of_year="3,4,10,11"),
    }


@with_todays_celery
# the store knows no time zones: one change is enough to see that of a server in one of them
@pytest.mark.parametrize(
    ("driver", "change"),
    [("redis", "Berlin, autumn"), *(("memory", change) for change in CHANGES)],
    indirect=["driver"],
)
def test_all_schedules_fire_over_a_change_of_the_clocks_as_celerys_do(simulation, same_ticks, change):
    timezone, start = CHANGES[change]
    simulation.restart(start)
    relative = {
        "relative minutes": schedule(timedelta(minutes=50), relative=True),
        "relative hours": schedule(timedelta(hours=5), relative=True),
        "relative days": schedule(timedelta(days=1), relative=True),
        "absolute": schedule(timedelta(hours=5)),
    }
    same_ticks({**crontabs(), **relative}, 2 * DAY, timezone=timezone)


# -- the kinds of schedules --------------------------------------------------------------------------------------------


def test_intervals_fire_as_celerys_do(same_ticks):
    ticks = same_ticks({"1": 1, "0.7": 0.7, "timedelta": timedelta(seconds=90), "schedule": schedule(17.5)}, 100)
    assert [len(ticks[name]) for name in ("1", "0.7", "timedelta", "schedule")] == [99, 142, 1, 5]


class Office(BaseSchedule):
    """Every 20 minutes in the morning; asks to be looked at again in an hour otherwise."""

    def is_due(self, last_run_at):
        now = self.now()
        if not 6 <= now.hour < 12:
            return schedstate(is_due=False, next=HOUR - now.minute * 60 - now.second - now.microsecond / 1e6)
        rest = 1200 - (now - last_run_at).total_seconds()
        return schedstate(is_due=rest <= 0, next=rest if rest > 0 else 1200)


class Rare(schedule):
    """Due 500 s after its last run, and looked at a day later."""

    def is_due(self, last_run_at):
        rest = 500 - (self.now() - last_run_at).total_seconds()
        return schedstate(is_due=rest <= 0, next=rest if rest > 0 else DAY)


@with_todays_celery
def test_a_schedule_of_the_users_own_fires_as_celerys_does(same_ticks):
    ticks = same_ticks({"office": Office(), "rare": Rare(1)}, 1.5 * DAY)
    assert len(ticks["office"]) > 30
    assert len(ticks["rare"]) == 2


class Moody(BaseSchedule):
    def is_due(self, last_run_at):
        raise ZeroDivisionError


class Mute(BaseSchedule):
    def is_due(self, last_run_at):
        return False, None


def test_a_schedule_that_raises_or_tells_no_time_stops_no_other_and_is_asked_again_later(simulation, caplog):
    beat = simulation.beat({"moody": every(Moody()), "mute": every(Mute()), "fine": every(10, "fine")})
    simulation.world.run(beat, seconds=905)
    assert len(simulation.times()["fine"]) == 90
    assert caplog.text.count("cannot tell when entry 'moody' is due") == 4
    assert "ZeroDivisionError" in caplog.text


@with_todays_celery
def test_the_sun_fires_as_celerys_does(same_ticks):
    pytest.importorskip("ephem", reason="solar schedules need ephem")
    places = {"Berlin": (52.5, 13.4), "Tromsoe": (69.6, 18.9), "Quito": (-0.2, -78.5)}
    schedules = {
        f"{event} in {place}": solar(event, *at)
        for place, at in places.items()
        for event in ("sunrise", "sunset", "solar_noon", "dawn_civil", "dusk_astronomical")
    }
    ticks = same_ticks(schedules, 5 * DAY, beat_max_loop_interval=6 * HOUR)
    assert len(ticks["sunrise in Berlin"]) == 5


def naive_utc():
    return WORLD[-1].now().replace(tzinfo=None)


def in_tokyo():
    return WORLD[-1].now(ZoneInfo("Asia/Tokyo"))


def in_berlin():
    return WORLD[-1].now(ZoneInfo("Europe/Berlin"))


WORLD = []  # of the test that runs; functions that can be pickled need it


@with_todays_celery
@pytest.mark.parametrize("enable_utc", [True, False])
@pytest.mark.parametrize("timezone", ["UTC", "Asia/Kolkata", "America/New_York", None])
@pytest.mark.no_cover  # what it runs is covered by the others, and traced it takes twice as long
def test_whatever_clock_a_schedule_has_it_fires_as_celerys_does(simulation, same_ticks, timezone, enable_utc):
    world = simulation.restart("2026-03-28T22:07:00+00:00")
    schedules = {}
    for clock, nowfun in {
        "the app's": None,
        "naive": lambda: world.now().replace(tzinfo=None),
        "Tokyo": lambda: world.now(ZoneInfo("Asia/Tokyo")),
        "Berlin": lambda: world.now(ZoneInfo("Europe/Berlin")),
    }.items():
        schedules[f"cron, {clock}"] = crontab(minute=5, hour="*/2", nowfun=nowfun)
        schedules[f"day, {clock}"] = crontab(minute=35, hour=9, nowfun=nowfun)
        schedules[f"interval, {clock}"] = schedule(timedelta(hours=1.1), nowfun=nowfun)
        schedules[f"relative, {clock}"] = schedule(timedelta(hours=3), relative=True, nowfun=nowfun)
    same_ticks(schedules, 1.2 * DAY, timezone=timezone, enable_utc=enable_utc)


_fields = {
    "minute": st.sampled_from([0, 59, "30", "0,20", "*/25", "7-9", [1, 58]]),
    "hour": st.sampled_from(["*", 0, 2, 23, "1-4", "*/5", "2,3", {1, 13}]),
    "day_of_week": st.sampled_from(["*", "*", "*", "sun", "mon-fri", "0,3", 6]),
    "day_of_month": st.sampled_from(["*", "*", "*", "28-31", "1-7", "*/2", 29]),
    "month_of_year": st.sampled_from(["*", "*", "3,4", "10,11", "*/2"]),
}
_zones = st.sampled_from(["UTC", *sorted({zone for zone, _ in CHANGES.values()}), "America/St_Johns", "Africa/Cairo"])
_starts = st.one_of(
    st.datetimes(datetime(2024, 1, 1), datetime(2028, 1, 1)),
    # near a change of the clocks
    st.sampled_from(
        [datetime(2026, 3, 28, 11), datetime(2026, 10, 24, 7), datetime(2026, 11, 1), datetime(2026, 4, 4, 1)]
    ),
)
_fuzzy = hypothesis.settings(
    deadline=None, max_examples=6, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)


@_fuzzy
@hypothesis.given(fields=st.lists(st.fixed_dictionaries(_fields), min_size=1, max_size=4), zone=_zones, start=_starts)
def test_any_crontab_fires_as_celerys_does(simulation, same_ticks, fields, zone, start):
    simulation.restart(f"{start.isoformat()}+00:00")
    schedules = {}
    for number, each in enumerate(fields):
        with contextlib.suppress(ValueError):  # a date that never comes
            schedules[f"cron{number}"] = crontab(**each)
    same_ticks(schedules, 2.5 * DAY + 30, timezone=zone)


@with_todays_celery
@_fuzzy
@hypothesis.given(
    intervals=st.lists(st.tuples(st.floats(20, 20_000), st.booleans()), min_size=1, max_size=5),
    zone=_zones,
    start=_starts,
)
def test_any_interval_fires_as_celerys_does(simulation, same_ticks, intervals, zone, start):
    simulation.restart(f"{start.isoformat()}+00:00")
    schedules = {
        f"every{number}": schedule(timedelta(seconds=seconds), relative=relative)
        for number, (seconds, relative) in enumerate(intervals)
    }
    same_ticks(schedules, 40.3 * min(seconds for seconds, _ in intervals), timezone=zone)


# -- down for a while --------------------------------------------------------------------------------------------------


@pytest.fixture
def restarted(simulation, tmp_path):
    """Run both beats, stop them for a while, and run new ones; return when ours has sent what."""

    def run(schedules, *, up, down, again, **settings):
        settings = {**SETTINGS, **settings}
        file = {"schedule_filename": str(tmp_path / "celerybeat-schedule")}
        broker = Broker(simulation.world)
        for seconds in (up, again):
            ours = simulation.beat(named(schedules), **settings)
            theirs = simulation.celery(named(schedules), PersistentScheduler, broker=broker, **file, **settings)
            simulation.world.run(ours, theirs, seconds=seconds)
            ours.close()
            theirs.close()
            simulation.world.elapsed += down
        assert_same(simulation.times(), broker.times())
        return simulation.times()

    return run


def test_what_was_overdue_after_a_down_time_runs_once_as_celerys_persistent_beat_does(restarted):
    ticks = restarted(
        {
            "cron": crontab(minute="*/10"),
            "daily": crontab(minute=0, hour=4),
            "interval": 600,
            "rare": timedelta(days=2),
        },
        up=HOUR + 1,
        down=DAY + 100,
        again=HOUR,
    )
    at_once = [HOUR + DAY + 101 <= at < HOUR + DAY + 102 for at in ticks["interval"]]
    assert at_once.count(True) == 1
    assert len(ticks["daily"]) == 1
    assert "rare" not in ticks


@with_todays_celery
@pytest.mark.parametrize(("deadline", "runs"), [(None, 1), (600, 0), (4 * HOUR, 1)])
def test_a_crontab_that_is_too_late_is_left_out_as_by_celerys_persistent_beat(restarted, deadline, runs):
    ticks = restarted(
        {"daily": crontab(minute=0, hour=4), "hourly": crontab(minute=30)},
        up=3 * HOUR,
        down=3.25 * HOUR,
        again=HOUR,
        beat_cron_starting_deadline=deadline,
    )
    assert len(ticks.get("daily", [])) == runs


def test_a_beat_sleeps_no_longer_than_its_max_loop_interval_nor_than_its_next_tick(simulation):
    beat = simulation.beat({"e": every(90)}, beat_max_loop_interval=20, lockbeat_claim_ttl=3600)
    rests = []
    for _ in range(12):
        before = simulation.world.elapsed
        beat.tick()
        rests.append(beat.wakes - before)
        simulation.world.elapsed = beat.wakes
    assert max(rests) <= 20.01
    assert abs(simulation.times()["t"][0] - 90) < 0.02


def test_a_beat_whose_service_says_so_sleeps_no_longer_than_that(simulation):
    app = simulation.app({"e": every(1000)}, lockbeat_claim_ttl=3600, beat_max_loop_interval=100)
    assert simulation.beat(app).scheduler.max_interval == 100
    assert Beat(simulation.world, app, LockedScheduler, max_interval=3).scheduler.max_interval == 3


def test_celerys_own_default_entry_is_there_as_in_its_persistent_beat(simulation, tmp_path):
    settings = {"result_backend": "file://" + str(tmp_path), "result_expires": 600, **SETTINGS}
    file = {"schedule_filename": str(tmp_path / "celerybeat-schedule")}
    ours = simulation.beat({"e": every(HOUR)}, **settings)
    theirs = simulation.celery({"e": every(HOUR)}, PersistentScheduler, **file, **settings)
    simulation.world.run(ours, theirs, seconds=1.5 * DAY)
    assert_same(simulation.times(), theirs.broker.times())
    assert len(simulation.times()["celery.backend_cleanup"]) == 2

"""How many ticks there are between two moments, beside an oracle that goes through the minutes one by one."""

from __future__ import annotations

import random
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.schedules import crontab, schedule, solar

from celery_lockbeat.schedules import Cron, Every
from celery_lockbeat.schedules.dues import bounded, dues_between, iter_dues, next_due, previous_due
from celery_lockbeat.schedules.policy import Policy
from celery_lockbeat.schedules.when import Timeout

UTC = timezone.utc
START = datetime(2026, 2, 27, 23, 58, 30, tzinfo=UTC)
APP = Celery("dues", set_as_current=False)
APP.conf.timezone = "UTC"


def oracle(when: crontab, after: datetime, until: datetime) -> list[datetime]:
    """Each minute of the wall clock that all five fields have."""
    at = after.astimezone(when.tz).replace(tzinfo=None)
    last = until.astimezone(when.tz).replace(tzinfo=None)
    minute = at.replace(second=0, microsecond=0) + timedelta(minutes=1)
    found = []
    while minute <= last:
        fields = (
            (minute.minute, when.minute),
            (minute.hour, when.hour),
            (minute.day, when.day_of_month),
            (minute.month, when.month_of_year),
            (minute.isoweekday() % 7, when.day_of_week),
        )
        if all(value in allowed for value, allowed in fields):
            found.append(minute)
        minute += timedelta(minutes=1)
    return found


@pytest.mark.parametrize(
    "expression",
    ["* * * * *", "*/7 * * * *", "0 3 * * *", "30 0 29 2 *", "15,45 8-18 * * 1-5", "0 0 1 * *", "59 23 31 * *"],
)
def test_a_crontab_has_as_many_as_there_are_minutes(expression):
    minute, hour, day, month, weekday = expression.split()
    when = crontab(minute, hour, weekday, day, month, app=APP)
    chance = random.Random(expression)
    for _ in range(20):
        after = START + timedelta(seconds=chance.randrange(40 * 86400))
        until = after + timedelta(seconds=chance.choice([1, 59, 60, 3600, 86400, 3 * 86400]))
        expected = oracle(when, after, until)
        found = dues_between(when, after, until)
        if not expected:
            assert found is None
        else:
            assert (found.ticks, found.last.replace(tzinfo=None)) == (len(expected), expected[-1])


def test_it_counts_by_the_clock_of_its_zone():
    there = Celery("there", set_as_current=False)
    there.conf.timezone = "Europe/Berlin"
    when = crontab(minute=0, hour=3, app=there)
    found = dues_between(when, datetime(2026, 7, 1, 0, 59, tzinfo=UTC), datetime(2026, 7, 2, 1, 0, tzinfo=UTC))
    assert found == (2, datetime(2026, 7, 2, 3, 0, tzinfo=ZoneInfo("Europe/Berlin")))


def test_ten_years_take_no_time_worth_counting():
    found = dues_between(crontab(app=APP), START, START + timedelta(days=3650))
    assert found.ticks == 3650 * 1440


@pytest.mark.parametrize("expression", ["* * * * *", "*/7 * * * *", "0 3 * * *", "15,45 8-18 * * 1-5", "0 0 1 * *"])
def test_the_next_one_is_the_first_minute_that_has_it_whatever_time_it_is_now(expression):
    minute, hour, day, month, weekday = expression.split()
    when = crontab(minute, hour, weekday, day, month, app=APP)
    chance = random.Random(expression)
    for _ in range(20):
        after = START + timedelta(seconds=chance.randrange(40 * 86400))
        assert next_due(when, after).replace(tzinfo=None) == oracle(when, after, after + timedelta(days=32))[0]


def test_the_next_leap_day_is_found():
    leap = next_due(crontab(0, 0, day_of_month=29, month_of_year=2, app=APP), START)
    assert leap == datetime(2028, 2, 29, tzinfo=UTC)


def test_an_interval_is_divided():
    assert dues_between(schedule(10), START, START + timedelta(seconds=9)) is None
    assert dues_between(schedule(10), START, START + timedelta(seconds=30)) == (3, START + timedelta(seconds=30))
    assert dues_between(schedule(0), START, START + timedelta(seconds=30)) is None


def test_the_sun_is_asked_for_each_day():
    when = solar("sunrise", 52.5, 13.4, app=APP)
    assert dues_between(when, START, START + timedelta(days=4)).ticks in (3, 4)


@pytest.mark.parametrize("when", [Timeout(5), object(), None])
def test_of_others_nobody_can_tell(when):
    assert dues_between(when, START, START + timedelta(days=4)) is None


# -- from a start on, before an end ------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", [schedule(60), crontab(), crontab(minute="*/7"), Every(60), Cron("*/7 * * * *")])
def test_with_a_start_and_an_end_no_tick_is_outside_and_all_ways_to_ask_agree(when):
    when.app = APP
    start, end = START + timedelta(seconds=90), START + timedelta(hours=1)
    dues = bounded(when, Policy(start=start, end=end))
    found = list(iter_dues(dues, START - timedelta(days=1)))
    assert start <= found[0] <= start + timedelta(minutes=7)
    assert found[-1] < end
    if isinstance(when, schedule):
        assert found[0] == start
    for first, last in ((0, len(found) - 1), (3, 3), (2, 5)):
        counted = dues_between(dues, START if first == 0 else found[first - 1], found[last])
        assert counted == (last - first + 1, found[last])
    assert dues_between(dues, START - timedelta(days=1), end + timedelta(days=1)) == (len(found), found[-1])
    assert dues_between(dues, START - timedelta(days=1), start - timedelta(seconds=1)) is None
    assert dues_between(dues, end, end + timedelta(days=1)) is None
    assert [previous_due(dues, due) for due in found[1:4]] == found[:3]
    assert previous_due(dues, found[0]) is None

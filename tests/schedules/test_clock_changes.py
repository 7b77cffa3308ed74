"""When a Cron is due over real changes of the clocks, beside a watchman who looks at the clock each minute, or each second.

He shares no code with ours: he asks the zone what its clock shows, notes what he sees, and knows each expression by heart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from itertools import islice, pairwise, takewhile
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest

from celery_lockbeat.schedules import Cron
from celery_lockbeat.schedules.dues import dues_between, iter_dues, previous_due

UTC = timezone.utc
MINUTE, DAY = 60, 86400


class Known(NamedTuple):
    """What the watchman knows of an expression: which times of the clock it has, and whether he counts each time that he sees one.

    Then he looks at his own watch, too, which he has not set yet, for as long as the clock has just been put forward by.
    """

    has: Callable[[datetime], bool]
    each: bool = False


def at(*times: tuple[int, int]) -> Callable[[datetime], bool]:
    return lambda wall: (wall.hour, wall.minute) in times


#: Of times of the day: each is due once on each day, whatever the clock does.
FIXED = {
    "30 2 * * *": Known(at((2, 30))),
    "0 2 * * *": Known(at((2, 0))),
    "45 1 * * *": Known(at((1, 45))),
    "0 3 * * *": Known(at((3, 0))),
    "0 0 * * *": Known(at((0, 0))),
    "@daily": Known(at((0, 0))),
    "15,45 1-3 * * *": Known(lambda wall: wall.minute in (15, 45) and 1 <= wall.hour <= 3),
    "*/10 2 * * *": Known(lambda wall: wall.minute % 10 == 0 and wall.hour == 2),
    "* 1,2 * * *": Known(lambda wall: wall.hour in (1, 2)),
    "59 23 * * *": Known(at((23, 59))),
    "30 2 * * sun": Known(lambda wall: wall.isoweekday() == 7 and (wall.hour, wall.minute) == (2, 30)),
    "0 12 L * *": Known(lambda wall: (wall + timedelta(days=1)).day == 1 and (wall.hour, wall.minute) == (12, 0)),
}

#: By the time that passes: due whenever the clock shows it.
PASSING = {
    "* * * * *": Known(lambda wall: True, each=True),
    "*/15 * * * *": Known(lambda wall: wall.minute % 15 == 0, each=True),
    "0 * * * *": Known(lambda wall: wall.minute == 0, each=True),
    "@hourly": Known(lambda wall: wall.minute == 0, each=True),
    "30 * * * *": Known(lambda wall: wall.minute == 30, each=True),
    "0 */2 * * *": Known(lambda wall: wall.minute == 0 and wall.hour % 2 == 0, each=True),
    "20 0-23/3 * * *": Known(lambda wall: wall.minute == 20 and wall.hour % 3 == 0, each=True),
    "30 */2 * * *": Known(lambda wall: wall.minute == 30 and wall.hour % 2 == 0, each=True),
    "15 2/6 * * *": Known(lambda wall: wall.minute == 15 and wall.hour % 6 == 2, each=True),
    "*/30 * * * sun": Known(lambda wall: wall.minute % 30 == 0 and wall.isoweekday() == 7, each=True),
}

#: Zones, each with three years: Morocco's clocks change for Ramadan, Lord Howe's by half an hour, and Samoa has left out a day.
ZONES = {
    "Europe/Berlin": 2021,
    "America/New_York": 2021,
    "Australia/Lord_Howe": 2021,
    "Africa/Casablanca": 2021,
    "Pacific/Apia": 2010,
}


def changes(zone: ZoneInfo, year: int) -> Iterator[int]:
    """The moments in three years when the clocks of a zone were changed, to the minute."""
    first, end = (int(datetime(each, 1, 1, tzinfo=UTC).timestamp()) for each in (year, year + 3))
    offset = datetime.fromtimestamp(first, zone).utcoffset()
    for hour in range(first, end, 3600):
        if datetime.fromtimestamp(hour + 3600, zone).utcoffset() == offset:
            continue
        for moment in range(hour, hour + 3600 + 1, MINUTE):
            if datetime.fromtimestamp(moment, zone).utcoffset() != offset:
                offset = datetime.fromtimestamp(moment, zone).utcoffset()
                yield moment


class Watch(NamedTuple):
    """From one moment on and before another: each moment at which the watchman looks, and what the clock shows."""

    zone: ZoneInfo
    first: int
    end: int
    unit: int
    shown: list[tuple[int, datetime]]

    @classmethod
    def of(cls, zone: ZoneInfo, first: int, end: int, unit: int) -> Watch:
        looks = range(first - unit, end, unit)
        shown = [(moment, datetime.fromtimestamp(moment, zone).replace(tzinfo=None)) for moment in looks]
        return cls(zone, first, end, unit, shown)

    def noted(self, known: Known) -> list[datetime]:
        """When the watchman notes that it is due: the clock shows a time that is not over yet, or has left it out."""
        noted, latest, step = [], self.shown[0][1], timedelta(seconds=self.unit)
        watch, unset = latest, timedelta(0)
        for moment, wall in self.shown[1:]:
            is_due = known.each and known.has(wall)
            # where a whole day is left out a watch is of no use
            if unset <= timedelta(0) and wall - latest < timedelta(hours=6):
                watch, unset = latest, wall - latest - step
            watch, unset = watch + step, unset - step
            if known.each and unset >= timedelta(0):
                is_due = is_due or known.has(watch)
            while latest < wall:
                latest += step
                is_due = is_due or (not known.each and known.has(latest))
            if is_due:
                noted.append(datetime.fromtimestamp(moment, UTC))
        return noted

    def compare(self, expression: str, known: Known) -> None:
        expected = self.noted(known)
        when = Cron(expression, timezone=self.zone.key)
        begin, until = (datetime.fromtimestamp(moment, UTC) for moment in (self.first - 1, self.end - 1))
        told = expression, self.zone.key, begin
        assert list(takewhile(lambda due: due <= until, iter_dues(when, begin))) == expected, told
        backward, before = [], until + timedelta(seconds=1)
        while (before := previous_due(when, before)) is not None and before > begin:
            backward.append(before)
        assert backward[::-1] == expected, told
        for part in (0, 0.3, 0.5, 0.6):
            after = begin + (until - begin) * part
            later = [due for due in expected if due > after]
            assert dues_between(when, after, until) == ((len(later), later[-1]) if later else None), (*told, after)


@pytest.mark.parametrize("zone", ZONES)
def test_around_each_change_in_three_years_it_is_due_as_a_watchman_says_who_looks_each_minute(zone):
    moments = list(changes(ZoneInfo(zone), ZONES[zone]))
    assert len(moments) >= 5
    for moment in moments:
        watch = Watch.of(ZoneInfo(zone), moment - DAY, moment + DAY, MINUTE)
        for expression, known in {**FIXED, **PASSING}.items():
            watch.compare(expression, known)


#: With seconds.
SECONDS = {
    "*/20 */10 * * * *": Known(lambda wall: wall.second % 20 == 0 and wall.minute % 10 == 0, each=True),
    "30 59 1-3 * * *": Known(lambda wall: (wall.minute, wall.second) == (59, 30) and 1 <= wall.hour <= 3),
    "15 30 2 * * *": Known(lambda wall: (wall.hour, wall.minute, wall.second) == (2, 30, 15)),
    "59 59 * * * *": Known(lambda wall: (wall.minute, wall.second) == (59, 59), each=True),
}


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Lord_Howe"])
def test_around_a_change_it_is_due_as_a_watchman_says_who_looks_each_second(zone):
    for moment in list(changes(ZoneInfo(zone), ZONES[zone]))[:2]:
        watch = Watch.of(ZoneInfo(zone), moment - 7200, moment + 7200, 1)
        for expression, known in SECONDS.items():
            watch.compare(expression, known)


@pytest.mark.soak
@pytest.mark.parametrize("zone", ZONES)
def test_in_each_minute_of_three_years_it_is_due_as_a_watchman_says(zone):
    first, end = (int(datetime(each, 1, 1, tzinfo=UTC).timestamp()) for each in (ZONES[zone], ZONES[zone] + 3))
    watch = Watch.of(ZoneInfo(zone), first, end, MINUTE)
    for expression, known in {**FIXED, **PASSING}.items():
        watch.compare(expression, known)


@pytest.mark.parametrize("zone", ZONES)
def test_a_year_has_as_many_days_as_a_daily_one_is_due_and_as_many_hours_as_an_hourly_one(zone):
    year = ZONES[zone] + 1
    begin, end = (datetime(each, 1, 1, tzinfo=ZoneInfo(zone)) - timedelta(seconds=1) for each in (year, year + 1))
    daily = dues_between(Cron("30 2 * * *", timezone=zone), begin, end)
    # Samoa had no 30 December 2011: what was due then is due when the 31st begins
    assert daily.ticks == 365
    quarterly = dues_between(Cron("*/15 * * * *", timezone=zone), begin, end)
    assert quarterly.ticks == (end.timestamp() - begin.timestamp()) // 900


def test_the_hole_of_celerys_crontab_when_summer_time_ends_in_berlin_is_none_of_ours():
    when = Cron("*/15 * * * *", timezone="Europe/Berlin")
    begin = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    dues = list(takewhile(lambda due: due < begin + timedelta(hours=2), iter_dues(when, begin)))
    assert dues == [begin + timedelta(minutes=15 * number) for number in range(1, 8)]


def test_what_is_left_out_at_midnight_is_due_when_the_day_begins():
    when = Cron("0 0 * * *", timezone="Africa/Cairo")
    # the clock goes from 23:59:59 on the 27th of April 2023 to 01:00 on the 28th
    dues = list(takewhile(lambda due: due.day < 30, iter_dues(when, datetime(2023, 4, 26, 23, tzinfo=UTC))))
    assert [due.astimezone(ZoneInfo("Africa/Cairo")).strftime("%d %H:%M") for due in dues][:3] == [
        "28 01:00",
        "29 00:00",
        "30 00:00",
    ]


def test_a_time_that_comes_once_a_year_is_found_when_it_is_shown_twice_and_when_it_is_left_out():
    passing = Cron("15 2/24 25 10 *", timezone="Europe/Berlin")
    first = datetime(2026, 10, 25, 0, 15, tzinfo=UTC)
    assert list(islice(iter_dues(passing, first - timedelta(days=300)), 2)) == [
        first,
        first + timedelta(hours=1),
    ]
    assert previous_due(passing, datetime(2027, 9, 1, tzinfo=UTC)) == first + timedelta(hours=1)
    assert previous_due(passing, first + timedelta(hours=1)) == first
    fixed = Cron("15 2 29 3 *", timezone="Europe/Berlin")
    left_out = datetime(2026, 3, 29, 1, 0, tzinfo=UTC)
    assert next(iter_dues(fixed, left_out - timedelta(days=200))) == left_out
    assert previous_due(fixed, left_out + timedelta(days=200)) == left_out


@pytest.mark.parametrize(
    ("zone", "day"),
    [("Europe/Berlin", "2026-03-29"), ("Europe/Berlin", "2026-10-25"), ("America/New_York", "2026-03-08")],
)
def test_each_other_hour_is_never_longer_than_two_hours_nor_twice_at_once(zone, day):
    begin = datetime.fromisoformat(f"{day}T00:00").replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    for minute in (0, 30):
        found = iter_dues(Cron(f"{minute} */2 * * *", timezone=zone), begin - timedelta(hours=12))
        dues = list(takewhile(lambda due: due < begin + timedelta(hours=36), found))
        gaps = {later - earlier for earlier, later in pairwise(dues)}
        assert gaps == {timedelta(hours=2), timedelta(hours=1)}
        # what was due an hour early makes up for the change, once
        assert sum(later - earlier == timedelta(hours=1) for earlier, later in pairwise(dues)) == 1


def test_an_hourly_one_is_due_after_an_hour_where_the_clock_is_put_forward_by_half_of_one():
    zone = ZoneInfo("Australia/Lord_Howe")
    begin = datetime(2026, 10, 4, 0, 30, tzinfo=zone).astimezone(UTC)
    hourly = iter_dues(Cron("0 * * * *", timezone=zone.key), begin)
    # the clock goes from 01:59 to 02:30: an hour after one o'clock
    assert [due.astimezone(zone).strftime("%H:%M") for due in islice(hourly, 4)] == ["01:00", "02:30", "03:00", "04:00"]

"""How many ticks a schedule has between two moments: what nobody has fired in time is counted, not gone through one by one.

Promises: the count is exact by the wall clock of the schedule's zone, whatever the span, in a time that grows with its days;
an hour that a clock change leaves out or repeats is counted as the wall clock shows it.
"""

from __future__ import annotations

from bisect import bisect_right
from calendar import monthrange
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple

from celery.schedules import crontab, schedule, solar

__all__ = ["Dues", "dues_between", "next_due"]


#: The 29th of February is eight years from the next one at most, and its weekday 40.
DAYS_AT_MOST: Final = 40 * 366


class Dues(NamedTuple):
    """So many ticks, of which this was the last."""

    ticks: int
    last: datetime


def dues_between(when: Any, after: datetime, until: datetime) -> Dues | None:
    """Count the ticks that were due after one aware moment and until another; None: none, or nobody can tell."""
    if isinstance(when, crontab):
        return _of_crontab(when, after.astimezone(when.tz), until.astimezone(when.tz))
    if isinstance(when, solar):
        return _one_by_one(when, after, until)
    if isinstance(when, schedule):
        return _of_interval(when.run_every, after, until)
    return None


def next_due(when: Any, after: datetime) -> datetime | None:
    """Return when a schedule is due next after an aware moment; None: that depends on more, or nobody can tell."""
    if isinstance(when, crontab):
        return _next_of_crontab(when, after)
    if not isinstance(when, (schedule, solar)):
        return None
    try:
        due = after + (_until_next(when, after) if isinstance(when, solar) else when.run_every)
    except Exception:  # noqa: BLE001  a schedule of somebody's own, or a sun that does not rise
        return None
    return due if due > after else None


def _next_of_crontab(when: crontab, after: datetime) -> datetime | None:
    # not by Celery, whose answer depends on its now, too (celery 5.4, schedules.py: remaining_delta)
    first = after.astimezone(when.tz).replace(tzinfo=None)
    times = _times(frozenset(when.hour), frozenset(when.minute))
    for days in range(DAYS_AT_MOST):
        day = first.date() + timedelta(days=days)
        midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001  the wall clock's
        number = 0 if days else bisect_right(times, first - midnight)
        if number < len(times) and _is_on(when, day):
            return (midnight + times[number]).replace(tzinfo=when.tz)
    return None


def _of_interval(every: timedelta, after: datetime, until: datetime) -> Dues | None:
    count = (until - after) // every if every > timedelta(0) else 0
    return Dues(count, after + count * every) if count > 0 else None


def _of_crontab(when: crontab, after: datetime, until: datetime) -> Dues | None:
    # by the wall clock alone: a zone would make the hour of a change an hour longer or shorter
    first, last = after.replace(tzinfo=None), until.replace(tzinfo=None)
    times = _times(frozenset(when.hour), frozenset(when.minute))
    count, newest = 0, None
    day = first.date()
    while day <= last.date():
        if _is_on(when, day):
            midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001  the wall clock's
            begin = bisect_right(times, first - midnight) if day == first.date() else 0
            end = bisect_right(times, last - midnight) if day == last.date() else len(times)
            if begin < end:
                count, newest = count + end - begin, midnight + times[end - 1]
        day += timedelta(days=1)
    return None if newest is None else Dues(count, newest.replace(tzinfo=until.tzinfo))


@lru_cache(maxsize=100)
def _times(hours: frozenset[int], minutes: frozenset[int]) -> tuple[timedelta, ...]:
    """The times of a day, of which a minutely crontab has 1,440."""
    return tuple(timedelta(hours=hour, minutes=minute) for hour in sorted(hours) for minute in sorted(minutes))


def _is_on(when: crontab, day: date) -> bool:
    return (
        day.month in when.month_of_year
        and day.day in when.day_of_month
        and day.day <= monthrange(day.year, day.month)[1]
        and day.isoweekday() % 7 in when.day_of_week
    )


def _one_by_one(when: Any, after: datetime, until: datetime) -> Dues | None:
    """Count a few a day: sunrise, and its like."""
    count, at = 0, after
    while True:
        try:
            following = at + _until_next(when, at)
        except Exception:  # noqa: BLE001  the sun does not rise there just now (celery 5.7, schedules.py)
            break
        if not at < following <= until:
            break
        count, at = count + 1, following
    return Dues(count, at) if count else None


def _until_next(when: Any, at: datetime) -> timedelta:
    """The time from a moment to the next tick: Celery counts it from its own now."""
    now = when.maybe_make_aware(when.now())
    left: timedelta = now + when.remaining_estimate(at) - at
    return left

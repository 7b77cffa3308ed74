"""When a schedule is due, and how often between two moments: what nobody has fired in time is counted, not gone through.

Promises: counts are exact, whatever the span, in a time that grows with its days. Ours are counted by the time that passes; a
crontab of Celery's by the wall clock of its zone: an hour that a clock change leaves out or repeats is counted as that shows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple

from celery.schedules import crontab, schedule, solar

from celery_lockbeat.options import refusal
from celery_lockbeat.schedules.policy import Policy
from celery_lockbeat.schedules.wall import WallTimes
from celery_lockbeat.schedules.when import Dues, OwnSchedule

__all__ = ["Dues", "bounded", "check_policy", "dues_between", "iter_dues", "next_due", "previous_due", "shortest_gap"]

#: The first moment of the wall clock's times.
BEGINNING: Final = datetime(1970, 1, 1)  # noqa: DTZ001  the wall clock's

SECOND: Final = timedelta(seconds=1)

_INSTANT: Final = timedelta(microseconds=1)

#: Days in which the sun is looked for, backward: in the polar night it does not rise for months.
SOME_DAYS: Final = (2, 20, 200, 400)


class _Bounded(NamedTuple):
    """A schedule of Celery's that has ticks from a policy's ``start`` on, and before its ``end``. An interval begins at its start."""

    when: Any
    policy: Policy

    def next_due(self, after: datetime) -> datetime | None:
        start = self.policy.start
        if start is None or after >= start:
            due = next_due(self.when, after)
        else:
            due = start if isinstance(self.when, schedule) else next_due(self.when, start - _INSTANT)
        return due if due is not None and self.policy.allows(due) else None

    def previous_due(self, before: datetime) -> datetime | None:
        end = self.policy.end
        due = previous_due(self.when, before if end is None else min(before, end))
        return due if due is not None and self.policy.allows(due) else None

    def dues_between(self, after: datetime, until: datetime) -> Dues | None:
        start, end = self.policy.start, self.policy.end
        until = until if end is None else min(until, end - _INSTANT)
        if start is None or after >= start:
            return dues_between(self.when, after, until) if after < until else None
        if until < start:
            return None
        if not isinstance(self.when, schedule):
            return dues_between(self.when, start - _INSTANT, until)
        later = dues_between(self.when, start, until)
        return Dues(1, start) if later is None else Dues(later.ticks + 1, later.last)


def bounded(when: Any, policy: Policy) -> Any:
    """Return what the functions here take for a schedule, of whatever kind, with the ``start`` and ``end`` of a policy that fits it."""
    if isinstance(when, OwnSchedule):
        return when.with_policy(policy)
    return when if policy.start is None and policy.end is None else _Bounded(when, policy)


def next_due(when: Any, after: datetime) -> datetime | None:
    """Return when a schedule is due next after an aware moment; None: not any more, or nobody can tell."""
    if isinstance(when, (OwnSchedule, _Bounded)):
        return when.next_due(after)
    if isinstance(when, crontab):
        return _of_clock(when, _times(when).next(_shown(when, after, SECOND)))
    if not isinstance(when, (schedule, solar)):
        return None
    try:
        left: timedelta = _until_next(when, after) if isinstance(when, solar) else when.run_every
    except Exception:  # noqa: BLE001  a schedule of somebody's own, or a sun that does not rise
        return None
    due: datetime = after + left
    return due if due > after else None


def previous_due(when: Any, before: datetime) -> datetime | None:
    """Return when a schedule was due last before an aware moment; None: never, or nobody can tell.

    An interval without a start counts from the moment, as in :func:`next_due`: so give one at which it was due.
    """
    if isinstance(when, (OwnSchedule, _Bounded)):
        return when.previous_due(before)
    if isinstance(when, crontab):
        return _of_clock(when, _times(when).previous(-_shown(when, before, -SECOND)))
    if isinstance(when, solar):
        return _last_of_sun(when, before)
    if not isinstance(when, schedule):
        return None
    due: datetime = before - when.run_every
    return due if due < before else None


def iter_dues(when: Any, after: datetime) -> Iterator[datetime]:
    """Yield when a schedule is due after an aware moment, one after the other, for as long as it is."""
    while (due := next_due(when, after)) is not None:
        yield due
        after = due


def dues_between(when: Any, after: datetime, until: datetime) -> Dues | None:
    """Count the ticks that were due after one aware moment and until another; None: none, or nobody can tell."""
    if isinstance(when, (OwnSchedule, _Bounded)):
        return when.dues_between(after, until)
    if isinstance(when, crontab):
        return _of_crontab(when, after, until)
    if isinstance(when, solar):
        return _one_by_one(when, after, until)
    if isinstance(when, schedule):
        return _of_interval(when.run_every, after, until)
    return None


def shortest_gap(when: Any) -> float | None:
    """Return the seconds between two ticks at least, but for changes of the clock; None: there are no two, or nobody can tell."""
    if isinstance(when, OwnSchedule):
        return when.shortest_gap()
    if isinstance(when, crontab):
        return _times(when).shortest_gap()
    return float(when.run_every.total_seconds()) if isinstance(when, schedule) else None


def check_policy(when: Any, policy: Policy, *, owner: str) -> None:
    """Refuse what does not fit a schedule, of whatever kind. Raises ConfigurationError."""
    given = policy.as_keywords()
    for name in sorted(given.keys() & (when.without if isinstance(when, OwnSchedule) else ())):
        raise refusal(f"{name} of {owner}", given[name], "nothing, for there is one tick")
    policy.check(lambda: shortest_gap(when), owner=owner, is_interval=isinstance(when, schedule))


# -- Celery's ----------------------------------------------------------------------------------------------------------


def _of_interval(every: timedelta, after: datetime, until: datetime) -> Dues | None:
    count = (until - after) // every if every > timedelta(0) else 0
    return Dues(count, after + count * every) if count > 0 else None


def _of_crontab(when: crontab, after: datetime, until: datetime) -> Dues | None:
    times = _times(when)
    end = _shown(when, until, SECOND) + 1
    count = times.count(_shown(when, after, SECOND) + 1, end)
    last = _of_clock(when, times.previous(end)) if count else None
    return None if last is None else Dues(count, last)


def _times(when: crontab) -> WallTimes:
    days = (when.month_of_year, when.day_of_month, when.day_of_week)
    return _wall_times(*map(frozenset, (when.hour, when.minute, *days)))


@lru_cache(maxsize=256)
def _wall_times(
    hours: frozenset[int],
    minutes: frozenset[int],
    months: frozenset[int],
    days: frozenset[int],
    weekdays: frozenset[int],
) -> WallTimes:
    def has(day: date) -> bool:
        return day.day in days and day.isoweekday() % 7 in weekdays

    each = len(months) == 12 and len(days) == 31 and len(weekdays) == 7  # noqa: PLR2004  all of them
    return WallTimes(hours, minutes, (0,), months, None if each else has)


def _shown(when: crontab, at: datetime, unit: timedelta) -> int:
    """What the clock of its zone shows at a moment, as seconds since 1970."""
    return (at.astimezone(when.tz).replace(tzinfo=None) - BEGINNING) // unit


def _of_clock(when: crontab, shown: int | None) -> datetime | None:
    return None if shown is None else (BEGINNING + shown * SECOND).replace(tzinfo=when.tz)


def _one_by_one(when: Any, after: datetime, until: datetime) -> Dues | None:
    """Count a few a day: sunrise, and its like."""
    count, at = 0, after
    for due in _of_sun(when, after, until):
        count, at = count + 1, due
    return Dues(count, at) if count else None


def _last_of_sun(when: Any, before: datetime) -> datetime | None:
    for days in SOME_DAYS:
        last = None
        for due in _of_sun(when, before - timedelta(days=days), before):
            last = due if due < before else last
        if last is not None:
            return last
    return None


def _of_sun(when: Any, after: datetime, until: datetime) -> Iterator[datetime]:
    at = after
    while True:
        try:
            following = at + _until_next(when, at)
        except Exception:  # noqa: BLE001  the sun does not rise there just now (celery 5.7, schedules.py)
            return
        if not at < following <= until:
            return
        yield following
        at = following


def _until_next(when: Any, at: datetime) -> timedelta:
    """The time from a moment to the next tick: Celery counts it from its own now."""
    now = when.maybe_make_aware(when.now())
    left: timedelta = now + when.remaining_estimate(at) - at
    return left

"""The times of a wall clock, whatever its zone: those of a cron expression, as seconds that its clock has shown since 1970.

Promises: no search costs more than the days that it goes through, and none goes through more than forty years.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from calendar import monthrange
from collections.abc import Callable, Collection
from datetime import date
from functools import lru_cache
from itertools import pairwise
from typing import Final

__all__ = ["DAY", "WallTimes"]

HOUR: Final = 3600
DAY: Final = 24 * HOUR

#: The 29th of February is eight years from the next one at most, and its weekday 40.
DAYS_AT_MOST: Final = 40 * 366

#: Days are counted from the first of January 1970, which is this one for ``date.toordinal``.
EPOCH: Final = date(1970, 1, 1).toordinal()

#: A day from which on it is tried whether there are any.
SOME_DAY: Final = date(2000, 1, 1).toordinal() - EPOCH


class WallTimes:
    """The same times on each of some days. ``has`` tells whether a day of one of the ``months`` is one; None: each is."""

    def __init__(
        self,
        hours: Collection[int],
        minutes: Collection[int],
        seconds: Collection[int],
        months: Collection[int],
        has: Callable[[date], bool] | None,
    ) -> None:
        self._hours: Final = tuple(sorted(hours))
        #: the seconds of an hour of these
        self._in_hour: Final = _in_hour(frozenset(minutes), frozenset(seconds))
        self._months: Final = frozenset(months)
        self._has = has

    def next(self, after: int) -> int | None:
        """Return the first time after another; None: there is none."""
        day, second = divmod(after, DAY)
        if self._is_on(day) and (found := self._first(second)) is not None:
            return day * DAY + found
        following = self._day_from(day + 1, 1)
        return None if following is None else following * DAY + self._hours[0] * HOUR + self._in_hour[0]

    def previous(self, before: int) -> int | None:
        """Return the last time before another; None: there is none."""
        day, second = divmod(before, DAY)
        if self._is_on(day) and (found := self._last(second)) is not None:
            return day * DAY + found
        earlier = self._day_from(day - 1, -1)
        return None if earlier is None else earlier * DAY + self._hours[-1] * HOUR + self._in_hour[-1]

    def count(self, first: int, end: int) -> int:
        """Count the times from one on, and before another."""
        if end <= first:
            return 0
        (day, second), (last, rest) = divmod(first, DAY), divmod(end, DAY)
        days = last - day if self._has is None else sum(map(self._is_on, range(day, last)))
        before = self._number(second) if self._is_on(day) else 0
        after = self._number(rest) if self._is_on(last) else 0
        return days * len(self._hours) * len(self._in_hour) - before + after

    def is_empty(self) -> bool:
        """Whether there is no such day at all."""
        return self._day_from(SOME_DAY, 1) is None

    def shortest_gap(self) -> int | None:
        """Return the seconds between two times at least; None: there are no two."""
        gaps = [other - one for one, other in pairwise(self._in_hour)]
        over = self._in_hour[0] - self._in_hour[-1]
        gaps += [(other - one) * HOUR + over for one, other in pairwise(self._hours)]
        days = self._shortest_gap_of_days()
        if days is not None:
            gaps.append(days * DAY + (self._hours[0] - self._hours[-1]) * HOUR + over)
        return min(gaps, default=None)

    # -- of a day, in its seconds ----------------------------------------------------------------------------------------

    def _first(self, after: int) -> int | None:
        hour, second = divmod(after, HOUR)
        at = bisect_left(self._hours, hour)
        if at < len(self._hours) and self._hours[at] == hour:
            number = bisect_right(self._in_hour, second)
            if number < len(self._in_hour):
                return hour * HOUR + self._in_hour[number]
            at += 1
        return self._hours[at] * HOUR + self._in_hour[0] if at < len(self._hours) else None

    def _last(self, before: int) -> int | None:
        hour, second = divmod(before, HOUR)
        at = bisect_left(self._hours, hour)
        if at < len(self._hours) and self._hours[at] == hour:
            number = bisect_left(self._in_hour, second)
            if number:
                return hour * HOUR + self._in_hour[number - 1]
        return self._hours[at - 1] * HOUR + self._in_hour[-1] if at else None

    def _number(self, before: int) -> int:
        hour, second = divmod(before, HOUR)
        at = bisect_left(self._hours, hour)
        is_one = at < len(self._hours) and self._hours[at] == hour
        return at * len(self._in_hour) + (bisect_left(self._in_hour, second) if is_one else 0)

    # -- days, counted from 1970 -----------------------------------------------------------------------------------------

    def _is_on(self, day: int) -> bool:
        if self._has is None:
            return True
        this = date.fromordinal(EPOCH + day)
        return this.month in self._months and self._has(this)

    def _day_from(self, day: int, step: int) -> int | None:
        """The first of the days from one on, forward or backward."""
        if self._has is None:
            return day
        end = day + step * DAYS_AT_MOST
        while day * step < end * step and 1 <= EPOCH + day <= date.max.toordinal():
            this = date.fromordinal(EPOCH + day)
            if this.month not in self._months:
                day += monthrange(this.year, this.month)[1] - this.day + 1 if step > 0 else -this.day
            elif self._has(this):
                return day
            else:
                day += step
        return None

    def _shortest_gap_of_days(self) -> int | None:
        if self._has is None:
            return 1
        gaps: list[int] = []
        last, day = None, self._day_from(SOME_DAY, 1)
        while day is not None and day < SOME_DAY + DAYS_AT_MOST and gaps[-1:] != [1]:
            if last is not None:
                gaps.append(day - last)
            last, day = day, self._day_from(day + 1, 1)
        return min(gaps, default=None)


@lru_cache(maxsize=256)
def _in_hour(minutes: frozenset[int], seconds: frozenset[int]) -> tuple[int, ...]:
    return tuple(minute * 60 + second for minute in sorted(minutes) for second in sorted(seconds))

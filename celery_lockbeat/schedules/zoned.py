"""When a cron expression is due in a zone whose clocks are changed: from the times of a wall clock to moments.

Promises, over each change: a time that the clock leaves out is due once, at the first moment after the gap; one that it shows
twice is due once, when it is shown first. An expression with ``*`` or a step in the hours goes by the time that passes instead: it
is due whenever the clock shows one of its times, and, for what the clock leaves out, when a watch shows it that is not yet set. So
``*/15 * * * *`` has neither a hole nor a double, and ``0 */2 * * *`` is due after two hours at most.

A time is reached at the first moment at which the clock shows it or a later one: that is the whole of the first rule. A zone is
only asked for its offset at a moment, which every kind of tzinfo can tell, and never for the moment of a time. Moments are whole
seconds since 1970, UTC; between two changes of the clock its times are the moments plus the offset.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone, tzinfo
from typing import Final

from celery_lockbeat.schedules.wall import DAY, WallTimes

__all__ = ["Clock", "Zoned"]

#: No zone changes its clocks twice in so many seconds.
WEEK: Final = 7 * DAY

#: Seconds: with more a zone has left out a day, as Samoa has, which moved over the date line, and no hour of a day.
LONGEST_GAP: Final = DAY // 4


class Clock:
    """What the clocks of a zone show."""

    def __init__(self, zone: tzinfo) -> None:
        self.zone: Final = zone
        self._is_fixed = isinstance(zone, timezone)

    def offset(self, at: int) -> int:
        """Return by how many seconds they are ahead of UTC at a moment."""
        offset = datetime.fromtimestamp(at, self.zone).utcoffset()
        return 0 if offset is None else offset.days * DAY + offset.seconds

    def first_change(self, low: int, high: int, offset: int) -> int | None:
        """Return the first moment after ``low``, and until ``high``, with another offset than the one at ``low``."""
        if self._is_fixed:
            return None
        while low < high:
            end = min(low + WEEK, high)
            if self.offset(end) != offset:
                while end - low > 1:
                    middle = (low + end) // 2
                    low, end = (middle, end) if self.offset(middle) == offset else (low, middle)
                return end
            low = end
        return None

    def last_change(self, low: int, high: int, offset: int) -> int | None:
        """Return the last moment after ``low``, and until ``high``, since which there is the offset at ``high``."""
        if self._is_fixed:
            return None
        while low < high:
            begin = max(high - WEEK, low)
            if self.offset(begin) != offset:
                while high - begin > 1:
                    middle = (begin + high) // 2
                    begin, high = (begin, middle) if self.offset(middle) == offset else (middle, high)
                return high
            high = begin
        return None


class Zoned:
    """The times of an expression in a zone. ``passes``: it goes by the time that passes."""

    def __init__(self, times: WallTimes, zone: tzinfo, *, passes: bool) -> None:
        self.zone: Final = zone
        self._clock = Clock(zone)
        self._times = times
        self._passes = passes

    def after(self, at: int) -> int | None:
        """Return the first moment after another at which it is due; None: there is none in forty years."""
        due = self._shown_after(at)
        return due if due is None else next(self._left_out(at, due), due)

    def before(self, at: int) -> int | None:
        """Return the last moment before another at which it was due; None: there is none in forty years."""
        due = self._shown_before(at)
        return due if due is None else max(self._left_out(due, at), default=due)

    def count(self, after: int, until: int) -> int:
        """Count the moments after one and until another at which it is due."""
        return self._count_shown(after, until) + sum(1 for _ in self._left_out(after, until + 1))

    def _left_out(self, after: int, before: int) -> Iterator[int]:
        """The moments between two at which it is due by a watch that is not yet set, for so long as the clock was put forward by."""
        low = after - LONGEST_GAP
        offset = self._clock.offset(low) if self._passes else 0
        while self._passes and (change := self._clock.first_change(low, before - 1, offset)) is not None:
            ahead = self._clock.offset(change) - offset
            end = change + offset + ahead if 0 < ahead <= LONGEST_GAP else 0
            wall = self._times.next(max(change - 1, after) + offset)
            while wall is not None and wall < min(end, before + offset):
                # where the clock shows one of its times, too, it is due by that
                if self._times.next(wall + ahead - 1) != wall + ahead:
                    yield wall - offset
                wall = self._times.next(wall)
            low, offset = change, offset + ahead

    # -- by what the clock shows ---------------------------------------------------------------------------------------

    def _shown_after(self, at: int) -> int | None:
        offset = self._clock.offset(at)
        low = self._shown_until(at, offset)
        while True:
            wall = self._times.next(low)
            if wall is None:
                return None
            due, change = wall - offset, None
            if due - at > WEEK:
                # until shortly before it nothing is due, but for what the clock may show once more, at once
                change = self._clock.first_change(at, at + DAY, offset) if self._passes else None
                if change is None:
                    at = due - 2 * DAY
                    offset = self._clock.offset(at)
                    due = wall - offset
            change = change or self._clock.first_change(at, due, offset)
            if change is None:
                return due
            was, offset = change + offset, self._clock.offset(change)
            shows = change + offset
            if not self._passes and was <= wall < shows:
                return change
            low = (shows if self._passes else max(was, shows)) - 1
            at = change

    def _shown_before(self, at: int) -> int | None:
        offset = self._clock.offset(at - 1)
        high = at + offset
        while True:
            wall = self._times.previous(high)
            if wall is None:
                return None
            due, change = wall - offset, None
            if at - due > WEEK:
                change = self._clock.last_change(at - DAY, at - 1, offset)
                if change is None:
                    at = due + 2 * DAY
                    offset = self._clock.offset(at - 1)
                    due = wall - offset
            change = change or self._clock.last_change(due, at - 1, offset)
            if change is None:
                change = None if self._passes else self._showing_again(wall, due, offset)
                if change is None:
                    return due
            shows, offset = change + offset, self._clock.offset(change - 1)
            high = change + offset  # what the clock would have shown then, had it not been changed
            if not self._passes and high <= wall < shows:
                return change
            at = change

    def _count_shown(self, after: int, until: int) -> int:
        offset = self._clock.offset(after)
        low, count = self._shown_until(after, offset) + 1, 0
        while (change := self._clock.first_change(after, until, offset)) is not None:
            was = change + offset
            count += self._times.count(low, was)
            after, offset = change, self._clock.offset(change)
            shows = change + offset
            if self._passes:
                low = shows
                continue
            low = max(low, was, shows)
            # all that is left out is due at once, with what the clock shows then
            if self._times.count(was, shows) and not self._times.count(shows, shows + 1):
                count += 1
        return count + self._times.count(low, until + offset + 1)

    # -- the zone --------------------------------------------------------------------------------------------------------

    def _shown_until(self, at: int, offset: int) -> int:
        """The last time that is over: what the clock has shown, and will show again, counts no more."""
        if self._passes or (earlier := self._clock.offset(at - DAY)) <= offset:
            return at + offset
        change = self._clock.last_change(at - DAY, at, offset)
        return max(at + offset, (change or at) + earlier - 1)

    def _showing_again(self, wall: int, due: int, offset: int) -> int | None:
        """When the clock was put back, if it shows at a moment what it has shown before."""
        if (earlier := self._clock.offset(due - DAY)) <= offset:
            return None
        change = self._clock.last_change(due - DAY, due, offset)
        return change if change is not None and wall < change + earlier else None

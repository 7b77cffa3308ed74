"""Cron expressions: what is read, and what it says.

Promises: an expression that is wrong is a ConfigurationError that names the field, its value and what is allowed; so is one that
no date ever has. ``H`` is the same number for the same name in all processes and releases.

The fields are read, and days told, by cronsim: as Debian's cron does it (a day of the month OR of the week, unless one of the two
begins with ``*``), in small code that is kept by one who watches other people's crons with it. What it lacks is done here: ``H``,
``L-3``, long names, and ranges that go round (``fri-mon``), which Celery takes. Its search for the next moment is not used: it
steps from minute to minute, and has cron's rules over a change of the clock for five fields only; see zoned.py. croniter reads as
much, but it runs what is due at 02:30 twice when the clock repeats that hour, takes some three times as long, was given up by
its author in 2025, and its new keepers have changed what expressions mean (``59/1``, ``H/60``). Celery's own parser has no seconds, no ``L``, no ``#``, and an AND of days.
"""

from __future__ import annotations

import hashlib
import re
from calendar import monthrange
from datetime import date, datetime
from typing import Any, Final, NamedTuple

from celery.schedules import ParseException, crontab
from cronsim import CronSim, CronSimError

from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.schedules.wall import WallTimes

__all__ = ["Expression"]

ALIASES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

MONTH_NAMES: Final = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
DAY_NAMES: Final = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")

#: The days of each month, at most.
DAYS: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


class _Field(NamedTuple):
    """A field: its numbers, the last one of a range that goes round and of H, its names in their order, and what is allowed."""

    name: str
    low: int
    high: int
    last: int
    hashed: int
    names: tuple[str, ...]
    allowed: str


FIELDS: Final = (
    _Field("second", 0, 59, 59, 59, (), "0-59"),
    _Field("minute", 0, 59, 59, 59, (), "0-59"),
    _Field("hour", 0, 23, 23, 23, (), "0-23"),
    # each month has a 28th
    _Field("day_of_month", 1, 31, 31, 28, (), "1-31, L (the last), L-3, LW"),
    _Field("month_of_year", 1, 12, 12, 12, MONTH_NAMES, "1-12 or jan-dec"),
    _Field("day_of_week", 0, 7, 6, 6, DAY_NAMES, "0-6 or sun-sat, 5#2, 5L"),
)
HOUR, DAY_OF_MONTH, DAY_OF_WEEK = 2, 3, 5

#: Celery takes these, too; cronsim takes three letters.
_LONG_NAME: Final = re.compile(
    r"(?<![A-Z])(?:SUNDAY|MONDAY|TUESDAY|WEDNESDAY|THURSDAY|FRIDAY|SATURDAY"
    r"|JANUARY|FEBRUARY|MARCH|APRIL|JUNE|JULY|AUGUST|SEPTEMBER|OCTOBER|NOVEMBER|DECEMBER)"
)
_H: Final = re.compile(r"(?<![A-Z])H(?![A-Z])")
_HASHED: Final = re.compile(r"H(?:\((\d{1,9})-(\d{1,9})\))?(?:/(\d{1,9}))?")
_RANGE: Final = re.compile(r"(\d{1,9}|[A-Z]{3})-(\d{1,9}|[A-Z]{3})(?:/(\d{1,9}))?", re.ASCII)
_BEFORE_LAST: Final = re.compile(r"L-(\d{1,2})", re.ASCII)
_LAST_OF_NAME: Final = re.compile(r"([A-Z]{3})L")


class Expression:
    """A cron expression. ``name`` decides what ``H`` stands for; without one the expression itself does."""

    def __init__(self, text: Any, *, owner: str, name: str | None = None) -> None:
        given = _split(text, owner)
        self.text: Final[str] = " ".join(text.split())
        fields = [_upper(field) for field in given]
        #: whether H stands in it, so that the name counts
        self.is_hashed: Final = any(_H.search(field) for field in fields)
        #: whether it goes by the time that passes: by * or a step in the hours
        self.passes: Final = "*" in fields[HOUR] or "/" in fields[HOUR]
        reading = _Reading(self.text, owner, self.text if name is None else name)
        read = [reading.read(*each) for each in zip(FIELDS, given, fields, strict=True)]
        self._before_last: Final = frozenset(reading.before_last)
        self._names_days: Final = read[DAY_OF_MONTH] != ""
        wrong = f"the expression of {owner} is {text!r}"
        self._read: Final = _parsed([field or "1" for field in read], wrong, "a date that there is")
        #: equal for two that say the same
        self.value: Final = (*read, *sorted(self._before_last), self.passes)
        numbers = [day for day in self._read.days if day > 0]
        has = None if read[DAY_OF_MONTH:] == ["*", "*", "*"] else self._has
        sets = self._read
        self.times: Final = WallTimes(sets.hours, sets.minutes, sets.seconds, sets.months, has)
        is_none = bool(numbers) and min(numbers) > max(DAYS[month - 1] for month in sets.months)
        if is_none or self.times.is_empty():
            raise ConfigurationError(f"{wrong}; allowed: a date that there is")

    @property
    def celerys(self) -> crontab | None:
        """The same as a crontab of Celery's; None: that cannot say it."""
        read = self._read
        weekdays = {day % 7 for day in read.weekdays if isinstance(day, int)}
        if read.seconds != {0} or self._before_last or not read.day_and or len(weekdays) < len(read.weekdays - {7}):
            return None
        minute, hour, day_of_month, month, day_of_week = (str(each).lower() for each in self.value[1 : len(FIELDS)])
        if "*" not in day_of_week and "7" in day_of_week:  # it is Sunday, too
            day_of_week = ",".join(map(str, sorted(weekdays)))
        try:
            same = crontab(minute, hour, day_of_week, day_of_month, month)
        except (ParseException, ValueError):
            return None
        theirs = (same.minute, same.hour, same.day_of_week, same.day_of_month, same.month_of_year)
        return same if theirs == (read.minutes, read.hours, weekdays, read.days, read.months) else None

    def _has(self, day: date) -> bool:
        if not self._before_last:
            return self._read.match_day(day)
        left = monthrange(day.year, day.month)[1] - day.day
        by_month = left in self._before_last or (self._names_days and self._read.match_dom(day))
        by_week = self._read.match_dow(day)
        return (by_month and by_week) if self._read.day_and else (by_month or by_week)


# -- reading -----------------------------------------------------------------------------------------------------------


def _split(text: Any, owner: str) -> list[str]:
    """The six fields of an expression."""
    known = ALIASES.get(text.strip().lower(), text) if isinstance(text, str) else ""
    fields = known.split()
    if len(fields) == len(FIELDS):
        return fields
    if len(fields) == len(FIELDS) - 1:
        return ["0", *fields]
    hint = f" (write {owner}('0 * * * *'))" if callable(text) else ""
    five = f"five fields, {' '.join(field.name for field in FIELDS[1:])}, as in '0 * * * *'{hint}"
    allowed = f"{five}; six, of which the first are the seconds; {', '.join(ALIASES)}"
    raise ConfigurationError(f"the expression of {owner} is {text!r}; allowed: {allowed}")


def _upper(field: str) -> str:
    return _LONG_NAME.sub(lambda found: found[0][:3], field.upper())


class _Reading:
    """Turns the fields of one expression into what cronsim reads."""

    def __init__(self, text: str, owner: str, seed: str) -> None:
        self._text = text
        self._owner = owner
        self._seed = seed
        #: days of a month, counted from its last
        self.before_last: set[int] = set()

    def read(self, field: _Field, given: str, value: str) -> str:
        """Read a field; "" where it is all of what cronsim does not know. Raises ConfigurationError."""
        wrong = f"{field.name} of {self._owner} is {given!r} (in {self._text!r}"
        allowed = f"{field.allowed}, *, H, lists, ranges and steps"
        terms = []
        for term in value.split(","):
            found = _BEFORE_LAST.fullmatch(term) if field.name == "day_of_month" else None
            if found is not None and int(found[1]) < field.high:
                self.before_last.add(int(found[1]))
            elif (plain := self._plain(field, term)) is not None:
                terms.append(plain)
            else:
                raise ConfigurationError(f"{wrong}); allowed: {allowed}")
        read = ",".join(terms)
        if read:
            alone = [read if each is field else "*" for each in FIELDS]
            _parsed(alone, wrong, allowed)
        return read

    def _plain(self, field: _Field, term: str) -> str | None:
        """A term without what cronsim does not know; None: it is wrong."""
        if _H.search(term):
            return self._hashed(field, term)
        if found := _RANGE.fullmatch(term):
            return _range(field, term, found[1], found[2], found[3])
        if found := _LAST_OF_NAME.fullmatch(term):
            return f"{field.names.index(found[1])}L" if found[1] in field.names else None
        return term

    def _hashed(self, field: _Field, term: str) -> str | None:
        found = _HASHED.fullmatch(term)
        if found is None:
            return None
        low, high = (field.low, field.hashed) if found[1] is None else (int(found[1]), int(found[2]))
        size = high - low + 1
        step = size if found[3] is None else int(found[3])
        if not field.low <= low <= high <= field.last or not 1 <= step <= size:
            return None
        text = f"{self._seed}\0{field.name}".encode("utf-8", "surrogatepass")
        first = low + int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") % step
        return ",".join(map(str, range(first, high + 1, step)))


def _range(field: _Field, term: str, first: str, last: str, step: str | None) -> str:
    """A range as cronsim has it. Celery's may go round: from Friday to Monday."""
    low, high = (_number(field, first), _number(field, last))
    if low is None or high is None or step == "0":
        return term
    if low == high:
        return str(low)  # with a step, cronsim would go on until the field's last
    if low < high:
        return term
    around = [*range(low, field.last + 1), *range(field.low, high + 1)]
    return ",".join(map(str, around[:: int(step or 1)]))


def _number(field: _Field, text: str) -> int | None:
    if text in field.names:
        return field.names.index(text) + field.low
    return int(text) if text.isdigit() and field.low <= int(text) <= field.high else None


def _parsed(fields: list[str], wrong: str, allowed: str) -> CronSim:
    try:
        return CronSim(" ".join(fields), datetime(2000, 1, 1))  # noqa: DTZ001  no zone's
    except (CronSimError, ValueError, TypeError, AssertionError) as exc:
        raise ConfigurationError(f"{wrong}: {exc}); allowed: {allowed}") from exc

"""The ledger of the ticks: each that was due is published or missed, and the numbers of the runs have no hole.

Promises: what the journal cannot know, for its records were dropped or are older than it reaches, is counted as unknown and is
no gap. Where moments are given at which entries were due, they are counted by themselves, and compared. Two readings of the same
records give the same ledger.

Not promised: that a run which has begun and has no end is still going on.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone, tzinfo
from itertools import pairwise
from typing import Any, Final, NamedTuple

from celery_lockbeat.journal.records import Record
from celery_lockbeat.journal.ticks import OUTCOMES, Tick, counted

__all__ = ["Account", "Calendar", "Counted", "Gap", "Hole", "Ledger", "audit", "holes_of"]

#: Seconds by which a tick may differ from its moment in the calendar.
SLACK: Final = timedelta(seconds=5)

#: Seconds by which clocks of hosts may differ, for a tick that looks as if it were of another time.
SKEW: Final = timedelta(seconds=60)

#: Over so short a time a change of the clock counts for much.
DAY: Final = timedelta(hours=25)

LOST: Final = (
    "claimed, and nobody has recorded what became of it (a beat that is killed takes a second of its records along)"
)
SILENT: Final = "due, and no beat has published it or said that it is missed"


@dataclass(frozen=True, slots=True)
class Gap:
    """Ticks that were due, and of which nobody can say what became of them."""

    entry: str
    #: between these two moments
    first: datetime
    last: datetime
    count: int
    why: str


@dataclass(frozen=True, slots=True)
class Hole:
    """Numbers of runs, from ``first`` to ``last``, that are in no record; and the ticks on both sides."""

    first: int
    last: int
    before: Tick
    after: Tick

    @property
    def count(self) -> int:
        """How many they are."""
        return self.last - self.first + 1


class Calendar(NamedTuple):
    """When an entry is due: ``dues(after, until)`` counts, and gives the last.

    ``by_the_clock``: at moments of the wall clock, not so long after the one before. ``text`` is what its user wrote. A tick may be
    ``put_off`` by less than that, and after ``max_runs`` there are no more.
    """

    dues: Callable[[datetime, datetime], tuple[int, datetime] | None]
    by_the_clock: bool
    text: str
    put_off: timedelta = timedelta(0)
    max_runs: int | None = None


class Counted(NamedTuple):
    """What the store knows of an entry: its last run's number and time, and how many claims wait to be published."""

    runs: int
    last: datetime | None
    pending: int


@dataclass(slots=True)
class Account:
    """The ticks of one entry by what became of them; ``unknown``: the journal cannot know."""

    entry: str
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    waiting: int = 0
    unknown: int = 0
    gaps: list[Gap] = field(default_factory=list)

    @property
    def due(self) -> int:
        """All of them."""
        return sum(self.counts.values()) + self.waiting + self.unknown + self.unaccounted

    @property
    def unaccounted(self) -> int:
        """Those in gaps."""
        return sum(gap.count for gap in self.gaps)

    def fields(self) -> dict[str, Any]:
        """Return it as JSON can write it."""
        more = {"waiting": self.waiting, "unknown": self.unknown, "unaccounted": self.unaccounted}
        return {"entry": self.entry, "due": self.due, **self.counts, **more}


@dataclass(slots=True)
class Ledger:
    """The accounts of all entries, and what is to be known of them."""

    accounts: list[Account]
    #: what the journal does not know, and from when until when
    blind: list[tuple[datetime, datetime, str]]
    #: what was due later is not in it
    until: datetime

    @property
    def gaps(self) -> list[Gap]:
        """All gaps, in the order of time."""
        return sorted((gap for each in self.accounts for gap in each.gaps), key=lambda gap: (gap.first, gap.entry))


def audit(
    ticks: Sequence[Tick],
    records: Sequence[Record],
    *,
    since: datetime,
    until: datetime,
    silence: timedelta = timedelta(0),
    reach: datetime | None = None,
    calendars: Mapping[str, Calendar] | None = None,
    stored: Mapping[str, Counted] | None = None,
) -> Ledger:
    """Audit what was due between two moments, of ``ticks`` and the ``records`` that they are made of.

    ``reach``: the time of the journal's oldest record. ``until`` is some seconds ago at least, so that all of it is written,
    and what was due in the last ``silence`` before it may yet come.
    """
    calendars, stored = calendars or {}, stored or {}
    blind = list(_blind(records))
    by_entry: dict[str, list[Tick]] = defaultdict(list)
    for tick in ticks:
        if tick.entry is not None:
            by_entry[tick.entry].append(tick)
    start = since if reach is None else max(since, reach)
    accounts = []
    for entry in sorted({*by_entry, *calendars}):
        known = _Known(blind, calendars.get(entry), stored.get(entry))
        one = _Audit(entry, by_entry.get(entry, []), start, until, silence, known)
        account = one.account()
        if account.due:
            accounts.append(account)
    return Ledger(accounts, [each for each in blind if each[1] >= since], until)


def _blind(records: Sequence[Record]) -> Iterator[tuple[datetime, datetime, str]]:
    for before, record in pairwise([None, *records]):
        if record is None:
            continue
        if record.event == "records_dropped":
            since = record.started or datetime.min.replace(tzinfo=record.at.tzinfo)
            what = f"{record.count or 'some'} records were dropped by {record.hostname or 'somebody'}, whose store was away"
            yield since, record.at, what
        elif record.event == "unreadable":
            yield (before.at if before else record.at) - SLACK, record.at + SLACK, "a record cannot be read"


class _Known(NamedTuple):
    """What is known beside the ticks of an entry."""

    blind: Sequence[tuple[datetime, datetime, str]]
    calendar: Calendar | None
    stored: Counted | None


class _Audit:
    """Of one entry."""

    def __init__(
        self, entry: str, ticks: Sequence[Tick], since: datetime, until: datetime, silence: timedelta, known: _Known
    ) -> None:
        self._entry = entry
        self._ticks = sorted(ticks, key=lambda tick: tick.at)
        self._since = since
        self._until = until
        self._silence = silence
        self._blind, self._calendar, self._stored = known
        self._account = Account(entry)
        self._pending = self._stored.pending if self._stored is not None else 0
        #: times in which ticks are known to be missing, and how many
        self._missing: list[tuple[datetime, datetime, int]] = []

    def account(self) -> Account:
        self._account.counts.update(counted(tick for tick in self._ticks if self._since <= tick.at <= self._until))
        for hole in holes_of(self._ticks):
            first, last = sorted((hole.before.at, hole.after.at))
            which = f"run {hole.first}" if hole.count == 1 else f"runs {hole.first} to {hole.last}"
            self._lack(first, last, hole.count, f"{which}: {LOST}", recorded=_recorded(hole.after) or last)
        self._count_the_last()
        if self._calendar is not None:
            self._compare(self._calendar)
        return self._account

    def _lack(self, first: datetime, last: datetime, count: int, why: str, recorded: datetime) -> None:
        """Note that ticks are lacking: a gap, if the journal must have them."""
        self._missing.append((first, last, count))
        if last < self._since or first > self._until or recorded > self._until:
            return
        waiting = min(self._pending, count)
        self._pending -= waiting
        self._account.waiting += waiting
        count -= waiting
        if not count:
            return
        written = max(last, recorded)
        if any(since - written <= SLACK and first - until <= SLACK for since, until, _ in self._blind):
            self._account.unknown += count
        else:
            self._account.gaps.append(Gap(self._entry, first, last, count, why))

    def _count_the_last(self) -> None:
        """Compare the last number with what the store has."""
        stored, numbered = self._stored, [tick for tick in self._ticks if tick.run is not None]
        if stored is None or stored.last is None or not numbered or stored.last > self._until:
            return
        newest = max(numbered, key=lambda tick: tick.run or 0)
        # runs that are known by their tasks alone have no number
        unnumbered = sum(tick.run is None and not tick.is_missed and tick.at > newest.at for tick in self._ticks)
        count = stored.runs - (newest.run or 0) - unnumbered
        if count > 0 and stored.last >= newest.at:
            why = f"{'run' if count == 1 else 'runs up to'} {stored.runs}: {LOST}"
            self._lack(newest.at, stored.last, count, why, recorded=stored.last)

    # -- the calendar --------------------------------------------------------------------------------------------------

    def _compare(self, calendar: Calendar) -> None:
        seen = self._ticks
        if calendar.by_the_clock:
            at = self._compare_by_the_clock(calendar)
        else:
            # the next is due so long after the last was published, whenever that was due
            at = max((each for tick in seen for each in (tick.at, _recorded(tick)) if each), default=None)
        if at is None:
            # it may have been due before; how would anybody know, but by what the store has
            if self._stored is None or self._stored.last is None:
                return
            at = max(self._stored.last, self._since)
        runs = 0 if self._stored is None else self._stored.runs
        if calendar.max_runs is None or runs < calendar.max_runs:
            self._expect(calendar, at, self._until - self._silence - calendar.put_off, 0)

    def _compare_by_the_clock(self, calendar: Calendar) -> datetime | None:
        at = self._first_moment()
        for tick in self._ticks:
            due = tick.due
            if due is None or not self._since - DAY <= due <= self._until + DAY:  # garbage may be due in any year
                continue
            if tick.is_missed and tick.run is None:
                if at is not None:
                    self._expect(calendar, at, due, tick.count)
                at = due if at is None else max(at, due)
                continue
            moment = _moment(calendar, due)
            if moment is None:
                # it was asked for by `run`, and handed over to the beats; or its schedule was another one then
                at = at if tick.taken_over else due
                continue
            if at is not None:
                self._expect(calendar, at, moment - timedelta(seconds=1), 0)
            at = moment if at is None else max(at, moment)
        return at

    def _first_moment(self) -> datetime | None:
        """The time from which on all is in the journal, if the entry was there then."""
        numbered = [tick for tick in self._ticks if tick.run is not None]
        earlier = bool(numbered) and min(tick.run or 0 for tick in numbered) > 1
        return self._since if earlier and self._ticks[0].at > self._since else None

    def _expect(self, calendar: Calendar, after: datetime, until: datetime, known: int) -> None:
        """Expect no more ticks between two moments than are known, or known to be missing."""
        if until <= after:
            return
        dues = calendar.dues(after, until)
        if dues is None:
            return
        lacking = sum(n for first, last, n in self._missing if min(last, until) - max(first, after) > SLACK)
        count, last = dues[0] - known - lacking, dues[1]
        if count <= 0 or (until - after < DAY and _offset(until, last.tzinfo) != _offset(after, last.tzinfo)):
            return
        why = f"{SILENT}, by its schedule as it is now, {calendar.text}"
        self._lack(after, last, count, why, recorded=last)


def _offset(at: datetime, zone: tzinfo | None) -> timedelta | None:
    return at.astimezone(zone).utcoffset()


def _moment(calendar: Calendar, due: datetime) -> datetime | None:
    """The moment of the calendar that a tick is of."""
    found = calendar.dues(due - SLACK, due + SLACK)
    # in a zone, a second before may be an hour before
    return None if found is None else found[1].astimezone(timezone.utc)


def _recorded(tick: Tick) -> datetime | None:
    return tick.published or tick.recorded


# -- the numbers -------------------------------------------------------------------------------------------------------


def holes_of(ticks: Sequence[Tick]) -> list[Hole]:
    """Return the holes in the numbers of one entry's runs, as far as nothing else shows that these were published."""
    numbered = sorted((tick for tick in ticks if tick.run is not None), key=lambda tick: _recorded(tick) or tick.at)
    # ticks whose record is lost, and whose runs are not
    spare = sorted(tick.at for tick in ticks if tick.run is None and not tick.is_missed)
    by_run: dict[int, list[Tick]] = defaultdict(list)
    for tick in numbered:
        by_run[tick.run or 0].append(tick)
    numbers, holes = sorted(by_run), []
    for era in _eras(numbered):
        for before, after in pairwise(sorted(era, key=lambda tick: tick.run or 0)):
            for first, last in _lacking(before, after, numbers, by_run):
                hole = _without(spare, Hole(first, last, before, after))
                if hole.count > 0:
                    holes.append(hole)
    return holes


def _eras(ticks: Sequence[Tick]) -> Iterator[list[Tick]]:
    """Divide ticks where their numbers begin anew, as they do in a store that has lost its data."""
    era: dict[int, Tick] = {}
    newest: Tick | None = None
    for tick in ticks:
        number = tick.run or 0
        known = era.get(number)
        begins = newest is not None and number < (newest.run or 0) and tick.at > newest.at
        if begins or (
            known is not None and None not in (known.task_id, tick.task_id) and known.task_id != tick.task_id
        ):
            yield list(era.values())
            era, newest = {}, None
        era[number] = tick
        if newest is None or number > (newest.run or 0):
            newest = tick
    yield list(era.values())


def _lacking(
    before: Tick, after: Tick, numbers: Sequence[int], by_run: Mapping[int, Sequence[Tick]]
) -> Iterator[tuple[int, int]]:
    """Yield the numbers between two ticks that no other tick of that time has."""
    first, end = (before.run or 0) + 1, after.run or 0
    if first >= end:
        return
    earliest, latest = sorted((before.at, after.at))
    between = numbers[bisect_left(numbers, first) : bisect_left(numbers, end)]
    found = [n for n in between if any(earliest - tick.at <= SKEW and tick.at - latest <= SKEW for tick in by_run[n])]
    for number in [*found, end]:
        if first < number:
            yield first, number - 1
        first = number + 1


def _without(spare: list[datetime], hole: Hole) -> Hole:
    """Fill a hole with ticks that are known by their runs alone."""
    earliest, latest = sorted((hole.before.at, hole.after.at))
    at = bisect_left(spare, earliest)
    first = hole.first
    while first <= hole.last and at < len(spare) and spare[at] <= latest:
        del spare[at]
        first += 1
    return replace(hole, first=first)

"""What ``watch`` and the page know: of each entry its last records, when it is due next, and who holds, beats and has said what.

Promises: what is kept is bounded, whatever comes. To take records in costs a little for each; what takes time (joining records to
ticks, finding the next due moment) is done for the rows that are looked at, or once for each tick.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from statistics import median
from typing import Any, Final

from celery_lockbeat.beat.agenda import flag_of
from celery_lockbeat.insight.planned import Plan, Plans
from celery_lockbeat.journal.records import Record
from celery_lockbeat.journal.ticks import Tick, ticks_of
from celery_lockbeat.schedules.policy import Policy
from celery_lockbeat.stores.base import ALIVE, Announcement, Beats, Flag, LiveLock, Replica, Waiter

__all__ = ["SORTS", "Model", "Row", "Share"]

#: Records of an entry that are kept: a tick has three, or some more.
KEPT: Final = 200

#: The newest events, and the newest ticks, of which beats have their share.
EVENTS: Final = 200
SHARED: Final = 1_000

#: By so many of its last ticks the clock of a beat is judged; beats that have gone are forgotten where there were more.
LAST_TICKS: Final = 20
BEATS: Final = 200

#: By what the rows may be sorted.
SORTS: Final = ("name", "next due", "lateness", "last failure")

#: Seconds after which beats are asked for again, mostly.
ASKED_AGAIN: Final = 3.0

#: Seconds by which a tick is due before it is said to be overdue: it is on its way into the journal.
ON_ITS_WAY: Final = 2.0

_FAILURES: Final = frozenset({"failed", "died"})
_LONG_AGO: Final = datetime.min.replace(tzinfo=timezone.utc)
_NEVER: Final = datetime.max.replace(tzinfo=timezone.utc)


class Row:
    """One entry, or a task whose runs no tick has asked for."""

    __slots__ = (
        "_due",
        "_next",
        "_plan",
        "_schedule",
        "_tells_next",
        "_ticks",
        "changed",
        "drawn",
        "flag",
        "flag_name",
        "late",
        "listed",
        "name",
        "records",
        "task",
        "troubled",
    )

    def __init__(self, name: str, task: str | None = None, schedule: Any = None, plan: Plan | None = None) -> None:
        self.name = name
        self.task = task
        self.records: deque[Record] = deque(maxlen=KEPT)
        #: how many beats list it, and by how many seconds its last tick was late
        self.listed = 0
        self.late: float | None = None
        #: when it failed last
        self.troubled: datetime | None = None
        #: the version of the model in which it was last another
        self.changed = 0
        #: what operators want of it, if anything
        self.flag: Flag | None = None
        #: what its flag is called, as far as beats list it
        self.flag_name: str | None = None
        #: what a view has made of it, and of what that was made
        self.drawn: tuple[Any, Any] | None = None
        self._schedule = schedule
        self._plan = Plan(name, schedule) if plan is None else plan
        self._tells_next = schedule is not None
        self._due: datetime | None = None
        self._next: datetime | None = None
        self._ticks: list[Tick] | None = None

    def take(self, record: Record) -> None:
        """Take in a record of it."""
        self.records.append(record)
        self._ticks = None
        self.task = record.task_name or self.task
        if record.status in _FAILURES:
            self.troubled = record.at
        if record.event == "tick_published":
            self.late = record.late
        if record.event in ("tick_published", "tick_missed"):
            self.was_due(record.last_due or record.due)

    def keep(self, task: str, schedule: Any, plan: Plan | None = None) -> bool:
        """Take in what whoever keeps it says of it now, None: nothing any more; False: that is as it was."""
        self.task = task or self.task
        plan = Plan(self.name, schedule) if plan is None else plan
        if _marks_of(schedule) == _marks_of(self._schedule) and plan.policy == self._plan.policy:
            return False
        self._schedule, self._tells_next, self._next = schedule, schedule is not None, None
        self._plan = plan
        return True

    def was_due(self, at: datetime | None) -> None:
        """Note a moment at which it was due."""
        if at is not None and (self._due is None or at > self._due):
            self._due, self._next = at, None

    @property
    def next_due(self) -> datetime | None:
        """When it is due next, or has been since; None: nobody here knows."""
        if self._next is None and self._tells_next and self._due is not None:
            self._next = self._plan.next(self._due)
            # if it does not tell it need not be asked again
            self._tells_next = self._next is not None
        return self._next

    @property
    def schedule(self) -> Any:
        """Its schedule, if this process knows it."""
        return self._schedule

    @property
    def plan(self) -> Plan:
        """When it is due, by its schedule and its policy."""
        return self._plan

    @property
    def is_paused(self) -> bool:
        """Whether its ticks are passed over."""
        return self.flag is not None and self.flag.paused

    def overdue(self, now: datetime) -> float:
        """Seconds by which its next tick is late by now."""
        due = self.next_due if self.listed and not self.is_paused else None
        late = (now - self._plan.fires(due)).total_seconds() if due is not None else 0.0
        return late if late > ON_ITS_WAY else 0.0

    def ticks(self, tells: Callable[[str], bool]) -> list[Tick]:
        """Return what became of its last ticks, oldest first."""
        if self._ticks is None:
            self._ticks = ticks_of(self.records, tells)
        return self._ticks


def _marks_of(when: Any) -> Any:
    # one that is read anew is not equal to what it was: Celery compares their clocks, too
    return type(when), repr(when), str(getattr(when, "tz", None)), getattr(when, "run_every", None)


class Share:
    """A beat, its share of the newest ticks, and the seconds since it was heard of; None: it is none of those that live."""

    def __init__(self, name: str, ticks: int, of: int, silent_for: float | None, entries: int) -> None:
        self.name = name
        self.ticks = ticks
        self.share = ticks / of if of else 0.0
        self.silent_for = silent_for
        self.entries = entries


class Model:
    """All that is known by now. ``tells(task)``: whether the runs of a task are in the journal; ``plans``: their policies, too."""

    def __init__(
        self,
        schedules: Mapping[str, tuple[str, Any]],
        tells: Callable[[str], bool],
        now: datetime,
        plans: Plans | None = None,
    ) -> None:
        self._tells, self._plans = tells, plans
        self._rows = {
            name: Row(name, task, schedule, None if plans is None else plans.of(name, schedule))
            for name, (task, schedule) in schedules.items()
        }
        self._began = now
        self.events: deque[Record] = deque(maxlen=EVENTS)
        self._shares: deque[str] = deque(maxlen=SHARED)
        self._beats: Beats | None = None
        self._beats_at = 0.0
        self._members: Sequence[Announcement] = ()
        #: by how many seconds the clock of a beat was ahead of the store's, at its last ticks
        self._ahead: dict[str, deque[float]] = {}
        self._locks: dict[str, list[LiveLock]] = {}
        self._lines: dict[str, Mapping[str, Sequence[Waiter]]] = {}
        self._locks_at: dict[str, float] = {}
        self.locks: list[LiveLock] = []
        #: of which questions there is no answer, why, and since when
        self.away: dict[str, tuple[str, datetime]] = {}
        #: whether the journal was read up to now
        self.is_read = False
        #: it grows with each change
        self.version = 0
        self._sorted: tuple[Any, list[Row]] = (None, [])

    # -- what comes in -------------------------------------------------------------------------------------------------

    def take_records(self, records: Iterable[Record]) -> None:
        """Take in records, in their order."""
        self.version += 1
        for record in records:
            self.events.append(record)
            if record.event == "tick_published" and record.hostname:
                self._take_publisher(record.hostname, record)
            name = record.entry or record.task_name
            if name is not None:
                if name not in self._rows:
                    self._rows[name] = Row(name)
                self._rows[name].take(record)
                self._rows[name].changed = self.version

    def _take_publisher(self, beat: str, record: Record) -> None:
        self._shares.append(beat)
        if record.due is None or record.late is None:
            return
        if beat not in self._ahead:
            self._ahead[beat] = deque(maxlen=LAST_TICKS)
            if len(self._ahead) > BEATS:
                del self._ahead[next(iter(self._ahead))]
        # a tick has when it was published, by both clocks
        self._ahead[beat].append((record.due - record.at).total_seconds() + record.late)

    def take_beats(
        self,
        beats: Beats,
        names: Mapping[str, str],
        times: Mapping[str, datetime | None],
        flags: Sequence[Flag] = (),
    ) -> None:
        """Take in what the beats know: ``names`` of entries by their keys, ``times`` of their last ticks, and what is wanted of them."""
        wanted = {flag.name: flag for flag in flags}
        self._beats, self._beats_at = beats, time.monotonic()
        self.version += 1
        before = {row: (row.listed, row.next_due, row.flag) for row in self._rows.values()}
        listed = Counter(key for beat in beats.replicas if beat.silent_for < ALIVE for key in beat.entries)
        for row in self._rows.values():
            row.listed, row.flag = 0, wanted.get(row.name)
        for key in listed.keys() | times.keys():
            name = names.get(key, key)
            if not listed[key] and name not in self._rows:
                continue  # it was taken out of the schedule
            if name not in self._rows:
                self._rows[name] = Row(name)
            self._rows[name].listed = max(listed[key], self._rows[name].listed)
            self._rows[name].was_due(times.get(key))
            self._rows[name].flag_name = flag_of(key)
            self._rows[name].flag = wanted.get(flag_of(key), self._rows[name].flag)
        for row in self._rows.values():
            if before.get(row) != (row.listed, row.next_due, row.flag):
                row.changed = self.version

    def take_members(self, members: Sequence[Announcement]) -> None:
        """Take in what beats and workers have announced of themselves."""
        self._members = members
        self.version += 1

    def take_schedules(
        self,
        tasks: Mapping[str, str],
        schedules: Mapping[str, Any],
        policies: Mapping[str, Policy | None] | None = None,
    ) -> None:
        """Take in what RedBeat or Django keep of entries: there anybody may change it at any time."""
        policies = policies or {}
        self.version += 1
        for name in schedules.keys() - self._rows.keys():
            self._rows[name] = Row(name)
        for name, row in self._rows.items():
            when = schedules.get(name)
            plan = None
            if self._plans is not None and when is not None:
                plan = self._plans.of(name, when, policies.get(name))
            if row.keep(tasks.get(name, ""), when, plan):
                row.changed = self.version

    def take_locks(
        self,
        store: str,
        locks: Sequence[LiveLock],
        lines: Mapping[str, Sequence[Waiter]] | None = None,
        at: float | None = None,
    ) -> None:
        """Take in the locks that are held in one store, who waits for some of their keys, and when that was (monotonic; None: now)."""
        self._lines[store] = lines or {}
        self._locks_at[store] = time.monotonic() if at is None else at
        self._locks[store] = sorted(locks, key=lambda lock: lock.key)
        self.locks = [lock for each in self._locks.values() for lock in each]
        self.version += 1

    # -- what is shown -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, name: str) -> Row | None:
        """Return a row by its name."""
        return self._rows.get(name)

    def rows(self, sort: str, containing: str, now: datetime) -> list[Row]:
        """Return the rows whose name or task contains a text, sorted. It costs something only when something has changed."""
        # who is late by now changes by itself
        moment = int(now.timestamp() / 2) if sort == "lateness" else 0
        wanted = self.version, sort, containing, moment
        if self._sorted[0] != wanted:
            part = containing.casefold()
            found = [row for row in self._rows.values() if part in row.name.casefold() or part in (row.task or "")]
            found.sort(key=lambda row: row.name)
            if sort != "name":
                found.sort(key=_BY[sort](now))
            self._sorted = wanted, found
        return self._sorted[1]

    def all_rows(self) -> Iterable[Row]:
        """Return all rows, in no order."""
        return self._rows.values()

    def ticks(self, row: Row) -> list[Tick]:
        """Return what became of the last ticks of a row, oldest first."""
        return row.ticks(self._tells)

    @property
    def knows_beats(self) -> bool:
        """Whether the beats have been asked for."""
        return self._beats is not None

    def shares(self) -> list[Share]:
        """Return the beats that live or have published lately, those with the most ticks first."""
        counts, total = Counter(self._shares), len(self._shares)
        alive = {beat.name: beat for beat in (self._beats.replicas if self._beats else ()) if beat.silent_for < ALIVE}
        shares = [
            Share(
                name,
                counts[name],
                total,
                alive[name].silent_for if name in alive else None,
                len(alive[name].entries) if name in alive else 0,
            )
            for name in {*counts, *alive}
        ]
        return sorted(shares, key=lambda each: (each.silent_for is None, -each.ticks, each.name))

    def replicas(self) -> list[tuple[Replica, float]]:
        """Return the beats, and since how many seconds each is silent by now."""
        # where it takes long to ask again, nobody is said to be gone for that
        since = min(time.monotonic() - self._beats_at, ASKED_AGAIN)
        return [(beat, beat.silent_for + since) for beat in (self._beats.replicas if self._beats else ())]

    def members(self) -> Sequence[Announcement]:
        """Return what beats and workers have announced of themselves."""
        return self._members

    def clock_of(self, beat: str) -> float | None:
        """Return by how many seconds the clock of a beat is ahead of the store's, by its last ticks; None: nobody knows."""
        return median(self._ahead[beat]) if self._ahead.get(beat) else None

    def locks_by_store(self) -> Mapping[str, Sequence[LiveLock]]:
        """Return the locks that are held in each store."""
        return self._locks

    def remaining(self, store: str, lock: LiveLock) -> float:
        """Return the seconds that are left of a lease by now, if it was not renewed since it was looked at."""
        return lock.remaining - (time.monotonic() - self._locks_at.get(store, time.monotonic()))

    def line(self, store: str, key: str) -> Sequence[Waiter]:
        """Return the first of those who wait for a key."""
        return self._lines.get(store, {}).get(key, ())

    def waiting(self) -> tuple[int, int]:
        """Return how many claims wait to be published, and how many of them are overdue."""
        beats = self._beats
        return (sum(entry.pending for entry in beats.entries), beats.overdue) if beats is not None else (0, 0)


def _by_next_due(_now: datetime) -> Callable[[Row], Any]:
    return lambda row: row.next_due or _NEVER


def _by_lateness(now: datetime) -> Callable[[Row], Any]:
    return lambda row: -max(row.late or 0.0, row.overdue(now))


def _by_last_failure(_now: datetime) -> Callable[[Row], Any]:
    return lambda row: _NEVER - (row.troubled or _LONG_AGO)


_BY: Final = {"next due": _by_next_due, "lateness": _by_lateness, "last failure": _by_last_failure}

"""What became of each tick: the records of the journal, joined to ticks and to runs that no tick has asked for.

Promises: a tick that was published twice under one task id is one tick, and all attempts to run it are its own; records
come in any order, doubled, or not at all, and nothing that stands in them raises anything. Nothing is asked of any store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from celery_lockbeat.journal.records import Record

__all__ = ["OUTCOMES", "Attempt", "Tick", "Wait", "ticks_of"]

#: What may become of a tick, or a run. ``published``: its task tells nothing of its runs.
OUTCOMES: Final = (
    "succeeded",
    "failed",
    "skipped",
    "died",
    "running",
    "queued",
    "published",
    "missed",
    "paused",
)

_OUTCOME_OF: Final = {
    "success": "succeeded",
    "failed": "failed",
    "skipped": "skipped",
    "died": "died",
    "running": "running",
    "retry": "queued",
}

#: What happens to a run between its start and its end.
_OF_RUNS: Final = frozenset({"lock_expired_before_finish", "run_overdue"})

#: After these an attempt under the same task id is another run, if it is no tick's and no copy.
_OVER: Final = frozenset({"success", "failed", "skipped"})


@dataclass(slots=True)
class Attempt:
    """One attempt to run a task. ``status`` is that of its records: success, failed, retry, skipped, died or running."""

    execution_id: str | None
    task_id: str | None = None
    task_name: str | None = None
    status: str = "running"
    started: datetime | None = None
    ended: datetime | None = None
    #: seconds that the body took
    took: float | None = None
    worker: str | None = None
    reason: str | None = None
    holder: str | None = None
    #: of one that was skipped: the one that waits in its place
    who: str | None = None
    error: str | None = None
    lock_key: str | None = None
    lock_keys: tuple[str, ...] | None = None
    held_key: str | None = None
    line: str | None = None
    token: int | None = None
    driver: str | None = None
    signal: int | None = None
    #: when its lock was lost while it ran, and why it takes too long
    lost_at: datetime | None = None
    overdue: str | None = None

    @property
    def is_copy(self) -> bool:
        """Whether it was skipped for another attempt of the same task."""
        return self.status == "skipped" and self.reason == "duplicate"

    @property
    def first_seen(self) -> datetime | None:
        """When it began, as far as it is known."""
        return self.started or self.ended


@dataclass(frozen=True, slots=True)
class Wait:
    """That a run waits in line: since when, for which key, who held that, and how many others came before it."""

    since: datetime
    lock_key: str | None
    holder: str | None
    before: int

    def behind(self) -> str:
        """Say for whom it waits."""
        others = {0: "", 1: ", and behind another"}.get(self.before, f", and behind {self.before} others")
        return f"{self.holder or 'another run'}{others}"


@dataclass(slots=True)
class Tick:
    """One tick of an entry and what became of it; without an ``entry``, a run that no tick has asked for.

    Of ticks that were missed together there is one of these: ``count``, the last of which was due at ``due``, all of them
    later than ``due_after``.
    """

    entry: str | None
    task_name: str | None = None
    task_id: str | None = None
    run: int | None = None
    due: datetime | None = None
    due_after: datetime | None = None
    count: int = 1
    #: when it was published first, in whose name each time, and how many seconds late
    published: datetime | None = None
    beats: tuple[str, ...] = ()
    late: float | None = None
    taken_over: bool = False
    #: why it is late or missed
    why: str | None = None
    recorded: datetime | None = None
    attempts: list[Attempt] = field(default_factory=list)
    is_missed: bool = False
    #: why no worker began it in the time that its entry allows
    expired: str | None = None
    #: whether operators wanted it not to be published, and who of them
    is_paused: bool = False
    who: str | None = None
    #: of a tick beside the schedule: manual, backfill or catchup
    kind: str | None = None
    #: whether its task tells of its runs
    tells: bool = True
    #: how its run waited in line last, if it did
    waited: Wait | None = None

    @property
    def last(self) -> Attempt | None:
        """The attempt that counts: one that succeeded, else the last that was no copy of another."""
        if len(self.attempts) <= 1:  # nearly always; it is asked for often
            return self.attempts[0] if self.attempts else None
        real = [each for each in self.attempts if not each.is_copy] or self.attempts
        return next((each for each in real if each.status == "success"), real[-1] if real else None)

    @property
    def waits(self) -> Wait | None:
        """How its run waits in line now; None: it does not, or nothing is told of that."""
        waited, last = self.waited, self.last
        if waited is None or last is None:
            return waited
        # what is to come again waits anew; of all else the run has begun since, or has ended
        before = last.first_seen if last.status in ("retry", "died") else None
        return waited if before is not None and before <= waited.since else None

    @property
    def outcome(self) -> str:
        """One of :data:`OUTCOMES`."""
        if self.is_missed:
            return "paused" if self.is_paused else "missed"
        last = self.last
        if self.waits is not None:
            return "queued"
        if last is not None:
            return _OUTCOME_OF[last.status]
        if self.expired is not None:
            return "missed"
        return "queued" if self.tells else "published"

    @property
    def reason(self) -> str | None:
        """Why it ended so."""
        last, waits = self.last, self.waits
        if waits is not None and not self.is_missed:
            return f"waits in line: {waits.behind()}"
        if last is None or self.is_missed:
            return self.expired or self.why
        if last.status == "retry":
            return f"to be tried again: {last.error}" if last.error else "to be tried again"
        return last.error or last.reason or (last.overdue if last.status == "running" else None)

    @property
    def started(self) -> datetime | None:
        """When the attempt that counts was begun."""
        return None if self.last is None or self.last.status == "skipped" else self.last.started

    @property
    def at(self) -> datetime:
        """Its place in time: when it was due, else when it was first heard of."""
        if self.due is not None:
            return self.due
        times = (self.published, *(each.first_seen for each in self.attempts), self.recorded)
        return next(each for each in times if each is not None)

    def fields(self) -> dict[str, Any]:
        """Return what applies, as JSON can write it: times in ISO 8601, durations in seconds."""
        last, waits = self.last, self.waits
        told: dict[str, Any] = {
            "entry": self.entry,
            "task_name": self.task_name,
            "task_id": self.task_id,
            "outcome": self.outcome,
            "reason": self.reason,
            "run": self.run,
            "due": self.due,
            "due_after": self.due_after,
            "count": self.count if self.is_missed else None,
            "published": self.published,
            "late": self.late,
            "beat": self.beats[-1] if self.beats else None,
            "taken_over": self.taken_over or None,
            "who": self.who,
            "kind": self.kind,
        }
        if last is not None:
            told |= {
                "started": self.started,
                "ended": last.ended,
                "took": last.took,
                "attempts": len([each for each in self.attempts if not each.is_copy]) or 1,
                "worker": last.worker,
                "holder": last.holder,
                "who": last.who or self.who,
                "lock_key": last.lock_key,
                "lock_keys": last.lock_keys and list(last.lock_keys),
                "held_key": last.held_key,
                "line": last.line,
                "token": last.token,
                "lock_lost": last.lost_at,
                "signal": last.signal,
            }
        if waits is not None:
            told |= {
                "waits_since": waits.since,
                "waits_behind": waits.before,
                "holder": waits.holder,
                "lock_key": waits.lock_key,
            }
        return {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in told.items()
            if value is not None
        }


def ticks_of(records: Iterable[Record], tells: Callable[[str], bool] | None = None) -> list[Tick]:
    """Join records, in the order in which they were written; return ticks and runs in the order of time.

    ``tells(task name)``: whether the runs of a task are in the journal, which those of a plain task are not; None: those
    tell of which a run is in ``records``.
    """
    known = list(records)
    join = _Join()
    # a tick may be written after its run: each by a thread of its own
    for take in (join.published, join.missed, join.run, join.waits):
        for record in known:
            take(record)
    ticks = join.ended()
    if tells is None:
        tells = {tick.task_name for tick in ticks if tick.attempts}.__contains__
    for tick in ticks:
        tick.tells = bool(tick.attempts or tick.waited) or (tick.task_name is not None and tells(tick.task_name))
    return ticks


class _Join:
    """Ticks, as records tell of them."""

    def __init__(self) -> None:
        self._ticks: list[Tick] = []
        #: by task id; by entry and time, for an entry may give all its messages one id
        self._by_id: dict[str, Tick] = {}
        self._by_due: dict[tuple[str, datetime], Tick] = {}
        self._missed: set[Any] = set()
        #: runs that no tick has asked for
        self._free: dict[str, Tick] = {}
        self._attempts: dict[str, tuple[Attempt, Tick]] = {}

    # -- ticks ---------------------------------------------------------------------------------------------------------

    def published(self, record: Record) -> None:
        if record.event not in ("tick_published", "tick_late") or record.entry is None:
            return
        tick = self._by_id.get(record.task_id) if record.task_id is not None else None
        if tick is None:
            tick = Tick(record.entry, record.task_name, record.task_id, record.run, record.due, recorded=record.at)
            tick.kind = record.kind
            self._add(tick)
        tick.taken_over = tick.taken_over or bool(record.taken_over)
        if record.event == "tick_late":
            tick.why = record.reason
        if tick.published is None or record.at < tick.published:
            tick.published, tick.late = record.at, record.late
        if record.hostname and record.hostname not in tick.beats:
            tick.beats += (record.hostname,)

    def missed(self, record: Record) -> None:
        if record.event not in ("tick_missed", "tick_paused") or record.entry is None:
            return
        published = self._by_id.get(record.task_id) if record.task_id is not None else None
        if published is not None:
            published.expired = record.reason
            return
        due = record.last_due or record.due
        which = record.entry, record.run, due, record.count
        # who has taken it over may not have known that it was published; or it was made up for, which has no number
        known = self._by_due.get((record.entry, due)) if record.run is not None and due is not None else None
        if known is not None:
            known.run = known.run if known.run is not None else record.run
            return
        if which in self._missed:
            return
        self._missed.add(which)
        beats = (record.hostname,) if record.hostname else ()
        count = record.count if record.count is not None and record.count > 0 else 1
        tick = Tick(record.entry, record.task_name, record.task_id, record.run, due, count=count, beats=beats)
        tick.is_missed, tick.why, tick.recorded, tick.late = True, record.reason, record.at, record.late
        tick.is_paused, tick.who = record.event == "tick_paused", record.who
        tick.due_after = record.due if record.last_due is not None else None
        self._ticks.append(tick)

    def _add(self, tick: Tick) -> None:
        self._ticks.append(tick)
        if tick.task_id is not None:
            self._by_id[tick.task_id] = tick
        if tick.entry is not None and tick.due is not None:
            self._by_due.setdefault((tick.entry, tick.due), tick)

    # -- runs ----------------------------------------------------------------------------------------------------------

    def waits(self, record: Record) -> None:
        if record.event != "task_waiting" or record.task_name is None:
            return
        tick = self._tick_of(record) if record.entry is not None else self._waiting_run_of(record)
        if tick.waited is None or tick.waited.since <= record.at:
            tick.waited = Wait(record.at, record.lock_key, record.holder, max(record.count or 0, 0))

    def run(self, record: Record) -> None:
        if record.status is None and record.event not in _OF_RUNS:
            return
        if record.task_name is None:  # the lock of no task
            return
        attempt = self._attempt(record)
        if record.event == "lock_expired_before_finish":
            attempt.lost_at = record.at
            return
        if record.event == "run_overdue":
            attempt.overdue = record.reason
        started = record.started
        if started is not None and (attempt.started is None or record.event == "task_started"):
            attempt.started = started
        for name in ("lock_key", "lock_keys", "held_key", "line", "token", "driver", "holder", "who", "signal"):
            value = getattr(record, name)
            if value is not None:
                setattr(attempt, name, value)
        attempt.worker = record.hostname or attempt.worker
        if record.status not in (None, "running") and attempt.status in ("running", "died"):
            # the first end counts, but for a child that was taken for dead and told of its end all the same
            self._end(attempt, record)

    def _end(self, attempt: Attempt, record: Record) -> None:
        attempt.status, attempt.ended, attempt.reason = record.status or "running", record.at, record.reason
        if record.duration_ms is not None:
            attempt.took = record.duration_ms / 1000
        attempt.error = ": ".join(each for each in (record.error_name, record.error_message) if each) or None

    def _attempt(self, record: Record) -> Attempt:
        name = record.execution_id or record.task_id or record.position
        if name in self._attempts:
            return self._attempts[name][0]
        attempt = Attempt(record.execution_id, record.task_id, record.task_name)
        tick = self._tick_of(record)
        tick.attempts.append(attempt)
        self._attempts[name] = attempt, tick
        return attempt

    def _tick_of(self, record: Record) -> Tick:
        if record.entry is None:
            return self._run_of(record)
        tick = self._by_id.get(record.task_id or "")
        if tick is None or (tick.due != record.due and None not in (tick.due, record.due)):
            tick = self._by_due.get((record.entry, record.due)) if record.due is not None else tick
        if tick is None:
            # nobody has recorded that it was published
            tick = Tick(record.entry, record.task_name, record.task_id, record.run, record.due, recorded=record.at)
            self._add(tick)
        return tick

    def _run_of(self, record: Record) -> Tick:
        if record.task_id in self._by_id:
            return self._by_id[record.task_id]
        run = self._free.get(_name_of(record))
        again = run is not None and run.attempts[-1].status in _OVER and not _is_copy(record)
        return self._new_run(record) if run is None or again else run

    def _waiting_run_of(self, record: Record) -> Tick:
        """As _run_of, for what is known after all runs: one that has ended since has waited before."""
        if record.task_id in self._by_id:
            return self._by_id[record.task_id]
        run = self._free.get(_name_of(record))
        last = run.last if run is not None else None
        again = last is not None and last.status in _OVER and last.ended is not None and last.ended < record.at
        return self._new_run(record) if run is None or again else run

    def _new_run(self, record: Record) -> Tick:
        run = Tick(None, record.task_name, record.task_id, recorded=record.at)
        self._ticks.append(run)
        self._free[_name_of(record)] = run
        return run

    # -- all of them ---------------------------------------------------------------------------------------------------

    def ended(self) -> list[Tick]:
        """Return all, with what can be told only when all is known."""
        self._bury()
        for tick in self._ticks:
            if tick.task_name is None and tick.attempts:
                tick.task_name = tick.attempts[0].task_name
        ticks = sorted(self._ticks, key=lambda tick: tick.at)
        before: dict[str | None, datetime] = {}
        for tick in ticks:
            if tick.due is None:
                continue
            if not tick.is_missed:
                before[tick.entry] = tick.due
            elif tick.count > 1 or tick.run is None:
                # the tick that stands for those that were missed is the one before them
                tick.due_after = tick.due_after or before.get(tick.entry)
        return ticks

    def _bury(self) -> None:
        """Find runs that cannot be running any more: their lock has been another's since."""
        attempts = [attempt for attempt, _ in self._attempts.values() if attempt.token is not None]
        newest: dict[tuple[str | None, str | None], Attempt] = {}
        for attempt in attempts:
            which = attempt.lock_key, attempt.driver
            if which not in newest or (attempt.token or 0) > (newest[which].token or 0):
                newest[which] = attempt
        for attempt in attempts:
            after = newest[attempt.lock_key, attempt.driver]
            if attempt.status == "running" and (after.token or 0) > (attempt.token or 0):
                attempt.status = "died"
                attempt.reason = f"nobody has recorded its end, and {after.worker or 'another'} had its lock after it"


def _name_of(record: Record) -> str:
    return record.task_id or record.execution_id or record.position


def _is_copy(record: Record) -> bool:
    return record.status == "skipped" and record.reason == "duplicate"


def counted(ticks: Iterable[Tick]) -> Counter[str]:
    """Count ticks by their outcomes."""
    counts: Counter[str] = Counter()
    for tick in ticks:
        counts[tick.outcome] += tick.count
    return counts


def named(ticks: Sequence[Tick], name: str) -> Iterator[Tick]:
    """Yield the ticks of an entry, or of a task, by its name."""
    return (tick for tick in ticks if name in (tick.entry, tick.task_name))

"""What the records of a journal add up to.

Promises: whatever is in a record, counting it raises nothing; each entry and task that is known has its series at 0 before there is
something to count, but where the first that is heard of it is what is counted.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from prometheus_client.metrics_core import Metric

from celery_lockbeat.contrib.measures import ACQUIRE, DURATION, LATENESS, OTHER, Labels
from celery_lockbeat.contrib.prometheus.families import Counter, Histogram
from celery_lockbeat.journal import Record

__all__ = ["Tally"]

#: Reasons of skips, of which there are few, are words.
_is_word: Final = re.compile(r"[a-z_]{1,30}").fullmatch
REASONS_AT_MOST: Final = 20

#: How a run ends that is counted from the first sight of its task on.
_USUAL: Final = (
    ("success", ""),
    ("failed", ""),
    ("retry", ""),
    ("skipped", "locked"),
    ("skipped", "duplicate"),
    ("died", ""),
)


class Tally:
    """Counters and histograms of records, and when each entry has succeeded last. Several threads may use it."""

    def __init__(self, entries: Labels, tasks: Labels) -> None:
        self._mutex = threading.Lock()
        self._entries, self._tasks, self._reasons = entries, tasks, Labels(REASONS_AT_MOST)
        self._successes: dict[str, datetime] = {}
        by_entry, by_task = ("entry",), ("task",)
        self._ticks = Counter(
            "lockbeat_ticks_total", "Due ticks of entries, by what became of them", ("entry", "outcome")
        )
        self._late = Counter("lockbeat_late_ticks_total", "Ticks that were published late", by_entry)
        self._taken_over = Counter("lockbeat_taken_over_ticks_total", "Ticks that another beat had left", by_entry)
        self._silences = Counter("lockbeat_silences_total", "Times that an entry fell silent: no success", by_entry)
        self._runs = Counter("lockbeat_runs_total", "Runs that have ended, by how", ("task", "status", "reason"))
        self._overdue = Counter("lockbeat_overdue_runs_total", "Runs that took longer than they should", by_task)
        self._lost = Counter("lockbeat_locks_lost_total", "Locks that were lost while they were needed", by_task)
        self._fallbacks = Counter("lockbeat_fallbacks_total", "Runs that fell back to the memory store", by_task)
        self._records = Counter("lockbeat_journal_records_total", "Records of the journal that were read")
        self._dropped = Counter(
            "lockbeat_journal_records_dropped_total", "Records that were not written, for the store was away too long"
        )
        self._lateness = Histogram(
            "lockbeat_tick_lateness_seconds", "From when a tick was due to when it was published", LATENESS
        )
        self._durations = Histogram("lockbeat_run_duration_seconds", "Time spent in the body", DURATION, by_task)
        self._acquires = Histogram("lockbeat_acquire_seconds", "Until a lock was got or given up", ACQUIRE, ("driver",))
        self._all = (
            *(self._ticks, self._late, self._taken_over, self._silences, self._runs, self._overdue, self._lost),
            *(self._fallbacks, self._records, self._dropped, self._lateness, self._durations, self._acquires),
        )
        for counter in (self._records, self._dropped):
            counter.add(by=0)
        for counter in (self._lost, self._fallbacks):
            counter.add("", by=0)  # of a Lock outside of tasks

    def families(self) -> Sequence[Metric]:
        """Return what has been counted so far."""
        with self._mutex:
            return [each.family() for each in self._all]

    def last_successes(self) -> Mapping[str, datetime]:
        """Return when each entry has succeeded last, by its name."""
        with self._mutex:
            return dict(self._successes)

    def see(self, record: Record) -> None:
        """Learn of a record which entries and tasks there are, and when an entry succeeded: all but count it."""
        with self._mutex:
            self._see(record)

    def count(self, record: Record) -> None:
        """Learn of a record, and count it."""
        with self._mutex:
            self._see(record)
            self._records.add()
            if record.event.startswith("tick_") or record.event == "entry_silent":
                self._count_tick(record, self._entries.of(record.entry))
            elif record.event == "records_dropped":
                self._dropped.add(by=_amount(record))
            else:
                self._count_run(record, self._tasks.of(record.task_name))

    def _see(self, record: Record) -> None:
        if record.entry is not None:
            if record.entry not in self._entries:
                self._begin_entry(self._entries.of(record.entry))
            if record.status == "success" and record.entry in self._entries:
                self._successes[self._entries.of(record.entry)] = record.at
        if record.task_name is not None and record.task_name not in self._tasks:
            self._begin_task(self._tasks.of(record.task_name))

    def _begin_entry(self, entry: str) -> None:
        for outcome in ("published", "missed", "paused"):
            self._ticks.add(entry, outcome, by=0)
        for counter in (self._late, self._taken_over, self._silences):
            counter.add(entry, by=0)

    def _begin_task(self, task: str) -> None:
        for status, reason in _USUAL:
            self._runs.add(task, status, reason, by=0)
        for counter in (self._overdue, self._lost, self._fallbacks):
            counter.add(task, by=0)

    def _count_tick(self, record: Record, entry: str) -> None:
        if record.event == "tick_published":
            self._ticks.add(entry, "published")
            self._taken_over.add(entry, by=bool(record.taken_over))
            self._lateness.observe(record.late)
        elif record.event == "tick_missed":
            self._ticks.add(entry, "missed", by=_amount(record))
        elif record.event == "tick_paused":
            self._ticks.add(entry, "paused")
        elif record.event == "tick_late":
            self._late.add(entry)
        elif record.event == "entry_silent":
            self._silences.add(entry)

    def _count_run(self, record: Record, task: str) -> None:
        if record.event == "lock_expired_before_finish":
            self._lost.add(task)
        elif record.event == "driver_fallback":
            self._fallbacks.add(task)
        elif record.event == "run_overdue":
            self._overdue.add(task)
        elif record.status not in (None, "running"):
            self._runs.add(task, str(record.status), self._reason_of(record))
            self._acquires.observe(_seconds(record.acquire_ms), record.driver or "")
            # a body that has not run has taken no time
            if record.duration_ms or record.status == "success":
                self._durations.observe(_seconds(record.duration_ms), task)

    def _reason_of(self, record: Record) -> str:
        if record.status == "skipped" and record.reason is not None:
            return self._reasons.of(record.reason) if _is_word(record.reason) else OTHER
        return ""


def _amount(record: Record) -> int:
    return max(0, 1 if record.count is None else record.count)


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000

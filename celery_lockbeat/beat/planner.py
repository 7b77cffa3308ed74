"""When the entries of a beat are due, by their schedules and by what all replicas know of their runs.

Promises: an entry whose next run cannot be told stops no other. What the store knows of an entry's runs counts, unless it has
lost what this beat knows; what it has that is no time costs a tick at most, and sends none twice.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from celery_lockbeat.beat.agenda import Agenda, Item
from celery_lockbeat.beat.clocks import Clocks, overdue_for
from celery_lockbeat.beat.seams import Seams
from celery_lockbeat.beat.trouble import Complaints
from celery_lockbeat.schedules.when import Timeout
from celery_lockbeat.stores.base import EntryState

__all__ = ["Planner"]

logger: Final = logging.getLogger("celery_lockbeat.beat")

#: Seconds until an entry that is not yet due is looked at again, at least.
SHORTEST: Final = 0.001

#: Seconds by which a last run may be yet to come, by clocks that differ; one that is later would stop its entry till then.
TO_COME: Final = 86400.0


class Planner:
    """Plans the entries on the agenda. ``cold_start``: when the replicas started cold, by the monotonic clock."""

    def __init__(self, scheduler: Seams, agenda: Agenda, clocks: Clocks, complaints: Complaints) -> None:
        self._scheduler = scheduler
        self._agenda = agenda
        self._clocks = clocks
        self._clock = clocks.now
        self._complaints = complaints
        self.cold_start = 0.0

    def plan(self, item: Item) -> None:
        """Plan an entry by its schedule and its last run."""
        now = self._clock()
        if isinstance(item.schedule, Timeout):
            if not item.entry.total_run_count:
                self._agenda.plan(item, self.cold_start + item.schedule.seconds)
            return
        is_due, delay = self.is_due(item.entry)
        # since when it is due, for the tick's own time
        self._agenda.plan(item, now - overdue_for(item.entry) if is_due else now + delay)

    def plan_all(self) -> None:
        """Plan all entries anew."""
        for item in self._agenda:
            self.plan(item)

    def is_due(self, entry: Any) -> tuple[bool, float]:
        """Tell whether an entry is due now, and the seconds until it has to be looked at again."""
        try:
            is_due, delay = self._scheduler.is_due(entry)
        except Exception:
            # one entry whose next run cannot be told must not stop the others
            pause = self._scheduler.max_interval
            logger.exception("cannot tell when entry %r is due; trying again in %g s", entry.name, pause)
            return False, pause
        if not isinstance(delay, (int, float)):
            delay = self._scheduler.max_interval
        return bool(is_due), max(delay, SHORTEST)

    # -- what becomes of an entry --------------------------------------------------------------------------------------

    def change(self, item: Item, entry: Any) -> None:
        """Put ``entry``, as it is now, in the place of what was known of it; its last run stays what it was."""
        if item.entry is entry and item.schedule is entry.schedule:
            return
        if item.entry is not entry and entry.total_run_count <= item.entry.total_run_count:
            entry.last_run_at, entry.total_run_count = item.entry.last_run_at, item.entry.total_run_count
            self._scheduler.adopted(entry)
        item.entry, item.schedule = entry, entry.schedule
        self._agenda.edition += 1
        if item.key in self._agenda:
            self.plan(item)

    def adopt(self, item: Item, state: EntryState) -> None:
        """Take over what the store knows of an entry, unless it has lost what we know."""
        entry = item.entry
        if state.total_run_count < entry.total_run_count:
            return
        zone = entry.last_run_at.tzinfo
        try:
            time_ = self._clocks.time_of(state, entry, zone)
            if bool(time_.tzinfo) != bool(zone) or (time_ - entry.default_now()).total_seconds() > TO_COME:
                raise ValueError(state.last_run_at)
            entry.last_run_at = time_
        except (ValueError, TypeError, OverflowError):
            # as if it had run just now: a tick may be missed, but none is sent twice; the next claim writes a time again
            text = "the store has %r as the last run of entry %r, which is no time, or one to come: now is taken for it"
            self._complaints.make(f"time of {item.key}", text, state.last_run_at[:100], item.key)
            entry.last_run_at = entry.default_now()
        entry.total_run_count = state.total_run_count
        self._scheduler.adopted(entry)

    def advance(self, item: Item, state: EntryState) -> None:
        """Let the scheduler move the entry on by one run; then it has the state of the claim."""
        zone = item.entry.last_run_at.tzinfo
        item.entry = entry = self._scheduler.reserve(item.entry)
        item.schedule = entry.schedule
        entry.last_run_at = self._clocks.time_of(state, entry, zone)
        entry.total_run_count = state.total_run_count
        self._scheduler.adopted(entry)

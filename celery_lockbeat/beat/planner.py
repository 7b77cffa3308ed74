"""When the entries of a beat are due, by their schedules and by what all replicas know of their runs.

Promises: an entry whose next run cannot be told stops no other. What the store knows of an entry's runs counts, unless it has
lost what this beat knows; what it has that is no time costs a tick at most, and sends none twice.
"""

from __future__ import annotations

import logging
import math
from datetime import datetime, timezone
from typing import Any, Final

from celery.beat import ScheduleEntry, Scheduler

from celery_lockbeat.beat.agenda import Agenda, Item
from celery_lockbeat.beat.clocks import Clocks, overdue_for
from celery_lockbeat.beat.rules import Over, Pass, Publish, Rules, Wait
from celery_lockbeat.beat.seams import Seams
from celery_lockbeat.beat.trouble import Complaints
from celery_lockbeat.schedules.when import Timeout
from celery_lockbeat.stores.base import EntryState

__all__ = ["Planner"]

logger: Final = logging.getLogger("celery_lockbeat.beat")

_EPOCH: Final = datetime.fromtimestamp(0, timezone.utc)

#: Seconds until an entry that is not yet due is looked at again, at least.
SHORTEST: Final = 0.001

#: Seconds by which a last run may be yet to come, by clocks that differ; one that is later would stop its entry till then.
TO_COME: Final = 86400.0


class Planner:
    """Plans the entries on the agenda. ``cold_start``: when the replicas started cold, by the monotonic clock."""

    def __init__(self, scheduler: Seams, rules: Rules, agenda: Agenda, clocks: Clocks, complaints: Complaints) -> None:
        self._scheduler = scheduler
        self.rules = rules
        #: whether nobody but the schedule and the policy of an entry has a say in when it is due
        self._by_schedule_alone = getattr(type(scheduler), "is_due", None) is Scheduler.is_due
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
                # by its key, which has the cold start in it: the same in all replicas
                offset = item.schedule.policy.offset(item.key, _EPOCH)
                self._agenda.plan(item, self.cold_start + item.schedule.seconds + offset)
            return
        if self.rules.of(item) is not None:
            verdict = self.judge(item)
            self._agenda.plan(item, now + (verdict.seconds if isinstance(verdict, Wait) else 0.0))
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

    # -- by rules ------------------------------------------------------------------------------------------------------

    def judge(self, item: Item) -> Wait | Pass | Publish:
        """Tell what is to be done now about an entry that has a rule."""
        entry, rule = item.entry, item.rule
        if not (self._by_schedule_alone and type(entry).is_due is ScheduleEntry.is_due):
            is_due, delay = self.is_due(entry)
            if not is_due:
                return Wait(delay)
        try:
            verdict = rule.decide(entry.last_run_at, entry.total_run_count, self._clocks.store_time())
        except Exception:
            pause = self._scheduler.max_interval
            logger.exception("cannot tell when entry %r is due; trying again in %g s", entry.name, pause)
            return Wait(pause)
        if not isinstance(verdict, Over):
            return Wait(max(verdict.seconds, SHORTEST)) if isinstance(verdict, Wait) else verdict
        if not rule.is_said_to_be_over:
            rule.is_said_to_be_over = True
            logger.info("entry %r is over, and will not run again: %s", entry.name, verdict.why)
        return Wait(math.inf)

    def plan_after(self, item: Item, due: datetime) -> None:
        """Plan an entry that has a rule, after its tick of ``due``."""
        seconds = item.rule.until_next(due, self._clocks.store_time())
        if math.isinf(seconds) or item.rule.policy.max_runs is not None:
            self.plan(item)  # it says it where that was the last
        else:
            # not earlier, where more are due: others were due before
            self._agenda.plan(item, self._clock() + max(0.0, seconds))

    def new_state(self, item: Item) -> EntryState:
        """Return the state of an entry that may be new to the store."""
        rule, entry = self.rules.of(item), item.entry
        if rule is None:
            return self._clocks.state_of(entry)
        is_new = not (entry.total_run_count or item.stored)
        last = rule.before_the_first(self._clocks.store_time()) if is_new else None
        return EntryState(entry.total_run_count, (last or entry.last_run_at).isoformat())

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

    def _time_of(self, item: Item, state: EntryState, zone: Any) -> datetime:
        if self.rules.of(item) is None:
            return self._clocks.time_of(state, item.entry, zone)
        # a due time, by whatever clock
        time_ = datetime.fromisoformat(state.last_run_at)
        return time_.astimezone(zone) if time_.tzinfo and zone else time_

    def adopt(self, item: Item, state: EntryState) -> None:
        """Take over what the store knows of an entry, unless it has lost what we know."""
        entry = item.entry
        if state.total_run_count < entry.total_run_count:
            return
        zone = entry.last_run_at.tzinfo
        try:
            time_ = self._time_of(item, state, zone)
            if bool(time_.tzinfo) != bool(zone) or (time_ - entry.default_now()).total_seconds() > TO_COME:
                raise ValueError(state.last_run_at)
            entry.last_run_at = time_
        except (ValueError, TypeError, OverflowError):
            # as if it had run just now: a tick may be missed, but none is sent twice; the next claim writes a time again
            text = "the store has %r as the last run of entry %r, which is no time, or one to come: now is taken for it"
            self._complaints.make(f"time of {item.key}", text, state.last_run_at[:100], item.key)
            entry.last_run_at = entry.default_now()
        entry.total_run_count, item.stored = state.total_run_count, state.last_run_at
        self._scheduler.adopted(entry)

    def advance(self, item: Item, state: EntryState) -> None:
        """Let the scheduler move the entry on by one run; then it has the state of the claim."""
        zone = item.entry.last_run_at.tzinfo
        if state.total_run_count != item.entry.total_run_count:
            item.entry = self._scheduler.reserve(item.entry)
        entry = item.entry
        item.schedule = entry.schedule
        entry.last_run_at = self._time_of(item, state, zone)
        entry.total_run_count, item.stored = state.total_run_count, state.last_run_at
        self._scheduler.adopted(entry)

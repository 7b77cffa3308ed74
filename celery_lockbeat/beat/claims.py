"""Which ticks are this beat's to publish: it claims what is due, and takes over what others have left.

Promises: a tick keeps the task id that was chosen when it was first asked for, also where the store's answer is lost. A claim
is trusted for less than its ttl, counted from before it was asked for. One call of the store claims a whole batch, another
takes over what is overdue. What only another release knows is left to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from itertools import islice
from typing import Any, Final

from celery.utils import uuid

from celery_lockbeat.beat.agenda import Agenda, Item
from celery_lockbeat.beat.clocks import Clocks
from celery_lockbeat.beat.ledger import Ledger, Tick
from celery_lockbeat.beat.planner import Planner
from celery_lockbeat.beat.recorder import Recorder
from celery_lockbeat.beat.replicas import Replica
from celery_lockbeat.beat.rules import Pass, Publish, Rule, Wait
from celery_lockbeat.beat.seams import Seams
from celery_lockbeat.exceptions import StoreUnavailable
from celery_lockbeat.locks.streaks import PAUSE_AFTER
from celery_lockbeat.options import MARGIN
from celery_lockbeat.schedules.when import Timeout
from celery_lockbeat.stores.base import (
    ALIVE,
    OVERDUE_AT_ONCE,
    BeatStore,
    Claim,
    Claims,
    EntryState,
    Overdue,
    Passed,
    is_request,
)
from celery_lockbeat.tasks.copies import BEGIN_BY

__all__ = ["BATCH", "Claimer", "of_request"]

#: So many ticks are claimed at once: enough to make the two round trips cheap, few enough that replicas share the work.
BATCH: Final = 100

#: Seconds until an entry that is left to others is looked at again.
LEFT_FOR: Final = 2.0


def _is_asked_for(overdue: Overdue) -> bool:
    return is_request(overdue.entry) or overdue.details.get("origin") == "manual"


def of_request(key: str, item: Item) -> Item:
    """Return what stands for an entry in the ticks of a request, whose key this is."""
    other = Item(key, item.entry)
    other.schedule = item.schedule
    return other


class Claimer:
    """Claims for one replica, for ``ttl`` seconds each.

    ``stand_in(key)`` returns an entry in place of one that this beat does not know, whose claim somebody has left, to be
    reread before it is published; None: it is left to others. ``leaves(key)``: whether the ticks of an entry are left to
    others anyway.
    """

    def __init__(
        self,
        scheduler: Seams,
        stand_in: Callable[[str], Any],
        leaves: Callable[[str], bool],
        agenda: Agenda,
        planner: Planner,
        clocks: Clocks,
        replica: Replica,
        ledger: Ledger,
        recorder: Recorder,
        ttl: float,
    ) -> None:
        self._scheduler = scheduler
        self._stand_in = stand_in
        self._leaves = leaves
        self._agenda = agenda
        self._planner = planner
        self._clocks = clocks
        self._clock = clocks.now
        self._replica = replica
        self._ledger = ledger
        self._recorder = recorder
        self._ttl = ttl
        self._skip = 0  # so many overdue claims, which none but another release knows
        self._next_poll = self._next_batch = 0.0
        self._not_taken_over: StoreUnavailable | None = None  # why not, in this round

    def claim(self, store: BeatStore, limit: int = BATCH) -> list[Tick]:
        """Claim what is due, and take over what others have left; return what is ours to publish, oldest first.

        Raises StoreUnavailable, and later from :meth:`check` where it is only others' ticks that could not be asked for.
        """
        read = self._clock()
        items = list(islice(iter(self._agenda.due, None), limit)) if read >= self._next_batch else []
        try:
            due = self._due(items)
            asked = self._clock()
            if due:
                self._next_batch = asked + self._scheduler.gather if len(items) < limit else 0.0
            elif asked < self._next_poll:
                return []
            claims = [item.claim for item in due if item.claim is not None]
            ids = [claim.task_id for claim in claims if claim.task_id]
            self._ledger.ask(ids)
            answer = self._ask(store, claims)
        except StoreUnavailable:
            for item in items:
                self._agenda.plan(item, item.when)
            raise
        self._clocks.compare(answer.server_time, asked)
        self._replica.known = answer.listed
        ticks = []
        for item, refusal in zip(due, answer.refusals, strict=True):
            if isinstance(refusal, Passed):
                self._paused(item, refusal, asked)
            elif refusal is not None:
                self._refused(item, refusal)
            elif isinstance(item.verdict, Pass):
                self._moved(item, asked)  # nothing is published
            else:
                ticks.append(self._granted(item, asked, read))
        self._ledger.answered(ids)
        return [*self._take_over(store, answer, limit), *ticks]

    def check(self) -> None:
        """Raise StoreUnavailable if what others have left could not be asked for."""
        if self._not_taken_over is not None:
            exc, self._not_taken_over = self._not_taken_over, None
            raise exc

    def until_next(self) -> float:
        """Seconds until there is something to claim, or it is time to ask what others have left."""
        until_due, now = self._agenda.until_next(), self._clock()
        until_poll = self._next_poll - now
        return until_poll if until_due is None else min(max(until_due, self._next_batch - now), until_poll)

    # -- due -----------------------------------------------------------------------------------------------------------

    def _due(self, items: Sequence[Item]) -> list[Item]:
        """Of what was planned for now return what is due, each with the claim to make for it."""
        due: list[Item] = []
        for item in self._unchanged(items):
            if self._leaves(item.key):
                self._agenda.plan(item, self._clock() + LEFT_FOR)
                continue
            if self._planner.rules.of(item) is not None:
                if self._is_due_by_rule(item):
                    due.append(item)
                continue
            late = self._clock() - item.when
            is_due, item.delay = (True, 0.0) if isinstance(item.schedule, Timeout) else self._planner.is_due(item.entry)
            if not is_due:
                self._agenda.plan(item, self._clock() + item.delay)
                continue
            now = item.entry.default_now()
            run = item.entry.total_run_count + 1
            tick = now - timedelta(seconds=late)
            details = {"due": tick.isoformat(timespec="milliseconds")}
            if isinstance(item.schedule, Timeout) and item.schedule.policy.start_within is not None:
                details[BEGIN_BY] = _begin_by(tick, item.schedule.policy.start_within)
            state = self._clocks.state(item.entry, run, now)
            item.claim = Claim(_task_id_of(item, run), item.key, state, details, flag=item.flag)
            due.append(item)
        return due

    def _is_due_by_rule(self, item: Item) -> bool:
        """Whether there is something to do about an entry that has a rule: its claim is made then."""
        verdict = self._planner.judge(item)
        if isinstance(verdict, Wait):
            self._agenda.plan(item, self._clock() + verdict.seconds)
            return False
        item.verdict = verdict
        run, due = item.entry.total_run_count, verdict.due.astimezone(timezone.utc).isoformat()
        if isinstance(verdict, Pass):
            item.claim = Claim("", item.key, EntryState(run, due), {}, item.stored)
            return True
        task_id, state = _task_id_of(item, run + 1), EntryState(run + 1, due)
        details = _details_of(verdict, item)
        item.claim = Claim(task_id, item.key, state, details, item.stored, verdict.alone, item.flag)
        return True

    def _unchanged(self, items: Sequence[Item]) -> list[Item]:
        """Leave out what is gone, or another entry now; the look that finds out what became of it comes next."""
        found = self._scheduler.reread([item.key for item in items]) if items else None
        if found is None:
            return list(items)
        unchanged = []
        for item in items:
            key, entry = found.get(item.key, (None, None))
            if key == item.key:
                self._planner.change(item, entry)
                unchanged.append(item)
            else:
                self._agenda.plan(item, item.when)
                self._replica.look_soon()
        return unchanged

    # -- claim ---------------------------------------------------------------------------------------------------------

    def _ask(self, store: BeatStore, claims: list[Claim]) -> Claims:
        answer = store.claim(self._replica.app, self._replica.name, claims, ttl=self._ttl, skip=self._skip)
        # soon enough to see each claim before it is overdue, and to count as alive
        until = min(self._ttl, ALIVE) / 4
        if answer.next_overdue is not None:
            until = min(until, answer.next_overdue)
        self._next_poll = self._clock() + until
        return answer

    def _granted(self, item: Item, asked: float, read: float) -> Tick:
        claim = self._moved(item, asked)
        sure_until = read + self._scheduler.trusted_for
        return self._take(item, claim.state.total_run_count, claim.task_id, claim.details, asked, sure_until)

    def _paused(self, item: Item, passed: Passed, asked: float) -> None:
        """The tick is ours, and not to be published."""
        claim = self._moved(item, asked)
        self._recorder.paused(item, claim.state.total_run_count, claim.details, passed)

    def _moved(self, item: Item, asked: float) -> Claim:
        """Let an entry go on after the tick that was claimed, or the ticks that were passed over; the claim is returned."""
        claim, item.claim = item.claim, None
        assert claim is not None  # it was asked for  # noqa: S101
        verdict, item.verdict = item.verdict, None
        if verdict is None:
            self._recorder.claimed(item, claim, asked - item.when)
        elif isinstance(verdict, Pass):
            self._recorder.passed(item, verdict.missed)
        else:
            self._recorder.claimed_by_rule(item, claim, verdict)
        self._planner.advance(item, claim.state)
        if item.key in self._agenda and verdict is not None:
            self._planner.plan_after(item, verdict.due)
        elif item.key in self._agenda and not isinstance(item.schedule, Timeout):
            self._agenda.plan(item, asked + item.delay)
        return claim

    def _take(
        self,
        item: Item,
        run: int,
        task_id: str,
        details: Mapping[str, Any],
        asked: float,
        sure_until: float,
        *,
        taken_over: bool = False,
    ) -> Tick:
        fresh_until = asked + self._ttl * (1 - MARGIN)
        return self._ledger.take(Tick(item, run, task_id, details, fresh_until, sure_until, taken_over))

    def _refused(self, item: Item, state: EntryState) -> None:
        """The tick is another's, or the entry has too many that are not yet published."""
        backlog = state.total_run_count <= item.entry.total_run_count
        if item.claim is not None and item.claim.after is not None:
            backlog = backlog and state.last_run_at == item.claim.after
        self._planner.adopt(item, state)
        if item.key not in self._agenda:
            return
        if backlog:
            due = item.when
            self._agenda.plan(item, self._clock() + self._ttl / 4)
            item.when = due  # it is looked at later, and is due since then
        else:
            self._planner.plan(item)

    def claim_asked(self, store: BeatStore, item: Item, claim: Claim) -> Tick | None:
        """Claim one tick that is asked for; None: another was faster. Raises StoreUnavailable."""
        asked = self._clock()
        self._ledger.ask((claim.task_id,))
        answer = store.claim(self._replica.app, self._replica.name, (claim,), ttl=self._ttl)
        self._ledger.answered((claim.task_id,))
        self._replica.known = self._replica.known and answer.listed
        if answer.refusals[0] is not None:
            return None
        run = claim.state.total_run_count
        return self._take(item, run, claim.task_id, claim.details, asked, math.inf)

    # -- take over -----------------------------------------------------------------------------------------------------

    def _take_over(self, store: BeatStore, answer: Claims, limit: int) -> list[Tick]:
        left = self._left_to_us(answer.overdue, limit)
        if not left:
            return []
        self._next_poll = asked = self._clock()  # there may be more
        ids = [each.task_id for each, _ in left]
        # what was asked for by hand is published whatever is paused
        flags = ["" if _is_asked_for(each) else item.flag for each, item in left]
        self._ledger.ask(ids)
        try:
            taken = store.take_over(self._replica.app, self._replica.name, ids, ttl=self._ttl, flags=flags)
        except StoreUnavailable as exc:
            # those that we have claimed are to be published all the same
            self._not_taken_over = exc
            # if they are ours now, others need not wait for that to be over
            self._ledger.hand_over(ids)
            self._ledger.answered(ids)
            return []
        ticks = []
        for (each, item), ours in zip(left, taken, strict=True):
            if isinstance(ours, Passed):
                self._recorder.paused(item, each.run, each.details, ours)
            elif ours:
                # the entry may have been deleted since it was claimed
                sure = is_request(each.entry) or not math.isfinite(self._scheduler.trusted_for)
                sure_until = math.inf if sure else asked
                ticks.append(self._take(item, each.run, each.task_id, each.details, asked, sure_until, taken_over=True))
        self._ledger.answered(ids)
        return ticks

    def _left_to_us(self, overdue: Sequence[Overdue], limit: int) -> list[tuple[Overdue, Item]]:
        """Of the claims that others have left return those that this beat can publish, as many as it may."""
        known: list[tuple[Overdue, Item]] = []
        for each in overdue:
            item = self._item_of(each)
            if item is not None and not self._leaves(each.entry):
                known.append((each, item))
        # what only another release knows is left to it, and must not hide what comes after it
        hidden = len(overdue) == OVERDUE_AT_ONCE and not known
        self._skip = self._skip + OVERDUE_AT_ONCE if hidden else 0
        return sorted(known, key=lambda pair: (pair[0].entry, pair[0].run))[:limit]

    def _item_of(self, overdue: Overdue) -> Item | None:
        key = overdue.entry
        if is_request(key):
            return self._asked_of(key, overdue.details.get("flag"))
        item = self._agenda.get(key)
        if item is None and (entry := self._stand_in(key)) is not None:
            item = Item(key, entry)
        return item

    def _asked_of(self, key: str, flag: Any) -> Item | None:
        """Return what stands for an entry in the ticks of a request."""
        found = self._agenda.flagged(flag) if isinstance(flag, str) else None
        if found is None or self._leaves(found.key):
            return None
        return of_request(key, found)


def _task_id_of(item: Item, run: int) -> str:
    """The same tick under the same task id, if the answer to an earlier try was lost."""
    asked = item.claim
    same = asked is not None and asked.task_id and asked.state.total_run_count == run
    return asked.task_id if asked is not None and same else uuid()


def _details_of(verdict: Publish, item: Item) -> dict[str, Any]:
    """Return what goes with a tick by rule to whoever publishes it, and to its task: see tasks/ticks.py."""
    rule: Rule = item.rule
    details: dict[str, Any] = {"due": verdict.due.astimezone(rule.zone).isoformat(timespec="milliseconds")}
    if verdict.previous is not None:
        details["previous_due"] = verdict.previous.astimezone(rule.zone).isoformat(timespec="milliseconds")
    if verdict.caught_up:
        details["origin"] = "catchup"
    if rule.policy.start_within is not None:
        details[BEGIN_BY] = _begin_by(verdict.due, rule.policy.start_within)
    if rule.policy.pause_after_failures is not None:
        details[PAUSE_AFTER] = [rule.policy.pause_after_failures, item.flag]
    return details


def _begin_by(due: datetime, within: float) -> str:
    latest = due.astimezone(timezone.utc) + timedelta(seconds=within)
    return latest.isoformat(timespec="milliseconds")

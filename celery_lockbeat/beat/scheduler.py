"""The beat without a leader: due -> claim -> publish -> settle, on any number of replicas at once.

Promises: each due tick is published under the one task id that was chosen when it was claimed; a replica that dies, is
frozen or is cut off delays no tick but those that it had claimed, and these by ``lockbeat_claim_ttl``; two store calls per
batch of due entries; neither a broker nor a store that is down ends the process. What "due" means is Celery's own.

Not promised: that a message is published once only. A replica that dies between a publish and its settling leaves a claim
that is published again, under the same task id: a LockedTask runs once all the same, a plain task does not.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import MINYEAR, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from celery import signals
from celery.beat import BeatLazyFunc, Scheduler, SchedulingError
from celery.result import denied_join_result
from celery.schedules import crontab, schedule
from celery.utils import uuid
from kombu.exceptions import OperationalError
from kombu.utils.objects import cached_property

from celery_lockbeat.beat.agenda import Agenda, Item
from celery_lockbeat.beat.announcements import Announcements
from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import ConfigurationError, StoreUnavailable
from celery_lockbeat.membership.health import HealthFile
from celery_lockbeat.membership.startup import say_what_is_set
from celery_lockbeat.options import AppOptions, LockOptions
from celery_lockbeat.schedules.when import Timeout
from celery_lockbeat.stores import stores_of
from celery_lockbeat.stores.base import ALIVE, OVERDUE_AT_ONCE, Claim, Claims, EntryState, Joined, Overdue, Store
from celery_lockbeat.tasks.copies import NONCE

__all__ = ["LockedScheduler", "LockedSchedulerMixin"]

logger: Final = logging.getLogger("celery_lockbeat.beat")

#: So many ticks are claimed at once: enough to make the two round trips cheap, few enough that replicas share the work.
BATCH: Final = 100

#: So many entries are listed between two rounds of ticks: some 20 ms.
LIST_AT_ONCE: Final = 500

#: Seconds between two looks for changed entries, or a hundred times what a look takes.
LOOK_EVERY: Final = 1.0

#: Seconds between two complaints about the same trouble.
COMPLAIN_EVERY: Final = 60.0

#: Seconds until the next try while the store or the broker is out of reach, at first and at most.
RETRY_FIRST: Final = 0.1
RETRY_AT_MOST: Final = 2.0

#: Seconds after which all that is stored is kept for another STATE_MEMORY.
KEEP_EVERY: Final = 3600.0

#: After so many messages in a row that a broker in reach refuses, it is the broker that is in trouble.
REFUSALS_IN_A_ROW: Final = 3

#: Seconds until an entry that is left to others is looked at again.
LEFT_FOR: Final = 2.0

#: Seconds until an entry that is not yet due is looked at again, at least.
SHORTEST: Final = 0.001

#: What the local clock may gain on the store's while a claim lives (see lock.py).
MARGIN: Final = 0.01

#: Seconds by which this host's clock may differ from the store's before that is taken into account.
INEXACT: Final = 0.05

#: Seconds by which a last run may be yet to come, by clocks that differ; one that is later would stop its entry till then.
TO_COME: Final = 86400.0

#: Seconds by which it may differ before it is worth a warning.
SKEW: Final = 1.0


# What is mixed in is made for a celery.beat.Scheduler, which ships no types.
if TYPE_CHECKING:
    _Mixed = Any
else:
    _Mixed = object


class _Tick(NamedTuple):
    """A claim of ours that is to be published before ``fresh_until``, when others may take it over.

    After ``sure_until`` its entry may have been deleted: that is to be found out first.
    """

    item: Item
    run: int
    task_id: str
    told: Mapping[str, Any]
    fresh_until: float
    sure_until: float


class _Publishing:
    """The tick whose message is made just now, and what has come of it: celery.beat.Scheduler.apply_entry tells nobody."""

    __slots__ = ("error", "tick")

    def __init__(self, tick: _Tick) -> None:
        self.tick = tick
        self.error: Exception | None = None


class _Round(Scheduler):  # type: ignore[misc]
    """A round of a beat of ours inside of Celery's own ``tick``, which tools wrap (ddtrace 4: its span celery.beat.tick).

    With an empty heap, all that it does is to ask whether the schedule has changed (celery 5.4 to 5.7, beat.py).
    """

    def __init__(self, app: Any, go_round: Callable[[], float]) -> None:
        # not Celery's: nothing else of a scheduler is needed
        self.app = app
        self._go_round = go_round
        self._heap: list[Any] = []
        self.data: dict[str, Any] = {}
        self.old_schedulers = None
        self._rest: float | None = None

    def seconds(self) -> float:
        """Go round, and return the seconds until there is more to do."""
        self._rest = None
        self.tick()
        return self._go_round() if self._rest is None else self._rest

    def schedules_equal(self, *_schedules: Any) -> bool:
        self._rest = self._go_round()
        return True


class _NotSent(BaseException):  # as above
    """Passes by Celery's apply_entry, which would log each try with two tracebacks: we tell of a broker once a minute."""


class _Stale(Exception):  # noqa: N818  a way out of a batch, not an error
    """Ticks of a batch grew too old while it was made, or what was known of their entries did."""


class LockedSchedulerMixin(_Mixed):  # type: ignore[misc]
    """Lets any number of replicas of a :class:`celery.beat.Scheduler` share its ticks; stands before that class.

    >>> class MyScheduler(LockedSchedulerMixin, SomeScheduler): ...  # doctest: +SKIP

    The scheduler it is mixed into tells the entries (``schedule``) and when they are due (``is_due``); when each ran last is
    shared in the store of ``lockbeat_driver``. Wrong ``lockbeat_*`` settings are a ConfigurationError when it is made.

    Where that does not do, a scheduler overrides more of what has no underscore: ``adopted`` where its entries keep these
    two elsewhere, too; ``refresh_schedule``, ``reread`` with ``trusted_for``, and ``record_runs`` where they may change
    there at any time (see docs/how-to/own-scheduler.md).
    """

    #: RedBeat's receiver of ``beat_init``, there as soon as anything has imported it, takes each scheduler for one of RedBeat's
    #: that wants its leader lock, but for those that have none (redbeat 2.2 to 2.4, schedulers.py).
    lock_key: str | None = None

    #: Seconds for which what :meth:`reread` has told is trusted: older, it is asked again before a tick is published.
    trusted_for: float = math.inf

    #: Seconds between two batches, so that what is due a little later goes into one with it, where each batch is dear.
    gather: float = 0.0

    def __init__(self, app: Any, **kwargs: Any) -> None:
        self._options = AppOptions.read(app.conf)
        locks = LockOptions.read(app.conf, {}, owner="the app")
        self._options.connection(locks.driver, locks.connection)
        self._chosen = (locks.driver, locks.connection)
        self._clock: Callable[[], float] = monotonic
        self._wall: Callable[[], float] = time.time
        self._prepare(app)
        # by its name, as Celery does: some schedulers look for it there
        super().__init__(app=app, **kwargs)

    def _prepare(self, app: Any) -> None:
        self._name = str(app.main or "")
        self._replica = ""  # the name of this process among the beats, once it has joined
        self._known = False  # whether the store knows this replica and what it lists
        self._joined: Joined | None = None
        self._cold_start = 0.0  # on our clock
        self._agenda = Agenda(self._clock)
        self._unlisted: dict[str, Item] = {}
        self._removed: list[str] = []
        self._listed_at: float | None = None  # None: not yet, or not any more
        self._unsent: dict[str, _Tick] = {}
        self._sent: list[tuple[str, str]] = []  # (task id, key) of what waits to be settled
        self._giving_up: list[str] = []  # task ids of what waits to be handed over
        self._asked: set[str] = set()  # task ids of what may be ours, for all we know
        self._not_taken_over: StoreUnavailable | None = None  # why not, in this round
        self._skip = 0  # so many overdue claims, which none but another release knows
        self._refusals = 0  # messages in a row that a broker in reach has refused
        self._next_look = self._next_poll = self._next_batch = self._retry_at = 0.0
        self._troubled = False  # the last publish failed
        self._pause = RETRY_FIRST
        self._complained: dict[str, float] = {}
        self._wall_offset = self._wall() - self._clock()
        self._skew = 0.0  # by how much this host's wall clock is ahead of the store's
        self._in_tick = False
        self._ends = False  # close() was called in a tick
        self._announcements = Announcements(
            app, self._clock, scheduler=f"{type(self).__module__}:{type(self).__qualname__}"
        )
        self._health: HealthFile | None = None  # until it begins
        self._publishing: _Publishing | None = None
        self._in_celerys_tick = _Round(app, self._round)

    def _say_what_is_set(self) -> HealthFile:
        """Say what is set, once; Celery makes a scheduler also for its name alone. Raises ConfigurationError."""
        say_what_is_set(self.app, "ticks")
        self._health = HealthFile(self.app, "beat")
        return self._health

    def _be_let_in(self) -> None:
        """Ask the store once; one that does not answer is waited for later. Raises ConfigurationError."""
        with contextlib.suppress(StoreUnavailable):
            self._store.check()

    # -- one round -----------------------------------------------------------------------------------------------------

    def tick(self, *_args: Any, **_kwargs: Any) -> float:
        """Claim what is due, publish it and settle it; return the seconds until there is more to do."""
        health = self._health or self._say_what_is_set()
        self._in_tick = True
        try:
            rest = self._in_celerys_tick.seconds()
        except StoreUnavailable as exc:
            self._complain("store", "beat waits for the store of its ticks: %s", exc)
            rest = self._next_pause()
        finally:
            self._in_tick = False
        if self._ends:
            # a finalizer, or an "except:" of somebody's, has swallowed what Celery's signal handler raised
            raise SystemExit
        health.touch()
        return max(0.0, min(rest, float(self.max_interval)))

    def _round(self) -> float:
        store = self._store
        if not self._known:
            self._join(store)
        self._notice_clock_steps()
        self._look_for_changes()
        self._list(store)
        self._compare_with_others(store)
        self._settle(store)
        if self._troubled:
            now = self._clock()
            if now < self._retry_at:
                return self._retry_at - now
            if not self._reconnect():
                return self._next_pause()
        ticks = self._claim(store)
        if ticks:
            self._publish(ticks)
            self._settle(store)
            if self.should_sync():
                self._do_sync()
        elif self._troubled and not self._refusals:
            self._recovered("broker")
        if self._not_taken_over is not None:
            exc, self._not_taken_over = self._not_taken_over, None
            raise exc
        self._recovered("store")
        return self._rest()

    def _rest(self) -> float:
        now = self._clock()
        if self._troubled and now < self._retry_at:
            return self._retry_at - now
        if self._unlisted or self._announcements.unfinished:
            return 0.0
        until_due = self._agenda.until_next()
        # what changes elsewhere is looked for in time; all else is seen at whatever wakes us up
        changes_elsewhere = math.isfinite(self.trusted_for)
        until_poll = (min(self._next_poll, self._next_look) if changes_elsewhere else self._next_poll) - now
        return until_poll if until_due is None else min(max(until_due, self._next_batch - now), until_poll)

    def _next_pause(self) -> float:
        pause, self._pause = self._pause, min(2 * self._pause, RETRY_AT_MOST)
        self._retry_at = self._clock() + pause
        return pause

    @property
    def _store(self) -> Store:
        # never the one to fall back to: two beats in two stores would double everything
        return stores_of(self.app).choose(*self._chosen)[0]

    # -- the replica and its entries -----------------------------------------------------------------------------------

    def _join(self, store: Store) -> None:
        replica = self._replica or f"{socket.gethostname()}-{os.getpid()}-{uuid()[:8]}"
        store.check()
        asked = self._clock()
        earlier = None if self._joined is None else self._joined.cold_start
        joined = store.beats.join(self._name, replica, cold_start=earlier)
        self._notice_skew(joined.server_time, asked)
        self._joined = joined
        self._cold_start = self._clock() - (joined.server_time - joined.cold_start)
        self._replica, self._known = replica, True
        self._listed_at = None
        self._unlisted = {item.key: item for item in self._agenda}
        self._announcements.begin(replica)
        logger.info("beat %s has joined the replicas of %r", replica, self._name)

    def _look_for_changes(self) -> None:
        """Find the entries that were added, changed or removed since the last look."""
        started = self._clock()
        if started < self._next_look:
            return
        self.refresh_schedule()
        keys = set()
        for name, entry in list(self._entries().items()):
            key = self._key(name, entry)
            keys.add(key)
            item = self._agenda.get(key) or self._unlisted.get(key)
            if item is None:
                self._unlisted[key] = Item(key, entry)
            else:
                self._change(item, entry)
        for key in [item.key for item in self._agenda if item.key not in keys]:
            self._agenda.remove(key)
            self._removed.append(key)
            self._announcements.outdated = True
        for key in [key for key in self._unlisted if key not in keys]:
            del self._unlisted[key]
        pause = max(LOOK_EVERY, 100 * (self._clock() - started))
        self._next_look = self._clock() + min(pause, float(self.max_interval))

    def _entries(self) -> Mapping[str, Any]:
        """Return all entries, by names that tell them apart."""
        entries: Mapping[str, Any] = self.schedule
        return entries

    def _key(self, name: str, entry: Any) -> str:
        if isinstance(entry.schedule, Timeout) and self._joined is not None:
            # it runs once per cold start: another start's is another entry
            return f"{name}@{self._joined.cold_start * 1000:.0f}"
        return name

    def _compare_with_others(self, store: Store) -> None:
        """Announce what this beat lists, and take back what was left to others who are gone."""
        listed = not self._unlisted
        for key in self._announcements.look(store, self._agenda, wanted=self.defines, complete=listed):
            item = self._agenda.get(key)
            if item is not None:
                self._plan(item)

    def defines(self, entry: Any) -> bool:  # noqa: ARG002
        """Whether this beat's own settings define the entry: where all read it at one place, they cannot differ."""
        return not math.isfinite(self.trusted_for)

    def refresh_schedule(self) -> None:
        """Bring ``schedule`` up to date, where its property does not do so; called about once a second."""

    def reread(self, keys: Sequence[str]) -> Mapping[str, tuple[str, Any]] | None:  # noqa: ARG002
        """Tell what is behind these keys now, as their ticks are about to be claimed or published: (key, entry) each.

        A key of which there is no entry any more is left out; None: ``schedule`` tells all changes in good time.
        """
        return None

    def record_runs(self, keys: Sequence[str]) -> None:
        """Write down elsewhere that the entries with these keys have run; called before their claims are settled."""

    def _change(self, item: Item, entry: Any) -> None:
        if item.entry is entry and item.schedule is entry.schedule:
            return
        if item.entry is not entry and entry.total_run_count <= item.entry.total_run_count:
            entry.last_run_at, entry.total_run_count = item.entry.last_run_at, item.entry.total_run_count
            self.adopted(entry)
        item.entry, item.schedule = entry, entry.schedule
        self._announcements.outdated = True
        if item.key in self._agenda:
            self._plan(item)

    def _list(self, store: Store) -> None:
        """Tell the store of some entries that are new here, and take over what it knows of them."""
        items = list(islice(self._unlisted.values(), LIST_AT_ONCE))
        keep = self._listed_at is None or self._clock() - self._listed_at > KEEP_EVERY
        if not (items or self._removed or keep):
            return
        complete = len(items) == len(self._unlisted)
        states = store.beats.list_entries(
            self._name,
            self._replica,
            [(item.key, self._state_of(item.entry)) for item in items],
            removed=self._removed,
            complete=complete,
        )
        self._removed.clear()
        for item, state in zip(items, states, strict=True):
            del self._unlisted[item.key]
            self._adopt(item, state)
            self._agenda.add(item)
            self._plan(item)
            self._announcements.outdated = True
        if complete:
            self._listed_at = self._clock()

    def _adopt(self, item: Item, state: EntryState) -> None:
        """Take over what the store knows of an entry, unless it has lost what we know."""
        entry = item.entry
        if state.total_run_count < entry.total_run_count:
            return
        zone = entry.last_run_at.tzinfo
        try:
            time_ = self._time_of(state, entry, zone)
            if bool(time_.tzinfo) != bool(zone) or (time_ - entry.default_now()).total_seconds() > TO_COME:
                raise ValueError(state.last_run_at)
            entry.last_run_at = time_
        except (ValueError, TypeError, OverflowError):
            # as if it had run just now: a tick may be missed, but none is sent twice; the next claim writes a time again
            text = "the store has %r as the last run of entry %r, which is no time, or one to come: now is taken for it"
            self._complain(f"time of {item.key}", text, state.last_run_at[:100], item.key)
            entry.last_run_at = entry.default_now()
        entry.total_run_count = state.total_run_count
        self.adopted(entry)

    def _time_of(self, state: EntryState, entry: Any, zone: Any) -> datetime:
        """Read a time in the zone of its entry: Celery takes a crontab's fields off it as it is (celery 5.4, schedules.py)."""
        time_ = _later(datetime.fromisoformat(state.last_run_at), self._skew_of(entry))
        return time_.astimezone(zone) if time_.tzinfo and zone else time_

    def _state_of(self, entry: Any) -> EntryState:
        last_run_at = _later(entry.last_run_at, -self._skew_of(entry))
        return EntryState(entry.total_run_count, last_run_at.isoformat())

    def _skew_of(self, entry: Any) -> float:
        """Return what to take off this host's time of a run, for the others to count on.

        Intervals are counted by the store's clock: by a clock that is slow, the next run of an entry would be due at once
        on a host whose clock is right. What the tick of a crontab is called is the same by any clock, so it stays.
        """
        return self._skew if type(entry.schedule) is schedule and not entry.schedule.relative else 0.0

    # -- due -----------------------------------------------------------------------------------------------------------

    def _plan(self, item: Item) -> None:
        """Plan an entry by its schedule and its last run."""
        now = self._clock()
        if isinstance(item.schedule, Timeout):
            if not item.entry.total_run_count:
                self._agenda.plan(item, self._cold_start + item.schedule.seconds)
            return
        is_due, delay = self._is_due(item.entry)
        # since when it is due, for the tick's own time
        self._agenda.plan(item, now - _overdue_for(item.entry) if is_due else now + delay)

    def _is_due(self, entry: Any) -> tuple[bool, float]:
        try:
            is_due, delay = self.is_due(entry)
        except Exception:
            # one entry whose next run cannot be told must not stop the others
            logger.exception("cannot tell when entry %r is due; trying again in %g s", entry.name, self.max_interval)
            return False, self.max_interval
        if not isinstance(delay, (int, float)):
            delay = self.max_interval
        return bool(is_due), max(delay, SHORTEST)

    def _due(self, items: Sequence[Item]) -> list[Item]:
        """Of what was planned for now return what is due, each with the claim to make for it."""
        due: list[Item] = []
        for item in self._unchanged(items):
            if self._announcements.leaves(item.key):
                self._agenda.plan(item, self._clock() + LEFT_FOR)
                continue
            late = self._clock() - item.when
            is_due, item.delay = (True, 0.0) if isinstance(item.schedule, Timeout) else self._is_due(item.entry)
            if not is_due:
                self._agenda.plan(item, self._clock() + item.delay)
                continue
            now = item.entry.default_now()
            run = item.entry.total_run_count + 1
            asked = item.claim
            # The same tick under the same task id, if the answer to an earlier try was lost.
            task_id = asked.task_id if asked is not None and asked.state.total_run_count == run else uuid()
            tick = (now - timedelta(seconds=late)).isoformat(timespec="milliseconds")
            item.claim = Claim(
                task_id, item.key, EntryState(run, _later(now, -self._skew_of(item.entry)).isoformat()), {"due": tick}
            )
            due.append(item)
        return due

    def _unchanged(self, items: Sequence[Item]) -> list[Item]:
        """Leave out what is gone, or another entry now; the look that finds out what became of it comes next."""
        told = self.reread([item.key for item in items]) if items else None
        if told is None:
            return list(items)
        unchanged = []
        for item in items:
            key, entry = told.get(item.key, (None, None))
            if key == item.key:
                self._change(item, entry)
                unchanged.append(item)
            else:
                self._agenda.plan(item, item.when)
                self._next_look = 0.0
        return unchanged

    # -- claim, take over ----------------------------------------------------------------------------------------------

    def _claim(self, store: Store) -> list[_Tick]:
        """Claim what is due, and take over what others have left; return what is ours to publish, oldest first."""
        # one message alone shows whether a broker that was in trouble works again
        limit = 1 if self._troubled else BATCH
        read = self._clock()
        items = list(islice(iter(self._agenda.due, None), limit)) if read >= self._next_batch else []
        try:
            due = self._due(items)
            asked = self._clock()
            if due:
                self._next_batch = asked + self.gather if len(items) < limit else 0.0
            elif asked < self._next_poll:
                return []
            claims = [item.claim for item in due if item.claim is not None]
            self._asked.update(claim.task_id for claim in claims)
            answer = self._ask(store, claims)
        except StoreUnavailable:
            for item in items:
                self._agenda.plan(item, item.when)
            raise
        self._notice_skew(answer.server_time, asked)
        self._known = answer.listed
        ticks = []
        for item, refusal in zip(due, answer.refusals, strict=True):
            if refusal is None:
                ticks.append(self._granted(item, asked, read))
            else:
                self._refused(item, refusal)
        self._asked.difference_update(claim.task_id for claim in claims)
        return [*self._take_over(store, answer, limit), *ticks]

    def _ask(self, store: Store, claims: list[Claim]) -> Claims:
        answer = store.beats.claim(self._name, self._replica, claims, ttl=self._options.claim_ttl, skip=self._skip)
        # soon enough to see each claim before it is overdue, and to count as alive
        until = min(self._options.claim_ttl, ALIVE) / 4
        if answer.next_overdue is not None:
            until = min(until, answer.next_overdue)
        self._next_poll = self._clock() + until
        return answer

    def _granted(self, item: Item, asked: float, read: float) -> _Tick:
        claim, item.claim = item.claim, None
        assert claim is not None  # it was asked for  # noqa: S101
        self._advance(item, claim.state)
        if item.key in self._agenda and not isinstance(item.schedule, Timeout):
            self._agenda.plan(item, asked + item.delay)
        sure_until = read + self.trusted_for
        return self._note(item, claim.state.total_run_count, claim.task_id, claim.details, asked, sure_until)

    def _note(
        self, item: Item, run: int, task_id: str, told: Mapping[str, Any], asked: float, sure_until: float
    ) -> _Tick:
        tick = _Tick(item, run, task_id, told, asked + self._options.claim_ttl * (1 - MARGIN), sure_until)
        self._unsent[task_id] = tick
        return tick

    def _advance(self, item: Item, state: EntryState) -> None:
        """Let the scheduler move the entry on by one run; then it has the state of the claim."""
        zone = item.entry.last_run_at.tzinfo
        item.entry = self.reserve(item.entry)
        item.schedule = item.entry.schedule
        item.entry.last_run_at = self._time_of(state, item.entry, zone)
        item.entry.total_run_count = state.total_run_count
        self.adopted(item.entry)

    def adopted(self, entry: Any) -> None:
        """Take notice that ``last_run_at`` and ``total_run_count`` of an entry are now those that all replicas know."""

    def _refused(self, item: Item, state: EntryState) -> None:
        """The tick is another's, or the entry has too many that are not yet published."""
        backlog = state.total_run_count <= item.entry.total_run_count
        self._adopt(item, state)
        if item.key not in self._agenda:
            return
        if backlog:
            self._agenda.plan(item, self._clock() + self._options.claim_ttl / 4)
        else:
            self._plan(item)

    def _take_over(self, store: Store, answer: Claims, limit: int) -> list[_Tick]:
        known: list[tuple[Overdue, Item]] = []
        for each in answer.overdue:
            item = self._item_of(each.entry)
            if item is not None and not self._announcements.leaves(each.entry):
                known.append((each, item))
        # what only another release knows is left to it, and must not hide what comes after it
        hidden = len(answer.overdue) == OVERDUE_AT_ONCE and not known
        self._skip = self._skip + OVERDUE_AT_ONCE if hidden else 0
        known = sorted(known, key=lambda pair: (pair[0].entry, pair[0].run))[:limit]
        if not known:
            return []
        self._next_poll = asked = self._clock()  # there may be more
        ids = [each.task_id for each, _ in known]
        self._asked.update(ids)
        try:
            taken = store.beats.take_over(self._name, self._replica, ids, ttl=self._options.claim_ttl)
        except StoreUnavailable as exc:
            # those that we have claimed are to be published all the same
            self._not_taken_over = exc
            # if they are ours now, others need not wait for that to be over
            self._giving_up += ids
            self._asked.difference_update(ids)
            return []
        # the entry may have been deleted since it was claimed
        sure_until = asked if math.isfinite(self.trusted_for) else math.inf
        ticks = [
            self._note(item, each.run, each.task_id, each.details, asked, sure_until)
            for (each, item), ours in zip(known, taken, strict=True)
            if ours
        ]
        self._asked.difference_update(ids)
        return ticks

    def _item_of(self, key: str) -> Item | None:
        """Return what a claim that somebody has left is of; None: it is left to others."""
        return self._agenda.get(key)

    # -- publish -------------------------------------------------------------------------------------------------------

    def _publish(self, ticks: Sequence[_Tick]) -> None:
        """Publish what can be published; what cannot is handed over, or left to be taken over when its ttl is over."""
        try:
            with _without_results():
                self._publish_or_hand_over(ticks)
        except StoreUnavailable:
            # nobody can tell whether they are still wanted
            self._give_up()
            raise

    def _publish_or_hand_over(self, ticks: Sequence[_Tick]) -> None:
        try:
            if self._can_batch():
                self._publish_at_once(ticks)
                return
        except StoreUnavailable:
            raise
        except Exception as exc:  # noqa: BLE001  whatever else it was, it is the broker's
            self._trouble(exc)
            if not self._reconnect():
                self._give_up()
                return
        # Which of a batch that failed has arrived cannot be known: at least once, under one task id.
        self._publish_one_by_one(ticks)

    def _can_batch(self) -> bool:
        # kombu 5.7 and newer, with some transports
        return bool(getattr(self.producer, "supports_batch_publish", False))

    def _publish_at_once(self, ticks: Sequence[_Tick]) -> None:
        while ticks := self._wanted(ticks):
            try:
                with self.producer.batch():
                    for tick in ticks:
                        self._send(tick)
                    now = self._clock()
                    if any(now >= min(tick.fresh_until, tick.sure_until) for tick in ticks):
                        # we were frozen while the batch was made: it must not be flushed
                        raise _Stale
            except _Stale:
                continue
            self._published(ticks)
            return

    def _publish_one_by_one(self, ticks: Sequence[_Tick]) -> None:
        for tick in ticks:
            try:
                for wanted in self._wanted([tick]):
                    self._send(wanted)
                    self._published([wanted])
            except StoreUnavailable:  # noqa: PERF203
                raise
            except Exception as exc:  # noqa: BLE001  as above
                self._trouble(exc)
                self._refusals += 1
                if self._refusals >= REFUSALS_IN_A_ROW or not self._reconnect():
                    self._give_up()
                    return
                # it alone may be at fault: it is tried again when its claim has run out
                self._unsent.pop(tick.task_id, None)

    def _wanted(self, ticks: Sequence[_Tick]) -> list[_Tick]:
        """Leave out what has grown too old, and what is of entries that have been deleted or disabled meanwhile."""
        now = self._clock()
        unsure = {tick.item.key for tick in ticks if tick.sure_until <= now < tick.fresh_until}
        told = (self.reread(list(unsure)) if unsure else None) or {}
        wanted = []
        for tick in ticks:
            _, entry = told.get(tick.item.key, (None, None))
            if now >= tick.fresh_until:
                # we were frozen: it may have been published by another by now
                self._unsent.pop(tick.task_id, None)
            elif now < tick.sure_until:
                wanted.append(tick)
            elif entry is not None and getattr(entry, "enabled", True):
                self._change(tick.item, entry)
                wanted.append(tick._replace(sure_until=now + self.trusted_for))
            else:
                logger.info("tick %s of %r is not sent: it was deleted or disabled", dict(tick.told), tick.item.key)
                # settled like those that are sent, or others would take it over
                self._unsent.pop(tick.task_id, None)
                self._sent.append((tick.task_id, tick.item.key))
        return wanted

    def _published(self, ticks: Sequence[_Tick]) -> None:
        for tick in ticks:
            if self._unsent.pop(tick.task_id, None) is not None:
                self._sent.append((tick.task_id, tick.item.key))
        self._refusals = 0
        self._recovered("broker")

    def _send(self, tick: _Tick) -> None:
        """Send the message of one tick by the ways of Celery's beat. Raises what the broker's client raises."""
        producer = self.producer
        self._publishing = publishing = _Publishing(tick)
        try:
            # what wraps it, such as Sentry's, writes into the options: they are those of one tick
            self.apply_entry(_copied(tick.item.entry), producer=producer)
        except _NotSent:
            pass
        except Exception as exc:  # noqa: BLE001  somebody's own apply_entry
            publishing.error = publishing.error or exc
        finally:
            self._publishing = None
        error = publishing.error
        if error is None:
            return
        if self._is_brokers(error):
            raise error
        # no other replica could send it either
        text = "tick %s of entry %r is lost: its message cannot be made: %s: %s"
        logger.error(text, dict(tick.told), tick.item.entry.name, type(error).__name__, error, exc_info=error)

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Send a message as :meth:`celery.beat.Scheduler.apply_async` does: that of the tick under way with its id and header."""
        publishing = self._publishing
        if publishing is None or entry.name != publishing.tick.item.entry.name:
            return super().apply_async(entry, producer=producer, advance=advance, **kwargs)
        try:
            message = _message(entry, publishing.tick)
            # it was advanced when it was claimed
            return super().apply_async(message, producer=producer, advance=False, **kwargs)
        except Exception as exc:
            cause = exc.__context__ if isinstance(exc, SchedulingError) else None
            publishing.error = cause if isinstance(cause, Exception) else exc
            if type(self).apply_async is LockedSchedulerMixin.apply_async:
                raise _NotSent from exc
            raise  # to a subclass's, which may want to know of it

    def should_sync(self) -> bool:
        """Tell whether it is time to, which it is not between the messages of a batch."""
        return self._publishing is None and bool(super().should_sync())

    def _is_brokers(self, exc: Exception) -> bool:
        # kombu's Redis transport counts KeyError among its connection errors (kombu 5.7, transport/redis.py)
        if isinstance(exc, (LookupError, TypeError, ValueError)):
            return False
        # kombu's transports do not all count OSError (kombu 5.7: memory and filesystem, say)
        errors = (OperationalError, OSError, *self.connection.connection_errors, *self.connection.channel_errors)
        return isinstance(exc, errors)

    def _trouble(self, exc: Exception) -> None:
        self._troubled = True
        self._complain("broker", "beat cannot publish, and keeps what is due: %s: %s", type(exc).__name__, exc)
        self._drop_connection()

    def _give_up(self) -> None:
        """Leave what is not sent to whoever reaches the broker first, in the order in which it was claimed."""
        self._giving_up += self._unsent
        self._unsent.clear()
        self._next_pause()

    def _reconnect(self) -> bool:
        try:
            self.producer.channel  # noqa: B018  it connects
        except Exception as exc:  # noqa: BLE001  a transport's own
            self._trouble(exc)
            return False
        return True

    @cached_property
    def connection(self) -> Any:
        """The broker's connection, with limits and confirmations where Celery has none."""
        connection = self.app.connection_for_write()
        by_driver: dict[str, dict[str, Any]] = {
            # a message that RabbitMQ has not confirmed is not published
            "amqp": {"confirm_publish": True},
            # a server that hangs must not hang the beat for longer than its claims last
            "redis": {"socket_timeout": max(1.0, self._options.claim_ttl)},
        }
        ours = by_driver.get(connection.transport.driver_type, {})
        connection.transport_options = {**ours, **(connection.transport_options or {})}
        return connection

    def _ensure_connected(self) -> Any:
        # Celery's own tries a hundred times, for hours, and lets nothing else happen meanwhile.
        return self.connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)

    def _drop_connection(self) -> None:
        self.__dict__.pop("producer", None)
        connection = self.__dict__.pop("connection", None)
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.release()

    # -- settle --------------------------------------------------------------------------------------------------------

    def _settle(self, store: Store) -> None:
        """Tell the store what is published and what is not, in one call; what it does not hear it is told again."""
        if not (self._sent or self._giving_up):
            return
        sent, giving_up = list(self._sent), list(self._giving_up)
        if sent:
            self.record_runs([key for _, key in sent])
        settled = store.beats.settle(self._name, self._replica, sent, handed_over=giving_up)
        del self._sent[: len(sent)], self._giving_up[: len(giving_up)]
        for (task_id, key), ours in zip(sent, settled, strict=True):
            if not ours:
                logger.warning("task %s of entry %r may have been sent twice: another beat took it over", task_id, key)

    def close(self) -> None:
        """Settle what is published, hand over the rest, and leave; idempotent.

        Celery's signal handlers call it in the middle of whatever goes on, and once more when that has been unwound: the
        second call does the work.
        """
        if self._in_tick:
            self._ends = True
            return
        self._ends = False
        if self._known:
            self._known = False
            self._give_up()
            self._giving_up += self._asked
            self._asked.clear()
            try:
                self._settle(self._store)
                self._store.beats.leave(self._name, self._replica)
                self._announcements.end(self._store)
            except StoreUnavailable as exc:
                logger.warning("beat leaves without a word, for the store does not answer: %s", exc)
        self._drop_connection()
        super().close()

    # -- what is told --------------------------------------------------------------------------------------------------

    def _complain(self, about: str, message: str, *args: Any) -> None:
        now = self._clock()
        if now - self._complained.get(about, -COMPLAIN_EVERY) >= COMPLAIN_EVERY:
            self._complained[about] = now
            logger.error(message, *args)

    def _recovered(self, about: str) -> None:
        if about == "broker":
            self._troubled = False
        if not self._troubled:
            self._pause = RETRY_FIRST
        if self._complained.pop(about, None) is not None:
            logger.info("beat reaches the %s again", about)

    def _notice_skew(self, server_time: float, asked: float) -> None:
        took = self._clock() - asked
        skew = self._wall() - took / 2 - server_time
        if abs(skew - self._skew) > took / 2 + INEXACT:
            self._skew = skew
        if abs(skew) > SKEW + took and "skew" not in self._complained:
            self._complained["skew"] = self._clock()
            how = "earlier" if skew > 0 else "later"
            logger.warning(
                "the clock of this host differs from the store's by %+.1f s: crontabs fire as much %s", skew, how
            )

    def _notice_clock_steps(self) -> None:
        offset = self._wall() - self._clock()
        if abs(offset - self._wall_offset) > SKEW / 2:
            # the wall clock was set: what was planned by the old one is wrong
            for item in self._agenda:
                self._plan(item)
        self._wall_offset = offset


@signals.beat_init.connect  # type: ignore[untyped-decorator]
def _begin(sender: Any, **_: Any) -> None:
    """Let a beat that is a process end with one line where something is set wrong."""
    try:
        if isinstance(sender.scheduler, LockedSchedulerMixin):
            sender.scheduler._say_what_is_set()
            sender.scheduler._be_let_in()
    except ConfigurationError as exc:
        # Celery swallows all but what ends the process
        raise SystemExit(str(exc)) from exc


class LockedScheduler(LockedSchedulerMixin, Scheduler):  # type: ignore[misc]
    """The scheduler for ``app.conf.beat_schedule``, ``add_periodic_task`` and the decorators, on any number of replicas.

    Changes of ``beat_schedule`` at run time are followed. It keeps no file.
    """

    #: What ``app.conf.beat_schedule`` was when it was last looked at; None: it is not followed, for others set up the entries.
    _settings: dict[str, Any] | None = None

    def __init__(self, app: Any, **kwargs: Any) -> None:
        super().__init__(app, **kwargs)
        if kwargs.get("lazy"):
            # Celery makes one for its banner first: what is wrong ends the beat there, before it logs it with a traceback
            for name, definition in dict(app.conf.beat_schedule).items():
                self._made(name, definition)

    def setup_schedule(self) -> None:
        """Make the entries of the settings, and Celery's own default entries. Raises ConfigurationError."""
        self._settings = {}
        for name, definition in dict(self.app.conf.beat_schedule).items():
            self._follow(self._settings, name, definition)
        self.install_default_entries(self.data)

    def reserve(self, entry: Any) -> Any:
        """Keep the entry: making another for each run, as Celery does, costs more than all the rest of a tick."""
        return entry

    def refresh_schedule(self) -> None:
        """Follow changes of ``app.conf.beat_schedule``."""
        if self._settings is None:
            return
        # a copy, for another thread may change it meanwhile
        wanted = dict(self.app.conf.beat_schedule)
        if self._settings == wanted:
            return
        for name in self._settings.keys() - wanted.keys():
            del self._settings[name]
            self.data.pop(name, None)
        for name, definition in wanted.items():
            if self._settings.get(name) != _fields_of(definition):
                try:
                    self._follow(self._settings, name, definition)
                except ConfigurationError as exc:
                    logger.error("a change of the schedule is not followed: %s", exc)  # noqa: TRY400  it says it all

    def _follow(self, settings: dict[str, Any], name: str, definition: Any) -> None:
        settings[name] = fields = _fields_of(definition)
        self.data[name] = self._made(name, fields)

    def _made(self, name: str, definition: Any) -> Any:
        try:
            entry = self.Entry(**dict(definition, name=name, app=self.app))
            if not entry.task or entry.schedule is None:
                raise TypeError("it needs a task and a schedule")
        except (TypeError, ValueError, AttributeError) as exc:
            allowed = "task, and schedule (seconds, a timedelta, a crontab or another schedule), args, kwargs, options, relative"
            raise ConfigurationError(f"beat_schedule[{name!r}] is {definition!r} ({exc}); allowed: {allowed}") from exc
        return entry


def _fields_of(definition: Any) -> Any:
    """Copy a definition, for the user may change it in place; what is none is refused when it is followed."""
    try:
        return dict(definition)
    except (TypeError, ValueError):
        return definition


def _without_results() -> contextlib.AbstractContextManager[None]:
    """Keep Celery from subscribing to the result of each message that is sent: nobody here will ask for it.

    The switch is one for the whole process, where other threads may wait for results: so only in a beat of its own.
    """
    alone = threading.current_thread() is threading.main_thread()
    switch: contextlib.AbstractContextManager[None] = denied_join_result() if alone else contextlib.nullcontext()
    return switch


def _copied(entry: Any) -> Any:
    """Copy an entry, so that its options can be written into; copy.copy() does as pickle does, which entries make more of."""
    other = object.__new__(type(entry))
    vars(other).update(vars(entry))
    other.options = options = dict(entry.options or {})
    if isinstance(options.get("headers"), Mapping):
        options["headers"] = dict(options["headers"])
    return other


def _evaluated(entry: Any) -> tuple[list[Any], dict[str, Any]]:
    try:
        args = [value() if isinstance(value, BeatLazyFunc) else value for value in entry.args or ()]
        kwargs = {
            name: value() if isinstance(value, BeatLazyFunc) else value for name, value in (entry.kwargs or {}).items()
        }
    except Exception as exc:
        # a function of the user's that raises OSError is no broker in trouble
        raise ValueError(f"its arguments cannot be made: {type(exc).__name__}: {exc}") from exc
    return args, kwargs


def _message(entry: Any, tick: _Tick) -> Any:
    """Return an entry whose message is that of this tick. Raises ValueError."""
    message = _copied(entry)
    options = message.options
    # the claim's, unless the user wants another
    options["task_id"] = options.get("task_id") or tick.task_id
    header = _header(tick)
    if options["task_id"] != tick.task_id:
        header["claim"] = tick.task_id
    options["headers"] = {
        **(options.get("headers") or {}),
        "celery_beat_task": True,
        "lockbeat": header,
        # whoever takes the claim over sends a copy
        NONCE: tick.task_id,
    }
    # retried by us, for a claim has its time
    options["retry"] = False
    message.args, message.kwargs = _evaluated(entry)
    return message


def _header(tick: _Tick) -> dict[str, Any]:
    kind = _kind(tick.item.schedule)
    return {**tick.told, "entry": tick.item.entry.name, "run": tick.run, **({"kind": kind} if kind else {})}


def _kind(when: Any) -> str | None:
    if isinstance(when, Timeout):
        return "timeout"
    if isinstance(when, crontab):
        return "cron"
    return "interval" if isinstance(when, schedule) else None


def _later(time_: datetime, seconds: float) -> datetime:
    if not seconds:
        return time_
    # with a fixed offset, for Python adds to the wall time of a zone, over changes of its clocks too
    return datetime.fromisoformat(time_.isoformat()) + timedelta(seconds=seconds)


def _overdue_for(entry: Any) -> float:
    """Seconds since when the entry has been due; 0 where its schedule cannot tell, or it has never run."""
    if entry.last_run_at.year == MINYEAR:
        return 0.0
    try:
        return max(0.0, -float(entry.schedule.remaining_estimate(entry.last_run_at).total_seconds()))
    except Exception:  # noqa: BLE001  a schedule of the user's
        return 0.0

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
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from celery import signals
from celery.beat import Scheduler, SchedulingError
from kombu.utils.objects import cached_property

from celery_lockbeat.beat.agenda import Agenda
from celery_lockbeat.beat.announcements import Announcements
from celery_lockbeat.beat.claims import BATCH, Claimer
from celery_lockbeat.beat.clocks import Clocks
from celery_lockbeat.beat.controls import Controls
from celery_lockbeat.beat.ledger import Ledger
from celery_lockbeat.beat.messages import message_of
from celery_lockbeat.beat.planner import Planner
from celery_lockbeat.beat.publisher import NotSent, Publisher, limited
from celery_lockbeat.beat.recorder import Recorder
from celery_lockbeat.beat.replicas import Replica
from celery_lockbeat.beat.rules import Rules
from celery_lockbeat.beat.silence import Silence
from celery_lockbeat.beat.trouble import Backoff, Complaints
from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import ConfigurationError, StoreUnavailable
from celery_lockbeat.journal.writer import finish as finish_journal
from celery_lockbeat.journal.writer import journal_of
from celery_lockbeat.membership.health import HealthFile
from celery_lockbeat.membership.startup import say_what_is_set
from celery_lockbeat.options import AppOptions, LockOptions
from celery_lockbeat.stores import name_of, stores_of
from celery_lockbeat.stores.base import Store

__all__ = ["LockedScheduler", "LockedSchedulerMixin"]

logger: Final = logging.getLogger("celery_lockbeat.beat")

# What is mixed in is made for a celery.beat.Scheduler, which ships no types.
if TYPE_CHECKING:
    _Mixed = Any
else:
    _Mixed = object


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

    #: Seconds for which what :meth:`reread` has returned is trusted: older, it is asked again before a tick is published.
    trusted_for: float = math.inf

    #: Seconds between two batches, so that what is due a little later goes into one with it, where each batch is dear.
    gather: float = 0.0

    def __init__(self, app: Any, **kwargs: Any) -> None:
        self._options = AppOptions.read(app.conf)
        locks = LockOptions.read(app.conf, {}, owner="the app")
        self._options.connection(locks.driver, locks.connection)
        self._chosen = (locks.driver, locks.connection)
        self._name = name_of(app)
        self._health: HealthFile | None = None  # until it begins
        self._in_tick = False
        self._ends = False  # close() was called in a tick
        self._in_celerys_tick = _Round(app, self._round)
        self._furnish(app)
        # by its name, as Celery does: some schedulers look for it there
        super().__init__(app=app, **kwargs)

    def _furnish(self, app: Any) -> None:
        """Make the parts that do the work, each with what it needs of those above it."""
        self._clock: Callable[[], float] = monotonic
        self._clocks = Clocks(self._clock, time.time)
        self._complaints = Complaints(self._clock)
        self._backoff = Backoff(self._clock)
        self._agenda = Agenda(self._clock)
        self._announcements = Announcements(
            app, self._clock, scheduler=f"{type(self).__module__}:{type(self).__qualname__}"
        )
        rules = Rules(self._options.entries or {}, self._options.late_after)
        self._planner = Planner(self, rules, self._agenda, self._clocks, self._complaints)
        self._replica = Replica(self._name, self, self._entries_by_key, self._agenda, self._planner, self._clocks)
        self._ledger = Ledger()
        late_after = self._options.late_after or None
        self._silence = Silence(self, app, self._options.silent_after if self._options.journal else 0)
        recorder = Recorder(self, journal_of(app), lambda: self._replica.name, time.time, late_after)
        self._claimer = Claimer(
            self,
            self._stand_in,
            self._announcements.leaves,
            self._agenda,
            self._planner,
            self._clocks,
            self._replica,
            self._ledger,
            recorder,
            ttl=self._options.claim_ttl,
        )
        self._controls = Controls(
            app,
            journal_of(app),
            self._agenda,
            self._claimer,
            self._replica,
            self._announcements.leaves,
            self._complaints,
            self._clock,
        )
        self._publisher = Publisher(
            self,
            self._disconnect,
            self._planner,
            self._ledger,
            recorder,
            self._complaints,
            self._backoff,
            self._clock,
            self._clocks.store_time,
        )

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
            self._complaints.make("store", "beat waits for the store of its ticks: %s", exc)
            rest = self._backoff.next_pause()
        finally:
            self._in_tick = False
        if self._ends:
            # a finalizer, or an "except:" of somebody's, has swallowed what Celery's signal handler raised
            raise SystemExit
        health.touch()
        return max(0.0, min(rest, float(self.max_interval)))

    def _round(self) -> float:
        store = self._store
        if not self._replica.known:
            store.check()
            self._replica.join(store.beats)
            self._announcements.begin(self._replica.name)
            self._silence.begin()
        if self._clocks.has_stepped():
            # what was planned by the wall clock as it was is wrong
            self._planner.plan_all()
        self._replica.look_for_changes()
        self._replica.list_entries(store.beats)
        self._compare_with_others(store)
        self._settle(store)
        if (pause := self._publisher.pause()) is not None:
            return pause
        self._controls.look(store)
        # one message alone shows whether a broker that was in trouble works again
        ticks = self._claimer.claim(store.beats, 1 if self._publisher.troubled else BATCH)
        if not self._publisher.troubled:
            ticks += self._controls.ticks(store)
        if ticks:
            self._publisher.publish(ticks)
            self._settle(store)
            if self.should_sync():
                self._do_sync()
        else:
            self._publisher.nothing_to_send()
        self._claimer.check()
        self._store_is_well()
        return self._rest()

    def _compare_with_others(self, store: Store) -> None:
        """Announce what this beat lists, and take back what was left to others who are gone."""
        listed = self._replica.has_listed
        for key in self._announcements.look(store, self._agenda, wanted=self.defines, complete=listed):
            item = self._agenda.get(key)
            if item is not None:
                self._planner.plan(item)

    def _settle(self, store: Store) -> None:
        self._ledger.settle(store.beats, self._name, self._replica.name, self.record_runs)

    def _store_is_well(self) -> None:
        if not self._publisher.troubled:
            self._backoff.reset()
        if self._complaints.end("store"):
            logger.info("beat reaches the store again")

    def _rest(self) -> float:
        if self._publisher.troubled and (pause := self._backoff.rest()) > 0:
            return pause
        if self._announcements.unfinished or self._controls.unfinished or not self._replica.has_listed:
            return 0.0
        rest = min(self._claimer.until_next(), self._controls.until_look())
        # what changes elsewhere is looked for in time; all else is seen at whatever wakes us up
        return min(rest, self._replica.until_look()) if math.isfinite(self.trusted_for) else rest

    @property
    def _store(self) -> Store:
        # never the one to fall back to: two beats in two stores would double everything
        return stores_of(self.app).choose(*self._chosen)[0]

    def close(self) -> None:
        """Settle what is published, hand over the rest, and leave; idempotent.

        Celery's signal handlers call it in the middle of whatever goes on, and once more when that has been unwound: the
        second call does the work.
        """
        if self._in_tick:
            self._ends = True
            return
        self._ends = False
        if self._replica.known:
            self._replica.known = False
            self._ledger.hand_over_all()
            try:
                self._settle(self._store)
                self._replica.leave(self._store.beats)
                self._announcements.end(self._store)
            except StoreUnavailable as exc:
                logger.warning("beat leaves without a word, for the store does not answer: %s", exc)
        self._silence.end()
        finish_journal()
        self._disconnect()
        super().close()

    # -- what a scheduler may override ---------------------------------------------------------------------------------

    def refresh_schedule(self) -> None:
        """Bring ``schedule`` up to date, where its property does not do so; called about once a second."""

    def reread(self, keys: Sequence[str]) -> Mapping[str, tuple[str, Any]] | None:  # noqa: ARG002
        """Return what is behind these keys now, as their ticks are about to be claimed or published: (key, entry) each.

        A key of which there is no entry any more is left out; None: ``schedule`` shows all changes in good time.
        """
        return None

    def adopted(self, entry: Any) -> None:
        """Take notice that ``last_run_at`` and ``total_run_count`` of an entry are now those that all replicas know."""

    def record_runs(self, keys: Sequence[str]) -> None:
        """Write down elsewhere that the entries with these keys have run; called before their claims are settled."""

    def defines(self, entry: Any) -> bool:  # noqa: ARG002
        """Whether this beat's own settings define the entry: where all read it at one place, they cannot differ."""
        return not math.isfinite(self.trusted_for)

    def should_sync(self) -> bool:
        """Whether it is time to, which it is not between the messages of a batch."""
        return self._publisher.sending is None and bool(super().should_sync())

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Send a message as :meth:`celery.beat.Scheduler.apply_async` does: that of the tick under way with its id and header."""
        sending = self._publisher.sending
        if sending is None or entry.name != sending.tick.item.entry.name:
            return super().apply_async(entry, producer=producer, advance=advance, **kwargs)
        try:
            message = message_of(sending.tick, entry)
            # it was advanced when it was claimed
            result = super().apply_async(message, producer=producer, advance=False, **kwargs)
            sending.is_refused = getattr(result, "already_queued", False)
            return result  # noqa: TRY300  as above
        except Exception as exc:
            cause = exc.__context__ if isinstance(exc, SchedulingError) else None
            sending.error = cause if isinstance(cause, Exception) else exc
            if type(self).apply_async is LockedSchedulerMixin.apply_async:
                raise NotSent from exc
            raise  # to a subclass's, which may want to know of it

    @cached_property
    def connection(self) -> Any:
        """The broker's connection, with limits and confirmations where Celery has none."""
        return limited(self.app.connection_for_write(), self._options.claim_ttl)

    def _ensure_connected(self) -> Any:
        # Celery's own tries a hundred times, for hours, and lets nothing else happen meanwhile.
        return self.connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)

    def _disconnect(self) -> None:
        self.__dict__.pop("producer", None)
        connection = self.__dict__.pop("connection", None)
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.release()

    # -- what ours over RedBeat and Django override, too ---------------------------------------------------------------

    def _entries_by_key(self) -> Mapping[str, Any]:
        """Return all entries by their keys in the store of the ticks, which tell them apart."""
        return self._keyed(self.schedule)

    def _keyed(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        """Return entries that have names of their own by their keys."""
        # a list first, for another thread may add some meanwhile
        return {self._replica.key_of(name, entry): entry for name, entry in list(entries.items())}

    def _stand_in(self, key: str) -> Any:  # noqa: ARG002
        """Return an entry in place of an unknown one whose claim somebody has left, until it is reread; None: it is left to others."""
        return None


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
        self._planner.rules.made(name, entry.schedule)  # what is wrong with it is refused now
        return entry


def _fields_of(definition: Any) -> Any:
    """Copy a definition, for the user may change it in place; what is none is refused when it is followed."""
    try:
        return dict(definition)
    except (TypeError, ValueError):
        return definition

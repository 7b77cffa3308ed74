"""Lock: one hold of one key, from its token to its end: held, then released or lost.

Promises: what this process believes is never more than what the store granted. With a lease asked for at ``t`` the lock
is trusted until ``t + ttl - margin`` on the local monotonic clock, for the store's lease began at ``t`` or later, and
the margin covers two clocks that do not run at quite the same rate. After that moment it is lost, whatever else is
known: when you cannot know whether you still hold it, you do not. In a pool's child, ``t`` may be its parent's, who asks in the
child's place while the GIL is held there (``keeping.py``).

Not promised: that a body stops when its lock is lost, but with ``on_lost="abort"``. It can ask (``check``), and it can
guard its writes with ``token``.
"""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from celery import current_app

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import (
    ConfigurationError,
    LockLost,
    LockNotAcquired,
    StoreRefused,
    StoreUnavailable,
    UnreadableKey,
)
from celery_lockbeat.locks.abort import Abort
from celery_lockbeat.locks.children import forget, kept_since, note, stopping, this_process
from celery_lockbeat.locks.renewal import Renewer, renewer_of
from celery_lockbeat.observe.events import Story, new_id
from celery_lockbeat.options import LOCK_NAMES, MARGIN, LockKeywords, LockOptions, check_key, written
from celery_lockbeat.stores import Finished, Held, Lease, Store, Stores, stores_of

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["Lock", "current_lock"]

logger: Final = logging.getLogger("celery_lockbeat")

#: An answer that comes after its lease has run out grants nothing; how often to ask again.
LATE_ANSWERS: Final = 3

#: Options that make no sense outside of a task.
_OF_TASKS_ONLY: Final = frozenset(LOCK_NAMES) - LockKeywords.__annotations__.keys()

_current: ContextVar[Scope | None] = ContextVar("lockbeat_current_lock", default=None)


def current_lock() -> Lock | None:
    """Return the lock of the task that runs here, or of the innermost ``with Lock(...)``; None outside of both."""
    scope = _innermost(_current.get())
    return None if scope is None else scope.lock


class Scope:
    """What runs under one lock, or under none (a task with ``lock_enabled=False``), from its making until ``leave``.

    It may be left in another context, or another thread, than it was made in, and not in the order in which others were: a
    generator is advanced by whoever likes to. So none is ever taken back by ``ContextVar.reset``, which refuses just that;
    one that is over is passed over, in every context that still has it. A context outlives what ran in it (a task of
    asyncio's, a copied one), so it keeps no lock alive.
    """

    __slots__ = ("_lock", "_over", "outer")

    def __init__(self, lock: Lock | None) -> None:
        self._lock = None if lock is None else weakref.ref(lock)
        self._over = False
        self.outer = outer = _innermost(_current.get())
        if outer is not None:
            # two generators that run by turns would else make a chain without an end
            outer.outer = _innermost(outer.outer)
        _current.set(self)

    def leave(self) -> None:
        """Be over, everywhere."""
        self._over = True
        if _current.get() is self:
            _current.set(self.outer)

    @property
    def lock(self) -> Lock | None:
        """The lock, as long as somebody has it."""
        return None if self._lock is None else self._lock()

    @property
    def over(self) -> bool:
        """Whether nothing runs here any more."""
        if self._over or self._lock is None:
            return self._over
        lock = self._lock()
        return lock is None or lock.released


def _innermost(scope: Scope | None) -> Scope | None:
    while scope is not None and scope.over:
        scope = scope.outer
    return scope


class Lock:
    """Hold ``key`` during a ``with`` block, over all threads, processes and hosts that share its store.

    >>> with Lock("nightly", app=app, ttl=60) as lock:  # doctest: +SKIP
    ...     export(fence=lock.token)

    ``options`` (:class:`LockKeywords`) are a task's lock options without their ``lock_``, in seconds; the default of each is
    the app's setting, and the app is the current one where none is given. Entering raises :class:`LockNotAcquired` when the key is held by another (after ``retry_attempts``) and
    :class:`StoreUnavailable`. Leaving raises :class:`LockLost` when the lock was lost meanwhile and the block did not
    raise, unless ``on_lost="warn"``. Wrong options are a :class:`ConfigurationError`. Not reentrant; one hold a Lock.
    """

    # What each begins with, before it is held.
    lease: Lease | None = None
    #: why the last ``acquire`` was refused: a :class:`Held`, whose ``description`` and ``remaining`` tell of the holder
    refusal: Held | Finished | None = None
    next_action: float | None = None
    _renewer: Renewer | None = None
    _trusted_until = 0.0
    #: the same, of what the pool's parent has extended in our place
    _kept_until = 0.0
    #: it is over by both; what the parent may still hear of the store comes too late
    _ran_out = False
    _acquired_at = 0.0
    _state = "new"  # -> held -> lost | released
    _failing = False
    _abort: Abort | None = None
    #: the store that may hold something for us, which nobody else would end before its ttl
    _unsettled: Store | None = None
    #: what the store may hold for us is being freed there
    _abandoned = False
    #: the loss
    _told = False

    def __init__(self, key: str, *, app: Any = None, **options: Unpack[LockKeywords]) -> None:
        app = app or current_app
        check_key("the key of Lock", key)
        resolved = LockOptions.read(app.conf, options, owner=f"Lock({key!r})", without=_OF_TASKS_ONLY)
        # a weak reference: once nobody has the lock any more it is not renewed, without waiting for a garbage collection
        story = Story(weakref.ref(self), resolved.logging, kind=None)
        stores = stores_of(app)
        stores.options.check_timeouts(resolved, owner=f"Lock({key!r})")
        self._prepare(key, resolved, stores, story, description=f"{socket.gethostname()} {this_process.pid}")

    @classmethod
    def of_run(
        cls,
        key: str,
        options: LockOptions,
        stores: Stores,
        story: Story,
        *,
        run: str | None,
        whole: str | None,
        description: str,
    ) -> Self:
        """Make the lock of a task's run (see ``task.py``)."""
        lock = cls.__new__(cls)
        lock._prepare(key, options, stores, story, run=run, whole=whole, description=description)
        return lock

    def _prepare(
        self,
        key: str,
        options: LockOptions,
        stores: Stores,
        story: Story,
        *,
        run: str | None = None,
        whole: str | None = None,
        description: str,
    ) -> None:
        self.key = key
        self.ttl = options.ttl
        self.auto_extend = options.auto_extend
        self._options = options
        self._run = run
        self._whole = whole
        self._description = description
        self._story = story
        self._store, self._fallback = stores.choose(options.driver, options.connection)
        story.fields.update(lock_key=key, ttl=options.ttl, connection=options.connection, driver=self._store.driver)
        self._pid = this_process.pid
        # The owner and the renewer both may find that the lock is lost; one of them says so.
        self._mutex = threading.Lock()

    # -- what a body asks ----------------------------------------------------------------------------------------------

    @property
    def token(self) -> int:
        """The fencing token: greater than that of every earlier holder of this key. Raises LockLost if never held."""
        if self.lease is None:
            raise LockLost(f"lock {self.key!r} was never held")
        return self.lease.token

    @property
    def held(self) -> bool:
        """Whether the lock is ours now, as far as can be known."""
        return self.remaining > 0

    @property
    def lost(self) -> bool:
        """Whether the lock was held and is not ours any more; a process forked from its holder never holds it."""
        return self._state == "lost" or (self._state == "held" and not self._trusted())

    @property
    def remaining(self) -> float:
        """Seconds for which the lock is surely ours without another renewal; 0.0 when it is not ours."""
        if self._state != "held" or self._pid != this_process.pid:
            return 0.0
        return max(0.0, self._until() - monotonic())

    @property
    def attempt(self) -> float:
        """Seconds that an attempt to extend may take."""
        return self._options.attempt

    @property
    def released(self) -> bool:
        """Whether it was held and has been released here."""
        return self._state == "released"

    def check(self) -> None:
        """Raise LockLost unless the lock is ours now."""
        if not self.held:
            raise LockLost(f"lock {self.key!r} is not held here any more")

    # -- the life of a hold --------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if not self.acquire():
            holder = self.refusal.description if isinstance(self.refusal, Held) else None
            raise LockNotAcquired(f"lock {self.key!r} is held by {holder}", key=self.key, holder=holder)
        try:
            self._story.emit("lock_acquired")
            self._scope = Scope(self)
            self.arm()
        except BaseException:
            # raised from outside, or by an observer: nobody will leave what was not entered
            self.end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        # What can go wrong on the way out (LockLost comes, a signal handler raises) goes wrong here, before the release.
        try:
            try:
                self.disarm()
            finally:
                released = self.released or self.end()
        finally:
            self._scope.leave()
            self.abandon()  # what the release was kept from
        if not released and exc is None and self._options.on_lost != "warn" and self._pid == this_process.pid:
            raise LockLost(f"lock {self.key!r} was lost before the block ended")

    def arm(self, *, awaited: bool = False) -> Abort | None:
        """With ``on_lost="abort"``: from now on, raise LockLost in this thread as soon as the lock is lost.

        ``awaited``: what runs under it is the coroutine that runs here, which is cancelled instead.
        """
        if self._options.on_lost == "abort":
            self._abort = Abort(LockLost(f"lock {self.key!r} was lost, which ends what runs under it"))
            self._abort.arm(awaited=awaited)
            if self._state == "lost":
                self._abort.fire()
        return self._abort

    def disarm(self) -> None:
        """What ran under the lock has ended: LockLost is raised in it before this returns, or not at all."""
        if self._abort is not None:
            self._abort.disarm()

    def acquire(self) -> bool:
        """Take the key, trying ``retry_attempts`` more times while it is held; False: it is another's (see ``refusal``).

        Whoever has no ``with`` block must call ``release``. Raises StoreUnavailable, when there is no store to fall back to,
        and RuntimeError for a lock that was held before.
        """
        self.refusal = self.take()
        return self.refusal is None

    def take(self) -> Held | Finished | None:
        """As ``acquire``, for a task's run: None, or why it is not ours."""
        if self._state != "new":
            msg = f"lock {self.key!r} was {self._state} already: a Lock is one hold, make another"
            raise RuntimeError(msg)
        if self._abandoned:
            # what frees an earlier acquire whose answer was lost frees by this name, and may come late
            self._story.execution_id = new_id()
        try:
            answer = self._ask_or_fall_back()
            for _ in range(self._options.retry_attempts):
                if not isinstance(answer, Held) or answer.same_run or stopping.is_set():
                    break
                stopping.wait(self._options.retry_delay + random.uniform(0, self._options.retry_jitter))  # noqa: S311
                answer = self._ask_or_fall_back()
            if not isinstance(answer, Lease):
                self._settle()
                return answer
            self._state = "held"
            self._story.fields["token"] = answer.token
            self._renewer = renewer_of(self._store)
            self._renewer.add(self)
        except BaseException:
            # It may have been granted all the same: the answer was lost, or an exception from outside came in between.
            self.abandon()
            raise
        return None

    def release(self) -> bool:
        """End the hold; False: the lock had been lost before. Raises RuntimeError when there is no hold to end."""
        if self._state in ("new", "released"):
            why = "was never held" if self._state == "new" else "has been released already"
            raise RuntimeError(f"lock {self.key!r} {why}")
        return self.end()

    def end(self, *, hold: bool = True, finished: bool = True, whole: bool = True) -> bool:
        """As ``release``, for a task's run; False, too, where there is nothing to end.

        ``finished``: remember the run, so that a copy of its message is a duplicate; ``whole``: and so are those of all
        its other tries, earlier and later. ``hold``: honour ``hold_at_least``. A store that does not answer now changes nothing: the lock was ours until here, and its lease
        runs out by itself.
        """
        # what has struck a release before it came to its end lets it be begun again
        struck = self._state == "released" and self._unsettled is not None and not self._abandoned
        if not (struck or self._state in ("held", "lost")) or self._pid != this_process.pid:
            return False
        assert self.lease is not None and self._renewer is not None  # held or lost  # noqa: PT018, S101
        self._renewer.discard(self)
        self.expire()
        with self._mutex:
            lost = self._state == "lost"
            if not lost:
                self._state = "released"
                self.next_action = None
        if lost:
            self._let_the_loss_be_told()
            # a server that hung may yet carry out an extension, and keep the key for a whole ttl
            self.abandon()
            return False
        hold_for = max(0.0, self._options.hold_at_least - (monotonic() - self._acquired_at)) if hold else 0.0
        remember_for = self._options.dedupe_ttl if finished else 0.0
        lease = self.lease
        try:
            released = self._store.locks.release(lease, hold_for=hold_for, remember_for=remember_for, whole=whole)
        except (StoreUnavailable, ConfigurationError) as exc:
            # the latter: what was right when the lock was acquired is wrong now
            text = "lock %r ends by its ttl of %s s, unless the store comes back before, for its release failed: %s"
            logger.warning(text, self.key, written(self.ttl), exc)
            self._settle_later(
                self._store,
                lambda store: store.locks.release(lease, hold_for=hold_for, remember_for=remember_for, whole=whole),
                until=self._until(),
            )
            return True
        self._settle()
        if released:
            self._story.emit("lock_released")
        else:
            self._tell_lost("the store says at the release that the lock is not ours")
            self._story.catch_up()
        return released

    def abandon(self) -> None:
        """Stop renewing, and free whatever the store may hold for us: when ``acquire`` or ``release`` did not return."""
        store = self._unsettled
        if store is None or self._pid != this_process.pid:
            return
        if self._state == "held":
            with self._mutex:
                self._state, self.next_action = "released", None
            renewer_of(store).discard(self)
        self._abandoned = True
        key, holder = self.key, self._story.execution_id
        self._settle_later(store, lambda store: store.locks.free(key, holder=holder), until=monotonic() + self.ttl)

    def _settle(self) -> None:
        """Nothing of ours is in the store any more."""
        if self._unsettled is not None:
            self._unsettled = None
            forget(self._story.execution_id, self._store.driver)

    def _settle_later(self, store: Store, tell: Callable[[Store], object], *, until: float) -> None:
        self._unsettled = None
        self._note_unrenewed(store)
        renewer_of(store).errand(tell, until=until, then=partial(forget, self._story.execution_id, store.driver))

    def _note_unrenewed(self, store: Store) -> None:
        """Let a pool's parent know that the store may have something of ours, which nobody is to renew."""
        if store.driver == "memory":  # where the kernel tells who is dead
            forget(self._story.execution_id, store.driver)
        else:
            note(self._story.execution_id, self.key, store.driver, self._options.connection, self.ttl)

    def _ask_or_fall_back(self) -> Lease | Held | Finished:
        try:
            return self._ask()
        except StoreUnavailable as exc:
            if self._fallback is None or isinstance(exc, (StoreRefused, UnreadableKey)):
                raise
            self.abandon()
            # The other way back is none: this lock lives where it was taken, the next one asks the first store again.
            self._store, self._fallback = self._fallback, None
            self._story.fields["driver"] = self._store.driver
            self._story.emit("driver_fallback", error_name=type(exc).__name__, error_message=str(exc))
            return self._ask()

    def _ask(self) -> Lease | Held | Finished:
        if self._unsettled is None:
            self._unsettled = self._store
            # before it is asked for: a child may be killed before it hears that it was granted
            self._note_unrenewed(self._store)
        for _ in range(LATE_ANSWERS):
            started = monotonic()
            answer = self._store.locks.acquire(
                self.key,
                holder=self._story.execution_id,
                ttl=self.ttl,
                run=self._run,
                whole=self._whole,
                description=self._description,
            )
            if not isinstance(answer, Lease):
                return answer
            self.lease = answer
            self._acquired_at = started
            self._trust_from(started)
            if self._trusted():
                return answer
        raise StoreUnavailable(
            f"the store answers more slowly than the ttl of {written(self.ttl)} s of lock {self.key!r}"
        )

    def _trust_from(self, started: float) -> None:
        self._trusted_until = started + self.ttl * (1 - MARGIN)
        self._ran_out = False
        interval = self._options.extends_every
        self.next_action = min(started + interval, self._trusted_until) if self.auto_extend else self._trusted_until
        if self.auto_extend:
            self._note_renewed(started, self._options.patience)

    def _note_renewed(self, since: float, patience: float) -> None:
        """Let a pool's parent know what it is to renew in our place, if we are late to."""
        assert self.lease is not None  # it is held  # noqa: S101
        note(
            self._story.execution_id,
            self.key,
            self._store.driver,
            self._options.connection,
            self.ttl,
            self.lease.token,
            since,
            patience,
        )

    def _until(self) -> float:
        """Until when the lease is surely ours: by our own word, or the pool's parent's, which has extended it in our place."""
        until = max(self._trusted_until, self._kept_until)
        if self.lease is None or self._ran_out or monotonic() < until:
            return until
        since = kept_since(self._story.execution_id, self._store.driver, self.lease.token)
        if since is not None:
            self._kept_until = since + self.ttl * (1 - MARGIN)
            until = max(until, self._kept_until)
        self._ran_out = monotonic() >= until
        return until

    def _trusted(self) -> bool:
        return self._pid == this_process.pid and monotonic() < self._until()

    # -- what the renewer finds out ------------------------------------------------------------------------------------
    # It is told later: no observer runs on the renewer's time.

    def extended(self, started: float) -> None:
        """The lease runs anew from ``started``."""
        with self._mutex:
            if self._state != "held":
                return
            self._failing = False
            self._trust_from(started)
        self._story.later("lock_extended")

    def extend_refused(self) -> None:
        """The store says that the lock is another's, or nobody's."""
        self.lose("the store says that the lock is not ours any more")

    def extend_failed(self, started: float, error: BaseException, retry_every: float) -> None:
        """The store did not answer; try again, for the lease still runs."""
        with self._mutex:
            if self._state != "held":
                return
            first, self._failing = not self._failing, True
            now = monotonic()
            again = max(started, now) + min(retry_every, self._options.retries_every)
            self.next_action = min(again, self._until())
            if self.auto_extend:
                # this process is not late, but its store: the parent need not try as well, unless we miss the next try
                since = self._until() - self.ttl * (1 - MARGIN)
                self._note_renewed(since, self.next_action + (self._until() - now) / 4 - since)
        if first:
            self._story.later("lock_extend_failed", error_name=type(error).__name__, error_message=str(error))

    def expire(self) -> None:
        """Lose the lock if its lease has run out by the local clock."""
        if self._state == "held" and not self._trusted():
            self.lose("the lease ran out before it was extended")

    def lose(self, why: str) -> None:
        """Be lost, if it is held."""
        with self._mutex:
            if self._state != "held":
                return
            self._state = "lost"
            self.next_action = None
            self._note_unrenewed(self._store)  # before it is told
        self._tell_lost(why)
        if self._abort is not None:
            self._abort.fire()

    def _let_the_loss_be_told(self) -> None:
        """See that the loss is told before the end of the run; bounded, as observers are not."""
        # the renewer may have lost it this very moment; by turns, for under gevent it shares no Event with this thread
        for _ in range(1000):
            if self._told:
                break
            time.sleep(0.001)
        self._story.catch_up()

    def _tell_lost(self, why: str) -> None:
        self._state = "lost"
        try:
            if self.auto_extend and not self._failing:
                self._story.later("lock_extend_failed", error_name=LockLost.__name__, error_message=why)
            self._story.later("lock_expired_before_finish", error_name=LockLost.__name__, error_message=why)
        finally:
            self._told = True

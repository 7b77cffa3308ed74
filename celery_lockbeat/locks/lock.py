"""Lock: one hold of one key, or of several, from the first time that it is asked for to its end.

Promises: of a key that we have, or may have without having heard so, nothing is left behind, whatever strikes in between:
what cannot be released is freed, and where the store does not answer, its lease runs out. What becomes of a lease while
it is held is in ``lease.py``.

Not promised: that a body stops when its lock is lost, but with ``on_lost="abort"``. It can ask (``check``), and it can
guard its writes with ``token``.
"""

from __future__ import annotations

import logging
import socket
import sys
import time
import weakref
from asyncio import CancelledError, current_task
from collections.abc import Iterable
from operator import attrgetter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from celery import current_app

from celery_lockbeat.exceptions import (
    ConfigurationError,
    LockLost,
    LockNotAcquired,
    StoreUnavailable,
)
from celery_lockbeat.journal.writer import journal_of
from celery_lockbeat.locks.abort import Abort
from celery_lockbeat.locks.acquisition import Acquisition, Asker
from celery_lockbeat.locks.lease import OwnLease
from celery_lockbeat.locks.lookout import look_after
from celery_lockbeat.locks.scope import Scope, innermost
from celery_lockbeat.locks.waiter import Waiter
from celery_lockbeat.observe.events import Story
from celery_lockbeat.options import (
    LOCK_NAMES,
    LockKeywords,
    LockOptions,
    check_key,
    check_keys,
    check_wait,
    shown_keys,
    written,
)
from celery_lockbeat.process import this_process
from celery_lockbeat.stores import Finished, Held, Lease, Place, Store, Stores, Waiting, stores_of
from celery_lockbeat.threads import off_the_loop, one_thread

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["Lock", "current_lock"]

logger: Final = logging.getLogger("celery_lockbeat")

_token_of: Final = attrgetter("token")

#: Options that make no sense outside of a task.
_OF_TASKS_ONLY: Final = frozenset(LOCK_NAMES) - LockKeywords.__annotations__.keys()


def current_lock() -> Lock | None:
    """Return the lock of the task that runs here, or of the innermost ``with Lock(...)``; None outside of both."""
    scope = innermost()
    lock: Lock | None = None if scope is None else scope.lock
    return lock


class Lock:
    """Hold ``key``, or each key of a list, during a ``with`` block, over all threads, processes and hosts that share its store.

    >>> with Lock("nightly", app=app, ttl=60) as lock:  # doctest: +SKIP
    ...     export(fence=lock.token)

    ``options`` (:class:`LockKeywords`) are a task's lock options without their ``lock_``, in seconds; the default of each is
    the app's setting, and the app is the current one where none is given. Entering raises :class:`LockNotAcquired` when the
    key is held by another (after ``wait`` seconds in its line, or ``retry_attempts``) and :class:`StoreUnavailable`. Leaving raises :class:`LockLost` when
    the lock was lost meanwhile and the block did not raise, unless ``on_lost="warn"``. Wrong options are a :class:`ConfigurationError`. Not reentrant; one hold a Lock.
    ``async with`` does the same, and keeps no event loop waiting.
    """

    #: what is held, or was; None: nothing yet
    _own: OwnLease | None = None
    #: why the last ``acquire`` was refused: a :class:`Held`, whose ``description`` and ``remaining`` tell of the holder
    refusal: Held | Finished | Waiting | None = None
    #: seconds for which its end is remembered at least
    remembered_at_least = 0.0
    #: seconds for which it waits in line where it is not said otherwise
    _wait = 0.0
    #: whether who waits for it is to wait no longer
    _is_given_up = False

    def __init__(
        self, key: str | Iterable[str], *, app: Any = None, wait: float | None = None, **options: Unpack[LockKeywords]
    ) -> None:
        app = app or current_app
        keys = check_keys("the key of Lock", key)
        key = shown_keys(keys)
        self._wait = check_wait(f"wait of Lock({key!r})", wait)
        resolved = LockOptions.read(app.conf, options, owner=f"Lock({key!r})", without=_OF_TASKS_ONLY)
        # a weak reference: once nobody has the lock any more it is not renewed, without waiting for a garbage collection
        story = Story(weakref.ref(self), resolved.logging, journal_of(app), kind=None)
        stores = stores_of(app)
        stores.options.check_timeouts(resolved, owner=f"Lock({key!r})")
        self._prepare(keys, resolved, stores, story, Asker(f"{socket.gethostname()} {this_process.pid}"))

    @classmethod
    def of_run(cls, keys: tuple[str, ...], options: LockOptions, stores: Stores, story: Story, asker: Asker) -> Self:
        """Make the lock of a task's attempt (see ``tasks/run.py``)."""
        lock = cls.__new__(cls)
        lock._prepare(keys, options, stores, story, asker)
        return lock

    def _prepare(self, keys: tuple[str, ...], options: LockOptions, stores: Stores, story: Story, asker: Asker) -> None:
        #: all that it holds, sorted; and the same in one text
        self.keys = keys
        self.key = shown_keys(keys)
        self.ttl = options.ttl
        self._options = options
        self._story = story
        self._pid = this_process.pid
        self._acquisition = acquisition = Acquisition(keys, options, stores, story, asker, pid=self._pid)
        driver = acquisition.store.driver
        story.fields.update(lock_key=self.key, ttl=options.ttl, connection=options.connection, driver=driver)
        if len(keys) > 1:
            story.fields["lock_keys"] = keys

    # -- what anybody asks ---------------------------------------------------------------------------------------------

    @staticmethod
    def holder_of(key: str, *, app: Any = None, driver: str | None = None, connection: str | None = None) -> str | None:
        """Return what the holder of ``key`` says of itself, of several the first; None: it is free. Raises StoreUnavailable."""
        app, owner = app or current_app, f"Lock.holder_of({key!r})"
        check_key("the key of Lock.holder_of", key)
        options = LockOptions.read(app.conf, {"driver": driver, "connection": connection}, owner=owner)
        store, _ = stores_of(app).choose(options.driver, options.connection)
        held = sorted(store.locks.held(key), key=lambda lock: lock.token)
        return held[0].description if held else None

    @staticmethod
    def locked(key: str, *, app: Any = None, driver: str | None = None, connection: str | None = None) -> bool:
        """Whether anybody holds ``key`` just now; the next moment it may be otherwise. Raises StoreUnavailable."""
        return Lock.holder_of(key, app=app, driver=driver, connection=connection) is not None

    # -- what a body asks ----------------------------------------------------------------------------------------------

    @property
    def token(self) -> int:
        """The fencing token: greater than that of every earlier holder of this key. Raises LockLost if never held.

        Of several keys the greatest: greater than that of every earlier holder of the same keys. See :attr:`tokens`.
        """
        return max(self.tokens.values())

    @property
    def tokens(self) -> dict[str, int]:
        """The fencing token of each key: greater than that of every earlier holder of that key. Raises LockLost if never held."""
        leases = self._acquisition.leases
        if not leases:
            raise LockLost(f"lock {self.key!r} was never held")
        return {lease.key: lease.token for lease in leases}

    @property
    def lease(self) -> Lease | None:
        """What the store has granted last, of several keys of the first; None: nothing yet."""
        leases = self._acquisition.leases
        return leases[0] if leases else None

    @property
    def held(self) -> bool:
        """Whether the lock is ours now, as far as can be known."""
        own = self._own
        return own is not None and own.replaced_by is None and own.state == "held" and own.trusted

    @property
    def lost(self) -> bool:
        """Whether it was held and is not ours any more, or not ours to go on with; a process forked from its holder never holds it."""
        return self._own is not None and (self._own.lost or self._own.replaced_by is not None)

    @property
    def replaced_by(self) -> str | None:
        """What the run says of itself that waits to take the place of this one; None: nobody does. The key is ours until the end."""
        return None if self._own is None else self._own.replaced_by

    @property
    def why_lost(self) -> str | None:
        """Why it was lost, once that has been found out."""
        return None if self._own is None else self._own.why_lost

    @property
    def remaining(self) -> float:
        """Seconds for which the lock is surely ours without another renewal; 0.0 when it is not ours."""
        return 0.0 if self._own is None or self._own.replaced_by is not None else self._own.remaining

    @property
    def released(self) -> bool:
        """Whether it was held and has been released here."""
        return self._own is not None and self._own.state == "released"

    @property
    def is_at_home(self) -> bool:
        """Whether it is in the store that its options name, not in the one to fall back to."""
        return not self._acquisition.fell_back

    def check(self) -> None:
        """Raise LockLost unless the lock is ours now."""
        if not self.held:
            raise LockLost(f"lock {self.key!r} is not held here any more")

    # -- the life of a hold --------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if not self.acquire():
            raise self._not_acquired()
        try:
            self._scope = Scope(self)
            self.arm()
        except BaseException:
            # raised from outside: nobody will leave what was not entered
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
        if not released or self.replaced_by is not None:
            self._fail_if_lost(exc)

    async def __aenter__(self) -> Self:
        try:
            if not await self._acquire_beside_the_loop():
                raise self._not_acquired()
            self._scope = Scope(self)
            self.arm(awaited=True)
        except BaseException:
            await off_the_loop(self.end)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        abort = None if self._own is None else self._own.abort
        try:
            self.disarm()
            released = self.released or await off_the_loop(self.end)
        finally:
            self._scope.leave()
            self.abandon()
        if isinstance(exc, CancelledError) and abort is not None and abort.cancelled:
            # it was no cancellation of whoever waits for this
            task = current_task()
            if task is not None and sys.version_info >= (3, 11):
                task.uncancel()
            raise abort.error from exc
        if not released or self.replaced_by is not None:
            self._fail_if_lost(exc)

    async def _acquire_beside_the_loop(self) -> bool:
        if not self._wait:
            return await off_the_loop(self.acquire)
        self._is_given_up = False
        # the threads of a loop are few, and who holds the key needs one of them to release it
        with one_thread() as thread:
            return await off_the_loop(self.acquire, thread=thread, when_cancelled=self._give_up)

    def _give_up(self) -> None:
        self._is_given_up = True

    def _not_acquired(self) -> LockNotAcquired:
        refusal = self.refusal
        holder, key = (refusal.description, refusal.key) if isinstance(refusal, Held) else (None, "")
        return LockNotAcquired(f"lock {key or self.key!r} is held by {holder}", key=key or self.key, holder=holder)

    def _fail_if_lost(self, exc: BaseException | None) -> None:
        if exc is None and self._options.on_lost != "warn" and self._pid == this_process.pid:
            because = f": {self.why_lost}" if self.why_lost else ""
            raise LockLost(f"lock {self.key!r} was lost before the block ended{because}")

    def arm(self, *, awaited: bool = False) -> Abort | None:
        """With ``on_lost="abort"``: from now on, raise LockLost in this thread as soon as the lock is lost, or replaced.

        ``awaited``: what runs under it is the coroutine that runs here, which is cancelled instead.
        """
        if not self._options.aborts or self._own is None:
            return None
        error = LockLost(f"lock {self.key!r} was lost, which ends what runs under it")
        self._own.abort = abort = Abort(error)
        abort.arm(awaited=awaited)
        self._own.abort_if_due()
        return abort

    def disarm(self) -> None:
        """What ran under the lock has ended: LockLost is raised in it before this returns, or not at all."""
        if self._own is not None and self._own.abort is not None:
            self._own.abort.disarm()

    def acquire(self, wait: float | None = None) -> bool:
        """Take the key, trying ``retry_attempts`` more times while it is held; False: it is another's (see ``refusal``).

        With ``wait``, or that of the Lock, it waits in line instead, for so many seconds at most. Whoever has no ``with`` block must call ``release``. Raises StoreUnavailable, when there is no store to fall back to,
        and RuntimeError for a lock that was held before.
        """
        wait = self._wait if wait is None else check_wait(f"wait of Lock({self.key!r}).acquire", wait)
        self.refusal = self._take_in_line(wait) if wait else self.take()
        if self.refusal is None:
            try:
                self.report_acquired()
            except BaseException:
                # raised from outside, or by an observer: nobody will release what was not acquired
                self.end()
                raise
        return self.refusal is None

    def _take_in_line(self, wait: float) -> Held | Finished | Waiting | None:
        waiter = Waiter(self._options, wait, lambda: self._is_given_up)
        while isinstance(refusal := self.take(waiter.place), Waiting):
            waiter.wait(self._store, refusal.key or self.key, refusal)
        return refusal

    def take(self, place: Place | None = None) -> Held | Finished | Waiting | None:
        """As ``acquire``, for a task's attempt, which may want a ``place`` in line: None, or why it is not ours."""
        self._acquisition.place = place
        if self._own is not None:
            msg = f"lock {self.key!r} was {self._own.state} already: a Lock is one hold, make another"
            raise RuntimeError(msg)
        try:
            answer = self._acquisition.ask()
            if not isinstance(answer, OwnLease):
                self._acquisition.settle()
                if isinstance(answer, Waiting) and place is not None and place.text:
                    # its message is put off, and nobody here listens
                    look_after(self._store, answer.key or self.key, ends_in=answer.remaining, lasts=place.wait_for)
                return answer
            self._own = answer
            self._story.fields["token"] = max(answer.leases, key=_token_of).token
            self._acquisition.renewer.add(answer)
        except BaseException:
            # It may have been granted all the same: the answer was lost, or an exception from outside came in between.
            self.abandon()
            raise
        return None

    def report_acquired(self) -> None:
        """Let observers know that it is ours, after so many attempts."""
        self._story.emit("lock_acquired", attempts=self._acquisition.attempts)

    def extend(self, ttl: float | None = None) -> bool:
        """Renew the lease at once, whatever ``auto_extend`` says; False: the lock is lost.

        With a ``ttl`` it ends so many seconds from now, and each renewal from here on is by so much. Raises StoreUnavailable,
        ConfigurationError for a wrong ttl, and RuntimeError when there is no hold to extend.
        """
        own = self._hold()
        if self._pid != this_process.pid:
            return False
        options = self._options if ttl is None else self._options.with_ttl(ttl, owner=f"Lock({self.key!r}).extend")
        self._options, self.ttl = options, options.ttl
        asked = own.ask(options)
        self._acquisition.renewer.add(own)
        while asked.answer is None:
            # by turns, for under gevent the renewer shares no Event with this thread
            time.sleep(0.001)
        if isinstance(asked.answer, BaseException):
            raise asked.answer
        return asked.answer

    def release(self) -> bool:
        """End the hold; False: the lock had been lost before. Raises RuntimeError when there is no hold to end."""
        self._hold()
        return self.end()

    def _hold(self) -> OwnLease:
        if self._own is None or self.released:
            why = "was never held" if self._own is None else "has been released already"
            raise RuntimeError(f"lock {self.key!r} {why}")
        return self._own

    def end(self, *, hold: bool = True, finished: bool = True, task: bool = True) -> bool:
        """As ``release``, for a task's attempt; False, too, where there is nothing to end.

        ``finished``: remember the attempt, so that a copy of its message is a duplicate; ``task``: and so are those of all
        other attempts of its task, earlier and later. ``hold``: honour ``hold_at_least``. A store that does not answer now
        changes nothing: the lock was ours until here, and its lease runs out by itself.
        """
        own = self._own
        if own is None or self._pid != this_process.pid:
            return False
        if own.state == "released" and (self._acquisition.abandoned or self._acquisition.note is None):
            return False  # but what has struck a release before it came to its end lets it be begun again
        self._acquisition.renewer.discard(own)
        if not own.end():
            own.wait_until_loss_is_reported()
            # a server that hung may yet carry out an extension, and keep the key for a whole ttl
            self.abandon()
            return False
        least = self._options.hold_at_least
        hold_for = max(0.0, least - own.held_for()) if hold and least else 0.0
        remember_for = max(self._options.dedupe_ttl, self.remembered_at_least) if finished else 0.0
        return self._release(own, hold_for, remember_for, task)

    def _release(self, own: OwnLease, hold_for: float, remember_for: float, task: bool) -> bool:
        first, *others = own.leases

        def release(store: Store) -> bool:
            if others:
                return store.locks.release_all(
                    (first, *others), hold_for=hold_for, remember_for=remember_for, task=task
                )
            return store.locks.release(first, hold_for=hold_for, remember_for=remember_for, task=task)

        try:
            released = release(self._acquisition.store)
        except (StoreUnavailable, ConfigurationError) as exc:
            # the latter: what was right when the lock was acquired is wrong now
            text = "lock %r ends by its ttl of %s s, unless the store comes back before, for its release failed: %s"
            logger.warning(text, self.key, written(self.ttl), exc)
            self._acquisition.ask_later(release, until=own.until())
            return True
        self._acquisition.settle()
        if hold_for and self._options.waits:
            # nobody frees it then
            for lease in own.leases:
                look_after(self._store, lease.key, ends_in=hold_for, lasts=hold_for + 1)
        if released:
            self._story.emit("lock_released")
        else:
            own.report_loss("the store says at the release that the lock is not ours")
            self._story.flush()
        return released

    def abandon(self) -> None:
        """Stop renewing, and free whatever the store may hold for us: when ``acquire`` or ``release`` did not return."""
        if self._acquisition.note is None or self._pid != this_process.pid:
            return
        if self._own is not None and self._own.state == "held":
            self._own.give_up()
            self._acquisition.renewer.discard(self._own)
        self._acquisition.abandon()

    @property
    def _store(self) -> Store:
        return self._acquisition.store

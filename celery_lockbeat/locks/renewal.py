"""One thread per process and store that extends the leases that are held, and reports those that are lost.

Promises: a lease is extended every ``extends_every`` seconds for as long as it is held; all that are due go into one round
trip; a round that failed is tried again while the leases last. The thread ends for nothing that is raised in it, and no
observer runs on its time (see ``observers.py``). What a store that did not answer has still to be asked of locks that are
over (errands) goes the same way. A pool child whose parent is dead renews nothing more.

Not promised: that a lock which nobody references any more is kept; it is dropped, and its lease runs out.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from celery_lockbeat import threads
from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import ConfigurationError, StoreUnavailable
from celery_lockbeat.locks.abort import when_signalled
from celery_lockbeat.locks.child import orphaned
from celery_lockbeat.observe.observers import finish, renewing_thread
from celery_lockbeat.options import RETRY_EVERY
from celery_lockbeat.process import when_a_worker_has_ended
from celery_lockbeat.stores import on_close
from celery_lockbeat.stores.base import Lease, Stop, Store

__all__ = ["Renewer", "close_renewer_of", "hurry", "renewer_of"]

logger: Final = logging.getLogger("celery_lockbeat")

#: Seconds until the next round, after one that ended in what nobody expects.
AFTER_TROUBLE: Final = 0.05


class Renewable(Protocol):
    """What the renewer needs of a lock. None of these raises, and all may be called when it is over."""

    ttl: float
    #: when to act next, on the local clock; None: no more
    next_action: float | None

    @property
    def auto_extend(self) -> bool:
        """Whether the next action is an extension, or just to notice that the lease has run out."""

    @property
    def leases(self) -> Sequence[Lease]:
        """What the store has granted, of each of its keys."""

    @property
    def attempt(self) -> float:
        """Seconds that an attempt to extend may take."""

    @property
    def remaining(self) -> float:
        """Seconds for which the lease is surely ours."""

    def extended(self, started: float, ttl: float) -> None:
        """An extension by ``ttl`` that was asked for at ``started`` has been granted."""

    def be_replaced(self, by: str) -> None:
        """It has been extended, and another waits to replace its holder."""

    def extend_refused(self) -> None:
        """The store says that the lease is lost."""

    def extend_failed(self, started: float, error: BaseException, retry_every: float) -> None:
        """The store did not answer; the lock says by ``next_action`` when to try again."""

    def expire(self) -> None:
        """Notice that the lease has run out, if it has."""

    def lose(self, why: str) -> None:
        """Be lost, if it is held."""


class _Errand:
    """What a store is still to be asked, until it has answered, or until ``until``."""

    def __init__(
        self, store: Store, ask: Callable[[Store], object], then: Callable[[], None], at: float, until: float
    ) -> None:
        self.store, self.ask, self.then, self.at, self.until = store, ask, then, at, until


class Renewer:
    """The renewing of all the leases that this process holds in one store: a store that hangs delays those of no other.

    The thread is a daemon, started by the first lease. It lives in the process that started it: a forked child starts from
    nothing. Once its app is closed, or gone, or a worker has ended, it ends when nothing is held any more. Under gevent it
    is a thread of the kernel's all the same, so a body that never yields cannot keep it from renewing.
    """

    def __init__(self, store: Store, *, clock: Callable[[], float] = monotonic) -> None:
        # Not the store itself: whoever has locks or errands there keeps it, and with the last of them and its app it may go.
        self._home = weakref.ref(store, self._ring)
        self._twin = store.twin() if threads.gevent_has_patched() else None
        self._clock = clock
        # Not a Condition, which gevent would patch.
        self._mutex = threads.new_lock()
        self._bell = threads.new_lock()  # locked, until it rings
        self._bell.acquire()
        self._locks: weakref.WeakSet[Renewable] = weakref.WeakSet()
        self._errands: list[_Errand] = []
        self._wakes_at: float | None = None  # None: not before it is notified
        self._running = False
        self._closed = False
        self._resting = False
        self._hurries = False
        self._join: Callable[[float], None] = _nobody

    def add(self, lock: Renewable) -> None:
        """Keep ``lock`` from now on. Raises RuntimeError when no thread can be had."""
        action = lock.next_action
        with self._mutex:
            self._locks.add(lock)
            if action is not None:
                self._wake_by(action)

    def errand(self, ask: Callable[[Store], object], *, until: float, then: Callable[[], None]) -> None:
        """Call ``ask`` with the store, now and as long as it raises StoreUnavailable, until ``until``; in the end, ``then``."""
        now = self._clock()
        store = self._home()
        assert store is not None  # whoever asks has it  # noqa: S101
        errand = _Errand(store, ask, then, now, until)
        with self._mutex:
            self._errands.append(errand)
            try:
                self._wake_by(now)
            except RuntimeError:  # no thread can be had: there are too many, or the interpreter is about to end
                errand.until = now
        if errand.until == now:
            self._run_errand(errand)

    def hurry(self) -> None:
        """Renew all that is held, at once. It takes no lock: a signal handler calls it, too."""
        self._hurries = True
        self._ring()

    def close(self) -> None:
        """The app is closed: the thread ends once nothing is held any more. What is held later starts it again, for as long."""
        self._closed = True
        self.rest()

    def rest(self) -> None:
        """Let the thread end once nothing is held any more. What is held later starts it again, and it stays."""
        with self._mutex:
            self._resting = True
            idle = not self._locks and not self._errands
        self._ring()
        if idle:
            self._join(1.0)

    def _wake_by(self, action: float) -> None:
        if not self._running:
            self._begin()
        elif self._wakes_at is None or action < self._wakes_at:
            # The usual lock is over long before its first renewal, and the next one's comes later than that of
            # the one before: so the thread is seldom woken, for it sleeps until then though that lock is over.
            self._wakes_at = action
            self._ring()

    def _begin(self) -> None:
        self._join = threads.start(self._run, "lockbeat-renewer")
        self._running, self._resting = True, False

    def _ring(self, *_: object) -> None:
        if self._bell.locked():
            with contextlib.suppress(RuntimeError):  # another was faster
                self._bell.release()

    def discard(self, lock: Renewable) -> None:
        """Forget ``lock``. An extension that is under way may still reach the store, which refuses it."""
        with self._mutex:
            self._locks.discard(lock)

    def _run(self) -> None:
        was_to_end = False
        try:
            with renewing_thread():
                while self._goes_on():
                    pass
                was_to_end = True
        finally:
            if not was_to_end:
                with self._mutex:
                    self._running = False
                    self._begin()

    def _goes_on(self) -> bool:
        """Carry out a round, whatever comes of it; False: nothing is held any more, and the app is closed."""
        try:
            return self._carry_out_a_round()
        except BaseException as exc:  # noqa: BLE001  SystemExit, too: anybody may throw it into any thread
            _log_what_was_raised("the renewing thread goes on", exc)
            self._bell.acquire(timeout=AFTER_TROUBLE)
            return True

    def _carry_out_a_round(self) -> bool:
        # In a frame of its own: the last round's locks, referenced from the loop, would be kept alive, and so renewed.
        work = self._wait_for_due()
        if work is None:
            return False
        due, errand = work
        del work
        try:
            self._renew(due)
        except BaseException as exc:  # noqa: BLE001  whatever it was, the leases are still there: tell the locks, and go on
            _log_what_was_raised(f"the renewal of {len(due)} locks failed", exc)
            self._fail(due, self._clock(), exc)
        del due
        if errand is not None:
            # one a round: while the store hangs, each takes its time, and renewals come first
            self._run_errand(errand)
        return True

    def _wait_for_due(self) -> tuple[list[Renewable], _Errand | None] | None:
        """Sleep until a lock has something to do, or the store is to be asked something; return what it is.

        None: nothing is held any more, and nobody is there to hold anything; this thread is to end.
        """
        while True:
            with self._mutex:
                planned = [(lock, lock.next_action) for lock in self._locks]
                actions = [action for _, action in planned if action is not None]
                now = self._clock()
                errand = next((each for each in self._errands if each.at <= now), None)
                hurries, self._hurries = self._hurries, False
                if errand is not None or (hurries and actions) or any(action <= now for action in actions):
                    # whoever is due soon comes along: one round trip for all
                    due = [
                        lock
                        for lock, action in planned
                        if action is not None and (hurries or action <= now + lock.ttl / 20)
                    ]
                    return due, errand
                del planned  # a reference from here would keep a dropped lock alive
                actions += [each.at for each in self._errands]
                if not self._locks and not self._errands and self._may_end():
                    self._running = False
                    return None
                if actions:
                    self._wakes_at = min(actions)
                elif self._wakes_at is not None and self._wakes_at <= now:
                    self._wakes_at = None
                timeout = -1 if self._wakes_at is None else self._wakes_at - now
            self._bell.acquire(timeout=timeout)

    def _may_end(self) -> bool:
        return self._closed or self._resting or self._home() is None

    def _run_errand(self, errand: _Errand) -> None:
        try:
            errand.ask(self._twin or errand.store)
        except (StoreUnavailable, ConfigurationError):
            errand.at = self._clock() + RETRY_EVERY
            if errand.at < errand.until:
                return
        except BaseException as exc:  # noqa: BLE001  as in a round
            _log_what_was_raised("a lock's end could not be told to its store", exc)
        with self._mutex:
            self._errands.remove(errand)
        errand.then()

    def _renew(self, due: list[Renewable]) -> None:
        if orphaned():
            for lock in due:
                lock.lose("the worker that this process belonged to is dead")
        for lock in due:
            lock.expire()
        store = self._twin or self._home()
        if store is None:  # not while somebody holds a lock in it
            return
        batch = [(lock, lock.leases, lock.ttl) for lock in due if lock.auto_extend and lock.next_action is not None]
        if not batch:
            return
        started = self._clock()
        try:
            with self._watched([lock for lock, _, _ in batch]):
                within = min(lock.attempt for lock, _, _ in batch)
                wanted = [(lease, ttl) for _, leases, ttl in batch for lease in leases]
                answers = iter(store.locks.extend(wanted, within=within))
        except StoreUnavailable as exc:
            self._fail([lock for lock, _, _ in batch], started, exc)
            return
        for lock, leases, ttl in batch:
            _tell(lock, started, ttl, [next(answers) for _ in leases])

    @contextlib.contextmanager
    def _watched(self, locks: list[Renewable]) -> Iterator[None]:
        """Tell each lock that its lease has run out, though this thread waits for a store that hangs."""
        over = threading.Event()
        watch = threading.Thread(target=_expire, args=(locks, over), name="lockbeat-expiry", daemon=True)
        try:
            # no thread can be had: most stores keep to the time that they are given
            with contextlib.suppress(RuntimeError):
                watch.start()
            yield
        finally:
            over.set()
            if self._twin is None and watch.is_alive():
                # until it has gone it keeps the locks alive, and what is dropped meanwhile would be renewed
                watch.join(1.0)

    def _fail(self, locks: list[Renewable], started: float, error: BaseException) -> None:
        for lock in locks:
            lock.extend_failed(started, error, RETRY_EVERY)


def _tell(lock: Renewable, started: float, ttl: float, answers: Sequence[bool | Stop | StoreUnavailable]) -> None:
    """Tell a lock what became of the extension of its leases: who has lost one of its keys has lost all."""
    error = next((each for each in answers if isinstance(each, StoreUnavailable)), None)
    stop = next((each for each in answers if isinstance(each, Stop)), None)
    if False in answers:
        lock.extend_refused()
    elif error is not None:
        lock.extend_failed(started, error, RETRY_EVERY)
    else:
        lock.extended(started, ttl)
        if stop is not None:
            lock.be_replaced(stop.by)


def _nobody(_timeout: float) -> None:
    """Wait for a thread that has not begun."""


def _log_what_was_raised(text: str, exc: BaseException) -> None:
    # it is written later, and its frames would keep locks
    traceback.clear_frames(exc.__traceback__)
    logger.error(text, exc_info=exc)


def _expire(locks: list[Renewable], over: threading.Event) -> None:
    while locks and not over.wait(max(0.0, min(lock.remaining for lock in locks)) + 0.001):
        for lock in locks:
            lock.expire()
        locks = [lock for lock in locks if lock.remaining > 0]


#: The renewers of this process, by store.
_renewers: weakref.WeakKeyDictionary[Store, Renewer] = weakref.WeakKeyDictionary()
_mutex = threading.Lock()


def renewer_of(store: Store) -> Renewer:
    """Return this process's renewer for ``store``."""
    renewer = _renewers.get(store)
    if renewer is None:
        with _mutex:
            renewer = _renewers.setdefault(store, Renewer(store))
    return renewer


def close_renewer_of(store: Store) -> None:
    """The app of ``store`` is closed: end as soon as nothing is held any more."""
    renewer = _renewers.get(store)
    if renewer is not None:
        renewer.close()
        finish()  # what its locks told


@when_a_worker_has_ended
def _rest() -> None:
    for renewer in list(_renewers.values()):
        renewer.rest()
    finish()


on_close(close_renewer_of)


def hurry() -> None:
    """Renew all that this process holds, at once."""
    for renewer in list(_renewers.values()):
        renewer.hurry()


when_signalled(hurry)


def _forget_the_parents() -> None:
    """A forked child has none of its parent's threads, and none of its parent's locks."""
    global _renewers, _mutex  # noqa: PLW0603  the one state of this process
    _renewers = weakref.WeakKeyDictionary()
    _mutex = threading.Lock()


os.register_at_fork(after_in_child=_forget_the_parents)

"""One thread per process and store that keeps held locks alive and reports those that are lost.

Promises: a lock is extended every ``extends_every`` seconds for as long as it is held, however long that is; all locks
that are due go into one round trip; a failed round is tried again while the leases last; the thread ends for no
exception, and a lock that it cannot keep is told so. What a store that did not answer still has to be told about locks
that are over (errands) goes the same way. It is a daemon, started by the first lock, and lives in the process that
started it: a forked child starts from nothing, and a pool child whose parent is dead renews nothing more. One thread per
store, not one for all: a store that hangs must not delay the renewals of another.

Under gevent it is a thread of the kernel's all the same, so a body that never yields cannot keep it from renewing.

Not promised: that a lock which nobody references any more is kept; it is dropped, and its lease runs out.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final, Protocol

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import StoreUnavailable
from celery_lockbeat.lifecycle import orphaned
from celery_lockbeat.options import RETRY_EVERY
from celery_lockbeat.stores.base import Lease, Store

__all__ = ["Renewer", "renewer_of"]

logger: Final = logging.getLogger("celery_lockbeat")


class Renewable(Protocol):
    """What the renewer needs of a lock. None of these raises; all but ``lease`` may be called when it is over."""

    lease: Lease | None
    ttl: float
    #: when to act next, on the local clock; None: no more
    next_action: float | None
    #: whether the next action is an extension, or just to notice that the lease has run out
    auto_extend: bool

    @property
    def attempt(self) -> float:
        """Seconds that an attempt to extend may take."""

    @property
    def remaining(self) -> float:
        """Seconds for which the lease is surely ours."""

    def extended(self, started: float) -> None:
        """An extension that was asked for at ``started`` has been granted."""

    def extend_refused(self) -> None:
        """The store says that the lease is lost."""

    def extend_failed(self, started: float, error: Exception, retry_every: float) -> None:
        """The store did not answer; the lock says by ``next_action`` when to try again."""

    def expire(self) -> None:
        """Notice that the lease has run out, if it has."""

    def lose(self, why: str) -> None:
        """Be lost, if it is held."""


class _Errand:
    """What is still to be told to the store, until it has been, or until ``until``."""

    def __init__(self, tell: Callable[[Store], object], then: Callable[[], None], at: float, until: float) -> None:
        self.tell, self.then, self.at, self.until = tell, then, at, until


class Renewer:
    """The renewing of all the locks that this process holds in one store."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = monotonic) -> None:
        green = _gevent_has_patched()
        self._start = green.get_original("_thread", "start_new_thread") if green else _start_thread
        self._store = store.twin() if green else store
        self._clock = clock
        # Not a Condition: gevent's would wait in the hub of this thread, and not be woken from another.
        allocate_lock = green.get_original("_thread", "allocate_lock") if green else threading.Lock
        self._mutex = allocate_lock()
        self._bell = allocate_lock()  # locked, until it rings
        self._bell.acquire()
        self._locks: weakref.WeakSet[Renewable] = weakref.WeakSet()
        self._errands: list[_Errand] = []
        self._wakes_at: float | None = None  # None: not before it is notified
        self._started = False

    def add(self, lock: Renewable) -> None:
        """Keep ``lock`` from now on."""
        action = lock.next_action
        with self._mutex:
            self._locks.add(lock)
            if action is not None:
                self._wake_by(action)

    def errand(self, tell: Callable[[Store], object], *, until: float, then: Callable[[], None]) -> None:
        """Call ``tell`` with the store, now and as long as it raises StoreUnavailable, until ``until``; in the end, ``then``."""
        now = self._clock()
        errand = _Errand(tell, then, now, until)
        with self._mutex:
            self._errands.append(errand)
            try:
                self._wake_by(now)
            except RuntimeError:  # no thread can be had: there are too many, or the interpreter is about to end
                errand.until = now
        if errand.until == now:
            self._run_errand(errand)

    def _wake_by(self, action: float) -> None:
        if not self._started:
            self._start(self._run, ())  # may raise RuntimeError
            self._started = True
        elif self._wakes_at is None or action < self._wakes_at:
            # The usual lock is over long before its first renewal, and the next one's comes later than that of
            # the one before: so the thread is seldom woken, for it sleeps until then though that lock is over.
            self._wakes_at = action
            if self._bell.locked():
                self._bell.release()

    def discard(self, lock: Renewable) -> None:
        """Forget ``lock``. An extension that is under way may still reach the store, which refuses it."""
        with self._mutex:
            self._locks.discard(lock)

    def _run(self) -> None:
        while True:
            self._carry_out_a_round()

    def _carry_out_a_round(self) -> None:
        # In a frame of its own: the last round's locks, referenced from the loop, would be kept alive, and so renewed.
        due, errand = self._wait_for_due()
        try:
            self._renew(due)
        except Exception as exc:
            # Whatever it was, the leases are still there: tell the locks, and go on.
            logger.exception("the renewal of %d locks failed", len(due))
            self._fail(due, self._clock(), exc)
        if errand is not None:
            # one a round: while the store hangs, each takes its time, and renewals come first
            self._run_errand(errand)

    def _wait_for_due(self) -> tuple[list[Renewable], _Errand | None]:
        """Sleep until a lock has something to do, or the store is to be told something; return what it is."""
        while True:
            with self._mutex:
                planned = [(lock, lock.next_action) for lock in self._locks]
                actions = [action for _, action in planned if action is not None]
                now = self._clock()
                told = next((errand for errand in self._errands if errand.at <= now), None)
                if told is not None or any(action <= now for action in actions):
                    # whoever is due soon comes along: one round trip for all
                    due = [lock for lock, action in planned if action is not None and action <= now + lock.ttl / 20]
                    return due, told
                del planned  # a reference from here would keep a dropped lock alive
                actions += [errand.at for errand in self._errands]
                if actions:
                    self._wakes_at = min(actions)
                elif self._wakes_at is not None and self._wakes_at <= now:
                    self._wakes_at = None
                timeout = -1 if self._wakes_at is None else self._wakes_at - now
            self._bell.acquire(timeout=timeout)

    def _run_errand(self, errand: _Errand) -> None:
        try:
            errand.tell(self._store)
        except StoreUnavailable:
            errand.at = self._clock() + RETRY_EVERY
            if errand.at < errand.until:
                return
        except Exception:
            logger.exception("a lock's end could not be told to its store")
        with self._mutex:
            self._errands.remove(errand)
        errand.then()

    def _renew(self, due: list[Renewable]) -> None:
        if orphaned():
            for lock in due:
                lock.lose("the worker that this process belonged to is dead")
        for lock in due:
            lock.expire()
        batch = [
            (lock, lease, lock.ttl)
            for lock in due
            if lock.auto_extend and lock.next_action is not None and (lease := lock.lease) is not None
        ]
        if not batch:
            return
        started = self._clock()
        over = threading.Event()
        threading.Thread(target=_expire, args=([lock for lock, _, _ in batch], over), daemon=True).start()
        try:
            within = min(lock.attempt for lock, _, _ in batch)
            answers = self._store.extend([(lease, ttl) for _, lease, ttl in batch], within=within)
        except StoreUnavailable as exc:
            self._fail([lock for lock, _, _ in batch], started, exc)
            return
        finally:
            over.set()
        for (lock, _, _), extended in zip(batch, answers, strict=True):
            if isinstance(extended, StoreUnavailable):
                lock.extend_failed(started, extended, RETRY_EVERY)
            elif extended:
                lock.extended(started)
            else:
                lock.extend_refused()

    def _fail(self, locks: list[Renewable], started: float, error: Exception) -> None:
        for lock in locks:
            lock.extend_failed(started, error, RETRY_EVERY)


def _start_thread(run: Callable[[], None], _: tuple[()]) -> None:
    threading.Thread(target=run, name="lockbeat-renewer", daemon=True).start()


def _gevent_has_patched() -> Any:
    monkey = sys.modules.get("gevent.monkey")
    return monkey if monkey is not None and monkey.is_module_patched("threading") else None


def _expire(locks: list[Renewable], over: threading.Event) -> None:
    """Tell each lock that its lease has run out, though the renewer waits for a store that hangs."""
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


def _forget_the_parents() -> None:
    """A forked child has none of its parent's threads, and none of its parent's locks."""
    global _renewers, _mutex  # noqa: PLW0603  the one state of this process
    _renewers = weakref.WeakKeyDictionary()
    _mutex = threading.Lock()


os.register_at_fork(after_in_child=_forget_the_parents)

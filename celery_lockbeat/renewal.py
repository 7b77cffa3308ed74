"""One thread per process and store that keeps held locks alive and reports those that are lost.

Promises: a lock is extended every ``extends_every`` seconds for as long as it is held, however long that is; all locks
that are due go into one round trip; a failed round is tried again while the leases last; the thread ends for no
exception, and a lock that it cannot keep is told so. It is a daemon, started by the first lock, and lives in the
process that started it: a forked child starts from nothing. One thread per store, not one for all: a store that hangs
must not delay the renewals of another.

Not promised: that a lock which nobody references any more is kept; it is dropped, and its lease runs out.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import Final, Protocol

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import StoreUnavailable
from celery_lockbeat.stores.base import Lease, Store

__all__ = ["Renewer", "renewer_of"]

logger: Final = logging.getLogger("celery_lockbeat")

#: Seconds between two tries after a failed round, or less where the interval is less.
RETRY_EVERY: Final = 1.0


class Renewable(Protocol):
    """What the renewer needs of a lock. None of these raises; all but ``lease`` may be called when it is over."""

    lease: Lease | None
    ttl: float
    #: when to act next, on the local clock; None: no more
    next_action: float | None
    #: whether the next action is an extension, or just to notice that the lease has run out
    auto_extend: bool

    def extended(self, started: float) -> None:
        """An extension that was asked for at ``started`` has been granted."""

    def extend_refused(self) -> None:
        """The store says that the lease is lost."""

    def extend_failed(self, started: float, error: Exception, retry_every: float) -> None:
        """The store did not answer; the lock says by ``next_action`` when to try again."""

    def expire(self) -> None:
        """Notice that the lease has run out, if it has."""


class Renewer:
    """The renewing of all the locks that this process holds in one store."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = monotonic) -> None:
        self._store = store
        self._clock = clock
        self._changed = threading.Condition()
        self._locks: weakref.WeakSet[Renewable] = weakref.WeakSet()
        self._wakes_at: float | None = None  # None: not before it is notified
        self._thread: threading.Thread | None = None

    def add(self, lock: Renewable) -> None:
        """Keep ``lock`` from now on."""
        action = lock.next_action
        with self._changed:
            self._locks.add(lock)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lockbeat-renewer", daemon=True)
                self._thread.start()
            elif action is not None and (self._wakes_at is None or action < self._wakes_at):
                # The usual lock is over long before its first renewal, and the next one's comes later than that of
                # the one before: so the thread is seldom woken, for it sleeps until then though that lock is over.
                self._wakes_at = action
                self._changed.notify()

    def discard(self, lock: Renewable) -> None:
        """Forget ``lock``. An extension that is under way may still reach the store, which refuses it."""
        with self._changed:
            self._locks.discard(lock)

    def _run(self) -> None:
        while True:
            self._carry_out_a_round()

    def _carry_out_a_round(self) -> None:
        # In a frame of its own: the last round's locks, referenced from the loop, would be kept alive, and so renewed.
        due = self._wait_for_due()
        try:
            self._renew(due)
        except Exception as exc:
            # Whatever it was, the leases are still there: tell the locks, and go on.
            logger.exception("the renewal of %d locks failed", len(due))
            self._fail(due, self._clock(), exc)

    def _wait_for_due(self) -> list[Renewable]:
        """Sleep until a lock has something to do; return those that have."""
        with self._changed:
            while True:
                planned = [(lock, lock.next_action) for lock in self._locks]
                actions = [action for _, action in planned if action is not None]
                now = self._clock()
                if any(action <= now for action in actions):
                    # whoever is due soon comes along: one round trip for all
                    return [lock for lock, action in planned if action is not None and action <= now + lock.ttl / 20]
                del planned  # a reference from here would keep a dropped lock alive
                if actions:
                    self._wakes_at = min(actions)
                elif self._wakes_at is not None and self._wakes_at <= now:
                    self._wakes_at = None
                self._changed.wait(None if self._wakes_at is None else self._wakes_at - now)

    def _renew(self, due: list[Renewable]) -> None:
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
        try:
            answers = self._store.extend([(lease, ttl) for _, lease, ttl in batch])
        except StoreUnavailable as exc:
            self._fail([lock for lock, _, _ in batch], started, exc)
            return
        for (lock, _, _), extended in zip(batch, answers, strict=True):
            if extended:
                lock.extended(started)
            else:
                lock.extend_refused()

    def _fail(self, locks: list[Renewable], started: float, error: Exception) -> None:
        for lock in locks:
            lock.extend_failed(started, error, RETRY_EVERY)


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

"""The locks that dead children of a pool may have held: their parent frees them.

Promises: each is freed by its holder's name, so that nobody else's is; one whose store does not answer is tried again, until its
lease has run out by itself.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import LockbeatError
from celery_lockbeat.locks.page import Hold, Page
from celery_lockbeat.stores import Store

__all__ = ["OrphanedLocks"]

logger: Final = logging.getLogger("celery_lockbeat")

#: Seconds until a store that did not answer is asked again.
TRIES_EVERY: Final = 0.2

#: When to free once more what was not held at a child's death: a server that hung may read what the child asked for
#: after it has read what the parent did.
LOOKS_AGAIN: Final = 5.0


@dataclass
class _OrphanedLock:
    """What a dead child may have held: to be freed at ``at``, or again, until ``until``."""

    pid: int
    key: str
    holder: str
    driver: str
    connection: str
    until: float
    at: float = 0.0
    asked: bool = False


class OrphanedLocks:
    """Those that are still to be freed; ``store_of`` gives the store of a driver and a connection."""

    def __init__(self, store_of: Callable[[str, str], Store]) -> None:
        self._store_of = store_of
        self._left: list[_OrphanedLock] = []

    def __len__(self) -> int:
        return len(self._left)

    def add(self, pid: int, page: Page) -> dict[tuple[str, str], Hold]:
        """Take over what the dead child ``pid`` has noted last; return what that is."""
        try:
            held = page.held()
        except (ValueError, TypeError, EOFError):
            # the child has written over its own memory: what it held ends by its ttl
            logger.exception("nobody can tell what the dead child %d held", pid)
            return {}
        for (holder, _), hold in held.items():
            if hold.driver == "memory":
                # the kernel has freed it; who waits for it does not know
                with contextlib.suppress(LockbeatError):
                    self._store_of(hold.driver, hold.connection).locks.serve(hold.key)
            else:
                until = monotonic() + hold.ttl
                self._left.append(_OrphanedLock(pid, hold.key, holder, hold.driver, hold.connection, until))
        return held

    def free(self) -> None:
        """Free those whose time has come."""
        now = monotonic()
        self._left = [lock for lock in self._left if now < lock.at or not self._free(lock)]

    def _free(self, lock: _OrphanedLock) -> bool:
        """Free it; whether there is nothing more to do."""
        try:
            freed = self._store_of(lock.driver, lock.connection).locks.free(lock.key, holder=lock.holder)
        except LockbeatError as exc:
            # the lease runs out by itself, if the store does not come back before
            lock.at = monotonic() + TRIES_EVERY
            if lock.at < lock.until:
                return False
            logger.warning("lock %r of the dead child %d ends by its ttl: %s", lock.key, lock.pid, exc)
            return True
        if freed:
            logger.warning("lock %r is free: the pool child %d, which held it, is dead", lock.key, lock.pid)
        again, lock.asked, lock.at = not (freed or lock.asked), True, monotonic() + LOOKS_AGAIN
        return not again

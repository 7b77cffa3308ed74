"""A lock is taken away from who holds it: by a command, the page or Django's admin, and each time the journal has who did it."""

from __future__ import annotations

from typing import Any

from celery_lockbeat.control.acts import somebody
from celery_lockbeat.journal.writer import journal_of
from celery_lockbeat.membership.used import stores_in_use
from celery_lockbeat.stores.base import LiveLock

__all__ = ["free_lock"]


def free_lock(app: Any, key: str, *, holder: str | None = None, who: str | None = None) -> list[tuple[str, LiveLock]]:
    """Free ``key`` in each store of the app, from ``holder`` or (None) from all who hold it; return each with its store's name.

    A run that is still going on under it goes on until it ends or learns that its lock is lost. Raises StoreUnavailable.
    """
    freed = [
        (used.name, lock)
        for used in stores_in_use(app)
        for lock in used.store.locks.held(key)
        # of that holder only: it may be another's by now
        if holder in (None, lock.holder) and used.store.locks.free(key, holder=lock.holder)
    ]
    for _, lock in freed:
        told = {"lock_key": key, "holder": lock.description, "who": who or somebody()}
        journal_of(app).put("lock_freed", told)
    return freed

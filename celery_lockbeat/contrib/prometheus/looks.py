"""How the beats and the locks of an app are, as its stores tell when they are asked.

Promises: the stores are asked twice a second at most, however many want to know; nobody waits for long. To count the locks that are
held, all keys of a Redis are gone through: a thread does so, and rests nineteen times as long as it took.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from celery_lockbeat.clock import monotonic
from celery_lockbeat.contrib.schedulers import announced_schedulers, names_of
from celery_lockbeat.exceptions import LockbeatError
from celery_lockbeat.membership.identity import lock_options_of
from celery_lockbeat.options import LockOptions
from celery_lockbeat.stores import Store, home_store_of, stores_of
from celery_lockbeat.stores.base import ALIVE, Beats

__all__ = ["Looks", "Seen"]

#: Seconds between two looks at the beats, and for which the names of their entries are kept.
EVERY: Final = 0.5
NAMED_FOR: Final = 60.0

#: By so much of the time that it took the next count of the locks is put off; seconds for which the first is waited for.
RESTS: Final = 19.0
PATIENCE: Final = 1.0

#: As many locks are counted in each store.
COUNTED_AT_MOST: Final = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What one look has shown. ``entries`` are the names of those that beats which are alive list; None: not known."""

    beats: int
    pending: int
    overdue: int
    entries: frozenset[str] | None


class Looks:
    """Looks at the stores of an app."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._mutex = threading.Lock()
        self._looked = -EVERY
        self._seen: Seen | None = None
        self._names: Mapping[str, str] = {}
        self._named = -NAMED_FOR
        self._held = _HeldLocks(app)

    def beats(self) -> Seen | None:
        """Return how the beats are; None: the store does not answer."""
        with self._mutex:
            if monotonic() - self._looked >= EVERY:
                try:
                    self._seen = self._look()
                except LockbeatError:
                    self._seen = None
                self._looked = monotonic()
            return self._seen

    def held(self) -> int | None:
        """Return how many locks are held; None: not known."""
        return self._held.count()

    def _look(self) -> Seen:
        store = home_store_of(self._app)
        beats = store.beats.status(str(self._app.main or ""))
        alive = [beat for beat in beats.replicas if beat.silent_for < ALIVE]
        return Seen(
            beats=len(alive),
            pending=sum(entry.pending for entry in beats.entries),
            overdue=beats.overdue,
            entries=self._listed(store, beats) if any(beat.complete for beat in alive) else None,
        )

    def _listed(self, store: Store, beats: Beats) -> frozenset[str]:
        keys = frozenset[str]().union(*(beat.entries for beat in beats.replicas if beat.silent_for < ALIVE))
        if monotonic() - self._named >= NAMED_FOR or not keys <= self._names.keys():
            self._names = names_of(self._app, keys, announced_schedulers(self._app, store))
            self._named = monotonic()
        return frozenset(self._names[key] for key in keys)


class _HeldLocks:
    """Counts the locks of an app, in each store that it uses."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._mutex = threading.Lock()
        self._thread: threading.Thread | None = None
        self._next = 0.0
        self._counted: int | None = None

    def count(self) -> int | None:
        with self._mutex:
            if (self._thread is None or not self._thread.is_alive()) and monotonic() >= self._next:
                self._thread = threading.Thread(target=self._count, name="lockbeat-metrics-held", daemon=True)
                self._thread.start()
            thread = self._thread
        if thread is not None:
            thread.join(PATIENCE)
        return self._counted

    def _count(self) -> None:
        began = monotonic()
        try:
            self._counted = sum(len(store.locks.held(limit=COUNTED_AT_MOST)) for store in self._stores())
        except LockbeatError:
            self._counted = None
        finally:
            now = monotonic()
            self._next = now + max(EVERY, RESTS * (now - began))

    def _stores(self) -> list[Store]:
        default = LockOptions.read(self._app.conf, {}, owner="the app")
        locks = [default, *(lock for _, lock in lock_options_of(self._app) if lock is not None)]
        return list(dict.fromkeys(stores_of(self._app).choose(lock.driver, lock.connection)[0] for lock in locks))

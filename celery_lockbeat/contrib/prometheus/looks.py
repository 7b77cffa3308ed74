"""How the beats and the locks of an app are, as its stores tell when they are asked.

Promises: the stores are asked twice a second at most, however many want to know; nobody waits for long. What may take long is done
aside, by a thread that rests nineteen times as long as it took: to count the locks that are held, for which all keys of a Redis
are gone through, and to ask for the names of entries, which may be in Django's database.
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
from celery_lockbeat.membership.used import stores_of_locks
from celery_lockbeat.stores import home_store_of, name_of
from celery_lockbeat.stores.base import ALIVE

__all__ = ["Looks", "Seen"]

#: Seconds between two looks at the beats, and for which the names of their entries are kept.
EVERY: Final = 0.5
NAMED_FOR: Final = 60.0

#: By so much of the time that it took the next look aside is put off, and the seconds for which one is waited for.
RESTS: Final = 19.0
PATIENCE: Final = 1.0

#: As many locks are counted in each store.
COUNTED_AT_MOST: Final = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What one look at the beats has shown. ``keys`` are those of the entries that running beats list; None: not all are listed."""

    beats: int
    pending: int
    overdue: int
    keys: frozenset[str] | None


class Looks:
    """Looks at the stores of an app."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._mutex = threading.Lock()
        self._looked = -EVERY
        self._seen: Seen | None = None
        self._aside = _Aside(app)

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

    def aside(self, seen: Seen) -> tuple[int | None, frozenset[str] | None]:
        """Return how many locks are held, and the names of the entries that are ``seen``; None: not known."""
        aside, keys = self._aside, seen.keys
        aside.look(keys or frozenset())
        names = aside.names
        return aside.held, None if keys is None or names is None else frozenset(names.get(key, key) for key in keys)

    def _look(self) -> Seen:
        beats = home_store_of(self._app).beats.status(name_of(self._app))
        alive = [beat for beat in beats.replicas if beat.silent_for < ALIVE]
        return Seen(
            beats=len(alive),
            pending=sum(entry.pending for entry in beats.entries),
            overdue=beats.overdue,
            keys=frozenset(key for beat in alive for key in beat.entries)
            if any(beat.complete for beat in alive)
            else None,
        )


class _Aside:
    """What takes long: the number of locks that are held, and the names of entries by their keys. None: not known."""

    held: int | None = None
    names: Mapping[str, str] | None = None

    def __init__(self, app: Any) -> None:
        self._app = app
        self._mutex = threading.Lock()
        self._thread: threading.Thread | None = None
        self._next = 0.0
        self._named = -NAMED_FOR

    def look(self, keys: frozenset[str]) -> None:
        """Look again, if it is time to, and wait a little for that."""
        with self._mutex:
            if (self._thread is None or not self._thread.is_alive()) and monotonic() >= self._next:
                self._thread = threading.Thread(
                    target=self._look, args=[keys], name="lockbeat-metrics-aside", daemon=True
                )
                self._thread.start()
            thread = self._thread
        if thread is not None:
            thread.join(PATIENCE)

    def _look(self, keys: frozenset[str]) -> None:
        began = monotonic()
        try:
            if began - self._named >= NAMED_FOR or not keys <= (self.names or {}).keys():
                self.names = names_of(self._app, keys, announced_schedulers(self._app, home_store_of(self._app)))
                self._named = began
            locks = [lock for _, lock in lock_options_of(self._app) if lock is not None]
            stores = [used.store for used in stores_of_locks(self._app, locks)]
            self.held = sum(len(store.locks.held(limit=COUNTED_AT_MOST)) for store in stores)
        except LockbeatError:
            self.held = None
        finally:
            now = monotonic()
            self._next = now + max(EVERY, RESTS * (now - began))

"""The stores that an app's locks and beats are in, for those who look into all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from celery_lockbeat.membership.identity import lock_options_of, place_of
from celery_lockbeat.options import AppOptions, LockOptions
from celery_lockbeat.stores import Store, stores_of

__all__ = ["UsedStore", "stores_in_use", "stores_of_locks"]


class UsedStore(NamedTuple):
    """A store, the arguments of its connection, and the least time in seconds that anything in it has for one answer."""

    store: Store
    arguments: Mapping[str, Any] | None
    patience: float

    @property
    def name(self) -> str:
        """What to call it."""
        return place_of(self.arguments) if (self.arguments or {}).get("url") else f"the {self.store.driver} store"


def stores_in_use(app: Any) -> list[UsedStore]:
    """Return each store that locks of the app are in, that of the beats first. Raises ConfigurationError."""
    app.loader.import_default_modules()
    app.finalize()
    return stores_of_locks(app, [lock for _, lock in lock_options_of(app) if lock is not None])


def stores_of_locks(app: Any, locks: Iterable[LockOptions]) -> list[UsedStore]:
    """Return each store that the beats and these locks are in, that of the beats first. Raises ConfigurationError."""
    options, default = AppOptions.read(app.conf), LockOptions.read(app.conf, {}, owner="the app")
    users = [(default, options.claim_ttl), *((lock, _patience(lock)) for lock in (default, *locks))]
    used: dict[Store, UsedStore] = {}
    for lock, patience in users:
        store, _ = stores_of(app).choose(lock.driver, lock.connection)
        known = used[store].patience if store in used else patience
        used[store] = UsedStore(store, options.connection(lock.driver, lock.connection), min(patience, known))
    return list(used.values())


def _patience(lock: LockOptions) -> float:
    return lock.ttl - (lock.extends_every if lock.auto_extend else 0.0)

"""The stores of an app: the only place that picks one."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.options import AppOptions, LockOptions
from celery_lockbeat.stores.base import Finished, Held, Lease, Place, Reservation, Store, Waiting, Wanted
from celery_lockbeat.stores.redis.store import RedisStore
from celery_lockbeat.stores.sqlite.store import MemoryStore

__all__ = [
    "Finished",
    "Held",
    "Lease",
    "Place",
    "Reservation",
    "Store",
    "Stores",
    "Waiting",
    "Wanted",
    "before_redirection_ends",
    "home_store_of",
    "name_of",
    "on_called",
    "on_close",
    "open_store",
    "redirected",
    "stores_of",
]

#: The one attribute that is hung on an app, beside its ``close``.
_ATTRIBUTE: Final = "lockbeat_stores"


class Stores:
    """The stores that one app's locks live in, each opened once, at its first use, and shared by all threads."""

    def __init__(self, options: AppOptions, app: Any = None) -> None:
        self.options: Final = options
        self._app = None if app is None else weakref.ref(app)
        self._opened: dict[object, Store] = {}
        self._chosen: dict[tuple[str, str], tuple[Store, Store | None]] = {}

    def choose(self, driver: str, connection: str) -> tuple[Store, Store | None]:
        """Return the store of a lock, and the one to fall back to while it is out of reach (``auto`` only).

        Raises ConfigurationError.
        """
        if _elsewhere is not None:
            there = _elsewhere(self, driver, connection)
            for store in there:
                self._listen_to(store)
            return there
        chosen = self._chosen.get((driver, connection))
        if chosen is None:
            # two threads may both come here: they choose the same
            chosen = self._chosen[driver, connection] = self._choose(driver, connection)
        return chosen

    def _choose(self, driver: str, connection: str) -> tuple[Store, Store | None]:
        arguments = self.options.connection(driver, connection)
        if arguments is None:
            return self._open(None, arguments), None
        if driver == "database":
            # an alias of Django's may be the name of a connection, too
            return self._open((driver, connection), arguments), None
        fallback = self._open(None, None) if driver == "auto" else None
        return self._open(connection, arguments, self.options.setting_of(connection)), fallback

    def _listen_to(self, store: Store | None) -> None:
        if store is not None:
            store.locks.called = partial(self._called, weakref.ref(store))

    def _called(self, store: Callable[[], Store | None], key: str, texts: Sequence[str]) -> None:
        """Somebody is called who waited for a lock."""
        app, here = None if self._app is None else self._app(), store()
        for callback in _on_called if app is not None and here is not None else ():
            callback(app, here, key, texts)

    def opened(self) -> list[Store]:
        """Tell those that have been opened so far."""
        return list(self._opened.values())

    def _open(self, name: object, arguments: Mapping[str, Any] | None, setting: str = "") -> Store:
        store = self._opened.get(name)
        if store is None:
            # two threads may both come here: the first one's is kept. No mutex, that a fork could copy while it is locked
            store = self._opened.setdefault(name, open_store(self.options, arguments, setting))
            self._listen_to(store)
        return store


#: Where tests have all stores chosen (testing.py).
_elsewhere: Callable[[Stores, str, str], tuple[Store, Store | None]] | None = None


@contextmanager
def redirected(choose: Callable[[Stores, str, str], tuple[Store, Store | None]]) -> Iterator[None]:
    """Let ``choose`` choose the stores of all apps of this process for as long as the block lasts."""
    global _elsewhere  # noqa: PLW0603  it is of the process: apps are made, and threads begun, in between
    before, _elsewhere = _elsewhere, choose
    try:
        yield
    finally:
        for callback in _before_redirection_ends:
            callback()
        _elsewhere = before


#: What whoever writes later wants to be called before it would write somewhere else.
_before_redirection_ends: Final[list[Callable[[], object]]] = []


def before_redirection_ends(callback: Callable[[], object]) -> None:
    """Call ``callback`` at the end of each block of :func:`redirected`."""
    _before_redirection_ends.append(callback)


def open_store(options: AppOptions, connection: Mapping[str, Any] | None, setting: str = "") -> Store:
    """Make the store of a connection (see :meth:`AppOptions.connection`), which ``setting`` names.

    It connects at its first operation.
    """
    if connection is None:
        return MemoryStore(options.memory_path, key_prefix=options.key_prefix)
    if "alias" in connection:
        from celery_lockbeat.contrib.django.store import open_database  # noqa: PLC0415  Django may be missing

        return open_database(connection["alias"], key_prefix=options.key_prefix)
    arguments = dict(connection)
    try:
        return RedisStore(
            arguments.pop("url"),
            options=arguments,
            key_prefix=options.key_prefix,
            min_replicas=options.redis_min_replicas,
            setting=setting,
            spell=options.spell,
        )
    except ConfigurationError as exc:
        raise ConfigurationError(options.spell(str(exc))) from exc.__cause__


def stores_of(app: Any) -> Stores:
    """Return the stores of an app; its settings are read at the first call. Raises ConfigurationError."""
    stores: Stores | None = vars(app).get(_ATTRIBUTE)
    if stores is None:
        # two threads may both come here: the first one's is kept
        stores = vars(app).setdefault(_ATTRIBUTE, Stores(AppOptions.read(app.conf), app))
        # the only way to learn of it: Celery has no signal for it
        vars(app)["close"] = partial(_close, app.close, stores)
    return stores


def name_of(app: Any) -> str:
    """Return the name under which its stores know an app."""
    return str(app.main or "")


def home_store_of(app: Any) -> Store:
    """Return the store of the beats, of the journal, and of the tasks that name no other. Raises ConfigurationError."""
    locks = LockOptions.read(app.conf, {}, owner="the app")
    return stores_of(app).choose(locks.driver, locks.connection)[0]


#: What is done where those are called who waited for a lock.
_on_called: Final[list[Callable[[Any, Any, str, Sequence[str]], object]]] = []


def on_called(callback: Callable[[Any, Any, str, Sequence[str]], object]) -> None:
    """Call ``callback`` whenever an app has freed a key for who waits: with the app, the store, the key, and what is to be told.

    It is told nothing where all listen.
    """
    _on_called.append(callback)


#: What whoever begins something for a store wants to be called with it when its app is closed.
_on_close: Final[list[Callable[[Store], object]]] = []


def on_close(callback: Callable[[Store], object]) -> None:
    """Call ``callback`` with each store of an app that is closed from now on. The store itself stays usable."""
    _on_close.append(callback)


def _close(close: Callable[[], None], stores: Stores) -> None:
    close()
    for store in stores.opened():
        for callback in _on_close:
            callback(store)

"""For the tests of a project whose tasks are locked: a store of their own, and a clock that stands still.

Promises: locks work as in production, with tokens, renewal and ``current_lock()``, and nobody outside of the block sees them:
no server is asked, no directory that others use is touched. For pytest there are fixtures (docs/how-to/testing.md).
Not promised: the same for processes that were forked before, or that are started by the tests, and for a ``Lock`` that was made
before: they have chosen their store already.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

from celery_lockbeat.clock import monotonic
from celery_lockbeat.locks.renewal import close_renewer_of
from celery_lockbeat.stores import Stores, redirected
from celery_lockbeat.stores.base import LiveLock, Store
from celery_lockbeat.stores.sqlite.store import MemoryStore

__all__ = ["Clock", "OwnStore", "own_store"]

#: Who reads the clock of leases, beside the store.
_READERS = tuple(f"celery_lockbeat.locks.{module}.monotonic" for module in ("acquisition", "lease", "renewal"))


class Clock:
    """The clock of leases; it stands still, and goes on by :meth:`advance` alone."""

    def __init__(self) -> None:
        self._now = monotonic()

    def __call__(self) -> float:
        """Return the seconds that it shows."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let so much time pass at one blow, as for a process that was stopped: leases are not renewed meanwhile."""
        if seconds < 0:
            msg = f"seconds is {seconds!r}; allowed: 0 or more, for the clock of leases never goes back"
            raise ValueError(msg)
        self._now += seconds


class OwnStore:
    """The stores of a block: one for each connection that is used in it, all in one directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stores: dict[tuple[str, str], MemoryStore] = {}
        self._mutex = threading.Lock()
        self._clock: Clock | None = None

    def locks(self) -> list[LiveLock]:
        """Tell the locks that are held now; those of all connections, in no order."""
        return [lock for store in list(self._stores.values()) for lock in store.locks.held()]

    @contextlib.contextmanager
    def frozen(self) -> Iterator[Clock]:
        """Let leases go by a clock that stands still for as long as the block lasts."""
        clock = self._clock = Clock()
        with contextlib.ExitStack() as stack:
            for name in _READERS:
                stack.enter_context(patch(name, clock))
            try:
                yield clock
            finally:
                self._clock = None

    def choose(self, stores: Stores, driver: str, connection: str) -> tuple[Store, Store | None]:
        """Choose as ``stores`` would, which refuses what is wrong, but among ours."""
        server = stores.options.connection(driver, connection)
        key = ("memory" if server is None else connection, stores.options.key_prefix)
        with self._mutex:
            if key not in self._stores:
                self._stores[key] = MemoryStore(self._path / quote(key[0], ""), key_prefix=key[1], clock=self._now)
            return self._stores[key], None

    def _now(self) -> float:
        return monotonic() if self._clock is None else self._clock()

    def close(self) -> None:
        """End the renewal of what is held still, and close all."""
        for store in self._stores.values():
            close_renewer_of(store)
            store.close()


@contextlib.contextmanager
def own_store(path: Any) -> Iterator[OwnStore]:
    """Keep all locks and ticks of this process, of each app, in the directory ``path`` for as long as the block lasts."""
    directory = Path(path)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = OwnStore(directory)
    with contextlib.closing(own), redirected(own.choose):
        yield own

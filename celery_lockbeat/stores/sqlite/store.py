"""The store of one host, without a server: SQLite keeps the state, a kernel lock tells who is alive.

Promises the contract of ``base.py`` for all threads and processes of one user on one host, and that a dead holder's key
is free at once. Needs a local disk: neither record locks nor SQLite's WAL can be trusted on a network file system.

SQLite, since tokens, finished runs and claims change together and must survive a crash in the middle. Acquire + release
take 71 us (100 us with a run to remember; Redis: 290 us), 58 us with synchronous=OFF, which a power cut may corrupt, and
374 us with FULL, whose durability saves nothing here: a power cut ends all leases. A JSON file under flock takes 19 us.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Final

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.stores.base import Store
from celery_lockbeat.stores.sqlite import announcements, beats, controls, formats, journal, locks
from celery_lockbeat.stores.sqlite.database import Database, Tables

try:
    from celery_lockbeat.stores.sqlite.host import HostDatabase
except ImportError:  # Windows, which has no fcntl, and where Celery has no prefork pool either
    HostDatabase = None  # type: ignore[assignment,misc]

__all__ = ["TABLES", "MemoryStore", "SQLStore"]

#: What all parts keep.
TABLES: Final[Sequence[Tables]] = (
    locks.TABLES,
    beats.TABLES,
    announcements.TABLES,
    journal.TABLES,
    formats.TABLES,
    controls.TABLES,
)


class SQLStore(Store):
    """A store in one SQLite database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.locks = locks.SQLLocks(database)
        self.beats = beats.SQLBeats(database)
        self.controls = controls.SQLControls(database)
        self.announcements = announcements.SQLAnnouncements(database)
        self.journal = journal.SQLJournal(database)

    @property
    def place(self) -> Path:
        """Where it is, as its user knows it."""
        return self.database.place

    def check(self) -> None:
        where = f"the {self.driver} store in {self.place}"
        self.database.atomically(lambda connection, _now: formats.check_format(connection, where))

    def close(self) -> None:
        self.database.close()


class MemoryStore(SQLStore):
    """The store of the processes of this user on this host, kept in the private directory ``path``.

    ``timeout``: seconds to wait for another process's transaction, which takes some ten microseconds unless that process
    is stopped in its middle. All durations are counted on ``clock``; ``wall`` only makes tokens.
    """

    driver: ClassVar[str] = "memory"

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        key_prefix: str = "lockbeat:",
        timeout: float = 5.0,
        clock: Callable[[], float] = monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        if HostDatabase is None:
            msg = "lock_driver is 'memory'; allowed on this platform: 'redis', for memory needs POSIX record locks"
            raise ConfigurationError(msg)
        super().__init__(HostDatabase(path, TABLES, prefix=key_prefix, timeout=timeout, clock=clock, wall=wall))

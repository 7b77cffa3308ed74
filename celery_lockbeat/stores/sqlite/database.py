"""One SQLite file that many processes change: how a change is made alone and whole, and goes on in files that took its place.

Promises: work that is done :meth:`Database.atomically` is done by one process of the host at a time, or not at all; it never sees
files that have been deleted while there are others in their place. A forked child neither uses nor closes what its parent has
open, and no exception that is thrown into a thread leaves the mutex taken or a transaction open.
"""

from __future__ import annotations

import abc
import contextlib
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from celery_lockbeat.clock import boot_id, monotonic
from celery_lockbeat.exceptions import StoreUnavailable

__all__ = ["LONG_AGO", "NOBODY", "Database", "Tables", "as_blob", "as_text", "files_at", "open_here"]

#: After so many operations of one store, at most so many rows of each table that are over are deleted.
PURGE_EVERY: Final = 64
PURGE_AT_MOST: Final = 256

#: At most how long to sleep until the next try to begin a transaction, seconds; the mean is half of it. SQLite's own
#: waiting sleeps longer the longer one has waited: of 8 processes that do nothing else, one waited for 834 ms, and the
#: luckiest did 2.5 times as much as the unluckiest. So: 33 ms, and 1.1 times.
PAUSE: Final = 0.001

#: In place of the offset of a process: no process holds this row, it lives by its time alone.
NOBODY: Final = 0

#: ``seen`` of a replica that has left, or that was there before this boot.
LONG_AGO: Final = float("-inf")

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """What one part of a store keeps in a database."""

    #: SQL that makes them where they are not there
    schema: Sequence[str]
    #: move what an earlier boot left behind to this boot's clock, given the time and what tells whether a process lives
    begin_a_new_boot: Callable[[sqlite3.Connection, float, Callable[[int], bool]], None]
    #: SQL that deletes what is over at a time, so many rows at most
    purge: Sequence[str] = ()


class Database(abc.ABC):
    """The state of one store, at ``place``. ``kind`` is the name of its driver.

    All durations are counted on ``clock``; ``wall`` only makes tokens.
    """

    def __init__(
        self,
        place: Path,
        tables: Sequence[Tables],
        *,
        kind: str,
        prefix: str,
        timeout: float,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.place = place
        #: the file itself, and those whose places it looks at before each change
        self.state = str(place)
        self.watched: tuple[str, ...] = (self.state,)
        self.files: tuple[int, ...] = ()  # which the connection was opened on
        self.connection: sqlite3.Connection | None = None
        self.clock = clock
        self.wall = wall
        self._tables = tables
        self._kind = kind
        self._prefix = prefix
        self._timeout = timeout
        self._operations = 0
        with _mutex:
            _databases.add(self)

    @abc.abstractmethod
    def connect(self) -> sqlite3.Connection:
        """Open the file, and say by ``files`` which it is. Raises sqlite3.Error, OSError, ConfigurationError."""

    @property
    def process(self) -> int:
        """What tells this process from others, in the rows of its locks; NOBODY: nothing does."""
        return NOBODY

    def sees(self, process: int) -> bool:  # noqa: ARG002  nothing tells who is alive
        """Whether the process lives that has marked a row as its own."""
        return True

    def row_key(self, key: str) -> bytes:
        """Write a key, or an app's name, as it stands in a row; with its length in front, no prefix and key read like another pair."""
        return as_blob(f"{len(self._prefix)} {self._prefix}{key}")

    def atomically(self, work: Callable[[sqlite3.Connection, float], _T]) -> _T:
        """Do ``work`` alone on this host, whole or not at all. Raises StoreUnavailable, ConfigurationError.

        Both ``with`` are C's own: an exception that is thrown into this thread at any moment (a soft time limit,
        ``lock_on_lost="abort"``) leaves neither the mutex taken nor a transaction open, which would stop the whole host.
        """
        deadline = monotonic() + self._timeout
        moved = False  # whether other files are in the place of ours
        with _mutex:
            while True:
                try:
                    if moved:
                        self._move()
                        moved = False
                    with self._opened() as connection:
                        connection.execute("BEGIN IMMEDIATE")
                        # now, for nobody puts back what was deleted as long as this transaction lasts
                        if self.files != files_at(*self.watched):
                            raise _Replaced
                        answer = work(connection, self.clock())
                        self._purge_now_and_then(connection)
                    return answer  # noqa: TRY300  an else would be read as belonging to the with
                except _Replaced:
                    moved = True
                    continue
                except (sqlite3.Error, OSError) as exc:
                    # a thread that waited for the mutex that long does not wait for the other process once more
                    if not _is_busy(exc) or monotonic() > deadline:
                        self._drop(exc)
                        msg = f"the {self._kind} store in {self.place} does not answer: {exc}"
                        raise StoreUnavailable(msg) from exc
                time.sleep(random.uniform(0, PAUSE))  # noqa: S311  not a secret

    def _opened(self) -> sqlite3.Connection:
        connection = self.connection
        if connection is not None and connection.in_transaction:
            msg = "it is used by a signal handler that interrupted its use"
            raise sqlite3.ProgrammingError(msg)
        if connection is None:
            connection = self.connection = self.connect()
        return connection

    def _move(self) -> None:
        """Go to the files that are in the place of ours, which were deleted; there are none: take the state along."""
        old = self.connection
        self.connection = self.connect()
        if old is not None:
            old.close()  # SQLite notices that its files have moved, and touches none of the new ones

    def _drop(self, exc: Exception) -> None:
        """Open anew at the next use, unless another process was merely slow or this very thread is still inside."""
        if not (_is_busy(exc) or isinstance(exc, sqlite3.ProgrammingError)):
            with contextlib.suppress(sqlite3.Error):
                self.close()

    def close(self) -> None:
        """Close the connection; it is opened again when it is used again."""
        with _mutex:
            connection, self.connection = self.connection, None
            if connection is not None:
                connection.close()

    def prepare(self, connection: sqlite3.Connection) -> None:
        """Make the tables where they are not there."""
        connection.execute("CREATE TABLE IF NOT EXISTS lockbeat_host (boot TEXT)")
        for part in self._tables:
            for statement in part.schema:
                connection.execute(statement)

    def begin_a_new_boot(self, connection: sqlite3.Connection) -> None:
        """Move what an earlier boot left behind to this boot's clock, which begins anew."""
        boot = boot_id()
        if connection.execute("SELECT boot FROM lockbeat_host").fetchone() == (boot,):
            return
        now = self.clock()
        for part in self._tables:
            part.begin_a_new_boot(connection, now, self.sees)
        connection.execute("DELETE FROM lockbeat_host")
        connection.execute("INSERT INTO lockbeat_host VALUES (?)", (boot,))

    def _purge_now_and_then(self, connection: sqlite3.Connection) -> None:
        self._operations += 1
        if self._operations % PURGE_EVERY:
            return
        now = self.clock()
        for part in self._tables:
            for statement in part.purge:
                connection.execute(statement, (now, PURGE_AT_MOST))


class _Replaced(Exception):  # noqa: N818  no error: it never leaves this module
    """The files that are open are not in their place any more."""


def files_at(*paths: str) -> tuple[int, ...]:
    """Tell files from others that have come into their places; () while one is missing."""
    try:
        return tuple(os.stat(path).st_ino for path in paths)  # noqa: PTH116  at each operation: Path costs as much again
    except FileNotFoundError:
        return ()


def _is_busy(exc: Exception) -> bool:
    # sqlite_errorcode came with Python 3.11
    return isinstance(exc, sqlite3.OperationalError) and "locked" in str(exc)


def as_blob(text: str) -> bytes:
    """Write any text, one to one."""
    return text.encode("utf-8", "surrogatepass")


def as_text(blob: bytes) -> str:
    """Read what ``as_blob`` has written."""
    return blob.decode("utf-8", "surrogatepass")


# One mutex for all: what it guards is short, and it keeps a fork from copying SQLite in the middle of its work, with locks of its
# own that nobody would ever free in the child.
_mutex = threading.RLock()
_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_inherited: list[sqlite3.Connection | None] = []


def open_here(state: str) -> sqlite3.Connection | None:
    """Return a connection of this process to what is, or was, at ``state``."""
    for database in _databases:
        if database.state == state and database.connection is not None:
            return database.connection
    return None


def _finish_before_a_fork() -> None:
    _mutex.acquire()


def _go_on_in_the_parent() -> None:
    _mutex.release()


def _begin_anew_in_the_child() -> None:
    global _mutex  # noqa: PLW0603  it is this process's, and that is another one now
    _mutex = threading.RLock()
    for database in _databases:
        # neither used nor closed here, as SQLite demands (sqlite.org/howtocorrupt.html, 2.6)
        _inherited.append(database.connection)
        database.connection = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_finish_before_a_fork,
        after_in_parent=_go_on_in_the_parent,
        after_in_child=_begin_anew_in_the_child,
    )

"""The database of the memory store: a file in its directory, beside it one whose locks tell who is alive.

Promises: the state survives a restart; a reboot ends the leases, and keeps tokens and finished runs. On Linux it survives its
files, too: whoever finds them deleted while a process uses them puts them back first (see ``rescue.py``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from celery_lockbeat.stores.sqlite.database import Database, Tables, open_here
from celery_lockbeat.stores.sqlite.directory import default_path, is_private, make_private, refuse_planted
from celery_lockbeat.stores.sqlite.liveness import this_process
from celery_lockbeat.stores.sqlite.locks import ALL_DEAD, PERHAPS_ALIVE
from celery_lockbeat.stores.sqlite.rescue import lock_within, publish, rescue

__all__ = ["HostDatabase"]

logger: Final = logging.getLogger("celery_lockbeat")


class HostDatabase(Database):
    """The state of all processes of this user on this host that agree on a directory; None: the default one."""

    def __init__(
        self,
        directory: str | os.PathLike[str] | None,
        tables: Sequence[Tables],
        *,
        prefix: str,
        timeout: float,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        # made absolute now: a daemon changes its working directory later
        place = Path(directory or default_path()).absolute()
        super().__init__(place, tables, kind="memory", prefix=prefix, timeout=timeout, clock=clock, wall=wall)
        self._live_in(place)
        #: where release 0.1.0 is by default; None: we have been told where to be, or have looked there already
        self._earlier = None if directory else Path(tempfile.gettempdir(), place.name)
        self._descriptor = -1  # of ``alive``; set with the connection

    def _live_in(self, directory: Path) -> None:
        self.place = directory
        self.state, self._alive = str(directory / "state.db"), str(directory / "alive")
        self.watched = (self.state, self._alive)

    @property
    def process(self) -> int:
        """What tells this process from others, in the rows of its locks."""
        return this_process().offset

    def sees(self, process: int) -> bool:
        """Whether the process lives that has marked a row as its own."""
        return this_process().sees(process, self._descriptor)

    def connect(self) -> sqlite3.Connection:
        """Find the state, or make one, and mark beside it that this process lives."""
        make_private(self.place)
        refuse_planted(self.place)
        with contextlib.ExitStack() as stack:
            if self._earlier is not None or not os.path.exists(self.state):  # noqa: PTH110
                self._begin(stack)
            # no waiting inside SQLite: see PAUSE
            connection = sqlite3.connect(self.state, timeout=0, isolation_level=None, check_same_thread=False)
            try:
                state = os.stat(self.state).st_ino  # noqa: PTH116  as in files_at
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    self.prepare(connection)
                    if not os.path.exists(self._alive):  # noqa: PTH110
                        # nobody's byte is in the new one: who is alive must not be taken for dead
                        for change in PERHAPS_ALIVE.values():
                            connection.execute(change)
                    self._descriptor = this_process().marked_in(self._alive)
                    self.files = (state, os.fstat(self._descriptor).st_ino)
                    self.begin_a_new_boot(connection)
            except BaseException:
                connection.close()
                raise
        return connection

    def _begin(self, stack: contextlib.ExitStack) -> None:
        """Find the state, or make one; alone, until our mark is there for who comes next."""
        choosing = os.open(self.place / "choosing", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, choosing)
        lock_within(choosing, self._timeout)
        earlier, self._earlier = self._earlier, None
        if earlier not in (None, self.place) and is_private(earlier):
            self._stay_with_the_earlier_release(earlier)
        if not os.path.exists(self.state):  # noqa: PTH110
            self._put_back()
        with contextlib.suppress(FileExistsError):
            # never opened by hand again: closing it would drop the locks of SQLite's own descriptors (fcntl(2))
            os.close(os.open(self.state, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    def _put_back(self) -> None:
        """Begin with what somebody has open still, though it was deleted."""
        own = open_here(self.state)
        if own is not None:
            publish(own, self.state, PERHAPS_ALIVE)
        else:
            rescue(self.state, PERHAPS_ALIVE, within=self._timeout)

    def _stay_with_the_earlier_release(self, earlier: Path) -> None:
        """Join those who live where release 0.1.0 does, as long as there is one: in two places nobody would exclude the other.

        All leave when none of them is left, and take along what they knew.
        """
        left = earlier / "state.db"
        if this_process().meets_others_in(str(earlier / "alive")):
            logger.info("the memory store is still in %s, where processes of an earlier release are", earlier)
            self._live_in(earlier)
            refuse_planted(earlier)
        elif left.is_file() and not os.path.exists(self.state):  # noqa: PTH110
            with contextlib.closing(sqlite3.connect(left, timeout=self._timeout, isolation_level=None)) as connection:
                publish(connection, self.state, ALL_DEAD)

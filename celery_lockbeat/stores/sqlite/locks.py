"""Locks in SQLite: a row for each key, and one for each finished run that is remembered. ``until`` and ``forget`` are on the host's clock."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

from celery_lockbeat.exceptions import StoreUnavailable
from celery_lockbeat.stores.base import LISTED_AT_MOST, TOKEN_MEMORY, Finished, Held, Lease, LiveLock, LockStore
from celery_lockbeat.stores.sqlite.database import NOBODY, Database, Tables, as_blob, as_text

__all__ = ["ALL_DEAD", "PERHAPS_ALIVE", "TABLES", "SQLLocks"]

#: Where no mark tells who is alive: locks end with their leases. And where all are known to be dead.
PERHAPS_ALIVE: Final = "UPDATE lockbeat_lock SET process = 0"
ALL_DEAD: Final = "UPDATE lockbeat_lock SET until = 0, holder = x'', process = 0 WHERE process <> 0"

SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS lockbeat_lock (
        key BLOB PRIMARY KEY, token INTEGER, until REAL, holder BLOB, run BLOB, description TEXT, process INTEGER,
        forget REAL) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS lockbeat_lock_forget ON lockbeat_lock (forget)",
    """CREATE TABLE IF NOT EXISTS lockbeat_done (
        key BLOB, run BLOB, token INTEGER, lasts REAL, forget REAL, PRIMARY KEY (key, run)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS lockbeat_done_forget ON lockbeat_done (forget)",
)

PURGE: Final = (
    "DELETE FROM lockbeat_lock WHERE key IN (SELECT key FROM lockbeat_lock WHERE forget < ? LIMIT ?)",
    "DELETE FROM lockbeat_done WHERE (key, run) IN (SELECT key, run FROM lockbeat_done WHERE forget < ? LIMIT ?)",
)


class SQLLocks(LockStore):
    """The locks in a database, under its prefix."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def acquire(
        self,
        key: str,
        *,
        holder: str,
        ttl: float,
        run: str | None = None,
        task: str | None = None,
        description: str = "",
    ) -> Lease | Held | Finished:
        row_key, ours, named, described = (
            self._database.row_key(key),
            as_blob(holder),
            as_blob(run or ""),
            _readable(description),
        )

        def take(connection: sqlite3.Connection, now: float) -> Lease | Held | Finished:
            for mark in (task, run):
                if mark is not None and _finished_by(connection, row_key, as_blob(mark), now) is not None:
                    return Finished(task=mark == task)
            token = int(self._database.wall() * 1_000_000)
            row = connection.execute(
                "SELECT token, until, holder, run, description, process FROM lockbeat_lock WHERE key = ?", (row_key,)
            ).fetchone()
            if row is not None:
                last, until, theirs, their_run, their_description, process = row
                live = until > now and (theirs == ours or self._database.sees(process))
                if live and theirs != ours:
                    same_run = run is not None and their_run == named
                    return Held(their_description, until - now, same_run, their_run.decode("utf-8", "replace"))
                token = last if live else max(token, last + 1)
            connection.execute(
                "INSERT OR REPLACE INTO lockbeat_lock VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (row_key, token, now + ttl, ours, named, described, self._database.process, now + ttl + TOKEN_MEMORY),
            )
            return Lease(key, holder, run, token, task)

        return self._database.atomically(take)

    def extend(
        self,
        leases: Sequence[tuple[Lease, float]],
        *,
        within: float = math.inf,  # noqa: ARG002  it has a time limit of its own
    ) -> list[bool | StoreUnavailable]:
        def prolong(connection: sqlite3.Connection, now: float) -> list[bool | StoreUnavailable]:
            return [
                connection.execute(
                    "UPDATE lockbeat_lock SET until = ?, forget = ? WHERE key = ? AND token = ? AND holder = ? AND until > ?",
                    (
                        now + ttl,
                        now + ttl + TOKEN_MEMORY,
                        self._database.row_key(lease.key),
                        lease.token,
                        as_blob(lease.holder),
                        now,
                    ),
                ).rowcount
                == 1
                for lease, ttl in leases
            ]

        return self._database.atomically(prolong) if leases else []

    def release(self, lease: Lease, *, hold_for: float = 0, remember_for: float = 0, task: bool = False) -> bool:
        mark = lease.task if task else lease.run
        row_key, ours, run = self._database.row_key(lease.key), as_blob(lease.holder), as_blob(mark or "")

        def free(connection: sqlite3.Connection, now: float) -> bool:
            row = connection.execute(
                "SELECT token, until, holder FROM lockbeat_lock WHERE key = ?", (row_key,)
            ).fetchone()
            if row is None or row[0] != lease.token:
                # another came after us: was our release carried out before?
                return mark is not None and _finished_by(connection, row_key, run, now) == lease.token
            _, until, holder = row
            if not holder:
                return True
            if holder != ours or until <= now:
                return False
            # the token stays, as the counter; without a holder it can be neither extended nor released
            connection.execute(
                "UPDATE lockbeat_lock SET until = ?, holder = ?, process = ?, forget = ? WHERE key = ?",
                (now + hold_for, b"", NOBODY, now + hold_for + TOKEN_MEMORY, row_key),
            )
            if mark is not None and remember_for > 0:
                connection.execute(
                    "INSERT OR REPLACE INTO lockbeat_done VALUES (?, ?, ?, ?, ?)",
                    (row_key, run, lease.token, remember_for, now + remember_for),
                )
            return True

        return self._database.atomically(free)

    def free(self, key: str, *, holder: str) -> bool:
        def end(connection: sqlite3.Connection, now: float) -> bool:
            # as in release: the token stays, without a holder
            ended = connection.execute(
                "UPDATE lockbeat_lock SET until = ?, holder = ?, process = ?, forget = ? WHERE key = ? AND holder = ? AND until > ?",
                (now, b"", NOBODY, now + TOKEN_MEMORY, self._database.row_key(key), as_blob(holder), now),
            )
            return ended.rowcount == 1

        return self._database.atomically(end)

    def held(self, key: str | None = None, *, limit: int = LISTED_AT_MOST) -> list[LiveLock]:
        mine = self._database.row_key("" if key is None else key)

        def tell(connection: sqlite3.Connection, now: float) -> list[LiveLock]:
            rows = connection.execute(
                "SELECT key, holder, description, run, token, until, process FROM lockbeat_lock"
                " WHERE until > ? AND (key = ? OR ? AND substr(key, 1, ?) = ?)",
                (now, mine, key is None, len(mine), mine),
            )
            live = (row for row in rows if self._database.sees(row[6]))
            return [
                LiveLock(
                    key or as_text(row[0][len(mine) :]), as_text(row[1]), row[2], as_text(row[3]), row[4], row[5] - now
                )
                for row in islice(live, limit)
            ]

        return self._database.atomically(tell)


def _finished_by(connection: sqlite3.Connection, key: bytes, run: bytes, now: float) -> int | None:
    """The token under which this run was brought to its end, while that is remembered."""
    row = connection.execute(
        "SELECT token FROM lockbeat_done WHERE key = ? AND run = ? AND forget > ?", (key, run, now)
    ).fetchone()
    return None if row is None else int(row[0])


def _readable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _begin_a_new_boot(connection: sqlite3.Connection, now: float, sees: Callable[[int], bool]) -> None:
    """End the leases of who is dead, and keep what is remembered.

    The wall clock could tell how long the machine was down, but is often not yet set when it comes up: a finished
    run is remembered for all of its time once more instead, since an early end would let it run twice.
    """
    for (process,) in connection.execute("SELECT DISTINCT process FROM lockbeat_lock").fetchall():
        # a live holder proves that it is the same boot under another name (see boot_id)
        if process == NOBODY or not sees(process):
            connection.execute("UPDATE lockbeat_lock SET until = ? WHERE process = ?", (now, process))
    connection.execute("UPDATE lockbeat_lock SET forget = until + ?", (TOKEN_MEMORY,))
    connection.execute("UPDATE lockbeat_done SET forget = ? + lasts", (now,))


TABLES: Final = Tables(schema=SCHEMA, begin_a_new_boot=_begin_a_new_boot, purge=PURGE)

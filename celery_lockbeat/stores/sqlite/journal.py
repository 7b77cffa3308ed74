"""The journal in SQLite: ``written`` is on the wall's clock, ``until`` of a batch on the host's."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final

from celery_lockbeat.stores.base import JOURNAL_MEMORY, JOURNALED_AT_ONCE, JournalStore, StoredRecord
from celery_lockbeat.stores.sqlite.database import Database, Tables

__all__ = ["TABLES", "SQLJournal", "is_position"]

SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS lockbeat_journal (
        position INTEGER PRIMARY KEY, app BLOB, written REAL, text TEXT)""",
    "CREATE INDEX IF NOT EXISTS lockbeat_journal_of ON lockbeat_journal (app, position)",
    "CREATE TABLE IF NOT EXISTS lockbeat_batch (app BLOB, name TEXT, until REAL, PRIMARY KEY (app, name)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS lockbeat_batch_until ON lockbeat_batch (app, until)",
    "CREATE TABLE IF NOT EXISTS lockbeat_tail (app BLOB PRIMARY KEY, position INTEGER, added INTEGER) WITHOUT ROWID",
)

#: The oldest are dropped when so many have been added: to count those that are kept takes its time.
DROPPED_EVERY: Final = 256

#: Whether a text can be the number of a row, which has 63 bits.
is_position: Final = re.compile(r"\d{1,18}", re.ASCII).fullmatch


class SQLJournal(JournalStore):
    """The journals of all apps in a database, under its prefix."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(
        self,
        app: str,
        batch: str,
        texts: Sequence[str],
        *,
        keep: int,
        remember_for: float = 3600.0,
        forget: str | None = None,
        within: float | None = None,  # noqa: ARG002  a transaction has its own time limit
    ) -> bool:
        whose = self._database.row_key(app)

        def write(connection: sqlite3.Connection, now: float) -> bool:
            sql = "DELETE FROM lockbeat_batch WHERE app = ? AND (name = ? OR until <= ?)"
            connection.execute(sql, (whose, forget, now))
            sql = "INSERT OR IGNORE INTO lockbeat_batch VALUES (?, ?, ?)"
            if not connection.execute(sql, (whose, batch, now + remember_for)).rowcount:
                return False
            if texts:
                self._write(connection, whose, texts, keep)
            return True

        return self._database.atomically(write)

    def _write(self, connection: sqlite3.Connection, whose: bytes, texts: Sequence[str], keep: int) -> None:
        written = self._database.wall()
        last = connection.execute("SELECT max(position) FROM lockbeat_journal").fetchone()[0] or 0
        sql = "SELECT position, added FROM lockbeat_tail WHERE app = ?"
        tail, added = connection.execute(sql, (whose,)).fetchone() or (0, 0)
        # after all that anybody has read, though all records may have been dropped since
        first = max(last, tail) + 1
        rows = [(first + number, whose, written, text) for number, text in enumerate(texts)]
        connection.executemany("INSERT INTO lockbeat_journal VALUES (?, ?, ?, ?)", rows)
        added += len(rows)
        if added >= DROPPED_EVERY:
            added = 0
            connection.execute(
                "DELETE FROM lockbeat_journal WHERE app = ?1 AND (written < ?3 OR position <= coalesce((SELECT position FROM"
                " lockbeat_journal WHERE app = ?1 ORDER BY position DESC LIMIT 1 OFFSET ?2), 0))",
                (whose, keep, written - JOURNAL_MEMORY),
            )
        connection.execute("INSERT OR REPLACE INTO lockbeat_tail VALUES (?, ?, ?)", (whose, rows[-1][0], added))

    def records(
        self,
        app: str,
        *,
        after: str | None = None,
        before: str | None = None,
        since: float | None = None,
        newest_first: bool = False,
        limit: int = JOURNALED_AT_ONCE,
    ) -> list[StoredRecord]:
        if not all(is_position(position) for position in (after, before) if position is not None):
            return []
        conditions, values = ["app = ?"], [self._database.row_key(app)]
        bounds: Sequence[tuple[str, Any]] = (
            ("position > ?", None if after is None else int(after)),
            ("position < ?", None if before is None else int(before)),
            ("written >= ?", since),
        )
        for condition, value in bounds:
            if value is not None:
                conditions.append(condition)
                values.append(value)
        sql = (
            f"SELECT position, written, text FROM lockbeat_journal WHERE {' AND '.join(conditions)}"  # noqa: S608  ours
            f" ORDER BY position {'DESC' if newest_first else 'ASC'} LIMIT ?"
        )
        values.append(min(limit, JOURNALED_AT_ONCE))  # type: ignore[arg-type]
        rows = self._database.atomically(lambda connection, _now: connection.execute(sql, values).fetchall())
        return [StoredRecord(str(position), written, str(text)) for position, written, text in rows]


def _begin_a_new_boot(connection: sqlite3.Connection, now: float, _sees: Callable[[int], bool]) -> None:  # noqa: ARG001
    """What was written is kept; nobody of an earlier boot writes a batch again."""
    # it is made by a migration, which may not have been run yet
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'lockbeat_batch'").fetchone():
        connection.execute("DELETE FROM lockbeat_batch")


TABLES: Final = Tables(schema=SCHEMA, begin_a_new_boot=_begin_a_new_boot)

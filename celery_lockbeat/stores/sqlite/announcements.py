"""Announcements in SQLite: ``first`` is on the wall's clock, ``last`` and ``until`` are on the host's."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from celery_lockbeat.stores.base import LISTED_AT_MOST, Announcement, AnnouncementStore
from celery_lockbeat.stores.sqlite.database import Database, Tables, as_blob, as_text

__all__ = ["TABLES", "SQLAnnouncements"]

SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS lockbeat_announced (
        app BLOB, kind TEXT, name BLOB, told TEXT, first REAL, last REAL, until REAL,
        PRIMARY KEY (app, kind, name)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS lockbeat_announced_until ON lockbeat_announced (app, kind, until)",
)


class SQLAnnouncements(AnnouncementStore):
    """The announcements of all apps in a database, under its prefix."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def announce(self, app: str, kind: str, texts: Mapping[str, str], *, ttl: float) -> None:
        whose = self._database.row_key(app)

        def write(connection: sqlite3.Connection, now: float) -> None:
            connection.execute(
                "DELETE FROM lockbeat_announced WHERE app = ? AND kind = ? AND until <= ?", (whose, kind, now)
            )
            wall = self._database.wall()
            connection.executemany(
                "INSERT INTO lockbeat_announced VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (app, kind, name) DO UPDATE SET"
                " told = excluded.told, last = excluded.last, until = excluded.until",
                [(whose, kind, as_blob(name), text, wall, now, now + ttl) for name, text in texts.items()],
            )

        self._database.atomically(write)

    def announced(
        self, app: str, kind: str, names: Sequence[str] | None = None, *, limit: int = LISTED_AT_MOST
    ) -> list[Announcement]:
        whose = self._database.row_key(app)

        def tell(connection: sqlite3.Connection, now: float) -> list[Announcement]:
            sql = "SELECT name, told, first, last FROM lockbeat_announced WHERE app = ? AND kind = ? AND until > ?"
            if names is None:
                rows = connection.execute(f"{sql} LIMIT ?", (whose, kind, now, limit)).fetchall()
            else:
                asked = (connection.execute(f"{sql} AND name = ?", (whose, kind, now, as_blob(name))) for name in names)
                rows = [row for each in asked for row in each]
            return [Announcement(as_text(name), text, first, now - last) for name, text, first, last in rows]

        return self._database.atomically(tell)


def _begin_a_new_boot(connection: sqlite3.Connection, now: float, _sees: Callable[[int], bool]) -> None:
    """Nobody of an earlier boot is there; what the definitions were is still known."""
    # it is made by a migration, which may not have been run yet
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'lockbeat_announced'").fetchone():
        connection.execute("DELETE FROM lockbeat_announced WHERE kind <> 'definition'")
        connection.execute("UPDATE lockbeat_announced SET until = ? + until - last, last = ?", (now, now))


TABLES: Final = Tables(schema=SCHEMA, begin_a_new_boot=_begin_a_new_boot)

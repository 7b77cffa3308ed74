"""What operators want of the entries of an app, in SQLite. ``until`` is on the wall's clock, ``kept`` and ``asked`` on the host's."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final

from celery_lockbeat.stores.base import (
    ASKED_AT_ONCE,
    FLAGGED_AT_ONCE,
    LISTED_AT_MOST,
    STATE_MEMORY,
    Asked,
    ControlStore,
    EntryState,
    Flag,
    Passed,
    Requests,
    request_key,
)
from celery_lockbeat.stores.sqlite.database import Database, Tables, as_blob, as_text

__all__ = ["TABLES", "SQLControls", "pass_over"]

# paused and cancelled are 0 or 1; passed_by: the claim that was passed over last, by replica and task id
SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS lockbeat_flag (
        app BLOB, name BLOB, paused INTEGER, until REAL, skip INTEGER, told TEXT, skip_told TEXT, passed INTEGER,
        first TEXT, last TEXT, passed_by TEXT, why TEXT, kept REAL, PRIMARY KEY (app, name)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS lockbeat_flag_until ON lockbeat_flag (app, until) WHERE until IS NOT NULL",
    """CREATE TABLE IF NOT EXISTS lockbeat_request (
        app BLOB, name TEXT, flag BLOB, told TEXT, passed INTEGER, first TEXT, last TEXT, cancelled INTEGER, asked REAL,
        PRIMARY KEY (app, name)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS lockbeat_request_asked ON lockbeat_request (app, asked)",
    # runs: those that have failed in a row, in JSON
    """CREATE TABLE IF NOT EXISTS lockbeat_streak (
        app BLOB, name BLOB, runs TEXT, kept REAL, PRIMARY KEY (app, name)) WITHOUT ROWID""",
)

_COUNTED: Final = "SELECT runs FROM lockbeat_streak WHERE app = ? AND name = ?"
_FORGET: Final = "DELETE FROM lockbeat_streak WHERE app = ? AND name = ?"

_FLAG: Final = "SELECT name, paused, until, skip, told, skip_told, passed, first, last FROM lockbeat_flag"

#: A flag that says nothing, kept from now on.
_NEW: Final = "INSERT OR IGNORE INTO lockbeat_flag VALUES (?, ?, 0, NULL, 0, '', '', 0, '', '', '', '', ?)"

_PAUSE: Final = "UPDATE lockbeat_flag SET paused = 1, until = ?, told = ? WHERE app = ? AND name = ?"


class SQLControls(ControlStore):
    """Those of all apps in a database, under its prefix."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def pause(self, app: str, names: Sequence[str], told: str, *, until: float | None = None) -> None:
        whose = self._database.row_key(app)

        def write(connection: sqlite3.Connection, now: float) -> None:
            rows = [as_blob(name) for name in names]
            connection.executemany(_NEW, [(whose, name, now) for name in rows])
            connection.executemany(_PAUSE, [(until, told, whose, name) for name in rows])

        self._database.atomically(write)

    def resume(
        self, app: str, names: Sequence[str], *, request: str = "", text: str = "", lapsed: bool = False
    ) -> list[Flag | None]:
        whose = self._database.row_key(app)
        resumed = (
            "UPDATE lockbeat_flag SET paused = 0, until = NULL, told = '', passed = 0, first = '', last = ''"
            " WHERE app = ? AND name = ?"
        )

        def end(connection: sqlite3.Connection, now: float) -> list[Flag | None]:
            before: list[Flag | None] = []
            wall = self._database.wall()
            connection.executemany(_FORGET, [(whose, as_blob(name)) for name in names])
            for number, name in enumerate(names, 1):
                row = connection.execute(f"{_FLAG} WHERE app = ? AND name = ?", (whose, as_blob(name))).fetchone()
                flag = None if row is None else _flag(row)
                if flag is None or not flag.paused or (lapsed and (flag.until is None or flag.until > wall)):
                    before.append(None)
                    continue
                before.append(flag)
                connection.execute(resumed, (whose, as_blob(name)))
                if request and flag.passed:
                    whats = (whose, f"{request}-{number}", as_blob(name), text, flag.passed, flag.first, flag.last)
                    connection.execute("INSERT INTO lockbeat_request VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?)", (*whats, now))
            return before

        return self._database.atomically(end)

    def skip(self, app: str, names: Sequence[str], count: int, told: str) -> None:
        whose = self._database.row_key(app)
        sql = "UPDATE lockbeat_flag SET skip = ?, skip_told = ? WHERE app = ? AND name = ?"

        def write(connection: sqlite3.Connection, now: float) -> None:
            rows = [as_blob(name) for name in names]
            connection.executemany(_NEW, [(whose, name, now) for name in rows])
            connection.executemany(sql, [(count, told if count else "", whose, name) for name in rows])

        self._database.atomically(write)

    def failed(self, app: str, name: str, run: str, told: str, *, limit: int) -> bool:
        which = (self._database.row_key(app), as_blob(name))

        def count(connection: sqlite3.Connection, now: float) -> bool:
            row = connection.execute(f"{_FLAG} WHERE app = ? AND name = ?", which).fetchone()
            flag = None if row is None else _flag(row)
            if flag is not None and flag.paused and (flag.until is None or flag.until > self._database.wall()):
                return flag.told == told
            counted = connection.execute(_COUNTED, which).fetchone()
            runs = list(dict.fromkeys([*(json.loads(counted[0]) if counted else ()), run]))
            if len(runs) < limit:
                sql = "INSERT OR REPLACE INTO lockbeat_streak VALUES (?, ?, ?, ?)"
                connection.execute(sql, (*which, json.dumps(runs), now))
                return False
            connection.execute(_FORGET, which)
            connection.execute(_NEW, (*which, now))
            connection.execute(_PAUSE, (None, told, *which))
            return True

        return self._database.atomically(count)

    def succeeded(self, app: str, name: str) -> None:
        which = (self._database.row_key(app), as_blob(name))
        self._database.atomically(lambda connection, _now: connection.execute(_FORGET, which))

    def flags(self, app: str, names: Sequence[str] | None = None, *, limit: int = LISTED_AT_MOST) -> list[Flag]:
        whose = self._database.row_key(app)
        sql = f"{_FLAG} WHERE app = ? AND (paused OR skip > 0)"

        def tell(connection: sqlite3.Connection, _now: float) -> list[Flag]:
            if names is None:
                rows = connection.execute(f"{sql} LIMIT ?", (whose, limit)).fetchall()
            else:
                asked = (connection.execute(f"{sql} AND name = ?", (whose, as_blob(name))) for name in names)
                rows = [row for each in asked for row in each]
            return [_flag(row) for row in rows]

        return self._database.atomically(tell)

    def keep(self, app: str, names: Sequence[str]) -> None:
        whose = self._database.row_key(app)

        def keep(connection: sqlite3.Connection, now: float) -> None:
            kept = [(now, whose, as_blob(name)) for name in names]
            connection.executemany("UPDATE lockbeat_flag SET kept = ? WHERE app = ? AND name = ?", kept)
            connection.executemany("UPDATE lockbeat_streak SET kept = ? WHERE app = ? AND name = ?", kept)
            long_ago = (whose, now - STATE_MEMORY)
            connection.execute("DELETE FROM lockbeat_streak WHERE app = ? AND kept <= ?", long_ago)
            connection.execute(
                "DELETE FROM lockbeat_flag WHERE app = ? AND (kept <= ? OR NOT (paused OR skip > 0))", long_ago
            )

        self._database.atomically(keep)

    def ask(self, app: str, name: str, flag: str, text: str) -> None:
        whose = self._database.row_key(app)
        sql = "INSERT OR IGNORE INTO lockbeat_request VALUES (?, ?, ?, ?, 0, '', '', 0, ?)"
        self._database.atomically(
            lambda connection, now: connection.execute(sql, (whose, name, as_blob(flag), text, now))
        )

    def asked(self, app: str, *, skip: int = 0) -> Requests:
        whose = self._database.row_key(app)
        sql = (
            "SELECT name, flag, told, passed, first, last, cancelled FROM lockbeat_request WHERE app = ?"
            " ORDER BY asked, name LIMIT ?, ?"
        )
        over = "SELECT name FROM lockbeat_flag WHERE app = ? AND until <= ? LIMIT ?"

        def tell(connection: sqlite3.Connection, _now: float) -> Requests:
            rows = connection.execute(sql, (whose, skip, ASKED_AT_ONCE)).fetchall()
            asked = []
            for name, flag, told, passed, first, last, cancelled in rows:
                key = (whose, as_blob(request_key(name)))
                entry = "SELECT count, last_run_at FROM lockbeat_entry WHERE app = ? AND name = ?"
                state = connection.execute(entry, key).fetchone()
                claims = "SELECT count(*) FROM lockbeat_claim WHERE app = ? AND entry = ?"
                (pending,) = connection.execute(claims, key).fetchone()
                claimed = None if state is None else EntryState(state[0], as_text(state[1]))
                texts = (name, as_text(flag), told, passed, first, last)
                asked.append(Asked(*texts, bool(cancelled), claimed, pending))
            lapsed = connection.execute(over, (whose, self._database.wall(), FLAGGED_AT_ONCE)).fetchall()
            return Requests(asked, [as_text(name) for (name,) in lapsed])

        return self._database.atomically(tell)

    def cancel(self, app: str, names: Sequence[str]) -> list[bool]:
        whose = self._database.row_key(app)
        sql = "UPDATE lockbeat_request SET cancelled = 1 WHERE app = ? AND name = ?"
        return self._database.atomically(
            lambda connection, _now: [connection.execute(sql, (whose, name)).rowcount == 1 for name in names]
        )

    def over(self, app: str, names: Sequence[str]) -> None:
        whose = self._database.row_key(app)
        claimed = "UPDATE lockbeat_entry SET unlisted = ? WHERE app = ? AND name = ? AND unlisted IS NULL"

        def forget(connection: sqlite3.Connection, now: float) -> None:
            connection.executemany(
                "DELETE FROM lockbeat_request WHERE app = ? AND name = ?", [(whose, name) for name in names]
            )
            # but not yet what has been claimed of them: who asks late must not claim it again
            connection.executemany(claimed, [(now, whose, as_blob(request_key(name))) for name in names])

        self._database.atomically(forget)


def pass_over(
    connection: sqlite3.Connection,
    app: bytes,
    flag: str,
    claim: str,
    *,
    wall: float,
    details: str | None,
    skips: bool = True,
) -> Passed | None:
    """Tell whether a claim, of a replica and a task id, is to be passed over, and note it; it may be for the second time.

    Without ``details`` it cannot be for the first time. ``skips``: whether it is one to be skipped, too.
    """
    sql = "SELECT paused, until, skip, told, skip_told, passed_by, why FROM lockbeat_flag WHERE app = ? AND name = ?"
    which = (app, as_blob(flag))
    row = _row(connection, sql, which) if flag else None
    if row is None:
        return None
    paused, until, skip, told, skip_told, passed_by, why = row
    texts = {"paused": told, "skipped": skip_told}
    if passed_by == claim:
        return Passed(why, texts.get(why, ""))
    now_paused = paused and (until is None or until > wall)
    if details is None or not (now_paused or (skips and skip > 0)):
        return None
    why = "paused" if now_paused else "skipped"
    changes: tuple[Any, ...] = (details, details) if now_paused else ()
    of_a_pause = "passed = passed + 1, first = CASE WHEN passed THEN first ELSE ? END, last = ?"
    connection.execute(
        f"UPDATE lockbeat_flag SET {of_a_pause if now_paused else 'skip = skip - 1'}, passed_by = ?, why = ?"  # noqa: S608  ours
        " WHERE app = ? AND name = ?",
        (*changes, claim, why, *which),
    )
    return Passed(why, texts[why])


def _row(connection: sqlite3.Connection, sql: str, values: tuple[Any, ...]) -> Any:
    try:
        return connection.execute(sql, values).fetchone()
    except sqlite3.OperationalError as exc:
        if "no such table" not in str(exc):
            raise
        return None  # it is made by a migration, which may not have been run yet


def _flag(row: tuple[Any, ...]) -> Flag:
    name, paused, until, skip, told, skip_told, passed, first, last = row
    return Flag(as_text(name), bool(paused), until, skip, told, skip_told, passed, first, last)


def _begin_a_new_boot(connection: sqlite3.Connection, now: float, _sees: Callable[[int], bool]) -> None:
    """What is flagged and asked for stays so; what nobody keeps is dropped in its time from now."""
    # it is made by a migration, which may not have been run yet
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'lockbeat_flag'").fetchone():
        connection.execute("UPDATE lockbeat_flag SET kept = ?", (now,))
        connection.execute("UPDATE lockbeat_request SET asked = ?", (now,))
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'lockbeat_streak'").fetchone():
        connection.execute("UPDATE lockbeat_streak SET kept = ?", (now,))


TABLES: Final = Tables(schema=SCHEMA, begin_a_new_boot=_begin_a_new_boot)

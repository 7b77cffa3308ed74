"""The beats in SQLite: replicas and what they list, entries and their claims.

``until``, ``seen`` and ``unlisted`` (NULL: listed) are on the host's clock, ``at`` is on the wall's.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Final

from celery_lockbeat.stores.base import (
    ALIVE,
    BACKLOG,
    LISTED_AT_MOST,
    OVERDUE_AT_ONCE,
    STATE_MEMORY,
    Beats,
    BeatStore,
    Claim,
    Claims,
    EntryState,
    Joined,
    Overdue,
    Passed,
    Replica,
    StoredEntry,
    is_request,
)
from celery_lockbeat.stores.sqlite.controls import pass_over
from celery_lockbeat.stores.sqlite.database import LONG_AGO, Database, Tables, as_blob, as_text

__all__ = ["TABLES", "SQLBeats"]

SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS lockbeat_entry (
        app BLOB, name BLOB, count INTEGER, last_run_at BLOB, unlisted REAL, PRIMARY KEY (app, name)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS lockbeat_entry_unlisted ON lockbeat_entry (app, unlisted) WHERE unlisted IS NOT NULL",
    """CREATE TABLE IF NOT EXISTS lockbeat_claim (
        app BLOB, task_id TEXT, entry BLOB, run INTEGER, replica TEXT, until REAL, details TEXT,
        PRIMARY KEY (app, task_id)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS lockbeat_claim_until ON lockbeat_claim (app, until)",
    "CREATE INDEX IF NOT EXISTS lockbeat_claim_entry ON lockbeat_claim (app, entry)",
    """CREATE TABLE IF NOT EXISTS lockbeat_replica (
        app BLOB, name TEXT, seen REAL, complete INTEGER, PRIMARY KEY (app, name)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS lockbeat_listed (
        app BLOB, replica TEXT, name BLOB, PRIMARY KEY (app, replica, name)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS lockbeat_listed_name ON lockbeat_listed (app, name)",
    "CREATE TABLE IF NOT EXISTS lockbeat_cold_start (app BLOB PRIMARY KEY, at REAL) WITHOUT ROWID",
)


class SQLBeats(BeatStore):
    """The beats of all apps in a database, under its prefix."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def join(self, app: str, replica: str, *, cold_start: float | None = None) -> Joined:
        whose = self._database.row_key(app)

        def count_in(connection: sqlite3.Connection, now: float) -> Joined:
            wall = self._database.wall()
            others = connection.execute(
                "SELECT 1 FROM lockbeat_replica WHERE app = ? AND name <> ? AND seen > ? LIMIT 1",
                (whose, replica, now - ALIVE),
            ).fetchone()
            started = connection.execute("SELECT at FROM lockbeat_cold_start WHERE app = ?", (whose,)).fetchone()
            begun: float = started[0] if started else wall if cold_start is None else cold_start
            if cold_start is None and not others:
                begun = wall
            connection.execute("INSERT OR REPLACE INTO lockbeat_cold_start VALUES (?, ?)", (whose, begun))
            connection.execute("DELETE FROM lockbeat_listed WHERE app = ? AND replica = ?", (whose, replica))
            connection.execute("INSERT OR REPLACE INTO lockbeat_replica VALUES (?, ?, ?, 0)", (whose, replica, now))
            return Joined(begun, wall)

        return self._database.atomically(count_in)

    def list_entries(
        self,
        app: str,
        replica: str,
        entries: Sequence[tuple[str, EntryState]],
        *,
        removed: Sequence[str] = (),
        complete: bool = False,
    ) -> list[EntryState]:
        whose = self._database.row_key(app)

        def add(connection: sqlite3.Connection, now: float) -> list[EntryState]:
            connection.execute(
                "INSERT INTO lockbeat_replica VALUES (?, ?, ?, ?) ON CONFLICT (app, name) DO UPDATE SET"
                " seen = excluded.seen, complete = max(complete, excluded.complete)",
                (whose, replica, now, complete),
            )
            connection.executemany(
                "DELETE FROM lockbeat_listed WHERE app = ? AND replica = ? AND name = ?",
                [(whose, replica, as_blob(name)) for name in removed],
            )
            _forget_what_nobody_lists(connection, whose, now, removed)
            names = [as_blob(name) for name, _ in entries]
            connection.executemany(
                "INSERT OR IGNORE INTO lockbeat_listed VALUES (?, ?, ?)", [(whose, replica, name) for name in names]
            )
            connection.executemany(
                "INSERT INTO lockbeat_entry VALUES (?, ?, ?, ?, NULL) ON CONFLICT (app, name) DO UPDATE SET"
                " last_run_at = CASE WHEN unlisted IS NULL THEN last_run_at ELSE excluded.last_run_at END, unlisted = NULL",
                [
                    (whose, name, state.total_run_count, as_blob(state.last_run_at))
                    for name, (_, state) in zip(names, entries, strict=True)
                ],
            )
            return [_state_of(connection, whose, name) or entry[1] for name, entry in zip(names, entries, strict=True)]

        return self._database.atomically(add)

    def claim(self, app: str, replica: str, claims: Sequence[Claim], *, ttl: float, skip: int = 0) -> Claims:
        whose = self._database.row_key(app)

        def grant(connection: sqlite3.Connection, now: float) -> Claims:
            wall = self._database.wall()
            refusals = [_grant(connection, whose, replica, claim, now + ttl, wall) for claim in claims]
            seen = connection.execute(
                "UPDATE lockbeat_replica SET seen = ? WHERE app = ? AND name = ?", (now, whose, replica)
            ).rowcount
            if seen:
                _forget_who_is_gone(connection, whose, now)
            _forget_old_state(connection, whose, now - STATE_MEMORY)
            overdue = connection.execute(
                "SELECT task_id, entry, run, details FROM lockbeat_claim WHERE app = ? AND until <= ? ORDER BY until, run LIMIT ?, ?",
                (whose, now, skip, OVERDUE_AT_ONCE),
            ).fetchall()
            (until,) = connection.execute(
                "SELECT min(until) FROM lockbeat_claim WHERE app = ? AND until > ?", (whose, now)
            ).fetchone()
            return Claims(
                refusals,
                [
                    Overdue(task_id, as_text(entry), run, json.loads(details))
                    for task_id, entry, run, details in overdue
                ],
                None if until is None else until - now,
                wall,
                seen == 1,
            )

        return self._database.atomically(grant)

    def take_over(
        self, app: str, replica: str, task_ids: Sequence[str], *, ttl: float, flags: Sequence[str] = ()
    ) -> list[bool | Passed]:
        whose = self._database.row_key(app)
        asked = list(zip_longest(task_ids, flags, fillvalue=""))

        def take(connection: sqlite3.Connection, now: float) -> list[bool | Passed]:
            wall = self._database.wall()
            return [
                _pass_overdue(connection, whose, replica, task_id, flag, now, wall)
                or connection.execute(
                    "UPDATE lockbeat_claim SET replica = ?, until = ? WHERE app = ? AND task_id = ? AND until <= ?",
                    (replica, now + ttl, whose, task_id, now),
                ).rowcount
                == 1
                for task_id, flag in asked
            ]

        return self._database.atomically(take)

    def settle(
        self, app: str, replica: str, published: Sequence[tuple[str, str]], *, handed_over: Sequence[str] = ()
    ) -> list[bool]:
        whose = self._database.row_key(app)

        def forget(connection: sqlite3.Connection, now: float) -> list[bool]:
            connection.executemany(
                "UPDATE lockbeat_claim SET until = ? WHERE app = ? AND task_id = ? AND replica = ?",
                [(now, whose, task_id, replica) for task_id in handed_over],
            )
            return [
                connection.execute(
                    "DELETE FROM lockbeat_claim WHERE app = ? AND task_id = ? AND replica = ?",
                    (whose, task_id, replica),
                ).rowcount
                == 1
                for task_id, _ in published
            ]

        return self._database.atomically(forget)

    def leave(self, app: str, replica: str) -> None:
        whose = self._database.row_key(app)
        self._database.atomically(
            lambda connection, _now: connection.execute(
                "UPDATE lockbeat_replica SET seen = ? WHERE app = ? AND name = ?", (LONG_AGO, whose, replica)
            )
        )

    def status(self, app: str, *, limit: int = LISTED_AT_MOST) -> Beats:
        whose = self._database.row_key(app)

        def tell(connection: sqlite3.Connection, now: float) -> Beats:
            replicas = [
                Replica(
                    name,
                    now - seen,
                    frozenset(
                        as_text(entry)
                        for (entry,) in connection.execute(
                            "SELECT name FROM lockbeat_listed WHERE app = ? AND replica = ? LIMIT ?",
                            (whose, name, limit),
                        )
                    ),
                    bool(complete),
                )
                for name, seen, complete in connection.execute(
                    "SELECT name, seen, complete FROM lockbeat_replica WHERE app = ? LIMIT ?", (whose, limit)
                ).fetchall()
            ]
            entries = [
                StoredEntry(as_text(name), EntryState(count, as_text(last_run_at)), pending)
                for name, count, last_run_at, pending in connection.execute(
                    "SELECT name, count, last_run_at,"
                    " (SELECT count(*) FROM lockbeat_claim WHERE lockbeat_claim.app = lockbeat_entry.app AND entry = name)"
                    " FROM lockbeat_entry WHERE app = ? LIMIT ?",
                    (whose, limit),
                )
                if not is_request(as_text(name))
            ]
            (overdue,) = connection.execute(
                "SELECT count(*) FROM lockbeat_claim WHERE app = ? AND until <= ?", (whose, now)
            ).fetchone()
            return Beats(replicas, entries, overdue)

        return self._database.atomically(tell)


def _state_of(connection: sqlite3.Connection, app: bytes, name: bytes) -> EntryState | None:
    row = connection.execute(
        "SELECT count, last_run_at FROM lockbeat_entry WHERE app = ? AND name = ?", (app, name)
    ).fetchone()
    return None if row is None else EntryState(row[0], as_text(row[1]))


def _grant(
    connection: sqlite3.Connection, app: bytes, replica: str, claim: Claim, until: float, wall: float
) -> EntryState | Passed | None:
    """Claim one tick; returns None, that it is passed over, or the state that refuses it."""
    name, run = as_blob(claim.entry), claim.state.total_run_count
    state = _state_of(connection, app, name)
    # whoever else has moved the entry on has dealt with this tick
    stale = state is not None and claim.after not in (None, state.last_run_at)
    if not claim.task_id:
        return _move_on(connection, app, claim, state, stale=stale)
    owner = connection.execute(
        "SELECT replica FROM lockbeat_claim WHERE app = ? AND task_id = ?", (app, claim.task_id)
    ).fetchone()
    # those that are stale are another's, unless a part of the state was lost
    behind = state is not None and (state.total_run_count >= run or (stale and state.total_run_count == run - 1))
    may = owner == (replica,) or (owner is None and not behind)
    details = json.dumps(claim.details) if may and claim.flag else None
    passed = pass_over(connection, app, claim.flag, f"{replica} {claim.task_id}", wall=wall, details=details)
    if passed is not None:
        if may:
            connection.execute("DELETE FROM lockbeat_claim WHERE app = ? AND task_id = ?", (app, claim.task_id))
            if state is None or state.total_run_count <= run:
                _set_state(connection, app, claim)
        return passed
    if owner == (replica,):
        # its answer was lost: granted again, with the newer time of the run
        connection.execute(
            "UPDATE lockbeat_entry SET last_run_at = ? WHERE app = ? AND name = ? AND count = ?",
            (as_blob(claim.state.last_run_at), app, name, run),
        )
        connection.execute(
            "UPDATE lockbeat_claim SET until = ? WHERE app = ? AND task_id = ?", (until, app, claim.task_id)
        )
        return None
    if owner is not None:
        return state or claim.state
    if state is not None and (behind or _waits(connection, app, name, 1 if claim.alone else BACKLOG)):
        return state
    # a smaller count than expected is a state that was lost in part: the replica knows better
    _set_state(connection, app, claim)
    connection.execute(
        "INSERT INTO lockbeat_claim VALUES (?, ?, ?, ?, ?, ?, ?)",
        (app, claim.task_id, name, run, replica, until, json.dumps(claim.details)),
    )
    return None


def _waits(connection: sqlite3.Connection, app: bytes, name: bytes, limit: int) -> bool:
    """Whether so many claims of an entry are pending."""
    sql = "SELECT count(*) FROM lockbeat_claim WHERE app = ? AND entry = ?"
    (pending,) = connection.execute(sql, (app, name)).fetchone()
    return bool(pending >= limit)


def _move_on(
    connection: sqlite3.Connection, app: bytes, claim: Claim, state: EntryState | None, *, stale: bool
) -> EntryState | None:
    """Change only when an entry ran last."""
    count = claim.state.total_run_count
    if state is not None and (
        state.total_run_count > count or (state.total_run_count == count and stale and state != claim.state)
    ):
        return state
    _set_state(connection, app, claim)
    return None


def _set_state(connection: sqlite3.Connection, app: bytes, claim: Claim) -> None:
    connection.execute(
        "INSERT INTO lockbeat_entry VALUES (?, ?, ?, ?, NULL) ON CONFLICT (app, name) DO UPDATE SET"
        " count = excluded.count, last_run_at = excluded.last_run_at",
        (app, as_blob(claim.entry), claim.state.total_run_count, as_blob(claim.state.last_run_at)),
    )


def _pass_overdue(
    connection: sqlite3.Connection, app: bytes, replica: str, task_id: str, flag: str, now: float, wall: float
) -> Passed | None:
    """Forget an overdue claim of what is paused."""
    sql = "SELECT details FROM lockbeat_claim WHERE app = ? AND task_id = ? AND until <= ?"
    row = connection.execute(sql, (app, task_id, now)).fetchone() if flag else None
    details = None if row is None else row[0]
    claim = f"{replica} {task_id}"
    passed = pass_over(connection, app, flag, claim, wall=wall, details=details, skips=False)
    if passed is not None:
        connection.execute("DELETE FROM lockbeat_claim WHERE app = ? AND task_id = ?", (app, task_id))
    return passed


def _forget_who_is_gone(connection: sqlite3.Connection, app: bytes, now: float) -> None:
    """What only those list who are gone is listed by nobody, unless somebody has not yet listed all."""
    gone = connection.execute(
        "SELECT name FROM lockbeat_replica WHERE app = ? AND seen <= ?", (app, now - ALIVE)
    ).fetchall()
    if not gone or _somebody_lists(connection, app, now):
        return
    for (replica,) in gone:
        connection.execute("DELETE FROM lockbeat_listed WHERE app = ? AND replica = ?", (app, replica))
        connection.execute("DELETE FROM lockbeat_replica WHERE app = ? AND name = ?", (app, replica))
    connection.execute(
        "UPDATE lockbeat_entry SET unlisted = ? WHERE app = ? AND unlisted IS NULL"
        " AND name NOT IN (SELECT name FROM lockbeat_listed WHERE app = ?)",
        (now, app, app),
    )


def _forget_what_nobody_lists(connection: sqlite3.Connection, app: bytes, now: float, names: Sequence[str]) -> None:
    if names and not _somebody_lists(connection, app, now):
        connection.executemany(
            "UPDATE lockbeat_entry SET unlisted = ? WHERE app = ? AND name = ? AND unlisted IS NULL"
            " AND NOT EXISTS (SELECT 1 FROM lockbeat_listed WHERE lockbeat_listed.app = lockbeat_entry.app AND lockbeat_listed.name = lockbeat_entry.name)",
            [(now, app, as_blob(name)) for name in names],
        )


def _somebody_lists(connection: sqlite3.Connection, app: bytes, now: float) -> bool:
    """Whether a replica that is there has not listed all of its entries yet."""
    incomplete = "SELECT 1 FROM lockbeat_replica WHERE app = ? AND seen > ? AND NOT complete"
    return connection.execute(incomplete, (app, now - ALIVE)).fetchone() is not None


def _forget_old_state(connection: sqlite3.Connection, app: bytes, before: float) -> None:
    connection.execute("DELETE FROM lockbeat_entry WHERE app = ? AND unlisted <= ?", (app, before))
    connection.execute("DELETE FROM lockbeat_claim WHERE app = ? AND until <= ?", (app, before))


def _begin_a_new_boot(connection: sqlite3.Connection, now: float, _sees: Callable[[int], bool]) -> None:
    """Nobody is there: all claims are overdue, and what is not listed is forgotten in its time from now."""
    connection.execute("UPDATE lockbeat_claim SET until = ?", (now,))
    connection.execute("UPDATE lockbeat_entry SET unlisted = ? WHERE unlisted IS NOT NULL", (now,))
    connection.execute("UPDATE lockbeat_replica SET seen = ?", (LONG_AGO,))


TABLES: Final = Tables(schema=SCHEMA, begin_a_new_boot=_begin_a_new_boot)

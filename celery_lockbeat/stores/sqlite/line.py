"""Who waits for a key, in SQLite: a row for each, which is called by the time until which its place among the holders is kept.

Used within a transaction of the locks. Who was called and did not come is passed over: its row stays, and counts again when it asks.
"""

# ruff: noqa: S608  what is put into the SQL is ours

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from celery_lockbeat.stores.base import SINCE, Place, Waiter
from celery_lockbeat.stores.sqlite.database import as_blob, as_text

__all__ = ["CLEARED", "PURGE", "SCHEMA", "SUPERSEDED", "WHY", "Line"]

SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS lockbeat_line (
        key BLOB, ticket BLOB, since INTEGER, until REAL, began REAL, grace REAL, copy INTEGER, renewed REAL, kind TEXT,
        description TEXT, text TEXT, called REAL, PRIMARY KEY (key, ticket)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS lockbeat_line_since ON lockbeat_line (key, since)",
    "CREATE INDEX IF NOT EXISTS lockbeat_line_until ON lockbeat_line (until)",
    # who has superseded those that have a mark that says so, as that one says of itself
    """CREATE TABLE IF NOT EXISTS lockbeat_superseded (
        key BLOB, ticket BLOB, who TEXT, forget REAL, PRIMARY KEY (key, ticket)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS lockbeat_superseded_forget ON lockbeat_superseded (forget)",
)

PURGE: Final = tuple(
    f"DELETE FROM {table} WHERE (key, ticket) IN (SELECT key, ticket FROM {table} WHERE {over} < ? LIMIT ?)"
    for table, over in (("lockbeat_line", "until"), ("lockbeat_superseded", "forget"))
)

#: The tokens of those that never ran, and why they are over.
SUPERSEDED, CLEARED = 1, 2
WHY: Final = {SUPERSEDED: "superseded", CLEARED: "cleared"}

#: So many seconds after a copy of a waiting message was to be sent, any other counts for it; and for how long it is remembered that
#: one was superseded.
COPY_IS_LOST: Final = 90.0
REMEMBERED: Final = 3600.0


class Line:
    """Those who wait for one key, now; ``calls`` is what is to be told to those that have been called, "" to who listens."""

    def __init__(self, connection: sqlite3.Connection, key: bytes, now: float) -> None:
        self._connection = connection
        self._key = key
        self._now = now
        self.calls: list[str] = []

    def _rows(self, what: str, of: str, *values: Any) -> list[Any]:
        return self._connection.execute(
            f"SELECT {what} FROM lockbeat_line WHERE key = ? AND {of}",
            (self._key, *values),
        ).fetchall()

    def _change(self, what: str, ticket: bytes, *values: Any) -> bool:
        changed = self._connection.execute(f"{what} WHERE key = ? AND ticket = ?", (*values, self._key, ticket))
        return changed.rowcount > 0

    def called(self) -> list[Any]:
        """Return (ticket, since, until when its place is kept, description) of those who are called, and may still come."""
        return self._rows("ticket, since, called, description", "called > ?", self._now)

    def waiting(self) -> list[Any]:
        """Return (ticket, since, text, kind, description) of those who wait, in their order."""
        return self._rows(
            "ticket, since, text, kind, description", "called IS NULL AND until > ? ORDER BY since", self._now
        )

    def first(self) -> Any:
        """Return (ticket, since) of the first; None: nobody waits."""
        rows = self._rows("ticket, since", "called IS NULL AND until > ? ORDER BY since LIMIT 1", self._now)
        return rows[0] if rows else None

    def call(self, ticket: bytes) -> Any:
        """Keep a place among the holders for one; return it as ``called`` does."""
        self._change("UPDATE lockbeat_line SET called = ? + grace", ticket, self._now)
        text, *row = self._rows("text, ticket, since, called, description", "ticket = ?", ticket)[0]
        self.calls.append(text)
        return tuple(row)

    def may_be_called(self, ticket: bytes) -> bool:
        """Whether it waits no more."""
        rows = self._rows("1", "ticket = ? AND called IS NULL AND until > ?", ticket, self._now)
        return not rows

    def call_back(self, ticket: bytes) -> None:
        """It waits on."""
        self._change("UPDATE lockbeat_line SET called = NULL", ticket)

    def forget(self, ticket: bytes) -> bool:
        """It waits no more; False: it did not."""
        return self._change("DELETE FROM lockbeat_line", ticket)

    def fill(self, held: int, limit: int) -> None:
        """Give what is free, beside so many who hold the key, to those who are first."""
        taken = held + len(self.called())
        while taken < limit and (first := self.first()) is not None:
            self.call(first[0])
            taken += 1

    def since(self, place: Place, micros: int) -> int:
        """Return when who asks for a place has come first."""
        rows = self._rows("since", "ticket = ?", as_blob(place.ticket))
        if rows or place.since:
            return int(rows[0][0] if rows else place.since)
        ((last,),) = self._rows("max(since)", "called IS NULL")
        return max(micros, (last or 0) + 1)

    def wait(self, place: Place, since: int, description: str) -> tuple[str, str] | tuple[float, int, int]:
        """Have a place: when its waiting began, its copy, and how many are before it; or why there is none, and who has it."""
        ticket, now = as_blob(place.ticket), self._now
        known = next(iter(self._rows("began, copy, renewed, text", "ticket = ?", ticket)), None)
        began = known[0] if known else min(place.began or now, now)
        others = [row for row in self.waiting() if row[0] != ticket]
        why, who = "", ""
        if began + place.wait_for <= now:
            why = "waited"
        elif place.kind == "one" and known is None and (there := [*self.called(), *others]):
            why, who = "queued", there[0][-1]
        elif place.kind in ("latest", "replace"):
            why, who = self._supersede(place, since, description, [row for row in others if row[3] == place.kind])
        elif known is None and len(others) >= place.room:
            why = "full"
        if why:
            self.forget(ticket)
            return why, who
        copy, last, renewed, text = place.copy + 1, 0, now, place.text.replace(f'"{SINCE}"', str(since))
        if known is not None:
            last = known[1]
            if place.copy < last - place.again and now - known[2] < COPY_IS_LOST:
                copy, renewed, text = 0, known[2], known[3]
            else:
                copy = max(copy, last)
        row = (
            *(self._key, ticket, since, began + place.wait_for, began, place.grace, copy or last, renewed),
            *(place.kind, description, text, None),
        )
        places = ", ".join("?" * len(row))
        self._connection.execute(f"INSERT OR REPLACE INTO lockbeat_line VALUES ({places})", row)
        return began, copy, sum(row[1] < since for row in self.waiting())

    def _supersede(self, place: Place, since: int, description: str, others: Sequence[Any]) -> tuple[str, str]:
        for ticket, theirs, text, _, other in others:
            if theirs > since:
                self._end(as_blob(place.ticket), SUPERSEDED, REMEMBERED, other)
                return "superseded", other
            self._end(ticket, SUPERSEDED, REMEMBERED, description)
            self.calls.append(text)
        return "", ""

    def _end(self, ticket: bytes, token: int, remember_for: float, who: str = "") -> None:
        self.forget(ticket)
        self._connection.execute(
            "INSERT OR REPLACE INTO lockbeat_done VALUES (?, ?, ?, ?, ?)",
            (self._key, ticket, token, remember_for, self._now + remember_for),
        )
        if who:
            self._connection.execute(
                "INSERT OR REPLACE INTO lockbeat_superseded VALUES (?, ?, ?, ?)",
                (self._key, ticket, who, self._now + remember_for),
            )

    def superseded_by(self, ticket: bytes) -> str:
        """Return what the one said of itself that has taken the place of this one; "": that is not known."""
        row = self._connection.execute(
            "SELECT who FROM lockbeat_superseded WHERE key = ? AND ticket = ?", (self._key, ticket)
        ).fetchone()
        return row[0] if row else ""

    def replaces(self) -> str | None:
        """Return what the one says of itself that waits to replace a holder; None: nobody does."""
        rows = self._rows("description", "kind = 'replace' AND called IS NULL AND until > ?", self._now)
        return rows[0][0] if rows else None

    def clear(self, remember_for: float) -> int:
        """Send all away who wait."""
        waiting = self.waiting()
        for ticket, _, text, *_ in waiting:
            self._end(ticket, CLEARED, remember_for)
            self.calls.append(text)
        return len(waiting)

    def told(self) -> list[Waiter]:
        """Return those who wait, for an operator."""
        called = sorted(self.called(), key=lambda row: row[1])
        return [Waiter(as_text(row[0]), row[1], row[-1], True) for row in called] + [
            Waiter(as_text(row[0]), row[1], row[-1], False) for row in self.waiting()
        ]

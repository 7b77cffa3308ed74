"""Locks in SQLite: a row for each key, one for each finished run that is remembered, and one for each message that has a key reserved.

``until`` and ``forget`` are on the host's clock. A lock with more than one holder has a row for each beside its own, which is then
nobody's (:data:`WIDE`): it has the last of their tokens, and ends with the one that ends last.
"""

# ruff: noqa: S608  what is put into the SQL are names of ours

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Sequence
from itertools import count, islice
from typing import Any, Final, TypeVar

from celery_lockbeat.exceptions import StoreUnavailable
from celery_lockbeat.stores.base import (
    LISTED_AT_MOST,
    TOKEN_MEMORY,
    Finished,
    Held,
    Lease,
    LiveLock,
    LockStore,
    Place,
    Reservation,
    Served,
    Stop,
    Waiter,
    Waiting,
    Wanted,
    look_out,
    of_key,
)
from celery_lockbeat.stores.sqlite import line
from celery_lockbeat.stores.sqlite.database import NOBODY, Database, Tables, as_blob, as_text
from celery_lockbeat.stores.sqlite.line import Line

__all__ = ["ALL_DEAD", "PERHAPS_ALIVE", "TABLES", "SQLLocks"]

#: What is done, by table, where no mark tells who is alive: locks end with their leases. And where all are known to be dead.
PERHAPS_ALIVE: Final = {
    "lockbeat_lock": "UPDATE lockbeat_lock SET process = 0",
    "lockbeat_wide": "UPDATE lockbeat_wide SET process = 0",
}
ALL_DEAD: Final = {
    "lockbeat_lock": "UPDATE lockbeat_lock SET until = 0, holder = x'', process = 0 WHERE process <> 0",
    "lockbeat_wide": "DELETE FROM lockbeat_wide WHERE process <> 0",
}

#: In the place of a holder: there may be more than one. No text is written so.
WIDE: Final = b"\xff"

SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS lockbeat_lock (
        key BLOB PRIMARY KEY, token INTEGER, until REAL, holder BLOB, run BLOB, description TEXT, process INTEGER,
        forget REAL) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS lockbeat_lock_forget ON lockbeat_lock (forget)",
    """CREATE TABLE IF NOT EXISTS lockbeat_done (
        key BLOB, run BLOB, token INTEGER, lasts REAL, forget REAL, PRIMARY KEY (key, run)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS lockbeat_done_forget ON lockbeat_done (forget)",
    """CREATE TABLE IF NOT EXISTS lockbeat_wide (
        key BLOB, token INTEGER, until REAL, holder BLOB, run BLOB, description TEXT, process INTEGER,
        PRIMARY KEY (key, token)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS lockbeat_wide_until ON lockbeat_wide (until)",
    """CREATE TABLE IF NOT EXISTS lockbeat_reserved (
        key BLOB, name BLOB, task_id BLOB, token TEXT, lasts REAL, until REAL, PRIMARY KEY (key, name)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS lockbeat_reserved_until ON lockbeat_reserved (until)",
    *line.SCHEMA,
)

#: Who listens gives away what is free at each of so many looks.
SERVES_EVERY: Final = 10

_T = TypeVar("_T")

#: A lease in either table, and how one is written among others.
ROW: Final = "token, until, holder, run, description, process"
SEVEN: Final = "(?, ?, ?, ?, ?, ?, ?)"

PURGE: Final = (
    "DELETE FROM lockbeat_lock WHERE key IN (SELECT key FROM lockbeat_lock WHERE forget < ? LIMIT ?)",
    "DELETE FROM lockbeat_done WHERE (key, run) IN (SELECT key, run FROM lockbeat_done WHERE forget < ? LIMIT ?)",
    f"""DELETE FROM lockbeat_wide WHERE (key, token) IN (
        SELECT key, token FROM lockbeat_wide WHERE until < ? - {TOKEN_MEMORY} LIMIT ?)""",
    "DELETE FROM lockbeat_reserved WHERE (key, name) IN (SELECT key, name FROM lockbeat_reserved WHERE until < ? LIMIT ?)",
    *line.PURGE,
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
        limit: int = 1,
        reservation: Reservation | None = None,
        place: Place | None = None,
    ) -> Lease | Held | Finished | Waiting:
        wanted = Wanted(ttl, run, task, description, limit, reservation, place)

        def take(connection: sqlite3.Connection, now: float) -> tuple[Lease | Held | Finished | Waiting, Sequence[str]]:
            answer, calls = self._take(connection, now, key, holder, wanted)
            if reservation is not None and isinstance(answer, Lease):
                self._unreserve(connection, reservation)
            return answer, calls

        return self._told(key, *self._database.atomically(take))

    def acquire_all(self, keys: Sequence[tuple[str, str]], wanted: Wanted) -> list[Lease] | Held | Finished | Waiting:
        def take(
            connection: sqlite3.Connection, now: float
        ) -> tuple[list[Lease] | Held | Finished | Waiting, Sequence[str]]:
            leases: list[Lease] = []
            told: list[str] = []
            for key, holder in keys:
                answer, calls = self._take(connection, now, key, holder, wanted)
                told += calls
                if not isinstance(answer, Lease):
                    for lease in reversed(leases):
                        told += self._free(connection, now, lease.key, lease.holder) or ()
                    return of_key(answer, key), told
                leases.append(answer)
            if wanted.reservation is not None:
                self._unreserve(connection, wanted.reservation)
            return leases, told

        return self._told(keys[0][0], *self._database.atomically(take))

    def _take(
        self, connection: sqlite3.Connection, now: float, key: str, holder: str, wanted: Wanted
    ) -> tuple[Lease | Held | Finished | Waiting, Sequence[str]]:
        """Take one key, or say why not; and what is to be told to those who are called."""
        ttl, run, task, description, limit, _, place = wanted
        row_key, ours, named, described = (
            self._database.row_key(key),
            as_blob(holder),
            as_blob(run or ""),
            _readable(description),
        )
        for mark in (each for each in (task, run) if each is not None):
            finished = _finished_by(connection, row_key, as_blob(mark), now)
            if finished is not None:
                who = Line(connection, row_key, now).superseded_by(as_blob(mark)) if finished == line.SUPERSEDED else ""
                return Finished(mark == task, line.WHY.get(finished, ""), who), ()
        micros = int(self._database.wall() * 1_000_000)
        row = connection.execute(f"SELECT {ROW} FROM lockbeat_lock WHERE key = ?", (row_key,)).fetchone()
        last, is_wide = (0, False) if row is None else (row[0], row[2] == WIDE)
        held = self._held(connection, row_key, row, now, ours)
        own = next((each for each in held if each[2] == ours), None)
        others = [each for each in held if each is not own]
        same = next((each for each in others if run is not None and each[3] == named), None)
        if own is None and same is not None:
            return _held_by(same, now, same_run=True), ()
        # nobody waits for a key that one alone may have, and has not
        looks = is_wide or (place is not None and len(others) >= limit)
        turn = _Turn(Line(connection, row_key, now) if looks else None, now, micros, place)
        if own is None and not turn.comes(len(others), limit):
            first = min([*others, *turn.reserved], key=lambda each: each[1])
            answer: Held | Waiting = turn.waits(first, described)
            if isinstance(answer, Waiting) or turn.calls:
                _widen(connection, row_key, None if is_wide else others, last, limit)
            return answer, turn.calls
        turn.is_taken()
        token = own[0] if own is not None else max(micros, last + 1)
        lease = (token, now + ttl, ours, named, described, self._database.process)
        if limit > 1 or others or turn.others or (is_wide and own is not None):
            _widen(connection, row_key, [*others, lease], max(token, last), limit)
        else:
            if is_wide:
                connection.execute("DELETE FROM lockbeat_wide WHERE key = ?", (row_key,))
            connection.execute(
                "INSERT OR REPLACE INTO lockbeat_lock VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (row_key, *lease, now + ttl + TOKEN_MEMORY),
            )
        return Lease(key, holder, run, token, task), turn.calls

    def _told(self, key: str, answer: _T, calls: Sequence[str]) -> _T:
        """Return an answer, having had told to those who are called that they are."""
        if calls:
            self.called(key, [text for text in calls if text])
        return answer

    def _held(self, connection: sqlite3.Connection, key: bytes, row: Any, now: float, ours: bytes = b"") -> list[Any]:
        """The live leases of a lock with this row; what was released and is held on is one, too."""
        rows = [] if row is None else [row]
        if row is not None and row[2] == WIDE:
            rows = connection.execute(f"SELECT {ROW} FROM lockbeat_wide WHERE key = ?", (key,)).fetchall()
        return [each for each in rows if each[1] > now and (each[2] == ours or self._database.sees(each[5]))]

    def _serve(self, connection: sqlite3.Connection, key: bytes, now: float) -> tuple[Line, float | None]:
        """Give what is free of a lock with more than one holder to those who wait; return how long the first lease lasts."""
        row = connection.execute(f"SELECT {ROW} FROM lockbeat_lock WHERE key = ?", (key,)).fetchone()
        waiting = Line(connection, key, now)
        if row is None or row[2] != WIDE:
            return waiting, None
        held = self._held(connection, key, row, now)
        waiting.fill(len(held), int(row[3] or 1))
        _summarize(connection, key, row[0])
        return waiting, min((each[1] - now for each in held), default=None)

    def serve(self, key: str) -> Served:
        row_key = self._database.row_key(key)

        def look(connection: sqlite3.Connection, now: float) -> tuple[Served, Sequence[str]]:
            waiting, ends_in = self._serve(connection, row_key, now)
            called = [until - now for _, _, until, _ in waiting.called()]
            left = [*called, *([] if ends_in is None else [ends_in])]
            length = len(waiting.waiting())
            return Served(length, min(left, default=0.0) if length else None), waiting.calls

        return self._told(key, *self._database.atomically(look))

    def line(self, key: str, *, limit: int = LISTED_AT_MOST) -> list[Waiter]:
        row_key = self._database.row_key(key)
        return self._database.atomically(lambda connection, now: Line(connection, row_key, now).told())[:limit]

    def listen(self, key: str, ticket: str, within: float) -> bool:
        row_key, name, looks = self._database.row_key(key), as_blob(ticket), count()

        def look(connection: sqlite3.Connection, now: float) -> tuple[bool, Sequence[str]]:
            waiting = Line(connection, row_key, now)
            if next(looks) % SERVES_EVERY == 0:
                # who held it may be dead, and nobody else would say so
                waiting, _ = self._serve(connection, row_key, now)
            return waiting.may_be_called(name), waiting.calls

        return look_out(lambda: self._told(key, *self._database.atomically(look)), within)

    def give_up(self, key: str, ticket: str) -> bool:
        row_key, name = self._database.row_key(key), as_blob(ticket)

        def forget(connection: sqlite3.Connection, now: float) -> tuple[bool, Sequence[str]]:
            waited = Line(connection, row_key, now).forget(name)
            waiting, _ = self._serve(connection, row_key, now)
            return waited, waiting.calls

        return self._told(key, *self._database.atomically(forget))

    def clear_line(self, key: str, *, remember_for: float = 3600.0) -> int:
        row_key = self._database.row_key(key)

        def clear(connection: sqlite3.Connection, now: float) -> tuple[int, Sequence[str]]:
            waiting = Line(connection, row_key, now)
            return waiting.clear(remember_for), waiting.calls

        return self._told(key, *self._database.atomically(clear))

    def extend(
        self,
        leases: Sequence[tuple[Lease, float]],
        *,
        within: float = math.inf,  # noqa: ARG002  it has a time limit of its own
    ) -> list[bool | Stop | StoreUnavailable]:
        def prolong(connection: sqlite3.Connection, now: float) -> list[bool | Stop | StoreUnavailable]:
            return [self._extend(connection, lease, now, ttl) for lease, ttl in leases]

        return self._database.atomically(prolong) if leases else []

    def _extend(self, connection: sqlite3.Connection, lease: Lease, now: float, ttl: float) -> bool | Stop:
        row_key, ours = self._database.row_key(lease.key), as_blob(lease.holder)
        alone = connection.execute(
            "UPDATE lockbeat_lock SET until = ?, forget = ? WHERE key = ? AND token = ? AND holder = ? AND until > ?",
            (now + ttl, now + ttl + TOKEN_MEMORY, row_key, lease.token, ours, now),
        )
        if alone.rowcount == 1:
            return True
        last = _last_of_wide(connection, row_key)
        if last is None:
            return False
        among = connection.execute(
            "UPDATE lockbeat_wide SET until = ? WHERE key = ? AND token = ? AND holder = ? AND until > ?",
            (now + ttl, row_key, lease.token, ours, now),
        )
        if among.rowcount != 1:
            return False
        _summarize(connection, row_key, last)
        by = Line(connection, row_key, now).replaces()
        if by is None or lease.token != self._first_of_wide(connection, row_key, now):
            return True
        return Stop(by)

    def _first_of_wide(self, connection: sqlite3.Connection, key: bytes, now: float) -> int:
        """The token of who has a lock with more than one holder longest."""
        rows = connection.execute(
            "SELECT token, process FROM lockbeat_wide WHERE key = ? AND until > ? AND holder <> x'' ORDER BY token",
            (key, now),
        )
        return next(int(token) for token, process in rows if self._database.sees(process))

    def release(self, lease: Lease, *, hold_for: float = 0, remember_for: float = 0, task: bool = False) -> bool:
        mark = lease.task if task else lease.run
        row_key, ours, run = self._database.row_key(lease.key), as_blob(lease.holder), as_blob(mark or "")

        def free(connection: sqlite3.Connection, now: float) -> tuple[bool, Sequence[str]]:
            asked = "SELECT token, until, holder FROM"
            row = connection.execute(f"{asked} lockbeat_lock WHERE key = ?", (row_key,)).fetchone()
            last = None
            if row is not None and row[2] == WIDE:
                last = row[0]
                row = connection.execute(
                    f"{asked} lockbeat_wide WHERE key = ? AND token = ?", (row_key, lease.token)
                ).fetchone()
            if row is None or row[0] != lease.token:
                # another came after us: was our release carried out before?
                return mark is not None and _finished_by(connection, row_key, run, now) == lease.token, ()
            _, until, holder = row
            if not holder:
                return True, ()
            if holder != ours or until <= now:
                return False, ()
            # the token stays, as the counter; without a holder it can be neither extended nor released
            calls = self._end(connection, row_key, lease.token, last, now, hold_for)
            if mark is not None and remember_for > 0:
                connection.execute(
                    "INSERT OR REPLACE INTO lockbeat_done VALUES (?, ?, ?, ?, ?)",
                    (row_key, run, lease.token, remember_for, now + remember_for),
                )
            return True, calls

        return self._told(lease.key, *self._database.atomically(free))

    def _end(
        self, connection: sqlite3.Connection, key: bytes, token: int, last: int | None, now: float, hold_for: float = 0
    ) -> Sequence[str]:
        """End the lease of this token, where the ``last`` of several is known, or else of the one that there is.

        Return what is to be told to those who are called then.
        """
        if last is None:
            connection.execute(
                "UPDATE lockbeat_lock SET until = ?, holder = ?, process = ?, forget = ? WHERE key = ?",
                (now + hold_for, b"", NOBODY, now + hold_for + TOKEN_MEMORY, key),
            )
            return ()
        connection.execute(
            "UPDATE lockbeat_wide SET until = ?, holder = ?, process = ? WHERE key = ? AND token = ?",
            (now + hold_for, b"", NOBODY, key, token),
        )
        waiting, _ = self._serve(connection, key, now)
        return waiting.calls

    def free(self, key: str, *, holder: str) -> bool:
        def end(connection: sqlite3.Connection, now: float) -> tuple[bool, Sequence[str]]:
            calls = self._free(connection, now, key, holder)
            return calls is not None, calls or ()

        return self._told(key, *self._database.atomically(end))

    def _free(self, connection: sqlite3.Connection, now: float, key: str, holder: str) -> Sequence[str] | None:
        """End a holder's lease; return what is to be told to those who are called then. None: it has none."""
        row_key = self._database.row_key(key)
        last = _last_of_wide(connection, row_key)
        table = "lockbeat_lock" if last is None else "lockbeat_wide"
        row = connection.execute(
            f"SELECT token FROM {table} WHERE key = ? AND holder = ? AND until > ?", (row_key, as_blob(holder), now)
        ).fetchone()
        # as in release: the token stays, without a holder
        return None if row is None else self._end(connection, row_key, row[0], last, now)

    def reserve(
        self, reservation: Reservation, *, ttl: float, unless_run_by: str | None = None
    ) -> Reservation | Held | None:
        row_key, name = self._database.row_key(reservation.key), as_blob(reservation.name)

        def take(connection: sqlite3.Connection, now: float) -> Reservation | Held | None:
            there = connection.execute(
                "SELECT task_id, token FROM lockbeat_reserved WHERE key = ? AND name = ? AND until > ?",
                (row_key, name, now),
            ).fetchone()
            if there is not None and there != (as_blob(reservation.task_id), reservation.token):
                return reservation._replace(task_id=as_text(there[0]), token=there[1])
            if there is None and unless_run_by is not None:
                row = connection.execute(f"SELECT {ROW} FROM lockbeat_lock WHERE key = ?", (row_key,)).fetchone()
                for _, until, holder, run, description, _ in self._held(connection, row_key, row, now, b""):
                    if holder and run and _readable(unless_run_by) in description:
                        return Held(description, until - now, False, run.decode("utf-8", "replace"))
            connection.execute(
                "INSERT OR REPLACE INTO lockbeat_reserved VALUES (?, ?, ?, ?, ?, ?)",
                (row_key, name, as_blob(reservation.task_id), reservation.token, ttl, now + ttl),
            )
            return None

        return self._database.atomically(take)

    def unreserve(self, reservation: Reservation) -> bool:
        return self._database.atomically(lambda connection, now: self._unreserve(connection, reservation, now))

    def _unreserve(self, connection: sqlite3.Connection, reservation: Reservation, now: float = 0.0) -> bool:
        """End a reservation; whether it was live ``now``."""
        key, name, task_id, token = reservation
        ended = connection.execute(
            "DELETE FROM lockbeat_reserved WHERE key = ? AND name = ? AND task_id = ? AND token = ? AND until > ?",
            (self._database.row_key(key), as_blob(name), as_blob(task_id), token, now),
        )
        return ended.rowcount == 1

    def held(self, key: str | None = None, *, limit: int = LISTED_AT_MOST) -> list[LiveLock]:
        mine = self._database.row_key("" if key is None else key)

        def tell(connection: sqlite3.Connection, now: float) -> list[LiveLock]:
            asked = "until > ?1 AND (key = ?2 OR ?3 AND substr(key, 1, ?4) = ?2)"
            waiting = (
                "(SELECT count(*) FROM lockbeat_line AS l WHERE l.key = held.key"
                " AND (l.called > ?1 OR l.called IS NULL AND l.until > ?1))"
            )
            found = f"SELECT key, holder, description, run, token, until, process, {waiting} FROM"
            rows = connection.execute(
                f"{found} lockbeat_lock AS held WHERE {asked} AND holder <> ?5"
                f" UNION ALL {found} lockbeat_wide AS held WHERE {asked}"
                " AND key IN (SELECT key FROM lockbeat_lock WHERE holder = ?5)",
                (now, mine, key is None, len(mine), WIDE),
            )
            live = (row for row in rows if self._database.sees(row[6]))
            return [
                LiveLock(
                    key or as_text(row[0][len(mine) :]),
                    as_text(row[1]),
                    row[2],
                    as_text(row[3]),
                    row[4],
                    row[5] - now,
                    row[7],
                )
                for row in islice(live, limit)
            ]

        return self._database.atomically(tell)


def _last_of_wide(connection: sqlite3.Connection, key: bytes) -> int | None:
    """The last token of a lock with more than one holder; None: it has one, or none."""
    row = connection.execute("SELECT token FROM lockbeat_lock WHERE key = ? AND holder = ?", (key, WIDE)).fetchone()
    return None if row is None else int(row[0])


def _summarize(connection: sqlite3.Connection, key: bytes, last: int) -> None:
    """Write in the row of the lock itself what its holders, and those who are called, have in common."""
    (latest,) = connection.execute(
        "SELECT max(coalesce((SELECT max(until) FROM lockbeat_wide WHERE key = ?1), 0),"
        " coalesce((SELECT max(called) FROM lockbeat_line WHERE key = ?1), 0))",
        (key,),
    ).fetchone()
    connection.execute(
        "UPDATE lockbeat_lock SET token = ?, until = ?, forget = ? WHERE key = ?",
        (last, latest, latest + TOKEN_MEMORY, key),
    )


def _widen(connection: sqlite3.Connection, key: bytes, leases: Sequence[Any] | None, last: int, limit: int) -> None:
    """Let a lock have these leases, of which there may be more than one; None: those that it has."""
    if leases is not None:
        connection.execute("DELETE FROM lockbeat_wide WHERE key = ?", (key,))
        # the row of who has had the key alone is one of them from now on
        connection.executemany(f"INSERT INTO lockbeat_wide VALUES {SEVEN}", [(key, *each) for each in leases])
    connection.execute(
        "INSERT OR REPLACE INTO lockbeat_lock VALUES (?, ?, 0, ?, ?, '', ?, 0)",
        (key, last, WIDE, b"%d" % limit, NOBODY),
    )
    _summarize(connection, key, last)


def _held_by(lease: Any, now: float, *, same_run: bool = False, why: str = "", who: str = "") -> Held:
    _, until, _, run, description, _ = lease
    return Held(description, until - now, same_run, run.decode("utf-8", "replace"), why, who=who)


class _Turn:
    """Whether it is the turn of one who asks for a key: who asks is taken for one in line, or else for the last of it."""

    def __init__(self, waiting: Line | None, now: float, micros: int, place: Place | None) -> None:
        self._line = waiting
        self._place = place
        self._now = now
        #: those who are called, as leases
        self.reserved: list[Any] = []
        self._since: float = math.inf
        if waiting is not None:
            if place is not None:
                self._since = waiting.since(place, micros)
                waiting.call_back(as_blob(place.ticket))
            self._reserve(*waiting.called())

    def _reserve(self, *called: Any) -> None:
        self.reserved += [(since, until, ticket, b"", described, NOBODY) for ticket, since, until, described in called]

    @property
    def calls(self) -> Sequence[str]:
        """What is to be told to those who are called."""
        return () if self._line is None else self._line.calls

    @property
    def others(self) -> bool:
        """Whether somebody else waits, or is called."""
        return bool(self.reserved) or (self._line is not None and self._line.first() is not None)

    def comes(self, held: int, limit: int) -> bool:
        """Give what is free, beside so many who hold the key, to those who are before; whether there is something left."""
        waiting = self._line
        if waiting is None:
            return held < limit
        latest = max(self.reserved, default=None)
        if held + len(self.reserved) >= limit and latest is not None and self._since < latest[0]:
            # who is called came after us, and is not here yet: it waits on, in its place
            waiting.call_back(latest[2])
            self.reserved.remove(latest)
        while held + len(self.reserved) < limit:
            first = waiting.first()
            if first is None or first[1] >= self._since:
                return True
            self._reserve(waiting.call(first[0]))
        return False

    def is_taken(self) -> None:
        """It waits no more."""
        if self._line is not None and self._place is not None:
            self._line.forget(as_blob(self._place.ticket))

    def waits(self, first: Any, description: str) -> Held | Waiting:
        """Take the place in line that is asked for; ``first`` is the lease that ends first."""
        if self._line is None or self._place is None:
            return _held_by(first, self._now)
        place = self._line.wait(self._place, int(self._since), description)
        if len(place) == 2:  # noqa: PLR2004  why there is none, and who has it
            return _held_by(first, self._now, why=place[0], who=place[1])
        began, copy, before = place
        held = _held_by(first, self._now)
        return Waiting(int(self._since), began, copy, before, held.description, held.remaining, held.run)


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
    # the messages of those who wait come again
    connection.execute("DELETE FROM lockbeat_line")
    connection.execute("UPDATE lockbeat_superseded SET forget = ? + ?", (now, line.REMEMBERED))
    for (process,) in connection.execute("SELECT DISTINCT process FROM lockbeat_wide").fetchall():
        if process == NOBODY or not sees(process):
            connection.execute("DELETE FROM lockbeat_wide WHERE process = ?", (process,))
    connection.execute("UPDATE lockbeat_lock SET forget = until + ?", (TOKEN_MEMORY,))
    connection.execute("UPDATE lockbeat_done SET forget = ? + lasts", (now,))
    connection.execute("UPDATE lockbeat_reserved SET until = ? + lasts", (now,))


TABLES: Final = Tables(schema=SCHEMA, begin_a_new_boot=_begin_a_new_boot, purge=PURGE)

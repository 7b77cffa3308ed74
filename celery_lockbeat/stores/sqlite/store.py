"""The store of one host, without a server: SQLite keeps the state, a kernel lock tells who is alive.

Promises the contract of ``base.py`` for all threads and processes of one user on one host, and that a dead holder's key
is free at once. The state survives a restart; a reboot ends the leases, and keeps tokens and finished runs. On Linux it
survives its files, too: whoever finds them deleted while a process uses them puts them back first (see ``rescue.py``).
Needs a local disk: neither record locks nor SQLite's WAL can be trusted on a network file system.

SQLite, since tokens, finished runs and claims change together and must survive a crash in the middle. Acquire + release
take 71 us (100 us with a run to remember; Redis: 290 us), 58 us with synchronous=OFF, which a power cut may corrupt, and
374 us with FULL, whose durability saves nothing here: a power cut ends all leases. A JSON file under flock takes 19 us.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import random
import sqlite3
import stat
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import ClassVar, Final, TypeVar

from celery_lockbeat.clock import boot_id, monotonic
from celery_lockbeat.exceptions import ConfigurationError, StoreUnavailable
from celery_lockbeat.stores.base import (
    ALIVE,
    BACKLOG,
    LISTED_AT_MOST,
    OVERDUE_AT_ONCE,
    STATE_MEMORY,
    TOKEN_MEMORY,
    Announcement,
    AnnouncementStore,
    Beats,
    BeatStore,
    Claim,
    Claims,
    EntryState,
    Finished,
    Held,
    Joined,
    Lease,
    LiveLock,
    LockStore,
    Overdue,
    Replica,
    Store,
    StoredEntry,
)

try:
    import fcntl

    from celery_lockbeat.stores.sqlite.rescue import lock_within, publish, rescue
except ImportError:  # Windows, where Celery has no prefork pool either
    fcntl = None  # type: ignore[assignment]

__all__ = ["MemoryStore"]

logger: Final = logging.getLogger("celery_lockbeat")

#: After so many operations of one store, at most so many rows of each table that are over are deleted.
PURGE_EVERY: Final = 64
PURGE_AT_MOST: Final = 256

#: At most how long to sleep until the next try to begin a transaction, seconds; the mean is half of it. SQLite's own
#: waiting sleeps longer the longer one has waited: of 8 processes that do nothing else, one waited for 834 ms, and the
#: luckiest did 2.5 times as much as the unluckiest. So: 33 ms, and 1.1 times.
PAUSE: Final = 0.001

#: What the directory has: the state, who is alive, and what whoever begins there holds meanwhile.
FILES: Final = ("state.db", "state.db-wal", "state.db-shm", "alive", "choosing")

#: In place of the offset of a process: no process holds this row, it lives by its time alone.
NOBODY: Final = 0

#: Where no mark tells who is alive: locks end with their leases. And where all are known to be dead.
PERHAPS_ALIVE: Final = "UPDATE lockbeat_lock SET process = 0"
ALL_DEAD: Final = "UPDATE lockbeat_lock SET until = 0, holder = x'', process = 0 WHERE process <> 0"

#: The tables. Django's database has them too, by a migration: see contrib/django.
SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS lockbeat_host (boot TEXT)",
    """CREATE TABLE IF NOT EXISTS lockbeat_lock (
        key BLOB PRIMARY KEY, token INTEGER, until REAL, holder BLOB, run BLOB, description TEXT, process INTEGER,
        forget REAL) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS lockbeat_lock_forget ON lockbeat_lock (forget)",
    """CREATE TABLE IF NOT EXISTS lockbeat_done (
        key BLOB, run BLOB, token INTEGER, lasts REAL, forget REAL, PRIMARY KEY (key, run)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS lockbeat_done_forget ON lockbeat_done (forget)",
    # of the beats; ``until``, ``seen`` and ``unlisted`` (NULL: listed) are on the host's clock, ``at`` on the wall's
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
    # ``first`` is on the wall's clock, ``last`` and ``until`` on the host's
    """CREATE TABLE IF NOT EXISTS lockbeat_announced (
        app BLOB, kind TEXT, name BLOB, told TEXT, first REAL, last REAL, until REAL,
        PRIMARY KEY (app, kind, name)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS lockbeat_announced_until ON lockbeat_announced (app, kind, until)",
)

#: ``seen`` of a replica that has left, or that was there before this boot.
LONG_AGO: Final = float("-inf")

_T = TypeVar("_T")


class MemoryStore(Store, LockStore, BeatStore, AnnouncementStore):
    """Locks among the processes of this user on this host, kept in the private directory ``path``.

    ``timeout``: seconds to wait for another process's transaction, which takes some ten microseconds unless that process
    is stopped in its middle. All durations are counted on ``clock``; ``wall`` only makes tokens.
    """

    driver: ClassVar[str] = "memory"

    @property
    def locks(self) -> LockStore:  # type: ignore[override]
        return self

    @property
    def beats(self) -> BeatStore:  # type: ignore[override]
        return self

    @property
    def announcements(self) -> AnnouncementStore:  # type: ignore[override]
        return self

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        key_prefix: str = "lockbeat:",
        timeout: float = 5.0,
        clock: Callable[[], float] = monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        if fcntl is None:
            msg = "lock_driver is 'memory'; allowed on this platform: 'redis', for memory needs POSIX record locks"
            raise ConfigurationError(msg)
        # made absolute now: a daemon changes its working directory later
        self._live_in(Path(path or default_path()).absolute())
        #: where release 0.1.0 is by default; None: we have been told where to be, or have looked there already
        self._earlier = None if path else Path(tempfile.gettempdir(), self._path.name)
        self._prefix = key_prefix
        self._timeout = timeout
        self._clock = clock
        self._wall = wall
        self._operations = 0
        self._connection: sqlite3.Connection | None = None
        self._files: tuple[int, ...] = ()  # which the connection was opened on
        self._descriptor = -1  # of ``alive``; set with the connection
        with _mutex:
            _stores.add(self)

    def _live_in(self, path: Path) -> None:
        self._path = path
        self._state, self._alive = str(path / "state.db"), str(path / "alive")
        self._watched: tuple[str, ...] = (self._state, self._alive)

    def acquire(
        self,
        key: str,
        *,
        holder: str,
        ttl: float,
        run: str | None = None,
        whole: str | None = None,
        description: str = "",
    ) -> Lease | Held | Finished:
        row_key, ours, named, described = self._row_key(key), _exact(holder), _exact(run or ""), _readable(description)

        def take(connection: sqlite3.Connection, now: float) -> Lease | Held | Finished:
            for mark in (whole, run):
                if mark is not None and _finished_by(connection, row_key, _exact(mark), now) is not None:
                    return Finished(whole=mark == whole)
            token = int(self._wall() * 1_000_000)
            row = connection.execute(
                "SELECT token, until, holder, run, description, process FROM lockbeat_lock WHERE key = ?", (row_key,)
            ).fetchone()
            if row is not None:
                last, until, theirs, their_run, their_description, process = row
                live = until > now and (theirs == ours or self._sees(process))
                if live and theirs != ours:
                    same_run = run is not None and their_run == named
                    return Held(their_description, until - now, same_run, their_run.decode("utf-8", "replace"))
                token = last if live else max(token, last + 1)
            connection.execute(
                "INSERT OR REPLACE INTO lockbeat_lock VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (row_key, token, now + ttl, ours, named, described, self._process, now + ttl + TOKEN_MEMORY),
            )
            return Lease(key, holder, run, token, whole)

        return self._atomically(take)

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
                        self._row_key(lease.key),
                        lease.token,
                        _exact(lease.holder),
                        now,
                    ),
                ).rowcount
                == 1
                for lease, ttl in leases
            ]

        return self._atomically(prolong) if leases else []

    def release(self, lease: Lease, *, hold_for: float = 0, remember_for: float = 0, whole: bool = False) -> bool:
        mark = lease.whole if whole else lease.run
        row_key, ours, run = self._row_key(lease.key), _exact(lease.holder), _exact(mark or "")

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

        return self._atomically(free)

    def free(self, key: str, *, holder: str) -> bool:
        def end(connection: sqlite3.Connection, now: float) -> bool:
            # as in release: the token stays, without a holder
            ended = connection.execute(
                "UPDATE lockbeat_lock SET until = ?, holder = ?, process = ?, forget = ? WHERE key = ? AND holder = ? AND until > ?",
                (now, b"", NOBODY, now + TOKEN_MEMORY, self._row_key(key), _exact(holder), now),
            )
            return ended.rowcount == 1

        return self._atomically(end)

    # -- beats ---------------------------------------------------------------------------------------------------------

    def join(self, app: str, replica: str, *, cold_start: float | None = None) -> Joined:
        whose = self._row_key(app)

        def count_in(connection: sqlite3.Connection, now: float) -> Joined:
            wall = self._wall()
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

        return self._atomically(count_in)

    def list_entries(
        self,
        app: str,
        replica: str,
        entries: Sequence[tuple[str, EntryState]],
        *,
        removed: Sequence[str] = (),
        complete: bool = False,
    ) -> list[EntryState]:
        whose = self._row_key(app)

        def add(connection: sqlite3.Connection, now: float) -> list[EntryState]:
            connection.execute(
                "INSERT INTO lockbeat_replica VALUES (?, ?, ?, ?) ON CONFLICT (app, name) DO UPDATE SET"
                " seen = excluded.seen, complete = max(complete, excluded.complete)",
                (whose, replica, now, complete),
            )
            connection.executemany(
                "DELETE FROM lockbeat_listed WHERE app = ? AND replica = ? AND name = ?",
                [(whose, replica, _exact(name)) for name in removed],
            )
            _forget_what_nobody_lists(connection, whose, now, removed)
            names = [_exact(name) for name, _ in entries]
            connection.executemany(
                "INSERT OR IGNORE INTO lockbeat_listed VALUES (?, ?, ?)", [(whose, replica, name) for name in names]
            )
            connection.executemany(
                "INSERT INTO lockbeat_entry VALUES (?, ?, ?, ?, NULL) ON CONFLICT (app, name) DO UPDATE SET"
                " last_run_at = CASE WHEN unlisted IS NULL THEN last_run_at ELSE excluded.last_run_at END, unlisted = NULL",
                [
                    (whose, name, state.total_run_count, _exact(state.last_run_at))
                    for name, (_, state) in zip(names, entries, strict=True)
                ],
            )
            return [_state_of(connection, whose, name) or entry[1] for name, entry in zip(names, entries, strict=True)]

        return self._atomically(add)

    def claim(self, app: str, replica: str, claims: Sequence[Claim], *, ttl: float, skip: int = 0) -> Claims:
        whose = self._row_key(app)

        def grant(connection: sqlite3.Connection, now: float) -> Claims:
            refusals = [_grant(connection, whose, replica, claim, now + ttl) for claim in claims]
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
                [Overdue(task_id, _text(entry), run, json.loads(details)) for task_id, entry, run, details in overdue],
                None if until is None else until - now,
                self._wall(),
                seen == 1,
            )

        return self._atomically(grant)

    def take_over(self, app: str, replica: str, task_ids: Sequence[str], *, ttl: float) -> list[bool]:
        whose = self._row_key(app)
        return self._atomically(
            lambda connection, now: [
                connection.execute(
                    "UPDATE lockbeat_claim SET replica = ?, until = ? WHERE app = ? AND task_id = ? AND until <= ?",
                    (replica, now + ttl, whose, task_id, now),
                ).rowcount
                == 1
                for task_id in task_ids
            ]
        )

    def settle(
        self, app: str, replica: str, published: Sequence[tuple[str, str]], *, handed_over: Sequence[str] = ()
    ) -> list[bool]:
        whose = self._row_key(app)

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

        return self._atomically(forget)

    def leave(self, app: str, replica: str) -> None:
        whose = self._row_key(app)
        self._atomically(
            lambda connection, _now: connection.execute(
                "UPDATE lockbeat_replica SET seen = ? WHERE app = ? AND name = ?", (LONG_AGO, whose, replica)
            )
        )

    # -- announcements -------------------------------------------------------------------------------------------------

    def announce(self, app: str, kind: str, told: Mapping[str, str], *, ttl: float) -> None:
        whose = self._row_key(app)

        def write(connection: sqlite3.Connection, now: float) -> None:
            connection.execute(
                "DELETE FROM lockbeat_announced WHERE app = ? AND kind = ? AND until <= ?", (whose, kind, now)
            )
            wall = self._wall()
            connection.executemany(
                "INSERT INTO lockbeat_announced VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (app, kind, name) DO UPDATE SET"
                " told = excluded.told, last = excluded.last, until = excluded.until",
                [(whose, kind, _exact(name), text, wall, now, now + ttl) for name, text in told.items()],
            )

        self._atomically(write)

    def announced(
        self, app: str, kind: str, names: Sequence[str] | None = None, *, limit: int = LISTED_AT_MOST
    ) -> list[Announcement]:
        whose = self._row_key(app)

        def tell(connection: sqlite3.Connection, now: float) -> list[Announcement]:
            sql = "SELECT name, told, first, last FROM lockbeat_announced WHERE app = ? AND kind = ? AND until > ?"
            if names is None:
                rows = connection.execute(f"{sql} LIMIT ?", (whose, kind, now, limit)).fetchall()
            else:
                asked = (connection.execute(f"{sql} AND name = ?", (whose, kind, now, _exact(name))) for name in names)
                rows = [row for each in asked for row in each]
            return [Announcement(_text(name), text, first, now - last) for name, text, first, last in rows]

        return self._atomically(tell)

    # -- operators -----------------------------------------------------------------------------------------------------

    def held(self, key: str | None = None, *, limit: int = LISTED_AT_MOST) -> list[LiveLock]:
        mine = self._row_key("" if key is None else key)

        def tell(connection: sqlite3.Connection, now: float) -> list[LiveLock]:
            rows = connection.execute(
                "SELECT key, holder, description, run, token, until, process FROM lockbeat_lock"
                " WHERE until > ? AND (key = ? OR ? AND substr(key, 1, ?) = ?)",
                (now, mine, key is None, len(mine), mine),
            )
            live = (row for row in rows if self._sees(row[6]))
            return [
                LiveLock(key or _text(row[0][len(mine) :]), _text(row[1]), row[2], _text(row[3]), row[4], row[5] - now)
                for row in islice(live, limit)
            ]

        return self._atomically(tell)

    def status(self, app: str, *, limit: int = LISTED_AT_MOST) -> Beats:
        whose = self._row_key(app)

        def tell(connection: sqlite3.Connection, now: float) -> Beats:
            replicas = [
                Replica(
                    name,
                    now - seen,
                    frozenset(
                        _text(entry)
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
                StoredEntry(_text(name), EntryState(count, _text(last_run_at)), pending)
                for name, count, last_run_at, pending in connection.execute(
                    "SELECT name, count, last_run_at,"
                    " (SELECT count(*) FROM lockbeat_claim WHERE lockbeat_claim.app = lockbeat_entry.app AND entry = name)"
                    " FROM lockbeat_entry WHERE app = ? LIMIT ?",
                    (whose, limit),
                )
            ]
            (overdue,) = connection.execute(
                "SELECT count(*) FROM lockbeat_claim WHERE app = ? AND until <= ?", (whose, now)
            ).fetchone()
            return Beats(replicas, entries, overdue)

        return self._atomically(tell)

    def check(self) -> None:
        self._atomically(lambda _connection, _now: None)

    def close(self) -> None:
        with _mutex:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def _row_key(self, key: str) -> bytes:
        # with its length in front, no prefix and key read like another pair
        return _exact(f"{len(self._prefix)} {self._prefix}{key}")

    # -- the database --------------------------------------------------------------------------------------------------

    def _atomically(self, work: Callable[[sqlite3.Connection, float], _T]) -> _T:
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
                        if self._files != _files(*self._watched):
                            raise _Replaced
                        answer = work(connection, self._clock())
                        self._purge_now_and_then(connection)
                    return answer  # noqa: TRY300  an else would be read as belonging to the with
                except _Replaced:
                    moved = True
                    continue
                except (sqlite3.Error, OSError) as exc:
                    # a thread that waited for the mutex that long does not wait for the other process once more
                    if not _is_busy(exc) or monotonic() > deadline:
                        self._drop(exc)
                        msg = f"the {self.driver} store in {self._path} does not answer: {exc}"
                        raise StoreUnavailable(msg) from exc
                time.sleep(random.uniform(0, PAUSE))  # noqa: S311  not a secret

    def _opened(self) -> sqlite3.Connection:
        connection = self._connection
        if connection is not None and connection.in_transaction:
            msg = "it is used by a signal handler that interrupted its use"
            raise sqlite3.ProgrammingError(msg)
        if connection is None:
            connection = self._connection = self._connect()
        return connection

    def _move(self) -> None:
        """Go to the files that are in the place of ours, which were deleted; there are none: take the state along."""
        old = self._connection
        self._connection = self._connect()
        if old is not None:
            old.close()  # SQLite notices that its files have moved, and touches none of the new ones

    def _connect(self) -> sqlite3.Connection:
        _make_private(self._path)
        _refuse_planted(self._path)
        with contextlib.ExitStack() as stack:
            if self._earlier is not None or not os.path.exists(self._state):  # noqa: PTH110
                self._begin(stack)
            # no waiting inside SQLite: see PAUSE
            connection = sqlite3.connect(self._state, timeout=0, isolation_level=None, check_same_thread=False)
            try:
                state = os.stat(self._state).st_ino  # noqa: PTH116  as in _files
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    for statement in SCHEMA:
                        connection.execute(statement)
                    if not os.path.exists(self._alive):  # noqa: PTH110
                        # nobody's byte is in the new one: who is alive must not be taken for dead
                        connection.execute(PERHAPS_ALIVE)
                    self._descriptor = _this_process.marked_in(self._alive)
                    self._files = (state, os.fstat(self._descriptor).st_ino)
                    self._begin_a_new_boot(connection)
            except BaseException:
                connection.close()
                raise
        return connection

    def _begin(self, stack: contextlib.ExitStack) -> None:
        """Find the state, or make one; alone, until our mark is there for who comes next."""
        choosing = os.open(self._path / "choosing", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, choosing)
        lock_within(choosing, self._timeout)
        earlier, self._earlier = self._earlier, None
        if earlier not in (None, self._path) and _is_private(earlier):
            self._stay_with_the_earlier_release(earlier)
        if not os.path.exists(self._state):  # noqa: PTH110
            self._put_back()
        with contextlib.suppress(FileExistsError):
            # never opened by hand again: closing it would drop the locks of SQLite's own descriptors (fcntl(2))
            os.close(os.open(self._state, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    def _put_back(self) -> None:
        """Begin with what somebody has open still, though it was deleted."""
        open_here = [
            each._connection for each in _stores if each._state == self._state and each._connection is not None
        ]
        if open_here:
            publish(open_here[0], self._state, PERHAPS_ALIVE)
        else:
            rescue(self._state, PERHAPS_ALIVE, within=self._timeout)

    def _stay_with_the_earlier_release(self, earlier: Path) -> None:
        """Join those who live where release 0.1.0 does, as long as there is one: in two places nobody would exclude the other.

        All leave when none of them is left, and take along what they knew.
        """
        left = earlier / "state.db"
        if _this_process.meets_others_in(str(earlier / "alive")):
            logger.info("the memory store is still in %s, where processes of an earlier release are", earlier)
            self._live_in(earlier)
            _refuse_planted(earlier)
        elif left.is_file() and not os.path.exists(self._state):  # noqa: PTH110
            with contextlib.closing(sqlite3.connect(left, timeout=self._timeout, isolation_level=None)) as connection:
                publish(connection, self._state, ALL_DEAD)

    def _begin_a_new_boot(self, connection: sqlite3.Connection) -> None:
        """Move what an earlier boot left behind to this boot's clock, which begins anew.

        The wall clock could tell how long the machine was down, but is often not yet set when it comes up: a finished
        run is remembered for its whole time once more instead, since an early end would let it run twice.
        """
        boot = boot_id()
        if connection.execute("SELECT boot FROM lockbeat_host").fetchone() == (boot,):
            return
        now = self._clock()
        for (process,) in connection.execute("SELECT DISTINCT process FROM lockbeat_lock").fetchall():
            # a live holder proves that it is the same boot under another name (see boot_id)
            if process == NOBODY or not self._sees(process):
                connection.execute("UPDATE lockbeat_lock SET until = ? WHERE process = ?", (now, process))
        connection.execute("UPDATE lockbeat_lock SET forget = until + ?", (TOKEN_MEMORY,))
        connection.execute("UPDATE lockbeat_done SET forget = ? + lasts", (now,))
        connection.execute("UPDATE lockbeat_claim SET until = ?", (now,))
        connection.execute("UPDATE lockbeat_entry SET unlisted = ? WHERE unlisted IS NOT NULL", (now,))
        connection.execute("UPDATE lockbeat_replica SET seen = ?", (LONG_AGO,))
        self._begin_to_announce_anew(connection, now)
        connection.execute("DELETE FROM lockbeat_host")
        connection.execute("INSERT INTO lockbeat_host VALUES (?)", (boot,))

    def _begin_to_announce_anew(self, connection: sqlite3.Connection, now: float) -> None:
        """Nobody of an earlier boot is there; what the definitions were is still known."""
        if connection.execute(
            "SELECT 1 FROM sqlite_master WHERE name = 'lockbeat_announced'"
        ).fetchone():  # by a migration
            connection.execute("DELETE FROM lockbeat_announced WHERE kind <> 'definition'")
            connection.execute("UPDATE lockbeat_announced SET until = ? + until - last, last = ?", (now, now))

    @property
    def _process(self) -> int:
        """What tells this process from others, in the rows of its locks."""
        return _this_process.offset

    def _sees(self, process: int) -> bool:
        return _this_process.sees(process, self._descriptor)

    def _purge_now_and_then(self, connection: sqlite3.Connection) -> None:
        self._operations += 1
        if self._operations % PURGE_EVERY:
            return
        now = self._clock()
        connection.execute(
            "DELETE FROM lockbeat_lock WHERE key IN (SELECT key FROM lockbeat_lock WHERE forget < ? LIMIT ?)",
            (now, PURGE_AT_MOST),
        )
        connection.execute(
            "DELETE FROM lockbeat_done WHERE (key, run) IN (SELECT key, run FROM lockbeat_done WHERE forget < ? LIMIT ?)",
            (now, PURGE_AT_MOST),
        )

    def _drop(self, exc: Exception) -> None:
        """Open anew at the next use, unless another process was merely slow or this very thread is still inside."""
        if not (_is_busy(exc) or isinstance(exc, sqlite3.ProgrammingError)):
            with contextlib.suppress(sqlite3.Error):
                self.close()


def _state_of(connection: sqlite3.Connection, app: bytes, name: bytes) -> EntryState | None:
    row = connection.execute(
        "SELECT count, last_run_at FROM lockbeat_entry WHERE app = ? AND name = ?", (app, name)
    ).fetchone()
    return None if row is None else EntryState(row[0], _text(row[1]))


def _grant(connection: sqlite3.Connection, app: bytes, replica: str, claim: Claim, until: float) -> EntryState | None:
    """Claim one tick; returns None, or the state that refuses it."""
    name, run = _exact(claim.entry), claim.state.total_run_count
    state = _state_of(connection, app, name)
    owner = connection.execute(
        "SELECT replica FROM lockbeat_claim WHERE app = ? AND task_id = ?", (app, claim.task_id)
    ).fetchone()
    if owner == (replica,):
        # its answer was lost: granted again, with the newer time of the run
        connection.execute(
            "UPDATE lockbeat_entry SET last_run_at = ? WHERE app = ? AND name = ? AND count = ?",
            (_exact(claim.state.last_run_at), app, name, run),
        )
        connection.execute(
            "UPDATE lockbeat_claim SET until = ? WHERE app = ? AND task_id = ?", (until, app, claim.task_id)
        )
        return None
    if owner is not None:
        return state or claim.state
    if state is not None:
        if state.total_run_count >= run:
            return state
        (pending,) = connection.execute(
            "SELECT count(*) FROM lockbeat_claim WHERE app = ? AND entry = ?", (app, name)
        ).fetchone()
        if pending >= BACKLOG:
            return state
    # a smaller count than expected is a state that was lost in part: the replica knows better
    connection.execute(
        "INSERT INTO lockbeat_entry VALUES (?, ?, ?, ?, NULL) ON CONFLICT (app, name) DO UPDATE SET"
        " count = excluded.count, last_run_at = excluded.last_run_at",
        (app, name, run, _exact(claim.state.last_run_at)),
    )
    connection.execute(
        "INSERT INTO lockbeat_claim VALUES (?, ?, ?, ?, ?, ?, ?)",
        (app, claim.task_id, name, run, replica, until, json.dumps(claim.details)),
    )
    return None


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
            [(now, app, _exact(name)) for name in names],
        )


def _somebody_lists(connection: sqlite3.Connection, app: bytes, now: float) -> bool:
    """Whether a replica that is there has not listed all of its entries yet."""
    incomplete = "SELECT 1 FROM lockbeat_replica WHERE app = ? AND seen > ? AND NOT complete"
    return connection.execute(incomplete, (app, now - ALIVE)).fetchone() is not None


def _forget_old_state(connection: sqlite3.Connection, app: bytes, before: float) -> None:
    connection.execute("DELETE FROM lockbeat_entry WHERE app = ? AND unlisted <= ?", (app, before))
    connection.execute("DELETE FROM lockbeat_claim WHERE app = ? AND until <= ?", (app, before))


class _Replaced(Exception):  # noqa: N818  no error: it never leaves this module
    """The files that are open are not in their place any more."""


class _ThisProcess:
    """The proof that this process lives: one locked byte, at an offset of its own, in each file ``alive`` that it uses.

    The kernel frees it when the process dies, however it dies, and a process that gets the same pid has another offset.
    Record locks are not inherited by a fork, and a process loses them when it closes *any* descriptor of that file
    (fcntl(2)): each file is opened once, and never closed.
    """

    def __init__(self) -> None:
        self.offset: Final = random.SystemRandom().randrange(1, 2**62)
        self._descriptors: dict[tuple[int, int], int] = {}

    def marked_in(self, path: str) -> int:
        """Lock the byte in the file at ``path``; returns its descriptor."""
        descriptor = self._opened(path)
        # each time: an exception thrown into this thread may have come between the two before
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self.offset)
        return descriptor

    def sees(self, offset: int, descriptor: int) -> bool:
        """Whether the process that locked the byte at ``offset`` lives."""
        if offset in (NOBODY, self.offset):
            # our own lock would not keep us from taking it again
            return True
        try:
            # shared: two that look at the same time must not take each other for the holder
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, offset)
        except (BlockingIOError, PermissionError):
            return True
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, offset)
        return False

    def meets_others_in(self, path: str) -> bool:
        """Whether any process has a byte locked in the file at ``path``; this one counts, too."""
        try:
            if self._has_open(path) is not None:
                return True
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
        else:
            return False
        finally:
            os.close(descriptor)

    def _has_open(self, path: str) -> int | None:
        found = os.lstat(path)
        return self._descriptors.get((found.st_dev, found.st_ino))

    def _opened(self, path: str) -> int:
        with contextlib.suppress(FileNotFoundError):
            known = self._has_open(path)
            if known is not None:
                return known
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        found = os.fstat(descriptor)
        self._descriptors[found.st_dev, found.st_ino] = descriptor
        with contextlib.suppress(OSError):
            # systemd-tmpfiles removes no files, however old, from a directory that is locked so (tmpfiles.d(5))
            directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # noqa: PTH120
            fcntl.flock(directory, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return descriptor

    def leave_to_the_parent(self) -> None:
        """Close, in a forked child, the files that are marked by the parent; the child has no locks yet to lose."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)


# What this process has of the kernel and of SQLite. One mutex for all: what it guards is short, and it keeps a fork
# from copying SQLite in the middle of its work, with locks of its own that nobody would ever free in the child.
_mutex = threading.RLock()
_stores: weakref.WeakSet[MemoryStore] = weakref.WeakSet()
_this_process = _ThisProcess()
_inherited: list[sqlite3.Connection | None] = []


def _finish_before_a_fork() -> None:
    _mutex.acquire()


def _go_on_in_the_parent() -> None:
    _mutex.release()


def _begin_anew_in_the_child() -> None:
    global _mutex, _this_process  # noqa: PLW0603  they are this process's, and that is another one now
    _mutex = threading.RLock()
    _this_process.leave_to_the_parent()
    _this_process = _ThisProcess()
    for store in _stores:
        # neither used nor closed here, as SQLite demands (sqlite.org/howtocorrupt.html, 2.6)
        _inherited.append(store._connection)
        store._connection = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_finish_before_a_fork,
        after_in_parent=_go_on_in_the_parent,
        after_in_child=_begin_anew_in_the_child,
    )


#: Where the store's directory is made by default, in the first of these that there is. Not where the environment says,
#: nor at home: cron has another environment, and a home may be read-only, missing, or on another machine.
PLACES: Final = ("/var/tmp", "/tmp")  # noqa: S108  the directory in it is private


def default_path() -> Path:
    """Return the place that all processes of this user on this host agree on."""
    name = f"celery-lockbeat-{os.geteuid()}"
    usable = (Path(place, name) for place in PLACES if os.access(place, os.W_OK | os.X_OK))
    return next(usable, Path(tempfile.gettempdir(), name))


def _is_private(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _make_private(path: Path) -> None:
    """Make the directory, or make sure that nobody else can have put anything into it. Raises ConfigurationError."""
    allowed = "a directory that is ours alone (mode 0700), or that can be made"
    try:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError, PermissionError) as exc:
        msg = f"lockbeat_memory_path is {str(path)!r} ({exc.strerror}); allowed: {allowed}"
        raise ConfigurationError(msg) from exc
    if not _is_private(path):
        is_now = f"{stat.filemode(found.st_mode)} of uid {found.st_uid}"
        msg = f"lockbeat_memory_path is {str(path)!r} ({is_now}); allowed: {allowed}"
        raise ConfigurationError(msg)


def _refuse_planted(directory: Path) -> None:
    """Make sure that its files, where there are any, are regular ones of ours, and no links. Raises ConfigurationError."""
    for path in map(directory.joinpath, FILES):
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink > 1:
            is_now = f"{stat.filemode(found.st_mode)} of uid {found.st_uid}, {found.st_nlink} link(s)"
            msg = (
                f"lockbeat_memory_path has {str(path)!r} ({is_now}); allowed: only the files that the store made itself"
            )
            raise ConfigurationError(msg)


def _files(*paths: str) -> tuple[int, ...]:
    """Tell files from others that have come into their places; () while one is missing."""
    try:
        return tuple(os.stat(path).st_ino for path in paths)  # noqa: PTH116  at each operation: Path costs as much again
    except FileNotFoundError:
        return ()


def _finished_by(connection: sqlite3.Connection, key: bytes, run: bytes, now: float) -> int | None:
    """The token under which this run was brought to its end, while that is remembered."""
    row = connection.execute(
        "SELECT token FROM lockbeat_done WHERE key = ? AND run = ? AND forget > ?", (key, run, now)
    ).fetchone()
    return None if row is None else int(row[0])


def _is_busy(exc: Exception) -> bool:
    # sqlite_errorcode came with Python 3.11
    return isinstance(exc, sqlite3.OperationalError) and "locked" in str(exc)


def _exact(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(exact: bytes) -> str:
    return exact.decode("utf-8", "surrogatepass")


def _readable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()

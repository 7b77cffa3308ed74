"""The store in Django's own database, for projects without Redis: PostgreSQL, or SQLite for those of one host.

Promises the contract of ``stores/base.py``, as far as the database keeps what it has committed. On connections of its own: on
Django's, a lock that is taken in the middle of ``transaction.atomic()`` would be seen by nobody before the commit, and gone with
a rollback, and its renewal, in another thread, would wait for that transaction to end.

PostgreSQL: a function, in one statement and so one round trip, per operation (migrations/0001_postgresql.sql); times are the
server's. SQLite: the memory store's transactions, on the host's clock, in Django's file. SQLite has one writer: while a
transaction of the project has written and goes on, each operation of the store waits, and is given up after five seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import select
import sqlite3
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

import django
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.utils import ConnectionDoesNotExist

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import ConfigurationError, StoreRefused, StoreUnavailable
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
from celery_lockbeat.stores.sqlite import store as memory

__all__ = ["PostgresStore", "SQLiteStore", "open_database"]

#: A server that does not answer is given up after so many seconds, and one that cannot be connected to after as many more
#: (``OPTIONS["connect_timeout"]`` of the database). PostgreSQL's client would wait for ever.
TIMEOUT: Final = 2.0

#: Longer keys are cut and told apart by a digest: an index of PostgreSQL takes 2,700 bytes.
LONGEST_KEY: Final = 500

#: So many connections are kept while nobody uses them.
KEPT_IDLE: Final = 8

#: After so many operations of one store, at most so many rows of each table that are over are deleted.
PURGE_EVERY: Final = 256
PURGE_AT_MOST: Final = 1000

#: SQLSTATEs: what may be tried again at once, and what tells that the migration has not been applied.
TRY_AGAIN: Final = frozenset({b"40001", b"40P01"})
NOT_MIGRATED: Final = frozenset({b"42883", b"42P01"})
LATE: Final = b"LB001"

#: Of SQLSTATEs: what the role may not do, and who may not log in, or not there.
REFUSED: Final = (b"42501", b"28", b"3D000")

#: A login that fails has no SQLSTATE in psycopg, but these words of the server's, unless it speaks another language.
_NO_LOGIN: Final = re.compile(
    r"authentication failed|no password supplied|does not exist|no pg_hba\.conf entry|permission denied"
)


def open_database(alias: str, *, key_prefix: str) -> Store:
    """Make the store of one of Django's ``DATABASES``. Raises ConfigurationError."""
    setting = "lock_connection" if alias != "default" else "lock_driver"
    try:
        if not (apps.ready or apps.loading):
            # Celery sets Django up with the modules of the tasks, which a probe does without
            django.setup()
        if not apps.is_installed("celery_lockbeat.contrib.django"):
            raise ConfigurationError(
                "lock_driver is 'database'; allowed: with celery_lockbeat.contrib.django in INSTALLED_APPS"
            )
        wrapper = connections[alias]
    except ConnectionDoesNotExist as exc:
        allowed = f"with driver 'database', a name in DATABASES: {', '.join(connections)}"
        raise ConfigurationError(f"{setting} is {alias!r}; allowed: {allowed}") from exc
    except ImproperlyConfigured as exc:
        raise ConfigurationError(f"lock_driver is 'database'; allowed: with Django's settings ({exc})") from exc
    if wrapper.vendor == "postgresql":
        return PostgresStore(alias, key_prefix=key_prefix)
    if wrapper.vendor == "sqlite":
        return SQLiteStore(alias, key_prefix=key_prefix)
    raise ConfigurationError(
        f"lock_driver is 'database', and DATABASES[{alias!r}] {wrapper.vendor}; allowed: postgresql, sqlite"
    )


class PostgresStore(Store, LockStore, BeatStore, AnnouncementStore):
    """Locks and claims in the PostgreSQL that Django has as ``alias``; every operation costs one round trip.

    ``timeout``: seconds to wait for an answer.
    """

    driver: ClassVar[str] = "database"

    @property
    def locks(self) -> LockStore:  # type: ignore[override]
        return self

    @property
    def beats(self) -> BeatStore:  # type: ignore[override]
        return self

    @property
    def announcements(self) -> AnnouncementStore:  # type: ignore[override]
        return self

    def __init__(self, alias: str = "default", *, key_prefix: str = "lockbeat:", timeout: float = TIMEOUT) -> None:
        from django.db.backends.postgresql.psycopg_any import is_psycopg3  # noqa: PLC0415  it needs psycopg

        if not is_psycopg3:
            msg = "lock_driver is 'database', with psycopg2; allowed: psycopg 3, which can give up a server that hangs"
            raise ConfigurationError(msg)
        self._alias = alias
        self._prefix = key_prefix
        self._timeout = timeout
        #: connections that nobody uses
        self._idle: deque[Any] = deque()
        #: when an operation was begun, and the server's time (us) when it was carried out
        self._seen: tuple[float, int] | None = None
        self._operations = 0
        _stores.add(self)

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
        named, tried = (None if name is None else _exact(name) for name in (run, whole))
        described = description.encode("utf-8", "backslashreplace")
        fixed = (self._row_key(key), _exact(holder), named, tried, _us(ttl), _us(TOKEN_MEMORY), described)
        for _ in range(2):
            asked = monotonic()
            kind, *answer = self._call("lockbeat_acquire", *fixed, self._waits_until(asked))
            if kind == "finished":
                return Finished(whole=answer[0])
            if kind == "held":
                remaining, same_run, their_run, described = answer
                return Held(_readable(described), remaining / 1e6, same_run, _readable(their_run))
            self._seen = (asked, answer[0])
            if kind == "granted":
                return Lease(key, holder, run, answer[1], whole)
            # late: the answer took too long, or the server's clock was set forward; its time is known now
        raise self._unavailable("it takes longer than its time limit")

    def extend(
        self,
        leases: Sequence[tuple[Lease, float]],
        *,
        within: float = math.inf,
    ) -> list[bool | StoreUnavailable]:
        if not leases:
            return []
        told = [
            (self._row_key(lease.key).hex(), lease.token, _exact(lease.holder).hex(), _us(ttl)) for lease, ttl in leases
        ]
        answers: list[bool | StoreUnavailable] = self._call(
            "lockbeat_extend", json.dumps(told), _us(TOKEN_MEMORY), within=within
        )
        return answers

    def release(self, lease: Lease, *, hold_for: float = 0, remember_for: float = 0, whole: bool = False) -> bool:
        mark = lease.whole if whole else lease.run
        released: bool = self._call(
            "lockbeat_release",
            self._row_key(lease.key),
            lease.token,
            _exact(lease.holder),
            None if mark is None else _exact(mark),
            _us(hold_for),
            _us(remember_for),
            _us(TOKEN_MEMORY),
        )
        return released

    def free(self, key: str, *, holder: str) -> bool:
        freed: bool = self._call("lockbeat_free", self._row_key(key), _exact(holder), _us(TOKEN_MEMORY))
        return freed

    def _waits_until(self, asked: float) -> int | None:
        """The server's time until which an answer to what is asked now has somebody who waits for it; None: not known."""
        if self._seen is None:
            return None
        then, server_us = self._seen
        return server_us + _us((asked - then) * 1.01 + self._timeout)

    # -- beats ---------------------------------------------------------------------------------------------------------

    def join(self, app: str, replica: str, *, cold_start: float | None = None) -> Joined:
        earlier = None if cold_start is None else round(cold_start * 1e6)
        started, now = self._call("lockbeat_join", self._row_key(app), replica, _us(ALIVE), earlier)
        return Joined(started / 1e6, now / 1e6)

    def list_entries(
        self,
        app: str,
        replica: str,
        entries: Sequence[tuple[str, EntryState]],
        *,
        removed: Sequence[str] = (),
        complete: bool = False,
    ) -> list[EntryState]:
        told = [(_short(name), state.total_run_count, _exact(state.last_run_at).hex()) for name, state in entries]
        gone = [_short(name) for name in removed]
        states = self._call(
            "lockbeat_list", self._row_key(app), replica, _us(ALIVE), json.dumps(told), json.dumps(gone), complete
        )
        return [_state(state) for state in states]

    def claim(self, app: str, replica: str, claims: Sequence[Claim], *, ttl: float, skip: int = 0) -> Claims:
        told = [
            (
                _short(claim.entry),
                _exact(claim.entry).hex(),
                claim.state.total_run_count,
                _exact(claim.state.last_run_at).hex(),
                claim.task_id,
                json.dumps(claim.details),
            )
            for claim in claims
        ]
        now, listed, until, refusals, overdue = self._call(
            "lockbeat_claim",
            self._row_key(app),
            replica,
            json.dumps(told),
            _us(ttl),
            _us(ALIVE),
            _us(STATE_MEMORY),
            BACKLOG,
            OVERDUE_AT_ONCE,
            skip,
        )
        return Claims(
            [None if refusal is None else _state(refusal) for refusal in refusals],
            [Overdue(task_id, _text(name), run, json.loads(details)) for task_id, name, run, details in overdue],
            None if until is None else until / 1e6,
            now / 1e6,
            listed,
        )

    def take_over(self, app: str, replica: str, task_ids: Sequence[str], *, ttl: float) -> list[bool]:
        taken = self._call("lockbeat_take_over", self._row_key(app), replica, json.dumps(task_ids), _us(ttl))
        return [task_id in taken for task_id in task_ids]

    def settle(
        self, app: str, replica: str, published: Sequence[tuple[str, str]], *, handed_over: Sequence[str] = ()
    ) -> list[bool]:
        ids = [task_id for task_id, _ in published]
        settled = self._call("lockbeat_settle", self._row_key(app), replica, json.dumps(ids), json.dumps(handed_over))
        return [task_id in settled for task_id in ids]

    def leave(self, app: str, replica: str) -> None:
        self._call("lockbeat_leave", self._row_key(app), replica)

    # -- announcements -------------------------------------------------------------------------------------------------

    def announce(self, app: str, kind: str, told: Mapping[str, str], *, ttl: float) -> None:
        rows = [(_short(name), _exact(name).hex(), text) for name, text in told.items()]
        self._call("lockbeat_announce", self._row_key(app), kind, json.dumps(rows), _us(ttl))

    def announced(
        self, app: str, kind: str, names: Sequence[str] | None = None, *, limit: int = LISTED_AT_MOST
    ) -> list[Announcement]:
        asked = None if names is None else json.dumps([_short(name) for name in names])
        rows = self._call("lockbeat_announced_of", self._row_key(app), kind, asked, limit)
        return [Announcement(_text(name), told, first / 1e6, silent / 1e6) for name, told, first, silent in rows]

    # -- operators -----------------------------------------------------------------------------------------------------

    def held(self, key: str | None = None, *, limit: int = LISTED_AT_MOST) -> list[LiveLock]:
        prefix = self._exact_key("")
        told = self._call("lockbeat_locks", None if key is None else self._row_key(key), prefix, limit)
        return [
            LiveLock(_named(name, len(prefix)), _text(holder), _readable(description), _text(run), token, left / 1e6)
            for name, holder, description, run, token, left in told
        ]

    def status(self, app: str, *, limit: int = LISTED_AT_MOST) -> Beats:
        replicas, entries, overdue = self._call("lockbeat_beats", self._row_key(app), limit)
        return Beats(
            [
                Replica(name, math.inf if silent is None else silent / 1e6, frozenset(map(_named, listed)), complete)
                for name, silent, listed, complete in replicas
            ],
            [
                StoredEntry(_named(name), EntryState(count, _text(last_run_at)), pending)
                for name, count, last_run_at, pending in entries
            ],
            overdue,
        )

    def _row_key(self, key: str) -> bytes:
        return _cut(self._exact_key(key))

    def _exact_key(self, key: str) -> bytes:
        # with its length in front, no prefix and key read like another pair
        return _exact(f"{len(self._prefix)} {self._prefix}{key}")

    # -- connections ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def twin(self) -> PostgresStore:
        return PostgresStore(self._alias, key_prefix=self._prefix, timeout=self._timeout)

    def leave_the_parents(self) -> object:
        """Start anew in a forked child; returns what must not be touched there."""
        parents, self._idle = self._idle, deque()
        return parents

    def check(self) -> None:
        try:
            self._ask("lockbeat_purge", (0,), self._timeout)
        except StoreRefused as exc:
            raise ConfigurationError(str(exc)) from exc

    def _call(self, function: str, *args: bytes | str | int | None, within: float = math.inf) -> Any:
        """Call one function; what was not carried out for another's sake is tried once more. Raises StoreUnavailable."""
        answer = self._ask(function, args, min(within, self._timeout))
        self._operations += 1
        if self._operations % PURGE_EVERY == 0:
            with contextlib.suppress(StoreUnavailable):
                self._ask("lockbeat_purge", (PURGE_AT_MOST,), self._timeout)
        return answer

    def _ask(self, function: str, args: Sequence[bytes | str | int | None], within: float) -> Any:
        from psycopg import Error  # noqa: PLC0415  not everybody's database is PostgreSQL

        gives_up = time.monotonic() + within
        while True:
            connection, known = self._lend()
            try:
                state, answer = _carry_out(connection.pgconn, function, args, time.monotonic() + within)
            except BaseException as exc:
                # whatever it was, an answer may be on its way that nobody must take for another's
                connection.close()
                if not isinstance(exc, (Error, OSError)):
                    raise
                if known and not isinstance(exc, TimeoutError):
                    # the server has closed it meanwhile, and so, most likely, the others
                    self.close()
                    continue
                raise self._unavailable(f"{type(exc).__name__}: {exc}") from exc
            if len(self._idle) < KEPT_IDLE:
                self._idle.append(connection)
            else:
                connection.close()
            if not state:
                return json.loads(answer)
            if state == LATE:
                return ["late", int(answer)]
            if state not in TRY_AGAIN or time.monotonic() > gives_up:
                raise self._told(state, answer.decode("utf-8", "replace"))

    def _told(self, state: bytes, error: str) -> StoreUnavailable:
        if state in NOT_MIGRATED:
            return self._refused(f"{error}; has 'manage.py migrate lockbeat' been run?")
        return self._refused(error) if state.startswith(REFUSED) else self._unavailable(error)

    def _lend(self) -> tuple[Any, bool]:
        """Return a connection of ours, and whether it has been used before. Raises StoreUnavailable."""
        with contextlib.suppress(IndexError):
            return self._idle.pop(), True
        try:
            return self._connect(), False
        except Exception as exc:
            tell = self._refused if _NO_LOGIN.search(str(exc)) else self._unavailable
            raise tell(f"{type(exc).__name__}: {exc}") from exc

    def _connect(self) -> Any:
        wrapper = connections[self._alias].copy()
        options = wrapper.settings_dict["OPTIONS"]
        # a connection of the project's pool is not ours alone
        options.pop("pool", None)
        options.setdefault("connect_timeout", math.ceil(self._timeout))
        connection = wrapper.get_new_connection(wrapper.get_connection_params())
        role = options.get("assume_role")
        if role:
            state, error = _carry_out(
                connection.pgconn, "set_config", ("role", role, False), time.monotonic() + self._timeout
            )
            if state:
                connection.close()
                raise ConnectionError(error.decode())
        return connection

    def _unavailable(self, why: str) -> StoreUnavailable:
        return StoreUnavailable(f"{self._where} does not answer: {why.strip()}")

    def _refused(self, why: str) -> StoreRefused:
        return StoreRefused(f"{self._where} refuses us: {why.strip()}")

    @property
    def _where(self) -> str:
        settings = connections[self._alias].settings_dict
        place = f"{settings['HOST'] or 'localhost'}:{settings['PORT'] or 5432}"
        return f"the database {settings['NAME']} at {place} (DATABASES[{self._alias!r}])"


def _carry_out(
    pgconn: Any, function: str, args: Sequence[bytes | str | int | None], deadline: float
) -> tuple[bytes, bytes]:
    """Call a function; return the SQLSTATE and message of its error, or b"" and its answer. Raises TimeoutError, psycopg's errors.

    By psycopg's interface to libpq, for its cursors wait for a server that hangs as long as it hangs. As an own statement, outside
    of any transaction.
    """
    from psycopg.pq import DiagnosticField, ExecStatus  # noqa: PLC0415  as above

    placeholders = ", ".join(f"${n}" for n in range(1, len(args) + 1))
    formats = [int(isinstance(arg, bytes)) for arg in args]
    pgconn.send_query_params(
        f"SELECT {function}({placeholders})".encode(), [_given(arg) for arg in args], None, formats
    )
    while pgconn.flush():
        _wait(pgconn, select.POLLIN | select.POLLOUT, deadline)
        pgconn.consume_input()
    results = []
    while True:
        while pgconn.is_busy():
            _wait(pgconn, select.POLLIN, deadline)
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            break
        results.append(result)
    (result,) = results
    if result.status == ExecStatus.TUPLES_OK:
        return b"", result.get_value(0, 0) or b""
    state = result.error_field(DiagnosticField.SQLSTATE) or b"?"
    if state.startswith((b"08", b"57P")) or state == b"?":
        raise ConnectionError((result.error_message or b"").decode("utf-8", "replace"))
    return state, result.error_field(DiagnosticField.MESSAGE_PRIMARY) or b""


def _wait(pgconn: Any, events: int, deadline: float) -> None:
    poller = select.poll()
    poller.register(pgconn.socket, events)
    if not poller.poll(max(0, math.ceil((deadline - time.monotonic()) * 1000))):
        raise TimeoutError("no answer in time")


def _given(arg: bytes | str | int | None) -> bytes | None:
    return arg if arg is None or isinstance(arg, bytes) else str(arg).encode()


def _us(seconds: float) -> int:
    """Round up: a lease must not end before its holder expects."""
    return math.ceil(seconds * 1_000_000)


def _cut(exact: bytes) -> bytes:
    """Keep what is short, and cut what is long; one to one, by the first byte."""
    if len(exact) <= LONGEST_KEY:
        return b"=" + exact
    return b"#" + exact[:64] + hashlib.sha256(exact).digest()


def _short(name: str) -> str:
    return _cut(_exact(name)).hex()


def _exact(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(exact: str) -> str:
    return bytes.fromhex(exact).decode("utf-8", "surrogatepass")


def _named(cut: str, skip: int = 0) -> str:
    """Read what ``_cut`` has written, after so many bytes; what was too long ends where it was cut."""
    exact = bytes.fromhex(cut)
    if exact[:1] == b"=":
        return exact[1 + skip :].decode("utf-8", "surrogatepass")
    return exact[1 + skip : 65].decode("utf-8", "replace")


def _readable(exact: str) -> str:
    return bytes.fromhex(exact).decode("utf-8", "replace")


def _state(told: tuple[int, str]) -> EntryState:
    count, last_run_at = told
    return EntryState(count, _text(last_run_at))


class SQLiteStore(memory.MemoryStore):
    """Locks and claims in the SQLite file that Django has as ``alias``; who is alive is not known."""

    driver: ClassVar[str] = "database"

    def __init__(
        self,
        alias: str = "default",
        *,
        key_prefix: str = "lockbeat:",
        timeout: float = 5.0,
        clock: Callable[[], float] = monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        wrapper = connections[alias]
        if wrapper.is_in_memory_db():
            allowed = "a file, or PostgreSQL (and in tests lockbeat_driver = 'memory')"
            raise ConfigurationError(
                f"lock_driver is 'database', and DATABASES[{alias!r}] is in memory; allowed: {allowed}"
            )
        self._alias = alias
        super().__init__(wrapper.settings_dict["NAME"], key_prefix=key_prefix, timeout=timeout, clock=clock, wall=wall)
        self._watched = (str(self._path),)

    def _connect(self) -> sqlite3.Connection:
        self._files = memory._files(*self._watched)
        wrapper = connections[self._alias].copy()
        # SQLite would make the file
        if not self._files:
            raise FileNotFoundError(f"there is no {self._path}")
        wrapper.settings_dict["OPTIONS"]["timeout"] = 0
        connection: sqlite3.Connection = wrapper.get_new_connection(wrapper.get_connection_params())
        connection.isolation_level = None
        try:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'lockbeat_host'").fetchone():
                    raise StoreRefused(
                        f"the database {self._path} (DATABASES[{self._alias!r}]) has no such tables; has 'manage.py migrate"
                        " lockbeat' been run?"
                    )
                self._begin_a_new_boot(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def check(self) -> None:
        try:
            super().check()
        except StoreRefused as exc:
            raise ConfigurationError(str(exc)) from exc

    @property
    def _process(self) -> int:
        return memory.NOBODY

    def _sees(self, process: int) -> bool:  # noqa: ARG002  as in the memory store
        return True


# What a forked child has of its parent's connections it must neither use nor close.
_stores: weakref.WeakSet[PostgresStore] = weakref.WeakSet()
_inherited: list[object] = []


def _leave_the_parents() -> None:
    _inherited.extend([store.leave_the_parents() for store in _stores])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_the_parents)

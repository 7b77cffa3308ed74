"""The store in Django's own database, for projects without Redis: PostgreSQL, or SQLite for those of one host.

Promises the contract of ``stores/base``, as far as the database keeps what it has committed. On connections of its own: on
Django's, a lock that is taken in the middle of ``transaction.atomic()`` would be seen by nobody before the commit, and gone with
a rollback, and its renewal, in another thread, would wait for that transaction to end.

PostgreSQL: a function, in one statement and so one round trip, per operation (migrations/0001_postgresql.sql); times are the
server's. SQLite: the memory store's transactions, on the host's clock, in Django's file. SQLite has one writer: while a
transaction of the project has written and goes on, each operation of the store waits, and is given up after five seconds.
"""

from __future__ import annotations

import copy
import re
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Final, TypeVar

import django
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.utils import ConnectionDoesNotExist

from celery_lockbeat.clock import monotonic
from celery_lockbeat.contrib.django.postgresql.announcements import PostgresAnnouncements
from celery_lockbeat.contrib.django.postgresql.beats import PostgresBeats
from celery_lockbeat.contrib.django.postgresql.client import Client
from celery_lockbeat.contrib.django.postgresql.controls import PostgresControls
from celery_lockbeat.contrib.django.postgresql.formats import check_format, check_migrations
from celery_lockbeat.contrib.django.postgresql.journal import PostgresJournal
from celery_lockbeat.contrib.django.postgresql.locks import PostgresLocks
from celery_lockbeat.exceptions import ConfigurationError, StoreRefused, StoreUnavailable
from celery_lockbeat.stores.base import Store
from celery_lockbeat.stores.sqlite.database import Database, files_at
from celery_lockbeat.stores.sqlite.store import TABLES, SQLStore

__all__ = ["PostgresStore", "SQLiteStore", "open_database"]

#: A server that does not answer is given up after so many seconds, and one that cannot be connected to after as many more
#: (``OPTIONS["connect_timeout"]`` of the database). PostgreSQL's client would wait for ever.
TIMEOUT: Final = 2.0

#: What SQLite says of a table that is not there.
_NO_TABLE: Final = re.compile(r"no such table: (.*)")

_CREATE: Final = re.compile(r"\s*CREATE TABLE IF NOT EXISTS (\w+)")

#: The tables that all migrations of this release have made, the first first.
_MADE: Final = (
    "lockbeat_host",
    *(found[1] for part in TABLES for sql in part.schema if (found := _CREATE.match(sql))),
)

_T = TypeVar("_T")


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


class PostgresStore(Store):
    """The PostgreSQL that Django has as ``alias``; every operation costs one round trip.

    ``timeout``: seconds to wait for an answer.
    """

    driver: ClassVar[str] = "database"

    def __init__(self, alias: str = "default", *, key_prefix: str = "lockbeat:", timeout: float = TIMEOUT) -> None:
        self._share(Client(alias, prefix=key_prefix, timeout=timeout))

    def _share(self, client: Client) -> None:
        self.client = client
        self.locks = PostgresLocks(client)
        self.beats = PostgresBeats(client)
        self.controls = PostgresControls(client)
        self.announcements = PostgresAnnouncements(client)
        self.journal = PostgresJournal(client)

    def check(self) -> None:
        try:
            self.client.ask("lockbeat_clean", (0,), self.client.timeout)
            check_migrations(self.client)
            check_format(self.client)
        except StoreRefused as exc:
            raise ConfigurationError(str(exc)) from exc

    def twin(self) -> PostgresStore:
        twin = copy.copy(self)
        twin._share(self.client.twin())
        return twin

    def close(self) -> None:
        self.client.close()


class SQLiteStore(SQLStore):
    """The SQLite file that Django has as ``alias``; who is alive is not known."""

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
        if connections[alias].is_in_memory_db():
            allowed = "a file, or PostgreSQL (and in tests lockbeat_driver = 'memory')"
            raise ConfigurationError(
                f"lock_driver is 'database', and DATABASES[{alias!r}] is in memory; allowed: {allowed}"
            )
        super().__init__(DjangosSQLite(alias, prefix=key_prefix, timeout=timeout, clock=clock, wall=wall))

    def check(self) -> None:
        try:
            super().check()
        except StoreRefused as exc:
            raise ConfigurationError(str(exc)) from exc


class DjangosSQLite(Database):
    """Django's own file, on a connection that is made as Django makes it, with the tables that a migration has made."""

    def __init__(
        self, alias: str, *, prefix: str, timeout: float, clock: Callable[[], float], wall: Callable[[], float]
    ) -> None:
        # made absolute now: a daemon changes its working directory later
        place = Path(connections[alias].settings_dict["NAME"]).absolute()
        super().__init__(place, TABLES, kind="database", prefix=prefix, timeout=timeout, clock=clock, wall=wall)
        self._alias = alias

    def atomically(self, work: Callable[[sqlite3.Connection, float], _T]) -> _T:
        try:
            return super().atomically(work)
        except StoreUnavailable as exc:
            missing = _NO_TABLE.match(str(exc.__cause__))
            if missing is None:
                raise
            # migrated back while it was open
            raise self._not_migrated(f"has no such table as {missing[1]}") from exc

    def _not_migrated(self, why: str) -> StoreRefused:
        return StoreRefused(
            f"the database {self.place} (DATABASES[{self._alias!r}]) {why}; has 'manage.py migrate lockbeat' been run?"
        )

    def connect(self) -> sqlite3.Connection:
        self.files = files_at(*self.watched)
        wrapper = connections[self._alias].copy()
        # SQLite would make the file
        if not self.files:
            raise FileNotFoundError(f"there is no {self.place}")
        wrapper.settings_dict["OPTIONS"]["timeout"] = 0
        connection: sqlite3.Connection = wrapper.get_new_connection(wrapper.get_connection_params())
        connection.isolation_level = None
        try:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
                # one part of the store looks at the tables of another
                for table in _MADE:
                    if table not in there:
                        raise self._not_migrated(f"has no such table as {table}")
                self.begin_a_new_boot(connection)
        except BaseException:
            connection.close()
            raise
        return connection

"""Django's database, as django-celery-beat's tables are asked for there, and what becomes of it while it is away.

Promises: in PostgreSQL no answer is waited for longer than its caller has time; a driver of another database that waits for
ever has to be told not to. A connection that the server has closed meanwhile is made anew once. That the database is away is
said once, and that it is back; one that hangs takes no more than a few parts of a beat's time.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from django.db import connections, router
from django.db.utils import DatabaseError, InterfaceError
from django.utils import timezone

from celery_lockbeat.exceptions import StoreUnavailable

__all__ = ["ANSWERS_WITHIN", "Database", "DatabaseAway", "Outage"]

logger: Final = logging.getLogger("celery_lockbeat.beat")

#: Seconds that Django's database may take to answer, or to let us in, until it counts as away.
ANSWERS_WITHIN: Final = 2.0

#: Seconds until a database that is away is asked again, at least.
ASK_AGAIN: Final = 1.0

#: What SQLite, PostgreSQL, and MySQL or Oracle, say of a table that is not there.
_NO_TABLE: Final = re.compile(
    r"no such table|relation .* does not exist|table .*(?:doesn't|does not) exist", re.IGNORECASE
)

#: At most how long to sleep until one begins anew that was in another's way, seconds.
PAUSE: Final = 0.02

_T = TypeVar("_T")


class DatabaseAway(StoreUnavailable):
    """Django's database, which may be another than the store of the ticks, does not answer."""


class Database:
    """The database of django-celery-beat's tables: ``model`` is its PeriodicTask, ``changes`` its PeriodicTasks."""

    def __init__(self, model: Any, changes: Any) -> None:
        self.model: Final = model
        self._changes = changes

    @property
    def alias(self) -> str:
        """Its name in ``DATABASES``."""
        # a replica of the database may be late
        return str(router.db_for_write(self.model))

    @property
    def rows(self) -> Any:
        """All rows."""
        return self.model.objects.using(self.alias)

    def last_change(self) -> Any:
        """Return when any row was changed last, as django-celery-beat notes it; None: never."""
        noted = self._changes.objects.using(self.alias)
        return noted.filter(ident=1).values_list("last_update", flat=True).first()

    def note_a_change(self) -> None:
        """Let all beats know that a row has changed."""
        # not by update_changed(), which commits a transaction: _CutOff sees statements only
        noted, now = self._changes.objects.using(self.alias), timezone.now()
        if not noted.filter(ident=1).update(last_update=now):
            noted.create(ident=1, last_update=now)

    def query(self, ask: Callable[[], _T], *, within: float = math.inf) -> _T:
        """Call ``ask``; once more on a new connection, for the old one may have been closed. Raises DatabaseAway.

        ``within``: the seconds that each of its answers may take.
        """
        connection = _impatient(self.alias)
        gives_up, again = time.monotonic() + ANSWERS_WITHIN, True
        while True:
            was_open, cut_off = connection.connection is not None, _CutOff(connection, within)
            try:
                with connection.execute_wrapper(cut_off):
                    return ask()
            except (DatabaseError, InterfaceError) as exc:
                connection.close()
                if _is_in_anothers_way(connection, exc) and time.monotonic() < gives_up:
                    time.sleep(random.uniform(0, PAUSE))  # noqa: S311  not a secret
                elif again and was_open and not cut_off.done:
                    again = False
                else:
                    why = f"no answer within {within:g} s" if cut_off.done else f"{type(exc).__name__}: {exc}"
                    raise _away(why) from exc


def _away(why: str) -> DatabaseAway:
    if _NO_TABLE.search(why):
        why = f"{why.splitlines()[0]} (has 'manage.py migrate' been run?)"
    return DatabaseAway(f"Django's database does not answer: {why.strip()}")


def _is_in_anothers_way(connection: Any, exc: Exception) -> bool:
    """Whether SQLite refuses at once, timeout or not, for two have read in a transaction and both want to write: one has to begin anew."""
    return connection.vendor == "sqlite" and "database is locked" in str(exc)


class Outage:
    """Whether Django's database is away, and when to ask it again."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: float | None = None  # None: it is there
        self._ask_again_at = 0.0

    @property
    def lasts(self) -> bool:
        """Whether it is away."""
        return self._since is not None

    def lets_ask(self, now: float) -> bool:
        """Whether it is there, or it is time to find out."""
        return self._since is None or now >= self._ask_again_at

    def go_on(self, exc: DatabaseAway, asked: float) -> None:
        """Note that it does not answer what it was ``asked`` at that moment."""
        now = self._clock()
        if self._since is None:
            self._since = now
            logger.error("%s: entries go on as they were when it last did, and changes count when it is back", exc)
        # one that hangs must not take more than a few parts of the time
        self._ask_again_at = now + max(ASK_AGAIN, 2 * (now - asked))

    def end(self) -> None:
        """Note that it answers."""
        if self._since is not None:
            logger.info("Django's database is back after %.0f s, and its changes count", self._clock() - self._since)
            self._since = None


class _CutOff:
    """Ends an answer that does not come in time, by the only way there is: the connection's other end is gone then."""

    def __init__(self, connection: Any, within: float) -> None:
        self._connection, self._within = connection, within
        self.done = False

    def __call__(self, execute: Any, sql: Any, params: Any, many: Any, context: Any) -> Any:
        if math.isinf(self._within) or self._connection.vendor != "postgresql":
            return execute(sql, params, many, context)
        with self._connection.wrap_database_errors:
            number = self._connection.connection.fileno()
        with socket.socket(fileno=os.dup(number)) as ours:
            timer = threading.Timer(self._within, self._cut, [ours])
            timer.daemon = True
            timer.start()
            try:
                return execute(sql, params, many, context)
            finally:
                timer.cancel()

    def _cut(self, ours: socket.socket) -> None:
        self.done = True
        # a descriptor of our own: the number may be another connection's by now
        with contextlib.suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)


def _impatient(alias: str) -> Any:
    """Return this thread's connection to a database, which gives up one that does not let it in.

    With settings of its own: they are one for all threads otherwise.
    """
    connection = connections[alias]
    if connection.vendor == "postgresql" and "connect_timeout" not in connection.settings_dict["OPTIONS"]:
        connection.settings_dict = {
            **connection.settings_dict,
            "OPTIONS": {**connection.settings_dict["OPTIONS"], "connect_timeout": math.ceil(ANSWERS_WITHIN)},
        }
    return connection

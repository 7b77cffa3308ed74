"""Connections of our own to the PostgreSQL that Django has under an alias, and the calls of one function each.

Promises: an answer is there, or given up, in time, though the server hangs; what was broken off leaves no answer for the next call.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import select
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from django.db import connections

from celery_lockbeat.contrib.django.postgresql.names import cut, exact
from celery_lockbeat.exceptions import ConfigurationError, StoreRefused, StoreUnavailable
from celery_lockbeat.process import leaves_its_parents

__all__ = ["Client"]

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


class Client:
    """The way to one of Django's databases; see :class:`~celery_lockbeat.contrib.django.store.PostgresStore`."""

    def __init__(self, alias: str, *, prefix: str, timeout: float) -> None:
        from django.db.backends.postgresql.psycopg_any import is_psycopg3  # noqa: PLC0415  it needs psycopg

        if not is_psycopg3:
            msg = "lock_driver is 'database', with psycopg2; allowed: psycopg 3, which can give up a server that hangs"
            raise ConfigurationError(msg)
        self.timeout = timeout
        self._alias = alias
        self._prefix = prefix
        #: connections that nobody uses
        self._idle: deque[Any] = deque()
        self._operations = 0
        leaves_its_parents(self)

    def twin(self) -> Client:
        """Return a client of the same database, without a connection to it."""
        return Client(self._alias, prefix=self._prefix, timeout=self.timeout)

    def row_key(self, key: str) -> bytes:
        """Write a key, or an app's name, as it stands in a row."""
        return cut(self.exact_key(key))

    def exact_key(self, key: str) -> bytes:
        """Write the same, however long it is."""
        # with its length in front, no prefix and key read like another pair
        return exact(f"{len(self._prefix)} {self._prefix}{key}")

    def close(self) -> None:
        """Close the connections that nobody uses now."""
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def leave_the_parents(self) -> object:
        """Start anew in a forked child; returns what must not be touched there."""
        parents, self._idle = self._idle, deque()
        return parents

    def call(self, function: str, *args: bytes | str | float | None, within: float = math.inf) -> Any:
        """Call one function; what was not carried out for another's sake is tried once more. Raises StoreUnavailable."""
        answer = self.ask(function, args, min(within, self.timeout))
        self._operations += 1
        if self._operations % PURGE_EVERY == 0:
            with contextlib.suppress(StoreUnavailable):
                self.ask("lockbeat_clean", (PURGE_AT_MOST,), self.timeout)
        return answer

    def ask(self, function: str, args: Sequence[bytes | str | float | None], within: float) -> Any:
        """Call one function, within so many seconds for each try. Raises StoreUnavailable."""
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
                raise self.unavailable(f"{type(exc).__name__}: {exc}") from exc
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
            return StoreRefused(f"{self.where} refuses us: {error.strip()}; has 'manage.py migrate lockbeat' been run?")
        return self._refused(error) if state.startswith(REFUSED) else self.unavailable(error)

    def _lend(self) -> tuple[Any, bool]:
        """Return a connection of ours, and whether it has been used before. Raises StoreUnavailable."""
        with contextlib.suppress(IndexError):
            return self._idle.pop(), True
        try:
            return self._connect(), False
        except Exception as exc:
            tell = self._refused if _NO_LOGIN.search(str(exc)) else self.unavailable
            raise tell(f"{type(exc).__name__}: {exc}") from exc

    def _connect(self) -> Any:
        wrapper = connections[self._alias].copy()
        options = wrapper.settings_dict["OPTIONS"]
        # a connection of the project's pool is not ours alone
        options.pop("pool", None)
        options.setdefault("connect_timeout", math.ceil(self.timeout))
        connection = wrapper.get_new_connection(wrapper.get_connection_params())
        role = options.get("assume_role")
        if role:
            state, error = _carry_out(
                connection.pgconn, "set_config", ("role", role, False), time.monotonic() + self.timeout
            )
            if state:
                connection.close()
                raise ConnectionError(error.decode())
        return connection

    def unavailable(self, why: str) -> StoreUnavailable:
        """Say why there is no answer."""
        return StoreUnavailable(f"{self.where} does not answer: {why.strip()}")

    def _refused(self, why: str) -> StoreRefused:
        return StoreRefused(f"{self.where} refuses us: {why.strip()}")

    @property
    def where(self) -> str:
        """Say where it is, without who asks there."""
        settings = connections[self._alias].settings_dict
        place = f"{settings['HOST'] or 'localhost'}:{settings['PORT'] or 5432}"
        return f"the database {settings['NAME']} at {place} (DATABASES[{self._alias!r}])"


def _carry_out(
    pgconn: Any, function: str, args: Sequence[bytes | str | float | None], deadline: float
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


def _given(arg: bytes | str | float | None) -> bytes | None:
    return arg if arg is None or isinstance(arg, bytes) else str(arg).encode()

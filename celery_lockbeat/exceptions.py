"""Everything that celery-lockbeat raises. One base; a child exists only where someone catches it alone.

Promise: each exception survives pickling (prefork) and Celery's JSON result serializer, which rebuilds an
exception from its class and ``args``: the message is the only positional argument.
"""

from __future__ import annotations

from celery.exceptions import Ignore, ImproperlyConfigured
from click import ClickException

__all__ = [
    "ConfigurationError",
    "LockLost",
    "LockNotAcquired",
    "LockbeatError",
    "StoreRefused",
    "StoreUnavailable",
    "TaskSkipped",
    "UnreadableKey",
]


class LockbeatError(Exception):
    """Base of all exceptions of celery-lockbeat."""


class ConfigurationError(LockbeatError, ImproperlyConfigured, ClickException):  # type: ignore[misc]
    """Raised when an option, a setting or a URL is wrong; names it, its value and what is allowed.

    Raised at import or at start-up, never first at a run. Also a :class:`celery.exceptions.ImproperlyConfigured`,
    as Celery users expect of a wrong setting, and what Celery's command line shows in one line: it is made with click.
    """


class StoreUnavailable(LockbeatError):
    """Raised when the store does not answer in time, or not at all. Nothing ran without a lock."""


class StoreRefused(StoreUnavailable):
    """Raised when the store answers, and says no: a wrong password, a missing permission, TLS on one side only.

    At the start of a worker or a beat this is a ConfigurationError. To a run, or a beat, that meets it later it is a store
    that does not answer; but whoever falls back to another store does not: this one is in reach, and others use it.
    """


class UnreadableKey(StoreUnavailable):
    """Raised when a key of the store holds what no store has written; names the key.

    To a task it is a store that does not answer. Whoever falls back to another store does not: this one is in reach, and
    others may hold there what this key should tell.
    """


class LockNotAcquired(LockbeatError):
    """Raised when a lock is held by another and the caller asked not to skip (``lock_if_held="fail"``).

    ``key`` is the lock's key, ``holder`` says who holds it (host, pid, task), as far as the store knows.
    """

    def __init__(self, message: str = "", *, key: str | None = None, holder: str | None = None) -> None:
        super().__init__(message)
        self.key = key
        self.holder = holder


class LockLost(LockbeatError):
    """Raised when a lock that was held is ours no more: its lease ran out, or the store says that it is another's."""


class TaskSkipped(LockbeatError, Ignore):  # type: ignore[misc]
    """Raised in place of a run: its key is held (``reason="locked"``) or it has run already (``"duplicate"``).

    Also a :class:`celery.exceptions.Ignore`, so that a worker treats a skipped run as answered.
    """

    def __init__(
        self, message: str = "", *, reason: str = "locked", key: str | None = None, holder: str | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.key = key
        self.holder = holder

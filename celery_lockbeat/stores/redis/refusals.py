"""What a server that does not do what is asked says: whether it will in a moment, and why in its user's terms.

No password is in what is raised or told here.
"""

from __future__ import annotations

import re
from typing import Any, Final

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.sentinel import MasterNotFoundError

from celery_lockbeat.stores.redis.scripts import Call

__all__ = ["TooFewReplicas", "WrongServer", "for_now", "lacks_replicas", "refuses", "why"]

#: Refusals that may be none in a moment; redis-py has no class for those that are told by their first word.
_FOR_NOW: Final = (BusyLoadingError, ClusterDownError, ReadOnlyError, TryAgainError, AskError)
_FOR_NOW_TOO: Final = ("BUSY ", "NOREPLICAS ", "UNBLOCKED ")

#: Words of a server that says no to us, and will in a moment too. In a script, and before Redis 7, some have no class.
_NO: Final = re.compile(
    r"NOPERM|NOAUTH|WRONGPASS|DENIED|ACL failure|can't run this command|(?i:unknown (redis )?command)|DB index|'auth' command"
    r"|SELECT is not allowed|cluster support disabled|no password is set"
)

#: Of OpenSSL's reasons: not that a connection broke off, but that one of the two does not want the other.
_NO_TLS: Final = re.compile(r"\[SSL: \w*(CERTIFICATE|ALERT|UNSUPPORTED_PROTOCOL)")


class TooFewReplicas(Exception):  # noqa: N818  as the exceptions of the package are named
    """Raised when fewer replicas than asked for have confirmed a write; ``args`` has their number."""


class WrongServer(RedisError):  # noqa: N818  as above
    """Raised when what listens is no Redis, or when one side speaks TLS and the other does not."""


def refuses(exc: Exception) -> bool:
    """Whether a server has said no to us: who we are, what we may do, or how we speak is not to its liking."""
    if isinstance(exc, (AuthenticationError, NoPermissionError, WrongServer)):
        return True
    said = str(exc)
    if isinstance(exc, ResponseError):
        return _NO.search(said) is not None
    return _NO_TLS.search(said) is not None or "AuthenticationError" in _said_by_sentinels(exc)


def for_now(answer: Any) -> bool:
    """Whether it is a refusal that may be none in a moment."""
    return isinstance(answer, _FOR_NOW) or (isinstance(answer, ResponseError) and str(answer).startswith(_FOR_NOW_TOO))


def lacks_replicas(answer: Any) -> bool:
    """Whether fewer replicas than asked for have a write, by the server's own word or by their count."""
    refused = isinstance(answer, ResponseError) and str(answer).startswith("NOREPLICAS ")
    return refused or isinstance(answer, TooFewReplicas)


def why(exc: Exception, call: Call | None = None, min_replicas: int = 0) -> str:
    """Say why a call has no answer, in the terms of whoever looks after the server."""
    if isinstance(exc, TooFewReplicas):
        return f"only {exc.args[0]} of lockbeat_redis_min_replicas={min_replicas} replicas confirmed the write"
    told = _in_short(exc)
    if isinstance(exc, MovedError):
        return f"{told}: it is a node of a Cluster, for which lockbeat_redis_options needs 'cluster': True"
    if isinstance(exc, OutOfMemoryError):
        return f"{told}: it is full (maxmemory)"
    if call and "can't run this command" in told and (line := re.search(r"user_script:(\d+)", told)):
        # Redis 7.0 tells where, and not what
        return f"{told}: the user has no permission for {call.script.command_at(int(line[1]))}"
    return told


def _in_short(exc: Exception) -> str:
    told = f"{type(exc).__name__}: {exc}"
    if isinstance(exc, WrongServer):
        return str(exc)
    if isinstance(exc, AuthenticationError) and ("HELLO must be" in told or "Authentication required" in told):
        return "NOAUTH: it asks for a password, and none is given"
    errors = _said_by_sentinels(exc)
    return f"{told.partition(' : <')[0]} ({', '.join(sorted(errors))})" if errors else told


def _said_by_sentinels(exc: Exception) -> set[str]:
    """Read of an error that no Sentinel knows the primary which errors they ended in; redis-py tells them there alone."""
    return set(re.findall(r"> - (?:\w+:)?(\w+)", str(exc))) if isinstance(exc, MasterNotFoundError) else set()

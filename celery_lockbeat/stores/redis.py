"""The store in Redis or Valkey: one Lua script, one round trip, one hash tag per operation.

Promises the contract of ``base.py`` as far as the server keeps what it acknowledged. A failover to a replica that had
not yet received a write loses that write: ``min_replicas`` narrows this (WAIT), the fencing token answers the rest.
Times are the server's. This is the only place of Redis keys and of milliseconds.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from typing import Any, ClassVar, Final
from urllib.parse import quote, unquote

import redis
from redis.backoff import ConstantBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import ConfigurationError, StoreUnavailable
from celery_lockbeat.stores.base import TOKEN_MEMORY, Finished, Held, Lease, Store

__all__ = ["RedisStore"]

#: A server that does not answer is given up after two tries of this many seconds each (``lockbeat_redis_options``:
#: ``socket_timeout``, ``socket_connect_timeout``, ``retry``). redis-py would wait for ever, or retry three times.
TIMEOUT: Final = 2.0

#: Longer keys are cut and told apart by a digest: Redis compares whole keys, and operators read them.
LONGEST_KEY: Final = 200


class _Script:
    """A Lua file and its digest, for EVALSHA."""

    def __init__(self, name: str) -> None:
        self.source: Final = files("celery_lockbeat.stores").joinpath("lua").joinpath(f"{name}.lua").read_text("utf-8")
        self.sha: Final = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


class RedisStore(Store):
    """Locks in one Redis (or Valkey) database; every operation costs one round trip.

    ``url`` is what :meth:`redis.Redis.from_url` takes, ``options`` are further client arguments. With
    ``min_replicas``, what was granted or extended counts only once so many replicas have it.
    """

    driver: ClassVar[str] = "redis"

    def __init__(
        self,
        url: str,
        *,
        options: Mapping[str, Any] | None = None,
        key_prefix: str = "lockbeat:",
        min_replicas: int = 0,
    ) -> None:
        arguments = {
            "socket_timeout": TIMEOUT,
            "socket_connect_timeout": TIMEOUT,
            # a pooled connection that the server has closed meanwhile costs one failed try
            "retry": Retry(ConstantBackoff(0.05), 1),
            "retry_on_error": [redis.exceptions.ConnectionError, redis.exceptions.TimeoutError],
            **(options or {}),
            "decode_responses": False,
        }
        self._make_client = partial(redis.Redis.from_url, url, **arguments)
        try:
            self._client: Any = self._make_client()
        except (ValueError, TypeError, RedisError) as exc:
            msg = f"cannot make a Redis client of lockbeat_redis_options and the URL: {exc}"
            raise ConfigurationError(msg) from exc
        self._prefix = key_prefix
        self._min_replicas = min_replicas
        self._timeout: float = arguments["socket_timeout"]
        #: when an operation was begun, and the server's time (ms) when it was carried out
        self._seen: tuple[float, int] | None = None
        _stores.add(self)
        self._acquire, self._extend, self._release = (_Script(name) for name in ("acquire", "extend", "release"))
        self._free = _Script("free")

    def acquire(
        self, key: str, *, holder: str, ttl: float, run: str | None = None, description: str = ""
    ) -> Lease | Held | Finished:
        keys = self._keys(key, run)
        fixed = (_plain(holder), _plain(run or ""), _ms(ttl), _ms(TOKEN_MEMORY), _readable(description))
        for _ in range(2):
            asked = monotonic()
            kind, *answer = self._call(self._acquire, keys, (*fixed, self._waits_until(asked)), replicated=True)
            if kind == b"finished":
                return Finished()
            if kind == b"held":
                remaining, same_run, their_run, described = answer
                return Held(_told(described), remaining / 1000, bool(same_run), unquote(their_run, errors="replace"))
            self._seen = (asked, answer[0])
            if kind == b"granted":
                return Lease(key, holder, run, answer[1])
            # Late: the answer took too long, or the server's clock was set forward; its time is known now.
        msg = "the Redis store takes longer to answer than lockbeat_redis_options['socket_timeout'] allows"
        raise StoreUnavailable(msg)

    def extend(self, leases: Sequence[tuple[Lease, float]]) -> list[bool]:
        calls = [
            (self._keys(lease.key), (_digits(lease.token), _plain(lease.holder), _ms(ttl), _ms(TOKEN_MEMORY)))
            for lease, ttl in leases
        ]
        return [answer == 1 for answer in self._call_all(self._extend, calls)] if calls else []

    def release(self, lease: Lease, *, hold_for: float = 0, remember_for: float = 0) -> bool:
        answer = self._call(
            self._release,
            self._keys(lease.key, lease.run),
            (
                _digits(lease.token),
                _plain(lease.holder),
                _ms(TOKEN_MEMORY),
                _ms(hold_for),
                _ms(remember_for),
            ),
        )
        return bool(answer == 1)

    def free(self, key: str, *, holder: str) -> bool:
        answer = self._call(self._free, self._keys(key), (_plain(holder), _ms(TOKEN_MEMORY)))
        return bool(answer == 1)

    def _waits_until(self, asked: float) -> int:
        """The server's time until which an answer to what is asked now has somebody who waits for it; 0: not known."""
        if self._seen is None:
            return 0
        then, server_ms = self._seen
        return server_ms + _ms((asked - then) * 1.01 + self._timeout)

    def close(self) -> None:
        self._client.close()

    def twin(self) -> RedisStore:
        twin = copy.copy(self)
        twin._client = self._make_client()
        _stores.add(twin)
        return twin

    def leave_the_parents(self) -> object:
        """Start anew in a forked child; returns what must not be touched there."""
        client, self._client = self._client, self._make_client()
        return client

    def _keys(self, key: str, run: str | None = None) -> tuple[str, ...]:
        """Name the keys of one operation; the tag in braces puts them on one Cluster node."""
        tag = _plain(key)
        lock = f"{self._prefix}lock:{{{tag}}}"
        return (lock,) if run is None else (lock, f"{self._prefix}done:{{{tag}}}:{_plain(run)}")

    def _call(self, script: _Script, keys: tuple[str, ...], args: tuple[Any, ...], *, replicated: bool = False) -> Any:
        if replicated and self._min_replicas:
            return self._call_all(script, [(keys, args)])[0]
        try:
            try:
                return self._client.execute_command("EVALSHA", script.sha, len(keys), *keys, *args)
            except NoScriptError:
                return self._client.execute_command("EVAL", script.source, len(keys), *keys, *args)
        except (RedisError, OSError) as exc:
            raise self._unavailable(exc) from exc

    def _call_all(self, script: _Script, calls: Sequence[tuple[tuple[str, ...], tuple[Any, ...]]]) -> list[Any]:
        """Run one script on many locks, pipelined; then, if asked to, wait for the replicas."""
        try:
            answers = self._pipelined("EVALSHA", script.sha, calls)
            if any(isinstance(answer, NoScriptError) for answer in answers):
                # nothing of a script that the server does not know was carried out: all again, with its source
                answers = self._pipelined("EVAL", script.source, calls)
        except (RedisError, OSError) as exc:
            raise self._unavailable(exc) from exc
        for answer in answers:
            if isinstance(answer, Exception):
                raise self._unavailable(answer) from answer
        if self._min_replicas and (reached := answers.pop()) < self._min_replicas:
            # Nothing is undone: a lease that was written ends with its ttl, and asking again gives it back.
            msg = f"only {reached} of lockbeat_redis_min_replicas={self._min_replicas} replicas confirmed the write"
            raise StoreUnavailable(msg)
        return answers

    def _pipelined(
        self, command: str, script: str, calls: Sequence[tuple[tuple[str, ...], tuple[Any, ...]]]
    ) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for keys, args in calls:
            pipeline.execute_command(command, script, len(keys), *keys, *args)
        if self._min_replicas:
            pipeline.execute_command("WAIT", self._min_replicas, _ms(self._timeout / 2))
        answers: list[Any] = pipeline.execute(raise_on_error=False)
        return answers

    def _unavailable(self, exc: BaseException) -> StoreUnavailable:
        return StoreUnavailable(f"the Redis store does not answer: {type(exc).__name__}: {exc}")


def _told(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def _ms(seconds: float) -> int:
    """Round up: a lease must not end before its holder expects."""
    return math.ceil(seconds * 1000)


def _digits(token: int) -> str:
    return f"{token:016d}"


def _readable(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _plain(text: str) -> str:
    """Write any text, one to one, without blanks, braces and control characters: it fits a hash tag and a field.

    ``quote`` puts out no ``%`` that two hex digits do not follow: ``%~`` can come from nowhere else.
    """
    quoted = quote(text, safe="!$&'()*+,/:;=@", errors="surrogatepass")
    if len(quoted) <= LONGEST_KEY:
        return quoted
    return f"{quoted[:64]}%~{hashlib.sha256(quoted.encode()).hexdigest()}"


# In a forked child redis-py's pool waits for its own lock, which a thread that is not there may hold: each store gets a
# new client, and the parent's is kept, unused, for its destructor takes that lock too.
_stores: weakref.WeakSet[RedisStore] = weakref.WeakSet()
_inherited: list[object] = []


def _leave_the_parents() -> None:
    _inherited.extend([store.leave_the_parents() for store in _stores])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_the_parents)

"""The store in Redis or Valkey: one Lua script, one round trip, one hash tag per operation.

Promises the contract of ``base.py`` as far as the server keeps what it acknowledged. A failover to a replica that had
not yet received a write loses that write: ``min_replicas`` narrows this (WAIT), the fencing token answers the rest.
Times are the server's. This is the only place of Redis keys and of milliseconds.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import re
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
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
from celery_lockbeat.stores.base import (
    ALIVE,
    BACKLOG,
    OVERDUE_AT_ONCE,
    STATE_MEMORY,
    TOKEN_MEMORY,
    Claim,
    Claims,
    EntryState,
    Finished,
    Held,
    Joined,
    Lease,
    Overdue,
    Store,
)

__all__ = ["RedisStore"]

#: A server that does not answer is given up after two tries of this many seconds each (``lockbeat_redis_options``:
#: ``socket_timeout``, ``socket_connect_timeout``, ``retry``). redis-py would wait for ever, or retry three times.
TIMEOUT: Final = 2.0

#: Longer keys are cut and told apart by a digest: Redis compares whole keys, and operators read them.
LONGEST_KEY: Final = 200

#: What needs no quoting and no cutting: nearly all keys, holders and runs.
_PLAIN: Final = re.compile(rf"[\w!$&'()*+,/:;=@.~-]{{0,{LONGEST_KEY}}}", re.ASCII)


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
        #: clients of one connection each, of which no answer is outstanding
        self._idle: deque[Any] = deque()
        self._prefix = key_prefix
        self._min_replicas = min_replicas
        self._timeout: float = arguments["socket_timeout"]
        #: when an operation was begun, and the server's time (ms) when it was carried out
        self._seen: tuple[float, int] | None = None
        _stores.add(self)
        self._acquire, self._extend, self._release = (_Script(name) for name in ("acquire", "extend", "release"))
        self._join, self._list, self._claim = (_Script(name) for name in ("join", "list", "claim"))
        self._take_over, self._settle, self._leave = (_Script(name) for name in ("take_over", "settle", "leave"))
        self._free = _Script("free")

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
        keys = self._keys(key, run, whole)
        fixed = (_plain(holder), _plain(run or ""), _ms(ttl), _ms(ttl + TOKEN_MEMORY), _readable(description))
        for _ in range(2):
            asked = monotonic()
            answer = self._call(self._acquire, keys, (*fixed, self._waits_until(asked)), replicated=True)
            if isinstance(answer, int):
                self._seen = (asked, answer // 1000)
                return Lease(key, holder, run, answer, whole)
            kind, *answer = answer
            if kind == b"finished":
                return Finished(bool(answer[0]))
            if kind == b"held":
                remaining, same_run, their_run, described = answer
                return Held(_told(described), remaining / 1000, bool(same_run), unquote(their_run, errors="replace"))
            self._seen = (asked, answer[0])
            if kind == b"granted":
                return Lease(key, holder, run, answer[1], whole)
            # Late: the answer took too long, or the server's clock was set forward; its time is known now.
        msg = "the Redis store takes longer to answer than lockbeat_redis_options['socket_timeout'] allows"
        raise StoreUnavailable(msg)

    def extend(self, leases: Sequence[tuple[Lease, float]]) -> list[bool]:
        calls = [
            (self._keys(lease.key), (_digits(lease.token), _plain(lease.holder), _ms(ttl), _ms(ttl + TOKEN_MEMORY)))
            for lease, ttl in leases
        ]
        return [answer == 1 for answer in self._call_all(self._extend, calls)] if calls else []

    def release(self, lease: Lease, *, hold_for: float = 0, remember_for: float = 0, whole: bool = False) -> bool:
        answer = self._call(
            self._release,
            self._keys(lease.key, lease.whole if whole else lease.run),
            (
                _digits(lease.token),
                _plain(lease.holder),
                _ms(hold_for),
                _ms(hold_for + TOKEN_MEMORY),
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

    def join(self, app: str, replica: str, *, cold_start: float | None = None) -> Joined:
        keys = self._beat_keys(app, "replicas", "listing", "cold_start", f"names:{_plain(replica)}")
        earlier = "" if cold_start is None else round(cold_start * 1000)
        started, now = self._call(self._join, keys, (_plain(replica), _ms(ALIVE), _ms(STATE_MEMORY), earlier))
        return Joined(started / 1000, now / 1000)

    def list_entries(
        self,
        app: str,
        replica: str,
        entries: Sequence[tuple[str, EntryState]],
        *,
        removed: Sequence[str] = (),
        complete: bool = False,
    ) -> list[EntryState]:
        names = f"names:{_plain(replica)}"
        keys = self._beat_keys(
            app, "entries", "unlisted", "replicas", "listing", names, "claims", "pending", "cold_start"
        )
        args: list[Any] = [_plain(replica), _ms(STATE_MEMORY), int(complete), self._beat_keys(app, "names:")[0]]
        args += (len(removed), *map(_exact, removed))
        for name, state in entries:
            args += (_exact(name), state.total_run_count, _exact(state.last_run_at))
        return [_state(text) for text in self._call(self._list, keys, tuple(args), replicated=bool(entries))]

    def claim(self, app: str, replica: str, claims: Sequence[Claim], *, ttl: float, skip: int = 0) -> Claims:
        keys = self._beat_keys(app, "entries", "claims", "pending", "replicas", "listing", "unlisted")
        prefix = self._beat_keys(app, "names:")[0]
        args: list[Any] = [
            _plain(replica),
            _ms(ttl),
            _ms(ALIVE),
            _ms(STATE_MEMORY),
            BACKLOG,
            OVERDUE_AT_ONCE,
            skip,
            prefix,
        ]
        for claim in claims:
            entry = _exact(claim.entry)
            told = b"%d %b%b" % (len(entry), entry, json.dumps(claim.details, separators=(",", ":")).encode())
            args += (entry, claim.state.total_run_count, _exact(claim.state.last_run_at), _plain(claim.task_id), told)
        now, listed, until, refusals, overdue = self._call(self._claim, keys, tuple(args), replicated=bool(claims))
        return Claims(
            [_state(refusal) if refusal else None for refusal in refusals],
            [_overdue(*told) for told in zip(overdue[::2], overdue[1::2], strict=True)],
            None if until < 0 else until / 1000,
            now / 1000,
            bool(listed),
        )

    def take_over(self, app: str, replica: str, task_ids: Sequence[str], *, ttl: float) -> list[bool]:
        args = (_plain(replica), _ms(ttl), *map(_plain, task_ids))
        taken = self._call(self._take_over, self._beat_keys(app, "claims", "pending"), args, replicated=True)
        return [answer == 1 for answer in taken]

    def settle(
        self, app: str, replica: str, published: Sequence[tuple[str, str]], *, handed_over: Sequence[str] = ()
    ) -> list[bool]:
        args: list[Any] = [_plain(replica), len(published)]
        for task_id, entry in published:
            args += (_plain(task_id), _exact(entry))
        args += map(_plain, handed_over)
        settled = self._call(self._settle, self._beat_keys(app, "entries", "claims", "pending"), tuple(args))
        return [answer == 1 for answer in settled]

    def leave(self, app: str, replica: str) -> None:
        self._call(self._leave, self._beat_keys(app, "replicas", "listing"), (_plain(replica),))

    def close(self) -> None:
        while self._idle:
            self._lend_to_the_pool()
        self._client.close()

    def twin(self) -> RedisStore:
        twin = copy.copy(self)
        twin._client, twin._idle = self._make_client(), deque()
        _stores.add(twin)
        return twin

    def leave_the_parents(self) -> object:
        """Start anew in a forked child; returns what must not be touched there."""
        parents = self._client, self._idle
        self._client, self._idle = self._make_client(), deque()
        return parents

    def _keys(self, key: str, *runs: str | None) -> tuple[str, ...]:
        """Name the keys of one operation; the tag in braces puts them on one Cluster node."""
        tag = _plain(key)
        marks = (f"{self._prefix}done:{{{tag}}}:{_plain(run)}" for run in runs if run is not None)
        return (f"{self._prefix}lock:{{{tag}}}", *marks)

    def _beat_keys(self, app: str, *names: str) -> tuple[str, ...]:
        """Name keys of an app's beats; what stands before the app's name keeps the tag from being empty."""
        return tuple(f"{self._prefix}{{beat:{_plain(app)}}}:{name}" for name in names)

    def _call(self, script: _Script, keys: tuple[str, ...], args: tuple[Any, ...], *, replicated: bool = False) -> Any:
        if replicated and self._min_replicas:
            return self._call_all(script, [(keys, args)])[0]
        try:
            try:
                return self._execute("EVALSHA", script.sha, len(keys), *keys, *args)
            except NoScriptError:
                return self._execute("EVAL", script.source, len(keys), *keys, *args)
        except (RedisError, OSError) as exc:
            raise self._unavailable(exc) from exc

    def _execute(self, *command: Any) -> Any:
        """Carry out one command on a connection that is ours.

        redis-py's pool polls the socket of a connection each time it lends it: with its bookkeeping, nearly half of what a
        command costs. It looks for a closed connection, which the retry meets as well, and for an answer that nobody has
        read, but in vain while that is still under way: what broke off a call ends its connection here, whatever it was.
        """
        try:
            client = self._idle.pop()
        except IndexError:
            client = self._client.client()
        connection = client.connection

        def ask() -> Any:
            connection.send_command(*command)
            return connection.read_response()

        try:
            answer = connection.retry.call_with_retry(ask, lambda _: connection.disconnect())
        except BaseException:
            connection.disconnect()
            client.close()
            raise
        self._idle.append(client)
        return answer

    def _lend_to_the_pool(self) -> None:
        """Give an idle connection back to redis-py's pool, from which pipelines take theirs."""
        with suppress(IndexError):
            self._idle.pop().close()

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
        self._lend_to_the_pool()
        pipeline = self._client.pipeline(transaction=False)
        for keys, args in calls:
            pipeline.execute_command(command, script, len(keys), *keys, *args)
        if self._min_replicas:
            pipeline.execute_command("WAIT", self._min_replicas, _ms(self._timeout / 2))
        try:
            answers: list[Any] = pipeline.execute(raise_on_error=False)
        except BaseException:
            # redis-py has given the connection back, and maybe not read all of its answers
            self._client.connection_pool.disconnect(inuse_connections=False)
            raise
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


def _exact(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _state(text: bytes) -> EntryState:
    count, _pending, last_run_at = text.split(b" ", 2)
    return EntryState(int(count), last_run_at.decode("utf-8", "surrogatepass"))


def _overdue(task_id: bytes, told: bytes) -> Overdue:
    run, length, rest = told.split(b" ", 2)
    entry, details = rest[: int(length)], rest[int(length) :]
    return Overdue(unquote(task_id.decode()), entry.decode("utf-8", "surrogatepass"), int(run), json.loads(details))


def _plain(text: str) -> str:
    """Write any text, one to one, without blanks, braces and control characters: it fits a hash tag and a field.

    ``quote`` puts out no ``%`` that two hex digits do not follow: ``%~`` can come from nowhere else.
    """
    if _PLAIN.fullmatch(text):
        return text
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

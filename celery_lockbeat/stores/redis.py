"""The store in Redis or Valkey: one Lua script, one round trip, one hash tag per operation.

Promises the contract of ``base.py`` as far as the server keeps what it acknowledged. A failover to a replica that had
not yet received a write loses that write: ``min_replicas`` narrows this (WAIT), the fencing token answers the rest.
Times are the server's. This is the only place of Redis keys and of milliseconds.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import os
import re
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.resources import files
from itertools import count
from typing import Any, ClassVar, Final
from urllib.parse import quote, unquote

import redis
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.retry import Retry

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import ConfigurationError, StoreUnavailable, UnreadableKey
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

logger: Final = logging.getLogger("celery_lockbeat")

#: A server that does not answer is given up after two tries of this many seconds each (``lockbeat_redis_options``:
#: ``socket_timeout``, ``socket_connect_timeout``, ``retry``). redis-py would wait for ever, or retry three times.
TIMEOUT: Final = 2.0

#: Longer keys are cut and told apart by a digest: Redis compares whole keys, and operators read them.
LONGEST_KEY: Final = 200

#: A description is cut after so many bytes, for a lock has to be read whole (lock.lua).
LONGEST_DESCRIPTION: Final = 1000

#: No duration is longer: 30 years, so that a lock's end has its 13 digits.
LONGEST: Final = 1e9

#: Bytes of a claim, of which none of ours has a hundredth.
CLAIM_AT_MOST: Final = 65536

#: What the keys of an app's beats hold, but for the cold start, of which join.lua makes sure itself.
BEAT_KEYS: Final = {
    "replicas": "zset",
    "entries": "hash",
    "claims": "hash",
    "pending": "zset",
    "listing": "set",
    "unlisted": "zset",
}

#: Around each script: its answer bears the number of what was asked for. On a connection on which anything was answered
#: twice, or an answer was left unread, each answer would be taken for the next one's: a lock for one that was refused.
#: A new token, and the same with a minus when it is released, tell by themselves what they answer, and nothing is read
#: faster than a lone number. With a negative number even these bear it: pipelines read more than one answer.
_FRAME: Final = """local asked = ARGV[#ARGV]
ARGV[#ARGV] = nil
local answer = (function()
%s
end)()
if type(answer) == 'number' and math.abs(answer) > 1e9 and asked > '0' then
  return answer
end
return {asked, answer}
"""

#: '<replica> <run> <length of the entry> <entry><details>', see claim.lua.
_CLAIM: Final = re.compile(rb"[^ ]* (\d{1,15}) (\d{1,5}) (.*)", re.DOTALL)

#: What needs no quoting and no cutting: nearly all keys, holders and runs.
_PLAIN: Final = re.compile(rf"[\w!$&'()*+,/:;=@.~-]{{0,{LONGEST_KEY}}}", re.ASCII)


class _Script:
    """A script of Lua files, and its digest, for EVALSHA."""

    def __init__(self, *names: str) -> None:
        lua = files("celery_lockbeat.stores").joinpath("lua")
        self.source: Final = _FRAME % "".join(lua.joinpath(f"{name}.lua").read_text("utf-8") for name in names)
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
        #: clients of one connection each, of which no answer is outstanding, and the last token that it told
        self._idle: deque[tuple[Any, int]] = deque()
        self._prefix = key_prefix
        self._min_replicas = min_replicas
        self._timeout: float = arguments["socket_timeout"]
        #: when an operation was begun, and the server's time (ms) when it was carried out
        self._seen: tuple[float, int] | None = None
        _stores.add(self)
        #: of the requests of this process: next() is atomic
        self._numbers = count(1)
        locks, beats = ("acquire", "extend", "release", "free"), ("list", "claim", "settle")
        self._acquire, self._extend, self._release, self._free = (_Script("lock", name) for name in locks)
        self._list, self._claim, self._settle = (_Script("state", name) for name in beats)
        self._join, self._take_over, self._leave = (_Script(name) for name in ("join", "take_over", "leave"))
        self._set_aside, self._drop = _Script("set_aside"), _Script("drop")

    def acquire(
        self, key: str, *, holder: str, ttl: float, run: str | None = None, description: str = ""
    ) -> Lease | Held | Finished:
        keys = self._keys(key, run)
        fixed = (_plain(holder), _plain(run or ""), _ms(ttl), _ms(ttl + TOKEN_MEMORY), _readable(description))
        for _ in range(2):
            asked = monotonic()
            answer = self._call(self._acquire, keys, (*fixed, self._waits_until(asked)), replicated=True)
            if isinstance(answer, int):
                self._seen = (asked, answer // 1000)
                return Lease(key, holder, run, answer)
            kind, *answer = answer
            if kind == b"finished":
                return Finished()
            if kind == b"unreadable":
                where, what, begins = map(_told, answer)
                raise UnreadableKey(
                    f"key {where!r} in Redis is no lock of ours, but a {what} ({begins!r}...): nothing runs under lock {key!r}"
                    f" until that key is deleted, and nothing that holds it may be running then"
                )
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
            (self._keys(lease.key), (_digits(lease.token), _plain(lease.holder), _ms(ttl), _ms(ttl + TOKEN_MEMORY)))
            for lease, ttl in leases
        ]
        answers = self._call_all(self._extend, calls) if calls else []
        return [self._is_ours(lease, answer) for (lease, _), answer in zip(leases, answers, strict=True)]

    def release(self, lease: Lease, *, hold_for: float = 0, remember_for: float = 0) -> bool:
        answer = self._call(
            self._release,
            self._keys(lease.key, lease.run),
            (
                _digits(lease.token),
                _plain(lease.holder),
                _ms(hold_for),
                _ms(hold_for + TOKEN_MEMORY),
                _ms(remember_for),
            ),
            released=-lease.token,
        )
        return self._is_ours(lease, answer)

    def free(self, key: str, *, holder: str) -> bool:
        answer = self._call(self._free, self._keys(key), (_plain(holder), _ms(TOKEN_MEMORY)))
        return bool(answer == 1)

    def _is_ours(self, lease: Lease, answer: int) -> bool:
        if answer == -1:
            (where,) = self._keys(lease.key)
            logger.error(
                "lock %r is lost: key %r in Redis was overwritten by what is no lock; delete it", lease.key, where
            )
        return answer in (1, -lease.token)

    def _waits_until(self, asked: float) -> int:
        """The server's time until which an answer to what is asked now has somebody who waits for it; 0: not known."""
        if self._seen is None:
            return 0
        then, server_ms = self._seen
        return server_ms + _ms((asked - then) * 1.01 + self._timeout)

    def join(self, app: str, replica: str, *, cold_start: float | None = None) -> Joined:
        names = ("replicas", "listing", "cold_start", f"names:{_plain(replica)}")
        earlier = "" if cold_start is None else round(cold_start * 1000)
        args = (_plain(replica), _ms(ALIVE), _ms(STATE_MEMORY), earlier)
        started, now = self._call_beats(app, self._join, names, args)
        if started < 0:
            (where,) = self._beat_keys(app, "cold_start")
            raise UnreadableKey(
                f"key {where!r} in Redis is no time: this beat joins the others once it is deleted, or once they are gone"
            )
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
        listed = f"names:{_plain(replica)}"
        names = ("entries", "unlisted", "replicas", "listing", listed, "claims", "pending", "cold_start")
        args: list[Any] = [_plain(replica), _ms(STATE_MEMORY), int(complete), self._beat_keys(app, "names:")[0]]
        args += (len(removed), *map(_exact, removed))
        for name, state in entries:
            args += (_exact(name), state.total_run_count, _exact(state.last_run_at))
        states, unreadable = self._call_beats(app, self._list, names, args, replicated=bool(entries))
        self._tell_unreadable(app, unreadable)
        return [_state(text) for text in states]

    def claim(self, app: str, replica: str, claims: Sequence[Claim], *, ttl: float, skip: int = 0) -> Claims:
        names = ("entries", "claims", "pending", "replicas", "listing", "unlisted")
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
        answer = self._call_beats(app, self._claim, names, args, replicated=bool(claims))
        now, listed, until, refusals, told, unreadable = answer
        self._tell_unreadable(app, unreadable)
        overdue = {pair: _overdue(*pair) for pair in zip(told[::2], told[1::2], strict=True)}
        self._drop_unreadable(app, [pair for pair, claim in overdue.items() if claim is None])
        return Claims(
            [_state(refusal) if refusal else None for refusal in refusals],
            [claim for claim in overdue.values() if claim is not None],
            None if until < 0 else until / 1000,
            now / 1000,
            bool(listed),
        )

    def take_over(self, app: str, replica: str, task_ids: Sequence[str], *, ttl: float) -> list[bool]:
        args = (_plain(replica), _ms(ttl), *map(_plain, task_ids))
        taken = self._call_beats(app, self._take_over, ("claims", "pending"), args, replicated=True)
        return [answer == 1 for answer in taken]

    def settle(
        self, app: str, replica: str, published: Sequence[tuple[str, str]], *, handed_over: Sequence[str] = ()
    ) -> list[bool]:
        args: list[Any] = [_plain(replica), len(published)]
        for task_id, entry in published:
            args += (_plain(task_id), _exact(entry))
        args += map(_plain, handed_over)
        settled = self._call_beats(app, self._settle, ("entries", "claims", "pending"), args)
        return [answer == 1 for answer in settled]

    def leave(self, app: str, replica: str) -> None:
        self._call_beats(app, self._leave, ("replicas", "listing"), (_plain(replica),))

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

    def _keys(self, key: str, run: str | None = None) -> tuple[str, ...]:
        """Name the keys of one operation; the tag in braces puts them on one Cluster node."""
        tag = _plain(key)
        lock = f"{self._prefix}lock:{{{tag}}}"
        return (lock,) if run is None else (lock, f"{self._prefix}done:{{{tag}}}:{_plain(run)}")

    def _beat_keys(self, app: str, *names: str) -> tuple[str, ...]:
        """Name keys of an app's beats; what stands before the app's name keeps the tag from being empty."""
        return tuple(f"{self._prefix}{{beat:{_plain(app)}}}:{name}" for name in names)

    def _call_beats(
        self, app: str, script: _Script, names: Sequence[str], args: Sequence[Any], *, replicated: bool = False
    ) -> Any:
        """Call a script on keys of an app's beats; those that hold another type are renamed, and count as lost."""
        keys = self._beat_keys(app, *names)
        try:
            return self._call(script, keys, tuple(args), replicated=replicated)
        except StoreUnavailable as exc:
            if not isinstance(exc.__cause__, ResponseError) or "WRONGTYPE" not in str(exc.__cause__):
                raise
        prefix = self._beat_keys(app, "names:")[0]
        what = (prefix, _ms(STATE_MEMORY), *BEAT_KEYS.values())
        renamed = self._call(self._set_aside, self._beat_keys(app, *BEAT_KEYS), what)
        for key, kind in zip(renamed[::2], renamed[1::2], strict=True):
            logger.error(
                "key %r in Redis is a %s, which no beat of %r has written: what it held is lost, and it is renamed to"
                " '...:unreadable' for a week, unless you delete it before",
                *(_told(key), _told(kind), app),
            )
        # whatever of it was carried out before it failed, it can be repeated
        return self._call(script, keys, tuple(args), replicated=replicated)

    def _tell_unreadable(self, app: str, unreadable: Sequence[bytes]) -> None:
        for entry, begins in zip(unreadable[::2], unreadable[1::2], strict=True):
            (where,) = self._beat_keys(app, "entries")
            text = "the state of entry %r in key %r in Redis is none (%r...): it counts as lost, and is written anew"
            logger.error(text, _text(entry), where, begins)

    def _drop_unreadable(self, app: str, unreadable: Sequence[tuple[bytes, bytes]]) -> None:
        if not unreadable:
            return
        for task_id, told in unreadable:
            (where,) = self._beat_keys(app, "claims")
            text = (
                "claim %r in key %r in Redis is none (%r...), and is dropped: its tick is lost, if it was not yet sent"
            )
            logger.error(text, _told(task_id), where, told[:64])
        pairs = [part[:CLAIM_AT_MOST] for pair in unreadable for part in pair]
        self._call_beats(app, self._drop, ("claims", "pending"), pairs)

    def _call(
        self,
        script: _Script,
        keys: tuple[str, ...],
        args: tuple[Any, ...],
        *,
        replicated: bool = False,
        released: int | None = None,
    ) -> Any:
        if replicated and self._min_replicas:
            return self._call_all(script, [(keys, args)])[0]
        asked = next(self._numbers)
        try:
            try:
                return self._execute(asked, released, "EVALSHA", script.sha, len(keys), *keys, *args, asked)
            except NoScriptError:
                return self._execute(asked, released, "EVAL", script.source, len(keys), *keys, *args, asked)
        except (RedisError, OSError) as exc:
            raise self._unavailable(exc) from exc

    def _execute(self, asked: int, released: int | None, *command: Any) -> Any:
        """Carry out one command on a connection that is ours.

        redis-py's pool polls the socket of a connection each time it lends it: with its bookkeeping, nearly half of what a
        command costs. It looks for a closed connection, which the retry meets as well, and for an answer that nobody has
        read, but in vain while that is still under way: what broke off a call ends its connection here, whatever it was.
        """
        try:
            client, told = self._idle.pop()
        except IndexError:
            client, told = self._client.client(), 0
        connection = client.connection

        def ask() -> Any:
            connection.send_command(*command)
            answer = connection.read_response()
            if isinstance(answer, int):
                # one connection is told ever greater tokens, or the server's clock was set back: then it is asked again
                if answer != released if released else answer <= told:
                    raise _mixed_up()
                return answer
            return _answer(asked, answer)

        try:
            answer = connection.retry.call_with_retry(ask, lambda _: connection.disconnect())
        except BaseException:
            connection.disconnect()
            client.close()
            raise
        self._idle.append((client, max(told, answer) if isinstance(answer, int) else told))
        return answer

    def _lend_to_the_pool(self) -> None:
        """Give an idle connection back to redis-py's pool, from which pipelines take theirs."""
        with suppress(IndexError):
            self._idle.pop()[0].close()

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
        numbers = [-next(self._numbers) for _ in calls]
        for asked, (keys, args) in zip(numbers, calls, strict=True):
            pipeline.execute_command(command, script, len(keys), *keys, *args, asked)
        if self._min_replicas:
            pipeline.execute_command("WAIT", self._min_replicas, _ms(self._timeout / 2))
        try:
            answers: list[Any] = pipeline.execute(raise_on_error=False)
            for number, asked in enumerate(numbers):
                if not isinstance(answers[number], Exception):
                    answers[number] = _answer(asked, answers[number])
            if self._min_replicas and isinstance(answers[-1], list):
                raise _mixed_up()
        except BaseException:
            # redis-py has given the connection back, and maybe not read all of its answers
            self._client.connection_pool.disconnect(inuse_connections=False)
            raise
        return answers

    def _unavailable(self, exc: BaseException) -> StoreUnavailable:
        return StoreUnavailable(f"the Redis store does not answer: {type(exc).__name__}: {exc}")


def _answer(asked: int, answer: Any) -> Any:
    """Take off an answer the number of the request that it answers. Raises LostConnection, if it was another."""
    if not isinstance(answer, list) or len(answer) != 2 or answer[0] != b"%d" % asked:  # noqa: PLR2004  see _FRAME
        raise _mixed_up()
    return answer[1]


def _mixed_up() -> LostConnection:
    return LostConnection("an answer is to another request")


def _told(text: bytes) -> str:
    told = text.decode("utf-8", "replace")
    return told if told.isprintable() else "".join(char if char.isprintable() else "?" for char in told)


def _ms(seconds: float) -> int:
    """Round up: a lease must not end before its holder expects."""
    return math.ceil(min(seconds, LONGEST) * 1000)


def _digits(token: int) -> str:
    return f"{token:016d}"


def _readable(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")[:LONGEST_DESCRIPTION]


def _exact(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(exact: bytes) -> str:
    try:
        return exact.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        # not written by us
        return exact.decode("utf-8", "backslashreplace")


def _state(text: bytes) -> EntryState:
    count, _pending, last_run_at = text.split(b" ", 2)
    return EntryState(int(count), _text(last_run_at))


def _overdue(id_: bytes, told: bytes) -> Overdue | None:
    """Read a claim; None: it is none that we have written."""
    match = _CLAIM.fullmatch(told) if len(told) <= CLAIM_AT_MOST else None
    if match is None:
        return None
    run, length, rest = int(match[1]), int(match[2]), match[3]
    try:
        task_id, entry = unquote(id_.decode()), rest[:length].decode("utf-8", "surrogatepass")
        details = json.loads(rest[length:])
    except (ValueError, RecursionError):
        return None
    # an id that we would write in another way could never be taken over
    ours = isinstance(details, dict) and (task_id.encode() == id_ or _plain(task_id).encode() == id_)
    return Overdue(task_id, entry, run, details) if ours else None


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

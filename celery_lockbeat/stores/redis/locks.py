"""Locks in Redis: a key for each, which has its token, its end and its holder, and one for each finished run that is remembered.

A lock, what has finished under it and what is reserved for it share a hash tag. Times are the server's. Each operation is one script of ``lua/``.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import unquote

from redis.exceptions import ResponseError

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import StoreUnavailable, UnreadableKey
from celery_lockbeat.stores.base import (
    LISTED_AT_MOST,
    Finished,
    Held,
    Lease,
    LiveLock,
    LockStore,
    Place,
    Reservation,
    Served,
    Stop,
    Waiter,
    Waiting,
    Wanted,
    of_key,
)
from celery_lockbeat.stores.redis.client import Client
from celery_lockbeat.stores.redis.names import exact, mark, ms, plain, read, seconds, shown, unquoted
from celery_lockbeat.stores.redis.node import Node
from celery_lockbeat.stores.redis.refusals import refuses
from celery_lockbeat.stores.redis.scripts import Call, Script, to_word

__all__ = ["RedisLocks", "is_over"]

logger: Final = logging.getLogger("celery_lockbeat")

#: A description is cut after so many bytes, for a lock has to be read as one (lock.lua).
LONGEST_DESCRIPTION: Final = 1000

#: A lock, as acquire.lua writes it.
_LOCK: Final = re.compile(
    rb"(?P<token>\d{16})(?P<until>\d{13})(?P<holder>[^ ]*) (?P<run>[^ #]*)[^ ]* (?P<description>.*)", re.DOTALL
)

#: Why a task is over that was never run, by the token that stands for it.
_WHY: Final = {1: "superseded", 2: "cleared"}

#: In the place of a holder: there is more than one, see wide.lua.
_MORE_THAN_ONE: Final = "#"

#: What tells that a reservation is had, each of one call: such a lone number is read at once, and a script answers none below 10^9 alone.
_numbers: Final = itertools.count(2 * 10**9)

#: What stands behind the description of a lock whose key had been used before, see lock.lua.
_USED_BEFORE: Final = " #"


class RedisLocks(LockStore):
    """The locks under a client's prefix."""

    def __init__(self, client: Client) -> None:
        self._client = client
        #: when an operation was begun, and the server's time (ms) when it was carried out
        self._seen: tuple[float, int] | None = None
        self._acquire = Script.of("lock", "wide", "line", "among", "acquire")
        self._acquire_reserved = Script.of("lock", "wide", "line", "among", "reserved", "acquire", "granted")
        acquire, free = ("wide", "line", "among", "acquire"), ("wide", "line", "free")
        self._acquire_all = Script.of("lock", "each", *acquire, "or_free", *free, "all")
        self._unreserve = Script.of("lock", "wide", "unreserve")
        self._reserve = Script.of("at_once", "lock", "wide", "reserve")
        self._extend, self._release, self._free, self._serve, self._clear, self._give_up = (
            Script.of("lock", "wide", "line", name)
            for name in ("extend", "release", "free", "serve", "clear", "give_up")
        )

    def acquire(
        self,
        key: str,
        *,
        holder: str,
        ttl: float,
        run: str | None = None,
        task: str | None = None,
        description: str = "",
        limit: int = 1,
        reservation: Reservation | None = None,
        place: Place | None = None,
    ) -> Lease | Held | Finished | Waiting:
        keys = self._keys_of(key, run, task)
        script = self._acquire
        reserved: tuple[str, ...] = ()
        if reservation is not None:
            script, reserved = self._acquire_reserved, (_written(reservation),)
            keys = (*keys, self._key_of(reservation))
        owner, lasts = f"{plain(holder)} {plain(run or '')} {_readable(description)}", ms(ttl)
        again = _USED_BEFORE if mark(run or "")[1] else ""
        asked_for = (str(limit),) if place is None else (str(limit), _known_of(place, description))
        within = min(ttl, self._client.time_allowed)  # a later answer grants nothing
        for _ in range(2):
            asked = monotonic()
            args = (owner, lasts, self._waits_until(asked, within), again, *asked_for, *reserved)
            answer = self._client.carry_out(Call(script, keys, args), replicated=True, within=within)
            if isinstance(answer, int):
                self._seen = (asked, answer // 1000)
                return Lease(key, holder, run, answer, task)
            kind, *answer = answer
            refusal = self._refusal(key, kind, answer)
            if refusal is not None:
                return refusal
            self._seen = (asked, answer[0])
            if kind == b"granted":
                self._call(key, answer[2:])
                return Lease(key, holder, run, answer[1], task)
        raise self._late()

    def _refusal(self, key: str, kind: bytes, answer: Sequence[Any]) -> Held | Finished | Waiting | None:
        """Read why a key is refused; None: it is granted, or the answer took too long, or the server's clock was set forward."""
        if kind == b"finished":
            as_a_whole, token, who = [*answer, None, None][:3]
            return Finished(bool(as_a_whole), _WHY.get(token, ""), _described(who or b""))
        if kind == b"unreadable":
            where, what, begins = map(shown, answer)
            raise UnreadableKey(
                f"key {where!r} in Redis is no lock of ours, but a {what} ({begins!r}...): nothing runs under lock {key!r}"
                f" until that key is deleted, and nothing that holds it may be running then"
            )
        if kind == b"held":
            remaining, same_run, their_run, described, *rest = answer
            why, who = rest[0].decode() if rest else "", _described(rest[2]) if rest[2:] else ""
            self._call(key, rest[1:2])
            their_run, described = unquote(their_run, errors="replace"), _described(described)
            return Held(described, remaining / 1000, bool(same_run), their_run, why, who=who)
        if kind == b"waiting":
            since, began, copy, before, remaining, their_run, described, *rest = answer
            self._call(key, rest)
            their_run, described = unquote(their_run, errors="replace"), _described(described)
            return Waiting(int(since), began / 1000, copy, before, described, remaining / 1000, their_run)
        return None

    def _late(self) -> StoreUnavailable:
        msg = f"{self._client.where} takes longer to answer than lockbeat_redis_options['socket_timeout'] allows"
        return StoreUnavailable(self._client.spelled(msg))

    def acquire_all(self, keys: Sequence[tuple[str, str]], wanted: Wanted) -> list[Lease] | Held | Finished | Waiting:
        if self._client.servers.is_parted:
            return super().acquire_all(keys, wanted)
        ttl, run, task, description, limit, reservation, place = wanted
        of_them = [name for key, _ in keys for name in self._keys_of(key, run, task)]
        of_them += [] if reservation is None else [self._key_of(reservation)]
        reserved = "" if reservation is None else _written(reservation)
        who = (f"{plain(run or '')} {_readable(description)}", *(plain(holder) for _, holder in keys))
        again = _USED_BEFORE if mark(run or "")[1] else ""
        asked_for = (str(limit),) if place is None else (str(limit), _known_of(place, description))
        within = min(ttl, self._client.time_allowed)
        for _ in range(2):
            asked = monotonic()
            args = (str(len(keys)), reserved, *who, ms(ttl), self._waits_until(asked, within), again, *asked_for)
            answer, calls = self._client.call(self._acquire_all, tuple(of_them), args, replicated=True, within=within)
            which, *answer = answer
            self._call(keys[0][0], [calls])
            if which == 0:
                now, *tokens = answer
                self._seen = (asked, now)
                return [Lease(*asked_of, run, token, task) for asked_of, token in zip(keys, tokens, strict=True)]
            key, (kind, *told) = keys[which - 1][0], answer[0]
            refusal = self._refusal(key, kind, told)
            if refusal is not None:
                return of_key(refusal, key)
            self._seen = (asked, told[0])
        raise self._late()

    def extend(
        self, leases: Sequence[tuple[Lease, float]], *, within: float = math.inf
    ) -> list[bool | Stop | StoreUnavailable]:
        calls = [
            Call(
                self._extend,
                self._keys_of(lease.key),
                (f"{lease.token:016d}", plain(lease.holder), ms(ttl)),
            )
            for lease, ttl in leases
        ]
        if not calls:
            return []
        within = min(within, self._client.time_allowed)
        answers = self._client.servers.ask(calls, within, min_replicas=self._client.min_replicas)
        extended = [
            self._client.unavailable(answer, call) if isinstance(answer, Exception) else self._is_kept(lease, answer)
            for (lease, _), call, answer in zip(leases, calls, answers, strict=True)
        ]
        errors = [each for each in extended if isinstance(each, StoreUnavailable)]
        if len(errors) == len(extended):
            raise errors[0]
        return extended

    def release(self, lease: Lease, *, hold_for: float = 0, remember_for: float = 0, task: bool = False) -> bool:
        call = self._releases(lease, hold_for, remember_for, task)
        # a run that is known to have ended must not be forgotten
        replicated = (lease.task if task else lease.run) is not None and remember_for > 0
        answer = self._client.carry_out(call, replicated=replicated)
        # the usual answer, and what else there may be
        return answer == -lease.token or self._is_ours(lease, self._alone(lease.key, answer))

    def _releases(self, lease: Lease, hold_for: float, remember_for: float, task: bool) -> Call:
        run = lease.task if task else lease.run
        digest = mark(run)[1] if run else ""
        args = (f"{lease.token:016d}", plain(lease.holder), ms(hold_for), ms(remember_for), digest)
        return Call(self._release, self._keys_of(lease.key, run), args, lease.token)

    def release_all(
        self, leases: Sequence[Lease], *, hold_for: float = 0, remember_for: float = 0, task: bool = False
    ) -> bool:
        calls = [self._releases(each, hold_for, remember_for, task) for each in leases]
        replicas = self._client.min_replicas if any(each.task if task else each.run for each in leases) else 0
        within = self._client.time_allowed
        answers = self._client.servers.ask(calls, within, min_replicas=replicas if remember_for > 0 else 0)
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, Exception):
                raise self._client.unavailable(answer, call) from answer
        each = zip(leases, answers, strict=True)
        released = [self._is_ours(lease, self._alone(lease.key, answer)) for lease, answer in each]
        return all(released)

    def free(self, key: str, *, holder: str) -> bool:
        answer = self._client.call(self._free, self._keys_of(key), (plain(holder),))
        return bool(self._alone(key, answer) == 1)

    def serve(self, key: str) -> Served:
        soonest, waiting, calls = self._client.call(self._serve, self._keys_of(key), ())
        self._call(key, [calls])
        return Served(waiting, soonest / 1000 if waiting else None)

    def clear_line(self, key: str, *, remember_for: float = 3600.0) -> int:
        calls = self._client.call(self._clear, self._keys_of(key), (ms(remember_for),), replicated=True)
        self._call(key, [calls])
        return len(calls)

    def give_up(self, key: str, ticket: str) -> bool:
        waited, calls = self._client.call(self._give_up, self._keys_of(key), (plain(ticket),))
        self._call(key, [calls])
        return bool(waited)

    def line(self, key: str, *, limit: int = LISTED_AT_MOST) -> list[Waiter]:
        wide, line, told = (f"{self._client.prefix}{kind}:{{{plain(key)}}}" for kind in ("wide", "line", "told"))
        node = self._client.node_of(line)
        time_, holders, tickets = map(
            self._client.accepted,
            self._client.answers(node, ("TIME",), ("HGETALL", wide), ("ZRANGE", line, 0, limit - 1)),
        )
        now = seconds(time_) * 1000
        called = [
            Waiter(unquoted(name[1:]), int(text[:16]), _described(text.split(b" ", 2)[2]), called=True)
            for name, text in _fields(holders)
            if name.startswith(b"=") and int(text[16:29]) > now
        ]
        texts = self._client.accepted(self._client.answers(node, ("HMGET", told, *tickets))[0]) if tickets else []
        known = [(ticket, json.loads(text)) for ticket, text in zip(tickets, texts, strict=True) if text is not None]
        return [
            *sorted(called, key=lambda waiter: waiter.since),
            *(
                Waiter(unquoted(ticket), int(each["since"]), each["description"], called=False)
                for ticket, each in known
            ),
        ][:limit]

    def listen(self, key: str, ticket: str, within: float) -> bool:
        return self._client.listen(f"{self._client.prefix}wake:{{{plain(key)}}}:{plain(ticket)}", within)

    def _alone(self, key: str, answer: Any) -> int:
        """Return an answer without what is to be told to those who are called, and have it told."""
        if isinstance(answer, list):
            self._call(key, answer[1:])
            answer = answer[0]
        return int(answer)

    def _call(self, key: str, calls: Sequence[list[bytes]]) -> None:
        called = [text for some in calls for text in some]
        if called:
            self.called(key, [text.decode() for text in called if text])

    def reserve(
        self, reservation: Reservation, *, ttl: float, unless_run_by: str | None = None
    ) -> Reservation | Held | None:
        keys = (*self._keys_of(reservation.key), self._key_of(reservation))
        number = next(_numbers)
        args = (_written(reservation), ms(ttl), _readable(unless_run_by or ""), str(number))
        answer = self._client.carry_out(Call(self._reserve, keys, args, number))
        if answer == -number:
            return None
        kind, *answer = answer
        if kind == b"reserved":
            token, _, task_id = answer[0].partition(b" ")
            return reservation._replace(token=shown(token), task_id=read(task_id))
        remaining, run, described = answer
        return Held(_described(described), remaining / 1000, False, unquote(run, errors="replace"))

    def unreserve(self, reservation: Reservation) -> bool:
        return bool(self._client.call(self._unreserve, (self._key_of(reservation),), (_written(reservation),)) == 1)

    def _is_kept(self, lease: Lease, answer: int | bytes) -> bool | Stop:
        return Stop(_described(answer)) if isinstance(answer, bytes) else self._is_ours(lease, answer)

    def _is_ours(self, lease: Lease, answer: int) -> bool:
        if answer == -1:
            (where,) = self._keys_of(lease.key)
            logger.error(
                "lock %r is lost: key %r in Redis was overwritten by what is no lock; delete it", lease.key, where
            )
        return answer in (1, -lease.token)

    def _waits_until(self, asked: float, within: float) -> str:
        """The server's time until which an answer to what is asked now has somebody who waits for it; 0: not known."""
        if self._seen is None:
            return "0"
        then, server_ms = self._seen
        return str(server_ms + math.ceil(((asked - then) * 1.01 + within) * 1000))

    def held(self, key: str | None = None, *, limit: int = LISTED_AT_MOST) -> list[LiveLock]:
        if key is not None:
            (name,) = self._keys_of(key)
            return self._live_locks(self._client.node_of(name), [name.encode()])
        # the prefix as it is, though some of its characters stand for others in a pattern
        pattern = re.sub(r"([*?\[\]\\^])", r"\\\1", self._client.prefix) + "lock:{*"
        found: dict[tuple[str, str], LiveLock] = {}  # SCAN may tell a key twice
        for node in self._client.primaries():
            for keys in self._client.scan(node, "SCAN", "MATCH", pattern):
                found.update(((lock.key, lock.holder), lock) for lock in self._live_locks(node, keys))
                if len(found) >= limit:
                    return list(found.values())[:limit]
        return list(found.values())

    def _live_locks(self, node: Node, keys: Sequence[bytes]) -> list[LiveLock]:
        time_, *values = self._client.answers(node, ("TIME",), *(("GET", key) for key in keys))
        now = seconds(self._client.accepted(time_))
        locks, wide = [], []
        for key, value in zip(keys, values, strict=True):
            if isinstance(value, ResponseError) and refuses(value):
                self._client.accepted(value)
            lock = self._live_lock(key, value, now)
            if lock is not None and lock.holder == _MORE_THAN_ONE:
                wide.append(key)
            elif lock is not None:
                locks.append(lock)
        before = f"{self._client.prefix}lock:".encode()
        beside = [f"{self._client.prefix}wide:".encode() + key[len(before) :] for key in wide]
        lines = [f"{self._client.prefix}line:".encode() + key[len(before) :] for key in wide]
        asked = [(("HGETALL", key), ("ZCARD", line)) for key, line in zip(beside, lines, strict=True)]
        answers = self._client.answers(node, *(each for both in asked for each in both)) if wide else []
        for key, told, length in zip(wide, answers[::2], answers[1::2], strict=True):
            fields = _fields(self._client.accepted(told))
            waiting = length + sum(name.startswith(b"=") for name, _ in fields)
            held = (self._live_lock(key, text, now) for name, text in fields if name[:1] not in (b"=", b"!"))
            locks += [replace(lock, waiting=waiting) for lock in held if lock is not None]
        return locks

    def _live_lock(self, key: bytes, value: Any, now: float) -> LiveLock | None:
        # what is not a lock's text was not written by us
        match = _LOCK.fullmatch(value) if isinstance(value, bytes) else None
        if match is None or int(match["until"]) <= now * 1000:
            return None
        tag = unquoted(key[len(f"{self._client.prefix}lock:{{".encode()) : -1])
        holder, run = unquoted(match["holder"]), unquoted(match["run"])
        remaining = int(match["until"]) / 1000 - now
        return LiveLock(tag, holder, _described(match["description"]), run, int(match["token"]), remaining)

    def _keys_of(self, key: str, *runs: str | None) -> tuple[str, ...]:
        """Name the keys of one operation; the tag in braces puts them on one Cluster node."""
        tag, prefix = plain(key), self._client.prefix
        keys: tuple[str, ...] = (f"{prefix}lock:{{{tag}}}",)
        for run in runs:
            if run is not None:
                keys += (f"{prefix}done:{{{tag}}}:{mark(run)[0]}",)
        return keys

    def _key_of(self, reservation: Reservation) -> str:
        return f"{self._client.prefix}reserved:{{{plain(reservation.key)}}}:{plain(reservation.name)}"


def _written(reservation: Reservation) -> str:
    return to_word(f"{reservation.token} ".encode() + exact(reservation.task_id))


def _fields(answer: Any) -> list[tuple[bytes, bytes]]:
    """Read an answer to HGETALL, in either protocol."""
    return list(answer.items()) if isinstance(answer, dict) else list(zip(answer[::2], answer[1::2], strict=True))


def _known_of(place: Place, description: str) -> str:
    """Write what is known of who waits, as line.lua reads it."""
    known = {
        "ticket": plain(place.ticket),
        "mark": mark(place.ticket)[0],
        "kind": place.kind,
        "for": int(ms(place.wait_for)),
        "room": place.room,
        "grace": int(ms(place.grace)),
        "description": description.encode("ascii", "backslashreplace").decode()[:LONGEST_DESCRIPTION],
        "text": place.text,
        "since": str(place.since),
        "began": round(place.began * 1000),
        "copy": place.copy,
        "again": place.again,
    }
    return json.dumps(known)


def _described(description: bytes) -> str:
    return shown(description.removesuffix(_USED_BEFORE.encode()))


def _readable(text: str) -> str:
    if text.isascii():
        return text[:LONGEST_DESCRIPTION]
    return to_word(text.encode("utf-8", "backslashreplace")[:LONGEST_DESCRIPTION])


def is_over(lock: Any) -> bool:
    """Whether a lock's text has no holder any more: it remembers a run, or its token alone."""
    return isinstance(lock, bytes) and lock[29:30] == b" "

"""Locks in PostgreSQL; times are the server's."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, Final

from celery_lockbeat.clock import monotonic
from celery_lockbeat.contrib.django.postgresql.client import Client
from celery_lockbeat.contrib.django.postgresql.names import cut, exact, named, readable, text, us
from celery_lockbeat.exceptions import StoreUnavailable
from celery_lockbeat.stores.base import (
    LISTED_AT_MOST,
    TOKEN_MEMORY,
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
    look_out,
    of_key,
)

__all__ = ["PostgresLocks"]

#: Seconds between two looks of one who waits for a key.
LOOKS_EVERY: Final = 0.05

#: Why a task is over that was never run, by the token that stands for it.
_WHY: Final = {1: "superseded", 2: "cleared"}


class PostgresLocks(LockStore):
    """The locks under a client's prefix."""

    def __init__(self, client: Client) -> None:
        self._client = client
        #: when an operation was begun, and the server's time (us) when it was carried out
        self._seen: tuple[float, int] | None = None

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
        named, tried = (None if name is None else exact(name) for name in (run, task))
        described = description.encode("utf-8", "backslashreplace")
        fixed = (self._client.row_key(key), exact(holder), named, tried, us(ttl), us(TOKEN_MEMORY), described)
        waits = None if place is None else _known_of(place)
        for _ in range(2):
            asked = monotonic()
            asked_for = (*fixed, self._waits_until(asked), limit, waits)
            if reservation is None:
                kind, *answer = self._client.call("lockbeat_take", *asked_for)
            else:
                _, name, task_id, token = self._written(reservation)
                kind, *answer = self._client.call("lockbeat_acquire_reserved", *asked_for, name, task_id, token)
            refusal = self._refusal(key, kind, answer)
            if refusal is not None:
                return refusal
            self._seen = (asked, answer[0])
            if kind == "granted":
                self._call(key, answer[2:])
                return Lease(key, holder, run, answer[1], task)
        raise self._late()

    def _refusal(self, key: str, kind: str, answer: Sequence[Any]) -> Held | Finished | Waiting | None:
        """Read why a key is refused; None: it is granted, or the answer took too long, or the server's clock was set forward."""
        if kind == "finished":
            as_a_whole, token, who = [*answer, None, None][:3]
            return Finished(as_a_whole, _WHY.get(token, ""), readable(who or ""))
        if kind == "held":
            remaining, same_run, their_run, described, *rest = answer
            why, who = rest[0] if rest else "", readable(rest[2]) if rest[2:] else ""
            self._call(key, rest[1:2])
            return Held(readable(described), remaining / 1e6, same_run, readable(their_run), why, who=who)
        if kind == "waiting":
            since, began, copy, before, remaining, their_run, described, calls = answer
            self._call(key, [calls])
            told = readable(described), remaining / 1e6, readable(their_run)
            return Waiting(since, began / 1e6, copy, before, *told)
        return None

    def _late(self) -> StoreUnavailable:
        return self._client.unavailable("it takes longer than its time limit")

    def acquire_all(self, keys: Sequence[tuple[str, str]], wanted: Wanted) -> list[Lease] | Held | Finished | Waiting:
        ttl, run, task, description, limit, reservation, place = wanted
        of_them = json.dumps([(self._client.row_key(key).hex(), exact(holder).hex()) for key, holder in keys])
        named, tried = (None if name is None else exact(name) for name in (run, task))
        fixed = (of_them, named, tried, us(ttl), us(TOKEN_MEMORY), description.encode("utf-8", "backslashreplace"))
        waits = None if place is None else _known_of(place)
        reserved = (None, None, None) if reservation is None else self._written(reservation)[1:]
        for _ in range(2):
            asked = monotonic()
            answer, *more = self._client.call(
                "lockbeat_take_all", *fixed, self._waits_until(asked), limit, waits, *reserved
            )
            if answer == "late":
                self._seen = (asked, more[0])
                continue
            self._call(keys[0][0], more)
            if answer[0] == 0:
                _, now, tokens = answer
                self._seen = (asked, now)
                return [Lease(*asked_of, run, token, task) for asked_of, token in zip(keys, tokens, strict=True)]
            which, (kind, *told) = answer
            key = keys[which - 1][0]
            refusal = self._refusal(key, kind, told)
            if refusal is not None:
                return of_key(refusal, key)
            self._seen = (asked, told[0])
        raise self._late()

    def extend(
        self,
        leases: Sequence[tuple[Lease, float]],
        *,
        within: float = math.inf,
    ) -> list[bool | Stop | StoreUnavailable]:
        if not leases:
            return []
        # in the order in which several keys are taken: else each could have the row that the other waits for
        order = sorted(range(len(leases)), key=lambda each: leases[each][0].key)
        told = [
            (self._client.row_key(lease.key).hex(), lease.token, exact(lease.holder).hex(), us(ttl))
            for lease, ttl in (leases[each] for each in order)
        ]
        function = "lockbeat_prolong" if len(told) == 1 else "lockbeat_prolong_all"
        answers = self._client.call(function, json.dumps(told), us(TOKEN_MEMORY), within=within)
        extended = {
            each: answer if isinstance(answer, bool) else Stop(readable(answer))
            for each, answer in zip(order, answers, strict=True)
        }
        return [extended[each] for each in range(len(leases))]

    def release(self, lease: Lease, *, hold_for: float = 0, remember_for: float = 0, task: bool = False) -> bool:
        mark = lease.task if task else lease.run
        answer = self._client.call(
            "lockbeat_end",
            self._client.row_key(lease.key),
            lease.token,
            exact(lease.holder),
            None if mark is None else exact(mark),
            us(hold_for),
            us(remember_for),
            us(TOKEN_MEMORY),
        )
        return self._alone(lease.key, answer)

    def release_all(
        self, leases: Sequence[Lease], *, hold_for: float = 0, remember_for: float = 0, task: bool = False
    ) -> bool:
        told = [(self._client.row_key(each.key).hex(), each.token, exact(each.holder).hex()) for each in leases]
        mark = leases[0].task if task else leases[0].run
        answers = self._client.call(
            "lockbeat_end_all",
            json.dumps(told),
            None if mark is None else exact(mark),
            us(hold_for),
            us(remember_for),
            us(TOKEN_MEMORY),
        )
        released = [self._alone(lease.key, answer) for lease, answer in zip(leases, answers, strict=True)]
        return all(released)

    def free(self, key: str, *, holder: str) -> bool:
        answer = self._client.call("lockbeat_drop", self._client.row_key(key), exact(holder), us(TOKEN_MEMORY))
        return self._alone(key, answer)

    def serve(self, key: str) -> Served:
        soonest, waiting, calls = self._client.call("lockbeat_serve", self._client.row_key(key), us(TOKEN_MEMORY))
        self._call(key, [calls])
        return Served(waiting, (soonest or 0) / 1e6 if waiting else None)

    def clear_line(self, key: str, *, remember_for: float = 3600.0) -> int:
        calls = self._client.call("lockbeat_clear", self._client.row_key(key), us(remember_for))
        self._call(key, [calls])
        return len(calls)

    def give_up(self, key: str, ticket: str) -> bool:
        asked = self._client.row_key(key), cut(exact(ticket)), us(TOKEN_MEMORY)
        waited, calls = self._client.call("lockbeat_give_up", *asked)
        self._call(key, [calls])
        return bool(waited)

    def line(self, key: str, *, limit: int = LISTED_AT_MOST) -> list[Waiter]:
        told = self._client.call("lockbeat_line_of", self._client.row_key(key), limit)
        return [Waiter(named(ticket), since, readable(described), called) for ticket, since, described, called in told]

    def listen(self, key: str, ticket: str, within: float) -> bool:
        asked = self._client.row_key(key), cut(exact(ticket))
        return look_out(lambda: bool(self._client.call("lockbeat_is_called", *asked)), within, every=LOOKS_EVERY)

    def _alone(self, key: str, answer: bool | list[Any]) -> bool:
        """Return an answer without what is to be told to those who are called, and have it told."""
        if isinstance(answer, list):
            self._call(key, answer[1:])
            answer = answer[0]
        return bool(answer)

    def _call(self, key: str, calls: Sequence[list[str]]) -> None:
        called = [text for some in calls for text in some]
        if called:
            self.called(key, [text for text in called if text])

    def reserve(
        self, reservation: Reservation, *, ttl: float, unless_run_by: str | None = None
    ) -> Reservation | Held | None:
        run_by = None if unless_run_by is None else unless_run_by.encode("utf-8", "backslashreplace")
        answer = self._client.call("lockbeat_reserve", *self._written(reservation), us(ttl), run_by)
        if answer is None:
            return None
        kind, *answer = answer
        if kind == "reserved":
            task_id, token = answer
            return reservation._replace(task_id=text(task_id), token=token)
        remaining, run, described = answer
        return Held(readable(described), remaining / 1e6, False, readable(run))

    def unreserve(self, reservation: Reservation) -> bool:
        return bool(self._client.call("lockbeat_unreserve", *self._written(reservation)))

    def _written(self, reservation: Reservation) -> tuple[bytes, bytes, bytes, str]:
        key, name, task_id, token = reservation
        return self._client.row_key(key), cut(exact(name)), exact(task_id), token

    def _waits_until(self, asked: float) -> int | None:
        """The server's time until which an answer to what is asked now has somebody who waits for it; None: not known."""
        if self._seen is None:
            return None
        then, server_us = self._seen
        return server_us + us((asked - then) * 1.01 + self._client.timeout)

    def held(self, key: str | None = None, *, limit: int = LISTED_AT_MOST) -> list[LiveLock]:
        prefix = self._client.exact_key("")
        told = self._client.call("lockbeat_held", None if key is None else self._client.row_key(key), prefix, limit)
        return [
            LiveLock(
                named(name, len(prefix)), text(holder), readable(description), text(run), token, left / 1e6, waiting
            )
            for name, holder, description, run, token, left, waiting in told
        ]


def _known_of(place: Place) -> str:
    """Write what is known of who waits, as the functions read it."""
    ticket = exact(place.ticket)
    known = {
        "ticket": cut(ticket).hex(),
        "mark": hashlib.sha256(ticket).hexdigest(),
        "kind": place.kind,
        "for": us(place.wait_for),
        "room": place.room,
        "grace": us(place.grace),
        "text": place.text,
        "since": place.since,
        "began": us(place.began),
        "copy": place.copy,
        "again": place.again,
        "who": True,  # is to be told
    }
    return json.dumps(known)

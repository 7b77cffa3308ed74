"""Locks in PostgreSQL; times are the server's."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

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
    Reservation,
)

__all__ = ["PostgresLocks"]


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
    ) -> Lease | Held | Finished:
        named, tried = (None if name is None else exact(name) for name in (run, task))
        described = description.encode("utf-8", "backslashreplace")
        fixed = (self._client.row_key(key), exact(holder), named, tried, us(ttl), us(TOKEN_MEMORY), described)
        for _ in range(2):
            asked = monotonic()
            waits_until = self._waits_until(asked)
            if reservation is None:
                kind, *answer = self._client.call("lockbeat_take", *fixed, waits_until, limit)
            else:
                _, name, task_id, token = self._written(reservation)
                function = "lockbeat_acquire_reserved"
                kind, *answer = self._client.call(function, *fixed, waits_until, limit, name, task_id, token)
            if kind == "finished":
                return Finished(task=answer[0])
            if kind == "held":
                remaining, same_run, their_run, described = answer
                return Held(readable(described), remaining / 1e6, same_run, readable(their_run))
            self._seen = (asked, answer[0])
            if kind == "granted":
                return Lease(key, holder, run, answer[1], task)
            # late: the answer took too long, or the server's clock was set forward; its time is known now
        raise self._client.unavailable("it takes longer than its time limit")

    def extend(
        self,
        leases: Sequence[tuple[Lease, float]],
        *,
        within: float = math.inf,
    ) -> list[bool | StoreUnavailable]:
        if not leases:
            return []
        told = [
            (self._client.row_key(lease.key).hex(), lease.token, exact(lease.holder).hex(), us(ttl))
            for lease, ttl in leases
        ]
        answers: list[bool | StoreUnavailable] = self._client.call(
            "lockbeat_prolong", json.dumps(told), us(TOKEN_MEMORY), within=within
        )
        return answers

    def release(self, lease: Lease, *, hold_for: float = 0, remember_for: float = 0, task: bool = False) -> bool:
        mark = lease.task if task else lease.run
        released: bool = self._client.call(
            "lockbeat_end",
            self._client.row_key(lease.key),
            lease.token,
            exact(lease.holder),
            None if mark is None else exact(mark),
            us(hold_for),
            us(remember_for),
            us(TOKEN_MEMORY),
        )
        return released

    def free(self, key: str, *, holder: str) -> bool:
        freed: bool = self._client.call("lockbeat_drop", self._client.row_key(key), exact(holder), us(TOKEN_MEMORY))
        return freed

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
            LiveLock(named(name, len(prefix)), text(holder), readable(description), text(run), token, left / 1e6)
            for name, holder, description, run, token, left in told
        ]

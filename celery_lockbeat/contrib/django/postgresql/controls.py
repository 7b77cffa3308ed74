"""What operators want of the entries of an app, in PostgreSQL."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from celery_lockbeat.contrib.django.postgresql.client import Client
from celery_lockbeat.contrib.django.postgresql.names import cut, exact, short, text, us
from celery_lockbeat.stores.base import (
    ASKED_AT_ONCE,
    FLAGGED_AT_ONCE,
    LISTED_AT_MOST,
    STATE_MEMORY,
    Asked,
    ControlStore,
    EntryState,
    Flag,
    Requests,
    request_key,
)

__all__ = ["PostgresControls"]

#: What the keys of requests begin with among the entries.
PREFIX = cut(exact(request_key("")))


class PostgresControls(ControlStore):
    """Those of all apps under a client's prefix."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def pause(self, app: str, names: Sequence[str], told: str, *, until: float | None = None) -> None:
        over = None if until is None else math.ceil(until * 1e6)
        self._client.call("lockbeat_pause", self._client.row_key(app), _named(names), told, over)

    def resume(
        self, app: str, names: Sequence[str], *, request: str = "", text: str = "", lapsed: bool = False
    ) -> list[Flag | None]:
        before = self._client.call("lockbeat_resume", self._client.row_key(app), _named(names), lapsed, request, text)
        return [None if told is None else _flag(told) for told in before]

    def skip(self, app: str, names: Sequence[str], count: int, told: str) -> None:
        self._client.call("lockbeat_skip", self._client.row_key(app), _named(names), count, told if count else "")

    def failed(self, app: str, name: str, run: str, told: str, *, limit: int) -> bool:
        whose = (self._client.row_key(app), cut(exact(name)), exact(name))
        return self._client.call("lockbeat_failed", *whose, short(run), limit, told) is True

    def succeeded(self, app: str, name: str) -> None:
        self._client.call("lockbeat_succeeded", self._client.row_key(app), cut(exact(name)))

    def flags(self, app: str, names: Sequence[str] | None = None, *, limit: int = LISTED_AT_MOST) -> list[Flag]:
        asked = None if names is None else json.dumps([short(name) for name in names])
        most = limit if names is None else len(names)
        return [_flag(told) for told in self._client.call("lockbeat_flags", self._client.row_key(app), asked, most)]

    def keep(self, app: str, names: Sequence[str]) -> None:
        kept = json.dumps([short(name) for name in names])
        self._client.call("lockbeat_keep", self._client.row_key(app), kept, us(STATE_MEMORY))

    def ask(self, app: str, name: str, flag: str, text: str) -> None:
        self._client.call("lockbeat_ask", self._client.row_key(app), name, exact(flag), text)

    def asked(self, app: str, *, skip: int = 0) -> Requests:
        asked, lapsed = self._client.call(
            "lockbeat_asked", self._client.row_key(app), PREFIX, ASKED_AT_ONCE, skip, FLAGGED_AT_ONCE
        )
        return Requests([_asked(*each) for each in asked], list(map(text, lapsed)))

    def cancel(self, app: str, names: Sequence[str]) -> list[bool]:
        cancelled = self._client.call("lockbeat_cancel", self._client.row_key(app), json.dumps(names))
        return [name in cancelled for name in names]

    def over(self, app: str, names: Sequence[str]) -> None:
        self._client.call("lockbeat_over", self._client.row_key(app), json.dumps(names), PREFIX)


def _named(names: Sequence[str]) -> str:
    return json.dumps([(short(name), exact(name).hex()) for name in names])


def _flag(told: Sequence[Any]) -> Flag:
    name, paused, until, *rest = told
    return Flag(text(name), paused, None if until is None else until / 1e6, *rest)


def _asked(
    name: str,
    flag: str,
    told: str,
    passed: int,
    first: str,
    last: str,
    cancelled: bool,
    count: int | None,
    at: str,
    pending: int,
) -> Asked:
    state = None if count is None else EntryState(count, text(at))
    return Asked(name, text(flag), told, passed, first, last, cancelled, state, pending)

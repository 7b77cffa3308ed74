"""What operators want of the entries of an app, in Redis: flags and requests, in the hash tag of its beats.

What was not written by us counts as none: nothing is paused by it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Final

from celery_lockbeat.stores.base import (
    ASKED_AT_ONCE,
    CONTROL_MEMORY,
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
from celery_lockbeat.stores.redis.appkeys import AppKeys
from celery_lockbeat.stores.redis.client import Client
from celery_lockbeat.stores.redis.names import exact, ms, plain, read, shown
from celery_lockbeat.stores.redis.scripts import Script

__all__ = ["TYPES", "RedisControls"]

#: The types of their keys.
TYPES: Final = {
    "flags": "hash",
    "lapses": "zset",
    "kept": "zset",
    "requests": "hash",
    "queue": "zset",
    "failures": "hash",
}

#: Milliseconds: no pause is until later, for Lua writes 14 digits.
LATEST: Final = 99_999_999_999_999

#: See ask.lua.
_REQUEST: Final = re.compile(rb"([01]) (\d{1,15}) (\d{1,6}) (\d{1,6}) (\d{1,6}) (.*)", re.DOTALL)

_STATE: Final = re.compile(rb"(\d{1,15}) (\d{1,3}) (.*)", re.DOTALL)


class RedisControls(ControlStore):
    """Those of all apps under a client's prefix."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._keys = AppKeys(client, {**TYPES, "entries": "hash", "unlisted": "zset"})
        self._pause, self._resume, self._skip, self._keep = (
            Script.of("flags", name) for name in ("pause", "resume", "skip", "keep")
        )
        self._flagged, self._ask, self._cancel, self._over = map(Script.of, ("flagged", "ask", "cancel", "over"))
        self._failed, self._succeeded = Script.of("flags", "failed"), Script.of("succeeded")
        self._asked = Script.of("state", "asked")

    def pause(self, app: str, names: Sequence[str], told: str, *, until: float | None = None) -> None:
        if names:
            over = "" if until is None else min(math.ceil(until * 1000), LATEST)
            args = (ms(CONTROL_MEMORY), over, told, *map(exact, names))
            self._keys.call(app, self._pause, ("flags", "lapses", "kept"), args, replicated=True)

    def resume(
        self, app: str, names: Sequence[str], *, request: str = "", text: str = "", lapsed: bool = False
    ) -> list[Flag | None]:
        if not names:
            return []
        args = (ms(CONTROL_MEMORY), int(lapsed), request, text, *map(exact, names))
        before = self._keys.call(
            app, self._resume, ("flags", "lapses", "requests", "queue", "failures"), args, replicated=True
        )
        return [_flag(name, told) if told else None for name, told in zip(names, before, strict=True)]

    def skip(self, app: str, names: Sequence[str], count: int, told: str) -> None:
        if names:
            args = (ms(CONTROL_MEMORY), count, told, *map(exact, names))
            self._keys.call(app, self._skip, ("flags", "kept"), args, replicated=True)

    def flags(self, app: str, names: Sequence[str] | None = None, *, limit: int = LISTED_AT_MOST) -> list[Flag]:
        found = self._all(app, limit) if names is None else self._these(app, names)
        flags = [_flag(name, told) for name, told in found]
        return [flag for flag in flags if flag is not None and (flag.paused or flag.skip)]

    def _these(self, app: str, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        for start in range(0, len(names), FLAGGED_AT_ONCE):
            some = names[start : start + FLAGGED_AT_ONCE]
            texts = self._keys.call(app, self._flagged, ("flags",), list(map(exact, some)))
            yield from ((name, told) for name, told in zip(some, texts, strict=True) if told is not None)

    def _all(self, app: str, limit: int) -> Iterator[tuple[str, bytes]]:
        (where,) = self._keys.of(app, "flags")
        fields = self._client.members(self._client.node_of(where), "HSCAN", where, limit=2 * limit)
        # HSCAN may tell a field twice
        for name, told in dict(zip(fields[::2], fields[1::2], strict=True)).items():
            yield read(name), told

    def keep(self, app: str, names: Sequence[str]) -> None:
        args = (ms(STATE_MEMORY), ms(CONTROL_MEMORY), *map(exact, names))
        self._keys.call(app, self._keep, ("flags", "lapses", "kept", "failures"), args)

    def failed(self, app: str, name: str, run: str, told: str, *, limit: int) -> bool:
        args = (ms(CONTROL_MEMORY), exact(name), plain(run), limit, told)
        paused = self._keys.call(app, self._failed, ("flags", "lapses", "kept", "failures"), args, replicated=True)
        return bool(paused)

    def succeeded(self, app: str, name: str) -> None:
        self._keys.call(app, self._succeeded, ("failures",), (exact(name),))

    def ask(self, app: str, name: str, flag: str, text: str) -> None:
        whose = exact(flag)
        request = b"0 0 %d 0 0 %b%b" % (len(whose), whose, text.encode())
        self._keys.call(app, self._ask, ("requests", "queue"), (ms(CONTROL_MEMORY), name, request), replicated=True)

    def asked(self, app: str, *, skip: int = 0) -> Requests:
        args = (request_key(""), ASKED_AT_ONCE, skip, FLAGGED_AT_ONCE)
        told, over = self._keys.call(app, self._asked, ("requests", "queue", "lapses", "entries"), args)
        asked = map(_asked, told[::3], told[1::3], told[2::3])
        return Requests([each for each in asked if each is not None], list(map(read, over)))

    def cancel(self, app: str, names: Sequence[str]) -> list[bool]:
        return [done == 1 for done in self._keys.call(app, self._cancel, ("requests",), names)] if names else []

    def over(self, app: str, names: Sequence[str]) -> None:
        if names:
            args = (ms(STATE_MEMORY), request_key(""), *names)
            self._keys.call(app, self._over, ("requests", "queue", "unlisted"), args)


def _flag(name: str, told: bytes) -> Flag | None:
    """Read a flag; None: it is none that we have written."""
    try:
        fields = json.loads(told)
        until = fields.get("u")
        return Flag(
            name,
            fields.get("p") == 1,
            None if until is None else until / 1000,
            int(fields.get("s", 0)),
            str(fields.get("t", "")),
            str(fields.get("k", "")),
            int(fields.get("n", 0)),
            str(fields.get("f", "")),
            str(fields.get("l", "")),
        )
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _asked(name: bytes, told: bytes, state: bytes) -> Asked | None:
    """Read a request; None: it is none that we have written."""
    match = _REQUEST.fullmatch(told)
    if match is None:
        return None
    rest, parts = match[6], []
    for length in (int(match[3]), int(match[4]), int(match[5])):
        parts.append(rest[:length])
        rest = rest[length:]
    flag, first, last = parts
    found = _STATE.fullmatch(state)
    claimed = None if found is None else EntryState(int(found[1]), read(found[3]))
    pending = 0 if found is None else int(found[2])
    texts = (shown(name), read(flag), shown(rest), int(match[2]), shown(first), shown(last))
    return Asked(*texts, match[1] == b"1", claimed, pending)

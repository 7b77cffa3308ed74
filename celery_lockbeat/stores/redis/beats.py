"""The beats in Redis: what each replica lists, how often each entry has run, and which claims are pending.

What was not written by us counts as lost, is told once, and is written anew: it stops no other entry.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, Final
from urllib.parse import unquote

from celery_lockbeat.exceptions import StoreUnavailable, UnreadableKey
from celery_lockbeat.stores.base import (
    ALIVE,
    BACKLOG,
    LISTED_AT_MOST,
    OVERDUE_AT_ONCE,
    STATE_MEMORY,
    Beats,
    BeatStore,
    Claim,
    Claims,
    EntryState,
    Joined,
    Overdue,
    Passed,
    Replica,
    StoredEntry,
    is_request,
)
from celery_lockbeat.stores.redis.appkeys import AppKeys
from celery_lockbeat.stores.redis.client import Client
from celery_lockbeat.stores.redis.names import exact, ms, plain, read, seconds, shown, unquoted
from celery_lockbeat.stores.redis.scripts import Script

__all__ = ["RedisBeats"]

logger: Final = logging.getLogger("celery_lockbeat")

#: The types of their keys, but for the cold start, of which join.lua makes sure itself.
TYPES: Final = {
    "entries": "hash",
    "claims": "hash",
    "pending": "zset",
    "listing": "set",
    "unlisted": "zset",
    "flags": "hash",
}

#: Bytes of a claim, of which none of ours has a hundredth.
CLAIM_AT_MOST: Final = 65536

#: '<replica> <run> <length of the entry> <entry><details>', see claim.lua.
_CLAIM: Final = re.compile(rb"[^ ]* (\d{1,15}) (\d{1,5}) (.*)", re.DOTALL)


class RedisBeats(BeatStore):
    """The beats of all apps under a client's prefix."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._keys = AppKeys(client, TYPES)
        self._join, self._leave = Script.of("lock", "join"), Script.of("leave")
        self._list, self._settle = Script.of("state", "list"), Script.of("state", "settle")
        self._claim, self._take_over = (Script.of("state", "flags", name) for name in ("claim", "take_over"))
        self._drop = Script.of("drop")

    def join(self, app: str, replica: str, *, cold_start: float | None = None) -> Joined:
        names = ("replicas", "listing", "cold_start", f"names:{plain(replica)}")
        earlier = "" if cold_start is None else round(cold_start * 1000)
        args = (plain(replica), ms(ALIVE), ms(STATE_MEMORY), earlier)
        started, now = self._keys.call(app, self._join, names, args)
        if started < 0:
            (where,) = self._keys.of(app, "cold_start")
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
        listed = f"names:{plain(replica)}"
        names = ("entries", "unlisted", "replicas", "listing", listed, "claims", "pending", "cold_start")
        args: list[Any] = [plain(replica), ms(STATE_MEMORY), int(complete), self._keys.of(app, "names:")[0]]
        args += (len(removed), *map(exact, removed))
        for name, state in entries:
            args += (exact(name), state.total_run_count, exact(state.last_run_at))
        states, unreadable = self._keys.call(app, self._list, names, args, replicated=bool(entries))
        self._tell_unreadable(app, unreadable)
        return [_state(text) for text in states]

    def claim(self, app: str, replica: str, claims: Sequence[Claim], *, ttl: float, skip: int = 0) -> Claims:
        names = ("entries", "claims", "pending", "replicas", "listing", "unlisted", "flags")
        prefix = self._keys.of(app, "names:")[0]
        args: list[Any] = [
            plain(replica),
            ms(ttl),
            ms(ALIVE),
            ms(STATE_MEMORY),
            BACKLOG,
            OVERDUE_AT_ONCE,
            skip,
            prefix,
        ]
        for claim in claims:
            entry = exact(claim.entry)
            told = b"%d %b%b" % (len(entry), entry, json.dumps(claim.details, separators=(",", ":")).encode())
            condition = b"" if claim.after is None else b"%d%b" % (claim.alone, exact(claim.after))
            last_run_at, flag = exact(claim.state.last_run_at), exact(claim.flag)
            args += (entry, claim.state.total_run_count, last_run_at, plain(claim.task_id), told, condition, flag)
        within = min(ttl, self._client.time_allowed)  # a later answer is not published
        answer = self._keys.call(app, self._claim, names, args, replicated=bool(claims), within=within)
        now, listed, until, refusals, told, unreadable = answer
        self._tell_unreadable(app, unreadable)
        overdue = {pair: _overdue(*pair) for pair in zip(told[::2], told[1::2], strict=True)}
        self._drop_unreadable(app, [pair for pair, claim in overdue.items() if claim is None])
        return Claims(
            [_passed(refusal) or _state(refusal) if refusal else None for refusal in refusals],
            [claim for claim in overdue.values() if claim is not None],
            None if until < 0 else until / 1000,
            now / 1000,
            bool(listed),
        )

    def take_over(
        self, app: str, replica: str, task_ids: Sequence[str], *, ttl: float, flags: Sequence[str] = ()
    ) -> list[bool | Passed]:
        args: list[Any] = [plain(replica), ms(ttl)]
        for task_id, flag in zip_longest(task_ids, flags, fillvalue=""):
            args += (plain(task_id), exact(flag))
        taken = self._keys.call(app, self._take_over, ("claims", "pending", "entries", "flags"), args, replicated=True)
        return [answer == 1 if isinstance(answer, int) else _passed(answer) or False for answer in taken]

    def settle(
        self, app: str, replica: str, published: Sequence[tuple[str, str]], *, handed_over: Sequence[str] = ()
    ) -> list[bool]:
        args: list[Any] = [plain(replica), len(published)]
        for task_id, entry in published:
            args += (plain(task_id), exact(entry))
        args += map(plain, handed_over)
        settled = self._keys.call(app, self._settle, ("entries", "claims", "pending"), args)
        return [answer == 1 for answer in settled]

    def leave(self, app: str, replica: str) -> None:
        self._keys.call(app, self._leave, ("replicas", "listing"), (plain(replica),))

    def status(self, app: str, *, limit: int = LISTED_AT_MOST) -> Beats:
        entries, replicas, listing, pending = self._keys.of(app, "entries", "replicas", "listing", "pending")
        node = self._client.node_of(entries)
        time_, answer = self._client.answers(node, ("TIME",), ("ZRANGE", replicas, 0, limit - 1))
        now, names = seconds(self._client.accepted(time_)), self._client.accepted(answer)
        overdue, *heard = self._client.answers(
            node, ("ZCOUNT", pending, "-inf", f"{now * 1000:.0f}"), *(("ZSCORE", replicas, name) for name in names)
        )
        incomplete = set(self._client.members(node, "SSCAN", listing, limit=limit))
        prefix = self._keys.of(app, "names:")[0]
        lists = [
            self._client.members(node, "SSCAN", f"{prefix}{name.decode('latin-1')}", limit=limit) for name in names
        ]
        fields = self._client.members(node, "HSCAN", entries, limit=2 * limit)
        try:
            told = [
                Replica(unquoted(name), _silent_for(now, last), frozenset(map(read, listed)), name not in incomplete)
                for name, last, listed in zip(names, map(self._client.accepted, heard), lists, strict=True)
            ]
            stored = [entry for entry in _stored(fields) if not is_request(entry.name)]
        except ValueError as exc:
            raise StoreUnavailable(
                f"{self._client.where} has what no beat wrote, in {entries} or near it: {exc}"
            ) from exc
        return Beats(told, stored, self._client.accepted(overdue))

    def _tell_unreadable(self, app: str, unreadable: Sequence[bytes]) -> None:
        for entry, begins in zip(unreadable[::2], unreadable[1::2], strict=True):
            (where,) = self._keys.of(app, "entries")
            text = "the state of entry %r in key %r in Redis is none (%r...): it counts as lost, and is written anew"
            logger.error(text, read(entry), where, begins)

    def _drop_unreadable(self, app: str, unreadable: Sequence[tuple[bytes, bytes]]) -> None:
        if not unreadable:
            return
        for task_id, told in unreadable:
            (where,) = self._keys.of(app, "claims")
            text = (
                "claim %r in key %r in Redis is none (%r...), and is dropped: its tick is lost, if it was not yet sent"
            )
            logger.error(text, shown(task_id), where, told[:64])
        pairs = [part[:CLAIM_AT_MOST] for pair in unreadable for part in pair]
        self._keys.call(app, self._drop, ("claims", "pending"), pairs)


def _silent_for(now: float, last: bytes | None) -> float:
    return now - float(last) / 1000 if last and float(last) else math.inf


def _stored(fields: Sequence[bytes]) -> list[StoredEntry]:
    states = dict(zip(fields[::2], fields[1::2], strict=True))  # HSCAN may tell a field twice
    return [StoredEntry(read(name), _state(text), int(text.split(b" ", 2)[1])) for name, text in states.items()]


def _state(text: bytes) -> EntryState:
    count, _pending, last_run_at = text.split(b" ", 2)
    return EntryState(int(count), read(last_run_at))


def _passed(answer: bytes) -> Passed | None:
    """Read why a tick is passed over (see flags.lua); None: it is another answer."""
    why, _, told = answer.partition(b" ")
    return Passed(why.decode(), shown(told)) if why in (b"paused", b"skipped") else None


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
    ours = isinstance(details, dict) and (task_id.encode() == id_ or plain(task_id).encode() == id_)
    return Overdue(task_id, entry, run, details) if ours else None

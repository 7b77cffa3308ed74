"""The beats in PostgreSQL: replicas and what they list, entries and their claims."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import zip_longest

from celery_lockbeat.contrib.django.postgresql.client import Client
from celery_lockbeat.contrib.django.postgresql.names import exact, named, short, text, us
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

__all__ = ["PostgresBeats"]


class PostgresBeats(BeatStore):
    """The beats of all apps under a client's prefix."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def join(self, app: str, replica: str, *, cold_start: float | None = None) -> Joined:
        earlier = None if cold_start is None else round(cold_start * 1e6)
        started, now = self._client.call("lockbeat_join", self._client.row_key(app), replica, us(ALIVE), earlier)
        return Joined(started / 1e6, now / 1e6)

    def list_entries(
        self,
        app: str,
        replica: str,
        entries: Sequence[tuple[str, EntryState]],
        *,
        removed: Sequence[str] = (),
        complete: bool = False,
    ) -> list[EntryState]:
        told = [(short(name), state.total_run_count, exact(state.last_run_at).hex()) for name, state in entries]
        gone = [short(name) for name in removed]
        states = self._client.call(
            "lockbeat_list", self._client.row_key(app), replica, us(ALIVE), json.dumps(told), json.dumps(gone), complete
        )
        return [_state(state) for state in states]

    def claim(self, app: str, replica: str, claims: Sequence[Claim], *, ttl: float, skip: int = 0) -> Claims:
        told = [
            (
                short(claim.entry),
                exact(claim.entry).hex(),
                claim.state.total_run_count,
                exact(claim.state.last_run_at).hex(),
                claim.task_id,
                json.dumps(claim.details),
                None if claim.after is None else exact(claim.after).hex(),
                claim.alone,
                short(claim.flag) if claim.flag else None,
            )
            for claim in claims
        ]
        now, listed, until, refusals, overdue = self._client.call(
            "lockbeat_claim_ticks",
            self._client.row_key(app),
            replica,
            json.dumps(told),
            us(ttl),
            us(ALIVE),
            us(STATE_MEMORY),
            BACKLOG,
            OVERDUE_AT_ONCE,
            skip,
        )
        return Claims(
            [None if refusal is None else _refusal(*refusal) for refusal in refusals],
            [Overdue(task_id, text(name), run, json.loads(details)) for task_id, name, run, details in overdue],
            None if until is None else until / 1e6,
            now / 1e6,
            listed,
        )

    def take_over(
        self, app: str, replica: str, task_ids: Sequence[str], *, ttl: float, flags: Sequence[str] = ()
    ) -> list[bool | Passed]:
        asked = [(task_id, short(flag) if flag else None) for task_id, flag in zip_longest(task_ids, flags)]
        whose = self._client.row_key(app)
        taken, passed = self._client.call("lockbeat_take_over_or_pass", whose, replica, json.dumps(asked), us(ttl))
        return [Passed("paused", passed[each]) if each in passed else each in taken for each in task_ids]

    def settle(
        self, app: str, replica: str, published: Sequence[tuple[str, str]], *, handed_over: Sequence[str] = ()
    ) -> list[bool]:
        ids = [task_id for task_id, _ in published]
        settled = self._client.call(
            "lockbeat_settle", self._client.row_key(app), replica, json.dumps(ids), json.dumps(handed_over)
        )
        return [task_id in settled for task_id in ids]

    def leave(self, app: str, replica: str) -> None:
        self._client.call("lockbeat_leave", self._client.row_key(app), replica)

    def status(self, app: str, *, limit: int = LISTED_AT_MOST) -> Beats:
        replicas, entries, overdue = self._client.call("lockbeat_beats", self._client.row_key(app), limit)
        return Beats(
            [
                Replica(name, math.inf if silent is None else silent / 1e6, frozenset(map(named, listed)), complete)
                for name, silent, listed, complete in replicas
            ],
            [
                StoredEntry(named(name), EntryState(count, text(last_run_at)), pending)
                for name, count, last_run_at, pending in entries
                if not is_request(named(name))
            ],
            overdue,
        )


def _refusal(count: int | None, told: str, why: str = "") -> EntryState | Passed:
    return _state((count, told)) if count is not None else Passed(told, why)


def _state(told: tuple[int, str]) -> EntryState:
    count, last_run_at = told
    return EntryState(count, text(last_run_at))

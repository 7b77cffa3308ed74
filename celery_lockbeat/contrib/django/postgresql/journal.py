"""The journal in PostgreSQL."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from celery_lockbeat.contrib.django.postgresql.client import Client
from celery_lockbeat.contrib.django.postgresql.names import us
from celery_lockbeat.stores.base import JOURNAL_MEMORY, JOURNALED_AT_ONCE, JournalStore, StoredRecord
from celery_lockbeat.stores.sqlite.journal import is_position

__all__ = ["PostgresJournal"]


class PostgresJournal(JournalStore):
    """The journals of all apps under a client's prefix."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def append(
        self,
        app: str,
        batch: str,
        texts: Sequence[str],
        *,
        keep: int,
        remember_for: float = 3600.0,
        forget: str | None = None,
        within: float | None = None,
    ) -> bool:
        appended: bool = self._client.call(
            "lockbeat_append",
            self._client.row_key(app),
            batch,
            json.dumps(texts),
            keep,
            us(remember_for),
            forget,
            JOURNAL_MEMORY,
            within=math.inf if within is None else within,
        )
        return appended

    def records(
        self,
        app: str,
        *,
        after: str | None = None,
        before: str | None = None,
        since: float | None = None,
        newest_first: bool = False,
        limit: int = JOURNALED_AT_ONCE,
    ) -> list[StoredRecord]:
        if not all(is_position(position) for position in (after, before) if position is not None):
            return []
        bounds = [None if position is None else int(position) for position in (after, before)]
        rows = self._client.call(
            "lockbeat_records",
            self._client.row_key(app),
            *bounds,
            since,
            newest_first,
            min(limit, JOURNALED_AT_ONCE),
        )
        return [StoredRecord(str(position), written, text) for position, written, text in rows]

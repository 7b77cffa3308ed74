"""Announcements in PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from celery_lockbeat.contrib.django.postgresql.client import Client
from celery_lockbeat.contrib.django.postgresql.names import exact, short, text, us
from celery_lockbeat.stores.base import LISTED_AT_MOST, Announcement, AnnouncementStore

__all__ = ["PostgresAnnouncements"]


class PostgresAnnouncements(AnnouncementStore):
    """The announcements of all apps under a client's prefix."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def announce(self, app: str, kind: str, texts: Mapping[str, str], *, ttl: float) -> None:
        rows = [(short(name), exact(name).hex(), value) for name, value in texts.items()]
        self._client.call("lockbeat_announce", self._client.row_key(app), kind, json.dumps(rows), us(ttl))

    def announced(
        self, app: str, kind: str, names: Sequence[str] | None = None, *, limit: int = LISTED_AT_MOST
    ) -> list[Announcement]:
        asked = None if names is None else json.dumps([short(name) for name in names])
        rows = self._client.call("lockbeat_announced_of", self._client.row_key(app), kind, asked, limit)
        return [Announcement(text(name), told, first / 1e6, silent / 1e6) for name, told, first, silent in rows]

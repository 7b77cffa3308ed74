"""Announcements in Redis: for each kind a hash of texts, and the ends of their times."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from celery_lockbeat.stores.base import ANNOUNCED, LISTED_AT_MOST, Announcement, AnnouncementStore
from celery_lockbeat.stores.redis.appkeys import AppKeys
from celery_lockbeat.stores.redis.client import Client
from celery_lockbeat.stores.redis.names import exact, ms, read, shown
from celery_lockbeat.stores.redis.scripts import Script

__all__ = ["RedisAnnouncements"]

#: The types of their keys.
TYPES: Final = {
    **{f"announced:{kind}": "hash" for kind in ANNOUNCED},
    **{f"until:{kind}": "zset" for kind in ANNOUNCED},
}

#: '<first ms> <last ms> <until ms> <text>', see announce.lua.
_ANNOUNCED: Final = re.compile(rb"(\d{1,15}) (\d{1,15}) (\d{1,15}) (.*)", re.DOTALL)


class RedisAnnouncements(AnnouncementStore):
    """The announcements of all apps under a client's prefix."""

    def __init__(self, client: Client) -> None:
        self._keys = AppKeys(client, TYPES)
        self._announce, self._announced = Script.of("announce"), Script.of("announced")

    def announce(self, app: str, kind: str, texts: Mapping[str, str], *, ttl: float) -> None:
        args: list[Any] = [ms(ttl)]
        for name, text in texts.items():
            args += (exact(name), text)
        self._keys.call(app, self._announce, (f"announced:{kind}", f"until:{kind}"), args)

    def announced(
        self, app: str, kind: str, names: Sequence[str] | None = None, *, limit: int = LISTED_AT_MOST
    ) -> list[Announcement]:
        if names is not None and not names:
            return []
        args = [limit, *map(exact, names or ())]
        now, told = self._keys.call(app, self._announced, (f"announced:{kind}", f"until:{kind}"), args)
        found = []
        for name, value in zip(told[::2], told[1::2], strict=True):
            match = _ANNOUNCED.fullmatch(value)
            if match is not None and int(match[3]) > now:  # else it was not written by us
                first, last = int(match[1]) / 1000, (now - int(match[2])) / 1000
                found.append(Announcement(read(name), shown(match[4]), first, last))
        return found

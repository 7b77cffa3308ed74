"""The store in Redis or Valkey: one Lua script, one round trip, one hash tag per operation.

Promises the contract of ``base.py`` as far as the server keeps what it acknowledged. A failover to a replica that had
not yet received a write loses that write: ``min_replicas`` narrows this (WAIT), the fencing token answers the rest.
Times are the server's. Redis keys and milliseconds are known in this directory alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from celery_lockbeat.stores.base import Store
from celery_lockbeat.stores.redis.announcements import RedisAnnouncements
from celery_lockbeat.stores.redis.beats import RedisBeats
from celery_lockbeat.stores.redis.client import Client
from celery_lockbeat.stores.redis.controls import RedisControls
from celery_lockbeat.stores.redis.formats import check_format
from celery_lockbeat.stores.redis.inspection import Inspection, ServerFacts
from celery_lockbeat.stores.redis.journal import RedisJournal
from celery_lockbeat.stores.redis.locks import RedisLocks

__all__ = ["RedisStore", "ServerFacts"]


class RedisStore(Store):
    """One Redis or Valkey database, or a Cluster; every operation costs one round trip.

    ``url`` and ``options`` are what :func:`~celery_lockbeat.stores.redis.client.open_servers` takes. With ``min_replicas``, what
    was granted, extended or remembered counts only once so many replicas have it. ``setting`` says where the URL is from,
    and ``spell`` writes settings as their user does, in what is told.
    """

    driver: ClassVar[str] = "redis"

    def __init__(
        self,
        url: str,
        *,
        options: Mapping[str, Any] | None = None,
        key_prefix: str = "lockbeat:",
        min_replicas: int = 0,
        setting: str = "",
        spell: Callable[[str], str] = str,
    ) -> None:
        client = Client(
            url, options=options, prefix=key_prefix, min_replicas=min_replicas, setting=setting, spell=spell
        )
        self._knows_format = False
        self._share(client)

    def _share(self, client: Client) -> None:
        self.client = client
        self.locks = RedisLocks(client)
        self.beats = RedisBeats(client)
        self.controls = RedisControls(client)
        self.announcements = RedisAnnouncements(client)
        self.journal = RedisJournal(client)
        self._inspection = Inspection(client)

    def check(self) -> None:
        self._inspection.check()
        check_format(self.client, begins=not self._knows_format)
        self._knows_format = True

    def facts(self, app: str) -> list[ServerFacts]:
        """Ask each server about itself, and try what this store and the beats of ``app`` need. Raises StoreUnavailable.

        What is not permitted is among the facts. The trial leaves nothing behind.
        """
        return self._inspection.facts(app)

    def twin(self) -> RedisStore:
        twin = copy.copy(self)
        twin._share(self.client.twin())
        return twin

    def close(self) -> None:
        self.client.servers.close()

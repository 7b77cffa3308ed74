"""The keys of one app's beats: they share a hash tag, and each has its type.

Promises: a key that holds what no store has written is renamed, not deleted, and what it held counts as lost.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from redis.exceptions import ResponseError

from celery_lockbeat.exceptions import StoreUnavailable
from celery_lockbeat.stores.base import STATE_MEMORY
from celery_lockbeat.stores.redis.client import Client
from celery_lockbeat.stores.redis.names import app_keys, ms, shown
from celery_lockbeat.stores.redis.scripts import Script, to_word

__all__ = ["AppKeys"]

logger: Final = logging.getLogger("celery_lockbeat")


class AppKeys:
    """The keys of one part of a store, by their names, with the type of each; the replicas' is among all."""

    def __init__(self, client: Client, types: Mapping[str, str]) -> None:
        self._client = client
        # the replicas come first, see set_aside.lua
        self._types = {"replicas": "zset", **types}
        self._set_aside = Script.of("set_aside")

    def call(
        self,
        app: str,
        script: Script,
        names: Sequence[str],
        args: Sequence[Any],
        *,
        replicated: bool = False,
        within: float | None = None,
    ) -> Any:
        """Call a script on keys of an app's beats; those that hold another type are renamed, and count as lost."""
        keys, words = self.of(app, *names), tuple(map(to_word, args))
        try:
            return self._client.call(script, keys, words, replicated=replicated, within=within)
        except StoreUnavailable as exc:
            if not isinstance(exc.__cause__, ResponseError) or "WRONGTYPE" not in str(exc.__cause__):
                raise
        prefix = self.of(app, "names:")[0]
        what = (prefix, ms(STATE_MEMORY), *self._types.values())
        renamed = self._client.call(self._set_aside, self.of(app, *self._types), what)
        for key, kind in zip(renamed[::2], renamed[1::2], strict=True):
            logger.error(
                "key %r in Redis is a %s, which no beat of %r has written: what it held is lost, and it is renamed to"
                " '...:unreadable' for a week, unless you delete it before",
                *(shown(key), shown(kind), app),
            )
        # whatever of it was carried out before it failed, it can be repeated
        return self._client.call(script, keys, words, replicated=replicated, within=within)

    def of(self, app: str, *names: str) -> tuple[str, ...]:
        """Name keys of an app's beats."""
        return app_keys(self._client.prefix, app, *names)

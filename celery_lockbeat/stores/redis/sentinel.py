"""The primary that Sentinels name: ``sentinel://host:port;sentinel://host:port`` and the option ``master_name``."""

from __future__ import annotations

from typing import ClassVar
from urllib.parse import unquote, urlsplit

from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from celery_lockbeat.stores.redis.node import Line, Node
from celery_lockbeat.stores.redis.servers import Servers

__all__ = ["Sentinels"]


class Sentinels(Servers):
    """The primary of now; it is asked for again when it does not answer, or has no replicas."""

    own_options = ("master_name", "min_other_sentinels", "sentinel_kwargs")

    _only: _Primary

    def _open(self, url: str) -> None:
        parts = [urlsplit(each) for each in url.split(";")]
        arguments = self._arguments
        name = arguments.pop("master_name")
        # all of them may be asked in turn before one answers
        each_timeout = self.connect_timeout / len(parts)
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            [(part.hostname or "localhost", part.port or 26379) for part in parts],
            min_other_sentinels=arguments.pop("min_other_sentinels", 0),
            sentinel_kwargs={
                "socket_timeout": each_timeout,
                "socket_connect_timeout": each_timeout,
                "retry": Retry(NoBackoff(), 0),
                **(arguments.pop("sentinel_kwargs", None) or {}),
            },
        )
        for part in reversed(parts):  # the first that says it counts
            if part.username:
                arguments["username"] = unquote(part.username)
            if part.password:
                arguments["password"] = unquote(part.password)
            if part.path.strip("/"):
                arguments["db"] = int(part.path.strip("/"))
        pool = SentinelConnectionPool(name, sentinel, **arguments)  # type: ignore[no-untyped-call]
        self._only = _Primary(self._checked(pool))

    def _reach_another(self) -> bool:
        return True

    def _doubt(self) -> None:
        # A primary that stood still while it was replaced takes itself for it still, and its replicas are another's. The
        # Sentinels make it a replica, and close our connections to it, only after ten seconds.
        self._only.close()


class _Primary(Node):
    """The server that is the primary now."""

    moves: ClassVar[bool] = True

    def _is_outdated(self, line: Line) -> bool:
        # another thread may have learned of a new primary, while the old one still answers
        address = self._pool.master_address
        return address is not None and (line.connection.host, line.connection.port) != address

"""What the parts of a store in Redis share: the servers, the prefix of their keys, and how what goes wrong is told.

Promises: a script is called once for each operation, within the time that its caller has; whatever goes wrong is raised as
StoreUnavailable, in the terms of whoever looks after the server, and no password is in it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from redis.exceptions import RedisError, ResponseError

from celery_lockbeat.exceptions import ConfigurationError, StoreRefused, StoreUnavailable
from celery_lockbeat.process import leaves_its_parents
from celery_lockbeat.stores.redis.cluster import Cluster
from celery_lockbeat.stores.redis.node import Node
from celery_lockbeat.stores.redis.refusals import TooFewReplicas, WrongServer, why
from celery_lockbeat.stores.redis.scripts import Call, Request, Script
from celery_lockbeat.stores.redis.sentinel import Sentinels
from celery_lockbeat.stores.redis.servers import Servers

__all__ = ["Client", "open_servers", "where"]

#: As many keys or fields are asked for in one round trip of a listing.
SCANNED_AT_ONCE: Final = 1000


#: Seconds for which a list is waited for at least.
LISTENS_AT_LEAST: Final = 0.01


class Client:
    """The way to one Redis or Valkey database, or to a Cluster; see :class:`~celery_lockbeat.stores.redis.store.RedisStore`."""

    def __init__(
        self,
        url: str,
        *,
        options: Mapping[str, Any] | None,
        prefix: str,
        min_replicas: int,
        setting: str,
        spell: Callable[[str], str],
    ) -> None:
        self.servers = open_servers(url, options, setting or "the Redis URL")
        #: seconds for which an operation asks again at most
        self.time_allowed = self.servers.time_allowed
        self.where = f"{where(url)} ({setting})" if setting else where(url)
        self.spelled = spell
        self.prefix = prefix
        self.min_replicas = min_replicas
        leaves_its_parents(self)

    def twin(self) -> Client:
        """Return a client of the same servers, without a connection to them."""
        twin = copy.copy(self)
        twin.servers = self.servers.anew()
        leaves_its_parents(twin)
        return twin

    def leave_the_parents(self) -> object:
        """Start anew in a forked child; returns what must not be touched there."""
        # redis-py would wait for its own locks, which a thread that is not there may hold; its destructors take them, too
        parents, self.servers = self.servers, self.servers.anew()
        return parents

    def call(
        self,
        script: Script,
        keys: tuple[str, ...],
        args: tuple[str, ...],
        *,
        replicated: bool = False,
        within: float | None = None,
    ) -> Any:
        """Run one script; return its answer. Raises StoreUnavailable.

        ``replicated``: it counts only once ``min_replicas`` have it.
        """
        return self.carry_out(Call(script, keys, args), replicated=replicated, within=within)

    def carry_out(self, call: Call, *, replicated: bool = False, within: float | None = None) -> Any:
        """Do as ``call`` does."""
        within = self.time_allowed if within is None else within
        if replicated and self.min_replicas:
            (answer,) = self.servers.ask([call], within, min_replicas=self.min_replicas)
        else:
            answer = self.servers.ask_one(call, within)
        if isinstance(answer, Exception):
            raise self.unavailable(answer, call) from answer
        return answer

    def unavailable(self, exc: Exception, call: Call | None = None) -> StoreUnavailable:
        """Say in its user's terms why there is no answer."""
        # Nothing is undone: a lease that was written ends with its ttl, and asking again gives it back.
        told = why(exc, call, self.min_replicas)
        if self.servers.says_no(exc):
            says = "is not as its URL says" if isinstance(exc, WrongServer) else "refuses us"
            return StoreRefused(self.spelled(f"{self.where} {says}: {told}"))
        says = "answers" if isinstance(exc, (ResponseError, TooFewReplicas)) else "does not answer"
        return StoreUnavailable(self.spelled(f"{self.where} {says}: {told}"))

    def listen(self, key: str, within: float) -> bool:
        """Wait for something in a list, for so many seconds at most, and take it out; whether there was. Raises StoreUnavailable."""
        node = self.node_of(key)
        within = max(LISTENS_AT_LEAST, within)  # 0 is for ever
        try:
            (answer,) = node.converse([Request.of("BLPOP", key, f"{within:.3f}")], within + self.servers.timeout)
        except (RedisError, OSError) as exc:
            raise self.unavailable(exc) from exc
        return self.accepted(answer) is not None

    # -- commands of one server, for operators: a script would stop all others meanwhile ----------------------------------

    def answers(self, node: Node, *commands: tuple[Any, ...]) -> list[Any]:
        """Carry out commands; a refusal is an answer too. Raises StoreUnavailable."""
        try:
            return node.converse([Request.of(*words) for words in commands], self.servers.timeout)
        except (RedisError, OSError) as exc:
            raise self.unavailable(exc) from exc

    def accepted(self, answer: Any) -> Any:
        """Return an answer, if it is no refusal. Raises StoreUnavailable."""
        if isinstance(answer, ResponseError):
            raise self.unavailable(answer) from answer
        return answer

    def primaries(self) -> list[Node]:
        """Return the servers that may be written to. Raises StoreUnavailable."""
        try:
            return list(self.servers.primaries())
        except (RedisError, OSError) as exc:
            raise self.unavailable(exc) from exc

    def node_of(self, key: str) -> Node:
        """Return the server that has this key. Raises StoreUnavailable."""
        try:
            return self.servers.node_of(key)
        except (RedisError, OSError) as exc:
            raise self.unavailable(exc) from exc

    def scan(self, node: Node, command: str, *arguments: str) -> Iterator[list[bytes]]:
        """Go through all keys (SCAN), or what is in one of them, by and by. Raises StoreUnavailable."""
        cursor: Any = 0
        before, after = ((), arguments) if command == "SCAN" else (arguments, ())
        while True:
            (answer,) = self.answers(node, (command, *before, cursor, *after, "COUNT", SCANNED_AT_ONCE))
            cursor, some = self.accepted(answer)
            yield some
            if int(cursor) == 0:
                return

    def members(self, node: Node, command: str, key: str, *, limit: int) -> list[bytes]:
        """Return what is in a key, up to a limit. Raises StoreUnavailable."""
        found: list[bytes] = []
        for some in self.scan(node, command, key):
            found += some
            if len(found) >= limit:
                break
        return found[:limit]


def open_servers(url: str, options: Mapping[str, Any] | None = None, setting: str = "the Redis URL") -> Servers:
    """Choose by the URL, which ``setting`` says, and the options; connects at the first call. Raises ConfigurationError."""
    arguments = dict(options or {})
    kind = Sentinels if url.startswith("sentinel://") else Cluster if arguments.pop("cluster", False) else Servers
    try:
        return kind(url, arguments, setting)
    except ConfigurationError:
        raise
    except (ValueError, TypeError, RedisError) as exc:
        msg = f"cannot make a Redis client of lockbeat_redis_options and {setting}: {exc}"
        raise ConfigurationError(msg) from None


def where(url: str) -> str:
    """Say where a URL leads, without who asks there."""
    parts = [urlsplit(part) for part in url.split(";")]
    sentinels = url.startswith("sentinel://")
    port = 26379 if sentinels else 6379
    places = [
        part.path if part.scheme == "unix" else f"{part.hostname or 'localhost'}:{part.port or port}" for part in parts
    ]
    return f"the Redis {'that Sentinels name ' if sentinels else ''}at {', '.join(places)}"

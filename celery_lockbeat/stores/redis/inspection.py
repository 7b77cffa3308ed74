"""Whether a server can do what locks and beats need of it: asked once before they begin, and by ``doctor``, with all else.

What is tried leaves nothing behind.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import MovedError, NoScriptError, RedisError, ResponseError

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import ConfigurationError, StoreRefused, StoreUnavailable
from celery_lockbeat.stores.redis.client import Client
from celery_lockbeat.stores.redis.cluster import SLOTS, Cluster
from celery_lockbeat.stores.redis.locks import is_over
from celery_lockbeat.stores.redis.names import app_keys, seconds, shown
from celery_lockbeat.stores.redis.node import Node
from celery_lockbeat.stores.redis.refusals import refuses
from celery_lockbeat.stores.redis.scripts import Request, Script

__all__ = ["Inspection", "ServerFacts"]

logger: Final = logging.getLogger("celery_lockbeat")

#: ZMSCORE, in list.lua, is the newest that is needed.
OLDEST: Final = (6, 2)

EVICTS: Final = (
    "the Redis of the locks may drop them: its maxmemory_policy is %s, with a maxmemory of %.0f MiB. A lock that is evicted is "
    "free while its run goes on, a run that is evicted may run again, and a beat's entries lose their past. Set the policy to "
    "noeviction, or give the locks a server of their own (lockbeat_redis_url)"
)

#: The name of the keys of a trial, which no lock and nothing of the beats has.
_TRIAL: Final = "%~trial"

#: Of so many keys one is on another node, if the server is one of a Cluster's.
SPREAD: Final = 32

#: Round trips that are measured for :meth:`RedisStore.facts`.
ROUND_TRIPS: Final = 5

#: So many of these are enough to estimate what all keys are.
SAMPLES: Final = 20

#: What a finished run takes in memory beside the name of its key, bytes: measured by ``benchmarks/remembered.py``.
BESIDE_ITS_NAME: Final = 108


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerFacts:
    """What a server tells about itself, to those who look for trouble before it comes.

    ``info`` is its answer to INFO, empty where that is not permitted, and ``save`` its setting, None likewise.
    ``clock_ahead`` is by how much the wall clock of this host is ahead of its own; ``round_trips`` are seconds. ``refused``
    are the commands that the store needs and may not use, by what was tried on which key, and ``failing`` those that
    failed for another reason, each with the server's words. ``asks_cluster``: whether the client knows clusters. ``remembered``
    is about how many bytes finished runs take, None where nothing limits them or it may not be asked.
    """

    address: str
    info: Mapping[str, Any]
    save: str | None
    clock_ahead: float
    round_trips: Sequence[float]
    refused: Mapping[str, str]
    failing: Mapping[str, str]
    asks_cluster: bool = False
    remembered: float | None = None


class Inspection:
    """Of the servers of one client."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._checked = False
        self._probe = Script.of("probe")

    def check(self) -> None:
        """Refuse, once, a server that is too old or denies us something; warn of one that may evict locks.

        Raises ConfigurationError, StoreUnavailable.
        """
        if self._checked:
            return
        try:
            facts = self._check_versions()
            self._check_permissions()
        except StoreRefused as exc:
            # who only begins here has done nothing yet under settings that were right
            raise ConfigurationError(str(exc)) from exc
        self._checked = True
        for memory in facts:
            if memory.get("maxmemory", "0") != "0" and memory.get("maxmemory_policy") != "noeviction":
                logger.warning(EVICTS, memory.get("maxmemory_policy"), int(memory["maxmemory"]) / 2**20)
                break

    def _check_versions(self) -> list[dict[str, str]]:
        """Refuse a server that is too old; return what each tells of its memory."""
        try:
            facts = [_facts(node, self._client.servers.timeout) for node in self._client.servers.primaries()]
        except (RedisError, OSError) as exc:
            raise self._client.unavailable(exc) from exc
        for version, _ in facts:
            if version and tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
                oldest = ".".join(map(str, OLDEST))
                raise ConfigurationError(f"the Redis of the locks is of version {version}; allowed: from {oldest} on")
        return [memory for _, memory in facts]

    def _check_permissions(self) -> None:
        for node in self._client.primaries():
            # in a Cluster they are on all of its nodes
            spread = [("EXISTS", f"{self._client.prefix}lock:{{{_TRIAL}{number}}}") for number in range(SPREAD)]
            for answer in self._client.answers(node, *spread):
                if isinstance(answer, MovedError) and not isinstance(self._client.servers, Cluster):
                    raise self._client.unavailable(answer)
            notes: dict[str, ResponseError] = {}
            self._try_all(notes, node, "")
            refused = [f"{command}: {exc}" for command, exc in notes.items() if refuses(exc)]
            if refused:
                raise StoreRefused(f"{self._client.where} refuses us: {'; '.join(refused)}")

    def facts(self, app: str) -> list[ServerFacts]:
        """Ask each server about itself, and try what this store and the beats of ``app`` need. Raises StoreUnavailable.

        What is not permitted is among the facts. The trial leaves nothing behind.
        """
        return [self._facts_of(node, app) for node in self._client.primaries()]

    def _facts_of(self, node: Node, app: str) -> ServerFacts:
        notes: dict[str, ResponseError] = {}
        self._note(notes, node, ("TIME",))  # it connects
        round_trips, clock_ahead = [], 0.0
        for _ in range(ROUND_TRIPS):
            asked, wall = monotonic(), time.time()
            told = self._note(notes, node, ("TIME",))
            round_trips.append(monotonic() - asked)
            if told is not None:
                clock_ahead = wall + round_trips[-1] / 2 - seconds(told)
        self._try_all(notes, node, app)
        info, save = self._client.answers(node, ("INFO",), ("CONFIG", "GET", "save"))
        refused = {command: str(exc) for command, exc in notes.items() if refuses(exc)}
        told_info = _info(info)
        return ServerFacts(
            address=node.address,
            info=told_info,
            remembered=self._remembered(node) if told_info.get("maxmemory") else None,
            save=None if isinstance(save, ResponseError) else shown((_pairs(save) or {}).get(b"save", b"")),
            clock_ahead=clock_ahead,
            round_trips=round_trips,
            refused=refused,
            failing={command: str(exc) for command, exc in notes.items() if command not in refused},
            asks_cluster=isinstance(self._client.servers, Cluster),
        )

    def _try_all(self, notes: dict[str, ResponseError], node: Node, app: str) -> None:
        """Try all that locks and beats need of a node; note what fails."""
        for key in self._trial_keys(node, app):
            source = ("EVAL", self._probe.source, 1, key, 0)
            _, told = self._note(notes, node, ("EVALSHA", self._probe.sha, 1, key, 0), source) or (0, [])
            for command, error in zip(told[::2], told[1::2], strict=True):
                notes.setdefault(shown(command), ResponseError(shown(error)))
        if self._client.min_replicas:
            self._note(notes, node, ("WAIT", 0, 1))

    def _remembered(self, node: Node) -> float | None:
        """Estimate the bytes that finished runs take, by some of the keys: SCAN tells them in the order of their hashes."""
        (keys,) = self._client.answers(node, ("DBSIZE",))
        seen, ended, size = 0, 0, 0
        lock, done = (f"{self._client.prefix}{kind}:".encode() for kind in ("lock", "done"))
        try:
            for number, some in enumerate(self._client.scan(node, "SCAN"), 1):
                seen += len(some)
                locks = [key for key in some if key.startswith(lock)]
                values = self._client.answers(node, *(("GET", key) for key in locks)) if locks else []
                # without a holder: what is remembered in the lock's own key, or the counter of its tokens
                over = [key for key, value in zip(locks, values, strict=True) if is_over(value)]
                over += [key for key in some if key.startswith(done)]
                ended, size = ended + len(over), size + sum(map(len, over))
                if number == SAMPLES:
                    break
            return (size + ended * BESIDE_ITS_NAME) * self._client.accepted(keys) / seen if seen else 0.0
        except StoreUnavailable:  # not permitted
            return None

    def _trial_keys(self, node: Node, app: str) -> list[str]:
        """Name keys that this node has and that nobody uses: a lock's, a run's and, where it has them, of the beats."""
        tags = (f"{_TRIAL}{number}" for number in range(SLOTS))
        tag = next((tag for tag in tags if self._client.node_of(f"{self._client.prefix}lock:{{{tag}}}") is node), None)
        locks = (
            []
            if tag is None
            else [f"{self._client.prefix}lock:{{{tag}}}", f"{self._client.prefix}done:{{{tag}}}:{_TRIAL}"]
        )
        return [
            *locks,
            *(key for key in app_keys(self._client.prefix, app, _TRIAL) if self._client.node_of(key) is node),
        ]

    def _note(self, notes: dict[str, ResponseError], node: Node, *commands: tuple[Any, ...]) -> Any:
        """Carry out one command, and the next where the server knows no such script; note what it says to the last."""
        answer: Any = None
        for command in commands:
            (answer,) = self._client.answers(node, command)
            if not isinstance(answer, NoScriptError):
                break
        if not isinstance(answer, ResponseError):
            return answer
        notes.setdefault(str(command[0]), answer)
        return None


def _facts(node: Node, timeout: float) -> tuple[str | None, dict[str, str]]:
    # HELLO needs no permission; a server that does not know it tells its version by INFO, which does
    hello, server, memory = node.converse(
        [Request.of("HELLO"), Request.of("INFO", "server"), Request.of("INFO", "memory")], timeout
    )
    if isinstance(hello, list):
        hello = dict(zip(hello[::2], hello[1::2], strict=True))
    version = hello.get(b"version") if isinstance(hello, dict) else _info_of(server).get("redis_version")
    return version.decode() if isinstance(version, bytes) else version, _info_of(memory)


def _info_of(answer: Any) -> dict[str, str]:
    """Read an answer to INFO; nothing where it was refused."""
    lines = answer.decode("utf-8", "replace").splitlines() if isinstance(answer, bytes) else []
    return {name: value for name, colon, value in (line.partition(":") for line in lines) if colon}


def _info(answer: Any) -> dict[str, Any]:
    """Read an answer to INFO, its numbers as such."""
    return {name: int(value) if value.isdigit() else value for name, value in _info_of(answer).items()}


def _pairs(answer: Any) -> Any:
    """Read a mapping, which RESP2 has no form for."""
    return dict(zip(answer[::2], answer[1::2], strict=True)) if isinstance(answer, list) else answer

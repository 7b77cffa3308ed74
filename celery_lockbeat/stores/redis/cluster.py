"""The nodes of a Cluster: the option ``cluster``. One node of it is enough to know; more, separated by ``;``, are better."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import redis
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError

from celery_lockbeat.stores.redis.node import Node
from celery_lockbeat.stores.redis.refusals import refuses
from celery_lockbeat.stores.redis.scripts import Call, Request
from celery_lockbeat.stores.redis.servers import Progress, Servers

__all__ = ["SLOTS", "Cluster"]

#: Slots of a Cluster.
SLOTS: Final = 16384


class Cluster(Servers):
    """Which node has which slot is asked for at the first key, and again where a node does not answer or says that it moved."""

    own_options = ("address_remap", "cluster")
    is_parted = True

    def _open(self, url: str) -> None:
        self._remap = self._arguments.pop("address_remap", None) or (lambda address: address)
        self._nodes: dict[tuple[str, int], Node] = {}
        #: the address of the node of each slot that we know of
        self._slots: dict[int, tuple[str, int]] = {}
        scheme = "rediss" if self._arguments.pop("ssl", False) else None
        pools = [
            redis.ConnectionPool.from_url(re.sub("^redis:", f"{scheme}:", each) if scheme else each, **self._arguments)
            for each in url.split(";")
        ]
        self._checked(pools[0])
        self._shared = {**pools[0].connection_kwargs, "connection_class": pools[0].connection_class}
        if self._shared.get("db"):
            raise ValueError("a Cluster has database 0 only")
        for pool in pools:
            said = pool.connection_kwargs
            self._node((said.get("host", "localhost"), int(said.get("port", 6379))))

    def _node(self, address: tuple[str, int]) -> Node:
        node = self._nodes.get(address)
        if node is None:
            shared = {**self._shared, "host": address[0], "port": address[1]}
            node = self._nodes.setdefault(address, Node(redis.ConnectionPool(**shared)))
        return node

    def nodes(self) -> Iterable[Node]:
        """Return those that we have heard of."""
        return list(self._nodes.values())

    def primaries(self) -> Iterable[Node]:
        """Return the nodes that have slots."""
        self._learn(self.timeout)
        return [self._node(address) for address in set(self._slots.values())]

    def node_of(self, key: str) -> Node:
        """Return the node of this key's slot, having asked for it if it is not known."""
        slot = key_slot(key.encode())
        if slot not in self._slots:
            self._learn(self.timeout)
        if slot not in self._slots:
            raise ClusterDownError(f"CLUSTERDOWN no node has the slot {slot}")
        return self._node(self._slots[slot])

    def _learn(self, timeout: float) -> None:
        """Ask any node which slots are where."""
        error: Exception = ClusterDownError("CLUSTERDOWN no node is known")
        known = sorted(self._nodes.items(), key=lambda each: each[1].fails)
        for address, node in known:
            try:
                (ranges,) = node.converse([Request.of("CLUSTER", "SLOTS")], timeout / len(known))
                if isinstance(ranges, Exception):
                    raise ranges
            except (RedisError, OSError) as exc:  # noqa: PERF203  free where nothing is raised
                error = exc
            else:
                # range by range: after a failover all threads come here, and there are 16384 slots
                slots: dict[int, tuple[str, int]] = {}
                for first, last, primary, *_ in ranges:
                    its = self._address(primary[0], primary[1], address[0])
                    slots.update(dict.fromkeys(range(first, last + 1), its))
                if slots:
                    self._slots = slots
                    return
        raise error

    def _address(self, host: Any, port: int, unnamed: str) -> tuple[str, int]:
        name = host.decode() if isinstance(host, bytes) else host
        address: tuple[str, int] = self._remap((unnamed if name in (None, "", "?") else name, int(port)))
        return address

    def _follow(self, each: int, call: Call, answer: AskError, progress: Progress) -> bool:
        slot = key_slot(call.keys[0].encode())
        address = self._address(answer.host, answer.port, self._slots[slot][0])
        if isinstance(answer, MovedError):
            self._slots = {**self._slots, slot: address}
        else:
            progress.asking[each] = self._node(address)
        return True

    def _reach_another(self) -> bool:
        self._slots = {}  # a replica may have taken the place of the node that does not answer
        return True

    def says_no(self, answer: Exception) -> bool:
        """Of the nodes of a Cluster, a slot that has moved on once more says nothing."""
        return refuses(answer)

"""Several real servers that belong together: a primary, its replicas and Sentinels; the nodes of a Cluster."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import redis
from redis.crc import key_slot
from servers import Server, _binary, free_port, wait_until

#: The name under which the Sentinels know the primary.
NAME = "locks"


class Trio:
    """A primary, two replicas and three Sentinels that promote one in about two seconds.

    ``user``: replicas read as this user of the primary, so that :meth:`cut_replicas` can keep writes from them.
    """

    def __init__(self, directory: Path, *options: str, password: str | None = None, persistent: bool = False) -> None:
        self._stack = contextlib.ExitStack()
        self.password = password
        self._options, self._persistent = options, persistent
        with self._stack:
            self._found(directory)
            self._stack = self._stack.pop_all()

    def _found(self, directory: Path) -> None:
        password = self.password
        login = ["--requirepass", password, "--masterauth", password] if password else []
        if not password:
            user = ["--user", "replica", "on", ">p", "+psync", "+replconf", "+ping"]
            login = ["--masteruser", "replica", "--masterauth", "p", *user]
        options = ["--repl-diskless-sync-delay", "0", "--repl-backlog-size", "16mb", *login, *self._options]
        primary = self._stack.enter_context(self._member(options))
        of_it = ["--replicaof", "127.0.0.1", str(primary.port)]
        self.servers = [
            primary,
            *(self._stack.enter_context(self._member([*of_it, *options])) for _ in range(2)),
        ]
        self.primary_at_first = primary
        for replica in self.servers[1:]:
            wait_until(lambda replica=replica: replica.info()["master_link_status"] == "up", message="it is in sync")
        self.sentinels = [self._sentinel(directory / f"sentinel{number}") for number in range(3)]
        self.url = ";".join(f"sentinel://127.0.0.1:{port}" for port, _ in self.sentinels)
        wait_until(self._know_each_other, message="the Sentinels know each other and the replicas")

    def _member(self, options: list[str]) -> Member:
        return Member(self.password, *options, persistent=self._persistent)

    def _sentinel(self, directory: Path) -> tuple[int, subprocess.Popen[bytes]]:
        directory.mkdir()
        port, config = free_port(), directory / "sentinel.conf"
        lines = [
            f"port {port}",
            "bind 127.0.0.1",
            f"dir {directory}",
            f"sentinel monitor {NAME} 127.0.0.1 {self.servers[0].port} 2",
            f"sentinel down-after-milliseconds {NAME} 700",
            f"sentinel failover-timeout {NAME} 4000",
            *([f'sentinel auth-pass {NAME} "{self.password}"'] if self.password else []),
        ]
        config.write_text("\n".join(lines) + "\n")
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen([_binary(), str(config), "--sentinel"], stdout=log, start_new_session=True)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return port, process

    def _know_each_other(self) -> bool:
        try:
            facts = self._ask_each("MASTER")
        except redis.RedisError:
            return False
        return all(each[b"num-other-sentinels"] == b"2" and each[b"num-slaves"] == b"2" for each in facts)

    def _ask_each(self, what: str) -> list[dict[bytes, bytes]]:
        return [self._ask_sentinel(port, what) for port, _ in self.sentinels]

    @staticmethod
    def _ask_sentinel(port: int, what: str) -> dict[bytes, bytes]:
        with redis.Redis(port=port, socket_timeout=5, protocol=2) as client:
            client.response_callbacks.clear()
            answer = client.execute_command("SENTINEL", what, NAME)
        return dict(zip(answer[::2], answer[1::2], strict=True))

    def primary(self) -> Server:
        """Whom the Sentinels say it is now."""
        with redis.Redis(port=self.sentinels[0][0], socket_timeout=5) as client:
            _, port = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
        return next(server for server in self.servers if server.port == int(port))

    def all_name(self, server: Server) -> bool:
        """Whether the election is over for each Sentinel: SENTINEL MASTERS names the old primary until then."""
        return all(int(facts[b"port"]) == server.port for facts in self._ask_each("MASTER"))

    def fail_over(self, end: Callable[[Server], None] = lambda server: server.kill()) -> Server:
        """End the primary, and wait until another is the primary; return that."""
        old = self.primary()
        end(old)
        wait_until(lambda: self.primary() is not old, 30, "another is the primary")
        new = self.primary()
        wait_until(lambda: new.role() == "master", message="it knows")
        return new

    def cut_replicas(self) -> None:
        """Keep all further writes from the replicas, as a network between them that is too slow would."""
        primary = self.primary()
        with primary.client() as client:
            client.execute_command("ACL", "SETUSER", "replica", "off")
            client.execute_command("CLIENT", "KILL", "TYPE", "replica")
            wait_until(lambda: primary.info()["connected_slaves"] == 0, message="no replica is left")

    def freeze_sentinels(self) -> None:
        for _, process in self.sentinels:
            process.send_signal(signal.SIGSTOP)

    def __enter__(self) -> Trio:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Member(Server):
    """A server that may have a password."""

    def __init__(self, password: str | None, *options: str, persistent: bool = False) -> None:
        super().__init__(*options, persistent=persistent)
        self.password = password

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_timeout=5, decode_responses=True, password=self.password)

    def role(self) -> object:
        # Sentinels close all connections to a server whose role they change
        with contextlib.suppress(redis.RedisError):
            return self.info()["role"]
        return None

    def info(self) -> dict[str, object]:
        with self.client() as client:
            return client.info("replication")


class Nodes:
    """A Cluster of three primaries, and of a replica of each if asked for."""

    def __init__(self, *options: str, replicas: bool = False) -> None:
        self._stack = contextlib.ExitStack()
        self._options = options
        self._bus: dict[Server, int] = {}
        with self._stack:
            self._found(replicas=replicas)
            self._stack = self._stack.pop_all()

    def _found(self, *, replicas: bool) -> None:
        self.primaries = [self._start() for _ in range(3)]
        for number, node in enumerate(self.primaries):
            first, last = 16384 * number // 3, 16384 * (number + 1) // 3 - 1
            self.command(node, "CLUSTER", "ADDSLOTSRANGE", first, last)
            self.command(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        self.replicas = [self._start() for _ in self.primaries] if replicas else []
        for node in [*self.primaries[1:], *self.replicas]:
            first = self.primaries[0]
            self.command(node, "CLUSTER", "MEET", "127.0.0.1", first.port, self._bus[first])
        everyone = [*self.primaries, *self.replicas]
        wait_until(lambda: all(len(self._known(node)) == len(everyone) for node in everyone), message="all have met")
        for primary, replica in zip(self.primaries, self.replicas, strict=False):
            self.command(replica, "CLUSTER", "REPLICATE", self.id_of(primary))
        for replica in self.replicas:
            wait_until(lambda replica=replica: self._in_sync(replica), message="it is in sync")
        wait_until(lambda: all(self._is_well(node) for node in everyone), 30, "all slots are served")
        self.url = self.primaries[0].url
        self.urls = ";".join(node.url for node in self.primaries)

    def _start(self) -> Server:
        bus = free_port()
        options = ("--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", "1000")
        more = ("--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0")
        node = self._stack.enter_context(Server(*options, *more, *self._options))
        self._bus[node] = bus
        return node

    @staticmethod
    def command(node: Server, *words: object) -> object:
        with redis.Redis.from_url(node.url, socket_timeout=5, decode_responses=True) as client:
            client.response_callbacks.clear()
            return client.execute_command(*words)

    def _known(self, node: Server) -> list[str]:
        lines = str(self.command(node, "CLUSTER", "NODES")).splitlines()
        return [line for line in lines if "handshake" not in line and "noaddr" not in line]

    def _in_sync(self, node: Server) -> bool:
        return "master_link_status:up" in str(self.command(node, "INFO", "replication"))

    def _is_well(self, node: Server) -> bool:
        told = str(self.command(node, "CLUSTER", "INFO"))
        # of a Cluster that has just met, each knows all slots, and all of the primaries
        return "cluster_state:ok" in told and "cluster_size:3" in told

    def flush(self) -> None:
        for node in self.primaries:
            self.command(node, "FLUSHALL")

    def id_of(self, node: Server) -> str:
        return str(self.command(node, "CLUSTER", "MYID"))

    def node_of(self, key: str) -> Server:
        """The primary that has this key's slot."""
        slot, told = key_slot(key.encode()), self.command(self.primaries[1], "CLUSTER", "SLOTS")
        (port,) = [primary[1] for first, last, primary, *_ in told if first <= slot <= last]
        return next(each for each in [*self.primaries, *self.replicas] if each.port == port)

    def has_lock(self, key: str) -> Server:
        """The primary that has the lock of this key."""
        return self.node_of(f"{{{key}}}")

    def key_on(self, node: Server, name: str = "key") -> str:
        """A lock's key whose slot is there."""
        for number in range(1000):
            if self.has_lock(f"{name}{number}") is node:
                return f"{name}{number}"
        raise AssertionError(node)

    def move(self, key: str, target: Server, half: Callable[[], None] = lambda: None) -> None:
        """Move the slot of this lock's key as resharding does, step by step; ``half``: what happens while it is on its way."""
        source, slot = self.has_lock(key), key_slot(f"{{{key}}}".encode())
        self.command(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        self.command(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))
        half()
        while names := self.command(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            self.command(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *names)
            half()
        for node in (target, source, *(each for each in self.primaries if each not in (source, target))):
            self.command(node, "CLUSTER", "SETSLOT", slot, "NODE", self.id_of(target))

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@contextlib.contextmanager
def frozen(server: Server) -> Iterator[None]:
    server.pause()
    try:
        yield
    finally:
        server.resume()

"""The stores that the conformance suite runs on. A new one needs an entry in ``KINDS`` and a line in ``opening.py``."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from opening import open_at
from postgres import Postgres
from servers import Server, need_django, wait_until
from tls import make_certificates
from topologies import Nodes

from celery_lockbeat.clock import monotonic
from celery_lockbeat.stores.base import Store


class RedisKind:
    """How a store of one kind is opened (again), and how the suite makes things happen to it."""

    name = "redis"
    fixture = "server"

    def __init__(self, server: Server, path: Path) -> None:
        self.target = server.url

    def open(self, key_prefix: str = "lockbeat:") -> Store:
        return open_at(self.name, self.target, key_prefix)

    def later(self, seconds: float) -> None:
        """Let the store's own clock go on."""
        with redis.Redis.from_url(self.target) as client:
            end = self._now(client) + seconds + 0.002
            wait_until(lambda: self._now(client) > end)

    @staticmethod
    def _now(client: redis.Redis) -> float:
        whole, micro = client.time()
        return whole + micro / 1e6

    def forget_all(self) -> None:
        with redis.Redis.from_url(self.target) as client:
            client.flushall()


class Redis7Kind(RedisKind):
    """Debian's Redis, and the other protocol."""

    name = "redis7"
    fixture = "debian_server"


class ClusterKind(RedisKind):
    name = "cluster"
    fixture = "nodes"

    def __init__(self, nodes: Nodes, path: Path) -> None:
        self.target = nodes.url
        self._nodes = nodes

    def forget_all(self) -> None:
        self._nodes.flush()


class MemoryKind:
    name = "memory"
    fixture = "server"

    def __init__(self, server: Server, path: Path) -> None:
        self.target = str(path / "memory")
        self.file = path / "memory" / "state.db"
        self.ahead = 0.0

    def open(self, key_prefix: str = "lockbeat:") -> Store:
        return open_at(self.name, self.target, key_prefix, clock=lambda: monotonic() + self.ahead)

    def later(self, seconds: float) -> None:
        self.ahead += seconds

    def forget_all(self) -> None:
        with contextlib.closing(sqlite3.connect(self.file, timeout=10)) as connection, connection:
            for table in (
                "lock",
                "wide",
                "line",
                "done",
                "reserved",
                "entry",
                "claim",
                "replica",
                "listed",
                "cold_start",
                "announced",
                "journal",
                "batch",
                "tail",
                "format",
                "flag",
                "request",
            ):
                connection.execute(f"DELETE FROM lockbeat_{table}")


class SQLiteKind(MemoryKind):
    """Django's database in a file, without the tables of the memory store's own."""

    name = "sqlite"

    def __init__(self, server: Server, path: Path) -> None:
        import djangos

        self.target = djangos.as_text(djangos.make_sqlite(path / "db.sqlite3"))
        self.file = path / "db.sqlite3"
        self.ahead = 0.0


class PostgresKind:
    """Django's database in a server."""

    name = "postgresql"
    fixture = "cluster"

    def __init__(self, cluster: Postgres, path: Path) -> None:
        import djangos

        self.cluster = cluster
        self.target = djangos.as_text(cluster.database)

    def open(self, key_prefix: str = "lockbeat:") -> Store:
        return open_at(self.name, self.target, key_prefix)

    def later(self, seconds: float) -> None:
        self.cluster.query("SELECT pg_sleep(%s)", seconds + 0.002)

    def forget_all(self) -> None:
        tables = self.cluster.query("SELECT tablename FROM pg_tables WHERE tablename LIKE 'lockbeat_%'")
        self.cluster.query(f"TRUNCATE {', '.join(name for (name,) in tables)}")


KINDS = {kind.name: kind for kind in (RedisKind, MemoryKind, Redis7Kind, ClusterKind, SQLiteKind, PostgresKind)}


@pytest.fixture(scope="session")
def session_debian_server() -> Iterator[Server]:
    with Server(redis=True) as server:
        yield server


@pytest.fixture
def debian_server(session_debian_server: Server) -> Server:
    """A Redis 7.0 without a key in it."""
    with session_debian_server.client() as client:
        client.flushall()
    return session_debian_server


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def session_nodes() -> Iterator[Nodes]:
    with Nodes() as nodes:
        yield nodes


@pytest.fixture
def nodes(session_nodes: Nodes) -> Nodes:
    """A Cluster without a key in it."""
    session_nodes.flush()
    return session_nodes


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest, tmp_path: Path):
    kind = KINDS[request.param]
    if kind in (SQLiteKind, PostgresKind):
        need_django()
    return kind(request.getfixturevalue(kind.fixture), tmp_path)


@pytest.fixture
def store(kind) -> Iterator[Store]:
    store = kind.open()
    yield store
    store.close()

"""Each store says in which format it is kept, and a release that does not know that format is refused by name."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from importlib.metadata import version

import pytest
import redis

from celery_lockbeat import ConfigurationError
from celery_lockbeat.stores.formats import BEGUN_BY, FORMAT

NEWER = rf"is kept in format 9, which celery-lockbeat 7\.0\.0 has begun; allowed: up to format {FORMAT}, .*{re.escape(version('celery-lockbeat'))}"


class Told:
    """What is told of the format in a store, past our code."""

    def __init__(self, kind) -> None:
        self.kind = kind

    def get(self) -> list[object]:
        if self.kind.fixture == "cluster":
            ((told,),) = self.kind.cluster.query("SELECT lockbeat_format()")
            return told
        if hasattr(self.kind, "file"):
            with contextlib.closing(sqlite3.connect(self.kind.file)) as connection:
                return list(connection.execute("SELECT * FROM lockbeat_format").fetchone())
        with self._redis() as client:
            number, begun_by = client.get("lockbeat:format").decode().split()
            return [int(number), begun_by]

    def set(self, number: int, begun_by: str) -> None:
        if self.kind.fixture == "cluster":
            said = f'[{number}, "{begun_by}"]'
            self.kind.cluster.query(
                f"CREATE OR REPLACE FUNCTION lockbeat_format() RETURNS json LANGUAGE sql AS $$ SELECT '{said}'::json $$"
            )
        elif hasattr(self.kind, "file"):
            with contextlib.closing(sqlite3.connect(self.kind.file)) as connection, connection:
                connection.execute("UPDATE lockbeat_format SET number = ?, begun_by = ?", (number, begun_by))
        else:
            with self._redis() as client:
                client.set("lockbeat:format", f"{number} {begun_by}")

    def _redis(self):
        of = redis.RedisCluster if self.kind.name == "cluster" else redis.Redis
        return of.from_url(self.kind.target)


@pytest.fixture
def told(kind):
    told = Told(kind)
    yield told
    if kind.fixture == "cluster":
        # shared with other tests
        told.set(FORMAT, BEGUN_BY)


def test_a_store_says_its_format_once_somebody_has_begun(kind, store, told):
    for _ in range(2):
        store.check()
        assert told.get() == [FORMAT, BEGUN_BY]


def test_a_format_that_only_later_releases_know_is_refused_by_both_releases_names(kind, store, told):
    store.check()
    told.set(9, "7.0.0")
    with contextlib.closing(kind.open()) as other, pytest.raises(ConfigurationError, match=NEWER):
        other.check()
    assert told.get() == [9, "7.0.0"]


def test_an_earlier_format_becomes_ours(kind, store, told):
    store.check()
    told.set(0, "0.0.1")
    store.check()
    # the schema of a database server is of its last migration
    assert told.get() == ([0, "0.0.1"] if kind.fixture == "cluster" else [FORMAT, BEGUN_BY])


def test_who_has_begun_goes_on(kind, store, told):
    store.check()
    told.set(9, "7.0.0")
    lease = store.locks.acquire("key", holder="a", ttl=30)
    assert store.locks.extend([(lease, 30)]) == [True]
    assert store.locks.release(lease)


def test_under_another_prefix_redis_keeps_another_format(server):
    from celery_lockbeat.stores.redis.store import RedisStore

    with server.client() as client:
        client.set("a:format", "9 7.0.0")
        client.rpush("b:format", "no text")
        client.set("c:format", "nonsense")
        for prefix in ("b:", "c:", "d:"):
            with contextlib.closing(RedisStore(server.url, key_prefix=prefix)) as store:
                store.check()
            assert client.get(f"{prefix}format") == f"{FORMAT} {BEGUN_BY}"
    with contextlib.closing(RedisStore(server.url, key_prefix="a:")) as store:
        with pytest.raises(ConfigurationError, match=rf"127\.0\.0\.1:\d+, prefix 'a:', {NEWER}"):
            store.check()

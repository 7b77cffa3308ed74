"""How a store is opened by name: for the fixtures, and for processes that share nothing with the tests but text."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import redis

from celery_lockbeat.clock import monotonic
from celery_lockbeat.stores.base import Store
from celery_lockbeat.stores.redis.store import RedisStore
from celery_lockbeat.stores.sqlite.store import MemoryStore

#: The options of each kind of Redis. One of the two protocols is redis-py's default, and the other is Debian's Redis.
REDIS = {
    "redis": {},
    "redis7": {"protocol": 2 if int(redis.__version__.split(".")[0]) >= 8 else 3},
    "cluster": {"cluster": True},
}


def import_for(name: str) -> None:
    """What a process imports before it is forked, its children need not."""
    if name in ("postgresql", "sqlite"):
        # a process of its own has only this directory on its path
        sys.path.append(str(Path(__file__).parent.parent))
        import djangos

        djangos.configure()
        import celery_lockbeat.contrib.django.store  # noqa: F401


def open_at(name: str, target: str, key_prefix: str = "lockbeat:", clock=monotonic) -> Store:
    """A new kind of store needs a line here and an entry in ``conftest.KINDS``."""
    if name in REDIS:
        return RedisStore(target, options=REDIS[name], key_prefix=key_prefix)
    if name == "memory":
        return MemoryStore(target, key_prefix=key_prefix, clock=clock)
    if name in ("postgresql", "sqlite"):
        import_for(name)
        import djangos

        alias = djangos.use(json.loads(target))
        from celery_lockbeat.contrib.django.store import PostgresStore, SQLiteStore

        if name == "postgresql":
            return PostgresStore(alias, key_prefix=key_prefix)
        return SQLiteStore(alias, key_prefix=key_prefix, clock=clock)
    raise AssertionError(name)

"""How a call of the Redis store looks on its way to the server."""

from __future__ import annotations

from celery_lockbeat.stores.redis.store import RedisStore


def sha_of(operation: str) -> bytes:
    """Return the digest by which a store calls the script of this operation."""
    sha: str = getattr(RedisStore("redis://localhost"), f"_{operation}").sha
    return sha.encode()

"""How a call of the Redis store looks on its way to the server."""

from __future__ import annotations

from celery_lockbeat.stores.redis.store import RedisStore


def sha_of(operation: str) -> bytes:
    """Return the digest by which a store calls the script of this operation."""
    store = RedisStore("redis://localhost")
    (sha,) = {
        script.sha
        for part in (store.locks, store.beats, store.announcements)
        for name, script in vars(part).items()
        if name == f"_{operation}"
    }
    return sha.encode()

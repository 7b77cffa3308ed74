"""Whether a key is held, as whoever asks for it finds out."""

from __future__ import annotations

from celery import Celery

from celery_lockbeat import Lock, LockNotAcquired


def is_free(app: Celery, key: str = "k") -> bool:
    try:
        with Lock(key, app=app, logging=False):
            return True
    except LockNotAcquired:
        return False

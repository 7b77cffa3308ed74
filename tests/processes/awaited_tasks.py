"""Locked tasks whose bodies are coroutines, for workers that ``include`` this module."""

from __future__ import annotations

import asyncio
import json
import os

from apps import app, seen, witness
from asgiref.sync import async_to_sync
from celery import Task

from celery_lockbeat import LockedTask, current_lock


class Runs(Task):
    """A base that awaits what it is given, as many projects have one."""

    abstract = True

    def __call__(self, *args, **kwargs):
        return asyncio.run(self.run(*args, **kwargs))


class Asgi(Task):
    """The same by asgiref, which does so in another thread."""

    abstract = True

    def __call__(self, *args, **kwargs):
        return async_to_sync(self.run)(*args, **kwargs)


async def body(task, key: str, seconds: float | None = None) -> list[object]:
    """Stay for so long, or until the test lets this key go, and tell who has been here, and under which lock."""
    with seen(task, key) as tell:
        waits = 0
        try:
            while not (witness.exists(f"go:{key}") if seconds is None else waits * 0.02 >= seconds):
                await asyncio.sleep(0.02)
                waits += 1
        except asyncio.CancelledError:
            tell("cancelled")
            raise
        lock = current_lock()
        return [lock is not None and lock.held, waits]


async def fails(task, key: str) -> str:
    with seen(task, key):
        await asyncio.sleep(0)
        if len(witness.lrange(f"seen:{key}", 0, -1)) < 3:
            raise ValueError("the first time")
        return json.dumps(os.getpid())


def plain(task, key: str) -> list[object]:
    with seen(task, key):
        return [current_lock().held, task.request.id]


options = {"bind": True, "lock_key": "{key}", "lock_ttl": 300}
for name, bases in {"pool": (LockedTask,), "runs": (Runs, LockedTask), "asgi": (LockedTask, Asgi)}.items():
    base = type(name, bases, {"abstract": True})
    app.task(base=base, name=f"{name}_body", queue=f"queue-of-{name}", **options)(body)
    app.task(base=base, name=f"{name}_abort", **{**options, "lock_ttl": 2, "lock_on_lost": "abort"})(body)
    app.task(base=base, name=f"{name}_fails", autoretry_for=(ValueError,), default_retry_delay=0, **options)(fails)
    app.task(base=base, name=f"{name}_plain", **options)(plain)
app.task(base=Runs, name="runs_control", bind=True)(body)

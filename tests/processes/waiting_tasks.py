"""Tasks that wait in line, for workers that ``include`` this module."""

from __future__ import annotations

import time

from apps import app, holding, seen

from celery_lockbeat import LockedTask, LockLost

AGAIN = {"acks_late": True, "reject_on_worker_lost": True}

# the leases outlast every wait of the tests
for name in ("wait", "wait_one", "wait_latest"):
    holding(name, lock_ttl=300, lock_if_held=name, **AGAIN)
holding("wait_shortly", lock_ttl=3, lock_if_held="wait", **AGAIN)
holding("wait_briefly", lock_ttl=300, lock_if_held="wait", lock_wait_at_most=2, **AGAIN)
holding("share", lock_ttl=300, lock_if_held="wait", lock_limit=2, **AGAIN)
holding("wait_in_memory", lock_ttl=300, lock_if_held="wait", lock_driver="memory", **AGAIN)


def replace(task, key: str, at_a_time: float = 0.0, lingers: float = 0.0) -> str:
    """Sleep until another takes its place, and for some leases more if it does not stop; without a time to sleep end at once."""
    with seen(task, key) as tell:
        try:
            for _ in range(int(60 / at_a_time) if at_a_time else 0):
                time.sleep(at_a_time)
        except LockLost as exc:
            tell("replaced", error=str(exc))
            until = time.monotonic() + lingers
            while time.monotonic() < until:
                time.sleep(0.02)
            raise
    return f"held {key}"


for name, ttl in (("replace", 1.5), ("replace_at_once", 300)):
    app.task(bind=True, base=LockedTask, name=name, lock_key="{key}", lock_ttl=ttl, lock_if_held="replace", **AGAIN)(
        replace
    )

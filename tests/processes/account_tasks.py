"""Tasks that need two keys, for workers that ``include`` this module."""

from __future__ import annotations

import contextlib
import time

from apps import app, hold, seen, witness

from celery_lockbeat import LockedTask

BOTH = {"base": LockedTask, "bind": True, "lock_ttl": 300, "acks_late": True, "reject_on_worker_lost": True}


def _move(task, source: str, target: str) -> None:
    with contextlib.ExitStack() as stack:
        for key in (source, target):
            stack.enter_context(seen(task, key))
        time.sleep(0.005)
    witness.incr(f"moved:{task.request.id}")


for name, options in {"move": {"lock_if_held": "wait"}, "move_or_skip": {}}.items():
    app.task(name=name, lock_key=["{source}", "{target}"], **BOTH, **options)(_move)


@app.task(name="hold_two", lock_key=["{key}", "{key}-2"], lock_driver="redis", **BOTH)
def hold_two(task, key: str) -> str:
    return hold(task, key)

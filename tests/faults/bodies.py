"""The tasks of a run under faults, for workers that ``include`` this module: what they tell the witness is the history.

Every time is the host's monotonic clock, the same for all its processes. ``held_until`` is the last moment at which a body
was seen to believe that it holds its lock: once lost it never believes so again, so until then it did at every moment.
"""

from __future__ import annotations

import json
import os
import time
import uuid

from apps import app, witness

from celery_lockbeat import LockedTask, LockLost, LockNotAcquired, StoreUnavailable, current_lock

# Each member has a way of its own to the one broker, which they name by its address: else none would call another's waiters.
vars(app)["lockbeat_broker"] = "the broker of all"

#: The places that the bodies of each key write to. Each refuses whoever comes with a token that is older than one it has seen, and
#: who writes to several has them all, or none.
GUARDED = witness.register_script(
    """
    local accepted = true
    for i = 2, #KEYS do
      accepted = accepted and tonumber(ARGV[i]) >= tonumber(redis.call('GET', KEYS[i]) or '0')
    end
    for i = 2, accepted and #KEYS or 1 do
      redis.call('SET', KEYS[i], ARGV[i])
    end
    redis.call('RPUSH', KEYS[1], string.sub(ARGV[1], 1, -2) .. ', "accepted": ' .. tostring(accepted) .. '}')
    return accepted and 1 or 0
    """
)


def tell(what: str, **fields: object) -> None:
    line = {"what": what, "at": time.monotonic(), **fields}
    witness.rpush("history", json.dumps(line))


class Told(LockedTask):
    """Tell how each execution ends, when its lock has been released."""

    abstract = True

    def __call__(self, *args, **kwargs):
        request = self.request
        request.fault_body = None
        state, reason = "SUCCESS", None
        try:
            return super().__call__(*args, **kwargs)
        except BaseException as exc:
            state, reason = type(exc).__name__, getattr(exc, "reason", None)
            raise
        finally:
            fields = {"id": request.id, "retries": request.retries, "pid": os.getpid(), "body": request.fault_body}
            tell("over", **fields, state=state, reason=str(reason) if reason else None)


def work(task, key: str, seconds: float) -> str:
    """Hold the lock for a while, write under its tokens, and return."""
    lock, name = current_lock(), uuid.uuid4().hex
    task.request.fault_body = name
    # of those that share a key none is the latest: each run has a place of its own there
    whose = f":{task.request.id}" if (task.lock_limit or 1) > 1 else ""

    def write(what: str, at: float) -> bool:
        fields = {"id": task.request.id, "retries": task.request.retries, "key": key, "pid": os.getpid()}
        fields.update(token=lock.token, tokens=lock.tokens, worker=task.request.hostname)
        line = json.dumps({"what": what, "at": at, "body": name, **fields})
        fences = [f"fence:{each}{whose}" for each in lock.tokens]
        return bool(GUARDED(keys=["history", *fences], args=[line, *lock.tokens.values()]))

    began = time.monotonic()
    lock.check()
    write("begin", began)
    while (now := time.monotonic()) < began + seconds:
        if lock.held:
            witness.hset("held_until", name, repr(now))
        time.sleep(0.015)
    if task.lock_on_lost == "abort":
        now = time.monotonic()
        lock.check()
        witness.hset("held_until", name, repr(now))
    if not write("write", time.monotonic()):
        raise LockLost(f"a later run of {key!r} has written")
    return key


def keys_in(key: str, seconds: float) -> list[str]:
    """The keys of a call, which says them in one text."""
    return key.split(" ")


def make(name: str, **options: object) -> None:
    options = {"lock_driver": "redis", "lock_key": "{key}", **options}
    app.task(bind=True, base=Told, name=name, **options)(work)


AGAIN = {
    "acks_late": True,
    "reject_on_worker_lost": True,
    "lock_on_lost": "abort",
    "retry_kwargs": {"countdown": 0.3, "max_retries": 100_000},
}

#: Each of its ticks is to come to its end once, through the death of workers too.
make("once", **AGAIN, lock_skip_if_locked=False, autoretry_for=(StoreUnavailable, LockLost, LockNotAcquired))
#: The same, without a server for the locks.
make(
    "once_in_memory",
    **{**AGAIN, "lock_driver": "memory"},
    lock_skip_if_locked=False,
    autoretry_for=(StoreUnavailable, LockLost, LockNotAcquired),
)
#: The same, but for ticks that find the key held: these are skipped, and told so. It does not look at its lock before it
#: writes, so that of two that write it is the guarded place that must refuse the older.
make("skip", **{**AGAIN, "lock_on_lost": "fail"}, autoretry_for=(StoreUnavailable, LockLost))
#: The same under a long lease: a dead child's lock is seen to be freed, not to run out.
make("skip_long", **{**AGAIN, "lock_on_lost": "fail"}, lock_ttl=8, autoretry_for=(StoreUnavailable, LockLost))
#: Those that find their key held wait in line. Each is to come to its end once, and they begin in the order in which they began to wait.
make("wait", **AGAIN, lock_if_held="wait", autoretry_for=(StoreUnavailable, LockLost))
#: The same, for a key that two may have at a time.
make("two_at_once", **AGAIN, lock_if_held="wait", lock_limit=2, autoretry_for=(StoreUnavailable, LockLost))
#: The same, and each has several keys, or none of them.
make("all_or_none", **AGAIN, lock_if_held="wait", lock_key=keys_in, autoretry_for=(StoreUnavailable, LockLost))
#: Acknowledged before it runs, as Celery does by default: at most once.
make("early")

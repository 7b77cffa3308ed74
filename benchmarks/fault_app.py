"""The app of ``faults.py``: the same body under each lock, the same entries under each scheduler, each as its README says.

What runs is told by the environment (``LOCKBEAT_FAULTS``); ``python -m benchmarks.fault_app`` is the one who calls the tasks.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import redis
from celery import Celery

#: seconds: a lease, where a lock has one that is renewed
TTL = 2.0
#: seconds: an expiry that no run here outlives, for the locks that are not renewed
LONG_ENOUGH = 10.0
#: seconds that a run takes: most, and every fifth one of a key
SHORT, LONG = 0.3, 4.0
KEYS = ("a", "b", "c")
#: seconds between two calls for one key
EVERY = 0.4
#: seconds between two looks of a body at its lock, where the lock can be asked
STEP = 0.05
ENTRIES = 10
#: seconds after which the broker takes a message back that nobody has acknowledged: longer than any run
VISIBLE = 8

told = json.loads(
    os.environ.get("LOCKBEAT_FAULTS", '{"broker": "redis://", "locks": "redis://", "witness": "redis://"}')
)


@dataclass(frozen=True)
class Beat:
    """A scheduler, and its settings."""

    scheduler: str
    replicas: int = 3
    settings: dict[str, Any] = field(default_factory=dict)


BEATS = {
    "LockedScheduler, 3 beats": Beat("celery_lockbeat:LockedScheduler"),
    # what Celery's documentation asks for: one, and a supervisor that starts it again
    "celery beat, 1 beat": Beat("celery.beat:PersistentScheduler", replicas=1),
    "celery beat, 3 beats": Beat("celery.beat:PersistentScheduler"),
    "RedBeat, 3 beats": Beat("redbeat:RedBeatScheduler"),
    # its documentation: the lock expires after redbeat_lock_timeout, five times beat_max_loop_interval by default
    "RedBeat, 3 beats, a lock of 5 s": Beat(
        "redbeat:RedBeatScheduler", settings={"beat_max_loop_interval": 1, "redbeat_lock_timeout": 5}
    ),
}


class Witness:
    """Writes down what happens, on a server that no lock knows of."""

    def __init__(self) -> None:
        self._client: redis.Redis | None = None
        self._pid = 0

    def tell(self, what: str, **fields: Any) -> None:
        if self._pid != os.getpid():  # a pool child shares no connection with its parent
            self._client, self._pid = redis.Redis.from_url(told["witness"]), os.getpid()
        assert self._client is not None
        self._client.rpush("log", json.dumps({"what": what, "at": time.monotonic(), "pid": self._pid, **fields}))


witness = Witness()
app = Celery("faults", broker=told["broker"], set_as_current=False)
app.conf.update(
    task_ignore_result=True,
    # for all of them: a message stays with the broker until its run is over, or its child is dead
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    # and is given to another soon after its whole worker is dead
    broker_transport_options={"visibility_timeout": VISIBLE},
    broker_connection_retry_on_startup=True,
    lockbeat_redis_url=told["locks"],
    redbeat_redis_url=told["locks"],
    singleton_backend_url=told["locks"],
    ONCE={"backend": "celery_once.backends.Redis", "settings": {"url": told["locks"], "default_timeout": 60 * 60}},
    beat_schedule={f"entry-{n}": {"task": "tick", "schedule": 1.0, "args": [n]} for n in range(ENTRIES)},
)
if told.get("beat"):
    app.conf.update(BEATS[told["beat"]].settings)
    app.conf.beat_schedule_filename = told["schedule"]


# of this app alone: Celery gives a task to all apps of a process, and the tests of what is measured share theirs with others
@app.task(name="tick", shared=False)
def tick(entry: int) -> None:
    """Be sent."""


def work(key: str, call: int, seconds: float, still_mine: Callable[[], bool] = lambda: True) -> None:
    """Be the body: tell of the beginning and of the end, and stop where the lock can tell that it is lost."""
    witness.tell("enter", key=key, call=call)
    over = time.monotonic() + seconds
    while time.monotonic() < over:
        time.sleep(STEP)
        if not still_mine():
            witness.tell("stopped", key=key, call=call)
            return
    witness.tell("end", key=key, call=call)


@dataclass(frozen=True)
class Lock:
    """What makes the task, and imports the package for that."""

    package: str
    make: Callable[[], Any]


LOCKS: dict[str, Lock] = {}


def lock(label: str, package: str) -> Callable[[Callable[[], Any]], None]:
    return lambda make: LOCKS.__setitem__(label, Lock(package, make))


@lock("LockedTask", "celery_lockbeat")
def locked_task() -> Any:
    from celery_lockbeat import LockedTask, current_lock

    @app.task(base=LockedTask, name="run", lock_key="{key}", lock_ttl=TTL)
    def run(key: str, call: int, seconds: float) -> None:
        work(key, call, seconds, lambda: current_lock().held)

    from celery_lockbeat.signals import task_skipped

    task_skipped.connect(lambda task_id, **_: witness.tell("refused", call=int(task_id.split("-")[1])), weak=False)
    return run


def once(**options: Any) -> Any:
    from celery_once import QueueOnce

    @app.task(base=QueueOnce, name="run", once={"keys": ["key"], "graceful": True, **options})
    def run(key: str, call: int, seconds: float) -> None:
        work(key, call, seconds)

    return run


lock("celery-once", "celery_once")(once)
lock("celery-once, a timeout of 10 s", "celery_once")(lambda: once(timeout=int(LONG_ENOUGH)))


def singleton(**options: Any) -> Any:
    from celery_singleton import Singleton

    @app.task(base=Singleton, name="run", unique_on=["key"], **options)
    def run(key: str, call: int, seconds: float) -> None:
        work(key, call, seconds)

    return run


lock("celery-singleton", "celery_singleton")(singleton)
lock("celery-singleton, an expiry of 10 s", "celery_singleton")(lambda: singleton(lock_expiry=int(LONG_ENOUGH)))


def in_the_body(make: Callable[[redis.Redis, str], Any], asks: str | None = None) -> Any:
    client = redis.Redis.from_url(told["locks"])

    @app.task(name="run")
    def run(key: str, call: int, seconds: float) -> None:
        held = make(client, key)
        if not held.acquire(blocking=False):
            witness.tell("refused", call=call)
            return
        try:
            work(key, call, seconds, getattr(held, asks) if asks else lambda: True)
        finally:
            held.release()

    return run


def redis_lock(client: redis.Redis, key: str, **options: Any) -> Any:
    import redis_lock

    return redis_lock.Lock(client, key, **options)


lock("python-redis-lock", "redis_lock")(lambda: in_the_body(redis_lock))
lock("python-redis-lock, renewed", "redis_lock")(
    lambda: in_the_body(lambda client, key: redis_lock(client, key, expire=int(TTL), auto_renewal=True))
)
lock("redis-py's Lock, a timeout of 2 s", "redis")(
    lambda: in_the_body(lambda client, key: client.lock(key, timeout=TTL))
)
lock("redis-py's Lock, 10 s, owned() at each step", "redis")(
    lambda: in_the_body(lambda client, key: client.lock(key, timeout=LONG_ENOUGH), asks="owned")
)

if told.get("lock"):
    run = LOCKS[told["lock"]].make()


def call_on() -> None:
    """Call the tasks, until it is killed: for each key in its turn, whatever runs."""
    for number in count():
        key = KEYS[number % len(KEYS)]
        seconds = LONG if number // len(KEYS) % 5 == 0 else SHORT
        task_id = f"call-{number}"
        with contextlib.suppress(Exception):  # whose lock's server is away
            result = run.apply_async((key, number, seconds), task_id=task_id, retry=False)
            # who locks where a task is called answers None, or the task that is there already
            witness.tell("sent" if result is not None and result.id == task_id else "refused", call=number, key=key)
        time.sleep(EVERY / len(KEYS) * random.uniform(0.8, 1.2))


if __name__ == "__main__":
    sys.exit(call_on())

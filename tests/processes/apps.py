"""The app that the real workers and beats of these tests load (``celery -A apps``).

Its task bodies tell a witness what they do: a server of its own, written to with plain redis-py. ``seen:<key>`` is the
list of what happened under a key, ``inside:<key>`` counts the bodies that are in it now.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import redis
from celery import Celery
from celery.exceptions import Ignore, Reject
from celery.schedules import BaseSchedule, schedstate

from celery_lockbeat import LockedTask, LockNotAcquired, StoreUnavailable, current_lock
from celery_lockbeat.observe.events import log_json_lines

#: A body that nobody lets go ends by itself, so that a failing test leaves nothing behind.
LONGEST = 60.0

witness = redis.Redis.from_url(os.environ["LOCKBEAT_TEST_WITNESS"], decode_responses=True)


class Marks(BaseSchedule):
    """Due at each mark of the wall clock, every so many seconds, as a crontab is due at each full minute."""

    def __init__(self, seconds: int, nowfun=None, app=None) -> None:
        super().__init__(nowfun=nowfun, app=app)
        self.seconds = seconds

    def remaining_estimate(self, last_run_at):
        mark = (int(last_run_at.timestamp()) // self.seconds + 1) * self.seconds
        return timedelta(seconds=mark - self.now().timestamp())

    def is_due(self, last_run_at):
        rest = self.remaining_estimate(last_run_at).total_seconds()
        if rest > 0:
            return schedstate(is_due=False, next=rest)
        return schedstate(is_due=True, next=self.remaining_estimate(self.now()).total_seconds())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Marks) and other.seconds == self.seconds

    def __hash__(self) -> int:
        return hash(self.seconds)


def made(entries: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """Entries of JSON, which cannot carry a "marks 2"."""
    return {
        name: {**entry, "schedule": Marks(int(entry["schedule"].split()[1]))}
        if str(entry["schedule"]).startswith("marks ")
        else entry
        for name, entry in entries.items()
    }


def many(count: int = 0, seconds: float = 3600.0) -> dict[str, dict[str, object]]:
    """More entries than an environment variable can carry."""
    return {f"more-{i}": {"task": "nobody", "schedule": seconds} for i in range(count)}


settings = json.loads(os.environ["LOCKBEAT_TEST_SETTINGS"])
settings["beat_schedule"] = {
    **made(settings.pop("test_first_entries", {})),
    **many(*settings.pop("test_more_entries", [])),
    **made(settings.pop("beat_schedule", {})),
}

if database := settings.pop("test_django_database", None):
    sys.path.append(str(Path(__file__).parent.parent))
    import djangos

    djangos.configure(database)

app = Celery("processes")
app.conf.update(settings)
log_json_lines()

# The JSON lines do not tell the level of an event. stdout has it, for the tests that ask.
levels = logging.StreamHandler(sys.__stdout__)
levels.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
logging.getLogger("celery_lockbeat.events").addHandler(levels)


@contextlib.contextmanager
def seen(task, key: str) -> Iterator[Callable[..., None]]:
    lock = current_lock()
    token = None if lock is None else lock.token

    def tell(what: str, **more: object) -> None:
        line = {"what": what, "id": task.request.id, "at": time.time(), "pid": os.getpid(), "token": token, **more}
        witness.rpush(f"seen:{key}", json.dumps(line))

    tell("enter", inside=witness.incr(f"inside:{key}"))
    try:
        yield tell
    finally:
        witness.decr(f"inside:{key}")
        tell("leave")


def hold(task, key: str, seconds: float | None = None) -> str:
    """Stay for so long, or until the test lets this task go; tell once when the lock is seen to be lost."""
    with seen(task, key) as tell:
        deadline = time.monotonic() + (LONGEST if seconds is None else seconds)
        told = False
        while time.monotonic() < deadline and not (seconds is None and witness.exists(f"go:{task.request.id}")):
            lock = current_lock()
            if lock is not None and lock.lost and not told:
                tell("lost")
                told = True
            time.sleep(0.02)
    return f"held {key}"


def holding(name: str, **options: object) -> None:
    """Make one more task that holds the key it is given."""
    app.task(bind=True, base=LockedTask, name=name, lock_key="{key}", lock_logging="verbose", **options)(hold)


holding("hold")
holding("hold_with_redis", lock_driver="redis")
holding("hold_in_memory", lock_driver="memory")
holding("hold_or_warn", lock_on_lost="warn")
holding("hold_without_result", ignore_result=True)
holding("hold_late", acks_late=True)
holding("hold_when_free", lock_retry_attempts=1200, lock_retry_delay=0.05, lock_retry_jitter=0)
holding(
    "hold_or_try_again",
    lock_driver="redis",
    autoretry_for=(StoreUnavailable,),
    retry_kwargs={"countdown": 0.3, "max_retries": 60},
)
holding(
    "hold_in_turn",
    lock_skip_if_locked=False,
    autoretry_for=(LockNotAcquired,),
    retry_kwargs={"countdown": 0.3, "max_retries": 60},
)


@app.task(bind=True, base=LockedTask, name="tick", lock_key="{key}")
def tick(task, key: str) -> None:
    """Tell which tick of which entry this is."""
    with seen(task, key) as tell:
        tell("tick", origin=task.request.origin, **task.request.headers["lockbeat"])


@app.task(bind=True, name="note")
def note(task, *args: object) -> object:
    """Tell that a chain or a chord came so far; the last argument is the key. No lock."""
    with seen(task, str(args[-1])):
        return args[-1]


# The leases of these outlast every wait of the tests: what runs under their keys found them released, not run out.


@app.task(bind=True, base=LockedTask, name="end", lock_key="{key}", lock_ttl=300, acks_late=True, max_retries=3)
def end(task, key: str, how: str) -> str:
    """End in the way that is asked for at the first try, and well at the next."""
    with seen(task, key):
        first = witness.incr(f"tries:{task.request.id}") == 1
    if not first:
        return "in the end"
    if how == "return":
        return "at once"
    if how == "raise":
        raise ZeroDivisionError
    if how == "retry":
        raise task.retry(countdown=1)
    if how == "replace":
        raise task.replace(task.s(key, how))
    if how == "requeue":
        raise Reject("once more", requeue=True)
    if how == "ignore":
        raise Ignore("no result")
    if how == "exit":
        raise SystemExit(1)
    raise AssertionError(how)


@app.task(bind=True, base=LockedTask, name="hand_over", lock_key="{key}", lock_ttl=300, max_retries=3)
def hand_over(task, key: str, how: str) -> str:
    """Send its own next run, as Celery does within the body, and linger: that one comes while this one has the key."""
    with seen(task, key):
        if witness.incr(f"tries:{task.request.id}") == 1:
            try:
                raise task.retry(countdown=0) if how == "retry" else task.replace(task.s(key, how))
            finally:
                time.sleep(1)
    return "in the end"


@app.task(
    bind=True,
    base=LockedTask,
    name="end_autoretried",
    lock_key="{key}",
    lock_ttl=300,
    autoretry_for=(ZeroDivisionError,),
    retry_kwargs={"countdown": 1, "max_retries": 3},
)
def end_autoretried(task, key: str) -> str:
    with seen(task, key):
        if witness.incr(f"tries:{task.request.id}") == 1:
            raise ZeroDivisionError
    return "in the end"

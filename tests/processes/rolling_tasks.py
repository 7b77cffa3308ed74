"""The app of a rolling update: one code for both releases, as a user's is, which uses only what the older one has, too.

Its bodies tell what they do in a file, which no part of Celery or of the locks knows.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from celery import Celery

import celery_lockbeat
from celery_lockbeat import LockedTask

settings = json.loads(os.environ["LOCKBEAT_TEST_SETTINGS"])

if database := settings.pop("test_django_database", None):
    import djangos

    djangos.configure(database)

app = Celery("processes")
app.conf.update(settings)
app.conf.beat_scheduler = "celery_lockbeat:LockedScheduler"
app.conf.beat_schedule = {
    "tick": {"task": "tick", "schedule": 1.0},
    "short-1": {"task": "short", "schedule": 1.0},
    "short-2": {"task": "short", "schedule": 1.0},
    "long": {"task": "long", "schedule": 2.0},
}
print(f"celery_lockbeat is {celery_lockbeat.__file__}", flush=True)


def tell(task, what: str) -> None:
    tick = task.request.headers["lockbeat"]
    line = {"what": what, "task": task.name, "run": tick["run"], "id": task.request.id, "pid": os.getppid()}
    with Path(os.environ["LOCKBEAT_TEST_WITNESS"]).open("a", encoding="utf-8") as file:
        # at once, and so never within another's
        file.write(json.dumps({**line, "entry": tick["entry"], "due": tick["due"], "at": time.monotonic()}) + "\n")


def stay(task, seconds: float) -> None:
    tell(task, "enter")
    time.sleep(seconds)
    tell(task, "leave")


#: Each of its ticks is to come to its end once: it waits for the one before it.
WAITS = {"lock_retry_attempts": 200, "lock_retry_delay": 0.05, "lock_retry_jitter": 0}


@app.task(bind=True, base=LockedTask, name="tick", lock_ttl=10, acks_late=True, **WAITS)
def tick(self) -> None:
    stay(self, 0.02)


@app.task(bind=True, base=LockedTask, name="short", lock_ttl=10)
def short(self) -> None:
    stay(self, 0.4)


@app.task(bind=True, base=LockedTask, name="long", lock_ttl=2)
def long(self) -> None:
    """Outlive the ttl: what is renewed by one release is seen as held by the other."""
    stay(self, 4.5)

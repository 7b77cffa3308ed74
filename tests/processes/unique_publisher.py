"""Sends tasks with ``lock_unique``, as an app does that has imported them.

``python unique_publisher.py URL TASK KEY HOW``: send it ``once``, for so many seconds, or be ``killed`` on the way there.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from celery import Celery

from celery_lockbeat import LockedTask

#: Their leases outlast every wait of the tests, and what they reserve does, but for that of the short one.
OPTIONS = {
    "unique_started": {"lock_unique": "until_started", "lock_ttl": 300},
    "unique_finished": {"lock_unique": "until_finished", "lock_ttl": 300},
    "unique_leased": {"lock_unique": "until_finished"},
    "unique_short": {"lock_unique": "until_finished", "lock_unique_ttl": 1.5},
}


def known_to(app: Celery) -> Celery:
    """Make them known to an app that sends them, as their modules would."""
    for name, options in OPTIONS.items():

        @app.task(base=LockedTask, shared=False, name=name, lock_key="{key}", **options)
        def never_here(key, seconds=None):
            raise AssertionError

    return app


def publish(url: str, name: str, key: str, how: str) -> None:
    """Send it, if nobody kills us between the two."""
    app = known_to(Celery("publisher", broker=url, backend=url, set_as_current=False))
    app.conf.update(task_default_queue=os.environ["QUEUE"], lockbeat_redis_url=os.environ["LOCKS"])
    if how == "killed":
        type(app.amqp).send_task_message = property(lambda _: lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL))
    end = time.monotonic() + (0 if how in ("killed", "once") else float(how))
    while True:
        print(app.tasks[name].delay(key, 0.05).id, flush=True)
        if time.monotonic() >= end:
            return


if __name__ == "__main__":
    publish(*sys.argv[1:])

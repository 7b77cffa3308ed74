"""The demo's app, which its beats and workers load: ``celery -A celery_lockbeat.demo``. See ``__main__`` for the demo itself.

In a process of the demo each line of the log is JSON, and what bears witness of a tick is not our package: Celery's own signals
and the bodies of the tasks write down when a tick was published, had arrived, and was run, by the number in its message.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, NamedTuple

from celery import Celery
from celery.signals import after_task_publish, beat_init, before_task_publish, task_prerun

from celery_lockbeat.observe.events import log_json_lines
from celery_lockbeat.schedules.decorators import interval

__all__ = ["JOBS", "SETTINGS", "TRAP", "TTL", "Job", "app"]

#: The lease of each lock here, and of each claim of a beat, in seconds.
TTL: Final = 2.0


class Job(NamedTuple):
    """One task and its entry: how often it is due, and how long a run takes, in seconds."""

    every: float
    takes: float


JOBS: Final = {
    "refresh_cache": Job(every=2, takes=0.3),
    "sync_orders": Job(every=1, takes=1.7),  # longer than its interval: ticks are skipped
    "build_report": Job(every=6, takes=4.5),  # longer than its ttl: renewed while it runs
}

#: The environment variable with the settings of this one demo, as JSON.
SETTINGS: Final = "LOCKBEAT_DEMO"

#: While this file is there, the next beat that is about to publish a tick is killed with that tick in its hands.
TRAP: Final = "trap"

app: Final = Celery("lockbeat-demo", set_as_current=False)
app.conf.update(
    beat_scheduler="celery_lockbeat:LockedScheduler",
    broker_connection_retry_on_startup=True,
    lockbeat_claim_ttl=TTL,
    lockbeat_driver="redis",
    lockbeat_extend_interval=TTL / 4,
    lockbeat_logging="verbose",
    lockbeat_ttl=TTL,
    task_ignore_result=True,
    worker_enable_remote_control=False,
)


def _report(event: str, tick: dict[str, Any], task_id: str, **details: Any) -> None:
    """Bear witness of a tick; ``tick`` is the header of its message."""
    at = datetime.now(timezone.utc).isoformat()
    about = {"task_name": tick["entry"], "number": tick["run"], "due": tick["due"], "task_id": task_id}
    # one write: other threads and children write their lines there too
    os.write(2, json.dumps({"event": event, "timestamp": at, **about, **details}).encode() + b"\n")


def _body(task: Any) -> None:
    # That no two of them overlap is reported by the bodies themselves, not by their locks; time.monotonic() is the
    # same clock for all processes of a host.
    entered = time.monotonic()
    time.sleep(JOBS[task.name].takes)
    _report("body_left", task.request.headers["lockbeat"], task.request.id, entered=entered, left=time.monotonic())


for _name, _job in JOBS.items():
    interval(_job.every, app=app, name=_name, bind=True)(_body)


def _fall_into_the_trap(headers: dict[str, Any], **_: Any) -> None:
    with contextlib.suppress(FileNotFoundError):
        Path(tempfile.gettempdir(), TRAP).unlink()  # one beat only
        _report("tick_in_hand", headers["lockbeat"], headers["id"])
        os.kill(os.getpid(), signal.SIGKILL)


def _report_publishing(headers: dict[str, Any], **_: Any) -> None:
    _report("tick_published", headers["lockbeat"], headers["id"])


def _report_arrival(task: Any, task_id: str, **_: Any) -> None:
    _report("tick_arrived", task.request.headers["lockbeat"], task_id)


def _watch_publishing(**_: Any) -> None:
    before_task_publish.connect(_fall_into_the_trap)
    after_task_publish.connect(_report_publishing)


if SETTINGS in os.environ:
    app.conf.update(json.loads(os.environ[SETTINGS]))
    log_json_lines()
    beat_init.connect(_watch_publishing)
    task_prerun.connect(_report_arrival)

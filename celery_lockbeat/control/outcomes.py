"""How a task that was asked for ends, as the journal has it, or its result where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

from celery.backends.base import DisabledBackend
from celery.states import READY_STATES, SUCCESS

from celery_lockbeat.exceptions import LockbeatError
from celery_lockbeat.journal import read
from celery_lockbeat.journal.ticks import ticks_of
from celery_lockbeat.options import AppOptions
from celery_lockbeat.tasks.task import LockedTask

__all__ = ["outcome_of"]

#: Seconds between two looks.
LOOKS_EVERY: Final = 0.3

#: By so much the clocks of hosts may differ.
SKEW: Final = timedelta(minutes=10)

_OVER: Final = frozenset({"succeeded", "failed", "skipped", "died", "missed"})


def outcome_of(
    app: Any, task: str | None, task_id: str, *, since: datetime, wait: Callable[[float], object] = time.sleep
) -> dict[str, Any]:
    """Wait until a task has ended; return what became of it, as :meth:`Tick.fields` has it.

    Raises LockbeatError where nobody can know: the journal tells of a LockedTask, a result of any.
    """
    journaled = AppOptions.read(app.conf).journal > 0 and isinstance(app.tasks.get(task), LockedTask)
    result = None if isinstance(app.backend, DisabledBackend) else app.AsyncResult(task_id)
    if not journaled and result is None:
        raise LockbeatError(f"nobody can tell how {task} ends: it is no LockedTask, and no result_backend is set")
    while True:
        records = (
            [each for each in read(app, since=since - SKEW, limit=None) if each.task_id == task_id] if journaled else []
        )
        for tick in ticks_of(records):
            if tick.outcome in _OVER:
                return tick.fields()
        if not journaled and result is not None and result.state in READY_STATES:
            reason = None if result.state == SUCCESS else repr(result.result)
            return {
                "task_id": task_id,
                "outcome": "succeeded" if result.state == SUCCESS else "failed",
                "reason": reason,
            }
        wait(LOOKS_EVERY)

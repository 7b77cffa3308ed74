"""What is logged of one attempt: its start, how it ended, and what time went where.

Promises: each attempt logs one ``task_started``, one of ``task_succeeded``, ``task_failed``, ``task_retried`` and
``task_skipped``, and one ``task_finished``, in this order, however often :meth:`Report.end` has to be called for that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from celery.exceptions import Ignore, Reject, Retry

from celery_lockbeat.exceptions import TaskSkipped
from celery_lockbeat.locks.lock import Lock
from celery_lockbeat.locks.streaks import PAUSE_AFTER, Streak
from celery_lockbeat.observe.events import Story
from celery_lockbeat.tasks.overdue import unwatch, watch
from celery_lockbeat.tasks.plan import LockPlan

__all__ = ["Report", "ends_well", "has_failed", "ms_since"]

#: One of these is logged of each attempt.
_OUTCOMES: Final = frozenset({"task_succeeded", "task_failed", "task_retried", "task_skipped"})


class Report:
    """The events of one attempt, for ``request`` or, where that is None, for a direct call; of a ``tick``, or of none."""

    #: Milliseconds spent in the body, and on the lock.
    duration_ms = 0.0
    acquire_ms: float | None = None
    release_ms: float | None = None

    #: when the body was entered, on the local clock
    entered: float | None = None
    _start_is_emitted = False
    _outcome_is_emitted = False

    def __init__(self, task: Any, plan: LockPlan, request: Any, tick: Mapping[str, Any]) -> None:
        self.task: Final = task
        self.expected_within: Final = plan.options.expected_within
        self._is_direct: Final = request is None
        self.story: Final = Story(
            task,
            plan.options.logging,
            plan.journal,
            task_id=request and request.id,
            task_name=task.name,
            kind=tick.get("kind", "task"),
            schedule=tick.get("entry"),
            tick=tick.get("due"),
            hostname=request and request.hostname,
        )
        #: where its end counts among those of its entry
        self.streak: Final = Streak.of(tick, request and request.id) if PAUSE_AFTER in tick else None
        self.story.streak = self.streak.text() if self.streak is not None else ""

    def start(self, lock: Lock | None) -> None:
        """The body is about to be entered, under ``lock`` if there is one."""
        self.story.emit("task_started")
        self._start_is_emitted = True
        if lock is not None and lock.held:
            lock.report_acquired()

    def enter(self, *, awaited: bool = False) -> None:
        """The body is entered, in this thread, unless it is ``awaited``."""
        self.entered = time.monotonic()
        watch(self, None if awaited else threading.get_ident())

    def leave(self) -> None:
        """The body has ended, if it was entered."""
        if self.entered is not None and not self.duration_ms:
            self.duration_ms = ms_since(self.entered)
            unwatch(self)

    def end(self, ending: BaseException | None, lock: Lock | None) -> None:
        """The attempt has ended with an exception, or with a result: log what is not yet logged of it."""
        if not self._start_is_emitted:
            self.start(lock)
        spent: dict[str, Any] = {
            "duration_ms": self.duration_ms,
            "acquire_ms": self.acquire_ms,
            "release_ms": self.release_ms,
        }
        status, event, fields = self._outcome(ending, spent)
        if not self._outcome_is_emitted:
            self.story.emit(event, status=status, **fields)
            self._outcome_is_emitted = True
        self.story.emit("task_finished", status=status, **spent)

    @property
    def has_outcome(self) -> bool:
        """Whether somebody may have heard how the attempt ends."""
        story = self.story
        return self._outcome_is_emitted or not _OUTCOMES.isdisjoint((*story.emitted, *story.journaled))

    def _outcome(self, ending: BaseException | None, spent: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
        if isinstance(ending, TaskSkipped):
            fields = {"reason": ending.reason, "holder": ending.holder, "acquire_ms": self.acquire_ms}
            return "skipped", "task_skipped", fields
        if ends_well(ending):
            return "success", "task_succeeded", spent
        if isinstance(ending, Retry) and not self._is_direct:
            # of a direct call nothing is tried again: Celery raises what the body gave as the cause, or this
            pause = ending.when if isinstance(ending.when, (int, float)) else None
            return "retry", "task_retried", {**spent, **_error_of(ending.exc), "retry_in": pause}
        return "failed", "task_failed", {**spent, **_error_of(ending)}


def ends_well(ending: BaseException | None) -> bool:
    """Whether an attempt ended with a result, or with Ignore, the body's word for "no result"; replace() ends so."""
    return ending is None or (isinstance(ending, Ignore) and not isinstance(ending, TaskSkipped))


def has_failed(ending: BaseException | None) -> bool | None:
    """Whether a run has failed by ending so, or succeeded; None: neither, or what ends so goes on in another attempt."""
    if ends_well(ending):
        return False
    # what is no Exception ends a process, or a greenlet
    is_one = isinstance(ending, Exception) and not isinstance(ending, (Retry, Reject, Ignore))
    return True if is_one else None


def ms_since(began: float) -> float:
    """Return the milliseconds since ``began``, on the local clock."""
    return round((time.monotonic() - began) * 1000, 3)


def _error_of(exc: BaseException | None) -> dict[str, Any]:
    """Return the fields that tell of an exception."""
    if exc is None:
        return {}
    return {"error_name": type(exc).__name__, "error_message": str(exc), "holder": getattr(exc, "holder", None)}

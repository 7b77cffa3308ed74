"""Attempts that take longer than they should: each is said once, by the process that it is in, with where its body stands.

An attempt should end within ``lock_expected_within`` or, where that is not set, within ten times the median of its task's last
runs, as the journal has them. Promises: what ends within ten seconds, and is expected to, costs but an entry in a table; whatever goes
wrong in looking, no attempt is the worse for it.

Not promised: the median under gevent, whose sockets no thread of the kernel's may use; where a coroutine stands.
"""

from __future__ import annotations

import logging
import os
import statistics
import sys
import traceback
import weakref
from pathlib import Path, PurePath
from typing import Any, Final

from celery_lockbeat import threads
from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import LockbeatError
from celery_lockbeat.journal.reader import read
from celery_lockbeat.observe.vocabulary import took
from celery_lockbeat.process import when_a_worker_has_ended
from celery_lockbeat.stores import on_close

__all__ = ["unwatch", "watch"]

logger: Final = logging.getLogger("celery_lockbeat")

#: Seconds between two looks, after which a thread that has nothing to look at ends, and for which a median counts.
LOOKS_EVERY: Final = 1.0
IDLE_FOR: Final = 5.0
MEDIAN_COUNTS_FOR: Final = 60.0

#: Shorter runs are never overdue by their median, of so many runs at most and at least; and how often that is too long.
SHORTEST: Final = 10.0
RUNS_AT_MOST: Final = 50
RUNS_AT_LEAST: Final = 5
TIMES: Final = 10

#: So many frames say where a body stands.
FRAMES: Final = 3

#: The file that calls bodies.
_CALLER: Final = str(Path(__file__).with_name("run.py"))


class _Body:
    """A body that runs: of ``report``, in ``thread`` (None: it is awaited).

    Only a weak reference: what strikes an attempt on its way out may keep it from saying that it has ended.
    """

    __slots__ = ("began", "report", "thread", "when")

    def __init__(self, report: Any, thread: int | None) -> None:
        self.report = weakref.ref(report)
        self.thread = thread
        self.began = monotonic()
        #: when to look at it, on the local clock; None: it has been said
        self.when: float | None = self.began + (report.expected_within or SHORTEST)


def watch(report: Any, thread: int | None) -> None:
    """Look at this attempt, whose body is entered, until :func:`unwatch`."""
    _watcher.bodies[id(report)] = _Body(report, thread)
    if not _watcher.thread.runs:
        _watcher.thread.begin()


def unwatch(report: Any) -> None:
    """Its body has ended."""
    _watcher.bodies.pop(id(report), None)


class _Watcher:
    """The thread, while there is something to look at."""

    def __init__(self) -> None:
        self.bodies: dict[int, _Body] = {}
        self.thread = threads.Recurrent(
            "lockbeat-overdue",
            self._look,
            has_work=lambda: self.bodies,
            pause=lambda: LOOKS_EVERY,
            idle_for=lambda: IDLE_FOR,
        )
        self._medians: dict[tuple[Any, str], tuple[float, float | None]] = {}

    def _look(self) -> None:
        now = monotonic()
        for name, body in list(self.bodies.items()):
            report = body.report()
            if report is None:
                self.bodies.pop(name, None)
            elif body.when is not None and now >= body.when:
                try:
                    self._judge(body, report, now)
                except Exception:  # as it says above
                    body.when = None
                    logger.exception("nobody can tell whether a run of %s is overdue", report.task.name)
            del report

    def _judge(self, body: _Body, report: Any, now: float) -> None:
        expected, why = report.expected_within, "more than its lock_expected_within"
        if expected is None:
            median = self._median_of(report.task, now)
            if median is None:
                body.when = now + MEDIAN_COUNTS_FOR
                return
            expected, why = max(SHORTEST, TIMES * median), f"more than {TIMES} times its median"
        if now - body.began < expected:
            body.when = body.began + expected
            return
        body.when = None
        lasts = now - body.began
        fields = {"reason": f"it has run for {took(lasts)}, {why}", "where": _where(body.thread)}
        report.story.later("run_overdue", duration_ms=round(lasts * 1000, 3), **fields)

    def _median_of(self, task: Any, now: float) -> float | None:
        """The median of the last runs' seconds; None: there are too few, or they cannot be asked for."""
        which = task.app.main, task.name
        asked, median = self._medians.get(which, (-MEDIAN_COUNTS_FOR, None))
        if now - asked < MEDIAN_COUNTS_FOR or threads.gevent_has_patched():
            return median
        try:
            runs = read(task.app, task=task.name, status="success", limit=RUNS_AT_MOST)
        except LockbeatError as exc:
            logger.debug("the median of %s cannot be asked for: %s", task.name, exc)
            return median
        lasted = [run.duration_ms / 1000 for run in runs if run.duration_ms is not None]
        median = statistics.median(lasted) if len(lasted) >= RUNS_AT_LEAST else None
        self._medians[which] = now, median
        return median


def _where(thread: int | None) -> str | None:
    """Say in which lines a thread is, the innermost first."""
    frame = None if thread is None else sys._current_frames().get(thread)
    if frame is None:
        return None
    stack = list(traceback.extract_stack(frame))
    # from what we have called on: what is behind it is the same for all bodies
    called = [number for number, at in enumerate(stack) if at.filename == _CALLER]
    inner = stack[called[-1] + 1 :] if called else stack
    lines = [f"{'/'.join(PurePath(at.filename).parts[-2:])}:{at.lineno} in {at.name}" for at in inner[-FRAMES:]]
    return " < ".join(reversed(lines))


#: Of this process.
_watcher = _Watcher()


def _begin_anew() -> None:
    global _watcher  # noqa: PLW0603  it is this process's, and that is another one now
    _watcher = _Watcher()


def _rest(*_: Any) -> None:
    _watcher.thread.rest(0.0 if _watcher.bodies else LOOKS_EVERY)


when_a_worker_has_ended(_rest)
on_close(_rest)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)

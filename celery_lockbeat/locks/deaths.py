"""Which runs have died with a pool's child, and of what: their parent writes it into the journal, in the child's place.

Promises: each run that held its lock when its child died is written down once, within :data:`KNOWN_WITHIN`, with what is known by then
of why: the child's exit status, where nobody has reaped it before us, and what Celery makes of the death.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import signals

from celery_lockbeat.clock import monotonic
from celery_lockbeat.journal.writer import journal_of
from celery_lockbeat.locks.page import Hold
from celery_lockbeat.locks.streaks import Streak
from celery_lockbeat.observe.events import Story

__all__ = ["Deaths", "End", "end_of"]

#: Seconds until Celery has found out what became of a child, and reports it.
KNOWN_WITHIN: Final = 1.0

#: Seconds for which a run that is to be counted waits for Celery to say whether its task has failed: its pool is looked after each five.
COUNTED_WITHIN: Final = 60.0

#: So many of Celery's reports are kept.
REPORTS_AT_MOST: Final = 100


class End(NamedTuple):
    """How a child has ended: the ``signal`` that killed it, if any, and in words; None where nobody can tell."""

    signal: int | None = None
    reason: str | None = None
    #: whether Celery has its task end as failed for it: no other try comes
    failed: bool = False


def end_of(pid: int) -> End | None:
    """Tell how this child of ours has ended, also where it is not yet reaped; None: it still runs."""
    try:
        if not hasattr(os, "waitid"):
            os.kill(pid, 0)
            return None
        status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (ChildProcessError, ProcessLookupError):
        return End()
    if status is None:
        return None
    if status.si_code == os.CLD_EXITED:
        return End(None, f"its process ended with exit status {status.si_status}")
    return _killed_by(status.si_status)


def _killed_by(number: int) -> End:
    name = f"signal {number}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(number).name
    return End(number, f"its process was killed by {name}")


class _Death(NamedTuple):
    at: float
    pid: int
    end: End
    held: Mapping[tuple[str, str], Hold]


class _Uncounted(NamedTuple):
    """A run of a death that is written down, of which Celery has not said yet whether its task has failed."""

    since: float
    streak: Streak
    what: dict[str, str]
    end: End


class Deaths:
    """The deaths of one app's children that are still to be written down, or to be counted."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._new: list[_Death] = []
        #: by task id
        self._uncounted: dict[str, _Uncounted] = {}

    def __len__(self) -> int:
        return len(self._new)

    def add(self, pid: int, end: End, held: Mapping[tuple[str, str], Hold]) -> None:
        """Note that a child has died that held this."""
        runs = {who: hold for who, hold in held.items() if hold.what and hold.token}
        if runs:
            self._new.append(_Death(monotonic(), pid, end, runs))

    def write(self, *, at_once: bool = False) -> None:
        """Write down those of which all is known by now."""
        now = monotonic()
        new, self._new = self._new, []
        for death in new:
            if at_once or now - death.at >= KNOWN_WITHIN:
                self._write(death)
            else:
                self._new.append(death)
        self._count_what_has_failed(now)

    def _write(self, death: _Death) -> None:
        for (execution_id, _), hold in death.held.items():
            what = dict(hold.what)
            streak = what.pop("streak", "")
            task_id = what.get("task_id", "")
            said = _reports.pop(task_id, End())
            end = End(said.signal or death.end.signal, said.reason or death.end.reason or "its process has died")
            # of several keys what it is held for has them all
            fields = {"lock_key": hold.key, **what, "token": hold.token, "driver": hold.driver, "pid": death.pid}
            own = {"signal": end.signal, "reason": end.reason}
            journal_of(self._app).put("task_died", fields, own, execution_id, at=death.at)
            if streak:
                end = end._replace(failed=said.failed)
                self._uncounted[task_id] = _Uncounted(monotonic(), Streak.read(streak), what, end)

    def _count_what_has_failed(self, now: float) -> None:
        for task_id, one in list(self._uncounted.items()):
            if one.end.failed or (task_id in _reports and _reports.pop(task_id).failed):
                del self._uncounted[task_id]
                self._count(one.streak, one.what, one.end)
            elif now - one.since >= COUNTED_WITHIN:
                del self._uncounted[task_id]

    def _count(self, streak: Streak, what: dict[str, str], end: End) -> None:
        """Count the failure of a run whose process can't."""
        reason = streak.failed(self._app, str(end.reason))
        if reason is not None:
            story = Story(self._app.tasks.get(what.get("task_name")), "default", None, **what)
            story.emit("entry_paused", who="lockbeat", count=streak.limit, reason=reason)


# -- what Celery says of it, in the parent -----------------------------------------------------------------------------

#: By task id.
_reports: Final[dict[str, End]] = {}


def _report(task_id: str, end: End) -> None:
    _reports[task_id] = end
    if len(_reports) > REPORTS_AT_MOST:
        _reports.pop(next(iter(_reports)), None)


@signals.task_failure.connect  # type: ignore[untyped-decorator]
def _failed(task_id: str = "", exception: Any = None, **_: Any) -> None:
    if isinstance(exception, TimeLimitExceeded):
        limit = exception.args[0] if exception.args else ""
        _report(task_id, End(None, f"it exceeded its hard time limit of {limit} s", failed=True))
    elif isinstance(exception, WorkerLostError):
        # 'Worker exited prematurely: signal 11 (SIGSEGV) Job: 0.' (billiard 4.2, pool.py)
        number = re.search(r"signal (\d+)", str(exception))
        status = re.search(r"exitcode (-?\d+)", str(exception))
        if number:
            _report(task_id, _killed_by(int(number[1]))._replace(failed=True))
        else:
            said = f"its process ended with exit status {status[1]}" if status else None
            _report(task_id, End(None, said, failed=True))


@signals.task_revoked.connect  # type: ignore[untyped-decorator]
def _revoked(request: Any = None, terminated: bool = False, **_: Any) -> None:
    if terminated:
        _report(str(getattr(request, "id", "")), End(None, "it was revoked, with terminate"))

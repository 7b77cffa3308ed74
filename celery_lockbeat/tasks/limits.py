"""Soft time limits: Celery's are for bodies, so one that strikes when the body has ended comes too late, and strikes nothing.

Celery raises SoftTimeLimitExceeded by a signal, between any two instructions of a prefork child's main thread. Between a
body's end and the last event of its run it would leave a key that is not released, or a story without its end; after
that, a success that Celery counts as failed. A log handler that it strikes has written a line, or has not: nobody can tell.

Promises: while a run is ``ending`` here, no soft time limit strikes; where the run is that of a message, none strikes until
Celery has done with that message; else it strikes as soon as that run is over, for it is that of a body around it.

Not promised: the same for what else may raise anything anywhere, such as a signal handler of a user's (see ``run.py``).
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, Final
from weakref import ref

from celery._state import get_current_worker_task

from celery_lockbeat.process import this_process

__all__ = ["soft_limits"]

SIGNAL: Final = getattr(signal, "SIGUSR1", None)


class SoftLimits:
    """Those of this process: none, unless it is a prefork child, whose main thread runs the tasks."""

    def __init__(self) -> None:
        #: Runs that are not to be struck now. One that is gone is none of them: nothing can leave a process deaf for good.
        self._ending: Final[list[ref[Any]]] = []
        #: the request of the message whose run has ended here last
        self._over: Callable[[], Any] = lambda: None
        #: whether a limit has come while there was nobody to strike
        self._came = False
        #: billiard's handler, which raises
        self._raise: Any = None
        #: the process in which ours is in its place, and its main thread: a child of this one sets billiard's anew
        self._pid: int | None = None
        self._thread: int | None = None

    def ending(self, run: Any) -> None:
        """Let no soft time limit strike from now on, until this run is ``over``."""
        if self._pid != this_process.pid:
            self._replace()
        if threading.get_ident() != self._thread or (this := ref(run)) in self._ending:
            return
        if self._ending:
            self._ending[:] = self._living()
        self._ending.append(this)

    def _replace(self) -> None:
        """Put our handler in the place of billiard's, which sets it in each child, after all that could be told of it."""
        if SIGNAL is None or threading.current_thread() is not threading.main_thread():
            return
        handler = getattr(sys.modules.get("billiard.pool"), "soft_timeout_sighandler", None)
        if handler is not None and signal.getsignal(SIGNAL) is handler:
            self._raise = handler
            signal.signal(SIGNAL, self._strike)
            self._pid, self._thread = this_process.pid, threading.get_ident()

    def over(self, run: Any, request: Any = None) -> None:
        """Let limits strike again, and one that has come meanwhile: unless it was that of the message of this ``request``."""
        if (this := ref(run)) not in self._ending:
            return
        self._over = (lambda: None) if request is None else ref(request)
        self._ending.remove(this)
        if self._came and not self._living():
            self._came = False
            if request is None:
                self._raise(SIGNAL, None)

    def _living(self) -> list[ref[Any]]:
        return [each for each in self._ending if each() is not None]

    def _strike(self, number: int, frame: Any) -> None:
        if self._living():
            self._came = True
        elif (request := self._over()) is None or request is not _current_request():
            self._raise(number, frame)


def _current_request() -> Any:
    task = get_current_worker_task()
    return None if task is None else task.request_stack.top


soft_limits: Final = SoftLimits()

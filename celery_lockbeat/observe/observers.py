"""Events that renewing threads find out are delivered to observers, log handlers and receivers of Signals, by a thread of its own.

Promises: no observer, however slow, and whatever it raises, costs anybody a lock. The events of one story are delivered in
their order, by whatever thread; who ends a story delivers what is still pending of it himself, so that nothing waits for
another's observers. At most :data:`AT_MOST` events wait; how many more there were is logged. The thread begins when there is
something to deliver, and ends when all is delivered; a fork takes nothing along.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from celery import signals

from celery_lockbeat import signals as events
from celery_lockbeat import threads
from celery_lockbeat.clock import monotonic

__all__ = ["Pending", "finish", "pending_of", "renewing_thread"]

logger: Final = logging.getLogger("celery_lockbeat")

#: As many events wait for an observer that takes long.
AT_MOST: Final = 10_000

#: Seconds for which an end waits for an observer that is still at what came before it; then it is delivered after that.
PATIENCE: Final = 1.0

#: Seconds for which a process that ends waits for its observers.
LAST_PATIENCE: Final = 2.0


class Pending:
    """The events of one story that are still to be delivered, in their order."""

    __slots__ = ("_events", "_turn")

    def __init__(self) -> None:
        self._events: Final[deque[Callable[[], object]]] = deque()
        #: whoever takes its only item is the one who delivers
        self._turn: Final = deque([True])

    def put(self, deliver: Callable[[], object]) -> bool:
        """Have it delivered after all that came before; False: too much waits already."""
        self._events.append(deliver)
        if _dispatcher.put(self):
            return True
        with contextlib.suppress(ValueError):  # another has delivered it meanwhile
            self._events.remove(deliver)
        return False

    def deliver(self) -> bool:
        """Deliver all of it, here; False: another thread is at it."""
        try:
            turn = self._turn.pop()
        except IndexError:
            return False
        try:
            while self._events:
                self._events.popleft()()
        finally:
            self._turn.append(turn)
        return True

    def flush(self) -> bool:
        """Deliver all of it, here, or let another thread do so; False: that one takes too long."""
        deadline = monotonic() + PATIENCE
        # by turns, for under gevent the other is a thread of another kind, which shares no Event with this one
        while self._events or not self._turn:
            if self.deliver():
                return True
            if monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True


def pending_of(story: Any) -> Pending:
    """Return ``story.pending``, which is made when it is first needed: by a renewing thread, or by the owner."""
    with _making:
        if story.pending is None:
            story.pending = Pending()
        pending: Pending = story.pending
    return pending


class _Dispatcher:
    """The thread, while there is something to deliver."""

    def __init__(self) -> None:
        self._mutex = threads.new_lock()
        self._waiting: deque[Pending] = deque()
        self._running = False
        self._left_out = 0
        self._join: Callable[[float], None] | None = None
        self._thread: int | None = None

    def put(self, pending: Pending) -> bool:
        with self._mutex:
            if len(self._waiting) >= AT_MOST:
                self._left_out += 1
                return False
            self._waiting.append(pending)
            if not self._running:
                self._begin()
            return True

    def _begin(self) -> None:
        try:
            self._join = threads.start(self._run, "lockbeat-observers")
        except RuntimeError:  # no thread can be had: it is delivered with the next, or by who ends the story
            return
        self._running = True

    def _run(self) -> None:
        self._thread = threading.get_ident()
        while True:
            with self._mutex:
                left_out, self._left_out = self._left_out, 0
                pending = self._waiting.popleft() if self._waiting else None
                if pending is None and not left_out:
                    self._running, self._thread = False, None
                    return
            if left_out:
                self._deliver(partial(logger.warning, "%d events were not told: an observer takes too long", left_out))
            if pending is not None and self._deliver(pending.deliver) is False:
                # another may have delivered all but what came last, and go now
                with self._mutex:
                    self._waiting.append(pending)
                time.sleep(0.01)

    def _deliver(self, deliver: Callable[[], Any]) -> Any:
        try:
            return deliver()
        except BaseException:
            logger.exception("an observer failed")  # SystemExit, or what else logging and Signals let through
            return None

    def finish(self, within: float) -> None:
        """Wait until all is delivered, and the thread has gone."""
        deadline = monotonic() + within
        if self._thread == threading.get_ident():  # an observer asks for it
            return
        while self._running and monotonic() < deadline:
            time.sleep(0.001)
        if self._join is not None and not self._running:
            self._join(max(0.0, deadline - monotonic()))


# -- what the renewing threads log -------------------------------------------------------------------------------------

#: The threads on whose time nothing is written.
_renewing: Final[set[int]] = set()


class renewing_thread:  # noqa: N801  it reads as what it makes of the block's thread
    """Within this block no log handler runs on this thread's time: what it logs is written by the observers' thread."""

    def __enter__(self) -> None:
        _renewing.add(threading.get_ident())

    def __exit__(self, *_: object) -> None:
        _renewing.discard(threading.get_ident())


class _Elsewhere(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if threading.get_ident() not in _renewing:
            return True
        _lines.put(partial(logger.handle, record))
        return False


def finish(**_: Any) -> None:
    """Wait until all is delivered, or for :data:`LAST_PATIENCE`."""
    _dispatcher.finish(LAST_PATIENCE)


#: Of this process.
_dispatcher = _Dispatcher()
_lines = Pending()
_making = threads.new_lock()


def _begin_anew() -> None:
    global _dispatcher, _lines, _making
    _dispatcher, _lines, _making = _Dispatcher(), Pending(), threads.new_lock()
    _renewing.clear()
    for name in events.__all__:
        # a Signal's own lock (celery 5.4 to 5.7, utils/dispatch/signal.py), which a thread of the parent's may have held
        getattr(events, name).lock = threading.Lock()


logger.addFilter(_Elsewhere())
atexit.register(finish)
signals.worker_process_shutdown.connect(finish)  # a pool's child runs no atexit
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)

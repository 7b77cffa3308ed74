"""What the renewing threads find out is told to observers by a thread of its own.

Promises: no log handler and no receiver of a Signal, however slow, and whatever it raises, costs anybody a lock. The events of one story are told in their order, whoever tells them; who ends a story tells what is still untold of
it himself, so that nothing waits for another's observers. At most :data:`AT_MOST` events wait; how many more there were is
logged. The thread begins when there is something to tell, and ends when all is told; a fork takes nothing along.
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

from celery_lockbeat import threads
from celery_lockbeat.clock import monotonic

__all__ = ["Untold", "finish", "renewing_thread", "untold_of"]

logger: Final = logging.getLogger("celery_lockbeat")

#: As many events wait for an observer that takes long.
AT_MOST: Final = 10_000

#: Seconds for which an end waits for an observer that is still at what came before it; then it is told after that.
PATIENCE: Final = 1.0

#: Seconds for which a process that ends waits for its observers.
LAST_PATIENCE: Final = 2.0


class Untold:
    """What of one story is still to be told, in its order."""

    __slots__ = ("_tellings", "_turn")

    def __init__(self) -> None:
        self._tellings: Final[deque[Callable[[], object]]] = deque()
        #: whoever takes its only item is the one who tells
        self._turn: Final = deque([True])

    def later(self, tell: Callable[[], object]) -> bool:
        """Have it told after all that came before; False: too much waits already."""
        self._tellings.append(tell)
        if _teller.put(self):
            return True
        with contextlib.suppress(ValueError):  # another has told it meanwhile
            self._tellings.remove(tell)
        return False

    def tell(self) -> bool:
        """Tell all of it, here; False: another thread is at it."""
        try:
            turn = self._turn.pop()
        except IndexError:
            return False
        try:
            while self._tellings:
                self._tellings.popleft()()
        finally:
            self._turn.append(turn)
        return True

    def catch_up(self) -> bool:
        """Tell all of it, here, or let another thread do so; False: that one takes too long."""
        deadline = monotonic() + PATIENCE
        # by turns, for under gevent the other is a thread of another kind, which shares no Event with this one
        while self._tellings or not self._turn:
            if self.tell():
                return True
            if monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True


def untold_of(story: Any) -> Untold:
    """Return ``story.untold``, which is made when it is first needed: by a renewing thread, or by the owner."""
    with _making:
        if story.untold is None:
            story.untold = Untold()
        untold: Untold = story.untold
    return untold


class _Teller:
    """The thread, while there is something to tell."""

    def __init__(self) -> None:
        self._mutex = threads.new_lock()
        self._waiting: deque[Untold] = deque()
        self._running = False
        self._left_out = 0
        self._join: Callable[[float], None] | None = None
        self._thread: int | None = None

    def put(self, untold: Untold) -> bool:
        with self._mutex:
            if len(self._waiting) >= AT_MOST:
                self._left_out += 1
                return False
            self._waiting.append(untold)
            if not self._running:
                self._begin()
            return True

    def _begin(self) -> None:
        try:
            self._join = threads.start(self._run, "lockbeat-observers")
        except RuntimeError:  # no thread can be had: it is told with the next, or by who ends the story
            return
        self._running = True

    def _run(self) -> None:
        self._thread = threading.get_ident()
        while True:
            with self._mutex:
                left_out, self._left_out = self._left_out, 0
                untold = self._waiting.popleft() if self._waiting else None
                if untold is None and not left_out:
                    self._running, self._thread = False, None
                    return
            if left_out:
                self._tell(partial(logger.warning, "%d events were not told: an observer takes too long", left_out))
            if untold is not None and self._tell(untold.tell) is False:
                # another may have told all but what came last, and go now
                with self._mutex:
                    self._waiting.append(untold)
                time.sleep(0.01)

    def _tell(self, tell: Callable[[], Any]) -> Any:
        try:
            return tell()
        except BaseException:
            logger.exception("an observer failed")  # SystemExit, or what else logging and Signals let through
            return None

    def finish(self, within: float) -> None:
        """Wait until all is told, and the thread has gone."""
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
        _lines.later(partial(logger.handle, record))
        return False


def finish(**_: Any) -> None:
    """Wait until all is told, or for :data:`LAST_PATIENCE`."""
    _teller.finish(LAST_PATIENCE)


#: Of this process.
_teller = _Teller()
_lines = Untold()
_making = threads.new_lock()


def _begin_anew() -> None:
    global _teller, _lines, _making
    _teller, _lines, _making = _Teller(), Untold(), threads.new_lock()
    _renewing.clear()


logger.addFilter(_Elsewhere())
atexit.register(finish)
signals.worker_process_shutdown.connect(finish)  # a pool's child runs no atexit
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)

"""Abort: raise an exception inside of a body that runs in another thread, or in a greenlet, once.

Promises: it is raised while the body is armed, or not at all: never after the body has ended, and never in another run.
In the main thread (prefork, solo) it interrupts ``time.sleep``, I/O and whatever else of C a signal interrupts; in a
greenlet, or a coroutine, it comes when that one next waits.

Not promised: an end to C code that heeds no signal, or, in the ``threads`` pool, to anything that waits: there it comes
with the next line of Python. A body may catch it, as it may catch anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

__all__ = ["SIGNAL", "Abort", "when_signalled"]

#: Ignored by default, so it can do no harm where it comes late; Go's runtime preempts with it for the same reason.
SIGNAL: Final = getattr(signal, "SIGURG", None)


class Abort:
    """One chance to raise ``error`` in the body that arms it, from any thread.

    Who takes the only item of ``_armed`` has the last word: the body, which then has ended, or the one that fires.
    """

    def __init__(self, error: Exception) -> None:
        self.error: Final = error
        self.over = False
        self._armed: Final[list[Callable[[], None]]] = []
        self._fired: Final = threading.Event()
        #: whether it is CPython that raises it: with the next turn of a loop in the body's thread
        self._comes_later = False
        #: whether it has cancelled the body, which is a coroutine
        self.cancelled = False

    def arm(self, *, awaited: bool = False) -> None:
        """From now on the body in this thread, or greenlet, can be aborted; one that is ``awaited`` is cancelled."""
        self._armed.append(_in_asyncio(self) if awaited else self._way())

    def disarm(self) -> None:
        """The body has ended: nothing will be raised any more once this returns."""
        self.over = True
        try:
            self._armed.pop()
        except IndexError:
            if self._comes_later:
                self._fired.wait()
                self._let_it_come()

    def fire(self, because: str = "") -> None:
        """Raise ``error`` in the body, unless that has ended, or it has been raised before."""
        try:
            throw = self._armed.pop()
        except IndexError:
            return
        if because:
            self.error.args = (f"{self.error}: {because}",)
        throw()
        self._fired.set()

    def _way(self) -> Callable[[], None]:
        """How to raise something where this is called."""
        green = _in_gevent(self) or _in_eventlet(self)
        if green is not None:
            return green
        if SIGNAL is not None and threading.current_thread() is threading.main_thread():
            if signal.getsignal(SIGNAL) is not _raise_what_is_due:
                _before.append(signal.signal(SIGNAL, _raise_what_is_due))
            return self._by_signal
        thread = ctypes.c_ulong(threading.get_ident())
        raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
        self._comes_later = True
        # a class: CPython makes the instance
        return lambda: raise_in(thread, ctypes.py_object(type(self.error)))

    def _let_it_come(self) -> None:
        # Not raise_in(thread, None): CPython then looks in each loop, for ever, for what is not there, and 3.11 hangs as soon
        # as anything traces (Python/pystate.c, PyThreadState_SetAsyncExc).
        with contextlib.suppress(type(self.error)):
            for _ in range(2):  # it comes here, if it has not come in the body
                pass

    def _by_signal(self) -> None:
        _due.append(self)
        signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL or 0)


#: What the main thread is to raise.
_due: Final[list[Abort]] = []
#: Whose signal it was before.
_before: Final[list[Any]] = []


#: What else the signal may be meant for. It is done between two lines of whatever the main thread does: it takes no lock.
_signalled: Final[list[Callable[[], None]]] = []


def when_signalled(do: Callable[[], None]) -> None:
    """Call ``do`` in the main thread whenever the signal comes, once a body has been armed there."""
    _signalled.append(do)


def _raise_what_is_due(number: int, frame: Any) -> None:
    for do in _signalled:
        do()
    # in the main thread, as the bodies are: none can end between the look and the raise
    while _due:
        abort = _due.pop()
        if not abort.over:
            raise abort.error
    if callable(_before[-1]):
        _before[-1](number, frame)


def _in_asyncio(abort: Abort) -> Callable[[], None]:
    # Neither a signal nor CPython's way: either would end the loop, and all else that runs in it.
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def cancel() -> None:
        # in the loop, so the body does not run: it waits, or has ended
        if not abort.over and task is not None:
            abort.cancelled = True
            task.cancel()

    def throw() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and so is what ran in it
            loop.call_soon_threadsafe(cancel)

    return throw


def _in_gevent(abort: Abort) -> Callable[[], None] | None:
    if "gevent" not in sys.modules:
        return None
    import gevent  # noqa: PLC0415  only where the pool is gevent's

    greenlet = gevent.getcurrent()
    if not isinstance(greenlet, gevent.Greenlet):
        return None
    loop = gevent.get_hub().loop

    def throw() -> None:
        # in the hub, so the body does not run: it waits, or has ended
        if not abort.over:
            greenlet.throw(abort.error)

    return lambda: loop.run_callback_threadsafe(throw)


def _in_eventlet(abort: Abort) -> Callable[[], None] | None:
    if "eventlet" not in sys.modules:
        return None
    import eventlet  # noqa: PLC0415  only where the pool is eventlet's

    greenlet = eventlet.getcurrent()
    if not isinstance(greenlet, eventlet.greenthread.GreenThread):
        return None
    return lambda: None if abort.over else eventlet.kill(greenlet, abort.error)

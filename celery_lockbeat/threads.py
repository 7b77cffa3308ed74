"""Threads of the kernel's, also where gevent has patched ``threading``: who renews must not wait until a body yields.

And what is done in another thread for an event loop, which must not wait for a store.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

from celery_lockbeat.clock import monotonic

__all__ = ["Recurrent", "gevent_has_patched", "new_lock", "off_the_loop", "one_thread", "start"]

_Result = TypeVar("_Result")


def gevent_has_patched() -> Any:
    """Return gevent's module of patches, if it has patched ``threading``."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey if monkey is not None and monkey.is_module_patched("threading") else None


def new_lock() -> Any:
    """Make a lock for such threads: one of gevent's would wait in the hub of its thread, and not be woken from another."""
    green = gevent_has_patched()
    return green.get_original("_thread", "allocate_lock")() if green else threading.Lock()


def start(run: Callable[[], None], name: str) -> Callable[[float], None]:
    """Call ``run`` in a daemon thread; return what waits for its end, for so many seconds at most. Raises RuntimeError."""
    green = gevent_has_patched()
    if green:
        green.get_original("_thread", "start_new_thread")(run, ())
        return lambda _timeout: None  # threading, and who counts its threads, does not know it
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread.join


class Recurrent:
    """A thread that is there while there is something to do: it does so after each pause, and ends when it has long been idle.

    ``work`` is what it does, and raises nothing; ``has_work`` tells whether there is any. ``pause`` and ``idle_for`` return
    seconds. ``ended`` is called as it ends. Whoever makes work asks ``runs``, and begins it where it does not.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], object],
        *,
        has_work: Callable[[], object],
        pause: Callable[[], float],
        idle_for: Callable[[], float],
        ended: Callable[[], object] = lambda: None,
    ) -> None:
        self.runs = False
        self._name = name
        self._work, self._has_work, self._ended = work, has_work, ended
        self._pause, self._idle_for = pause, idle_for
        self._rests = False
        self._join: Callable[[float], None] | None = None
        self._beginning = new_lock()
        self._bell = new_lock()  # locked, until it rings: a sleep that gevent does not patch
        self._bell.acquire()

    def begin(self) -> None:
        """Begin, unless it runs, or no thread can be had now."""
        # whoever finds it taken need not begin one
        if not self._beginning.acquire(False):
            return
        try:
            if not self.runs:
                self._rests = False
                self._join = start(self._run, self._name)
                self.runs = True
        except RuntimeError:
            pass
        finally:
            self._beginning.release()

    def rest(self, within: float) -> None:
        """Let it end as soon as there is nothing to do, and wait for that, so many seconds at most."""
        self._rests = True
        with contextlib.suppress(RuntimeError):  # it rings already
            self._bell.release()
        if self._join is not None:
            self._join(within)

    def _run(self) -> None:
        idle_since = monotonic()
        while True:
            self._bell.acquire(timeout=self._pause())
            if self._has_work():
                self._work()
                idle_since = monotonic()
            elif self._rests or monotonic() - idle_since > self._idle_for():
                self.runs = False
                # who made work meanwhile found it running
                if not self._has_work() or not self._beginning.acquire(False):
                    self._ended()
                    return
                self.runs = True
                self._beginning.release()


@contextlib.contextmanager
def one_thread() -> Iterator[Executor]:
    """A thread for what takes long, beside those of an event loop."""
    thread = ThreadPoolExecutor(1, "lockbeat-waiter")
    try:
        yield thread
    finally:
        thread.shutdown(wait=False)


async def off_the_loop(
    function: Callable[..., _Result],
    *args: Any,
    thread: Executor | None = None,
    when_cancelled: Callable[[], object] = lambda: None,
) -> _Result:
    """Do what waits for a store in another thread, in this context. A cancellation waits for it: what it does has an owner.

    ``when_cancelled`` is called then, in the loop, to make an end of it.
    """
    doing = asyncio.get_running_loop().run_in_executor(thread, copy_context().run, function, *args)
    cancelled = None
    while not doing.done():
        try:
            await asyncio.wait([doing])
        except asyncio.CancelledError as exc:  # noqa: PERF203  once, mostly
            cancelled = exc
            when_cancelled()
    if cancelled is not None:
        doing.exception()  # which nobody will ask for
        raise cancelled
    return doing.result()

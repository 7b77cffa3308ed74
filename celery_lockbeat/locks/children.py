"""What a pool's parent does for its children: it frees what dead ones held, and renews what living ones are late to.

Promises: what a pool child held when it died, in whatever way, its parent frees within a second, but not before the
child is dead; what a living child is late to renew its parent renews (``keeping.py``); nobody waits for a held key while a
worker shuts down. It knows what its children hold by what they note (``child.py``).

Not promised: the same for the children of a pool that spawns instead of forking, or for what a body forks; their leases run
out.

Receivers only start, stop and report: Celery swallows what they raise, so nothing here decides whether work may run.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
from typing import Any, Final

from celery import signals

from celery_lockbeat.clock import monotonic
from celery_lockbeat.locks import child
from celery_lockbeat.locks.abort import SIGNAL
from celery_lockbeat.locks.deaths import Deaths, end_of
from celery_lockbeat.locks.keeping import Keeper
from celery_lockbeat.locks.orphans import OrphanedLocks
from celery_lockbeat.locks.page import Page
from celery_lockbeat.locks.renewal import hurry
from celery_lockbeat.process import stopping, this_process, worker_has_ended
from celery_lockbeat.stores import Store, stores_of

__all__ = ["events_wanted", "renew_at_once"]

logger: Final = logging.getLogger("celery_lockbeat")

#: How often a parent looks after its children, seconds. It costs a system call per child, 2 us each.
LOOKS_EVERY: Final = 0.2


class _Parent:
    """The parent of a pool: it gives each child a page at the fork, and looks after what is on the page.

    What a dead one held it frees, what a living one is late to renew it renews.
    """

    def __init__(self, app: Any) -> None:
        self.pid: Final = os.getpid()
        self.next: Page | None = None
        self.pages: list[Page] = []

        def store_of(driver: str, connection: str) -> Store:
            return stores_of(app).choose(driver, connection)[0]

        self._deaths = Deaths(app)
        self._keeper = Keeper(store_of)
        self._orphaned = OrphanedLocks(store_of)
        # No fork while a child's locks are being freed or renewed: what libraries have locked then stays locked in the new child.
        self._mutex = threading.Lock()
        self._waited = False
        self._thread: threading.Thread | None = None
        self._closed = False
        self._bell = threading.Event()

    def before_a_fork(self) -> None:
        if self._closed:
            return
        # a store that hangs must not hang the pool
        self._waited = self._mutex.acquire(timeout=1.0)
        self.next = Page()
        self.next.events_wanted = _dispatches()

    def after_a_fork(self) -> None:
        if self.next is None:
            return
        self.pages.append(self.next)
        self.next = None
        if self._waited:
            self._mutex.release()
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="lockbeat-parent", daemon=True)
            self._thread.start()

    def look(self) -> float:
        """Free what dead children held, renew what living ones are late to; return when to look again, on the clock."""
        with self._mutex:
            for page in list(self.pages):
                pid = page.pid
                end = end_of(pid) if pid else None
                if end is not None:
                    self.pages.remove(page)
                    self._deaths.add(pid, end, self._orphaned.add(pid, page))
                    page.close()
                else:
                    page.events_wanted = _dispatches()
            # before a dead one's store can hang
            late_at = self._keeper.look(self.pages)
            look_at = min(late_at, monotonic() + LOOKS_EVERY)
            self._deaths.write()
            self._orphaned.free()
            return look_at

    def _watch(self) -> None:
        look_at = monotonic() + LOOKS_EVERY
        while not self._closed or self.pages or self._deaths or self._orphaned:
            self._bell.wait(max(LOOKS_EVERY / 20, look_at - monotonic()))
            self._bell.clear()
            look_at = monotonic() + LOOKS_EVERY
            try:
                look_at = self.look()
            except Exception:
                logger.exception("a look after the children of the pool failed")

    def signal_holders(self, key: str, number: int) -> None:
        """Send a signal to the children that hold a key."""
        for page in list(self.pages):
            try:
                held = page.held() if page.pid else {}
            except (ValueError, TypeError, EOFError):
                continue  # it is written just now, or broken
            if any(hold.key == key for hold in held.values()):
                with contextlib.suppress(OSError):
                    os.kill(page.pid, number)

    def close(self) -> None:
        """The worker has shut down: it forks no more, and the thread ends with what the last of its children held."""
        self._closed = True
        if self._thread is not None:
            self._bell.set()
            self._thread.join(1.0)

    def end(self) -> None:
        """Look for the last time."""
        if os.getpid() == self.pid:
            self.look()
            self._deaths.write(at_once=True)


# -- Celery's signals, and forks ---------------------------------------------------------------------------------------

_parent: _Parent | None = None
_consumer: Any = None


def events_wanted() -> bool:
    """Whether this worker sends Celery's task events now: ``-E``, or switched on by remote control, as Flower does."""
    page = child.page()
    return _dispatches() if page is None else page.events_wanted


def renew_at_once(key: str) -> None:
    """Have whoever holds a key in this worker ask the store at once what has become of it."""
    hurry()
    if _parent is not None and SIGNAL is not None:
        # whose bodies cannot be ended so ignore it
        _parent.signal_holders(key, SIGNAL)


def _dispatches() -> bool:
    dispatcher = getattr(_consumer, "event_dispatcher", None)
    # without -E it is there for the worker's own events (celery 5.7, worker/consumer/events.py)
    return dispatcher is not None and dispatcher.enabled and (not dispatcher.groups or "task" in dispatcher.groups)


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def _begin(sender: Any, **_: Any) -> None:
    global _parent  # noqa: PLW0603  the one parent that this process is
    stopping.clear()
    if _parent is not None:
        _parent.close()
        _parent.end()
    _parent = _Parent(sender.app)
    atexit.register(_parent.end)
    testing = sys.modules.get("celery.contrib.testing.worker")
    if testing is not None:
        # its workers end without a worker_shutdown (celery 5.7, worker/worker.py: terminate() sends none)
        testing.test_worker_stopped.connect(_close)


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def _know_the_consumer(sender: Any, **_: Any) -> None:
    global _consumer  # noqa: PLW0603  the one of this process
    _consumer = sender


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _stop_waiting(**_: Any) -> None:
    stopping.set()


@signals.worker_shutdown.connect  # type: ignore[untyped-decorator]
def _close(**_: Any) -> None:
    if _parent is not None:
        _parent.close()
    worker_has_ended()


def _before_a_fork() -> None:
    if _parent is not None:
        _parent.before_a_fork()


def _in_the_parent() -> None:
    if _parent is not None:
        _parent.after_a_fork()


def _in_the_child() -> None:
    global _parent
    parent, _parent = _parent, None
    if parent is None or parent.next is None:
        child.become(None, None)
        return
    parent.next.pid = this_process.pid
    child.become(parent.next, parent.pid)
    for other in parent.pages:
        other.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_a_fork, after_in_parent=_in_the_parent, after_in_child=_in_the_child)

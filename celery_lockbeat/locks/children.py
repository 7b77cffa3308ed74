"""What the life and death of Celery's processes means to locks.

Promises: what a pool child held when it died, in whatever way, its parent frees within a second, but not before the
child is dead; what a living child is late to renew its parent renews (``keeping.py``); a child whose parent is dead keeps no
lock; nobody waits for a held key while a worker shuts down.

A child notes what it holds, before it asks for it, in memory that it shares with its parent (``page.py``): no round trip, and
no pipe that somebody has to drain. Not promised: the same for the children of a pool that spawns instead of forking, or for
what a body forks; their leases run out.

Receivers only start, stop and report: Celery swallows what they raise, so nothing here decides whether work may run.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from celery import signals

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import LockbeatError
from celery_lockbeat.locks.keeping import Keeper
from celery_lockbeat.locks.page import Hold, Page
from celery_lockbeat.stores import stores_of

__all__ = [
    "events_wanted",
    "forget",
    "kept_since",
    "note",
    "orphaned",
    "stopping",
    "this_process",
    "when_a_worker_has_ended",
]

logger: Final = logging.getLogger("celery_lockbeat")

#: How often a parent looks after its children, seconds. It costs a system call per child, 2 us each.
LOOKS_EVERY: Final = 0.2

#: When to free once more what was not held at a child's death: a server that hung may read what the child asked for
#: after it has read what the parent did.
LOOKS_AGAIN: Final = 5.0

#: Set while a worker in this process shuts down. A prefork child is not told; its parent waits for it.
stopping: Final = threading.Event()


class _Process:
    """The process that this is. It knows its pid; to ask the system for it is a call, six times a run."""

    __slots__ = ("pid",)

    def __init__(self) -> None:
        self.pid = os.getpid()


this_process: Final = _Process()


#: What to do once a worker of this process has ended, the last first.
_at_the_end: Final[list[Callable[[], None]]] = []


def when_a_worker_has_ended(do: Callable[[], None]) -> Callable[[], None]:
    """Call ``do`` then: nothing is left of a worker that ends before its process does, as in tests."""
    _at_the_end.append(do)
    return do


# -- the child ---------------------------------------------------------------------------------------------------------


def note(
    holder: str,
    key: str,
    driver: str,
    connection: str,
    ttl: float,
    token: int = 0,
    since: float = 0.0,
    patience: float = 0.0,
) -> None:
    """Let the parent know what ``holder`` may have from now on (see :class:`~celery_lockbeat.locks.page.Hold`)."""
    if _page is not None:
        _page.put(holder, Hold(key, driver, connection, ttl, token, since, patience))


def forget(holder: str, driver: str) -> None:
    """Let the parent know that ``holder`` has nothing there any more."""
    if _page is not None:
        _page.drop(holder, driver)


def kept_since(holder: str, driver: str, token: int) -> float | None:
    """When the parent asked for the last lease that it was granted in our place; None: for none."""
    return None if _page is None else _page.kept_since(holder, driver, token)


def orphaned() -> bool:
    """Whether this is a pool child whose parent is dead: nobody will hear how its run ends, or free its lock."""
    return _parents_pid is not None and os.getppid() != _parents_pid


def events_wanted() -> bool:
    """Whether this worker sends Celery's task events now: ``-E``, or switched on by remote control, as Flower does."""
    return _page.events_wanted if _page is not None else _dispatches()


# -- the parent --------------------------------------------------------------------------------------------------------


@dataclass
class _Legacy:
    """What a dead child may have left behind: to be freed at ``at``, or again, until ``until``."""

    pid: int
    key: str
    holder: str
    driver: str
    connection: str
    until: float
    at: float = 0.0
    asked: bool = False


class _Parent:
    """The parent of a pool: it gives each child a page at the fork, and looks after what is on the page.

    What a dead one held it frees, what a living one is late to renew it renews.
    """

    def __init__(self, app: Any) -> None:
        self.pid: Final = os.getpid()
        self.next: Page | None = None
        self.pages: list[Page] = []
        self._app = app
        self._legacies: list[_Legacy] = []
        self._keeper = Keeper(lambda driver, connection: stores_of(app).choose(driver, connection)[0])
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
                if pid and not _lives(pid):
                    self.pages.remove(page)
                    try:
                        self._legacies.extend(_legacies(pid, page))
                    except (ValueError, TypeError, EOFError):
                        # the child has written over its own memory: what it held ends by its ttl
                        logger.exception("nobody can tell what the dead child %d held", pid)
                    page.close()
                else:
                    page.events_wanted = _dispatches()
            # before a dead one's store can hang
            late_at = self._keeper.look(self.pages)
            now = monotonic()
            self._legacies = [left for left in self._legacies if now < left.at or not self._free(left)]
            return min(late_at, now + LOOKS_EVERY)

    def _watch(self) -> None:
        look_at = monotonic() + LOOKS_EVERY
        while not self._closed or self.pages or self._legacies:
            self._bell.wait(max(LOOKS_EVERY / 20, look_at - monotonic()))
            self._bell.clear()
            look_at = monotonic() + LOOKS_EVERY
            try:
                look_at = self.look()
            except Exception:
                logger.exception("a look after the children of the pool failed")

    def _free(self, left: _Legacy) -> bool:
        """Free it; whether there is nothing more to do."""
        try:
            store, _ = stores_of(self._app).choose(left.driver, left.connection)
            freed = store.locks.free(left.key, holder=left.holder)
        except LockbeatError as exc:
            # the lease runs out by itself, if the store does not come back before
            left.at = monotonic() + LOOKS_EVERY
            if left.at < left.until:
                return False
            logger.warning("lock %r of the dead child %d ends by its ttl: %s", left.key, left.pid, exc)
            return True
        if freed:
            logger.warning("lock %r is free: the pool child %d, which held it, is dead", left.key, left.pid)
        again, left.asked, left.at = not (freed or left.asked), True, monotonic() + LOOKS_AGAIN
        return not again

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


def _legacies(pid: int, page: Page) -> Iterator[_Legacy]:
    for (holder, _), hold in page.held().items():
        if hold.driver != "memory":  # the kernel has freed that
            yield _Legacy(pid, hold.key, holder, hold.driver, hold.connection, until=monotonic() + hold.ttl)


def _lives(pid: int) -> bool:
    """Whether this child of ours still runs; one that is dead but not yet reaped does not."""
    try:
        if hasattr(os, "waitid"):
            return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        os.kill(pid, 0)
    except (ChildProcessError, ProcessLookupError):
        return False
    return True


# -- Celery's signals, and forks ---------------------------------------------------------------------------------------

_parent: _Parent | None = None
_page: Page | None = None
_parents_pid: int | None = None
_consumer: Any = None


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
    for do in reversed(_at_the_end):
        do()


def _before_a_fork() -> None:
    if _parent is not None:
        _parent.before_a_fork()


def _in_the_parent() -> None:
    if _parent is not None:
        _parent.after_a_fork()


def _in_the_child() -> None:
    global _parent, _page, _parents_pid
    this_process.pid = os.getpid()
    parent, _parent, _page, _parents_pid = _parent, None, None, None
    if parent is None or parent.next is None:
        return
    _page, _parents_pid = parent.next, parent.pid
    _page.pid = this_process.pid
    for other in parent.pages:
        other.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_a_fork, after_in_parent=_in_the_parent, after_in_child=_in_the_child)

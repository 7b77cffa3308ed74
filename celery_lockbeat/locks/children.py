"""What the life and death of Celery's processes means to locks.

Promises: what a pool child held when it died, in whatever way, its parent frees within a second, but not before the
child is dead; a child whose parent is dead keeps no lock; nobody waits for a held key while a worker shuts down.

A child notes what it holds, before it asks for it, in memory that it shares with its parent: no round trip, and no pipe
that somebody has to drain. Not promised: the same for the children of a pool that spawns instead of forking, or for
what a body forks; their leases run out.

Receivers only start, stop and report: Celery swallows what they raise, so nothing here decides whether work may run.
"""

from __future__ import annotations

import atexit
import logging
import marshal
import mmap
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from celery import signals

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import LockbeatError
from celery_lockbeat.stores import stores_of

__all__ = ["events_wanted", "forget", "note", "orphaned", "stopping", "this_process"]

logger: Final = logging.getLogger("celery_lockbeat")

#: How often a parent looks after its children, seconds. It costs a system call per child, 2 us each.
LOOKS_EVERY: Final = 0.2

#: When to free once more what was not held at a child's death: a server that hung may read what the child asked for
#: after it has read what the parent did.
LOOKS_AGAIN: Final = 5.0

#: Bytes for what one child holds. Only the pages that are written to take memory.
ROOM: Final = 32 * 1024

#: Set while a worker in this process shuts down. A prefork child is not told; its parent waits for it.
stopping: Final = threading.Event()


class _Process:
    """The process that this is. It knows its pid; to ask the system for it is a call, six times a run."""

    __slots__ = ("pid",)

    def __init__(self) -> None:
        self.pid = os.getpid()


this_process: Final = _Process()


# -- the child ---------------------------------------------------------------------------------------------------------


def note(holder: str, key: str, driver: str, connection: str, ttl: float) -> None:
    """Let the parent know that ``holder`` may have ``key`` from now on."""
    if _page is not None:
        _page.put(holder, [key, driver, connection, ttl])


def forget(holder: str) -> None:
    """Let the parent know that ``holder`` has nothing any more."""
    if _page is not None:
        _page.put(holder, None)


def orphaned() -> bool:
    """Whether this is a pool child whose parent is dead: nobody will hear how its run ends, or free its lock."""
    return _parents_pid is not None and os.getppid() != _parents_pid


def events_wanted() -> bool:
    """Whether this worker sends Celery's task events now: ``-E``, or switched on by remote control, as Flower does."""
    return _page.events_wanted if _page is not None else _dispatches()


class _Page:
    """What one child holds, in memory that outlives it: two halves, and a byte that says which of them counts, if any.

    So a child that is killed in the middle of writing has written nothing.
    """

    def __init__(self) -> None:
        self._memory: Final = mmap.mmap(-1, 16 + 2 * ROOM)
        self._held: Final[dict[str, list[Any]]] = {}
        self._mutex: Final = threading.Lock()

    @property
    def events_wanted(self) -> bool:
        """Whether the worker sends Celery's task events, as its parent saw last."""
        return bool(self._memory[1])

    @events_wanted.setter
    def events_wanted(self, wanted: bool) -> None:
        self._memory[1] = wanted

    @property
    def pid(self) -> int:
        """The child that writes here; 0: it has not come so far yet."""
        return int.from_bytes(self._memory[8:16], "little")

    @pid.setter
    def pid(self, pid: int) -> None:
        self._memory[8:16] = pid.to_bytes(8, "little")

    def put(self, holder: str, held: list[Any] | None) -> None:
        with self._mutex:
            self._held.pop(holder, None)
            if held is not None:
                self._held[holder] = held
            elif not self._held:
                self._memory[0] = 0
                return
            text = marshal.dumps(self._held)  # not JSON: six times as fast, and the same program reads it
            if len(text) > ROOM - 4:
                # no room for this one: at the child's death it ends with its ttl
                del self._held[holder]
                return
            half = 2 if self._memory[0] == 1 else 1
            start = 16 + (half - 1) * ROOM
            self._memory[start : start + 4 + len(text)] = len(text).to_bytes(4, "little") + text
            self._memory[0] = half

    def read(self) -> dict[str, list[Any]]:
        """Return what its child held last, by holder."""
        half = self._memory[0]
        if half == 0:
            return {}
        start = 16 + (half - 1) * ROOM
        size = int.from_bytes(self._memory[start : start + 4], "little")
        held: dict[str, list[Any]] = marshal.loads(  # noqa: S302  nobody else can write there
            self._memory[start + 4 : start + 4 + size]
        )
        return held

    def close(self) -> None:
        self._memory.close()


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
    """The parent of a pool: it gives each child a page at the fork, and frees what is on the page of one that is dead."""

    def __init__(self, app: Any) -> None:
        self.pid: Final = os.getpid()
        self.next: _Page | None = None
        self.pages: list[_Page] = []
        self._app = app
        self._legacies: list[_Legacy] = []
        # No fork while a child's locks are being freed: what libraries have locked then stays locked in the new child.
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
        self.next = _Page()
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

    def look(self) -> None:
        """Free what dead children held."""
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
            now = monotonic()
            self._legacies = [left for left in self._legacies if now < left.at or not self._free(left)]

    def _watch(self) -> None:
        while not self._closed or self.pages or self._legacies:
            self._bell.wait(LOOKS_EVERY)
            self._bell.clear()
            try:
                self.look()
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


def _legacies(pid: int, page: _Page) -> Iterator[_Legacy]:
    for holder, (key, driver, connection, ttl) in page.read().items():
        yield _Legacy(pid, key, holder, driver, connection, until=monotonic() + ttl)


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
_page: _Page | None = None
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

"""What a pool's child does for its parent: it notes what it holds, before it asks for it, in memory that both have (``page.py``).

So there is no round trip, and no pipe that somebody has to drain. Outside of a pool's child all of it does nothing.

Promises: a child whose parent is dead knows it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from celery_lockbeat.locks.page import Hold, Page
from celery_lockbeat.observe.events import Story
from celery_lockbeat.stores import Lease

__all__ = ["Note", "become", "orphaned", "page"]

_page: Page | None = None
_parents_pid: int | None = None


def become(page: Page | None, parents_pid: int | None) -> None:
    """From now on this process is the child of that parent, of which it has this page; None: of none."""
    global _page, _parents_pid
    _page, _parents_pid = page, parents_pid


def page() -> Page | None:
    """Return this child's page; None in any other process."""
    return _page


def orphaned() -> bool:
    """Whether this is a pool child whose parent is dead: nobody will hear how its run ends, or free its lock."""
    return _parents_pid is not None and os.getppid() != _parents_pid


class Note:
    """What is on the page of one hold in one store: of each of its ``keys``, under the name of that key's holder."""

    __slots__ = ("_connection", "_driver", "_keys", "_story", "ttl")

    def __init__(self, keys: Sequence[tuple[str, str]], driver: str, connection: str, ttl: float, story: Story) -> None:
        self.ttl = ttl
        self._keys = keys
        self._story = story
        self._driver = driver
        self._connection = connection

    def unrenewed(self) -> None:
        """The store may have it, and nobody is to renew it."""
        if _page is None:
            return
        for key, holder in self._keys:
            if self._driver == "memory":  # where the kernel tells who is dead
                _page.drop(holder, self._driver)
            else:
                _page.put(holder, Hold(key, self._driver, self._connection, self.ttl))

    def renewed(self, leases: Sequence[Lease], since: float, patience: float, until: float = math.inf) -> None:
        """It is held, by leases that were asked for at ``since``; the parent is to renew them after ``patience`` seconds.

        Nobody is to renew them from ``until`` on.
        """
        if _page is None:
            return
        # of all keys the first one tells what they are held for
        what = self._story.journaled_fields()
        for lease in leases:
            hold = Hold(lease.key, self._driver, self._connection, self.ttl, lease.token, since, patience, what, until)
            _page.put(lease.holder, hold)
            what = ()

    def forget(self) -> None:
        """The store has nothing of it any more."""
        if _page is not None:
            for _, holder in self._keys:
                _page.drop(holder, self._driver)

    def kept_since(self, leases: Sequence[Lease]) -> float | None:
        """When the parent asked for the last leases that it was granted in our place, of all keys; None: for none."""
        if _page is None:
            return None
        since = [_page.kept_since(lease.holder, self._driver, lease.token) for lease in leases]
        known = [each for each in since if each is not None]
        return min(known) if len(known) == len(since) else None

"""What a pool's child does for its parent: it notes what it holds, before it asks for it, in memory that both have (``page.py``).

So there is no round trip, and no pipe that somebody has to drain. Outside of a pool's child all of it does nothing.

Promises: a child whose parent is dead knows it.
"""

from __future__ import annotations

import math
import os

from celery_lockbeat.locks.page import Hold, Page

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
    """What is on the page of one lock in one store, under the name of its ``holder``."""

    __slots__ = ("_connection", "_driver", "_what", "holder", "key", "ttl")

    def __init__(
        self,
        holder: str,
        key: str,
        driver: str,
        connection: str,
        ttl: float,
        what: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.holder = holder
        self.key = key
        self.ttl = ttl
        self._what = what
        self._driver = driver
        self._connection = connection

    def unrenewed(self) -> None:
        """The store may have it, and nobody is to renew it."""
        if _page is None:
            return
        if self._driver == "memory":  # where the kernel tells who is dead
            _page.drop(self.holder, self._driver)
        else:
            _page.put(self.holder, Hold(self.key, self._driver, self._connection, self.ttl))

    def renewed(self, token: int, since: float, patience: float, until: float = math.inf) -> None:
        """It is held, by a lease that was asked for at ``since``; the parent is to renew it after ``patience`` seconds.

        Nobody is to renew it from ``until`` on.
        """
        if _page is not None:
            hold = Hold(self.key, self._driver, self._connection, self.ttl, token, since, patience, self._what, until)
            _page.put(self.holder, hold)

    def forget(self) -> None:
        """The store has nothing of it any more."""
        if _page is not None:
            _page.drop(self.holder, self._driver)

    def kept_since(self, token: int) -> float | None:
        """When the parent asked for the last lease that it was granted in our place; None: for none."""
        return None if _page is None else _page.kept_since(self.holder, self._driver, token)

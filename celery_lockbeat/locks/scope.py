"""What runs under which lock, in this context: what ``current_lock()`` finds.

Promises: whatever context or thread a scope is left in, and in whatever order, from then on it is found in none.
"""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from typing import Any

__all__ = ["Scope", "innermost"]

_current: ContextVar[Scope | None] = ContextVar("lockbeat_current_lock", default=None)


class Scope:
    """What runs under one lock, or under none (a task with ``lock_enabled=False``), from its making until ``leave``.

    It may be left in another context, or another thread, than it was made in, and not in the order in which others were: a
    generator is advanced by whoever likes to. So none is ever taken back by ``ContextVar.reset``, which refuses just that;
    one that is over is passed over, in every context that still has it. A context outlives what ran in it (a task of
    asyncio's, a copied one), so it keeps no lock alive.
    """

    __slots__ = ("_lock", "_over", "outer")

    def __init__(self, lock: Any) -> None:
        self._lock = None if lock is None else weakref.ref(lock)
        self._over = False
        self.outer = outer = _current.get()
        if outer is not None:
            self.outer = outer = _not_over(outer)
        if outer is not None:
            # two generators that run by turns would else make a chain without an end
            outer.outer = _not_over(outer.outer)
        _current.set(self)

    def leave(self) -> None:
        """Be over, everywhere."""
        self._over = True
        if _current.get() is self:
            _current.set(self.outer)

    @property
    def lock(self) -> Any:
        """The lock, as long as somebody has it; None for none."""
        return None if self._lock is None else self._lock()

    @property
    def over(self) -> bool:
        """Whether nothing runs here any more."""
        if self._over or self._lock is None:
            return self._over
        lock = self._lock()
        return lock is None or lock.released


def innermost() -> Scope | None:
    """Return the scope of what runs here; None outside of all."""
    return _not_over(_current.get())


def _not_over(scope: Scope | None) -> Scope | None:
    while scope is not None and scope.over:
        scope = scope.outer
    return scope

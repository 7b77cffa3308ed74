"""What a store may have of a lock, which nobody else would end before its ttl.

Promises: from before the store is asked until it is known to have nothing, a pool's parent knows of it (``children.py``); what
the store could not be told at once it is told later, by the renewing thread, for as long as it matters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from celery_lockbeat.locks.child import Note
from celery_lockbeat.locks.renewal import Renewer
from celery_lockbeat.stores import Store

__all__ = ["Residue"]


class Residue:
    """What the store of ``renewer`` may have of one holder's lock."""

    def __init__(self, renewer: Renewer, note: Note) -> None:
        self.note: Final = note
        self._renewer: Final = renewer

    def is_gone(self) -> None:
        """The store has nothing."""
        self.note.forget()

    def free(self, *, until: float) -> None:
        """Have it freed, whatever it is."""
        key, holder = self.note.key, self.note.holder
        self.tell(lambda store: store.locks.free(key, holder=holder), until=until)

    def tell(self, tell: Callable[[Store], object], *, until: float) -> None:
        """Have the store told what ends it, once it answers, unless that is after ``until``."""
        self.note.unrenewed()
        self._renewer.errand(tell, until=until, then=self.note.forget)

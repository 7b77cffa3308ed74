"""Who waits for a key in a thread of its own: it has a place in the line of the key, as a task's message has, and listens.

Promises: it is woken where the store can tell it, and looks by itself when a holder's lease may have run out; it waits no longer
than it said, and neither does a worker that shuts down, or an event loop's task that is cancelled, for it.

Not promised: that nobody waits for one that has died. Its place is kept for :data:`GRACE` seconds once it is called.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import StoreRefused, StoreUnavailable
from celery_lockbeat.observe.events import new_id
from celery_lockbeat.options import LockOptions
from celery_lockbeat.process import stopping
from celery_lockbeat.stores import Place, Store, Waiting

__all__ = ["Waiter"]

#: Seconds for which its place is kept once it is called: it is there, and listens.
GRACE: Final = 5.0

#: Seconds for which it listens at a time; so long it takes at most until it has given up.
LISTENS_FOR: Final = 1.0

#: Seconds from when a holder's lease was to end to when it looks whether it did, and so much more for each that is before it.
LOOKS_AFTER: Final = 0.02

#: Seconds between two looks at most: who is called before it may be dead, and nobody say so.
LOOKS_EVERY: Final = 10.0

#: Seconds until it asks a store again that did not answer.
PAUSE: Final = 0.1


class Waiter:
    """One that waits for ``wait`` seconds from now on, or until ``gives_up`` says so; ``place`` is what it asks for."""

    def __init__(self, options: LockOptions, wait: float, gives_up: Callable[[], bool]) -> None:
        self.place = Place(new_id(), wait, room=options.line_limit, grace=min(GRACE, options.ttl))
        self._until = monotonic() + wait
        self._gives_up = gives_up

    def wait(self, store: Store, key: str, waiting: Waiting) -> None:
        """Wait until it may be its turn, or it waits no more: then it asks for its turn alone."""
        self.place = self.place._replace(since=waiting.since, began=waiting.began)
        looks_at = monotonic() + min(waiting.remaining, LOOKS_EVERY) + LOOKS_AFTER * (1 + waiting.before)
        while not (self._gives_up() or stopping.is_set()):
            left = min(looks_at, self._until) - monotonic()
            if left > 0 and not self._hears(store, key, min(left, LISTENS_FOR)):
                continue
            if monotonic() < self._until:
                return
            break
        self.place = self.place._replace(wait_for=0.0)

    def _hears(self, store: Store, key: str, within: float) -> bool:
        try:
            return store.locks.listen(key, self.place.ticket, within)
        except StoreRefused:
            raise
        except StoreUnavailable:
            # whoever asks next is told so, or falls back
            time.sleep(min(within, PAUSE))
            return True

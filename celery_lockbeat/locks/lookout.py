"""One thread per process that looks after the lines in which runs of this process wait.

Promises: what becomes free without anybody's doing (the lease of a dead host runs out, ``hold_at_least`` is over, who was called is
dead, or too late) is given to the first in line within moments, as long as one process lives that has put a run into that line.
Each such process asks the store once a lease and key for that, and has no thread where nothing waits.

Not promised: that where all of them are dead, too. Then the copies of those who wait come by themselves (``tasks/waiting.py``).
"""

from __future__ import annotations

import logging
import math
import os
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import LockbeatError
from celery_lockbeat.process import when_a_worker_has_ended
from celery_lockbeat.stores import Store, before_redirection_ends, on_called, on_close

__all__ = ["Lookout", "look_after"]

logger: Final = logging.getLogger("celery_lockbeat")

#: Seconds after the end of a lease at which it is looked whether it was the last, and as much more at random.
LOOKS_AFTER: Final = 0.05

#: Seconds until a store that did not answer is asked again.
TRIES_EVERY: Final = 1.0

#: Seconds between two looks at most, and into the memory of a host: there a key is free as soon as its holder is dead.
LOOKS_EVERY: Final = 10.0
LOOKS_EVERY_IN_MEMORY: Final = 1.0

#: Seconds after which it is looked whether one who was called has come.
COMES_WITHIN: Final = 1.0

_Line = tuple[Store, str]


class Lookout:
    """The lines that are looked after, each until a moment of the clock, and when to look next."""

    def __init__(self, *, start: Callable[[Callable[[], None]], object] | None = None) -> None:
        self._changed = threading.Condition()
        self._next: dict[_Line, float] = {}
        self._until: dict[_Line, float] = {}
        self._runs = False
        self._start = start or _in_a_thread

    def look_after(self, store: Store, key: str, *, ends_in: float, lasts: float) -> None:
        """Look after the line of a key, where something ends in so many seconds, for as long as somebody may wait there."""
        line, now = (store, key), monotonic()
        with self._changed:
            self._until[line] = max(now + lasts, self._until.get(line, 0.0))
            looks_at = now + _pause(store, ends_in)
            if looks_at < self._next.get(line, math.inf):
                self._next[line] = looks_at
                self._changed.notify()
            if not self._runs:
                self._runs = True
                try:
                    self._start(self._run)
                except RuntimeError:  # no thread can be had: the copies of those who wait come by themselves
                    self._runs = False

    def forget(self, store: Store | None = None) -> None:
        """Look after nothing more, in one store or in all."""
        with self._changed:
            for line in [line for line in self._next if store is None or line[0] is store]:
                del self._next[line], self._until[line]
            self._changed.notify()

    def _run(self) -> None:
        while (line := self._next_line()) is not None:
            ends_in: float | None = TRIES_EVERY
            try:
                ends_in = line[0].locks.serve(line[1]).look_in
            except LockbeatError:
                pass
            except Exception:
                logger.exception("those who wait for lock %r could not be looked after", line[1])
            with self._changed:
                if line in self._next:
                    # while somebody waits it goes on: of those that came later nothing need have been told here
                    self._next[line] = monotonic() + _pause(line[0], ends_in or 0.0)
                    if ends_in is None or self._next[line] > self._until[line]:
                        del self._next[line], self._until[line]
            del line

    def _next_line(self) -> _Line | None:
        """Wait until there is something to do; None: there is nothing any more."""
        with self._changed:
            while self._next:
                line = min(self._next, key=self._next.__getitem__)
                left = self._next[line] - monotonic()
                if left <= 0:
                    return line
                self._changed.wait(left)
            self._runs = False
            return None


def _pause(store: Store, ends_in: float) -> float:
    pause = ends_in + LOOKS_AFTER * random.uniform(1, 2)  # noqa: S311  no secret
    return min(pause, LOOKS_EVERY_IN_MEMORY if store.driver == "memory" else LOOKS_EVERY)


def _in_a_thread(run: Callable[[], None]) -> None:
    threading.Thread(target=run, name="lockbeat-lookout", daemon=True).start()


#: That of this process.
_lookout = Lookout()


def look_after(store: Store, key: str, *, ends_in: float, lasts: float) -> None:
    """Look after the line of a key in this process's thread; see :meth:`Lookout.look_after`."""
    _lookout.look_after(store, key, ends_in=ends_in, lasts=lasts)


def _look_after_who_is_called(_app: Any, store: Store, key: str, _texts: Sequence[str]) -> None:
    # it may not come, and others may wait behind it
    look_after(store, key, ends_in=COMES_WITHIN, lasts=COMES_WITHIN + LOOKS_EVERY)


on_called(_look_after_who_is_called)


def _forget(store: Store | None = None) -> None:
    _lookout.forget(store)


when_a_worker_has_ended(_forget)
before_redirection_ends(_forget)
on_close(_forget)


def _forget_the_parents() -> None:
    """A forked child has none of its parent's threads."""
    global _lookout  # noqa: PLW0603  the one of this process
    _lookout = Lookout()


os.register_at_fork(after_in_child=_forget_the_parents)

"""Trouble with the store, the broker or an entry: what is said of it, and how long to wait before the next try.

Promises: the same trouble is complained about once a minute, however often it is met; the pauses between two tries grow up
to :data:`RETRY_AT_MOST`, and begin anew once all is well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

__all__ = ["Backoff", "Complaints"]

logger: Final = logging.getLogger("celery_lockbeat.beat")

#: Seconds between two complaints about the same trouble.
COMPLAIN_EVERY: Final = 60.0

#: Seconds until the next try while the store or the broker is out of reach, at first and at most.
RETRY_FIRST: Final = 0.1
RETRY_AT_MOST: Final = 2.0


class Complaints:
    """Errors that are logged once a minute each, by what they are about."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._made: dict[str, float] = {}

    def __contains__(self, about: str) -> bool:
        return about in self._made

    def make(self, about: str, message: str, *args: Any) -> None:
        """Log an error, unless there was one about the same in the last minute."""
        now = self._clock()
        if now - self._made.get(about, -COMPLAIN_EVERY) >= COMPLAIN_EVERY:
            self._made[about] = now
            logger.error(message, *args)

    def end(self, about: str) -> bool:
        """Note that this trouble is over; False: nobody was told of any."""
        return self._made.pop(about, None) is not None


class Backoff:
    """The pauses between two tries."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pause = RETRY_FIRST
        self._until = 0.0

    def next_pause(self) -> float:
        """Begin a pause, twice as long as the one before; return its seconds."""
        pause, self._pause = self._pause, min(2 * self._pause, RETRY_AT_MOST)
        self._until = self._clock() + pause
        return pause

    def rest(self) -> float:
        """Seconds until the pause is over, 0 or less if it is."""
        return self._until - self._clock()

    def reset(self) -> None:
        """Let the next pause be a short one."""
        self._pause = RETRY_FIRST

"""The agenda of one beat: which entries it knows, and when each of them has to be looked at next.

Promises: what is due is found in a time that does not grow with the number of entries (but for its logarithm), an entry that
was planned anew or removed is never found by its earlier plan, and of such plans no more are kept than there are entries.
Plans are moments of the monotonic clock.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, Final

from celery_lockbeat.stores.base import Claim

__all__ = ["Agenda", "Item", "flag_of"]

#: Keys of which one follows the other, for one entry: of a ``@timeout`` at another start, of RedBeat's and Django's when they
#: were made anew or rescheduled (see replicas.py, contrib/redbeat/stored.py, contrib/django/rows.py).
_LIFE: Final = re.compile(r"(.+)@(?:\d{9,16}|[0-9a-f]{16}\.[0-9a-f]{16})|(periodictask:\d+)@.*", re.DOTALL)


def flag_of(key: str) -> str:
    """Return the name of the flag that an entry obeys, by its key: what is paused stays so through all of its lives."""
    match = _LIFE.fullmatch(key)
    return key if match is None else match[1] or match[2]


class Item:
    """An entry, and what one beat knows of it. ``key`` is its name in the store, ``when`` what it is planned for.

    ``rule`` is made for what it is ``ruled_by`` (see rules.py); with one, ``stored`` is when its last tick was due, as the store
    has it, and ``verdict`` what its last claim is made of.
    """

    __slots__ = (
        "claim",
        "delay",
        "entry",
        "flag",
        "key",
        "plan",
        "rule",
        "ruled_by",
        "schedule",
        "stored",
        "verdict",
        "when",
    )

    def __init__(self, key: str, entry: Any) -> None:
        self.key: Final = key
        self.flag: Final = flag_of(key)
        self.entry = entry
        self.schedule = entry.schedule
        self.when = 0.0
        self.plan = 0  # 0: none
        self.claim: Claim | None = None  # the last one that was asked for
        self.delay = 0.0  # seconds from the tick of that claim to the next
        self.rule: Any = None
        self.ruled_by: tuple[Any, Any] = (None, None)
        self.stored = ""
        self.verdict: Any = None


class Agenda:
    """All entries of one beat by their keys, and a heap of their plans. ``edition`` grows with each change of an entry."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._items: dict[str, Item] = {}
        self._heap: list[tuple[float, int, Item]] = []
        self._plans = count(1)
        self.edition = 1
        self._by_flag: tuple[int, dict[str, Item]] = 0, {}

    def __contains__(self, key: str) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[Item]:
        return iter(list(self._items.values()))

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: str) -> Item | None:
        """Return the entry of this key, if this beat knows it."""
        return self._items.get(key)

    def flagged(self, flag: str) -> Item | None:
        """Return an entry that obeys this flag."""
        if self._by_flag[0] != self.edition:
            self._by_flag = self.edition, {item.flag: item for item in self._items.values()}
        return self._by_flag[1].get(flag)

    def add(self, item: Item) -> None:
        """Know an entry from now on; it has no plan yet."""
        self._items[item.key] = item
        self.edition += 1

    def remove(self, key: str) -> None:
        """Know an entry no more."""
        item = self._items.pop(key, None)
        if item is not None:
            item.plan = 0
            self.edition += 1
            self._compact()

    def plan(self, item: Item, when: float) -> None:
        """Look at ``item`` at the moment ``when``, and not at an earlier planned one."""
        item.plan = next(self._plans)
        item.when = when
        heapq.heappush(self._heap, (when, item.plan, item))
        self._compact()

    def due(self) -> Item | None:
        """Take the entry that has been due for longest off its plan; None: none is due."""
        self._drop_old_plans()
        if not self._heap or self._heap[0][0] > self._clock():
            return None
        _, _, item = heapq.heappop(self._heap)
        item.plan = 0
        return item

    def until_next(self) -> float | None:
        """Seconds until the next entry is due, 0 or less if one is; None: nothing is planned."""
        self._drop_old_plans()
        return self._heap[0][0] - self._clock() if self._heap else None

    def _drop_old_plans(self) -> None:
        heap = self._heap
        while heap and heap[0][1] != heap[0][2].plan:
            heapq.heappop(heap)

    def _compact(self) -> None:
        # at most every other plan of an entry pays for this, so that a plan costs no more with more of them
        if len(self._heap) > 2 * len(self._items):
            self._heap = [planned for planned in self._heap if planned[1] == planned[2].plan]
            heapq.heapify(self._heap)

"""One beat among the replicas of its app: it joins them, lists its entries, follows their changes, and leaves.

Promises: an entry that is added, changed or removed is followed within about a second, or in a hundredth of the time where
looking takes long. Entries are listed a part at a time, so that ticks need not wait for thousands. What the store knows is
kept for as long as there are beats; a store that has forgotten them is joined anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final

from celery_lockbeat.beat.agenda import Agenda, Item
from celery_lockbeat.beat.clocks import Clocks
from celery_lockbeat.beat.planner import Planner
from celery_lockbeat.beat.seams import Seams
from celery_lockbeat.process import name_of_its_own
from celery_lockbeat.schedules.when import Timeout
from celery_lockbeat.stores.base import BeatStore, Joined

__all__ = ["KEEP_EVERY", "LOOK_EVERY", "Replica"]

logger: Final = logging.getLogger("celery_lockbeat.beat")

#: So many entries are listed between two rounds of ticks: some 20 ms.
LIST_AT_ONCE: Final = 500

#: Seconds between two looks for changed entries, or a hundred times what a look takes.
LOOK_EVERY: Final = 1.0

#: Seconds after which all that is stored is kept for another STATE_MEMORY.
KEEP_EVERY: Final = 3600.0


class Replica:
    """One beat, and what it lists. ``entries`` returns all that it should list, by their keys in the store."""

    def __init__(
        self,
        app: str,
        scheduler: Seams,
        entries: Callable[[], Mapping[str, Any]],
        agenda: Agenda,
        planner: Planner,
        clocks: Clocks,
    ) -> None:
        self.app: Final = app
        self._scheduler = scheduler
        self._entries = entries
        self._agenda = agenda
        self._planner = planner
        self._clocks = clocks
        self._clock = clocks.now
        #: the name of this process among the beats, once it has joined
        self.name = ""
        #: whether the store knows this replica and what it lists
        self.known = False
        self._joined: Joined | None = None
        self._unlisted: dict[str, Item] = {}
        self._removed: list[str] = []
        self._listed_at: float | None = None  # None: not yet, or not any more
        self._next_look = 0.0

    def join(self, store: BeatStore) -> None:
        """Become one of the replicas, or be one again. Raises StoreUnavailable."""
        name = self.name or name_of_its_own()
        asked = self._clock()
        earlier = None if self._joined is None else self._joined.cold_start
        joined = store.join(self.app, name, cold_start=earlier)
        self._clocks.compare(joined.server_time, asked)
        self._joined = joined
        self._planner.cold_start = self._clock() - (joined.server_time - joined.cold_start)
        self.name, self.known = name, True
        self._listed_at = None
        self._unlisted = {item.key: item for item in self._agenda}
        logger.info("beat %s has joined the replicas of %r", name, self.app)

    def key_of(self, name: str, entry: Any) -> str:
        """Return the key of an entry that has a name of its own."""
        if isinstance(entry.schedule, Timeout) and self._joined is not None:
            # it runs once per cold start: another start's is another entry
            return f"{name}@{self._joined.cold_start * 1000:.0f}"
        return name

    @property
    def has_listed(self) -> bool:
        """Whether nothing is left to be listed."""
        return not self._unlisted

    def until_look(self) -> float:
        """Seconds until it is time to look for changed entries."""
        return self._next_look - self._clock()

    def look_soon(self) -> None:
        """Look for changed entries in the next round."""
        self._next_look = 0.0

    def look_for_changes(self) -> None:
        """Find the entries that were added, changed or removed since the last look, if it is time to. Raises StoreUnavailable."""
        started = self._clock()
        if started < self._next_look:
            return
        self._scheduler.refresh_schedule()
        entries = self._entries()
        for key, entry in entries.items():
            item = self._agenda.get(key) or self._unlisted.get(key)
            if item is None:
                self._unlisted[key] = Item(key, entry)
            else:
                self._planner.change(item, entry)
        for key in [item.key for item in self._agenda if item.key not in entries]:
            self._agenda.remove(key)
            self._removed.append(key)
        for key in [key for key in self._unlisted if key not in entries]:
            del self._unlisted[key]
        pause = max(LOOK_EVERY, 100 * (self._clock() - started))
        self._next_look = self._clock() + min(pause, float(self._scheduler.max_interval))

    def list_entries(self, store: BeatStore) -> None:
        """List some of the entries that are new here, and take over what the store knows of them. Raises StoreUnavailable."""
        items = list(islice(self._unlisted.values(), LIST_AT_ONCE))
        keep = self._listed_at is None or self._clock() - self._listed_at > KEEP_EVERY
        if not (items or self._removed or keep):
            return
        complete = len(items) == len(self._unlisted)
        states = store.list_entries(
            self.app,
            self.name,
            [(item.key, self._planner.new_state(item)) for item in items],
            removed=self._removed,
            complete=complete,
        )
        self._removed.clear()
        for item, state in zip(items, states, strict=True):
            del self._unlisted[item.key]
            self._planner.adopt(item, state)
            self._agenda.add(item)
            self._planner.plan(item)
        if complete:
            self._listed_at = self._clock()

    def leave(self, store: BeatStore) -> None:
        """Be none of the replicas any more. Raises StoreUnavailable."""
        store.leave(self.app, self.name)

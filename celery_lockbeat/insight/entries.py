"""The entries that the beats know, by the names that their users gave them."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from celery_lockbeat.contrib.schedulers import announced_schedulers, names_of
from celery_lockbeat.stores import Store, name_of
from celery_lockbeat.stores.base import ALIVE, Beats, StoredEntry

__all__ = ["MOST", "NamedEntry", "named_entries"]

#: As many entries are known at most.
MOST: Final = 200_000


class NamedEntry(NamedTuple):
    """An entry, the name that its user knows, and how many beats list it."""

    name: str
    entry: StoredEntry
    beats: int

    @property
    def published(self) -> int:
        """How many of its ticks were published."""
        return self.entry.state.total_run_count

    @property
    def last_published_at(self) -> str | None:
        """When its last tick was published. Before there was one, its state has a time to count from."""
        return self.entry.state.last_run_at if self.published else None


def named_entries(app: Any, store: Store) -> list[NamedEntry]:
    """Return the entries that a store knows, by their names. Raises StoreUnavailable."""
    beats = store.beats.status(name_of(app), limit=MOST)
    names = names_of(app, [entry.name for entry in beats.entries], announced_schedulers(app, store))
    named = [NamedEntry(names[entry.name], entry, _listing(beats, entry.name)) for entry in beats.entries]
    return sorted(named, key=lambda each: (each.name, each.entry.name))


def _listing(beats: Beats, entry: str) -> int:
    return sum(entry in beat.entries for beat in beats.replicas if beat.silent_for < ALIVE)

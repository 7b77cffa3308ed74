"""``celery lockbeat entries``, and the entries that the beats know, by the names that their users gave them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

import click

from celery_lockbeat.cli.output import command, print_json, print_table
from celery_lockbeat.contrib.schedulers import announced_schedulers, names_of
from celery_lockbeat.membership.used import stores_in_use
from celery_lockbeat.stores import Store, name_of
from celery_lockbeat.stores.base import ALIVE, Beats, StoredEntry

__all__ = ["NamedEntry", "entries", "named_entries"]


@command
def entries(ctx: click.Context, as_json: bool) -> None:
    """Show the entries that the beats know: how many ticks of each were published, when last, and how many beats list it.

    How many of them a worker has run is not known to the beats.
    """
    app = ctx.obj.app
    known = named_entries(app, stores_in_use(app)[0].store)
    if as_json:
        print_json([_as_json(each) for each in known])
        return
    listed = {each.name for each in known if each.beats}
    rows = (
        (each.name, each.published, _to_the_second(each.last_published_at), each.entry.pending, each.beats)
        for each in known
        # what it was before it was rescheduled, or before another start of the beats
        if each.beats or each.name not in listed
    )
    print_table(ctx, ("entry", "published", "last published", "waiting", "beats"), rows)


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
    beats = store.beats.status(name_of(app))
    names = names_of(app, [entry.name for entry in beats.entries], announced_schedulers(app, store))
    named = [NamedEntry(names[entry.name], entry, _listing(beats, entry.name)) for entry in beats.entries]
    return sorted(named, key=lambda each: (each.name, each.entry.name))


def _listing(beats: Beats, entry: str) -> int:
    return sum(entry in beat.entries for beat in beats.replicas if beat.silent_for < ALIVE)


def _as_json(each: NamedEntry) -> dict[str, Any]:
    return {
        "name": each.name,
        "runs": each.published,
        "last_run_at": each.entry.state.last_run_at,
        "pending": each.entry.pending,
        "beats": each.beats,
        "key": each.entry.name,
        "published": each.published,
        "last_published_at": each.last_published_at,
    }


def _to_the_second(time: str | None) -> str:
    if time is None:
        return "-"
    try:
        return datetime.fromisoformat(time).isoformat(" ", timespec="seconds")
    except ValueError:
        return time

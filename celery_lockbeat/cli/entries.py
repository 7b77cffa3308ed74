"""``celery lockbeat entries``."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from celery_lockbeat.cli.output import command, print_json, print_table
from celery_lockbeat.insight.entries import NamedEntry, named_entries
from celery_lockbeat.membership.used import stores_in_use

__all__ = ["entries"]


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

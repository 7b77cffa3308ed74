"""``celery lockbeat status``."""

from __future__ import annotations

import click

from celery_lockbeat.cli.output import command, print_json, print_table
from celery_lockbeat.membership.used import stores_in_use
from celery_lockbeat.stores import name_of
from celery_lockbeat.stores.base import ALIVE

__all__ = ["status"]


@command
def status(ctx: click.Context, as_json: bool) -> None:
    """Show the beats that are running, and what waits to be published."""
    app = ctx.obj.app
    home = stores_in_use(app)[0]
    beats = home.store.beats.status(name_of(app))
    running = [beat for beat in beats.replicas if beat.silent_for < ALIVE]
    known, pending = len(beats.entries), sum(entry.pending for entry in beats.entries)
    if as_json:
        shown = [
            {"name": beat.name, "silent_for": round(beat.silent_for, 1), "entries": len(beat.entries)}
            for beat in running
        ]
        counts = {"entries": known, "pending": pending, "overdue": beats.overdue}
        print_json({"app": name_of(app), "store": home.name, "beats": shown, **counts})
        return
    ctx.obj.echo(f"app {name_of(app)!r}, {home.name}: {len(running)} beats, {known} entries")
    ctx.obj.echo(f"{pending} claims wait to be published, {beats.overdue} of them overdue")
    rows = ((beat.name, f"{beat.silent_for:.1f} s ago", len(beat.entries)) for beat in running)
    print_table(ctx, ("beat", "heard of", "entries"), rows)

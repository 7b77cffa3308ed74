"""``celery lockbeat skip``."""

from __future__ import annotations

import click

from celery_lockbeat.cli.chosen import one_of
from celery_lockbeat.cli.output import command, print_json
from celery_lockbeat.control import schedules_of

__all__ = ["skip"]


@command
@click.argument("entry")
@click.argument("count", type=click.IntRange(min=0))
@click.option("--note", help="Why, for whoever wonders.")
def skip(ctx: click.Context, entry: str, count: int, note: str | None, as_json: bool) -> None:
    """Have the next COUNT ticks of ENTRY not published; 0: none any more. While it is paused, none of them counts."""
    found = one_of(schedules_of(ctx.obj.app), entry)
    found.skip(count, note=note)
    if as_json:
        print_json({"entry": found.name, "skip": count, "note": note})
    else:
        ticks = "next tick is" if count == 1 else f"next {count} ticks are"
        ctx.obj.echo(f"the {ticks} skipped of {found.name!r}" if count else f"nothing of {found.name!r} is skipped")

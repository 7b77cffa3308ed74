"""``celery lockbeat resume``."""

from __future__ import annotations

import click

from celery_lockbeat.beat.controls import CATCHUPS
from celery_lockbeat.cli.chosen import choosing, chosen
from celery_lockbeat.cli.output import command, print_json

__all__ = ["resume"]


@command
@choosing
@click.option(
    "--catchup",
    type=click.Choice(CATCHUPS),
    help="What becomes of the ticks that were passed over: the last one runs, each, or none. Else as the entry says (latest).",
)
def resume(
    ctx: click.Context, entry: str | None, match: str | None, all_: bool, yes: bool, catchup: str | None, as_json: bool
) -> None:
    """Have the ticks of ENTRY published again. Exits with 1 where nothing was paused."""
    entries = chosen(ctx, entry, match, all_, yes, does="Resume")
    resumed = entries.resume(catchup=catchup)
    if as_json:
        print_json({"resumed": resumed, "catchup": catchup})
    elif len(resumed) == 1:
        ctx.obj.echo(f"{resumed[0]!r} is resumed")
    elif resumed:
        ctx.obj.echo(f"{len(resumed)} entries are resumed")
    if not resumed:
        ctx.obj.error(f"{entry!r} is not paused" if entry is not None else "none of them is paused")
        ctx.exit(1)

"""``celery lockbeat pause``."""

from __future__ import annotations

import click

from celery_lockbeat.cli.chosen import choosing, chosen
from celery_lockbeat.cli.output import command, print_json
from celery_lockbeat.insight.times import coming_of, to_the_second

__all__ = ["pause"]


@command
@choosing
@click.option("--until", metavar="TIME", help="Until then: 2h, 30m, 18:00, or ISO 8601. Else until it is resumed.")
@click.option("--note", help="Why, for whoever wonders.")
def pause(
    ctx: click.Context,
    entry: str | None,
    match: str | None,
    all_: bool,
    yes: bool,
    until: str | None,
    note: str | None,
    as_json: bool,
) -> None:
    """Have no tick of ENTRY published until it is resumed, but for what is asked for by `run` and `backfill`.

    When this returns, nothing of it is published any more. Its ticks are recorded as paused; what becomes of them is said
    with `resume`, or, where a time was given, by the entry's own catchup.
    """
    app = ctx.obj.app
    over = None if until is None else coming_of(until, app, "--until")
    entries = chosen(ctx, entry, match, all_, yes, does="Pause")
    entries.pause(until=over, note=note)
    if as_json:
        print_json({"paused": list(entries), "until": over and over.isoformat(), "note": note})
        return
    what = repr(next(iter(entries))) if len(entries) == 1 else f"{len(entries)} entries"
    till = f"until {to_the_second(over, app)}" if over is not None else "until resumed"
    ctx.obj.echo(f"{what} {'is' if len(entries) == 1 else 'are'} paused, {till}")

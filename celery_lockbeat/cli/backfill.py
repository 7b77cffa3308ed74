"""``celery lockbeat backfill``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import click

from celery_lockbeat.cli.chosen import confirm, one_of, yes_option
from celery_lockbeat.cli.output import command, print_json
from celery_lockbeat.control import Backfill, schedules_of
from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.insight.times import moment_of, to_the_second

__all__ = ["backfill"]

#: So many dues are shown of many, from either end.
SHOWN = 5


@command
@click.argument("entry")
@click.argument("since", metavar="FROM", required=False)
@click.argument("until", metavar="TO", required=False)
@click.option("--dry-run", is_flag=True, help="Show which ticks these are, and do nothing.")
@click.option(
    "--at-once", default=1, show_default=True, type=click.IntRange(min=1), metavar="N", help="Run or wait at a time."
)
@click.option("--reverse", is_flag=True, help="The newest first.")
@click.option("--cancel", is_flag=True, help="Publish no more ticks of what is under way.")
@click.option("--note", help="Why, for whoever wonders.")
@yes_option
def backfill(
    ctx: click.Context,
    entry: str,
    since: str | None,
    until: str | None,
    dry_run: bool,
    at_once: int,
    reverse: bool,
    cancel: bool,
    note: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Have each tick of ENTRY published that was due from one time TO another, both included, by its schedule as it is now.

    Without times, show what is under way. Each tick tells its task when it was due (`current_tick()`, the message's headers), and that
    it is of a backfill. Who of the beats is killed meanwhile changes nothing: none is left out, and none published for another.
    """
    app = ctx.obj.app
    found = one_of(schedules_of(app), entry)
    if cancel or since is None:
        if since is not None:
            raise ConfigurationError("--cancel ends all backfills of ENTRY: give no times with it")
        _show(ctx, found.name, found.cancel_backfills() if cancel else found.backfills(), as_json)
        return
    if until is None:
        raise ConfigurationError("give both FROM and TO, or neither")
    begin, end = moment_of(since, app, "FROM"), moment_of(until, app, "TO")
    dues = found.dues(begin, end)
    if dry_run or not dues:
        _show_dues(ctx, found.name, dues, as_json)
        return
    confirm(ctx, f"Publish {len(dues)} ticks of {found.name!r}, at most {at_once} at once?", yes)
    asked = found.backfill(begin, end, at_once=at_once, reverse=reverse, note=note)
    if as_json:
        print_json(asked.fields())
    else:
        ctx.obj.echo(
            f"the beats publish {asked.total} ticks of {found.name!r}; `backfill {found.name}` shows how far they are"
        )


def _show(ctx: click.Context, name: str, backfills: Sequence[Backfill], as_json: bool) -> None:
    if as_json:
        print_json([each.fields() for each in backfills])
        return
    for each in backfills:
        state = "cancelled" if each.cancelled else "under way"
        span = f"from {to_the_second(each.since, ctx.obj.app)} to {to_the_second(each.until, ctx.obj.app)}"
        ctx.obj.echo(f"{state}: {each.published} of {each.total} ticks are published, {span}, asked for by {each.who}")
    if not backfills:
        ctx.obj.echo(f"no backfill of {name!r} is under way")


def _show_dues(ctx: click.Context, name: str, dues: Sequence[datetime], as_json: bool) -> None:
    if as_json:
        print_json({"entry": name, "count": len(dues), "dues": [due.isoformat() for due in dues]})
        return
    ctx.obj.echo(f"{len(dues)} ticks of {name!r}" + (":" if dues else ""))
    many = len(dues) > 2 * SHOWN
    for due in dues[:SHOWN] if many else dues:
        ctx.obj.echo(f"  {to_the_second(due, ctx.obj.app)}")
    if many:
        ctx.obj.echo("  ...")
        for due in dues[-SHOWN:]:
            ctx.obj.echo(f"  {to_the_second(due, ctx.obj.app)}")

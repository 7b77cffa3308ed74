"""``celery lockbeat report``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import click

from celery_lockbeat.cli.audit import settled_ledger
from celery_lockbeat.cli.output import command, print_json, table_lines
from celery_lockbeat.cli.times import since_option
from celery_lockbeat.insight.journals import Story
from celery_lockbeat.insight.times import since_of, to_the_second
from celery_lockbeat.journal.statistics import Spread, Statistics, statistics_of
from celery_lockbeat.observe.vocabulary import took

__all__ = ["report"]

#: It is sent by mail as often as it is read on a terminal.
WIDTH: Final = 80


@command
@since_option("24h")
def report(ctx: click.Context, since: str, as_json: bool) -> None:
    """Show how each entry has fared: ticks due, run, skipped, missed, failed; how late, and how long. For a mail, or CI.

    Exits with 1 where a tick was missed or lost.
    """
    app = ctx.obj.app
    begin = since_of(since, app)
    story, ledger = settled_ledger(app, begin)
    end = ledger.until
    found = statistics_of([tick for tick in story.ticks if tick.at <= end], ledger)
    if as_json:
        print_json({"since": begin.isoformat(), "until": end.isoformat(), "entries": [each.fields() for each in found]})
    else:
        for line in _lines(found, story, begin, end, app):
            ctx.obj.echo(line)
    ctx.exit(1 if any(each.missed or each.lost for each in found) else 0)


def _lines(found: Sequence[Statistics], story: Story, since: datetime, until: datetime, app: Any) -> list[str]:
    lines = [f"from {to_the_second(since, app)} to {to_the_second(until, app)}"]
    if story.reach is not None and story.reach > since:
        lines.append(f"the journal reaches back to {to_the_second(story.reach, app)} only")
    if not found:
        return [*lines, "no entry had a tick"]
    counts = ("due", "run", "failed", "skipped", "missed", "paused", "lost")
    head = ["entry", *counts, "overlaps prevented"]
    rows = [(each.entry, *(getattr(each, name) for name in counts), each.overlaps) for each in found]
    lines += ["", *table_lines(head, rows, WIDTH, right=head[1:])]
    head = ["entry", "late p50", "p95", "max", "took p50", "p95 ", "max "]  # names differ
    spread = ((each.entry, *_spread(each.late), *_spread(each.took)) for each in found)
    lines += ["", *table_lines(head, spread, WIDTH, right=head[1:]), ""]
    missed, lost = sum(each.missed for each in found), sum(each.lost for each in found)
    bad = " and ".join(f"{count} {how}" for count, how in ((missed, "missed"), (lost, "lost (see audit)")) if count)
    return [*lines, f"{bad or 'none missed, none lost'}, of {sum(each.due for each in found)} ticks"]


def _spread(spread: Spread | None) -> tuple[str, str, str]:
    return ("-", "-", "-") if spread is None else (took(spread.p50), took(spread.p95), took(spread.max))

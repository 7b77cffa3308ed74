"""``celery lockbeat history``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

import click

from celery_lockbeat.cli.journals import refuse_unknown
from celery_lockbeat.cli.output import command, print_json, print_pages, table_lines, width_of_terminal
from celery_lockbeat.cli.times import since_option
from celery_lockbeat.insight.journals import names_known, story_since
from celery_lockbeat.insight.times import date_of, since_of, to_the_second
from celery_lockbeat.journal.ticks import OUTCOMES, Tick, named
from celery_lockbeat.observe.vocabulary import took

__all__ = ["history"]

HEAD: Final = ("due", "name", "late", "started", "took", "outcome", "why", "worker", "beat")

#: What a narrow terminal does without first.
SPARE: Final = ("beat", "worker", "started")

_COLOURS: Final = {
    "succeeded": "green",
    "failed": "red",
    "died": "red",
    "missed": "red",
    "skipped": "yellow",
    "running": "cyan",
}


@command
@click.argument("name", required=False)
@since_option("24h")
@click.option(
    "--status",
    multiple=True,
    type=click.Choice(OUTCOMES),
    help="Only those with this outcome; may be given several times.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The newest N lines only.")
def history(
    ctx: click.Context, name: str | None, since: str, status: tuple[str, ...], limit: int | None, as_json: bool
) -> None:
    """Show what became of each tick and each run, the newest last: of all, or of the entry or task NAME.

    A line is a tick of an entry, or a run that no tick has asked for.
    """
    app = ctx.obj.app
    begin = since_of(since, app)
    story = story_since(app, begin)
    found = story.ticks
    if name is not None:
        found = list(named(found, name))
        if not found:
            refuse_unknown(ctx, name, names_known(app, story))
    found = [tick for tick in found if not status or tick.outcome in status]
    shown = found if limit is None else found[-limit:]
    if as_json:
        print_json([tick.fields() for tick in shown])
    elif shown:
        print_pages(ctx, _lines(ctx, shown, app))
    else:
        ctx.obj.echo(_nothing(begin, story.reach, app))


def _lines(ctx: click.Context, ticks: Sequence[Tick], app: Any) -> list[str]:
    one = len({tick.entry or tick.task_name for tick in ticks}) == 1
    head = [each for each in HEAD if not (one and each == "name")]
    lines = table_lines(
        head,
        ([cell for cell, column in zip(_row(tick, app), HEAD, strict=True) if column in head] for tick in ticks),
        width_of_terminal(),
        right=("late", "took"),
        spare=SPARE,
        style=_style_of(ctx),
    )
    zone = to_the_second(ticks[-1].at, app).rpartition(" ")[2]
    return [f"times are {zone}, the app's timezone", *lines]


def _style_of(ctx: click.Context) -> Callable[[str], str]:
    return lambda cell: ctx.obj.style(cell, fg=_COLOURS[cell]) if cell in _COLOURS else cell


def _row(tick: Tick, app: Any) -> tuple[str, ...]:
    last = tick.last
    return (
        "-" if tick.due is None else date_of(tick.due, app),
        tick.entry or tick.task_name or "-",
        "-" if tick.late is None or tick.is_missed else took(max(tick.late, 0.0)),
        "-" if tick.started is None else _clock(tick.started, tick.due, app),
        "-" if last is None or last.took is None else took(last.took),
        tick.outcome,
        _why(tick, app) or "-",
        (last and last.worker) or "-",
        tick.beats[-1] if tick.beats else "-",
    )


def _clock(at: datetime, due: datetime | None, app: Any) -> str:
    text = date_of(at, app)
    return text.partition(" ")[2] if due is not None and date_of(due, app)[:5] == text[:5] else text


def _why(tick: Tick, app: Any) -> str | None:
    last, waits = tick.last, tick.waits
    if tick.is_missed and tick.run is None:
        since = f" after {date_of(tick.due_after, app)}" if tick.due_after is not None else ""
        return f"{tick.count} {'tick' if tick.count == 1 else 'ticks'}{since}"
    if tick.is_missed:
        return tick.why
    if waits is not None:
        return f"waits since {_clock(waits.since, tick.due, app)}: {waits.behind()}"
    if last is None:
        return tick.why
    if last.status == "skipped" and (whom := last.who or last.holder) is not None:
        which = "" if last.held_key is None or last.who else f"{last.held_key} by "
        return f"{last.reason}: {which}{whom}"
    several = f"attempt {len(tick.attempts)}" if len(tick.attempts) > 1 and last is tick.attempts[-1] else None
    lost = "lost its lock" if last.lost_at is not None else None
    return ", ".join(each for each in (tick.reason, several, lost) if each)


def _nothing(since: datetime, reach: datetime | None, app: Any) -> str:
    if reach is None:
        return "the journal is empty: no beat and no worker has written anything"
    return f"nothing since {to_the_second(since, app)}; the journal reaches back to {to_the_second(reach, app)}"

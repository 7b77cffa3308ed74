"""``celery lockbeat describe``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import click

from celery_lockbeat.cli.chosen import one_of
from celery_lockbeat.cli.output import command, print_json, printable, table_lines
from celery_lockbeat.control import schedules_of
from celery_lockbeat.insight.times import date_of, to_the_second
from celery_lockbeat.observe.vocabulary import took

__all__ = ["describe"]


@command
@click.argument("entry")
def describe(ctx: click.Context, entry: str, as_json: bool) -> None:
    """Show what ENTRY is, where it is defined, what is wanted of it, when it is due next, and how it has fared."""
    app = ctx.obj.app
    told = one_of(schedules_of(app), entry).describe()
    if as_json:
        print_json(told)
        return
    for line in _lines(told, app):
        ctx.obj.echo(printable(line))


def _lines(told: Mapping[str, Any], app: Any) -> Iterator[str]:
    yield f"entry      {told['name']}"
    if told["task"] is None:
        yield "task       nobody here can tell: it is defined elsewhere"
    else:
        yield f"task       {told['task']}{_call(told)}"
        yield f"schedule   {told['schedule']}"
        yield f"where      {told['where']}" + (f"; its task: {told['source']}" if told["source"] else "")
        if told["policy"]:
            yield f"policy     {', '.join(f'{name}={value}' for name, value in told['policy'].items())}"
        if not told["enabled"]:
            yield f"enabled    no, by {told['where']}"
    yield f"beats      {told['beats']} list it"
    if told.get("published"):
        yield f"published  {told['published']}, the last one {_at(told['last_published_at'], app)}"
    yield from _flags(told, app)
    for each in told["backfills"]:
        state = ", cancelled" if each["cancelled"] else ""
        yield f"backfill   {each['published']} of {each['total']} ticks, asked for by {each['who']}{state}"
    for number, at in enumerate(told["next"]):
        yield f"{'next' if not number else '':<11}{_at(at, app)}"
    if told.get("took"):
        spread = told["took"]
        yield f"took       {took(spread['p50'])} (median), {took(spread['max'])} at most"
    if told["runs"]:
        yield ""
        rows = [(_date(each, app), each["outcome"], _took(each), each.get("reason") or "-") for each in told["runs"]]
        yield from table_lines(("due", "outcome", "took", "why"), rows, None, right=("took",))


def _flags(told: Mapping[str, Any], app: Any) -> Iterator[str]:
    paused = told["paused"]
    if paused is not None:
        until = f", until {_at(paused['until'], app)}" if paused["until"] else ""
        note = f": {paused['note']}" if paused["note"] else ""
        yield f"paused     by {paused['who']}, {_at(paused['at'], app)}{until}{note}"
        if paused["passed"]:
            yield f"           {paused['passed']} ticks have been passed over"
    if told["skip"]:
        yield f"skips      its next {told['skip']} ticks, as {told['skip_asked']['who']} wants it"


def _call(told: Mapping[str, Any]) -> str:
    given = [*told["args"], *(f"{name}={value}" for name, value in told["kwargs"].items())]
    return f"({', '.join(given)})"


def _at(text: str | None, app: Any) -> str:
    try:
        at = datetime.fromisoformat(text or "")
    except ValueError:
        return str(text)
    return to_the_second(at, app) if at.tzinfo is not None else str(text)


def _date(run: Mapping[str, Any], app: Any) -> str:
    return date_of(datetime.fromisoformat(run["due"]), app) if run.get("due") else "-"


def _took(run: Mapping[str, Any]) -> str:
    return took(run["took"]) if run.get("took") is not None else "-"

"""``celery lockbeat run``."""

from __future__ import annotations

import json
from typing import Any

import click

from celery_lockbeat.cli.chosen import one_of
from celery_lockbeat.cli.output import command, print_json, printable
from celery_lockbeat.control import schedules_of
from celery_lockbeat.control.outcomes import outcome_of
from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.insight.times import now
from celery_lockbeat.observe.vocabulary import took

__all__ = ["run"]


@command
@click.argument("entry")
@click.option("--args", "args_text", metavar="JSON", help="A list, in place of its own arguments.")
@click.option("--kwargs", "kwargs_text", metavar="JSON", help="An object, in place of its own.")
@click.option("--note", help="Why, for whoever wonders.")
@click.option("--wait", is_flag=True, help="Show how it ends; exit with 1 where that is not well.")
def run(
    ctx: click.Context,
    entry: str,
    args_text: str | None,
    kwargs_text: str | None,
    note: str | None,
    wait: bool,
    as_json: bool,
) -> None:
    """Have a beat publish ENTRY once, within seconds, though it is paused; when it is due next stays as it is.

    ENTRY is its name, as `entries` shows it, or the key that the store has it under. Its task's lock counts as ever.
    """
    app = ctx.obj.app
    args, kwargs = _read("--args", args_text, list), _read("--kwargs", kwargs_text, dict)
    found = one_of(schedules_of(app), entry, listed=True)
    since = now()
    claim = found.run(args, kwargs, note=note)
    number = claim.state.total_run_count
    told: dict[str, Any] = {"entry": found.name, "task_id": claim.task_id, "run": number, "key": claim.entry}
    if not as_json:
        ctx.obj.echo(f"a beat publishes {found.name!r}, run {number}, as task {claim.task_id}")
    if wait:
        outcome = outcome_of(app, found.task, claim.task_id, since=since)
        told["outcome"] = outcome
        if not as_json:
            lasted = f" in {took(outcome['took'])}" if outcome.get("took") is not None else ""
            why = f": {outcome['reason']}" if outcome.get("reason") else ""
            ctx.obj.echo(printable(f"{found.name!r} {outcome['outcome']}{lasted}{why}"))
    if as_json:
        print_json(told)
    if wait and told["outcome"]["outcome"] != "succeeded":
        ctx.exit(1)


def _read(option: str, text: str | None, kind: type) -> Any:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, kind):
        allowed = '[1, "two"]' if kind is list else '{"name": "value"}'
        raise ConfigurationError(f"{option} is {text!r}; allowed: JSON such as {allowed}")
    return value

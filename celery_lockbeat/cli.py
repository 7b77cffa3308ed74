"""``celery -A proj lockbeat ...``: what the other modules know, as text or, with ``--json``, as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import click
from celery.bin.base import CeleryCommand, handle_preload_options

from celery_lockbeat.doctor import KINDS, LEVELS, examine, gather

__all__ = ["lockbeat"]

_COLOURS: Final = {"error": "red", "warning": "yellow", "note": "cyan"}

_Function = TypeVar("_Function", bound=Callable[..., Any])


@click.group()
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
def lockbeat(_ctx: click.Context) -> None:
    """Look after the locks and the beats of celery-lockbeat."""


def _command(function: _Function) -> click.Command:
    function = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)
    command: click.Command = lockbeat.command(cls=CeleryCommand)(click.pass_context(function))
    return command


@_command
@click.option(
    "--ignore", multiple=True, metavar="KIND", type=click.Choice(list(KINDS)), help="Leave this kind of finding out."
)
def doctor(ctx: click.Context, ignore: Sequence[str], as_json: bool) -> None:
    """Check what would otherwise be learned at 3 a.m. Exits with 1 when there is an error."""
    facts = gather(ctx.obj.app)
    findings = [finding for finding in examine(facts) if finding.kind.name not in ignore]
    levels = Counter(finding.kind.level for finding in findings)
    counts = {f"{level}s": levels[level] for level in LEVELS}
    if as_json:
        told = [
            {
                "kind": finding.kind.name,
                "level": finding.kind.level,
                "about": finding.about,
                "what": finding.what,
                "why": finding.kind.why,
                "do": finding.kind.do,
            }
            for finding in findings
        ]
        _print_json({"app": facts.app, **counts, "findings": told})
    else:
        for finding in findings:
            kind = finding.kind
            level = ctx.obj.style(kind.level, fg=_COLOURS[kind.level], bold=True)
            ctx.obj.echo(f"{level} {kind.name}: {finding.about}: {finding.what}\n  why: {kind.why}\n  do:  {kind.do}\n")
        summary = ", ".join(f"{count} {name}" for name, count in counts.items())
        ctx.obj.echo(f"{len(KINDS) - len(ignore)} things looked for: {summary}")
    ctx.exit(1 if levels["error"] else 0)


def _print_json(told: Any) -> None:
    click.echo(json.dumps(told, indent=2))

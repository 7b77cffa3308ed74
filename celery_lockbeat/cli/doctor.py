"""``celery lockbeat doctor``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import click

from celery_lockbeat.cli.output import command, print_json, printable
from celery_lockbeat.insight.doctor.facts import gather
from celery_lockbeat.insight.doctor.kinds import KINDS, LEVELS
from celery_lockbeat.insight.doctor.rules import examine
from celery_lockbeat.options import spelling

__all__ = ["doctor"]

_COLOURS: Final = {"error": "red", "warning": "yellow", "note": "cyan"}


@command
@click.option(
    "--ignore", multiple=True, metavar="KIND", type=click.Choice(list(KINDS)), help="Leave this kind of finding out."
)
def doctor(ctx: click.Context, ignore: Sequence[str], as_json: bool) -> None:
    """Check what would otherwise be learned at 3 a.m. Exits with 1 when there is an error."""
    facts, spell = gather(ctx.obj.app), spelling(ctx.obj.app.conf)
    findings = [
        {
            "kind": kind.name,
            "level": kind.level,
            "about": about,
            "what": what,
            "why": spell(kind.why),
            "do": spell(kind.do),
        }
        for kind, about, what in examine(facts)
        if kind.name not in ignore
    ]
    levels = Counter(finding["level"] for finding in findings)
    counts = {f"{level}s": levels[level] for level in LEVELS}
    if as_json:
        print_json({"app": facts.app, **counts, "findings": findings})
    else:
        for finding in findings:
            level = ctx.obj.style(finding["level"], fg=_COLOURS[finding["level"]], bold=True)
            ctx.obj.echo(f"{level} {finding['kind']}: {printable(finding['about'] + ': ' + finding['what'])}")
            ctx.obj.echo(f"  why: {finding['why']}\n  do:  {finding['do']}\n")
        ctx.obj.echo(", ".join(f"{name}: {count}" for name, count in counts.items()))
    ctx.exit(1 if levels["error"] else 0)

"""What all commands have in common: ``--json``, tables, and one line without a password for what goes wrong."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import click
from celery.bin.base import CeleryCommand

from celery_lockbeat.cli.redaction import redactor
from celery_lockbeat.exceptions import ConfigurationError, StoreUnavailable

__all__ = ["command", "print_json", "print_table"]

#: A column of a table is cut to no fewer characters, however narrow a terminal is.
SHORTEST_COLUMN: Final = 12


def command(function: Callable[..., None]) -> click.Command:
    """Make a command of a function that takes the context, its own options, and ``as_json``."""

    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @click.pass_context
    @functools.wraps(function)
    def run(ctx: click.Context, /, **options: Any) -> None:
        try:
            function(ctx, **options)
        except (StoreUnavailable, ConfigurationError) as exc:
            ctx.obj.error(redactor(ctx.obj.app)(exc))
            ctx.exit(1)

    made: click.Command = click.command(cls=CeleryCommand)(run)  # type: ignore[no-untyped-call]
    return made


def print_json(value: Any) -> None:
    """Print what a program reads."""
    click.echo(json.dumps(value, indent=2))


def print_table(ctx: click.Context, head: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Print rows below each other; on a terminal the longest column gives way where they are too wide."""
    lines = [tuple(head), *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if sys.stdout.isatty():
        over = sum(widths) + 2 * (len(widths) - 1) - shutil.get_terminal_size().columns
        longest = widths.index(max(widths))
        widths[longest] = max(SHORTEST_COLUMN, widths[longest] - max(over, 0))
    for line in lines:
        cells = (_cut(cell, width).ljust(width) for cell, width in zip(line, widths, strict=True))
        ctx.obj.echo("  ".join(cells).rstrip())


def _cut(cell: str, width: int) -> str:
    return cell if len(cell) <= width else f"{cell[: width - 1]}…"

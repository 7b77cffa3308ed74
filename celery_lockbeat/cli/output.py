"""What all commands have in common: ``--json``, tables, and one line without a password for what goes wrong."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import click
from celery.bin.base import CeleryCommand

from celery_lockbeat.exceptions import LockbeatError
from celery_lockbeat.insight.plain import printable
from celery_lockbeat.insight.redaction import redactor

__all__ = [
    "command",
    "print_json",
    "print_pages",
    "print_table",
    "printable",
    "table_lines",
    "textual",
    "width_of_terminal",
]

#: A column of a table is cut to no fewer characters, however narrow a terminal is.
SHORTEST_COLUMN: Final = 12


def command(function: Callable[..., None]) -> click.Command:
    """Make a command of a function that takes the context, its own options, and ``as_json``."""
    return textual(click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function))


def textual(function: Callable[..., None]) -> click.Command:
    """Make a command of a function that takes the context and its own options: one that has no ``--json``."""

    @click.pass_context
    @functools.wraps(function)
    def run(ctx: click.Context, /, **options: Any) -> None:
        try:
            function(ctx, **options)
        except LockbeatError as exc:
            ctx.obj.error(redactor(ctx.obj.app)(exc))
            ctx.exit(1)

    made: click.Command = click.command(cls=CeleryCommand)(run)  # type: ignore[no-untyped-call]
    return made


def print_json(value: Any) -> None:
    """Print what a program reads."""
    click.echo(json.dumps(value, indent=2))


def print_table(ctx: click.Context, head: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Print rows below each other; on a terminal the longest column gives way where they are too wide."""
    for line in table_lines(head, rows, width_of_terminal()):
        ctx.obj.echo(line)


def width_of_terminal() -> int | None:
    """Return the columns of the terminal that is printed to; None: it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table_lines(
    head: Sequence[str],
    rows: Iterable[Iterable[object]],
    width: int | None,
    *,
    right: Collection[str] = (),
    spare: Iterable[str] = (),
    style: Callable[[str], str] = str,
) -> list[str]:
    """Return the lines of a table that is as wide as it must be, or at most ``width``.

    Then the columns ``spare`` are left out, one after the other, and then the longest one gives way. The cells of those to the
    ``right`` end below each other. ``style`` is asked how a cell is shown.
    """
    lines = [tuple(head), *(tuple(printable(str(cell)) for cell in row) for row in rows)]
    widths = {name: max(map(len, column)) for name, column in zip(head, zip(*lines, strict=True), strict=True)}
    if width is not None:
        _fit(widths, width, spare)
    return [_line(zip(head, cells, strict=True), widths, right, style) for cells in lines]


def _fit(widths: dict[str, int], width: int, spare: Iterable[str]) -> None:
    for name in spare:
        if _over(widths, width) > 0:
            del widths[name]
    if (over := _over(widths, width)) > 0:
        longest = max(widths, key=lambda name: widths[name])
        widths[longest] = max(SHORTEST_COLUMN, widths[longest] - over)


def _over(widths: Mapping[str, int], width: int) -> int:
    return sum(widths.values()) + 2 * (len(widths) - 1) - width


def _line(
    cells: Iterable[tuple[str, str]], widths: Mapping[str, int], right: Collection[str], style: Callable[[str], str]
) -> str:
    shown = []
    for name, cell in cells:
        if name in widths:
            text = _cut(cell, widths[name])
            blank = " " * (widths[name] - len(text))
            shown.append(blank + style(text) if name in right else style(text) + blank)
    return "  ".join(shown).rstrip()


def print_pages(ctx: click.Context, lines: Sequence[str]) -> None:
    """Print lines, by a pager where they are more than a terminal shows."""
    text = "\n".join(lines)
    if sys.stdout.isatty() and len(lines) >= shutil.get_terminal_size().lines:
        click.echo_via_pager(text, color=not ctx.obj.no_color)
    else:
        ctx.obj.echo(text)  # at once: each call flushes


def _cut(cell: str, width: int) -> str:
    return cell if len(cell) <= width else f"{cell[: width - 1]}…"

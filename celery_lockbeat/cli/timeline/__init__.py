"""``celery lockbeat timeline``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Final

import click

from celery_lockbeat.cli.output import printable, textual
from celery_lockbeat.cli.signs import styled
from celery_lockbeat.cli.timeline.svg import page_of, svg_of
from celery_lockbeat.cli.timeline.text import lines_of
from celery_lockbeat.cli.times import since_option
from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.insight.journals import story_since
from celery_lockbeat.insight.lanes import Timeline, some, timeline_of
from celery_lockbeat.insight.times import now, since_of
from celery_lockbeat.stores import name_of

__all__ = ["timeline"]

#: Columns where there is no terminal.
COLUMNS: Final = 80

_WRITERS: Final = {".svg": svg_of, ".html": page_of}


@textual
@since_option("1h")
@click.option(
    "--output",
    default="-",
    show_default=True,
    metavar="FILE",
    help="FILE.svg, or FILE.html, a page without a network; -: as text.",
)
def timeline(ctx: click.Context, since: str, output: str) -> None:
    """Draw what ran when, and what was skipped, missed, lost or killed: a row for each entry."""
    app, path = ctx.obj.app, Path(output)
    if output != "-" and path.suffix.lower() not in _WRITERS:
        raise ConfigurationError(f"--output is {output!r}; allowed: a name that ends with .svg or .html, or -")
    begin = since_of(since, app)
    story = story_since(app, begin)
    drawn = timeline_of(story.ticks, begin, now(), story.reach, app.timezone)
    if output == "-":
        is_terminal = sys.stdout.isatty() and not ctx.obj.no_color
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else COLUMNS
        for line in lines_of(drawn, width, styled if is_terminal else lambda sign: sign.text):
            click.echo(line)
        return
    title = f"celery-lockbeat, app {name_of(app)!r}" if name_of(app) else "celery-lockbeat"
    _write(path, _WRITERS[path.suffix.lower()](drawn, title))
    ctx.obj.echo(printable(f"{output}: {_said(drawn)}"))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as exc:
        raise ConfigurationError(f"--output cannot be written: {exc}") from exc


def _said(drawn: Timeline) -> str:
    lanes = len(drawn.lanes)
    said = f"{lanes} {'entry' if lanes == 1 else 'entries'}, {some(drawn.lanes)} runs and marks"
    return "; ".join((said, *drawn.left_out))

"""``celery lockbeat watch``: the live view.

Promises: it only looks. The terminal is as it was, whatever ends the view; a store that is away is said, and waited for.
"""

from __future__ import annotations

import os
import shutil
import sys
from datetime import datetime, timezone
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import click

from celery_lockbeat.cli.output import textual
from celery_lockbeat.contrib.schedulers import static_entries
from celery_lockbeat.membership.used import stores_in_use
from celery_lockbeat.options import AppOptions
from celery_lockbeat.stores import name_of
from celery_lockbeat.tasks.task import LockedTask

if TYPE_CHECKING:
    from celery_lockbeat.cli.watch.view import View
    from celery_lockbeat.insight.feed import Feed
    from celery_lockbeat.insight.model import Model

__all__ = ["watch"]

#: Seconds between two frames while nothing else happens: those that count down.
FRAME: Final = 1.0


@textual
@click.option("--once", is_flag=True, help="Print one frame, and end; also where it goes into a pipe.")
def watch(ctx: click.Context, once: bool) -> None:
    """Show live what is due, runs and waits, who does it, and what has happened; `q` ends it, and `?` tells the keys."""
    app = ctx.obj.app
    if find_spec("rich") is None:
        ctx.obj.error("watch needs rich: pip install 'celery-lockbeat[cli]'")
        ctx.exit(2)
    is_terminal = sys.stdout.isatty() and sys.stdin.isatty() and os.environ.get("TERM") != "dumb"
    if not once and not is_terminal:
        ctx.obj.error("watch needs a terminal; for programs there are `history --json` and `status --json`, or --once")
        ctx.exit(2)
    from celery_lockbeat.cli.watch.view import View  # noqa: PLC0415
    from celery_lockbeat.insight.feed import Feed  # noqa: PLC0415  after the check: what follows needs rich
    from celery_lockbeat.insight.model import Model  # noqa: PLC0415
    from celery_lockbeat.insight.planned import Plans  # noqa: PLC0415

    place = stores_in_use(app)[0].name  # this imports the app's tasks
    model = Model(static_entries(app), _tells(app), datetime.now(timezone.utc), Plans(app))
    view = View(model, name_of(app), place, app.timezone, bool(AppOptions.read(app.conf).journal))
    if once:
        _print_one(Feed(app, lambda: None), model, view)
    else:
        ctx.exit(_look_on(app, model, view))


def _tells(app: Any) -> Any:
    return lambda task: isinstance(app.tasks.get(task), LockedTask)


def _print_one(feed: Feed, model: Model, view: View) -> None:
    from celery_lockbeat.cli.screen import console_of_stdout  # noqa: PLC0415  it needs rich

    feed.ask_all()
    feed.bring(model)
    console, size = console_of_stdout(), shutil.get_terminal_size()
    console.size = size
    for line in view.frame(size.columns, size.lines - 1, datetime.now(timezone.utc)):
        line.rstrip()
        console.print(line, no_wrap=True, overflow="crop", crop=False, soft_wrap=True)


def _look_on(app: Any, model: Model, view: View) -> int:
    from celery_lockbeat.cli.watch.loop import look_on  # noqa: PLC0415  it needs rich, and what only POSIX has

    return look_on(app, model, view, FRAME)

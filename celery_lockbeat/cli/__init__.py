"""``celery -A proj lockbeat ...``: what the stores and the doctor know, as text or, with ``--json``, as JSON.

Exits with 1 where a store does not answer, a setting is wrong, or what was asked for is not there. Celery imports this module
at each of its starts, and a probe runs ``health`` often: so each command is a module of its name, imported when it is run.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click
from celery.bin.base import handle_preload_options

__all__ = ["lockbeat"]

COMMANDS: Final = (
    "audit",
    "backfill",
    "describe",
    "doctor",
    "entries",
    "health",
    "history",
    "locks",
    "metrics",
    "next",
    "pause",
    "release",
    "report",
    "resume",
    "run",
    "skip",
    "status",
    "timeline",
    "watch",
    "web",
    "why",
)


class _Commands(click.Group):
    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"{__name__}.{name}"), name)
        return command


@click.group(cls=_Commands)
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
def lockbeat(_ctx: click.Context) -> None:
    """Look after the locks and the beats of celery-lockbeat."""

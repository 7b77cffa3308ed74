"""Which entries a command is for: one by its name, those that match a pattern, or all; for many it asks first."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, TypeVar

import click

from celery_lockbeat.control import ScheduledEntry, Schedules, schedules_of
from celery_lockbeat.exceptions import ConfigurationError, LockbeatError

__all__ = ["choosing", "chosen", "confirm", "one_of", "yes_option"]

_F = TypeVar("_F", bound=Callable[..., Any])

#: So many names are shown of many.
SHOWN: int = 5


def yes_option(function: _F) -> _F:
    """Give a command the option ``--yes``."""
    return click.option("--yes", "-y", is_flag=True, help="Do not ask.")(function)


def choosing(function: _F) -> _F:
    """Give a command what :func:`chosen` takes."""
    function = yes_option(function)
    function = click.option("--all", "all_", is_flag=True, help="All entries.")(function)
    function = click.option("--match", metavar="GLOB", help="Those whose names match, such as 'report-*'.")(function)
    return click.argument("entry", required=False)(function)


def chosen(ctx: click.Context, entry: str | None, match: str | None, all_: bool, yes: bool, *, does: str) -> Schedules:
    """Return the entries that a command is for. Raises StoreUnavailable, and LockbeatError where there are none."""
    if sum((entry is not None, match is not None, all_)) != 1:
        raise ConfigurationError("give one of ENTRY, --match GLOB and --all")
    schedules = schedules_of(ctx.obj.app)
    if entry is not None:
        return schedules.only(one_of(schedules, entry).name)
    found = schedules.matching(match or "*")
    if not found:
        raise LockbeatError(f"no entry matches {match!r}" if match else "there are no entries")
    names = list(found)
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    confirm(ctx, f"{does} {len(names)} entries ({shown})?", yes)
    return found


def confirm(ctx: click.Context, question: str, yes: bool) -> None:
    """Ask, on stderr, unless it is to be done anyway; end the command where the answer is no."""
    if not yes and not click.confirm(question, err=True):
        ctx.exit(1)


def one_of(schedules: Schedules, wanted: str, *, listed: bool = False) -> ScheduledEntry:
    """Return the entry of a name, or of a key of the store. Raises LockbeatError where there is none, or are several.

    ``listed``: only one that a beat which runs lists.
    """
    known = [each for each in schedules.values() if each.beats or not listed]
    found = [each for each in known if each.name == wanted]
    found = found or [each for each in known if wanted in (each.flag, each.known and each.known.entry.name)]
    if len(found) == 1:
        return found[0]
    if found:
        why = f"these are such: {', '.join(each.name for each in found)}"
    elif listed:
        why = "no beat that runs lists it"
    else:
        near = difflib.get_close_matches(wanted, schedules, n=3, cutoff=0.5)
        why = "neither the beats nor the app know it" + (f"; near it: {', '.join(near)}" if near else "")
    raise LockbeatError(f"{wanted!r} names no one entry: {why}")

"""What is said of a name that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import click

__all__ = ["refuse_unknown"]


def refuse_unknown(ctx: click.Context, name: str, known: Iterable[str]) -> None:
    """Exit with 1 where a name is none of those that are known, and say which are like it."""
    names = sorted(known)
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or [each for each in names if name in each][:3]
    ctx.obj.error(f"{name!r} is no entry and no task that the app or its journal knows{_said(near, names)}")
    ctx.exit(1)


def _said(near: list[str], names: list[str]) -> str:
    if near:
        return f"; near it: {', '.join(near)}"
    return f"; there are {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else ""  # noqa: PLR2004

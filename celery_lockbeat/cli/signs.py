"""The signs in which a terminal shows runs: a letter for each in a strip of runs, or a row of cells of time.

Promises: each sign is told from the others without its colour. ``rich`` is not needed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import click

from celery_lockbeat.journal.ticks import Tick

__all__ = ["BAR", "KILLED", "LOST", "NOTHING", "SIGNS", "SKIPPED", "Sign", "Track", "strip_of", "styled"]


class Sign(NamedTuple):
    """A character, and a style as rich writes it: a colour, and bold or dim before it."""

    text: str
    style: str


#: By what became of a tick, as pytest shows what became of tests.
SIGNS: Final[Mapping[str, Sign]] = {
    "succeeded": Sign(".", "green"),
    "failed": Sign("F", "bold red"),
    "died": Sign("D", "bold red"),
    "skipped": Sign("s", "yellow"),
    "missed": Sign("M", "bold magenta"),
    "paused": Sign("=", "blue"),
    "running": Sign(">", "bold cyan"),
    "queued": Sign("~", "cyan"),
    "published": Sign("o", "dim"),
}

#: Of rows of time: an empty cell, a run, a lock that was lost, and what was killed or skipped.
NOTHING: Final = Sign("·", "dim")
BAR: Final = Sign("━", "green")
LOST: Final = Sign("L", "bold red")
KILLED: Final = Sign("✗", "bold red")
SKIPPED: Final = Sign("x", "bold yellow")


def strip_of(ticks: Iterable[Tick], at_most: int) -> list[Sign]:
    """Return one sign for each of the last ticks, the newest last; ticks that were missed together are one."""
    return [SIGNS[tick.outcome] for tick in list(ticks)[-at_most:]] if at_most > 0 else []


class Track:
    """A row of cells of time, each so many seconds long. What is drawn later covers what was there."""

    def __init__(self, cell: float) -> None:
        self._cell = cell
        self._signs: dict[int, Sign] = {}
        self._last_mark = -1

    def bar(self, begin: float, end: float, sign: Sign) -> None:
        """Draw what lasted from one time to another, one cell long at least."""
        self._signs |= dict.fromkeys(range(int(begin / self._cell), int(end / self._cell) + 1), sign)

    def mark(self, at: float, sign: Sign) -> None:
        """Draw what happened at a time."""
        self._signs[int(at / self._cell)] = sign

    def next_mark(self, at: float, sign: Sign) -> None:
        """Draw what happened at a time, after those before it: a cell for each, also where they come together."""
        self._last_mark = max(int(at / self._cell), self._last_mark + 1)
        self._signs[self._last_mark] = sign

    def signs(self, first: int, last: int) -> list[Sign]:
        """Return the cells from one to another."""
        return [self._signs.get(cell, NOTHING) for cell in range(first, last + 1)]


def styled(sign: Sign) -> str:
    """Write a sign for a terminal with colours."""
    words = sign.style.split()
    colour = words[-1] if words[-1] not in ("bold", "dim") else None
    return click.style(sign.text, fg=colour, bold="bold" in words or None, dim="dim" in words or None)

"""The terminal as rich draws on it, for the live views: that of ``watch``, and the demo's."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable

from rich.cells import set_cell_size
from rich.console import Console
from rich.text import Text

from celery_lockbeat.cli.signs import Sign
from celery_lockbeat.insight.plain import printable

__all__ = ["cell", "console_of_stdout", "text_of"]


def console_of_stdout() -> Console:
    """Return what writes on stdout, with colours on a terminal only; what the locale cannot write becomes a question mark."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    # rich takes FORCE_COLOR for a terminal
    return Console(highlight=False, force_terminal=sys.stdout.isatty())


def text_of(signs: Iterable[Sign]) -> Text:
    """Draw signs beside each other."""
    return Text.assemble(*signs)


def cell(text: str, width: int) -> str:
    """Return a text that is so many columns wide, cut with an ellipsis; nothing in it is obeyed by the terminal."""
    if len(text) > 4 * width + 100:
        text = text[: 4 * width + 100]
    text = printable(text)
    fitted = set_cell_size(text, width)
    if width > 1 and fitted.rstrip() != text.rstrip():
        fitted = set_cell_size(text, width - 1) + "…"
    return fitted

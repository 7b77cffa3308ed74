"""The option of those commands that look back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

__all__ = ["since_option"]


def since_option(default: str | None) -> Callable[[Any], Any]:
    """Make the option ``--since``."""
    return click.option(
        "--since",
        default=default,
        show_default=default is not None,
        metavar="TIME",
        help="How far back: 90s, 10m, 24h, 7d, or a time in ISO 8601.",
    )

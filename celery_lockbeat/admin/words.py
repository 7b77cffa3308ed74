"""Texts as the pages of the admin write them."""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import Any, Final

from django.utils.timezone import localtime

from celery_lockbeat.insight.plain import printable

__all__ = ["at", "shown"]

#: Characters of a text that somebody else has given.
LONGEST: Final = 300


def shown(value: Any) -> str:
    """Write what somebody tells: on one line, not too long, and nothing in it turns the page around."""
    # nobody needs all of 10 kB to be looked through
    text = "" if value is None else printable(str(value)[: LONGEST + 1])
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def at(moment: datetime) -> str:
    """Write a time, in the zone of the admin's other times."""
    with contextlib.suppress(OverflowError, ValueError):  # of the first or the last day that there is
        moment = localtime(moment)
    return f"{moment:%Y-%m-%d %H:%M:%S}"

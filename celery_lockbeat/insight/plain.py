"""What users have named, as plain text: whatever is in it, nobody obeys it. And what is said alike wherever it is shown."""

from __future__ import annotations

from typing import Final

from celery_lockbeat.observe.vocabulary import took

__all__ = ["every", "printable"]

_UNITS: Final = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def printable(text: str) -> str:
    """Return a text on one line: messages of errors may have several, and what a terminal obeys."""
    return text if text.isprintable() else "".join(each if each.isprintable() else " " for each in text)


def every(seconds: float) -> str:
    """Say an interval in words."""
    for size, name in _UNITS:
        count = seconds / size
        if count >= 1 and count == int(count):
            return f"every {name}" if count == 1 else f"every {int(count)} {name}s"
    return f"every {took(seconds)}"

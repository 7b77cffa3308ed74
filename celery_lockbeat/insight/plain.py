"""What users have named, as plain text: whatever is in it, nobody obeys it."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """Return a text on one line: messages of errors may have several, and what a terminal obeys."""
    return text if text.isprintable() else "".join(each if each.isprintable() else " " for each in text)

"""What metrics have in common, whoever exports them: the bounds of times, and label values, of which there are only so many.

Promises: however many names come along, and whatever is in them, a metric has a bounded number of series, and each of its labels
can be written.
"""

from __future__ import annotations

from typing import Final

__all__ = ["ACQUIRE", "DURATION", "ENTRIES_AT_MOST", "LATENESS", "OTHER", "TASKS_AT_MOST", "Labels"]

#: Bounds of the times of ticks, bodies and locks, in seconds.
LATENESS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
DURATION: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
ACQUIRE: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

#: As many entries and tasks have series of their own.
ENTRIES_AT_MOST: Final = 500
TASKS_AT_MOST: Final = 200

#: What stands for all names that are too many.
OTHER: Final = "other"

#: Characters that are kept of a name.
LONGEST: Final = 200


class Labels:
    """Label values for names, the first ``at_most`` of them."""

    def __init__(self, at_most: int) -> None:
        self._at_most = at_most
        self._known: dict[str, str] = {}

    def of(self, name: str | None) -> str:
        """Return the value for a name: "" for none, :data:`OTHER` for one that is too many."""
        if not name:
            return ""
        known = self._known.get(name)
        if known is None:
            if len(self._known) >= self._at_most:
                return OTHER
            # half of a surrogate pair, which JSON can hold and no exporter can write
            known = self._known[name] = name[:LONGEST].encode("utf-8", "replace").decode()
        return known

    def __contains__(self, name: str) -> bool:
        """Whether it has a value of its own."""
        return name in self._known

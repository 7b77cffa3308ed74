"""What the parts of a beat ask the scheduler for that they work for: its settings, and the methods that users override.

What each of these is for is said where it is defined, in scheduler.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

__all__ = ["Seams"]


class Seams(Protocol):
    """A :class:`~celery_lockbeat.beat.scheduler.LockedSchedulerMixin`, but for its own parts."""

    max_interval: float
    trusted_for: float
    gather: float

    @property
    def connection(self) -> Any: ...  # noqa: D102
    @property
    def producer(self) -> Any: ...  # noqa: D102

    def refresh_schedule(self) -> None: ...  # noqa: D102
    def is_due(self, entry: Any) -> tuple[bool, float | None]: ...  # noqa: D102
    def reread(self, keys: Sequence[str]) -> Mapping[str, tuple[str, Any]] | None: ...  # noqa: D102
    def reserve(self, entry: Any) -> Any: ...  # noqa: D102
    def adopted(self, entry: Any) -> None: ...  # noqa: D102
    def apply_entry(self, entry: Any, producer: Any = None) -> None: ...  # noqa: D102
    def record_runs(self, keys: Sequence[str]) -> None: ...  # noqa: D102

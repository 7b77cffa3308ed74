"""What beats and workers let each other know."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from celery_lockbeat.stores.base.bounds import LISTED_AT_MOST

__all__ = ["Announcement", "AnnouncementStore"]


@dataclass(frozen=True, slots=True)
class Announcement:
    """What somebody has announced, and lets the others know for as long as it said.

    ``first`` is when it was first announced without being forgotten since, by the store's wall clock; ``silent_for`` are the
    seconds since it was announced last.
    """

    name: str
    told: str
    first: float
    silent_for: float


class AnnouncementStore(abc.ABC):
    """What beats and workers let each other know: nothing that decides about a lock or a claim. ``app`` as above."""

    @abc.abstractmethod
    def announce(self, app: str, kind: str, texts: Mapping[str, str], *, ttl: float) -> None:
        """Let others know ``texts``, one of ASCII by each name, for ``ttl`` seconds from now; 0: not any more.

        ``kind`` is one of :data:`ANNOUNCED`. What is announced again before it is forgotten keeps when it was first.
        At most :data:`ANNOUNCED_AT_ONCE` names.
        """

    @abc.abstractmethod
    def announced(
        self, app: str, kind: str, names: Sequence[str] | None = None, *, limit: int = LISTED_AT_MOST
    ) -> list[Announcement]:
        """Return what is announced now, under all names or these, in no order."""

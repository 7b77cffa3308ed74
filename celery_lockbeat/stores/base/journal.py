"""The records of what has happened."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

from celery_lockbeat.stores.base.bounds import JOURNALED_AT_ONCE

__all__ = ["JournalStore", "StoredRecord"]


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record of the journal. ``written`` is when, by the store's wall clock, in seconds since the epoch.

    ``position`` tells it from all others of its app, and is opaque: another may be read ``after`` or ``before`` it.
    """

    position: str
    written: float
    text: str


class JournalStore(abc.ABC):
    """What has happened to the ticks and runs of an app, in the order in which it was written: nothing that decides anything.

    Texts are ASCII. ``app`` as above.
    """

    @abc.abstractmethod
    def append(
        self,
        app: str,
        batch: str,
        texts: Sequence[str],
        *,
        keep: int,
        remember_for: float = 3600.0,
        forget: str | None = None,
        within: float | None = None,
    ) -> bool:
        """Write records, and drop the oldest: at least ``keep`` are kept, a tenth more at most (and some hundreds).

        False: that ``batch``, an ASCII name, was appended in the last ``remember_for`` seconds, and is not again. ``forget`` is
        an earlier batch that nobody will append again. At most :data:`JOURNALED_AT_ONCE` texts; none are a batch too. Nobody
        waits for an answer for longer than ``within`` seconds.
        """

    @abc.abstractmethod
    def records(
        self,
        app: str,
        *,
        after: str | None = None,
        before: str | None = None,
        since: float | None = None,
        newest_first: bool = False,
        limit: int = JOURNALED_AT_ONCE,
    ) -> list[StoredRecord]:
        """Return records: from the oldest on, or from the newest back.

        Only those ``after`` and ``before`` a position, and written ``since`` a time of the store's wall clock; of these the
        first ``limit``, at most :data:`JOURNALED_AT_ONCE`. A position that has been dropped meanwhile is still a place in the
        order; what no store has returned is no position, and nothing is found by it.
        """

"""The journal in Redis: for each app a capped stream, and the names of the batches that were written lately."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from celery_lockbeat.stores.base import JOURNAL_MEMORY, JOURNALED_AT_ONCE, JournalStore, StoredRecord
from celery_lockbeat.stores.redis.appkeys import AppKeys
from celery_lockbeat.stores.redis.client import Client
from celery_lockbeat.stores.redis.names import ms, shown
from celery_lockbeat.stores.redis.scripts import Script

__all__ = ["RedisJournal"]

#: The types of their keys.
TYPES: Final = {"journal": "stream", "batches": "zset"}

#: The id of a stream's entry: milliseconds, and a number among those of the same one.
_is_position: Final = re.compile(r"\d{1,18}-\d{1,18}", re.ASCII).fullmatch

_is_time: Final = re.compile(rb"\d{1,15}").fullmatch


class RedisJournal(JournalStore):
    """The journals of all apps under a client's prefix."""

    def __init__(self, client: Client) -> None:
        self._keys = AppKeys(client, TYPES)
        self._append, self._records = Script.of("journal"), Script.of("records")

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
        args = (batch, forget or "", ms(remember_for), keep, ms(JOURNAL_MEMORY), *texts)
        return bool(self._keys.call(app, self._append, ("journal", "batches"), args, within=within))

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
        if not all(_is_position(position) for position in (after, before) if position is not None):
            return []
        low = "-" if after is None else f"({after}"
        high = "+" if before is None else f"({before}"
        if since is not None:
            first = f"{max(0, int(since * 1000))}"
            low = first if after is None or int(after.partition("-")[0]) < int(first) else low
        asked = (high, low, "1") if newest_first else (low, high, "0")
        found = self._keys.call(app, self._records, ("journal",), (*asked, min(limit, JOURNALED_AT_ONCE)))
        return [_read(position, fields) for position, fields in found]


def _read(position: bytes, fields: Sequence[bytes]) -> StoredRecord:
    """Read an entry of the stream; what no store has written has no text, or one that nobody can read."""
    known: dict[Any, bytes] = dict(zip(fields[::2], fields[1::2], strict=False))
    written = known.get(b"t", b"")
    if not _is_time(written):
        written = position.partition(b"-")[0]
    return StoredRecord(position.decode("ascii"), int(written) / 1000, shown(known.get(b"r", b"")))

"""The runs of one entry as far as the journal reaches: what its page shows of any time.

Promises: the journal is read once for an entry that somebody looks at, and from then on only what is new in it. A few entries are
kept, and at most :data:`RECORDS` of each.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

from celery_lockbeat.insight.journals import SKEW
from celery_lockbeat.journal import Record, follow, read
from celery_lockbeat.journal.records import read_record
from celery_lockbeat.journal.ticks import Tick, ticks_of
from celery_lockbeat.stores import home_store_of, name_of

__all__ = ["ENTRIES", "RECORDS", "Histories"]

#: Entries that are kept, and records of each.
ENTRIES: Final = 4
RECORDS: Final = 120_000

#: At least so much is read at once: who looks at an hour looks at a day next.
AT_ONCE: Final = timedelta(days=1)


class Histories:
    """Those of the entries that were looked at last. ``tells(task)``: whether the runs of a task are in the journal."""

    def __init__(self, app: Any, tells: Callable[[str], bool]) -> None:
        self._app = app
        self._tells = tells
        self._lock = threading.Lock()
        self._known: OrderedDict[str, _History] = OrderedDict()

    def ticks(self, entry: str, since: datetime) -> list[Tick]:
        """Return the ticks of an entry since a time, and some from before it, in the order of time. Raises StoreUnavailable."""
        with self._lock:
            history = self._known.get(entry)
            if history is None:
                history = self._known[entry] = _History(self._app, entry, self._tells)
            self._known.move_to_end(entry)
            if len(self._known) > ENTRIES:
                self._known.popitem(last=False)
        return history.ticks(since)

    def reach(self) -> datetime | None:
        """Return when the journal begins; None: it is empty. Raises StoreUnavailable."""
        oldest = home_store_of(self._app).journal.records(name_of(self._app), limit=1)
        return read_record(oldest[0]).at if oldest else None


class _History:
    def __init__(self, app: Any, entry: str, tells: Callable[[str], bool]) -> None:
        self._app = app
        self._entry = entry
        self._tells = tells
        self._lock = threading.Lock()
        self._since: datetime | None = None
        self._records: list[Record] = []
        self._position: str | None = None
        self._ticks: list[Tick] | None = None

    def ticks(self, since: datetime) -> list[Tick]:
        with self._lock:
            if self._since is None or self._position is None or since < self._since:
                self._read(since)
            else:
                self._read_on()
            if self._ticks is None:
                self._ticks = ticks_of(self._records, self._tells)
            return self._ticks

    def _read(self, since: datetime) -> None:
        begin = since - AT_ONCE
        newest = read(self._app, limit=1)
        self._position = newest[-1].position if newest else None
        # a run may have no entry in its records, and be known by its tick's task
        self._records = [each for each in read(self._app, since=begin - SKEW, limit=None) if self._is_of_it(each)]
        del self._records[:-RECORDS]
        self._since, self._ticks = begin, None

    def _read_on(self) -> None:
        seen = {record.position for record in self._records[-1_000:]}
        for record in follow(self._app, after=self._position, wait=lambda _: None):
            if record is None:
                break
            self._position = record.position
            if self._is_of_it(record) and record.position not in seen:
                self._records.append(record)
                self._ticks = None
        if len(self._records) > RECORDS * 1.1:
            del self._records[:-RECORDS]

    def _is_of_it(self, record: Record) -> bool:
        return self._entry == (record.entry or record.task_name)

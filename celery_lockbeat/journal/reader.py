"""The journal, as it is read: by page, from a store that may hold what no journal has written, and on and on.

Promises: records come in the order in which they were written, each once; reading stops as soon as there is enough of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, Final

from celery_lockbeat.journal.records import Record, read_record
from celery_lockbeat.stores import Store, home_store_of, name_of
from celery_lockbeat.stores.base import JOURNALED_AT_ONCE

__all__ = ["follow", "read"]

#: So many events are remembered, to tell one that was put twice.
REMEMBERED: Final = 10_000

#: Seconds between two looks of who follows.
FOLLOWED_EVERY: Final = 0.5


def read(
    app: Any,
    *,
    entry: str | None = None,
    task: str | None = None,
    key: str | None = None,
    status: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int | None = 1000,
) -> list[Record]:
    """Return the newest records, at most ``limit`` of them (None: all that there are), oldest first.

    Only those of an ``entry`` of the schedule, of a ``task`` (its name), of a lock's ``key``, with a ``status`` (success, failed,
    retry, skipped, died, running), and that happened between two aware times. Raises StoreUnavailable, and ValueError for
    a naive time.
    """
    _check(since, until)
    found: list[Record] = []
    once = _Once()
    for record in _backwards(home_store_of(app), name_of(app), since):
        if limit is not None and len(found) >= limit:
            break
        wanted = (
            (entry is None or record.entry == entry)
            and (task is None or record.task_name == task)
            and (key is None or key == record.lock_key or key in (record.lock_keys or ()))
            and (status is None or record.status == status)
            and (since is None or record.at >= since)
            and (until is None or record.at <= until)
        )
        if wanted and once(record):
            found.append(record)
    found.reverse()
    return found


def follow(
    app: Any, *, after: str | None = None, wait: Callable[[float], object] = time.sleep
) -> Iterator[Record | None]:
    """Yield records as they are written, without an end: from now on, or from those ``after`` a position on.

    None is yielded after each look at which there was no more, so that who follows can do something else, or stop; the
    store is asked twice a second. Raises StoreUnavailable when it does not answer: then go on ``after`` the last position.
    """
    store, name, once = home_store_of(app), name_of(app), _Once()
    if after is None:
        newest = store.journal.records(name, newest_first=True, limit=1)
        after = newest[0].position if newest else None
    while True:
        records = store.journal.records(name, after=after)
        for stored in records:
            after = stored.position
            record = read_record(stored)
            if once(record):
                yield record
        if len(records) < JOURNALED_AT_ONCE:
            yield None
            wait(FOLLOWED_EVERY)


def _backwards(store: Store, app: str, since: datetime | None) -> Iterator[Record]:
    before: str | None = None
    # what happened since then was written since then
    first = None if since is None else since.timestamp()
    while True:
        page = store.journal.records(app, before=before, since=first, newest_first=True)
        for stored in page:
            before = stored.position
            yield read_record(stored)
        if len(page) < JOURNALED_AT_ONCE:
            return


class _Once:
    """Leaves out an event of a run that was put twice, as what struck in between lets happen."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str | None, str], None] = {}

    def __call__(self, record: Record) -> bool:
        if record.execution_id is None or not record.event.startswith("task_"):
            return True
        which = record.execution_id, record.event
        if which in self._seen:
            return False
        self._seen[which] = None
        if len(self._seen) > REMEMBERED:  # the second comes soon, or not at all
            del self._seen[next(iter(self._seen))]
        return True


def _check(*times: datetime | None) -> None:
    for each in times:
        if each is not None and each.tzinfo is None:
            raise ValueError(f"{each!r} is a naive time; allowed: an aware one, as datetime.now(timezone.utc)")

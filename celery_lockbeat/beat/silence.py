"""Entries that have not succeeded for long: each is said once a day, by one beat of all.

An entry is silent when ``lockbeat_silent_after`` of its ticks in a row, published or missed, have had no success,
and a minute has passed since the last. Promises: a beat's rounds do not wait for it; only entries whose task has a lock are judged,
for of others the journal knows no ends.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final

from celery_lockbeat.exceptions import LockbeatError
from celery_lockbeat.journal.records import ENDINGS, Record, read_record
from celery_lockbeat.journal.writer import journal_of
from celery_lockbeat.observe.events import Story
from celery_lockbeat.stores import home_store_of, name_of
from celery_lockbeat.stores.base import JOURNALED_AT_ONCE
from celery_lockbeat.tasks.task import LockedTask

__all__ = ["Silence"]

logger: Final = logging.getLogger("celery_lockbeat.beat")

#: Pages that are read at one look: a hundredth of a core's time. A journal of the usual size has as many.
PAGES_AT_MOST: Final = 21

#: Seconds between two looks into the journal, and since the last success at least.
LOOKS_EVERY: Final = 10.0
SHORTEST: Final = 60.0


@dataclass
class _Entry:
    """What is known of an entry: its ticks since its last success, and since when they are counted."""

    task: str | None
    since: datetime
    #: what tells this silence from later ones
    begins: str
    ticks: int = 0
    runs: bool = False
    last: Record | None = None


class Silence:
    """Looks for one beat, until :meth:`end`. ``sender`` is that of the event."""

    def __init__(self, sender: Any, app: Any, after: int, *, now: Callable[[], datetime] | None = None) -> None:
        self._sender = weakref.ref(sender)
        self._app = app
        self._after = after
        self._now = now or (lambda: datetime.now(timezone.utc))
        self._entries: dict[str, _Entry] = {}
        self._position: str | None = None
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Look from now on, in a thread, which ends with its beat."""
        if self._thread is None and self._after:
            self._thread = threading.Thread(
                target=_run, args=(weakref.ref(self), self._ends), name="lockbeat-silence", daemon=True
            )
            self._thread.start()

    def end(self) -> None:
        """Look no more."""
        self._ends.set()

    def look(self) -> None:
        """Read what is new in the journal, and say which entries are silent. Raises LockbeatError."""
        journal, name = home_store_of(self._app).journal, name_of(self._app)
        for _ in range(PAGES_AT_MOST):
            page = journal.records(name, after=self._position)
            for stored in page:
                self._position = stored.position
                self._know(read_record(stored))
            if len(page) < JOURNALED_AT_ONCE or self._ends.is_set():
                break
        else:
            # there is more than anybody can read in passing: what was in between is not known, so all begins anew
            newest = journal.records(name, newest_first=True, limit=1)
            self._position = newest[0].position if newest else None
            self._entries.clear()
        now = self._now()
        for entry, known in self._entries.items():
            if (
                known.ticks >= self._after
                and (now - known.since).total_seconds() >= SHORTEST
                and self._is_locked(known)
            ):
                self._say(entry, known)

    def _know(self, record: Record) -> None:
        if record.entry is None:
            return
        known = self._entries.get(record.entry)
        if known is None or record.event == "task_succeeded":
            known = self._entries[record.entry] = _Entry(record.task_name, record.at, record.position)
        if record.event in ("tick_published", "tick_missed"):
            known.ticks += (record.count or 1) if not record.taken_over else 0
            known.task = record.task_name
        elif record.event in ENDINGS:
            known.runs, known.last = True, record

    def _is_locked(self, known: _Entry) -> bool:
        return known.runs or isinstance(self._app.tasks.get(known.task), LockedTask)

    def _say(self, entry: str, known: _Entry) -> None:
        last = known.last
        how = "none has ended" if last is None else f"the last one ended as {last.status} at {last.at:%H:%M:%S} UTC"
        if last is not None and (why := last.reason or last.error_name):
            how += f" ({why})"
        reason = f"{known.ticks} ticks without a success since {known.since:%Y-%m-%d %H:%M:%S} UTC: {how}"
        fields = {"schedule": entry, "task_name": known.task, "count": known.ticks, "reason": reason}
        story = Story(self._sender(), "default", None, **fields)
        journal_of(self._app).case(
            f"silent:{entry}:{known.begins}", "entry_silent", fields, lambda: story.later("entry_silent")
        )


def _run(silence: weakref.ref[Silence], ends: threading.Event) -> None:
    while not ends.wait(LOOKS_EVERY):
        one = silence()
        if one is None:
            return
        try:
            one.look()
        except LockbeatError as exc:
            # whoever needs the store for a tick says so louder
            logger.debug("nobody can tell which entries are silent: %s", exc)
        except Exception:
            logger.exception("nobody can tell which entries are silent")
            return
        del one

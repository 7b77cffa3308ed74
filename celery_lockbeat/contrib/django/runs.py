"""Runs are written down in their rows, and rows whose time is over are disabled, as django-celery-beat does it.

Promises: runs are written together, in one query a batch; what cannot be written now is with the next look. A row keeps the
greater count, one that is disabled has no last run, and one that was changed since is not disabled for the run before.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Any

from django.db.models import Case, F, Q, Value, When
from django.utils import timezone

from celery_lockbeat.beat.trouble import Complaints
from celery_lockbeat.contrib.django.database import ANSWERS_WITHIN, Database, DatabaseAway
from celery_lockbeat.contrib.django.rows import Rows
from celery_lockbeat.contrib.django.times import for_row

__all__ = ["Runs"]


class Runs:
    """What one beat has to write down."""

    def __init__(self, database: Database, rows: Rows, complaints: Complaints) -> None:
        self._database = database
        self._rows = rows
        self._complaints = complaints
        self._unwritten: dict[int, Any] = {}  # entries that have run, by primary keys
        self._expired: set[int] = set()
        #: whether the last try to write did not succeed
        self.failed = False

    def __len__(self) -> int:
        return len(self._unwritten)

    def note(self, pk: int, entry: Any) -> None:
        """Write down that this entry has run, next time."""
        self._unwritten[pk] = entry

    def expire(self, pk: int) -> None:
        """Disable a row whose time is over, next time."""
        self._expired.add(pk)

    def write_down(self) -> None:
        """Write down all that there is, or complain."""
        self.failed = False
        try:
            if self._expired:
                self._database.query(self._disable_expired, within=ANSWERS_WITHIN)
                self._expired.clear()
            if self._unwritten:
                self._write_runs(dict(self._unwritten))
        except DatabaseAway as exc:
            # the ticks are published: they are settled all the same, and the next look tries again
            self.failed = True
            self._complaints.make("django", "beat cannot write down runs, and goes on: %s", exc)

    def _write_runs(self, entries: Mapping[int, Any]) -> None:
        self._database.query(lambda: self._update(entries), within=ANSWERS_WITHIN)
        for pk, entry in entries.items():
            entry.lockbeat_run, entry.lockbeat_last_run_at = entry.total_run_count, entry.last_run_at
            entry.lockbeat_stored_at = entry.last_run_at
            del self._unwritten[pk]

    def _update(self, entries: Mapping[int, Any]) -> None:
        rows = self._database.rows
        often = {pk: entry for pk, entry in entries.items() if not entry.model.one_off}
        if often:
            runs = Case(*(When(pk=pk, then=Value(entry.total_run_count)) for pk, entry in often.items()))
            times = Case(*(When(pk=pk, then=Value(for_row(entry.last_run_at))) for pk, entry in often.items()))
            # a row that is disabled has no last run; a count that is greater is of a later run
            written = rows.filter(pk__in=list(often), enabled=True).annotate(lockbeat_run=runs)
            written.filter(total_run_count__lt=F("lockbeat_run")).update(last_run_at=times, total_run_count=runs)
        # as they were when they ran: one that was changed since begins anew
        once = [Q(pk=pk, date_changed=entry.model.date_changed) for pk, entry in entries.items() if entry.model.one_off]
        if once:
            rows.filter(reduce(or_, once)).update(
                enabled=False, last_run_at=None, total_run_count=0, date_changed=timezone.now()
            )
            self._database.note_a_change()

    def _disable_expired(self) -> None:
        rows = self._database.rows.filter(pk__in=self._expired, expires__lte=timezone.now())
        rows.update(enabled=False, last_run_at=None, date_changed=timezone.now())
        for pk in self._expired:
            self._rows.lose(pk)

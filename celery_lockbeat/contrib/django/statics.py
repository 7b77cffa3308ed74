"""The static entries of ``beat_schedule``: they are rows, as far as the tables can keep them, and this beat's own where not.

Promises: a row that is as its static entry says is not written again, for each write lets all beats read everything anew. An
entry that is broken stops no other.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from celery import schedules
from celery.beat import ScheduleEntry
from django.db.utils import DatabaseError, InterfaceError
from django_celery_beat.clockedschedule import clocked

from celery_lockbeat.contrib.django.database import Database
from celery_lockbeat.contrib.django.rows import KINDS, json
from celery_lockbeat.contrib.django.times import equal, schedule_of, storable
from celery_lockbeat.schedules.policy import Policy
from celery_lockbeat.schedules.when import Cron

__all__ = ["Statics"]

logger: Final = logging.getLogger("celery_lockbeat.beat")

#: What Celery knows of an entry in ``beat_schedule``; what else there is are columns.
CELERYS_FIELDS: Final = ("task", "schedule", "args", "kwargs", "options", "relative")


class Statics:
    """The static entries of one app; ``entry`` is the class of the entries of rows."""

    def __init__(self, app: Any, entry: Any, database: Database) -> None:
        self._app = app
        self._entry = entry
        self._database = database
        #: what the tables cannot keep, by name
        self.own: dict[str, Any] = {}

    def store(self, mapping: Mapping[str, Any]) -> None:
        """Store entries, as far as the tables can keep them, unless they are there as they are. Raises Django's errors."""
        for name, fields in mapping.items():
            try:
                self._store(name, fields)
            except (DatabaseError, InterfaceError):  # noqa: PERF203  a user's few
                raise
            except Exception:  # whatever a user wrote
                logger.exception("static entry %r is skipped, for it is broken: %r", name, fields)

    def _store(self, name: str, fields: Mapping[str, Any]) -> None:
        celerys = {field: value for field, value in fields.items() if field in CELERYS_FIELDS}
        entry = ScheduleEntry(name=name, app=self._app, **celerys)
        if not entry.task or entry.schedule is None:
            raise ValueError("it needs a task and a schedule")
        entry.schedule = storable(entry.schedule)
        if not _can_be_stored(entry):
            self.own[name] = entry
        elif not self._is_stored(entry, fields):
            self._entry.from_entry(name, app=self._app, **{**fields, "schedule": entry.schedule})

    def _is_stored(self, entry: Any, fields: Mapping[str, Any]) -> bool:
        row = self._database.rows.select_related(*KINDS).filter(name=entry.name).first()
        if row is None or row.scheduler is None or not equal(schedule_of(row, self._app), entry.schedule):
            return False
        wanted = {field: value for field, value in fields.items() if field not in CELERYS_FIELDS}
        wanted |= self._entry._unpack_options(**(fields.get("options") or {}))
        wanted |= {"task": entry.task, "args": json.dumps(entry.args or []), "kwargs": json.dumps(entry.kwargs or {})}
        return all(getattr(row, column) == value for column, value in wanted.items())


def _can_be_stored(entry: Any) -> bool:
    """Whether the tables can give the same entry again."""
    when = entry.schedule
    if isinstance(when, Cron) and (when.is_hashed or when.policy != Policy()):
        return False  # a row has nothing of these
    if type(when) is schedules.schedule:
        seconds = when.run_every.total_seconds()
        if when.relative or seconds < 1 or seconds % 1:
            return False
    elif not isinstance(when, (schedules.crontab, schedules.solar, clocked)):
        return False
    try:
        read = json.loads(json.dumps([entry.args or [], entry.kwargs or {}]))
        return bool(read == [list(entry.args or []), entry.kwargs or {}])
    except (TypeError, ValueError):
        return False

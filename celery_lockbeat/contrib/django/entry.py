"""The entry of a row, and from when on its ticks count.

An entry goes on from the last run that its row has, ``lockbeat_run`` and ``lockbeat_last_run_at``, unless the store knows of more
runs; ``lockbeat_stored_at`` is that time as it is in the row, None where there is none. Nothing counts that was due before
``lockbeat_since`` (see history.py), or before the start time of the row.
"""

from __future__ import annotations

from datetime import MINYEAR, datetime, timedelta, timezone
from typing import Any

from django_celery_beat.schedulers import ModelEntry

from celery_lockbeat.contrib.django.times import by_the_clock, of_a_run, own_times, schedule_of

__all__ = ["RowEntry", "begin", "pass_over"]


class RowEntry(ModelEntry):  # type: ignore[misc]
    """An entry of a row, whose times have a zone in every project: where the row's have none, that of the admin's clock.

    Without it, django-celery-beat compares times with a zone with others that have none, or takes these for UTC, and runs
    crontabs in another zone than the row's, as ``USE_TZ`` and ``DJANGO_CELERY_BEAT_TZ_AWARE`` have it.
    """

    def __init__(self, model: Any, app: Any = None) -> None:
        model.start_time, model.expires = (each and by_the_clock(each) for each in (model.start_time, model.expires))
        super().__init__(model, app=app)
        self.schedule = schedule_of(model, self.app)

    def _default_now(self) -> datetime:
        now: datetime = self.app.now()
        return now


def begin(entry: Any, last_run_at: datetime | None) -> None:
    """Let an entry go on from the count in its model, and from the last run that its row has, if it has one."""
    model = entry.model
    entry.lockbeat_stored_at = None if last_run_at is None else of_a_run(last_run_at)
    if last_run_at is None:
        # django-celery-beat's own idea of the last run of what has never run
        last_run_at = model.date_changed and by_the_clock(model.date_changed)
        begins = model.start_time and (not (model.total_run_count and last_run_at) or model.start_time > last_run_at)
        if begins and own_times(entry.schedule) is None:
            # with a time to start at, long ago: so it runs then, and at its interval from then on
            last_run_at = datetime(MINYEAR, 1, 2, tzinfo=timezone.utc)
    last_run_at = last_run_at or entry._default_now()
    entry.last_run_at = entry.lockbeat_last_run_at = model.last_run_at = of_a_run(last_run_at)
    entry.total_run_count = entry.lockbeat_run = model.total_run_count
    pass_over(entry)


def pass_over(entry: Any) -> None:
    """Let nothing count that was due before the ticks of an entry do, or before its start time, once that has come."""
    since, start = entry.lockbeat_since, entry.model.start_time
    if start and own_times(entry.schedule) is not None and start <= entry._default_now():
        # a tick at the start time itself counts
        start -= timedelta(microseconds=1)
        since = start if since is None else max(since, start)
    waits_for_its_start = entry.last_run_at.year == MINYEAR and not entry.total_run_count
    if since is not None and entry.last_run_at < since and not waits_for_its_start:
        entry.last_run_at = since

"""Schedules and times of django-celery-beat's rows, whose times have no zone in a project without ``USE_TZ``.

Promises: a time that a user has typed is read in the zone of the admin's clock, a last run in the zone in which it was
written. Crontabs fire in their row's own zone, whatever ``USE_TZ`` and ``DJANGO_CELERY_BEAT_TZ_AWARE`` are.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from celery import schedules
from celery.utils.time import LocalTimezone
from django.conf import settings
from django.utils import timezone as django_timezone
from django_celery_beat.clockedschedule import clocked
from django_celery_beat.tzcrontab import TzAwareCrontab

__all__ = ["by_the_clock", "equal", "for_row", "of_a_run", "own_times", "schedule_of", "storable"]

# -- times -------------------------------------------------------------------------------------------------------------


def by_the_clock(time_: datetime) -> datetime:
    """Give a time that a row has, if it has no zone, that of the admin's clock."""
    return time_ if time_.tzinfo else time_.replace(tzinfo=django_timezone.get_default_timezone())


def of_a_run(time_: datetime) -> datetime:
    """Give the last run that a row has, if it has no zone, the one in which it was written."""
    return time_ if time_.tzinfo else time_.replace(tzinfo=_zone_of_runs())


def for_row(time_: datetime) -> datetime:
    """Return the time of a run as the tables of this project can have it."""
    return time_ if settings.USE_TZ else time_.astimezone(_zone_of_runs()).replace(tzinfo=None)


def _zone_of_runs() -> Any:
    # django-celery-beat's own choice
    aware = getattr(settings, "DJANGO_CELERY_BEAT_TZ_AWARE", True)
    return django_timezone.get_default_timezone() if aware else timezone.utc


# -- schedules ---------------------------------------------------------------------------------------------------------


def schedule_of(model: Any, app: Any) -> Any:
    """Return the schedule of a row, in the zone that the admin shows."""
    if model.crontab and not model.interval:
        cron = model.crontab
        fields = (cron.minute, cron.hour, cron.day_of_week, cron.day_of_month, cron.month_of_year)
        return TzAwareCrontab(*fields, tz=cron.timezone, app=app)
    if model.clocked and not (model.interval or model.solar):
        return clocked(by_the_clock(model.clocked.clocked_time), app=app)
    return model.schedule


def storable(when: Any) -> Any:
    """Return a schedule of the settings with its times as the tables of this project can have them."""
    if isinstance(when, schedules.crontab) and isinstance(when.tz, LocalTimezone):
        # the zone of this process has no name; it is Django that has set it
        fields = (when._orig_minute, when._orig_hour, when._orig_day_of_week, when._orig_day_of_month)
        return TzAwareCrontab(*fields, when._orig_month_of_year, tz=django_timezone.get_default_timezone())
    return when


def equal(one: Any, other: Any) -> bool:
    """Whether two schedules are due at the same times."""
    if isinstance(one, schedules.crontab) and isinstance(other, schedules.crontab):
        # a zone of another library is another object
        return _fields(one) == _fields(other)
    return type(one) is type(other) and bool(one == other)


def own_times(when: Any) -> list[str] | None:
    """Return what makes up a schedule that is due at times of its own; None: it counts from its last run."""
    if isinstance(when, schedules.crontab):
        return _fields(when)
    return [when.event, str(when.lat), str(when.lon)] if isinstance(when, schedules.solar) else None


def _fields(when: Any) -> list[str]:
    names = ("minute", "hour", "day_of_week", "day_of_month", "month_of_year")
    return [*(str(getattr(when, f"_orig_{name}")) for name in names), str(when.tz)]

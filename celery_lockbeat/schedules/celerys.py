"""What the decorators make of Celery's own schedules: a crontab, in the app's timezone or in one of its own."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from celery.schedules import ParseException, crontab

from celery_lockbeat.exceptions import ConfigurationError

__all__ = ["crontab_of"]

#: The fields of a cron expression in their order, as Celery names them, and what each may be.
FIELDS: Final = {
    "minute": "0-59",
    "hour": "0-23",
    "day_of_month": "1-31",
    "month_of_year": "1-12",
    "day_of_week": "0-6 or sun-sat",
}

#: The days of each month, at most.
DAYS: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def crontab_of(expression: Any, timezone: str | None) -> crontab:
    """Read a cron expression, as that of ``@cron``; ``timezone`` is its own, None the app's. Raises ConfigurationError."""
    wrong = f"the expression of @cron is {expression!r}"
    named = _fields_of(expression, wrong)
    _parsed(expression, wrong, "a date that there is", named)
    when = crontab(**named)
    # older Celerys make it, and find at each tick that it never comes (celery 5.4, schedules.py)
    if not any(day <= DAYS[month - 1] for month in when.month_of_year for day in when.day_of_month):
        raise ConfigurationError(f"{wrong}; allowed: a date that there is")
    if timezone is None:
        return when
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError) as exc:
        raise ConfigurationError(
            f"timezone of @cron is {timezone!r}; allowed: a name such as 'Europe/Berlin' ({exc})"
        ) from exc
    return _ZonedCrontab(timezone=timezone, **named)


def _fields_of(expression: Any, wrong: str) -> dict[str, str]:
    """The fields of an expression by their names, each of which is right by itself."""
    fields = expression.split() if isinstance(expression, str) else []
    if len(fields) != len(FIELDS):
        hint = " (write @cron('0 * * * *'))" if callable(expression) else ""
        if len(fields) == len(FIELDS) + 1:
            hint = f" (without the seconds, which others have first: {' '.join(fields[1:])!r})"
        allowed = f"five fields, {' '.join(FIELDS)}, as in '0 * * * *'{hint}"
        raise ConfigurationError(f"{wrong}; allowed: {allowed}")
    named = dict(zip(FIELDS, fields, strict=True))
    for field, value in named.items():
        allowed = f"{FIELDS[field]}, *, lists, ranges and steps"
        _parsed(expression, f"{field} of @cron is {value!r}", allowed, {field: value})
    return named


def _parsed(expression: str, wrong: str, allowed: str, fields: Mapping[str, str]) -> None:
    try:
        crontab(**fields)
    except (ParseException, ValueError, TypeError, KeyError) as exc:
        raise ConfigurationError(f"{wrong} (in {expression!r}: {exc}); allowed: {allowed}") from exc


class _ZonedCrontab(crontab):  # type: ignore[misc]
    """A crontab in a timezone of its own, not in the app's."""

    def __init__(self, *fields: Any, timezone: str, **more: Any) -> None:
        self._timezone = timezone
        super().__init__(*fields, **more)
        self.nowfun = self._now

    def _now(self) -> datetime:
        now: datetime = self.app.now()
        return now.astimezone(self.tz)

    @property
    def tz(self) -> ZoneInfo:
        return ZoneInfo(self._timezone)

    def maybe_make_aware(self, dt: datetime, naive_as_utc: bool = True) -> datetime:
        # Celery 5.4 takes the fields off last_run_at in the zone in which it comes
        aware: datetime = super().maybe_make_aware(dt, naive_as_utc=naive_as_utc)
        return aware.astimezone(self.tz)

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self._orig_minute, self._orig_hour, self._orig_day_of_week, self._orig_day_of_month)
        return _zoned, (*fields, self._orig_month_of_year, self._timezone)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _ZonedCrontab) or other._timezone != self._timezone:
            return False
        return all(getattr(self, field) == getattr(other, field) for field in FIELDS)

    def __hash__(self) -> int:
        return hash((self._timezone, str(self)))


def _zoned(
    minute: Any, hour: Any, day_of_week: Any, day_of_month: Any, month_of_year: Any, timezone: str
) -> _ZonedCrontab:
    return _ZonedCrontab(minute, hour, day_of_week, day_of_month, month_of_year, timezone=timezone)

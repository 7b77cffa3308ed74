"""cron, interval, timeout: a LockedTask and its entry of the schedule in one line.

Promises: what is wrong with the schedule is refused where the decorator stands, at import; the task is one like any other
(``.delay()``, canvas, direct calls); the entry is fired by any beat scheduler of Celery, not only by ours.
An entry of the same name in ``beat_schedule`` wins: a deployment can change a schedule without a release.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import copy
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, overload
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from celery import Celery, shared_task
from celery._state import _get_active_apps, connect_on_app_finalize
from celery.schedules import BaseSchedule, ParseException, crontab, schedstate, schedule

from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.options import LONGEST, TASK_PREFIX, check_options, check_unprefixed, unit, written
from celery_lockbeat.tasks.task import LockedTask

if TYPE_CHECKING:
    from celery_lockbeat.schedules.typed import BoundDecorator, Decorator

__all__ = ["Timeout", "cron", "interval", "timeout"]

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

#: Seconds until a timeout that has fired is looked at again by a beat that is not ours.
NEVER: Final = 10 * 365 * 86400.0

_Decorator = Callable[[Callable[..., Any]], Any]


@overload
def cron(
    expression: str,
    *,
    bind: Literal[True],
    name: str | None = None,
    timezone: str | None = None,
    app: Celery | None = None,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    **task_options: Any,
) -> BoundDecorator: ...


@overload
def cron(
    expression: str,
    *,
    bind: Literal[False] = False,
    name: str | None = None,
    timezone: str | None = None,
    app: Celery | None = None,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    **task_options: Any,
) -> Decorator: ...


def cron(
    expression: str,
    *,
    name: str | None = None,
    timezone: str | None = None,
    app: Celery | None = None,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    **task_options: Any,
) -> Any:
    """Run a function at the times of a cron expression: minute, hour, day of month, month, day of week.

    >>> @cron("0 * * * *", name="report-job", lock_key="jobs:report")  # doctest: +SKIP
    ... def hourly_report(): ...

    ``name`` is the task's and the entry's, by default the function's full name. ``timezone`` is that of the expression, by
    default the app's. ``args`` and ``kwargs`` are the task's at each tick, ``options`` those of its message (``queue``,
    ``expires``, ...). Without ``app`` it is a shared task, in every app. All else are options of the task: ``lock_*`` and
    Celery's. Raises ConfigurationError.
    """
    when = _crontab(expression, timezone)
    return _periodic("cron", when, name, app, args, kwargs, options, task_options)


@overload
def interval(
    seconds: float | timedelta,
    *,
    bind: Literal[True],
    name: str | None = None,
    app: Celery | None = None,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    **task_options: Any,
) -> BoundDecorator: ...


@overload
def interval(
    seconds: float | timedelta,
    *,
    bind: Literal[False] = False,
    name: str | None = None,
    app: Celery | None = None,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    **task_options: Any,
) -> Decorator: ...


def interval(
    seconds: float | timedelta,
    *,
    name: str | None = None,
    app: Celery | None = None,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    **task_options: Any,
) -> Any:
    """Run a function every so many ``seconds``, for the first time that long after its first start; else like :func:`cron`."""
    when = schedule(timedelta(seconds=_seconds("interval", seconds, low=0.001)))
    return _periodic("interval", when, name, app, args, kwargs, options, task_options)


@overload
def timeout(
    seconds: float | timedelta,
    *,
    bind: Literal[True],
    name: str | None = None,
    app: Celery | None = None,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    **task_options: Any,
) -> BoundDecorator: ...


@overload
def timeout(
    seconds: float | timedelta,
    *,
    bind: Literal[False] = False,
    name: str | None = None,
    app: Celery | None = None,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    **task_options: Any,
) -> Decorator: ...


def timeout(
    seconds: float | timedelta,
    *,
    name: str | None = None,
    app: Celery | None = None,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    **task_options: Any,
) -> Any:
    """Run a function once, so many ``seconds`` after a cold start of the beats; else like :func:`cron`.

    A cold start is one while no other replica is there. A beat scheduler that is not ours fires it after each of its starts.
    """
    when = Timeout(_seconds("timeout", seconds, low=0.0))
    return _periodic("timeout", when, name, app, args, kwargs, options, task_options)


class Timeout(BaseSchedule):  # type: ignore[misc]
    """A schedule that is due once, ``seconds`` after the start of the beat."""

    def __init__(self, seconds: float, nowfun: Callable[[], datetime] | None = None, app: Any = None) -> None:
        super().__init__(nowfun=nowfun, app=app)
        self.seconds: Final = seconds
        #: for a beat that is not ours: when it asked for the first time. Not pickled: the next start is another one.
        self._start: datetime | None = None

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:  # noqa: ARG002  Celery's signature
        """Return the time until it is due, negative when it was due."""
        now: datetime = self.maybe_make_aware(self.now())
        if self._start is None:
            self._start = now
        return self._start + timedelta(seconds=self.seconds) - now

    def is_due(self, last_run_at: datetime) -> Any:
        """Tell (is due, seconds until the next look)."""
        remaining = self.remaining_estimate(last_run_at)
        now = self.maybe_make_aware(self.now())
        if self.maybe_make_aware(last_run_at) >= now + remaining:
            return schedstate(is_due=False, next=NEVER)
        seconds = remaining.total_seconds()
        return schedstate(is_due=True, next=NEVER) if seconds <= 0 else schedstate(is_due=False, next=seconds)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Timeout) and other.seconds == self.seconds

    def __hash__(self) -> int:
        return hash(self.seconds)

    def __reduce__(self) -> tuple[type, tuple[float]]:
        return type(self), (self.seconds,)

    def __repr__(self) -> str:
        return f"<timeout: {written(self.seconds)} s after the start>"


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


def _crontab(expression: Any, timezone: str | None) -> Any:
    fields = expression.split() if isinstance(expression, str) else []
    if len(fields) != len(FIELDS):
        hint = " (write @cron('0 * * * *'))" if callable(expression) else ""
        if len(fields) == len(FIELDS) + 1:
            hint = f" (without the seconds, which others have first: {' '.join(fields[1:])!r})"
        allowed = f"five fields, {' '.join(FIELDS)}, as in '0 * * * *'{hint}"
        raise ConfigurationError(f"the expression of @cron is {expression!r}; allowed: {allowed}")
    named = dict(zip(FIELDS, fields, strict=True))
    for field, value in named.items():
        _parsed(
            expression, f"{field} of @cron is {value!r}", f"{FIELDS[field]}, *, lists, ranges and steps", {field: value}
        )
    wrong = f"the expression of @cron is {expression!r}"
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


def _parsed(expression: str, wrong: str, allowed: str, fields: Mapping[str, str]) -> None:
    try:
        crontab(**fields)
    except (ParseException, ValueError, TypeError, KeyError) as exc:
        raise ConfigurationError(f"{wrong} (in {expression!r}: {exc}); allowed: {allowed}") from exc


def _seconds(decorator: str, value: Any, *, low: float) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not number or not math.isfinite(seconds) or not low <= seconds <= 12 * LONGEST:
        hint = f" (write @{decorator}(10))" if callable(value) else ""
        unit_hint = unit(value, 12 * LONGEST)
        allowed = f"seconds, a number from {written(low)} to {written(12 * LONGEST)}, or a timedelta{hint or unit_hint}"
        raise ConfigurationError(f"the time of @{decorator} is {value!r}; allowed: {allowed}")
    return float(seconds)


def _periodic(
    decorator: str,
    when: BaseSchedule,
    name: str | None,
    app: Celery | None,
    args: Any,
    kwargs: Mapping[str, Any] | None,
    options: Mapping[str, Any] | None,
    task_options: dict[str, Any],
) -> _Decorator:
    _check(decorator, name, args, kwargs, options, task_options)
    task_options = {"base": LockedTask, **task_options}

    def decorate(function: Callable[..., Any]) -> Any:
        def enter(app: Celery) -> None:
            task = name or app.gen_task_name(function.__name__, function.__module__)
            if task not in app.conf.beat_schedule:
                # a schedule of its own in each app, for it has that app's timezone
                entry = {"task": task, "schedule": copy(when), "args": tuple(args), "kwargs": dict(kwargs or {})}
                app.conf.beat_schedule = {**app.conf.beat_schedule, task: {**entry, "options": dict(options or {})}}

        if app is not None:
            task = app.task(name=name, **task_options)(function)
            if app.finalized:
                enter(app)
            else:
                _after_finalize(app, enter)
            return task
        task = shared_task(name=name, **task_options)(function)
        # for each app that comes later, and each that is there, as shared_task does for the task itself
        connect_on_app_finalize(lambda app: _after_finalize(app, enter))
        for each in _get_active_apps():
            if each.finalized:
                enter(each)
        return task

    return decorate


def _after_finalize(app: Celery, enter: Callable[[Celery], None]) -> None:
    """Enter an entry once the app has all its settings and tasks."""
    app.on_after_finalize.connect(lambda **_: enter(app), weak=False)


def _check(
    decorator: str,
    name: Any,
    args: Any,
    kwargs: Any,
    options: Any,
    task_options: Mapping[str, Any],
) -> None:
    rules = {
        "name": (name, name is None or (isinstance(name, str) and name != ""), "a non-empty string"),
        "args": (args, isinstance(args, (list, tuple)), "a list or a tuple"),
        "kwargs": (kwargs, kwargs is None or isinstance(kwargs, Mapping), "a mapping of names to values"),
        "options": (options, options is None or isinstance(options, Mapping), "a mapping of options of apply_async"),
    }
    for argument, (value, right, allowed) in rules.items():
        if not right:
            raise ConfigurationError(f"{argument} of @{decorator} is {value!r}; allowed: {allowed}")
    base = task_options.get("base", LockedTask)
    if not (isinstance(base, type) and issubclass(base, LockedTask)):
        raise ConfigurationError(f"base of @{decorator} is {base!r}; allowed: LockedTask or a subclass of it")
    own = {option: value for option, value in task_options.items() if option.startswith(TASK_PREFIX)}
    check_options(own, owner=f"@{decorator}", prefix=TASK_PREFIX)
    check_unprefixed(task_options, base, owner=f"@{decorator}")

"""cron, interval, timeout: a LockedTask and its entry of the schedule in one line.

Promises: what is wrong with the schedule is refused where the decorator stands, at import; the task is one like any other
(``.delay()``, canvas, direct calls); the entry is fired by any beat scheduler of Celery, not only by ours.
An entry of the same name in ``beat_schedule`` wins: a deployment can change a schedule without a release.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, overload

from celery import Celery, shared_task
from celery._state import _get_active_apps, connect_on_app_finalize
from celery.schedules import BaseSchedule, schedule

from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.options import TASK_PREFIX, check_options, check_unprefixed
from celery_lockbeat.schedules.policy import POLICY_NAMES
from celery_lockbeat.schedules.when import Cron, Every, Timeout, bound, seconds_of
from celery_lockbeat.tasks.task import LockedTask

if TYPE_CHECKING:
    from celery_lockbeat.schedules.typed import BoundDecorator, Decorator

__all__ = ["cron", "interval", "timeout"]

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
    jitter: float | timedelta = 0,
    start: datetime | None = None,
    end: datetime | None = None,
    max_runs: int | None = None,
    catchup: Literal["latest", "all", "none"] = "latest",
    catchup_limit: int = 100,
    catchup_window: float | timedelta | None = None,
    start_within: float | timedelta | None = None,
    pause_after_failures: int | None = None,
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
    jitter: float | timedelta = 0,
    start: datetime | None = None,
    end: datetime | None = None,
    max_runs: int | None = None,
    catchup: Literal["latest", "all", "none"] = "latest",
    catchup_limit: int = 100,
    catchup_window: float | timedelta | None = None,
    start_within: float | timedelta | None = None,
    pause_after_failures: int | None = None,
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
    """Run a function at the times of a cron expression: minute, hour, day of month, month, day of week; six have seconds first.

    >>> @cron("0 * * * *", name="report-job", lock_key="jobs:report")  # doctest: +SKIP
    ... def hourly_report(): ...

    ``name`` is the task's and the entry's, by default the function's full name. ``timezone`` is that of the expression, by
    default the app's. ``args`` and ``kwargs`` are the task's at each tick, ``options`` those of its message (``queue``,
    ``expires``, ...). Without ``app`` it is a shared task, in every app. ``jitter``, ``start``, ``end``, ``max_runs``,
    ``catchup`` and the like are the policy of its ticks, as of :class:`~celery_lockbeat.schedules.Cron`. All else are options
    of the task: ``lock_*`` and Celery's. Raises ConfigurationError.
    """
    when = Cron(expression, timezone=timezone, owner="@cron", **_policy(task_options))
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
    jitter: float | timedelta = 0,
    start: datetime | None = None,
    end: datetime | None = None,
    max_runs: int | None = None,
    catchup: Literal["latest", "all", "none"] = "latest",
    catchup_limit: int = 100,
    catchup_window: float | timedelta | None = None,
    start_within: float | timedelta | None = None,
    pause_after_failures: int | None = None,
    run_at_start: bool = False,
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
    jitter: float | timedelta = 0,
    start: datetime | None = None,
    end: datetime | None = None,
    max_runs: int | None = None,
    catchup: Literal["latest", "all", "none"] = "latest",
    catchup_limit: int = 100,
    catchup_window: float | timedelta | None = None,
    start_within: float | timedelta | None = None,
    pause_after_failures: int | None = None,
    run_at_start: bool = False,
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
    """Run a function every so many ``seconds``, for the first time that long after its first start; else like :func:`cron`.

    With a keyword of a policy its ticks are due so many seconds after they were due last, else after they were sent.
    """
    policy = _policy(task_options)
    every = timedelta(seconds=seconds_of("@interval", seconds, low=0.001))
    when = Every(every, owner="@interval", **policy) if policy else schedule(every)
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
    jitter: float | timedelta = 0,
    catchup: Literal["latest", "all", "none"] = "latest",
    catchup_window: float | timedelta | None = None,
    start_within: float | timedelta | None = None,
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
    jitter: float | timedelta = 0,
    catchup: Literal["latest", "all", "none"] = "latest",
    catchup_window: float | timedelta | None = None,
    start_within: float | timedelta | None = None,
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
    when = Timeout(seconds, owner="@timeout", **_policy(task_options))
    return _periodic("timeout", when, name, app, args, kwargs, options, task_options)


def _policy(keywords: dict[str, Any]) -> dict[str, Any]:
    """Take the keywords of a policy out of others."""
    return {name: keywords.pop(name) for name in POLICY_NAMES if name in keywords}


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
                entry = {
                    "task": task,
                    "schedule": bound(copy(when), task),
                    "args": tuple(args),
                    "kwargs": dict(kwargs or {}),
                }
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

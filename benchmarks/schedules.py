"""``python -m benchmarks.schedules``: what it costs to ask a Cron whether it is due, beside Celery's own crontab.

A beat asks each entry twice for a tick: whether it is due, and when it is looked at next. Both are asked here as a beat does, in
turns in one process; the ratio of the medians is what counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from celery import Celery
from celery.schedules import crontab

from celery_lockbeat.schedules import Cron

ROUNDS = 41
CALLS = 400

#: expression -> Celery's arguments
EXPRESSIONS = {
    "* * * * *": {},
    "*/15 * * * *": {"minute": "*/15"},
    "0 9 * * mon-fri": {"minute": 0, "hour": 9, "day_of_week": "mon-fri"},
    "30 2 1 * *": {"minute": 30, "hour": 2, "day_of_month": 1},
    "0 0 29 2 *": {"minute": 0, "hour": 0, "day_of_month": 29, "month_of_year": 2},
}


class Clock:
    """A now that a benchmark moves on."""

    def __init__(self, zone: Any) -> None:
        self.at = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
        self._zone = zone

    def __call__(self) -> datetime:
        # as an app's
        return self.at.astimezone(self._zone)


def a_tick(when: Any, clock: Clock) -> Callable[[], None]:
    """Look at an entry once before it is due, and once when it is, as a beat does."""
    last = [clock()]

    def ask() -> None:
        state = when.is_due(last[0])
        clock.at += timedelta(seconds=state.next + 0.002)
        assert when.is_due(last[0]).is_due
        last[0] = clock()

    return ask


def a_look(when: Any, clock: Clock) -> Callable[[], None]:
    """Look at an entry that is not due yet."""
    last = clock()
    return lambda: when.is_due(last)


def measure(zone: str, kind: Callable[..., Callable[[], None]], expression: str) -> tuple[float, float]:
    """Return the median microseconds of ours and of Celery's."""
    app = Celery("bench", set_as_current=False)
    app.conf.timezone = zone
    asks = []
    for make in (lambda **more: Cron(expression, **more), lambda **more: crontab(**EXPRESSIONS[expression], **more)):
        clock = Clock(app.timezone)
        asks.append(kind(make(app=app, nowfun=clock), clock))
    taken: tuple[list[float], list[float]] = ([], [])
    calls = CALLS if "29 2" not in expression else 10  # four years each
    for _ in range(ROUNDS):
        for ask, times in zip(asks, taken, strict=True):
            begin = time.perf_counter()
            for _ in range(calls):
                ask()
            times.append((time.perf_counter() - begin) / calls * 1e6)
    return statistics.median(taken[0]), statistics.median(taken[1])


def main() -> None:
    print(f"{'zone':14}{'expression':18}{'what':8}{'Cron, us':>10}{'crontab, us':>13}{'ratio':>8}")
    for zone in ("UTC", "Europe/Berlin"):
        for expression in EXPRESSIONS:
            for kind in (a_look, a_tick):
                ours, theirs = measure(zone, kind, expression)
                print(f"{zone:14}{expression:18}{kind.__name__:8}{ours:10.1f}{theirs:13.1f}{ours / theirs:8.2f}")


if __name__ == "__main__":
    main()

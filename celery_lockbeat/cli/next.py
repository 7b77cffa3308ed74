"""``celery lockbeat next``: when entries will be due, in their own zone and in UTC, with a word where the clocks are changed.

Told is what the schedules and policies say, as far as this process knows them. Whether a beat is there, or an entry is paused, is
another matter. An interval goes on from its last tick, which the store knows, as it knows how many runs an entry has had.
"""

from __future__ import annotations

import builtins
import difflib
import heapq
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta, timezone, tzinfo
from itertools import chain, islice
from typing import Any, Final, NamedTuple

import click
from celery.schedules import schedule

from celery_lockbeat.cli.output import command, print_json, print_table, printable
from celery_lockbeat.contrib.schedulers import known_schedules
from celery_lockbeat.exceptions import StoreUnavailable
from celery_lockbeat.insight.entries import named_entries
from celery_lockbeat.insight.planned import Plan, Plans
from celery_lockbeat.insight.times import any_moment_of, now, time_of
from celery_lockbeat.options import written
from celery_lockbeat.schedules.dues import iter_dues
from celery_lockbeat.schedules.wall import DAY
from celery_lockbeat.schedules.when import OwnSchedule, Timeout
from celery_lockbeat.schedules.zoned import Clock
from celery_lockbeat.stores import home_store_of

__all__ = ["next"]

#: So many are told at most: whoever wants more has Python.
MOST: Final = 10_000


class _Due(NamedTuple):
    """One moment at which an entry is due."""

    at: datetime
    entry: str
    zone: tzinfo
    notes: list[str]

    @property
    def local(self) -> datetime:
        return self.at.astimezone(self.zone)


@command
@click.argument("entry", required=False)
@click.option(
    "--count", type=click.IntRange(1, MOST), default=10, show_default=True, help="How many of them, of all entries."
)
@click.option("--at", metavar="TIME", help="From when on: now, 2h, 10m ago, 03:00 (today's), or a time in ISO 8601.")
def next(ctx: click.Context, entry: str | None, count: int, at: str | None, as_json: bool) -> None:  # noqa: A001  its name
    """Show when ENTRY, or whatever entry, is due next: in its own timezone and in UTC, with a note at changes of the clocks.

    A note of +12 s is the jitter of that tick.
    """
    app = ctx.obj.app
    app.loader.import_default_modules()
    app.finalize()
    since = now() if at is None else any_moment_of(at, app)
    known = known_schedules(app)
    if entry is not None and entry not in known:
        ctx.obj.error(f"{entry!r} is no entry whose schedule this app knows{_near(entry, known)}")
        ctx.exit(1)
    chosen = known if entry is None else {entry: known[entry]}
    plans = Plans(app)
    planned = {name: (when, plans.of(name, when, policy)) for name, (when, policy) in chosen.items()}
    last = _last_ticks(app, planned.values())
    dues = {name: _dues(*each, last.get(name, _NEVER), since, app) for name, each in planned.items()}
    first = {name: following for name, each in dues.items() if (following := builtins.next(each, None)) is not None}
    streams = (chain([due], dues[name]) for name, due in first.items())
    found = list(islice(heapq.merge(*streams, key=lambda due: (due.at, due.entry)), count))
    others = {
        name: _why_never(*each, last.get(name, _NEVER)) for name, each in sorted(planned.items()) if name not in first
    }
    if as_json:
        untold = [{"entry": name, "due": None, "note": why} for name, why in others.items()]
        print_json([*map(_as_json, found), *untold])
        return
    if found:
        head = ("due", "UTC", *(("entry",) if entry is None else ()), "note")
        print_table(ctx, head, [_row(due, entry is None) for due in found])
    for name, why in others.items():
        ctx.obj.echo(printable(f"{name}: {why}"))


def _near(entry: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(entry, list(known), n=3)
    return f"; near it: {', '.join(near)}" if near else ""


class _Last(NamedTuple):
    """When an entry had its last tick, by the store, and how many it has had."""

    at: datetime | None
    runs: int


_NEVER: Final = _Last(None, 0)


def _last_ticks(app: Any, planned: Iterable[tuple[Any, Plan]]) -> dict[str, _Last]:
    """What the store knows, where it counts: of intervals, and of what is over after so many runs."""
    if not any(
        plan.policy.max_runs is not None or (isinstance(when, schedule) and plan.policy.start is None)
        for when, plan in planned
    ):
        return {}
    try:
        known = named_entries(app, home_store_of(app))
    except StoreUnavailable:
        return {}
    states = ((each.name, each.entry.state) for each in known)
    return {name: _Last(time_of(state.last_run_at, app), state.total_run_count) for name, state in states}


def _dues(when: Any, plan: Plan, last: _Last, since: datetime, app: Any) -> Iterator[_Due]:
    """Yield when an entry is due after a moment, oldest first."""
    zone: tzinfo = getattr(when, "tz", None) or app.timezone
    clock, before = Clock(zone), since
    is_now = abs((since - now()).total_seconds()) < 1
    unknown = isinstance(when, schedule) and plan.policy.start is None and last.at is None
    for due in islice(_moments(when, plan, last.at, since), plan.runs_left(last.runs)):
        notes = _changes(clock, before, due)
        if unknown and before is since:
            notes.append("if counted from now on" if is_now else "if counted from --at on")
        if offset := plan.policy.offset(plan.name, due):
            notes.append(f"+{written(round(offset, 1))} s")
        yield _Due(due, plan.name, zone, notes)
        before = due


def _moments(when: Any, plan: Plan, last: datetime | None, since: datetime) -> Iterator[datetime]:
    clocked = getattr(when, "clocked_time", None)  # django-celery-beat's
    if isinstance(clocked, datetime):
        return iter([clocked] if clocked > since else [])
    if (
        not isinstance(when, schedule)
        or (isinstance(when, OwnSchedule) and plan.policy.start is not None)
        or last is None
    ):
        return iter_dues(plan.dues, since)
    every: timedelta = when.run_every
    if every <= timedelta(0):
        return iter(())
    # the last one of its grid that is not after the moment
    passed = max(0, (since - last) // every)
    return iter_dues(plan.dues, last.astimezone(timezone.utc) + passed * every)


def _changes(clock: Clock, before: datetime, due: datetime) -> list[str]:
    """What the clocks do between two moments, in words."""
    low, high = int(before.timestamp()), int(due.timestamp())
    change = clock.first_change(low, high, clock.offset(low))
    if change is not None:
        was, shows = (_shown(change, clock.offset(moment)) for moment in (change - 1, change))
        return [f"clock {was} -> {shows}"]
    local = due.astimezone(clock.zone)
    return [f"second {local:%H:%M}"] if local.fold and clock.offset(high) < clock.offset(high - DAY) else []


def _shown(moment: int, offset: int) -> str:
    return datetime.fromtimestamp(moment + offset, timezone.utc).strftime("%H:%M")


def _why_never(when: Any, plan: Plan, last: _Last) -> str:
    if plan.runs_left(last.runs) == 0:
        return f"not due any more: it has had {last.runs} {'run' if last.runs == 1 else 'runs'} (max_runs)"
    if isinstance(when, Timeout):
        return f"once, {written(when.seconds)} s after a cold start of the beats"
    return "not due any more" if isinstance(when, OwnSchedule) else "nobody can tell beforehand"


def _row(due: _Due, with_entry: bool) -> tuple[str, ...]:
    local = due.local.strftime("%a %Y-%m-%d %H:%M:%S %Z")
    entry = (due.entry,) if with_entry else ()
    return (local, due.at.astimezone(timezone.utc).strftime("%m-%d %H:%M:%S"), *entry, ", ".join(due.notes))


def _as_json(due: _Due) -> dict[str, Any]:
    return {
        "entry": due.entry,
        "due": due.local.isoformat(),
        "utc": due.at.astimezone(timezone.utc).isoformat(),
        "zone": str(due.zone),
        "note": ", ".join(due.notes) or None,
    }

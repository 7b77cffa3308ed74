"""``celery -A proj lockbeat ...``: what the stores and the doctor know, as text or, with ``--json``, as JSON.

Exits with 1 where a store does not answer, a setting is wrong, or what was asked for is not there.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from typing import Any, Final, NamedTuple

import click
from celery.bin.base import CeleryCommand, handle_preload_options
from celery.utils import uuid

from celery_lockbeat.beat.entries import names_of
from celery_lockbeat.cli.doctor import (
    KINDS,
    LEVELS,
    announced_schedulers,
    examine,
    gather,
    name_of,
    redactor,
    stores_in_use,
)
from celery_lockbeat.exceptions import ConfigurationError, StoreUnavailable
from celery_lockbeat.membership.health import health_of
from celery_lockbeat.options import AppOptions, spelling
from celery_lockbeat.stores.base import ALIVE, LISTED_AT_MOST, Beats, Claim, Store, StoredEntry

__all__ = ["lockbeat"]

#: A column of a table is cut to no fewer characters, however narrow a terminal is.
SHORTEST_COLUMN: Final = 12

_COLOURS: Final = {"error": "red", "warning": "yellow", "note": "cyan"}


@click.group()
@click.pass_context
@handle_preload_options  # type: ignore[untyped-decorator]
def lockbeat(_ctx: click.Context) -> None:
    """Look after the locks and the beats of celery-lockbeat."""


def _command(function: Callable[..., None]) -> click.Command:
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @click.pass_context
    @functools.wraps(function)
    def run(ctx: click.Context, /, **options: Any) -> None:
        app = ctx.obj.app
        try:
            function(ctx, **options)
        except (StoreUnavailable, ConfigurationError) as exc:
            ctx.obj.error(redactor(app)(exc))
            ctx.exit(1)

    command: click.Command = lockbeat.command(cls=CeleryCommand)(run)
    return command


@_command
@click.option(
    "--ignore", multiple=True, metavar="KIND", type=click.Choice(list(KINDS)), help="Leave this kind of finding out."
)
def doctor(ctx: click.Context, ignore: Sequence[str], as_json: bool) -> None:
    """Check what would otherwise be learned at 3 a.m. Exits with 1 when there is an error."""
    facts, spell = gather(ctx.obj.app), spelling(ctx.obj.app.conf)
    findings = [finding for finding in examine(facts) if finding.kind.name not in ignore]
    levels = Counter(finding.kind.level for finding in findings)
    counts = {f"{level}s": levels[level] for level in LEVELS}
    if as_json:
        told = [
            {
                "kind": finding.kind.name,
                "level": finding.kind.level,
                "about": finding.about,
                "what": finding.what,
                "why": spell(finding.kind.why),
                "do": spell(finding.kind.do),
            }
            for finding in findings
        ]
        _print_json({"app": facts.app, **counts, "findings": told})
    else:
        for finding in findings:
            kind = finding.kind
            level = ctx.obj.style(kind.level, fg=_COLOURS[kind.level], bold=True)
            ctx.obj.echo(f"{level} {kind.name}: {finding.about}: {finding.what}")
            ctx.obj.echo(f"  why: {spell(kind.why)}\n  do:  {spell(kind.do)}\n")
        ctx.obj.echo(", ".join(f"{name}: {count}" for name, count in counts.items()))
    ctx.exit(1 if levels["error"] else 0)


@_command
def status(ctx: click.Context, as_json: bool) -> None:
    """Show the beats that are running, and what waits to be published."""
    app = ctx.obj.app
    (store, home), *_ = stores_in_use(app)
    beats = home.beats(name_of(app))
    there = [beat for beat in beats.replicas if beat.silent_for < ALIVE]
    told = {
        "app": name_of(app),
        "store": store,
        "beats": [
            {"name": beat.name, "silent_for": round(beat.silent_for, 1), "entries": len(beat.entries)} for beat in there
        ],
        "entries": len(beats.entries),
        "pending": sum(entry.pending for entry in beats.entries),
        "overdue": beats.overdue,
    }
    if as_json:
        _print_json(told)
        return
    ctx.obj.echo(f"app {told['app']!r}, {told['store']}: {len(there)} beats, {told['entries']} entries")
    ctx.obj.echo(f"{told['pending']} claims wait to be published, {told['overdue']} of them overdue")
    _print_table(
        ctx,
        ("beat", "heard of", "entries"),
        ((beat.name, f"{beat.silent_for:.1f} s ago", len(beat.entries)) for beat in there),
    )


@_command
@click.option("--beat", is_flag=True, help="A beat of this host must be there, and tick.")
@click.option("--worker", is_flag=True, help="A worker of this host must be there, and be able to lock.")
@click.option(
    "--max-silence",
    type=click.FloatRange(min=1),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Who has not been heard of for longer is not well.",
)
def health(ctx: click.Context, beat: bool, worker: bool, max_silence: float, as_json: bool) -> None:
    """Tell in one line whether the beat and the worker of this host are well; exits with 1 where one is not.

    Without --beat and --worker: whichever of them this host has, and one of them at least.
    """
    found = health_of(ctx.obj.app, beat=beat, worker=worker, max_silence=max_silence)
    if as_json:
        _print_json({"healthy": not found.ill, "well": list(found.well), "ill": list(found.ill)})
    else:
        ctx.obj.echo(str(found))
    ctx.exit(1 if found.ill else 0)


@_command
@click.option("--limit", default=LISTED_AT_MOST, show_default=True, help="At most so many of each store.")
def locks(ctx: click.Context, limit: int, as_json: bool) -> None:
    """Show the locks that are held."""
    held = [(name, lock) for name, store in stores_in_use(ctx.obj.app) for lock in store.locks(limit=limit)]
    held.sort(key=lambda each: each[1].key)
    if as_json:
        _print_json([{"store": name, **asdict(lock), "held_since": lock.held_since.isoformat()} for name, lock in held])
        return
    _print_table(
        ctx,
        ("key", "held since", "rest", "token", "holder"),
        (
            (
                lock.key,
                lock.held_since.isoformat(" ", "seconds"),
                f"{lock.remaining:.1f} s",
                lock.token,
                lock.description,
            )
            for _, lock in held
        ),
    )


@_command
def entries(ctx: click.Context, as_json: bool) -> None:
    """Show the entries that the beats know: how many ticks of each were published, when last, and how many beats list it.

    How many of them a worker has run is not known to the beats.
    """
    app = ctx.obj.app
    (_, home), *_ = stores_in_use(app)
    told: list[dict[str, Any]] = [
        {
            "name": each.name,
            "runs": each.entry.state.total_run_count,
            "last_run_at": each.entry.state.last_run_at,
            "pending": each.entry.pending,
            "beats": each.beats,
            "key": each.entry.name,
            "published": each.entry.state.total_run_count,
            "last_published_at": each.last_published_at,
        }
        for each in _named_entries(app, home)
    ]
    if as_json:
        _print_json(told)
        return
    listed = {each["name"] for each in told if each["beats"]}
    _print_table(
        ctx,
        ("entry", "published", "last published", "waiting", "beats"),
        (
            (each["name"], each["published"], _to_the_second(each["last_published_at"]), each["pending"], each["beats"])
            for each in told
            # what it was before it was rescheduled, or before another start of the beats
            if each["beats"] or each["name"] not in listed
        ),
    )


class _Named(NamedTuple):
    """An entry, the name that its user knows, and how many beats list it."""

    name: str
    entry: StoredEntry
    beats: int

    @property
    def last_published_at(self) -> str | None:
        """When its last tick was published. Before there was one, its state has a time to count from."""
        state = self.entry.state
        return state.last_run_at if state.total_run_count else None


def _named_entries(app: Any, store: Store) -> list[_Named]:
    beats = store.beats(name_of(app))
    names = names_of(app, [entry.name for entry in beats.entries], announced_schedulers(app, store))
    named = [_Named(names[entry.name], entry, _listing(beats, entry.name)) for entry in beats.entries]
    return sorted(named, key=lambda each: (each.name, each.entry.name))


def _to_the_second(time_: str | None) -> str:
    if time_ is None:
        return "-"
    try:
        return datetime.fromisoformat(time_).isoformat(" ", timespec="seconds")
    except ValueError:
        return time_


@_command
@click.argument("key")
def release(ctx: click.Context, key: str, as_json: bool) -> None:
    """Free the lock KEY, whoever holds it.

    A run that is still going on under it goes on until it ends or is told, at its next renewal, that its lock is lost;
    until then another may run beside it.
    """
    freed = [
        {"store": name, **asdict(lock)}
        for name, store in stores_in_use(ctx.obj.app)
        for lock in store.locks(key)
        # of that holder only: it may be another's by now
        if store.free(key, holder=lock.holder)
    ]
    if as_json:
        _print_json(freed)
    else:
        for lock in freed:
            ctx.obj.echo(f"{key!r} is free; it was held by {lock['description']} for {lock['remaining']:.1f} s more")
    if not freed:
        ctx.obj.error(f"{key!r} is not held")
        ctx.exit(1)


@_command
@click.argument("entry")
def run(ctx: click.Context, entry: str, as_json: bool) -> None:
    """Have a beat publish ENTRY once, within seconds; when it is due next stays as it is.

    ENTRY is its name, as `entries` shows it, or the key that the store has it under.
    """
    app = ctx.obj.app
    (_, home), *_ = stores_in_use(app)
    listed = [each for each in _named_entries(app, home) if each.beats]
    found = [each for each in listed if each.name == entry]
    found = found or [each for each in listed if entry in (each.entry.name, each.entry.name.rpartition("@")[0])]
    if len(found) != 1:
        why = (
            f"these are such: {', '.join(each.entry.name for each in found)}" if found else "no beat that runs lists it"
        )
        ctx.obj.error(f"{entry!r} names no one entry: {why}")
        ctx.exit(1)
    claim = _claim_for_the_beats(home, app, found[0].entry)
    told = {"entry": found[0].name, "task_id": claim.task_id, "run": claim.state.total_run_count, "key": claim.entry}
    if as_json:
        _print_json(told)
    else:
        ctx.obj.echo(f"a beat publishes {told['entry']!r}, run {told['run']}, as task {told['task_id']}")


def _claim_for_the_beats(store: Store, app: Any, entry: StoredEntry) -> Claim:
    """Claim a tick of now, and hand it over at once: to whichever beat is first, and knows the message to make of it.

    So the run is numbered like all others, and published at least once whatever dies now. Its state keeps the time of the
    last tick: the beats find the next one due when it was. Raises StoreUnavailable.
    """
    replica, state = f"command-{uuid()}", entry.state
    while True:
        due = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        claim = Claim(uuid(), entry.name, replace(state, total_run_count=state.total_run_count + 1), {"due": due})
        (refusal,) = store.claim(name_of(app), replica, [claim], ttl=AppOptions.read(app.conf).claim_ttl).refusals
        if refusal is None:
            break
        if refusal.total_run_count <= state.total_run_count:
            raise click.ClickException(f"too many ticks of {entry.name!r} wait to be published")
        state = refusal  # a beat was faster
    with contextlib.suppress(StoreUnavailable):  # then it is overdue when its ttl is over
        store.settle(name_of(app), replica, [], handed_over=[claim.task_id])
    return claim


def _listing(beats: Beats, entry: str) -> int:
    return sum(entry in beat.entries for beat in beats.replicas if beat.silent_for < ALIVE)


def _cut(cell: str, width: int) -> str:
    return cell if len(cell) <= width else f"{cell[: width - 1]}…"


def _print_json(told: Any) -> None:
    click.echo(json.dumps(told, indent=2))


def _print_table(ctx: click.Context, head: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    lines = [tuple(head), *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if sys.stdout.isatty():
        # the longest column gives way; a pipe gets all of it
        over = sum(widths) + 2 * (len(widths) - 1) - shutil.get_terminal_size().columns
        longest = widths.index(max(widths))
        widths[longest] = max(SHORTEST_COLUMN, widths[longest] - max(over, 0))
        lines = [tuple(_cut(cell, width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    for line in lines:
        ctx.obj.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())

"""What each view shows: functions of the request and the model, which return what its template writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from math import inf
from typing import Any, Final
from zlib import crc32

from starlette.exceptions import HTTPException
from starlette.requests import Request

from celery_lockbeat.beat.clocks import SKEW
from celery_lockbeat.contrib.definition import Definition
from celery_lockbeat.control.described import source_of
from celery_lockbeat.control.schedules import Backfill
from celery_lockbeat.insight.doctor.kinds import LEVELS
from celery_lockbeat.insight.lanes import timeline_of
from celery_lockbeat.insight.model import ON_ITS_WAY, SORTS, Model, Row
from celery_lockbeat.journal.ticks import OUTCOMES, Tick
from celery_lockbeat.membership.members import fields_of
from celery_lockbeat.options import LockOptions
from celery_lockbeat.schedules.policy import Policy
from celery_lockbeat.stores.base import ALIVE, LiveLock, Waiter
from celery_lockbeat.web import drawing
from celery_lockbeat.web.asking import SPANS, choice_of, count_of, name_of_entry, span_of, text_of, time_in
from celery_lockbeat.web.known import Health, Known
from celery_lockbeat.web.rows import (
    SHOWN,
    STATES,
    EntryRow,
    counts_of,
    entry_rows,
    errors_of,
    newest_ticks,
    run_rows,
    spreads_of,
    state_of,
)
from celery_lockbeat.web.words import clock, cut, expression_of, full, is_interval, seconds

__all__ = ["beats", "entry", "health", "locks", "runs", "schedules", "story"]

#: Runs that are listed at most.
RUNS: Final = 100

#: Keys that are listed at most, and of each so many who wait.
LOCKS: Final = 500
WAITERS: Final = 5

#: Up to so many entries the list is made anew at each change; of more only the rows that have changed.
FEW: Final = 60

#: Rows that are made at once.
AT_ONCE: Final = 50

#: Ticks that the timeline of an entry has at first, at least.
ENOUGH: Final = 20

#: What a run does that finds its key held.
IF_HELD: Final = {
    "skip": "the run is skipped",
    "fail": "the run fails",
    "wait": "the run waits in line",
    "wait_one": "one run waits in line, others are skipped",
    "wait_latest": "the latest run waits in line",
}

#: What becomes of ticks that nobody has fired in time.
CATCHUPS: Final = {
    "latest": "one run for all of them",
    "all": "each is run, the last {} at most",
    "none": "they are missed",
}

#: Next due moments that are listed.
NEXT: Final = 10


# -- schedules ---------------------------------------------------------------------------------------------------------


def schedules(known: Known, request: Request, now: datetime) -> Mapping[str, Any]:
    """Show a row for each entry."""
    wanted, state = text_of(request, "q"), choice_of(request, "state", ("", *STATES), "")
    sort = choice_of(request, "sort", SORTS, SORTS[0])
    number = count_of(request, "page", 1, 10_000)
    # the version that is in the browser, and of when; only asked with a part
    since = count_of(request, "part", 0, 2**40) if "part" in request.query_params else 0
    at = time_in(request, "at")
    with known.hub.model() as model:
        found = model.rows(sort, wanted, now)
        counts = counts_of(model, found, now)
        if state:
            found = [row for row in found if state_of(row, model.ticks(row), now) == state]
        shown = found[(number - 1) * SHOWN : number * SHOWN]
        is_whole = len(shown) <= FEW or not since
        # who becomes late does so by itself
        lately = inf if at is None else (now - at).total_seconds() + ON_ITS_WAY + 1
        rows = shown if is_whole else [row for row in shown if row.changed > since or 0 < row.overdue(now) <= lately]
        return {
            "title": "Schedules",
            "rows": _by_and_by(known, rows, now),
            "is_whole": is_whole,
            "version": model.version,
            "counts": counts,
            "known": len(model),
            "is_beatless": model.knows_beats and not any(silent_for < ALIVE for _, silent_for in model.replicas()),
            "found": len(found),
            "number": number,
            "pages": max(1, -(-len(found) // SHOWN)),
            "asked": {"q": wanted, "state": state, "sort": sort},
            "sorts": SORTS,
            "states": STATES,
            "has_journal": known.hub.has_journal,
        }


def _by_and_by(known: Known, rows: Sequence[Row], now: datetime) -> Iterator[EntryRow]:
    """Make rows while those before them are on their way. What is new meanwhile is in those that follow, and asked for again."""
    for start in range(0, len(rows), AT_ONCE):
        with known.hub.model() as model:
            made = entry_rows(model, rows[start : start + AT_ONCE], now, known.app.timezone)
        yield from made


# -- one entry ---------------------------------------------------------------------------------------------------------


def entry(known: Known, request: Request, now: datetime) -> Mapping[str, Any]:
    """Show what is known of an entry now."""
    name = name_of_entry(request)
    zone = known.app.timezone
    with known.hub.model() as model:
        flag = _row_of(model, name).flag_name
    definition, backfills = known.described(name, flag)
    with known.hub.model() as model:
        row = _row_of(model, name)
        ticks = model.ticks(row)
        when = row.schedule if definition is None else definition.schedule
        (shown,) = entry_rows(model, [row], now, zone)
        span = span_of(request, now, _default_span(ticks, now))
        late, took = spreads_of(ticks)
        policies = [
            *_ticks_told(when, _policy_of(known, name, when, definition), zone),
            *_policies(known, row.task),
            *(_told_of(definition, known) if definition is not None else []),
        ]
        under_way = [_backfill_told(each, zone) for each in backfills]
        return {
            "title": cut(name, 80),
            "row": shown,
            "told": crc32(repr((policies, under_way)).encode("utf-8", "backslashreplace")),
            "version": model.version,
            "name": name,
            "expression": "" if is_interval(when) else cut(expression_of(when)),
            "policies": policies,
            "dues": _next_dues(row, now, zone),
            "backfills": under_way,
            "can_cancel": not all(each.cancelled for each in backfills),
            "late": late,
            "took": took,
            "seconds": seconds,
            "story": {"name": name, **span.query()},
        }


def _row_of(model: Model, name: str) -> Row:
    row = model.row(name)
    if row is None:
        raise HTTPException(404, f"Nothing is known of an entry {cut(name, 80)!r}.")
    return row


def _default_span(ticks: Sequence[Tick], now: datetime) -> float:
    """Return the shortest span that has enough in it."""
    wanted = ticks[-ENOUGH:]
    if not wanted:
        return 3600.0
    back = (now - wanted[0].at).total_seconds()
    return float(next((span for span in SPANS if span >= back), max(SPANS)))


def _policy_of(known: Known, name: str, when: Any, kept: Definition | None) -> Policy:
    """Return the policy of an entry, as beats have it: its schedule's, or one beside it, and what settings say of it."""
    return known.plans.of(name, when, None if kept is None else kept.policy).policy


def _told_of(definition: Definition, known: Known) -> list[tuple[str, str]]:
    """Tell what it is: what its task is called with, where it is written, and who keeps it."""
    called = [*map(repr, definition.args), *(f"{name}={value!r}" for name, value in definition.kwargs.items())]
    told = {
        "called with": ", ".join(called),
        "written in": source_of(known.app.tasks.get(definition.task)),
        "kept in": definition.where,
        "enabled": None if definition.enabled else "no: it is due when it is enabled again",
    }
    return [(name, cut(known.clean(value))) for name, value in told.items() if value]


def _backfill_told(each: Backfill, zone: Any) -> str:
    what = "cancelled, " if each.cancelled else ""
    span = f"{full(each.since, zone)} to {full(each.until, zone)}"
    return f"{what}{each.published} of {each.total} ticks of {span} are published, asked for by {cut(each.who, 120)}"


def _ticks_told(when: Any, policy: Policy, zone: Any) -> list[tuple[str, str]]:
    """Tell what is said of its ticks, beside when they are due."""
    told = {
        "zone": _zone_of(when, zone),
        "jitter": seconds(policy.jitter) if policy.jitter else None,
        "from": policy.start and full(policy.start, zone),
        "until": policy.end and full(policy.end, zone),
        "runs at most": policy.max_runs,
        "ticks nobody fired": CATCHUPS.get(policy.catchup, policy.catchup).format(policy.catchup_limit),
        "of the last": policy.catchup_window and seconds(policy.catchup_window),
        "begun within": policy.start_within and seconds(policy.start_within),
        "paused after": policy.pause_after_failures and f"{policy.pause_after_failures} failures in a row",
        "at a cold start": "a tick at once" if policy.run_at_start else None,
    }
    return [(name, cut(value)) for name, value in told.items() if value]


def _zone_of(when: Any, zone: Any) -> str | None:
    """Return the zone of a schedule that has one of its own."""
    own = getattr(when, "timezone", None) or getattr(when, "tz", None)
    return None if own is None or str(own) == str(zone) else str(own)


def _policies(known: Known, task: str | None) -> Sequence[tuple[str, str]]:
    if task is None or task not in known.app.tasks:
        return [("task", f"{cut(task or 'unknown')}, which this process does not know")]
    return _lock_told(task, known.locks.get(task))


def _lock_told(task: str, lock: LockOptions | None) -> Sequence[tuple[str, str]]:
    if lock is None:
        return [("lock", "none: its runs may overlap, and are not in the journal")]
    key = lock.key if isinstance(lock.key, str) else "made by a function" if callable(lock.key) else task
    renewed = f"renewed every {seconds(lock.extends_every)}" if lock.auto_extend else "not renewed"
    told = [
        ("lock", cut(key)),
        ("lease", f"{seconds(lock.ttl)}, {renewed}"),
        ("if it is held", IF_HELD.get(lock.if_held, lock.if_held)),
        (
            "if it is lost",
            {"fail": "the run fails when it returns", "abort": "the run is stopped", "warn": "it is logged"}[
                lock.on_lost
            ],
        ),
    ]
    if lock.limit > 1:
        told.append(("runs at once", str(lock.limit)))
    if lock.retry_attempts:
        told.append(("tries", f"{lock.retry_attempts + 1}, {seconds(lock.retry_delay)} apart"))
    if lock.hold_at_least:
        told.append(("held at least", seconds(lock.hold_at_least)))
    if lock.expected_within is not None:
        told.append(("expected within", seconds(lock.expected_within)))
    return told


def _next_dues(row: Row, now: datetime, zone: Any) -> list[tuple[float, str]]:
    found: list[tuple[float, str]] = []
    due = row.next_due
    while due is not None and len(found) < NEXT:
        if due >= now - timedelta(seconds=60):
            found.append((due.timestamp(), full(due, zone)))
        elif not found and (now - due) > timedelta(days=1):
            return []  # nobody has fired it for long, and nobody knows what it does when it is
        due = row.plan.next(due)
    return found


def story(known: Known, request: Request, now: datetime) -> Mapping[str, Any]:
    """Show what an entry did in a time: its timeline, its runs, its errors."""
    name, zone = name_of_entry(request), known.app.timezone
    with known.hub.model() as model:
        span = span_of(request, now, _default_span(model.ticks(_row_of(model, name)), now))
    told = known.histories.ticks(name, span.begin) if known.hub.has_journal else []
    ticks = [tick for tick in told if span.begin <= tick.at <= span.end]
    # one that was due before may have run within
    around = [tick for tick in told if _touches(tick, span.begin, span.end)]
    # more than can be told apart are counted, and not laid out
    drawn = timeline_of(
        around if len(around) <= drawing.SHAPES else [], span.begin, span.end, known.histories.reach(), zone
    )
    late, took = spreads_of(ticks)
    counts = drawing.counted(ticks)
    link = partial(_story_link, name)
    return {
        "name": name,
        "span": span,
        "told_span": f"{full(span.begin, zone)} to {'now' if span.live else full(span.end, zone)}",
        "drawn": drawing.timeline(drawn, around),
        "reach": full(drawn.known, zone) if drawn.known > drawn.begin else "",
        "runs": run_rows(reversed(ticks[-RUNS:]), told, now, zone, known.clean),
        "more": max(0, len(ticks) - RUNS),
        "counts": {outcome: counts[outcome] for outcome in OUTCOMES if counts[outcome]},
        "late": late,
        "took": took,
        "errors": errors_of(ticks, now, zone, known.clean),
        "seconds": seconds,
        "presets": [
            (called, link(span={"span": str(length)}), span.live and abs(span.length.total_seconds() - length) < 1)
            for length, called in SPANS.items()
        ],
        "links": {
            "earlier": link(span=span.moved(-0.5, now).query()),
            "later": link(span=span.moved(0.5, now).query()),
            "closer": link(span=span.zoomed(0.5, now).query()),
            "wider": link(span=span.zoomed(2, now).query()),
        },
        "has_journal": known.hub.has_journal,
    }


def _touches(tick: Tick, begin: datetime, end: datetime) -> bool:
    last = tick.last
    until = last.ended if last is not None and last.ended is not None else tick.at
    if last is not None and last.status == "running":
        until = end
    return tick.at <= end and until >= begin


def _story_link(name: str, *, span: Mapping[str, str]) -> Mapping[str, str]:
    return {"name": name, **span}


# -- runs --------------------------------------------------------------------------------------------------------------


def runs(known: Known, request: Request, now: datetime) -> Mapping[str, Any]:
    """Show the newest runs of all entries."""
    wanted, outcome = text_of(request, "q"), choice_of(request, "outcome", ("", *OUTCOMES), "")
    zone, part = known.app.timezone, wanted.casefold()
    with known.hub.model() as model:
        rows = [row for row in model.all_rows() if row.records]

        def is_wanted(tick: Tick) -> bool:
            return (not outcome or tick.outcome == outcome) and (not part or _has(tick, part))

        ticks = newest_ticks(model, rows, is_wanted, RUNS)
        others = sorted(newest_ticks(model, rows, lambda _: True, 10 * RUNS), key=lambda tick: tick.at)
        return {
            "title": "Runs",
            "runs": run_rows(ticks, others, now, zone, known.clean),
            "version": model.version,
            "asked": {"q": wanted, "outcome": outcome},
            "outcomes": OUTCOMES,
            "is_read": model.is_read,
            "limit": RUNS,
            "has_journal": known.hub.has_journal,
        }


def _has(tick: Tick, part: str) -> bool:
    last = tick.last
    told = (tick.entry, tick.task_name, tick.task_id, tick.reason, last and last.worker, last and last.lock_key)
    return any(part in each.casefold() for each in told if each)


# -- locks -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HolderRow:
    """Who holds a lock: since when, and until when unless it is renewed."""

    holder: str
    #: as its store has it: what is shown is cut
    owner: str
    since: float
    since_at: str
    until: float
    token: int


@dataclass(frozen=True, slots=True)
class WaiterRow:
    """Who waits for a lock, since when, and whether it is its turn."""

    told: str
    since: float
    called: bool


@dataclass(frozen=True, slots=True)
class LockRow:
    """A key that is held: by whom, of whom there may be several, and who waits for it."""

    key: str
    #: as its store has it
    given: str
    store: str
    holders: Sequence[HolderRow]
    waiting: int
    line: Sequence[WaiterRow]


def locks(known: Known, request: Request, now: datetime) -> Mapping[str, Any]:
    """Show the locks that are held."""
    wanted, zone = text_of(request, "q"), known.app.timezone
    with known.hub.model() as model:
        by_key: dict[tuple[str, str], list[LiveLock]] = {}
        for store, those in model.locks_by_store().items():
            for lock in those:
                by_key.setdefault((store, lock.key), []).append(lock)
        part = wanted.casefold()
        found = [
            (store, key, sorted(those, key=lambda lock: lock.token))
            for (store, key), those in by_key.items()
            if part in key.casefold() or any(part in lock.description.casefold() for lock in those)
        ]
        # the token is made of the time: those first that are held for longest
        found.sort(key=lambda each: each[2][0].token)
        return {
            "title": "Locks",
            "rows": [
                LockRow(
                    key=cut(key),
                    given=key,
                    store=cut(store, 80),
                    holders=[_holder_row(lock, model.remaining(store, lock), now, zone) for lock in those],
                    waiting=those[0].waiting,
                    line=[_waiter_row(each) for each in model.line(store, key)[:WAITERS]],
                )
                for store, key, those in found[:LOCKS]
            ],
            "version": model.version,
            "held": len(found),
            "total": len(by_key),
            "has_stores": len(model.locks_by_store()) > 1,
            "asked": {"q": wanted},
        }


def _holder_row(lock: LiveLock, remaining: float, now: datetime, zone: Any) -> HolderRow:
    return HolderRow(
        holder=cut(lock.description or lock.holder or "nobody: it is kept held after its run"),
        owner=lock.holder,
        since=lock.held_since.timestamp(),
        since_at=clock(lock.held_since, now, zone),
        until=now.timestamp() + remaining,
        token=lock.token,
    )


def _waiter_row(waiter: Waiter) -> WaiterRow:
    return WaiterRow(cut(waiter.description or waiter.ticket), waiter.waiting_since.timestamp(), waiter.called)


# -- beats -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BeatRow:
    """A beat: whether it lives, what it lists, its share of the last ticks, and what it says of itself."""

    name: str
    is_alive: bool
    heard: float
    silent_for: float
    entries: int
    share: float
    ticks: int
    host: str
    version: str
    scheduler: str
    clock: str
    is_wrong: bool


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker that has locked tasks."""

    name: str
    is_alive: bool
    heard: float
    host: str
    version: str


#: Seconds after which a worker that announces itself every five counts as gone.
GONE: Final = 30.0


def beats(known: Known, request: Request, now: datetime) -> Mapping[str, Any]:  # noqa: ARG001  as the others
    """Show the beats, and the workers beside them."""
    with known.hub.model() as model:
        told = {each.name: (fields_of(each), each.silent_for) for each in model.members()}
        shares = {share.name: share for share in model.shares()}
        silent = {beat.name: (seconds_, len(beat.entries)) for beat, seconds_ in model.replicas()}
        found = [
            _beat_row(name, told.get(name), silent.get(name), shares.get(name), model.clock_of(name), now)
            for name in {*shares, *silent}
        ]
        rows = sorted(found, key=lambda row: (not row.is_alive, -row.share, row.name))
        workers = [
            WorkerRow(
                name=cut(fields.get("node") or name, 80),
                is_alive=silent_for < GONE,
                heard=now.timestamp() - silent_for,
                host=f"{cut(fields.get('host', '?'), 80)} pid {cut(fields.get('pid', '?'), 12)}",
                version=cut(fields.get("version", "?"), 40),
            )
            for name, (fields, silent_for) in told.items()
            if fields.get("kind") == "worker"
        ]
        waiting, overdue = model.waiting()
        # when the next one may be taken for dead
        soonest = min((ALIVE - row.silent_for for row in rows if row.is_alive), default=None)
        return {
            "title": "Beats",
            "rows": rows,
            "workers": sorted(workers, key=lambda row: (not row.is_alive, row.name)),
            "version": model.version,
            "is_known": model.knows_beats,
            "waiting": waiting,
            "overdue": overdue,
            "again_in": max(0.5, soonest + 0.1) if soonest is not None else None,
        }


def _beat_row(
    name: str,
    told: tuple[Mapping[str, Any], float] | None,
    silent: tuple[float, int] | None,
    share: Any,
    ahead: float | None,
    now: datetime,
) -> BeatRow:
    silent_for, entries = silent if silent is not None else (float("inf"), 0)
    fields, announced_for = told if told is not None else ({}, float("inf"))
    # another beat takes one that is gone off the list; what it said of itself last is there for longer
    heard_for = min(silent_for, announced_for)
    offset = "" if ahead is None else f"{ahead:+.1f} s" if abs(ahead) >= 0.05 else "right"  # noqa: PLR2004  what would be 0.0
    return BeatRow(
        name=cut(name, 120),
        is_alive=silent_for < ALIVE,
        heard=now.timestamp() - heard_for if heard_for < float("inf") else 0.0,
        silent_for=silent_for,
        entries=entries,
        share=share.share if share else 0.0,
        ticks=share.ticks if share else 0,
        host=f"{cut(fields['host'], 80)} pid {cut(fields.get('pid', '?'), 12)}" if "host" in fields else "",
        version=cut(fields.get("version", ""), 40),
        scheduler=cut(str(fields.get("scheduler", "")).rpartition(":")[2], 60),
        clock=offset,
        is_wrong=ahead is not None and abs(ahead) > SKEW,
    )


# -- health ------------------------------------------------------------------------------------------------------------


def health(known: Known, request: Request, now: datetime) -> Mapping[str, Any]:  # noqa: ARG001  as the others
    """Show what the doctor finds."""
    known.health.look()
    found, at = known.health.found, known.health.at
    return {
        "title": "Health",
        "findings": found,
        "levels": {level: sum(each["level"] == level for each in found) for level in LEVELS},
        "checked": clock(at, now, known.app.timezone) if at is not None else "",
        "version": int(at.timestamp()) if at is not None else 0,
        "again_in": Health.KEPT if at is not None else 0.5,
    }

"""What the page shows of entries and runs: the model and the journal, made into what a template only has to write."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone, tzinfo
from hashlib import blake2s
from heapq import nlargest
from itertools import chain
from typing import Any, Final

from markupsafe import Markup

from celery_lockbeat.insight.model import Model, Row
from celery_lockbeat.insight.said import why_of
from celery_lockbeat.journal.records import Said
from celery_lockbeat.journal.sentences import Writing, sentence_of
from celery_lockbeat.journal.statistics import Spread, spread_of
from celery_lockbeat.journal.ticks import Attempt, Tick
from celery_lockbeat.observe.vocabulary import took
from celery_lockbeat.stores.base import Flag
from celery_lockbeat.web import drawing
from celery_lockbeat.web.words import clock, cut, full, same_but_for_numbers, seconds, words_of

__all__ = [
    "SHOWN",
    "STATES",
    "EntryRow",
    "ErrorGroup",
    "RunRow",
    "counts_of",
    "entry_rows",
    "errors_of",
    "newest_ticks",
    "run_rows",
    "spreads_of",
    "state_of",
]

#: Runs of an entry in its strip, and by which it is judged.
STRIP: Final = 30

#: Rows on a page at most.
SHOWN: Final = 1_000

#: What an entry may be like, the worst first, and how that is said.
STATES: Final = {
    "paused": "paused",
    "late": "late",
    "nobeat": "no beat",
    "failing": "failing",
    "missed": "missed",
    "skipped": "skipped",
    "running": "running",
    "ok": "fine",
    "new": "no run yet",
}

#: The sign beside each.
_SIGNS: Final = {
    "paused": "paused",
    "late": "missed",
    "nobeat": "died",
    "failing": "failed",
    "missed": "missed",
    "skipped": "skipped",
    "running": "running",
    "ok": "succeeded",
    "new": "published",
}

_OF_OUTCOME: Final = {
    "failed": "failing",
    "died": "failing",
    "missed": "missed",
    "skipped": "skipped",
    "running": "running",
}


def state_of(row: Row, ticks: Sequence[Tick], now: datetime) -> str:
    """Say what an entry is like now: one of :data:`STATES`."""
    if row.is_paused:
        return "paused"
    if row.overdue(now):
        return "late"
    if row.schedule is not None and not row.listed:
        return "nobeat"
    # what has only been published says nothing of how it goes
    last = next((tick.outcome for tick in reversed(ticks) if tick.outcome not in ("queued", "published")), None)
    if last == "running":
        before = next((tick.outcome for tick in reversed(ticks) if tick.outcome in ("succeeded", "failed", "died")), "")
        return "failing" if before in ("failed", "died") else "running"
    if last is None:
        return "ok" if ticks else "new"
    return _OF_OUTCOME.get(last, "ok")


@dataclass(frozen=True, slots=True)
class EntryRow:
    """An entry in the list of schedules."""

    #: of its element in the page, and in which version of the model it was last another
    id: str
    version: str
    name: str
    shown: str
    task: str
    words: str
    state: str
    state_told: str
    #: by whom, since when and why, if it is
    paused: str
    sign: Markup
    #: when it is due next, in seconds since the epoch, and as text
    due: float | None
    due_at: str
    listed: int
    strip: Markup
    late: str
    took: str
    trend: Markup
    worker: str
    last_at: str


def entry_rows(model: Model, rows: Iterable[Row], now: datetime, zone: tzinfo) -> list[EntryRow]:
    """Make the rows of entries."""
    return [_entry_row(model, row, now, zone) for row in rows]


def _entry_row(model: Model, row: Row, now: datetime, zone: tzinfo) -> EntryRow:
    ticks = model.ticks(row)
    state = state_of(row, ticks, now)
    # of a thousand rows few are others than a second ago
    made_of = row.changed, state, str(zone)
    if row.drawn is None or row.drawn[0] != made_of:
        row.drawn = made_of, _drawn(row, ticks, state, zone)
    drawn: EntryRow = row.drawn[1]
    return drawn


def _drawn(row: Row, ticks: Sequence[Tick], state: str, zone: tzinfo) -> EntryRow:
    last = next((tick for tick in reversed(ticks) if tick.last is not None), None)
    lasted = [
        tick.last.took for tick in ticks if tick.last and tick.last.took is not None and tick.last.status != "skipped"
    ]
    due = row.next_due
    return EntryRow(
        id=_id_of("e", row.name),
        version=f"{row.changed}-{state}",
        name=row.name,
        shown=cut(row.name, 120),
        task=cut(row.task or "", 120),
        words=words_of(row.schedule) if row.schedule is not None else "",
        state=state,
        state_told=STATES[state],
        paused=cut(_paused(row.flag, zone), 600) if row.flag is not None and row.flag.paused else "",
        sign=drawing.mark(_SIGNS[state]),
        due=due.timestamp() if due is not None else None,
        due_at=full(due, zone) if due is not None else "",
        listed=row.listed,
        strip=drawing.strip([tick.outcome for tick in ticks[-STRIP:]]),
        late=seconds(row.late),
        took=seconds(lasted[-1]) if lasted else "",
        trend=drawing.trend(lasted[-STRIP:]),
        worker=cut((last and last.last and last.last.worker) or "", 80),
        last_at=full(last.at, zone) if last is not None else "",
    )


def _paused(flag: Flag, zone: tzinfo) -> str:
    """Say by whom, since when, until when and why an entry is paused, and what that has passed over."""
    said = Said.read(flag.told)
    parts = [f"Paused by {said.who or 'somebody'}"]
    with contextlib.suppress(ValueError):
        parts.append(f" at {full(datetime.fromisoformat(said.at or ''), zone)}")
    if flag.until is not None:
        with contextlib.suppress(ValueError, OverflowError, OSError):
            parts.append(f", until {full(datetime.fromtimestamp(flag.until, timezone.utc), zone)}")
    passed = f" {flag.passed} ticks have been passed over." if flag.passed else ""
    return f"{''.join(parts)}{f': {said.note}' if said.note else ''}.{passed}"


def _id_of(kind: str, *parts: object) -> str:
    """Return a short name of something that it has in each process."""
    return kind + blake2s(repr(parts).encode("utf-8", "backslashreplace"), digest_size=6).hexdigest()


def counts_of(model: Model, rows: Iterable[Row], now: datetime) -> Counter[str]:
    """Count entries by what they are like."""
    return Counter(state_of(row, model.ticks(row), now) for row in rows)


# -- runs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunRow:
    """A tick, or a run that no tick has asked for: what became of it, and all that is known of it."""

    id: str
    #: another where anything of it is
    version: str
    entry: str
    shown: str
    outcome: str
    sign: Markup
    at: str
    at_full: str
    late: str
    took: str
    #: since when it has been running, in seconds since the epoch
    since: float | None
    worker: str
    why: str
    sentence: str
    facts: Sequence[tuple[str, str]]


def newest_ticks(model: Model, rows: Iterable[Row], wanted: Any, limit: int) -> list[Tick]:
    """Return the newest ticks of some rows that are ``wanted``, newest first."""
    return nlargest(
        limit, (tick for tick in chain.from_iterable(map(model.ticks, rows)) if wanted(tick)), key=lambda tick: tick.at
    )


def run_rows(
    ticks: Iterable[Tick], others: Sequence[Tick], now: datetime, zone: tzinfo, clean: Callable[[object], str]
) -> list[RunRow]:
    """Make the rows of ticks; ``others``, in the order of time, tell who had their locks. ``clean``: of passwords."""
    write = Writing(zone, took)
    return [_run_row(tick, others, write, now, zone, clean) for tick in ticks]


def _run_row(
    tick: Tick, others: Sequence[Tick], write: Writing, now: datetime, zone: tzinfo, clean: Callable[[object], str]
) -> RunRow:
    last = tick.last
    ran = last is not None and last.status != "skipped"
    since = last.started.timestamp() if last is not None and last.status == "running" and last.started else None
    facts = [(name, cut(clean(value))) for name, value in _facts(tick, last, zone)]
    sentence = cut(clean(_sentence(tick, others, write)), 1_000)
    return RunRow(
        id=_id_of("r", tick.entry, tick.task_id or (last and last.execution_id), tick.at.timestamp()),
        version=_id_of("", tick.outcome, sentence, facts),
        entry=tick.entry or "",
        shown=cut(tick.entry or tick.task_name or "?", 120),
        outcome=tick.outcome,
        sign=drawing.mark(tick.outcome),
        at=clock(tick.at, now, zone),
        at_full=full(tick.at, zone),
        late=seconds(tick.late) if tick.late is not None and not tick.is_missed else "",
        took=seconds(last.took) if last is not None and ran else "",
        since=since,
        worker=cut((last and last.worker) or "", 80),
        why=cut(clean(_why(tick)), 160),
        sentence=sentence,
        facts=facts,
    )


def _why(tick: Tick) -> str:
    if tick.is_missed and tick.count > 1:
        return f"{tick.count} ticks: {tick.why or 'nobody has recorded why'}"
    return why_of(tick)


def _sentence(tick: Tick, others: Sequence[Tick], write: Writing) -> str:
    if tick.entry is not None:
        return sentence_of(tick, others, write)
    why = _why(tick)
    return f"A run of {tick.task_name} that no tick has asked for: {tick.outcome}{f', {why}' if why else ''}."


def _facts(tick: Tick, last: Attempt | None, zone: tzinfo) -> Iterable[tuple[str, str]]:
    told: dict[str, Any] = {
        "due": tick.due and full(tick.due, zone),
        "published": tick.published and full(tick.published, zone),
        "by beat": ", ".join(tick.beats),
        "taken over": "yes, from a beat that had claimed it" if tick.taken_over else None,
        "run": tick.run,
        "task": tick.task_name,
        "task id": tick.task_id,
    }
    if last is not None:
        told |= {
            "worker": last.worker,
            "begun": last.started and full(last.started, zone),
            "ended": last.ended and full(last.ended, zone),
            "attempts": len([each for each in tick.attempts if not each.is_copy]) or None,
            "lock": last.lock_key,
            "token": last.token,
            "holder": last.holder,
            "lock lost": last.lost_at and full(last.lost_at, zone),
            "error": last.error,
        }
    return ((name, str(value)) for name, value in told.items() if value)


# -- errors ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Failures whose errors differ by numbers alone: how many, from when until when, and what the last one said."""

    count: int
    first: str
    last: str
    example: str


def errors_of(
    ticks: Iterable[Tick], now: datetime, zone: tzinfo, clean: Callable[[object], str], at_most: int = 20
) -> list[ErrorGroup]:
    """Group the failures among ticks in the order of time, the most frequent first."""
    groups: dict[str, list[tuple[datetime, str]]] = {}
    for tick in ticks:
        for each in tick.attempts:
            if each.status in ("failed", "died", "retry"):
                said = each.error or each.reason or f"{each.status}, and nobody has recorded why"
                groups.setdefault(same_but_for_numbers(said), []).append((each.ended or tick.at, said))
    found = [
        ErrorGroup(len(those), clock(those[0][0], now, zone), clock(those[-1][0], now, zone), cut(clean(those[-1][1])))
        for those in groups.values()
    ]
    return sorted(found, key=lambda group: -group.count)[:at_most]


def spreads_of(ticks: Iterable[Tick]) -> tuple[Spread | None, Spread | None]:
    """Return how late ticks were, and how long their runs took."""
    late: list[float] = []
    lasted: list[float] = []
    for tick in ticks:
        last = tick.last
        if tick.late is not None and not tick.is_missed:
            late.append(max(tick.late, 0.0))
        if last is not None and last.took and last.status != "skipped":
            lasted.append(last.took)
    return spread_of(late), spread_of(lasted)

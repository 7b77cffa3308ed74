"""What a timeline shows: a lane for each entry, with bars for what ran and marks for what did not.

Promises: however much the journal has, there are at most :data:`LANES` lanes and :data:`SHAPES` bars and marks; what was left out
is said. Nothing is drawn here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from celery_lockbeat.insight.said import why_skipped
from celery_lockbeat.journal.ticks import Attempt, Tick
from celery_lockbeat.observe.vocabulary import took

__all__ = ["LANES", "SHAPES", "Bar", "Lane", "Mark", "Timeline", "axis_of", "timeline_of"]

#: Lanes, and bars and marks in all of them, at most.
LANES: Final = 200
SHAPES: Final = 12_000

#: What nobody would miss, if there is not room for all.
_UNEVENTFUL: Final = frozenset({"succeeded", "published", "queued", "running"})

_OUTCOME_OF: Final = {"success": "succeeded", "retry": "failed"}

_STEPS: Final = (
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    10800,
    21600,
    43200,
    86400,
    172800,
    604800,
)


@dataclass(frozen=True, slots=True)
class Bar:
    """What ran from one time to another. ``title`` tells all of it."""

    begin: datetime
    end: datetime
    outcome: str
    title: str


@dataclass(frozen=True, slots=True)
class Mark:
    """What happened at a time: an outcome without a run (skipped, missed, queued, published), ``lost`` or ``died``.

    ``since``: of ticks that were missed together, when the last one before them was due.
    """

    at: datetime
    kind: str
    title: str
    since: datetime | None = None


@dataclass(slots=True)
class Lane:
    """One entry, or a task whose runs no tick has asked for."""

    name: str
    bars: list[Bar] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def summary(self) -> str:
        """Count what became of its ticks."""
        return ", ".join(f"{count} {outcome}" for outcome, count in self.counts.most_common())


@dataclass(frozen=True, slots=True)
class Timeline:
    """The lanes between two times. The journal tells nothing of the time before ``known``."""

    begin: datetime
    end: datetime
    known: datetime
    lanes: Sequence[Lane]
    left_out: Sequence[str]
    zone: Any

    @property
    def seconds(self) -> float:
        """How long it is."""
        return max(1.0, (self.end - self.begin).total_seconds())

    def clock(self, at: datetime) -> str:
        """Write a time with its zone."""
        return at.astimezone(self.zone).strftime("%Y-%m-%d %H:%M:%S %Z")


def timeline_of(ticks: Sequence[Tick], begin: datetime, end: datetime, reach: datetime | None, zone: Any) -> Timeline:
    """Lay out ticks, in the order of time."""
    left_out = []
    kept = list(ticks)
    if len(kept) > SHAPES:
        left_out.append(f"{len(kept) - SHAPES} older ticks and runs are left out: there are more than {SHAPES}")
        kept = kept[-SHAPES:]
    lanes: dict[str, Lane] = {}
    for tick in kept:
        name = tick.entry or tick.task_name or "?"
        lane = lanes.setdefault(name, Lane(name))
        lane.counts[tick.outcome] += tick.count
        _lay(tick, lane, end, zone)
    shown = sorted(lanes.values(), key=_trouble, reverse=True)
    if len(shown) > LANES:
        quiet = sum(not _trouble(lane)[0] for lane in shown[LANES:])
        which = "in all of which nothing went wrong" if quiet == len(shown) - LANES else "with the least trouble"
        left_out.append(f"{len(shown) - LANES} of {len(shown)} entries are left out, {which}")
        shown = shown[:LANES]
    known = begin if reach is None else max(begin, min(reach, end))
    return Timeline(begin, end, known, sorted(shown, key=lambda lane: lane.name), left_out, zone)


def _trouble(lane: Lane) -> tuple[int, int]:
    count = sum(lane.counts.values())
    return count - sum(lane.counts[outcome] for outcome in _UNEVENTFUL), count


def _lay(tick: Tick, lane: Lane, end: datetime, zone: Any) -> None:
    told = _tick_told(tick, zone)
    for attempt in tick.attempts:
        outcome = _OUTCOME_OF.get(attempt.status, attempt.status)
        title = f"{told}\n{_attempt_told(attempt, zone)}"
        if attempt.started is not None and attempt.status != "skipped":
            until = attempt.ended or (end if attempt.status == "running" else attempt.started)
            lane.bars.append(Bar(attempt.started, max(until, attempt.started), outcome, title))
        elif attempt.ended is not None:
            lane.marks.append(Mark(attempt.ended, outcome, title))
        if attempt.status == "died" and attempt.ended is not None:
            lane.marks.append(Mark(attempt.ended, "died", title))
        if attempt.lost_at is not None:
            lane.marks.append(Mark(attempt.lost_at, "lost", f"{told}\nits lock was lost"))
    if not tick.attempts:
        why = f"\n{tick.why}" if tick.why else ""
        lane.marks.append(Mark(tick.at, tick.outcome, f"{told}{why}", tick.due_after if tick.is_missed else None))


def _tick_told(tick: Tick, zone: Any) -> str:
    if tick.is_missed and tick.count > 1:
        return f"{tick.entry}: {tick.count} ticks missed, the last of {_clock(tick.at, zone)}"
    due = f", due {_clock(tick.due, zone)}" if tick.due is not None else ""
    late = f", {took(round(tick.late, 1))} late" if tick.late is not None and tick.late >= 0.1 else ""  # noqa: PLR2004  noise
    by = f", published by {tick.beats[-1]}" if tick.beats and not tick.is_missed else ""
    over = ", taken over" if tick.taken_over else ""
    return f"{tick.entry or tick.task_name}: {tick.outcome}{due}{late}{by}{over}"


def _attempt_told(attempt: Attempt, zone: Any) -> str:
    outcome = "to be tried again" if attempt.status == "retry" else _OUTCOME_OF.get(attempt.status, attempt.status)
    where = f" on {attempt.worker}" if attempt.worker else ""
    if attempt.status == "skipped":
        said = why_skipped(attempt)
        return f"skipped{where}{f': {said}' if said else ''}"
    began = f", begun {_clock(attempt.started, zone)}" if attempt.started is not None else ""
    lasted = f", took {took(attempt.took)}" if attempt.took is not None else ""
    why = attempt.error or attempt.reason or attempt.overdue
    return f"{outcome}{where}{began}{lasted}{f': {why}' if why else ''}"


def _clock(at: datetime, zone: Any) -> str:
    return at.astimezone(zone).strftime("%H:%M:%S")


def axis_of(timeline: Timeline, at_most: int) -> Iterator[tuple[datetime, str]]:
    """Yield the times of the axis, and how each is written: in the app's timezone, at full minutes and hours of it."""
    wanted = timeline.seconds / max(1, at_most)
    step = next((step for step in _STEPS if step >= wanted), _STEPS[-1])
    while timeline.seconds / step > at_most:
        step *= 2
    local = timeline.begin.astimezone(timeline.zone)
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
    into = (local - midnight).total_seconds()
    at = timeline.begin + timedelta(seconds=-into % step if into % step else 0)
    day = None
    while at <= timeline.end:
        shown = at.astimezone(timeline.zone)
        text = shown.strftime("%m-%d" if step >= 86400 else "%H:%M" if step >= 60 else "%H:%M:%S")  # noqa: PLR2004  days, minutes
        if step < 86400 and day not in (None, shown.date()):  # noqa: PLR2004  days
            text = shown.strftime("%m-%d %H:%M")
        day = shown.date()
        yield at, text
        at += timedelta(seconds=step)


def some(lanes: Iterable[Lane]) -> int:
    """Count the bars and marks."""
    return sum(len(lane.bars) + len(lane.marks) for lane in lanes)

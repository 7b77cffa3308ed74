"""What is drawn: the strip of an entry's last runs, the trend of their durations, and its timeline, as SVG within a page.

Promises: each outcome has a shape of its own, so nothing depends on a colour; how it is painted is the style sheet's alone, for the
page's Content-Security-Policy allows no style within it. What users have named is escaped. A timeline has at most :data:`SHAPES`
shapes, and columns of counts where there were more; places are parts of its width, so it is sharp at any.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from markupsafe import Markup, escape

from celery_lockbeat.insight.lanes import Bar, Lane, Mark, Timeline, axis_of
from celery_lockbeat.insight.plain import printable
from celery_lockbeat.journal.ticks import OUTCOMES, Tick

__all__ = ["COLUMNS", "SHAPES", "counted", "legend", "mark", "strip", "timeline", "trend"]

#: Bars and marks of a timeline at most, and the columns that there are instead.
SHAPES: Final = 400
COLUMNS: Final = 120

#: A cell of a strip, and its height.
CELL: Final = 8
HIGH: Final = 18

#: Each outcome in a cell of 6 by 18, from ``x`` on; ``c`` is its middle.
_SHAPES: Final[Mapping[str, str]] = {
    "succeeded": "M{x} 7h6v11h-6z",
    "failed": "M{x} 0h6v11h-6zM{x} 13.5h6v4.5h-6z",
    "died": "M{x} 4l6 13m0-13l-6 13",
    "skipped": "M{c} 6.5l3 5l-3 5l-3-5z",
    "missed": "M{x} 7h6l-3 10z",
    "paused": "M{x} 7h2v10h-2zm4 0h2v10h-2z",
    "running": "M{x} 5l6 6.5l-6 6.5z",
    "queued": "M{x} 7h6v2h-6zm0 4.5h6v2h-6zm0 4.5h6v2h-6z",
    "published": "M{x} 14h6v4h-6z",
}

#: In a text none is higher than others.
_IN_TEXT: Final[Mapping[str, str]] = {
    "failed": "M{x} 4.5h6v8h-6zM{x} 14.5h6v3.5h-6z",
    "published": "M{x} 10h6v4h-6z",
}

#: Marks of a timeline around a point, each 12 wide.
_MARKS: Final[Mapping[str, str]] = {
    "skipped": "M0-6l6 6l-6 6l-6-6z",
    "missed": "M-6-6h12l-6 12z",
    "paused": "M-4-5h2.5v10h-2.5zm5.5 0h2.5v10h-2.5z",
    "lost": "M0-6.5a6.5 6.5 0 1 0 .01 0zM0-3.5v4m0 2v1.5",
    "died": "M-5-6l10 12m0-12l-10 12",
    "failed": "M-2.5-7h5v9h-5zm0 11h5v4h-5z",
    "published": "M-2.5-2.5h5v5h-5z",
    "queued": "M-3-6h6v3h-6zm0 4.5h6v3h-6zm0 4.5h6v3h-6z",
    "running": "M-4-6l9 6l-9 6z",
    "succeeded": "M-2.5-5h5v10h-5z",
}

#: A timeline: rows of runs beside each other, and where they and the axis are.
ROWS: Final = 3
TOP: Final = 8
ROW: Final = 20
AXIS: Final = 22
MARKED: Final = 18
HIGHEST: Final = 30

#: What went wrong is on top of a column, and is not too small to be seen.
_FROM_BELOW: Final = ("succeeded", "published", "running", "queued", "paused", "skipped", "missed", "died", "failed")
_SMALLEST: Final = 3.0

_TIMES: Final = 10


# -- strips ------------------------------------------------------------------------------------------------------------


def strip(outcomes: Sequence[str], cells: int = 30) -> Markup:
    """Draw what became of the last ticks, the newest at the right: a path for each kind, however many there are."""
    shown = outcomes[-cells:]
    paths: dict[str, list[str]] = {}
    for number, outcome in enumerate(shown, cells - len(shown)):
        paths.setdefault(outcome, []).append(_SHAPES[outcome].format(x=number * CELL, c=number * CELL + 3))
    drawn = Markup("").join(
        Markup('<path class="o-{}" d="{}"/>').format(outcome, "".join(parts)) for outcome, parts in paths.items()
    )
    return Markup('<svg class="strip" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        cells * CELL - 2, HIGH, _strip_told(shown), drawn
    )


def _strip_told(outcomes: Sequence[str]) -> str:
    if not outcomes:
        return "no runs yet"
    counts = ", ".join(f"{count} {outcome}" for outcome, count in Counter(outcomes).most_common())
    return f"the last {len(outcomes)}: {counts}; the newest {outcomes[-1]}"


def mark(outcome: str) -> Markup:
    """Draw the sign of an outcome, which stands before its name."""
    drawn = _IN_TEXT.get(outcome, _SHAPES[outcome]).format(x=0, c=3)
    return Markup('<svg class="mark" viewBox="-1 3 8 18" aria-hidden="true"><path class="o-{}" d="{}"/></svg>').format(
        outcome, drawn
    )


def legend() -> Markup:
    """Explain the signs."""
    return Markup("").join(Markup("<span>{}{}</span>").format(mark(each), each) for each in OUTCOMES)


def trend(seconds: Sequence[float], cells: int = 30) -> Markup:
    """Draw how long the last runs took, the newest at the right."""
    shown = list(seconds)[-cells:]
    if len(shown) < 2:  # noqa: PLR2004  a line has two ends
        return Markup("")
    largest = max(shown) or 1.0
    points = " ".join(
        f"{(cells - len(shown) + number) * 2} {15 - 13 * value / largest:.1f}" for number, value in enumerate(shown)
    )
    return Markup('<svg class="trend" viewBox="0 0 {} 16" aria-hidden="true"><polyline points="{}"/></svg>').format(
        cells * 2 - 2, points
    )


# -- the timeline of one entry -----------------------------------------------------------------------------------------


def timeline(drawn: Timeline, ticks: Sequence[Tick]) -> Markup:
    """Draw the only lane of a timeline, or columns that count ``ticks``, where it has more shapes than one can tell apart."""
    lane = drawn.lanes[0] if drawn.lanes else Lane("")
    as_columns = len(ticks) > SHAPES or len(lane.bars) + len(lane.marks) > SHAPES or bool(drawn.left_out)
    bottom = TOP + ROWS * ROW
    parts = [*_axis(drawn, bottom), *(_columns(drawn, ticks, bottom) if as_columns else _shapes(drawn, lane))]
    told = ", ".join(f"{count} {outcome}" for outcome, count in counted(ticks).most_common()) or "nothing"
    label = f"{drawn.clock(drawn.begin)} to {drawn.clock(drawn.end)}: {told}"
    return Markup(
        '<svg class="timeline" role="img" aria-label="{}" height="{}" data-begin="{}" data-end="{}">{}{}</svg>'
    ).format(
        label,
        bottom + AXIS,
        f"{drawn.begin.timestamp():.3f}",
        f"{drawn.end.timestamp():.3f}",
        _PATTERNS,
        Markup("").join(parts),
    )


def counted(ticks: Iterable[Tick]) -> Counter[str]:
    """Count ticks by what became of them."""
    counts: Counter[str] = Counter()
    for tick in ticks:
        counts[tick.outcome] += tick.count
    return counts


_PATTERNS: Final = Markup(
    '<defs><pattern id="hatch-failed" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect class="h-ground" width="5" height="5"/><rect class="h-failed" width="2.6" height="5"/></pattern>'
    '<pattern id="hatch-died" width="4" height="4" patternUnits="userSpaceOnUse">'
    '<rect class="h-ground" width="4" height="4"/><rect class="h-died" width="2" height="2"/>'
    '<rect class="h-died" x="2" y="2" width="2" height="2"/></pattern>'
    '<pattern id="hatch-unknown" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(-45)">'
    '<rect class="h-unknown" width="1" height="8"/></pattern></defs>'
)

_HATCHED: Final = {"failed": Markup(' fill="url(#hatch-failed)"'), "died": Markup(' fill="url(#hatch-died)"')}


def _axis(drawn: Timeline, bottom: int) -> Iterator[Markup]:
    if drawn.known > drawn.begin:
        yield Markup('<rect x="0" y="0" width="{}%" height="{}" fill="url(#hatch-unknown)"/>').format(
            _part(drawn, drawn.known), bottom
        )
    yield Markup('<line class="axis" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(bottom)
    for at, text in axis_of(drawn, _TIMES):
        x = _part(drawn, at)
        place = "first" if x < 4 else "last" if x > 96 else "middle"  # noqa: PLR2004  parts of 100 that a label takes
        yield Markup('<line class="grid" x1="{0}%" x2="{0}%" y1="0" y2="{1}"/>').format(x, bottom)
        yield Markup('<text class="{}" x="{}%" y="{}">{}</text>').format(place, x, bottom + 15, text)


def _rows_of(bars: Sequence[Bar]) -> list[tuple[Bar, int]]:
    """Put runs that were beside each other below each other, in :data:`ROWS` rows at most."""
    ends: list[datetime] = []
    placed = []
    for bar in sorted(bars, key=lambda bar: bar.begin):
        row = next((row for row, busy in enumerate(ends) if busy <= bar.begin), len(ends))
        ends[row : row + 1] = [bar.end]
        placed.append((bar, min(row, ROWS - 1)))
    return placed


def _shapes(drawn: Timeline, lane: Lane) -> Iterator[Markup]:
    placed = _rows_of(lane.bars)
    # the fewer rows, the higher; marks have a place of their own below
    room = ROW * ROWS - (MARKED if lane.marks else 0)
    pitch = room / (1 + max((row for _, row in placed), default=0))
    high = min(pitch - 6, HIGHEST)
    for bar, row in placed:
        begin, end = _part(drawn, bar.begin), _part(drawn, bar.end)
        y = TOP + pitch * row + (pitch - high) / 2
        taller = 2 if bar.outcome in _HATCHED else 0
        yield Markup('<g><title>{}</title><rect class="b-{}" x="{}%" y="{}" width="{}%" height="{}"{}/></g>').format(
            _plain(bar.title),
            bar.outcome,
            begin,
            round(y - taller, 1),
            round(max(end - begin, 0.08), 3),
            round(high + 2 * taller, 1),
            _HATCHED.get(bar.outcome, Markup("")),
        )
    for each in lane.marks:
        yield _mark(drawn, each)


def _mark(drawn: Timeline, each: Mark) -> Markup:
    y = TOP + ROW * ROWS - 9
    x = _part(drawn, each.at)
    since = Markup("")
    if each.since is not None:
        since = Markup('<line class="since" x1="{}%" x2="{}%" y1="{}" y2="{}"/>').format(
            _part(drawn, each.since), x, y, y
        )
    return Markup('{}<svg x="{}%" y="{}" overflow="visible"><title>{}</title><path class="m-{}" d="{}"/></svg>').format(
        since, x, y, _plain(each.title), each.kind, _MARKS[each.kind]
    )


def _columns(drawn: Timeline, ticks: Sequence[Tick], bottom: int) -> Iterator[Markup]:
    width = drawn.seconds / COLUMNS
    columns: dict[int, Counter[str]] = {}
    for tick in ticks:
        number = int(min(max((tick.at - drawn.begin).total_seconds() / width, 0), COLUMNS - 1))
        columns.setdefault(number, Counter())[tick.outcome] += tick.count
    most = max((counts.total() for counts in columns.values()), default=1)
    room = bottom - TOP
    for number, counts in sorted(columns.items()):
        begin = drawn.begin + timedelta(seconds=number * width)
        y = float(bottom)
        rects = []
        for outcome in (each for each in _FROM_BELOW if counts[each]):
            high = max(room * counts[outcome] / most, _SMALLEST)
            y -= high
            rects.append(
                Markup('<rect class="b-{}" x="{}%" y="{}" width="{}%" height="{}"{}/>').format(
                    outcome,
                    round(number * 100 / COLUMNS, 3),
                    round(y, 1),
                    round(100 / COLUMNS * 0.86, 3),
                    round(high, 1),
                    _HATCHED.get(outcome, Markup("")),
                )
            )
        told = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
        yield Markup("<g><title>{} on: {}</title>{}</g>").format(drawn.clock(begin), told, Markup("").join(rects))


def _part(drawn: Timeline, at: datetime) -> float:
    part = (at - drawn.begin).total_seconds() / drawn.seconds
    return round(min(max(part, 0.0), 1.0) * 100, 3)


def _plain(text: str) -> Markup:
    return escape("\n".join(printable(line) for line in text.split("\n")))

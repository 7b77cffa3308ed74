"""A timeline for a terminal, or a mail: each lane is a row of cells of time.

Where a cell has room for one of several things, the worst is shown. Nothing here needs colours.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

from celery_lockbeat.cli.signs import BAR, LOST, SIGNS, Sign, Track
from celery_lockbeat.insight.lanes import Lane, Timeline, axis_of
from celery_lockbeat.insight.plain import printable

__all__ = ["lines_of"]

#: What is drawn later covers what was there.
ORDER: Final = ("published", "queued", "succeeded", "running", "paused", "skipped", "failed", "missed", "lost", "died")

#: Cells of an axis that one of its times takes.
LABEL: Final = 12


def lines_of(timeline: Timeline, width: int, style: Callable[[Sign], str]) -> list[str]:
    """Return the lines, none of them wider than ``width``."""
    longest = max((len(printable(lane.name)) for lane in timeline.lanes), default=0)
    names = min(longest, max(8, width // 3))
    cells = max(10, width - names - 2)
    seconds = timeline.seconds / cells
    lines = [f"{timeline.clock(timeline.begin)} to {timeline.clock(timeline.end)}; a sign is {_lasts(seconds)}"]
    if timeline.known > timeline.begin:
        lines.append(f"the journal reaches back to {timeline.clock(timeline.known)} only")
    lines += timeline.left_out
    lines.append("")
    lines.append(" " * (names + 2) + _axis(timeline, cells))
    for lane in timeline.lanes:
        signs = _track_of(lane, timeline, seconds).signs(0, cells - 1)
        name = printable(lane.name)
        name = name if len(name) <= names else f"{name[: names - 1]}…"
        lines.append(f"{name.ljust(names)}  {''.join(map(style, signs))}")
    if not timeline.lanes:
        lines.append("nothing has happened")
    return [*lines, "", *_legend(style, width)]


def _track_of(lane: Lane, timeline: Timeline, seconds: float) -> Track:
    def since(at: datetime) -> float:
        return min(max(0.0, (at - timeline.begin).total_seconds()), timeline.seconds - seconds / 2)

    track = Track(seconds)
    # first where runs lasted, then what became of them
    for bar in lane.bars:
        track.bar(since(bar.begin), since(bar.end), Sign(BAR.text, SIGNS[bar.outcome].style))
    ends = [(bar.end, bar.outcome) for bar in lane.bars if bar.outcome != "succeeded"]
    for at, kind in sorted(
        (*ends, *((mark.at, mark.kind) for mark in lane.marks)), key=lambda end: ORDER.index(end[1])
    ):
        track.mark(since(at), LOST if kind == "lost" else SIGNS[kind])
    return track


def _axis(timeline: Timeline, cells: int) -> str:
    line = ""
    for at, text in axis_of(timeline, max(1, cells // LABEL)):
        cell = int((at - timeline.begin).total_seconds() / timeline.seconds * cells)
        if cell >= len(line) + bool(line) and cell + len(text) < cells:
            line = f"{line.ljust(cell)}|{text}"
    return line


def _legend(style: Callable[[Sign], str], width: int) -> list[str]:
    told = [(BAR, "a run"), *((sign, outcome) for outcome, sign in SIGNS.items() if outcome != "succeeded")]
    lines, size = [""], 0
    for sign, name in (*told, (LOST, "lost its lock")):
        length = len(f"{sign.text} {name}  ")
        if size + length > width:
            lines.append("")
            size = 0
        lines[-1] += f"{style(sign)} {name}  "
        size += length
    return [line.rstrip() for line in lines]


def _lasts(seconds: float) -> str:
    size, unit = next((each for each in ((3600, "h"), (60, "min")) if seconds >= each[0] * 1.5), (1, "s"))
    return f"{seconds / size:.2g} {unit}"

"""A timeline as a picture: SVG, or one page of HTML that asks no network for anything.

Promises: each outcome has a shape or a pattern of its own, so it can be read without colours. What users have named, and what their errors say,
is text and nothing else, whatever is in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final
from xml.sax.saxutils import escape

from celery_lockbeat.insight.lanes import Bar, Lane, Timeline, axis_of
from celery_lockbeat.insight.plain import printable

__all__ = ["page_of", "svg_of"]

WIDTH: Final = 1200
NAMES: Final = 230
RIGHT: Final = 16
HEAD: Final = 78
LANE: Final = 26
FOOT: Final = 78

#: Bars that are taller, by so much at either end: where they are short their pattern cannot be seen.
TALL: Final = ("failed", "died")
TALLER: Final = 4

#: Characters of a name that are shown; all of it is in its title.
LETTERS: Final = 34

_STYLE: Final = """
text{font:12px system-ui,'Segoe UI','DejaVu Sans',Helvetica,Arial,sans-serif;fill:#1f2933}
.t{font-size:16px;font-weight:600}.d{fill:#52606d}.w{fill:#8a1c1c}.e{text-anchor:end}.m{text-anchor:middle}
.g{stroke:#cbd2d9}.z{fill:#f5f7fa}.b{stroke-width:1}
.succeeded{fill:#3d9a6a;stroke:#1e6b45}.failed{fill:url(#f);stroke:#b42318}.died{fill:url(#k);stroke:#7a0c0c}
.running{fill:#d6ebfb;stroke:#0b62a8;stroke-dasharray:4 2}
.q{fill:#fff;stroke:#0b62a8;stroke-width:1.5}.o{fill:#7b8794}.s{fill:#fff4c2;stroke:#8a6100;stroke-width:1.5}
.M{fill:#a0238b;stroke:#fff;stroke-width:.7}.W{stroke:#a0238b;stroke-width:2;stroke-dasharray:2 4}.L{fill:#fff;stroke:#b42318;stroke-width:1.6}.D{stroke:#7a0c0c;stroke-width:2.6}
.x{stroke:#b42318;stroke-width:1.6}
"""

_PATTERNS: Final = (
    '<pattern id="f" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="5" height="5" fill="#fff"/><rect width="2.4" height="5" fill="#d92d20"/></pattern>'
    '<pattern id="k" width="4" height="4" patternUnits="userSpaceOnUse">'
    '<rect width="4" height="4" fill="#fff"/><rect width="2" height="2" fill="#7a0c0c"/>'
    '<rect x="2" y="2" width="2" height="2" fill="#7a0c0c"/></pattern>'
    '<pattern id="u" width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(-45)">'
    '<rect width="8" height="8" fill="#f0f2f4"/><rect width="1" height="8" fill="#b8c1cb"/></pattern>'
)

_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>body{{margin:1rem;background:#fff}}div{{overflow-x:auto}}svg{{min-width:900px;width:100%;height:auto}}</style>
</head>
<body>
<div>
{svg}</div>
</body>
</html>
"""

#: Marks, each around 0 0.
_MARKS: Final = {
    "skipped": '<path class="s" d="M0-6l6 6l-6 6l-6-6z"/>',
    "missed": '<path class="M" d="M-7-6h14l-7 13z"/>',
    "paused": '<path class="q" d="M-4-5v10h2.5v-10zM1.5-5v10h2.5v-10z"/>',
    "lost": '<circle class="L" r="6.5"/><path class="x" d="M0-4v5m0 1.5v1.8"/>',
    "died": '<path class="D" d="M-5-6l10 12m0-12l-10 12"/>',
    "failed": '<path class="x" d="M-4-5l8 10m0-10l-8 10"/>',
    "published": '<circle class="o" r="2.2"/>',
    "queued": '<circle class="q" r="3.6"/>',
    "running": '<circle class="q" r="3.6"/>',
    "succeeded": '<circle class="o" r="2.2"/>',
}

_LEGEND: Final = (
    ("succeeded", "succeeded"),
    ("failed", "failed or retried"),
    ("running", "running"),
    ("died", "killed"),
    ("skipped", "skipped"),
    ("missed", "missed"),
    ("paused", "paused"),
    ("lost", "lost its lock"),
    ("queued", "queued"),
    ("published", "published"),
)


def page_of(timeline: Timeline, title: str) -> str:
    """Return a page of HTML; titles of bars and marks are its tooltips."""
    return _PAGE.format(title=_text(title), svg=svg_of(timeline, title))


def svg_of(timeline: Timeline, title: str) -> str:
    """Return a picture."""
    return "".join(_svg(timeline, title))


def _svg(timeline: Timeline, title: str) -> Iterator[str]:
    notes = [*timeline.left_out]
    if timeline.known > timeline.begin:
        notes.append(f"the journal reaches back to {timeline.clock(timeline.known)} only")
    head = HEAD + 16 * len(notes)
    bottom = head + LANE * max(1, len(timeline.lanes))
    height = bottom + FOOT
    yield f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">\n'
    yield f"<title>{_text(title)}</title><style>{_STYLE}</style><defs>{_PATTERNS}</defs>\n"
    yield f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>\n'
    yield f'<text x="16" y="26" class="t">{_text(title)}</text>\n'
    times = f"{timeline.clock(timeline.begin)} to {timeline.clock(timeline.end)}"
    yield f'<text x="16" y="44" class="d">{_text(times)}</text>\n'
    for number, note in enumerate(notes):
        yield f'<text x="16" y="{60 + 16 * number}" class="w">{_text(note)}</text>\n'
    for number in range(0, len(timeline.lanes), 2):
        yield f'<rect class="z" y="{head + LANE * number}" width="{WIDTH}" height="{LANE}"/>\n'
    if timeline.known > timeline.begin:
        x = _x(timeline, timeline.known)
        yield f'<rect x="{NAMES}" y="{head}" width="{x - NAMES:.1f}" height="{bottom - head}" fill="url(#u)"/>\n'
    yield from _axis(timeline, head, bottom)
    for number, lane in enumerate(timeline.lanes):
        yield from _lane(lane, timeline, head + LANE * number)
    if not timeline.lanes:
        yield f'<text x="{NAMES + 10}" y="{head + 17}" class="d">nothing has happened</text>\n'
    yield from _legend(bottom + 44)
    yield "</svg>\n"


def _axis(timeline: Timeline, head: int, bottom: int) -> Iterator[str]:
    for at, text in axis_of(timeline, 12):
        x = _x(timeline, at)
        yield f'<path class="g" d="M{x:.1f} {head}V{bottom}"/>'
        place = "e" if x > WIDTH - RIGHT - 20 else "m" if x > NAMES + 20 else ""
        for y in (head - 6, bottom + 16):
            yield f'<text x="{x:.1f}" y="{y}" class="d {place}">{_text(text)}</text>\n'


def _lane(lane: Lane, timeline: Timeline, top: int) -> Iterator[str]:
    name = lane.name if len(lane.name) <= LETTERS else f"{lane.name[: LETTERS - 1]}…"
    told = _text(f"{lane.name}: {lane.summary()}")
    yield f'<g><title>{told}</title><text x="16" y="{top + 17}">{_text(name)}</text></g>\n'
    for mark in lane.marks:
        if mark.since is not None:
            yield f'<path class="W" d="M{_x(timeline, mark.since):.1f} {top + 13}H{_x(timeline, mark.at):.1f}"/>\n'
    ends: list[float] = []
    for bar in sorted(lane.bars, key=lambda bar: bar.begin):
        begin, end = _x(timeline, bar.begin), _x(timeline, bar.end)
        end = max(end, begin + (4 if bar.outcome in TALL else 2))
        # runs beside each other are below each other
        row = next((row for row, busy in enumerate(ends) if busy <= begin), len(ends))
        ends[row : row + 1] = [end]
        yield _bar(bar, begin, end, top + 7 + 4 * min(row, 2))
    for mark in lane.marks:
        yield f"<g><title>{_text(mark.title)}</title>{_mark(mark.kind, _x(timeline, mark.at), top + 13)}</g>\n"


def _bar(bar: Bar, begin: float, end: float, top: float) -> str:
    more = TALLER if bar.outcome in TALL else 0
    place = f'x="{begin:.1f}" y="{top - more}" width="{end - begin:.1f}" height="{11 + 2 * more}"'
    shape = f'<rect class="b {bar.outcome}" {place}>'
    return f"{shape}<title>{_text(bar.title)}</title></rect>\n"


def _mark(kind: str, x: float, y: float) -> str:
    """Draw a mark around a point."""
    return f'<g transform="translate({x:.1f} {y})">{_MARKS[kind]}</g>'


def _legend(y: int) -> Iterator[str]:
    x = 16.0
    for kind, name in _LEGEND:
        if kind in ("succeeded", "failed", "running", "died"):
            more = TALLER if kind in TALL else 0
            yield f'<rect class="b {kind}" x="{x}" y="{y - 10 - more}" width="22" height="{11 + 2 * more}"/>'
        if kind not in ("succeeded", "failed", "running"):
            yield _mark(kind, x + 11, y - 4)
        yield f'<text x="{x + 32}" y="{y}">{_text(name)}</text>\n'
        x += 48 + 6.6 * len(name)


def _x(timeline: Timeline, at: datetime) -> float:
    part = (at - timeline.begin).total_seconds() / timeline.seconds
    return NAMES + min(max(part, 0.0), 1.0) * (WIDTH - NAMES - RIGHT)


def _text(text: str) -> str:
    """Return a text as XML and HTML have it: lines stay lines, and what XML cannot have is blank."""
    return escape("\n".join(printable(line) for line in text.split("\n")))

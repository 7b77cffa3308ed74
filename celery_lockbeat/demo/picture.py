"""The demo as a picture: who published what when, who was killed, and what ran. For a light page and for a dark one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from celery_lockbeat.demo import JOBS
from celery_lockbeat.demo.processes import BEATS, WORKERS
from celery_lockbeat.demo.tally import Tally, Tick

__all__ = ["draw", "svg_of"]

WIDTH: Final = 880
NAMES: Final = 122
RIGHT: Final = 20
TOP: Final = 34
ROW: Final = 28
#: Between the beats and the tasks.
GAP: Final = 16
FOOT: Final = 58

LIGHT: Final = {
    "ground": "#ffffff",
    "text": "#1f2328",
    "dim": "#59636e",
    "line": "#d1d9e0",
    "alive": "#8c959f",
    "dead": "#cf222e",
    "worker-1": "#1a7f9c",
    "worker-2": "#8250df",
    "refresh_cache": "#1a7f37",
    "sync_orders": "#0969da",
    "build_report": "#bc4c00",
}
DARK: Final = {
    "ground": "#0d1117",
    "text": "#f0f6fc",
    "dim": "#9198a1",
    "line": "#3d444d",
    "alive": "#656c76",
    "dead": "#f85149",
    "worker-1": "#39a7c4",
    "worker-2": "#ab7df8",
    "refresh_cache": "#3fb950",
    "sync_orders": "#4493f8",
    "build_report": "#f0883e",
}


def draw(tally: Tally, path: Path) -> list[Path]:
    """Write both pictures, the dark one beside ``path``; return where they are."""
    files = {path: LIGHT, path.with_stem(f"{path.stem}-dark"): DARK}
    for file, colors in files.items():
        file.write_text(svg_of(tally, colors), "utf-8")
    return list(files)


def svg_of(tally: Tally, colors: Mapping[str, str]) -> str:
    """Return one picture."""
    return "".join(_Picture(tally, colors).parts())


class _Picture:
    """What it is drawn of, and where a moment is in it."""

    def __init__(self, tally: Tally, colors: Mapping[str, str]) -> None:
        self._colors = colors
        self._kills: dict[str, float] = {kill["by"]: kill["at"] for kill in tally.kills}
        self._ticks = tally.ticks()
        moments = [event["at"] for tick in self._ticks for event in (*tick.published, *tick.at_worker)]
        self._begin = min(moments, default=0.0) - 0.5
        self._end = max(moments, default=1.0) + 0.5
        self._tasks = TOP + ROW * len(BEATS) + GAP
        self._bottom = self._tasks + ROW * len(JOBS)

    def _x(self, at: float) -> float:
        return NAMES + (WIDTH - NAMES - RIGHT) * (at - self._begin) / (self._end - self._begin)

    def parts(self) -> Iterator[str]:
        height, colors = self._bottom + FOOT, self._colors
        said = f"{len(BEATS)} beats, of which {len(self._kills)} are killed: each tick is published once"
        yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">\n'
        yield f"<title>{said}</title>\n<style>text{{font:13px ui-sans-serif,system-ui,'Segoe UI',Helvetica,Arial,sans-serif;"
        yield f"fill:{colors['text']}}}.d{{fill:{colors['dim']};font-size:11px}}.k{{fill:{colors['dead']};font-size:11px}}</style>\n"
        yield f'<rect width="{WIDTH}" height="{height}" rx="6" fill="{colors["ground"]}"/>\n'
        yield from self._axis()
        for number, beat in enumerate(BEATS):
            yield from self._beat(beat, TOP + ROW * number + ROW / 2)
        for number, job in enumerate(JOBS):
            yield from self._job(job, self._tasks + ROW * number + ROW / 2)
        yield from self._legend()
        yield "</svg>\n"

    def _axis(self) -> Iterator[str]:
        for second in range(0, int(self._end - self._begin) + 1, 2):
            x = self._x(self._begin + second)
            yield f'<path d="M{x:.1f} {TOP}V{self._bottom}" stroke="{self._colors["line"]}" stroke-width=".5"/>'
            yield f'<text class="d" x="{x:.1f}" y="{TOP - 8}" text-anchor="middle">{second} s</text>\n'
        for at in self._kills.values():
            line = f'stroke="{self._colors["dead"]}" stroke-dasharray="3 3"'
            yield f'<path d="M{self._x(at):.1f} {TOP}V{self._bottom}" {line}/>\n'

    def _name(self, text: str, y: float) -> str:
        return f'<text x="12" y="{y + 4:.0f}">{text}</text>\n'

    def _beat(self, beat: str, y: float) -> Iterator[str]:
        yield self._name(beat, y)
        until = self._x(self._kills.get(beat, self._end))
        yield f'<path d="M{self._x(self._begin):.1f} {y}H{until:.1f}" stroke="{self._colors["alive"]}" stroke-width="1.5"/>\n'
        for tick in self._ticks:
            for event in tick.published:
                if event["by"] == beat:
                    yield from self._published(tick, event, y)
        if beat in self._kills:
            yield f'<path d="M{until - 5:.1f} {y - 5}l10 10m0-10l-10 10" stroke="{self._colors["dead"]}" stroke-width="2.5"/>'
            yield f'<text class="k" x="{until + 10:.1f}" y="{y + 4:.0f}">kill -9</text>\n'

    def _published(self, tick: Tick, event: Mapping[str, Any], y: float) -> Iterator[str]:
        x = self._x(event["at"])
        if tick.taken_over_after():
            yield f'<circle cx="{x:.1f}" cy="{y}" r="8" fill="none" stroke="{self._colors["dead"]}" stroke-width="1.5"/>'
        yield f'<circle cx="{x:.1f}" cy="{y}" r="4.5" fill="{self._colors[tick.job]}"/>\n'

    def _job(self, job: str, y: float) -> Iterator[str]:
        yield self._name(job, y)
        for tick in (each for each in self._ticks if each.job == job and each.at_worker):
            first, x = tick.at_worker[0], self._x(tick.at_worker[0]["at"])
            if tick.skips():
                yield f'<path d="M{x:.1f} {y - 6}l6 6l-6 6l-6-6z" fill="{self._colors["ground"]}" stroke="{self._colors["dim"]}"/>\n'
            else:
                wide = max(3.0, self._x(first["at"] + tick.seconds()) - x)
                color = self._colors[first["by"]]
                yield f'<rect x="{x:.1f}" y="{y - 7}" width="{wide:.1f}" height="14" rx="3" fill="{color}"/>\n'

    def _legend(self) -> Iterator[str]:
        x, y = float(NAMES), self._bottom + 26
        ring = f'<circle cx="0" cy="0" r="7" fill="none" stroke="{self._colors["dead"]}" stroke-width="1.5"/>'
        skip = f'<path d="M0-6l6 6l-6 6l-6-6z" fill="{self._colors["ground"]}" stroke="{self._colors["dim"]}"/>'
        shown = [(f'<circle r="4.5" fill="{self._colors[job]}"/>', job) for job in JOBS]
        shown += [(ring, "taken over")]
        shown += [
            (f'<rect x="-8" y="-6" width="16" height="12" rx="3" fill="{self._colors[each]}"/>', f"runs on {each}")
            for each in WORKERS
        ]
        shown += [(skip, "skipped: it runs")]
        for sign, text in shown:
            yield f'<g transform="translate({x:.0f} {y})">{sign}<text class="d" x="13" y="4">{text}</text></g>\n'
            x += 30 + 6.1 * len(text)

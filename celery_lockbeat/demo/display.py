"""What the demo shows: one live view on a terminal, and plain lines elsewhere, one for each thing that happened."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from celery_lockbeat.demo import JOBS
from celery_lockbeat.demo.processes import BEATS, WORKERS
from celery_lockbeat.demo.tally import FASTEST, Tally

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Display"]

#: The width of the names on the left, and of the whole view at most.
NAMES: Final = 15
WIDTH: Final = 78

#: So many lines of what happened last.
NOTES: Final = 8

#: One sign of a strip is so many seconds long.
CELL: Final = 0.5

BEAT: Final = "green"
COLORS: Final = dict(zip(WORKERS, ("cyan", "magenta"), strict=True))
SKIP: Final = ("x", "bold yellow")
KILL: Final = ("✗", "bold red")

_Signs = dict[int, tuple[str, str]]


class Display:
    """A live view of a tally on a terminal; plain lines elsewhere."""

    def __init__(self, tally: Tally) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a locale may lack the signs of the strips
        self._tally = tally
        self._console = Console(highlight=False)
        self._phase = ""
        self._written = 0
        # rich takes FORCE_COLOR for a terminal
        live = self._console.is_interactive and sys.stdout.isatty()
        view = Live(console=self._console, get_renderable=self._view, auto_refresh=False, transient=True)
        self._live = view if live else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def enter(self, phase: str) -> None:
        """Show what the demo does from now on."""
        self._phase = phase
        if self._live is None:
            self.say(f"{self._tally.age():5.1f} s  {phase}")

    def refresh(self) -> None:
        """Show how it stands now."""
        if self._live is not None:
            self._live.refresh()
            return
        for note in self._tally.timeline[self._written :]:
            self.say(_line(*note).plain)
        self._written = len(self._tally.timeline)

    def say(self, text: str) -> None:
        """Write a line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def sum_up(self) -> None:
        """Write what was seen."""
        self._console.print(Text(), self._table(), Text())
        for check in self._tally.checks():
            mark = ("✓ ", "green") if check.good else ("FAILED ", "bold red")
            self._console.print(Text.assemble(mark, check.seen))
        self.say(f"Ended after {self._tally.age():.0f} s. Nothing is left behind.")

    # -- the view ------------------------------------------------------------------------------------------------------

    def _view(self) -> RenderableType:
        title = Text(
            f"{self._tally.age():5.1f} s  {len(BEATS)} beats and {len(WORKERS)} workers, {self._phase}", "bold"
        )
        notes = (_line(*note) for note in self._tally.timeline[-NOTES:])
        return Group(title, "", self._table("open"), "", self._strips(), "", *notes)

    def _table(self, lost: str = "lost") -> Table:
        """Count the ticks of each task. Those that are ``lost`` in the end may be on their way before."""
        table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("task", width=NAMES - 2)
        counts = {job: self._tally.counts(job) for job in JOBS}
        for heading in ("every", "takes", *counts[FASTEST]):
            table.add_column(lost if heading == "lost" else heading, justify="right")
        for name, job in JOBS.items():
            table.add_row(name, f"{job.every:g} s", f"{job.takes:g} s", *map(str, counts[name].values()))
        sums = map(sum, zip(*(each.values() for each in counts.values()), strict=True))
        table.add_row("all", "", "", *map(str, sums), style="bold")
        return table

    def _strips(self) -> Table:
        """Draw who published what when, and who ran it, up to now."""
        strips = Table.grid(padding=(0, 2, 0, 0))
        strips.add_column(width=NAMES - 2)
        for beat in BEATS:
            strips.add_row(beat, self._strip(self._signs_of_beat(beat)))
        for job in JOBS:
            strips.add_row(job, self._strip(self._signs_of_job(job)))
        letters = (" ".join(job[0] for job in JOBS), BEAT)
        workers = [(f"━ {worker}   ", color) for worker, color in COLORS.items()]
        strips.add_row("", Text.assemble(letters, " published   ", KILL, " killed   ", *workers, SKIP, " skip"))
        return strips

    def _strip(self, signs: _Signs) -> Text:
        now = int(self._tally.age() / CELL)
        first = max(0, now + 1 - (min(WIDTH, self._console.width) - NAMES))
        return Text.assemble(*(signs.get(cell, ("·", "dim")) for cell in range(first, now + 1)))

    def _signs_of_beat(self, beat: str) -> _Signs:
        signs: _Signs = {}
        cell = -1
        ours = [(at, tick.job) for tick in self._tally.ticks() for at, by in tick.published if by == beat]
        for at, job in sorted(ours):
            cell = max(int(at / CELL), cell + 1)  # a sign for each, also where they come together
            signs[cell] = job[0], BEAT
        return signs | {int(at / CELL): KILL for at, killed in self._tally.kills if killed == beat}

    def _signs_of_job(self, job: str) -> _Signs:
        signs: _Signs = {}
        for tick in sorted(self._tally.ticks(job), key=lambda tick: tick.skips):
            if tick.arrived is not None:
                until = self._tally.age() if tick.status == "running" else tick.arrived + tick.seconds
                cells = range(int(tick.arrived / CELL), int(until / CELL) + 1)
                signs |= dict.fromkeys(cells, SKIP if tick.skips else ("━", COLORS[tick.worker]))
        return signs


def _line(at: float, who: str, what: str) -> Text:
    return Text.assemble((f"{at:5.1f} s  ", "dim"), who.ljust(NAMES), what, no_wrap=True, overflow="ellipsis")

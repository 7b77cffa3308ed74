"""What the demo shows: a line for each thing that happened and, below them on a terminal, how it stands now."""

from __future__ import annotations

from typing import Final

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from celery_lockbeat.cli.screen import console_of_stdout, text_of
from celery_lockbeat.cli.signs import BAR, KILLED, SKIPPED, Sign, Track
from celery_lockbeat.demo import JOBS
from celery_lockbeat.demo.processes import BEATS, WORKERS
from celery_lockbeat.demo.tally import Tally

__all__ = ["Display"]

#: The width of the names on the left, and of the whole view at most.
NAMES: Final = 15
WIDTH: Final = 78

#: One sign of a strip is so many seconds long.
CELL: Final = 0.5

BEAT: Final = "green"
COLORS: Final = dict(zip(WORKERS, ("cyan", "magenta"), strict=True))


class Display:
    """Shows a tally; ``live`` is the view of a terminal, which shows nothing elsewhere."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._written = 0
        self._page = ""
        self._console = console_of_stdout()
        self.live = Live(console=self._console, get_renderable=self._view, auto_refresh=False, transient=True)

    def refresh(self) -> None:
        """Show what has happened since, and how it stands now."""
        for at, who, what in self._tally.timeline[self._written :]:
            self.say(Text.assemble((f"{at:5.1f} s  ", "dim"), who.ljust(NAMES) if who else "", what))
        self._written = len(self._tally.timeline)
        self.live.refresh()

    def enter(self, phase: str) -> None:
        """Write what the demo does from now on."""
        self._tally.timeline.append((self._tally.age(), "", phase))
        self.refresh()

    def show_page(self, address: str) -> None:
        """Write where the page is, and on a terminal let it stay in sight."""
        self.say(f"Its page: {address}")
        self._page = f"   page: {address}"

    def say(self, text: str | Text) -> None:
        """Write a line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def sum_up(self) -> None:
        """Write what was seen."""
        self._console.print("", self._table(), "")
        for check in self._tally.checks():
            mark = ("✓ ", "green") if check.good else ("FAILED ", "bold red")
            self.say(Text.assemble(mark, check.seen))
        self.say(f"Ended after {self._tally.age():.0f} s. Nothing is left behind.")

    def _view(self) -> RenderableType:
        title = f"{self._tally.age():5.1f} s  {len(BEATS)} beats and {len(WORKERS)} workers{self._page}"
        return Group("", Text(title, "bold"), "", self._table("open"), "", self._strips())

    def _table(self, lost: str = "lost") -> Table:
        """Count the ticks of each task. Those that are ``lost`` in the end may be on their way before."""
        table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("task", width=NAMES - 2)
        total = self._tally.counts()
        for heading in ("every", "takes", *total):
            table.add_column(lost if heading == "lost" else heading, justify="right")
        for name, job in JOBS.items():
            counts = self._tally.counts([name]).values()
            table.add_row(name, f"{job.every:g} s", f"{job.takes:g} s", *map(str, counts))
        table.add_row("all", "", "", *map(str, total.values()), style="bold")
        return table

    def _strips(self) -> Table:
        """Draw who published what when, and who ran it, up to now."""
        strips = Table.grid(padding=(0, 2, 0, 0))
        strips.add_column(width=NAMES - 2)
        for beat in BEATS:
            strips.add_row(beat, self._strip(self._track_of_beat(beat)))
        for job in JOBS:
            strips.add_row(job, self._strip(self._track_of_job(job)))
        letters = (" ".join(job[0] for job in JOBS), BEAT)
        workers = [(f"{BAR.text} {worker}   ", color) for worker, color in COLORS.items()]
        strips.add_row("", Text.assemble(letters, " published   ", KILLED, " killed   ", *workers, SKIPPED, " skip"))
        return strips

    def _strip(self, track: Track) -> Text:
        now = int(self._tally.age() / CELL)
        first = max(0, now + 1 - (min(WIDTH, self._console.width) - NAMES))
        return text_of(track.signs(first, now))

    def _track_of_beat(self, beat: str) -> Track:
        track = Track(CELL)
        published = [event for tick in self._tally.ticks() for event in tick.published if event["by"] == beat]
        for event in sorted(published, key=lambda event: float(event["at"])):
            track.next_mark(event["at"], Sign(event["task_name"][0], BEAT))
        for kill in self._tally.kills:
            if kill["by"] == beat:
                track.mark(kill["at"], KILLED)
        return track

    def _track_of_job(self, job: str) -> Track:
        track = Track(CELL)
        for tick in sorted(self._tally.ticks([job]), key=lambda tick: tick.skips()):
            for event in tick.at_worker[:1]:
                until = event["at"] + tick.seconds() if tick.ends() else self._tally.age()
                track.bar(event["at"], until, SKIPPED if tick.skips() else Sign(BAR.text, COLORS[event["by"]]))
        return track

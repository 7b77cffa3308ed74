"""The list of ``watch``: which entries it shows, in which order, which one is chosen, and what is below it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from rich.text import Text

from celery_lockbeat.cli.screen import cell
from celery_lockbeat.cli.watch import parts
from celery_lockbeat.insight.model import SORTS, Model, Row

__all__ = ["STEPS", "Listing"]

#: Lines of a terminal below which there are only the entries.
SHORT: Final = 14

#: Keys that move what is chosen: by lines, by pages, to an end.
STEPS: Final = {
    "up": (-1, 0),
    "k": (-1, 0),
    "down": (1, 0),
    "j": (1, 0),
    "page up": (0, -1),
    "page down": (0, 1),
    "home": (-(10**9), 0),
    "end": (10**9, 0),
}


class Listing:
    """The list. ``chosen`` is the name of an entry, once there was a frame."""

    def __init__(self, model: Model, zone: Any) -> None:
        self._model = model
        self._zone = zone
        self._sort = 0
        self._filter = ""
        #: whether keys are letters of the filter
        self.edits = False
        self.chosen: str | None = None
        #: whether it is this entry that is chosen, wherever it is, or whichever is in its place
        self._follows = False
        self._index = 0
        self._top = 0
        self._page = 10
        self._rows: Sequence[Row] = ()

    # -- keys ----------------------------------------------------------------------------------------------------------

    def press(self, key: str) -> None:
        """Do what a key is for."""
        if self.edits and key not in ("up", "down"):
            self._edit(key)
            return
        self.edits = False
        if key in STEPS:
            lines, pages = STEPS[key]
            self._move(lines + pages * self._page)
        elif key == "/":
            self.edits = True
        elif key == "escape":
            self._filter = ""
        elif key in ("s", "S"):
            self._sort = (self._sort + (1 if key == "s" else -1)) % len(SORTS)
            self._follows, self._index, self._top = False, 0, 0

    def _edit(self, key: str) -> None:
        if key in ("enter", "escape"):
            self.edits = False
        if key in ("escape", "erase"):
            self._filter = ""
        elif key == "backspace":
            self._filter = self._filter[:-1]
        elif len(key) == 1:
            self._filter += key

    def _move(self, step: int) -> None:
        if self._rows:
            self._index = min(max(self._index + step, 0), len(self._rows) - 1)
            self.chosen = self._rows[self._index].name
            # the first place is the first place, whoever has it
            self._follows = self._index > 0

    # -- frames --------------------------------------------------------------------------------------------------------

    def lines(self, title: list[Text], width: int, height: int, now: datetime, paused: bool) -> list[Text]:
        """Return the lines of a frame below its ``title``, whose last line has room for what is shown."""
        self._rows = rows = self._model.rows(SORTS[self._sort], self._filter, now)
        foot = self._foot(width, height, paused)
        room = max(1, height - len(title) - len(foot) - 1)
        below = self._below(width, room, now) if height >= SHORT else []
        self._page = max(1, room - len(below))
        self._keep_in_sight()
        shown = rows[self._top : self._top + self._page]
        if len(shown) < len(rows):
            title[-1].append(f"; {self._top + 1}-{self._top + len(shown)} are shown")
        columns = parts.columns_of(rows, width)
        lines = [parts.head(columns, width)]
        lines += [parts.row_line(row, self._model.ticks(row), columns, now, row.name == self.chosen) for row in shown]
        if not rows:
            lines.append(Text("nothing contains that" if self._filter else "no entry is known yet", parts.DIM))
        lines += [Text("")] * (self._page - max(1, len(shown)))
        return [*lines, *below, *foot]

    def _keep_in_sight(self) -> None:
        """Follow the chosen entry to where it is now."""
        rows = self._rows
        self._index = min(self._index, max(0, len(rows) - 1))
        if self._follows and rows and rows[self._index].name != self.chosen:
            self._index = next((index for index, row in enumerate(rows) if row.name == self.chosen), self._index)
        self.chosen = rows[self._index].name if rows else None
        self._top = min(self._top, self._index, max(0, len(rows) - self._page))
        self._top = max(self._top, self._index - self._page + 1)

    def _below(self, width: int, room: int, now: datetime) -> list[Text]:
        model = self._model
        lines = parts.locks(model.locks, width, max(1, room // 6), now)
        lines += parts.beats(model.shares(), width, max(2, room // 6), model.knows_beats)
        lines.append(Text(cell("newest events", width), parts.HEAD))
        # what the entries do not need, events have
        spare = max(room // 6, room - len(lines) - max(len(self._rows), 3))
        return [*lines, *parts.events(list(model.events), width, min(spare, room // 2), now, self._zone)]

    def _foot(self, width: int, height: int, paused: bool) -> list[Text]:
        if self.edits:
            prompt = Text.assemble(("/", "bold"), cell(self._filter, max(1, width - 30)).rstrip(), ("_", "blink"))
            return [Text.assemble(prompt, (f"   {len(self._rows)} found; Enter keeps it, Esc drops it", parts.DIM))]
        keys = f"q quit  p {'go on' if paused else 'pause'}  s sort: {SORTS[self._sort]}  / filter"
        keys += f": {self._filter!r}" if self._filter else ""
        foot = [Text(cell(f"{keys}  Enter open  ? keys", width), "bold")]
        return [parts.legend(), *foot] if height >= SHORT else foot

"""One entry of ``watch``, opened: its last runs, the newest first, and of the chosen one what became of it, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from textwrap import wrap
from typing import Any, Final

from rich.text import Text

from celery_lockbeat.cli.screen import cell
from celery_lockbeat.cli.signs import SIGNS
from celery_lockbeat.cli.watch import parts
from celery_lockbeat.cli.watch.listing import STEPS
from celery_lockbeat.insight.model import Model, Row
from celery_lockbeat.insight.plain import printable
from celery_lockbeat.insight.said import why_of
from celery_lockbeat.journal.sentences import Writing, sentence_of
from celery_lockbeat.journal.ticks import Tick
from celery_lockbeat.observe.vocabulary import took

__all__ = ["Opened"]

#: What is left of the column of the reasons: the mark, the sign and the outcome.
LEFT: Final = 15

_HEAD: Final = "   outcome     due or begun       late     took  worker, why"


class Opened:
    """An entry that is open."""

    def __init__(self, model: Model, row: Row, zone: Any) -> None:
        self._model = model
        self._row = row
        self._zone = zone
        #: the run that is chosen; None: the newest, whichever that is
        self._run: Tick | None = None
        self._ticks: Sequence[Tick] = ()
        self._page = 10

    def press(self, key: str) -> None:
        """Do what a key is for."""
        if key in STEPS and self._ticks:
            lines, pages = STEPS[key]
            index = _place_of(self._run, self._ticks) + lines + pages * self._page
            index = min(max(index, 0), len(self._ticks) - 1)
            self._run = self._ticks[index] if index else None

    def lines(self, width: int, height: int, now: datetime, paused: bool) -> list[Text]:
        """Return the lines of a frame, below its title."""
        self._ticks = ticks = list(reversed(self._model.ticks(self._row)))
        place = _place_of(self._run, ticks)
        said = wrap(printable(self._sentence(place)), max(20, width - 1))[: max(1, height // 4)]
        self._page = room = max(1, height - 4 - len(said))
        top = max(0, min(place - room // 2, len(ticks) - room))
        shown = ticks[top : top + room]
        lines = [self._about(now), Text(cell(_HEAD, width), parts.HEAD)]
        lines += [self._line(tick, tick is ticks[place], width) for tick in shown]
        if not ticks:
            lines.append(Text("the journal has no run of it", parts.DIM))
        lines += [Text("")] * (room - max(1, len(shown)))
        lines.append(Text(cell("what became of it", width), parts.HEAD))
        lines += [Text(each) for each in said]
        which = f"{place + 1 if ticks else 0} of {len(ticks)}"
        foot = f"{which}  up, down choose  Esc back  p {'go on' if paused else 'pause'}  q quit"
        return [*lines, Text(cell(foot, width), "bold")]

    def _about(self, now: datetime) -> Text:
        row = self._row
        when = f"  {printable(str(row.schedule).strip('<>'))}" if row.schedule is not None else ""
        name, task = (printable(row.name), "bold"), f"  task {printable(row.task or '-')}"
        return Text.assemble(name, task, when, "  next due ", parts.due_of(row, now))

    def _line(self, tick: Tick, chosen: bool, width: int) -> Text:
        sign, last = SIGNS[tick.outcome], tick.last
        at = tick.at.astimezone(self._zone).strftime("%m-%d %H:%M:%S")
        late, lasted = parts.seconds_of(tick.late), parts.seconds_of(last.took if last is not None else None)
        outcome = tick.outcome + (f" {tick.count}" if tick.is_missed and tick.count > 1 else "")
        why = ": ".join(each for each in ((last and last.worker) or "", why_of(tick)) if each)
        told = f"{at}  {late.rjust(parts.LATE)}  {lasted.rjust(parts.TOOK)}  {why}"
        begin = ((">" if chosen else " "), (sign.text, sign.style), " ", (cell(outcome, 10), sign.style), "  ")
        return Text.assemble(*begin, (cell(told, max(0, width - LEFT)), "reverse" if chosen else ""))

    def _sentence(self, place: int) -> str:
        if not self._ticks:
            return ""
        tick = self._ticks[place]
        if tick.entry is None:
            return f"A run of {tick.task_name} that no tick has asked for: {tick.outcome}. {why_of(tick)}".strip()
        return sentence_of(tick, list(reversed(self._ticks)), Writing(self._zone, took))


def _place_of(run: Tick | None, ticks: Sequence[Tick]) -> int:
    """Return where a run is among those of now: it may have been joined anew."""
    if run is None:
        return 0
    same = (run.entry, run.task_id, run.due, run.at)
    return next((i for i, each in enumerate(ticks) if (each.entry, each.task_id, each.due, each.at) == same), 0)

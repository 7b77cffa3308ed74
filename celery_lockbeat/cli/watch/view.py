"""The frames of ``watch``, and what its keys do to them.

Promises: a frame has as many lines as it is given, none of them wider; only the rows that fit are made. A view that is paused
stands still.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rich.text import Text

from celery_lockbeat.cli.screen import cell
from celery_lockbeat.cli.watch import parts
from celery_lockbeat.cli.watch.listing import Listing
from celery_lockbeat.cli.watch.opened import Opened
from celery_lockbeat.insight.model import Model
from celery_lockbeat.insight.said import span_of

__all__ = ["View"]


class View:
    """What is shown of a model: ``place`` is where the store is."""

    def __init__(self, model: Model, app: str, place: str, zone: Any, has_journal: bool) -> None:
        self._model = model
        self._name = f"app {app!r} at {place}" if app else f"the app at {place}"
        self._zone = zone
        self._has_journal = has_journal
        self._listing = Listing(model, zone)
        self._opened: Opened | None = None
        self._helps = False
        self._now: datetime | None = None
        self._paused_at: datetime | None = None

    @property
    def paused(self) -> bool:
        """Whether it is to stay as it is."""
        return self._paused_at is not None

    def press(self, key: str) -> bool:
        """Do what a key is for; True: it ends the view."""
        if self._listing.edits:
            self._listing.press(key)
        elif self._helps:
            self._helps = False
        elif key in ("q", "Q"):
            return True
        elif key in ("p", " "):
            self._paused_at = None if self.paused else self._now
        elif key == "?":
            self._helps = True
        elif self._opened is not None and key in ("escape", "enter", "left", "backspace"):
            self._opened = None
        elif self._opened is not None:
            self._opened.press(key)
        elif key in ("enter", "right"):
            row = self._model.row(self._listing.chosen or "")
            self._opened = Opened(self._model, row, self._zone) if row is not None else None
        else:
            self._listing.press(key)
        return False

    def frame(self, width: int, height: int, now: datetime) -> list[Text]:
        """Return what is shown now, line by line."""
        self._now = now = self._paused_at or now
        # while nobody answers, nothing becomes late that may have been done
        known = min((since for _, since in self._model.away.values()), default=now)
        title = self._title(width, now)
        if self._helps:
            lines = parts.help_of(width)
        elif self._opened is not None:
            lines = [title, *self._opened.lines(width, height - 1, known, self.paused)]
        else:
            top = [title, self._counts(width)]
            lines = [*top, *self._listing.lines(top, width, height, known, self.paused)]
        lines = lines[:height]
        lines = [*lines[:-1], *(Text("") for _ in range(height - len(lines))), *lines[-1:]]
        for line in lines:
            line.no_wrap, line.overflow = True, "crop"
            line.truncate(width, overflow="crop")
        return lines

    def _title(self, width: int, now: datetime) -> Text:
        clock = now.astimezone(self._zone).strftime("%H:%M:%S %Z")
        state, style = self._state(now)
        right = f"{state}  {clock}" if state else clock
        left = cell(f"lockbeat watch: {self._name}", max(0, width - len(right) - 2))
        return Text.assemble((left, "bold"), "  ", (state, style), "  " if state else "", clock)

    def _state(self, now: datetime) -> tuple[str, str]:
        if self.paused:
            return "[paused]", "bold yellow"
        if self._model.away:
            since = min(since for _, since in self._model.away.values())
            return f"[no answer for {span_of(max(0.0, (now - since).total_seconds()))}]", "bold red"
        if self._has_journal and not self._model.is_read:
            return "[reading the journal]", "bold yellow"
        return "", ""

    def _counts(self, width: int) -> Text:
        model = self._model
        if model.away:
            why = next(iter(model.away.values()))[0]
            return Text(cell(f"{why}; asked again, what is below is of before", width), "red")
        waiting, overdue = model.waiting()
        beats = sum(share.silent_for is not None for share in model.shares())
        told = f"{_some(len(model), 'entry', 'entries')}, {_some(beats, 'beat')}, "
        told += f"{_some(len(model.locks), 'lock')} held, {_some(waiting, 'tick')} waiting to be published"
        told += f", {overdue} of them overdue" if overdue else ""
        no_journal = "" if self._has_journal else "lockbeat_journal is 0, so no runs are shown; "
        return Text.assemble((no_journal, "yellow"), told)


def _some(count: int, one: str, many: str | None = None) -> str:
    return f"1 {one}" if count == 1 else f"{count} {many or one + 's'}"

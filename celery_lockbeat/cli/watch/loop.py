"""The loop of ``watch``: a frame when something is new, a key is pressed, or a second is over; none where nothing has changed."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from datetime import datetime, timezone
from typing import Any, Final

from rich.console import Group
from rich.live import Live

from celery_lockbeat.cli.screen import console_of_stdout
from celery_lockbeat.cli.watch.keys import Terminal, silenced_stderr
from celery_lockbeat.cli.watch.view import View
from celery_lockbeat.insight.feed import Feed
from celery_lockbeat.insight.model import Model

__all__ = ["look_on"]

#: Seconds between two frames, at least, but for those that answer a key.
AT_MOST_EVERY: Final = 0.45


def look_on(app: Any, model: Model, view: View, every: float) -> int:
    """Show the view until it is to end; return the status of the process then."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(silenced_stderr())
        terminal = Terminal(sys.stdin.fileno())
        terminal.open()
        stack.callback(terminal.close)
        feed = Feed(app, terminal.ring)
        stack.callback(feed.end)
        screen = _Screen(view)
        stack.callback(screen.close)
        screen.open()
        feed.start()
        drawn, is_new, pause = 0.0, True, every
        while not terminal.noted:
            now = time.monotonic()
            if is_new or now - drawn >= pause:
                screen.draw()
                drawn, is_new, pause = now, False, every
            keys = terminal.wait(pause - (time.monotonic() - drawn))
            for key in keys:
                if view.press(key):
                    return 0
            if terminal.wants_stop:
                screen.close()
                terminal.stop()
                screen.open()
                is_new = True
            if not view.paused and feed.bring(model):
                # what comes just after a frame is in the next one, soon: no more may come for long
                pause = AT_MOST_EVERY
            is_new = is_new or bool(keys) or screen.has_changed()
    return 128 + terminal.noted[0]


class _Screen:
    """The screen that the view has for itself."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._console = console_of_stdout()
        self._size = os.terminal_size((0, 0))
        self._live: Live | None = None

    def open(self) -> None:
        self._live = Live(console=self._console, screen=True, auto_refresh=False, redirect_stdout=False)
        self._live.start()

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def has_changed(self) -> bool:
        """Whether the terminal has another size by now."""
        return _size() != self._size

    def draw(self) -> None:
        self._size = _size()
        # not what COLUMNS says: that does not change
        self._console.size = self._size
        lines = self._view.frame(self._size.columns, self._size.lines, datetime.now(timezone.utc))
        if self._live is not None:
            self._live.update(Group(*lines), refresh=True)


def _size() -> os.terminal_size:
    try:
        columns, lines = os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        columns, lines = 0, 0
    # some pseudo terminals have no size
    return os.terminal_size((columns or 80, lines or 24))

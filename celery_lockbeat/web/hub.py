"""What the page knows of an app: one feed and one model, however many look, and what is told to those who follow.

Promises: the store is asked as often for a hundred tabs as for one, and not at all while nobody looks. A page is drawn of one
state of the model. Who follows is told that something is new, at most twice a second, and asks for what it shows by itself: so a
tab that was asleep, or a connection that broke, catches up by its next question. Nobody follows for long without asking anew: servers
that are to end wait for what they answer, and who was let in may not be any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timezone
from functools import cached_property
from typing import Any, Final

from celery_lockbeat.contrib.schedulers import static_entries
from celery_lockbeat.insight.feed import Feed
from celery_lockbeat.insight.model import Model
from celery_lockbeat.insight.planned import Plans
from celery_lockbeat.membership.used import stores_in_use
from celery_lockbeat.options import AppOptions
from celery_lockbeat.stores import name_of
from celery_lockbeat.tasks.task import LockedTask

__all__ = ["FOLLOWERS", "Hub"]

#: Seconds after the last look for which the store is asked on.
LOOKED_AT_FOR: Final = 60.0

#: So many may follow at once.
FOLLOWERS: Final = 200

#: Seconds between two pieces of news, at least, and for which one follows.
NEWS_EVERY: Final = 0.5
FOLLOWED_FOR: Final = 10.0


class Hub:
    """All that is known by now. It begins to ask at the first look; ``end`` ends that for good."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.name = name_of(app)
        self._lock = threading.RLock()
        self._model: Model | None = None
        self._feed: Feed | None = None
        self._place = ""
        self._looked = 0.0
        self._ended = False
        self._followers: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    # -- what is known -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to ask; idempotent. Raises ConfigurationError."""
        self._looked = time.monotonic()
        with self._lock:
            if self._model is not None:
                return
            self._place = stores_in_use(self.app)[0].name  # this imports the app's tasks
            self._model = Model(static_entries(self.app), self.tells, datetime.now(timezone.utc), Plans(self.app))
            self._feed = Feed(self.app, self._ring, self._is_looked_at)
        threading.Thread(target=self._begin, args=(self._feed,), name="lockbeat-web", daemon=True).start()

    @contextlib.contextmanager
    def model(self) -> Iterator[Model]:
        """Give the model as it is now; nothing is new in it within the block. Raises ConfigurationError."""
        self.start()
        with self._lock:
            model, feed = self._model, self._feed
            if model is None or feed is None:
                raise RuntimeError("the hub has not been started")
            feed.bring(model)
            yield model

    @property
    def place(self) -> str:
        """Where the store is."""
        return self._place

    @cached_property
    def has_journal(self) -> bool:
        """Whether a journal is written."""
        return bool(AppOptions.read(self.app.conf).journal)

    def tells(self, task: str) -> bool:
        """Whether the runs of a task are in the journal."""
        return isinstance(self.app.tasks.get(task), LockedTask)

    def _begin(self, feed: Feed) -> None:
        # whatever is wrong, the feed comes upon it too, and says so
        with contextlib.suppress(Exception):
            feed.ask_all()
            self._get_ready()
        self._ring()
        if not self._ended:
            feed.start()

    def _get_ready(self) -> None:
        # or who looks first would wait for all of it
        with self.model() as model:
            rows = list(model.all_rows())
        for row in rows:
            with self._lock:
                model.ticks(row)

    def _is_looked_at(self) -> bool:
        return bool(self._followers) or time.monotonic() - self._looked < LOOKED_AT_FOR

    # -- who follows ---------------------------------------------------------------------------------------------------

    async def news(self) -> AsyncIterator[None]:
        """Yield now, and whenever something is new, for a while; it ends with the hub."""
        event, loop = asyncio.Event(), asyncio.get_running_loop()
        self._followers[event] = loop
        until = loop.time() + FOLLOWED_FOR
        try:
            yield
            while not self._ended:
                # not TimeoutError before Python 3.11
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(event.wait(), until - loop.time())
                if self._ended or not event.is_set():
                    return
                event.clear()
                yield
                await asyncio.sleep(NEWS_EVERY)
        finally:
            self._followers.pop(event, None)

    @property
    def is_full(self) -> bool:
        """Whether no more may follow."""
        return len(self._followers) >= FOLLOWERS

    @property
    def has_ended(self) -> bool:
        """Whether nothing is asked any more."""
        return self._ended

    def end(self) -> None:
        """Ask no more, and let those go who follow."""
        self._ended = True
        if self._feed is not None:
            self._feed.end()
        self._ring()

    def _ring(self) -> None:
        for event, loop in list(self._followers.items()):
            with contextlib.suppress(RuntimeError):  # its loop is closed
                loop.call_soon_threadsafe(event.set)

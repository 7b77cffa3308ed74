"""The thread that reads a journal on and on, and has its records counted.

Promises: it ends only when it is stopped; what is written while the store is away, or this falls behind, is counted later, once. What
was there before it began is seen, but not counted.
"""

from __future__ import annotations

import logging
import threading
from typing import Any, Final

from celery_lockbeat.clock import monotonic
from celery_lockbeat.contrib.prometheus.tally import Tally
from celery_lockbeat.exceptions import LockbeatError
from celery_lockbeat.journal import Record, follow
from celery_lockbeat.journal.records import read_record
from celery_lockbeat.stores import home_store_of, name_of

__all__ = ["Follower"]

logger: Final = logging.getLogger("celery_lockbeat")

#: Seconds until a store that did not answer is asked again.
AWAY_FOR: Final = 2.0


class Follower:
    """Reads the journal of an app into a tally."""

    def __init__(self, app: Any, tally: Tally) -> None:
        self._app = app
        self._tally = tally
        self._beginning = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        #: when the whole journal had been read
        self._caught_up = monotonic()
        #: the last record that was read, and the last that was there before this began
        self._after: str | None = None
        self._before: str | None = None
        self._counts = False
        self._is_away = False

    def start(self) -> None:
        """Begin, unless it has begun."""
        with self._beginning:
            if self._thread is None or not self._thread.is_alive():  # in a fork it is not
                self._stopping.clear()
                self._caught_up = monotonic()
                self._thread = threading.Thread(target=self._run, name="lockbeat-metrics", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End; ``start`` goes on from there."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def lag(self) -> float:
        """The seconds since all that was in the journal had been read."""
        return max(0.0, monotonic() - self._caught_up)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._follow()
            except LockbeatError as exc:
                if not self._is_away:
                    logger.warning("the metrics wait for the journal, and catch up: %s", exc)
                self._is_away = True
            except Exception:  # whatever it was, the next look may be better
                logger.exception("the journal could not be read for the metrics")
            self._stopping.wait(AWAY_FOR)

    def _follow(self) -> None:
        if self._after is None:
            self._find_the_ends()
        for record in follow(self._app, after=self._after, wait=self._stopping.wait):
            if record is None:
                self._caught_up, self._counts = monotonic(), True
                if self._is_away:
                    self._is_away = False
                    logger.info("the journal is read again")
            else:
                self._after = record.position
                self._add(record)
            if self._stopping.is_set():
                return

    def _find_the_ends(self) -> None:
        """Begin at the oldest record: from the newest one of now on they are counted."""
        journal, name = home_store_of(self._app).journal, name_of(self._app)
        newest = journal.records(name, newest_first=True, limit=1)
        oldest = journal.records(name, limit=1) if newest else []
        if not oldest:
            self._counts = True
            return
        self._before = newest[0].position
        self._after = oldest[0].position
        self._add(read_record(oldest[0]))

    def _add(self, record: Record) -> None:
        if self._counts:
            self._tally.count(record)
            return
        self._tally.see(record)
        self._counts = record.position == self._before

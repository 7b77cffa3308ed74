"""The collector, for a registry of prometheus_client's: what has been counted, and what the stores tell at a scrape."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from celery_lockbeat.contrib.measures import ENTRIES_AT_MOST, TASKS_AT_MOST, Labels
from celery_lockbeat.contrib.prometheus.follower import Follower
from celery_lockbeat.contrib.prometheus.looks import Looks
from celery_lockbeat.contrib.prometheus.tally import Tally

__all__ = ["LockbeatCollector"]

#: The gauges of what is asked at a scrape.
GAUGES: Final = {
    "lockbeat_store_up": "Whether the store of the beats has answered at this scrape",
    "lockbeat_journal_lag_seconds": "Since all of the journal had been read",
    "lockbeat_beats_alive": "Beats that are running",
    "lockbeat_claims_pending": "Claimed ticks that are not yet published",
    "lockbeat_claims_overdue": "Claimed ticks that any beat may take over",
    "lockbeat_entries": "Entries that running beats list",
    "lockbeat_locks_held": "Locks that are held",
}
SINCE_SUCCESS: Final = "lockbeat_since_success_seconds", "Since the last success of an entry"


class LockbeatCollector(Collector):
    """The metrics of one app.

    >>> REGISTRY.register(LockbeatCollector(app))  # doctest: +SKIP

    Register it in one process per app. It begins to read the journal, by a thread, with the first scrape or ``start``, and counts what
    is written from then on. Of more than ``entries_at_most`` entries and ``tasks_at_most`` tasks the rest is "other".
    """

    def __init__(self, app: Any, *, entries_at_most: int = ENTRIES_AT_MOST, tasks_at_most: int = TASKS_AT_MOST) -> None:
        self._tally = Tally(Labels(entries_at_most), Labels(tasks_at_most))
        self._follower = Follower(app, self._tally)
        self._looks = Looks(app)

    def start(self) -> None:
        """Begin to read the journal, unless it has begun."""
        self._follower.start()

    def stop(self) -> None:
        """End reading; what was counted stays."""
        self._follower.stop()

    def describe(self) -> Iterator[Metric]:
        """Yield what there will be, without asking anybody, for a registry that looks for names that are taken."""
        yield from self._tally.families()
        for name, documentation in (*GAUGES.items(), SINCE_SUCCESS):
            yield GaugeMetricFamily(name, documentation)

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; of what a store does not answer there is none."""
        self.start()
        seen = self._looks.beats()
        held, entries = (None, None) if seen is None else self._looks.aside(seen)
        yield from self._tally.families()
        values = {
            "lockbeat_store_up": seen is not None,
            "lockbeat_journal_lag_seconds": self._follower.lag,
            "lockbeat_locks_held": held,
        }
        if seen is not None:
            values |= {
                "lockbeat_beats_alive": seen.beats,
                "lockbeat_claims_pending": seen.pending,
                "lockbeat_claims_overdue": seen.overdue,
                "lockbeat_entries": None if seen.keys is None else len(seen.keys),
            }
        for name, documentation in GAUGES.items():
            value = values.get(name)
            if value is not None:
                yield GaugeMetricFamily(name, documentation, value=float(value))
        yield self._since_success(entries)

    def _since_success(self, listed: frozenset[str] | None) -> Metric:
        """Tell of the entries that are ``listed``: one that was removed is silent for good."""
        family = GaugeMetricFamily(*SINCE_SUCCESS, labels=["entry"])
        now = time.time()
        for entry, at in sorted(self._tally.last_successes().items()):
            if listed is None or entry in listed:
                family.add_metric([entry], max(0.0, now - at.timestamp()))
        return family

"""The clocks of a beat's host, as far as they differ from the store's, and the times of runs by them.

Promises: a wall clock that is set anew is noticed in the next round, and one that is wrong is warned of, once. The last run of
an entry is read in the entry's own zone. Intervals are counted by the store's clock: by a clock that is slow, the next run of
an entry would be due at once on a host whose clock is right. What the tick of a crontab is called is the same by any clock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import MINYEAR, datetime, timedelta, timezone
from typing import Any, Final

from celery.schedules import schedule

from celery_lockbeat.stores.base import EntryState

__all__ = ["SKEW", "Clocks", "overdue_for"]

logger: Final = logging.getLogger("celery_lockbeat.beat")

#: Seconds by which this host's clock may differ from the store's before that is taken into account.
INEXACT: Final = 0.05

#: Seconds by which it may differ before it is worth a warning.
SKEW: Final = 1.0


class Clocks:
    """The two clocks of this host: ``now`` is the monotonic one."""

    def __init__(self, monotonic: Callable[[], float], wall: Callable[[], float]) -> None:
        self.now: Final = monotonic
        self._wall = wall
        self._offset = wall() - monotonic()
        self._skew = 0.0  # by how much the wall clock is ahead of the store's
        self._has_warned = False

    def compare(self, server_time: float, asked: float) -> None:
        """Notice by how much the wall clock differs from the store's, which was ``asked`` for the time at that moment."""
        took = self.now() - asked
        skew = self._wall() - took / 2 - server_time
        if abs(skew - self._skew) > took / 2 + INEXACT:
            self._skew = skew
        if abs(skew) > SKEW + took and not self._has_warned:
            self._has_warned = True
            how = "earlier" if skew > 0 else "later"
            logger.warning(
                "the clock of this host differs from the store's by %+.1f s: crontabs fire as much %s", skew, how
            )

    def has_stepped(self) -> bool:
        """Whether the wall clock was set since this was last asked."""
        before, self._offset = self._offset, self._wall() - self.now()
        return abs(self._offset - before) > SKEW / 2

    def store_time(self) -> datetime:
        """Return the time by the store's clock, as far as it is known."""
        return datetime.fromtimestamp(self._wall() - self._skew, timezone.utc)

    # -- times of runs -------------------------------------------------------------------------------------------------

    def state_of(self, entry: Any) -> EntryState:
        """Return the last run of an entry as all replicas know it."""
        return self.state(entry, entry.total_run_count, entry.last_run_at)

    def state(self, entry: Any, run: int, time_: datetime) -> EntryState:
        """Return what all replicas are to know of a run at this host's ``time_``."""
        return EntryState(run, _later(time_, -self._skew_of(entry)).isoformat())

    def time_of(self, state: EntryState, entry: Any, zone: Any) -> datetime:
        """Read a time in the zone of its entry: Celery takes a crontab's fields off it as it is (celery 5.4, schedules.py).

        Raises ValueError and the like for what is no time.
        """
        time_ = _later(datetime.fromisoformat(state.last_run_at), self._skew_of(entry))
        return time_.astimezone(zone) if time_.tzinfo and zone else time_

    def _skew_of(self, entry: Any) -> float:
        return self._skew if type(entry.schedule) is schedule and not entry.schedule.relative else 0.0


def overdue_for(entry: Any) -> float:
    """Seconds since when the entry has been due; 0 where its schedule cannot tell, or it has never run."""
    if entry.last_run_at.year == MINYEAR:
        return 0.0
    try:
        return max(0.0, -float(entry.schedule.remaining_estimate(entry.last_run_at).total_seconds()))
    except Exception:  # noqa: BLE001  a schedule of the user's
        return 0.0


def _later(time_: datetime, seconds: float) -> datetime:
    if not seconds:
        return time_
    # with a fixed offset, for Python adds to the wall time of a zone, over changes of its clocks too
    return datetime.fromisoformat(time_.isoformat()) + timedelta(seconds=seconds)

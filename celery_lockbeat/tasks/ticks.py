"""Which tick a task is run for, as its body asks: up to when, and since when.

Promises: what it tells is in the message, so that a retry, a copy and a run years later tell the same. Of a task that no tick has
asked for, and of a message that was made by others, there is none; what stands in such a message raises nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final

from celery._state import get_current_task

from celery_lockbeat.tasks.copies import tick_of

__all__ = ["Tick", "current_tick"]

#: Why a tick was published.
KINDS: Final = ("schedule", "catchup", "backfill", "manual")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """The tick that a task is run for. Times are aware.

    ``entry``: the name of its entry. ``due``: when it was due, by its schedule; jitter does not change it. ``previous_due``: when
    the tick before it was due, published or missed, so that bodies which process what is later than this, and not later than
    ``due``, leave nothing out; None: there was none before, or nobody can tell. ``run``: its number among the runs of the entry.
    ``kind``: ``schedule``; ``catchup``: no beat had published it in time, or it stands for others of which that is so; ``manual``:
    somebody asked for it; ``backfill``: for a past that they chose.
    """

    entry: str
    due: datetime
    previous_due: datetime | None
    run: int | None
    kind: str

    @property
    def lateness(self) -> float:
        """Seconds since it was due, by this host's clock."""
        return (datetime.now(timezone.utc) - self.due).total_seconds()


def current_tick() -> Tick | None:
    """Return the tick that the task is run for whose body asks; None: no beat of ours has asked for it."""
    task: Any = get_current_task()
    request = getattr(task, "request", None)
    return None if request is None else _read(tick_of(request))


def _read(told: Mapping[str, Any]) -> Tick | None:
    entry, due = told.get("entry"), _time(told.get("due"))
    if not isinstance(entry, str) or due is None:
        return None
    run, kind = told.get("run"), told.get("origin")
    return Tick(
        entry=entry,
        due=due,
        previous_due=_time(told.get("previous_due")),
        run=run if isinstance(run, int) else None,
        kind=kind if kind in KINDS else "schedule",
    )


def _time(text: Any) -> datetime | None:
    try:
        time_ = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return time_ if time_.tzinfo else None

"""Ticks that no worker has begun in the time that their entry allows (``start_within``): a worker that finds one says it is missed.

Promises: each is said once, by one worker of all that find a copy of its message, in its event and in the journal.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from celery import signals

from celery_lockbeat.journal.writer import journal_of
from celery_lockbeat.observe.events import Story
from celery_lockbeat.options import written
from celery_lockbeat.tasks.copies import BEGIN_BY, tick_of

__all__ = ["tell_expired"]


@signals.task_revoked.connect  # type: ignore[untyped-decorator]
def tell_expired(sender: Any, request: Any, expired: bool, **_: Any) -> None:
    """Say that a tick whose message has expired is missed, where that was ours to decide."""
    tick = tick_of(request)
    within = _allowed(tick)
    if not expired or within is None:
        return
    fields = {
        "schedule": tick.get("entry"),
        "task_name": sender.name,
        "task_id": request.id,
        "tick": tick.get("due"),
        "run": tick.get("run"),
        "hostname": request.hostname,
        "count": 1,
        "reason": f"no worker began it within {written(within)} s (start_within)",
    }
    story = Story(sender, "default", None, **fields)
    journal_of(sender.app).case(f"expired:{request.id}", "tick_missed", fields, lambda: story.later("tick_missed"))


def _allowed(tick: Any) -> float | None:
    try:
        due, latest = (datetime.fromisoformat(tick[name]) for name in ("due", BEGIN_BY))
        return (latest - due).total_seconds()
    except (LookupError, TypeError, ValueError):
        return None

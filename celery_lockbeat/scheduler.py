"""LockedScheduler: the beat scheduler of celery-lockbeat (``beat_scheduler = "celery_lockbeat:LockedScheduler"``).

Promises so far what celery's own scheduler does, without its file: it fires ``beat_schedule`` and what
``add_periodic_task`` adds. It does not yet agree with other replicas about their ticks: run one.
"""

from __future__ import annotations

from typing import Any

from celery.beat import Scheduler

from celery_lockbeat.options import AppOptions

__all__ = ["LockedScheduler"]


class LockedScheduler(Scheduler):  # type: ignore[misc]
    """Fires the entries of ``app.conf.beat_schedule``. Wrong ``lockbeat_*`` settings are a ConfigurationError."""

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        AppOptions.read(app.conf)
        super().__init__(app, *args, **kwargs)

"""What Celery's lifecycle signals mean to locks: for now, that nobody waits for a held key while a worker shuts down.

Receivers only start, stop and report: Celery swallows what they raise, so nothing here decides whether work may run.
"""

from __future__ import annotations

import threading
from typing import Any, Final

from celery import signals

__all__ = ["stopping"]

#: Set while a worker in this process shuts down. A prefork child is not told; its parent waits for it.
stopping: Final = threading.Event()


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _stop_waiting(**_: Any) -> None:
    stopping.set()


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def _wait_again(**_: Any) -> None:
    stopping.clear()

"""celery-lockbeat: Celery's periodic work, safe on many replicas."""

from importlib.metadata import version as _version

from celery_lockbeat import events as events
from celery_lockbeat import signals
from celery_lockbeat.control import schedules_of
from celery_lockbeat.exceptions import (
    ConfigurationError,
    LockbeatError,
    LockLost,
    LockNotAcquired,
    StoreUnavailable,
    TaskSkipped,
)
from celery_lockbeat.locks.lock import Lock, current_lock
from celery_lockbeat.membership import worker as _worker  # noqa: F401  its receivers make a worker a member
from celery_lockbeat.scheduler import LockedScheduler
from celery_lockbeat.schedules.decorators import cron, interval, timeout
from celery_lockbeat.tasks import checks as _checks  # noqa: F401  its receivers check who starts
from celery_lockbeat.tasks import expired as _expired  # noqa: F401  its receiver says what no worker has begun in time
from celery_lockbeat.tasks.task import LockedTask
from celery_lockbeat.tasks.ticks import Tick, current_tick

__all__ = [
    "ConfigurationError",
    "Lock",
    "LockLost",
    "LockNotAcquired",
    "LockbeatError",
    "LockedScheduler",
    "LockedTask",
    "StoreUnavailable",
    "TaskSkipped",
    "Tick",
    "__version__",
    "cron",
    "current_lock",
    "current_tick",
    "interval",
    "schedules_of",
    "signals",
    "timeout",
]

__version__ = _version("celery-lockbeat")


#: The modules that the documentation speaks of.
_DOCUMENTED = ("contrib", "events", "exceptions", "scheduler", "schedules", "testing")


def __dir__() -> list[str]:
    """What completion shows: the public names, and not the modules that they are made in."""
    return sorted([*__all__, "__doc__", *(name for name in _DOCUMENTED if name in globals())])

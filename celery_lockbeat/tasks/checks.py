"""What a worker, or a beat, refuses to start with.

Promises: an option that no lock reads, a body that nothing awaits and a store that cannot do what it must are found before
the pool is there, and end the process with one line. A store that is not there yet is a warning.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from celery import signals
from celery.app.annotations import resolve_all as resolve_all_annotations

from celery_lockbeat.exceptions import ConfigurationError, StoreUnavailable
from celery_lockbeat.options import LOCK_NAMES, TASK_PREFIX
from celery_lockbeat.stores import stores_of
from celery_lockbeat.tasks.awaiting import refuse_what_nothing_awaits
from celery_lockbeat.tasks.binding import lock_run
from celery_lockbeat.tasks.plan import LockPlan
from celery_lockbeat.tasks.task import LockedTask

__all__ = ["check_beat", "check_worker"]

logger: Final = logging.getLogger("celery_lockbeat")


@signals.celeryd_after_setup.connect  # type: ignore[untyped-decorator]
def check_worker(instance: Any, **_: Any) -> None:
    """Look at the tasks, and at the servers of their locks, before the worker has a pool."""
    app = instance.app
    tasks = [task for task in app.tasks.values() if isinstance(task, LockedTask)]
    options = {task: LockPlan(task, app).options for task in tasks}
    try:
        _refuse_options_without_a_lock(app)
        for task in tasks:
            lock_run(type(task), [task])
        refuse_what_nothing_awaits(instance, [task for task in tasks if options[task].enabled])
        for driver, connection in {(each.driver, each.connection) for each in options.values() if each.enabled}:
            _check_store(stores_of(app).choose(driver, connection)[0], connection)
    except ConfigurationError as exc:
        # Celery swallows all but what ends the process
        raise SystemExit(f"{type(exc).__name__}: {exc}") from exc


@signals.beat_init.connect  # type: ignore[untyped-decorator]
def check_beat(sender: Any, **_: Any) -> None:
    """Look at the tasks before the beat begins."""
    try:
        _refuse_options_without_a_lock(sender.app)
    except ConfigurationError as exc:
        raise SystemExit(f"{type(exc).__name__}: {exc}") from exc


def _refuse_options_without_a_lock(app: Any) -> None:
    """Refuse a lock's options at the decorator of a task that has none: nothing would read them. Raises ConfigurationError."""
    for task in app.tasks.values():
        cls = type(task)
        if isinstance(task, LockedTask) or not vars(cls).get("_decorated"):
            continue
        # of other libraries' or a user's own base, and set for all tasks at once, they are somebody else's
        others = {name for annotation in resolve_all_annotations(app.annotations, cls) for name in annotation}
        for name in vars(cls):
            own = name.startswith(TASK_PREFIX) and name.removeprefix(TASK_PREFIX) in LOCK_NAMES
            if own and name not in others and not any(hasattr(base, name) for base in cls.__bases__):
                value = getattr(task, name)
                raise ConfigurationError(
                    f"{name} of {task.name} is {value!r}, but this task has no lock; allowed: such options with a LockedTask "
                    f"for its base, @app.task(base=LockedTask, {name}={value!r})"
                )


def _check_store(store: Any, connection: str) -> None:
    try:
        store.check()
    except StoreUnavailable as exc:
        logger.warning("connection %r of the locks is not there yet: %s", connection, exc)
    # a child would inherit the connection, and keep it open
    store.close()

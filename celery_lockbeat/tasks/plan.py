"""What all attempts of a task share: the options of its lock, how the keys of a call are made, its stores and its journal.

Promises: it is right, or a ConfigurationError says what is not, before the task runs for the first time.
"""

from __future__ import annotations

import inspect
from functools import cached_property
from typing import Any, Final

from celery import Task
from celery.utils.functional import firstmethod

from celery_lockbeat.journal.writer import Journal, journal_of
from celery_lockbeat.options import TASK_PREFIX, AppOptions, LockOptions
from celery_lockbeat.stores import Stores, stores_of
from celery_lockbeat.tasks.keys import KeysOf, bound_keys

__all__ = ["LockPlan"]

#: What ``task_annotations`` say of a task by its name.
_annotated: Final = firstmethod("annotate")


class LockPlan:
    """The lock of a task, or of a class of tasks, as ``app`` configures it. Raises ConfigurationError."""

    def __init__(self, task: Task | type[Task], app: Any) -> None:
        self._app = app
        #: whether the last run that asked for its key found it held: then the next asks for a place in line at once
        self.is_contended = False
        task_class: Any = task if isinstance(task, type) else type(task)
        owner = task.name or task_class.__qualname__
        # Not getattr(): it would make a bound method of a function that is the value of lock_key.
        own = {
            name: _plain_function(value)
            for cls in reversed(task_class.__mro__)
            for name, value in vars(cls).items()
            if name.startswith(TASK_PREFIX)
        }
        if _is_celerys(task_class, app):
            own = {"lock_enabled": False}
        self.options: Final = LockOptions.read(app.conf, own, owner=owner, prefix=TASK_PREFIX)
        stores = Stores(AppOptions.read(app.conf))
        stores.options.check_timeouts(self.options, owner=owner)
        stores.choose(self.options.driver, self.options.connection)  # which refuses what it cannot be made of
        # Celery makes a staticmethod of a decorated function, but for bind=True; a method gets the task first
        body = inspect.getattr_static(task_class, "run").__get__(object(), task_class)
        self.keys_of: Final[KeysOf] = bound_keys(self.options, body, owner=owner)

    @cached_property
    def stores(self) -> Stores:
        """Where its locks may be."""
        return stores_of(self._app)

    @cached_property
    def journal(self) -> Journal:
        """Where its attempts are written."""
        return journal_of(self._app)


def _is_celerys(task_class: type[Task], app: Any) -> bool:
    """Whether this is one of Celery's own tasks, which has become a locked one by ``app.task_cls`` alone.

    Under one key most of ``celery.chord_unlock`` would be skipped, and chords never end. ``task_annotations`` can ask for
    the lock of one, by its name.
    """
    celerys = str(task_class.name).startswith("celery.") and task_class.__module__.startswith("celery.")
    return celerys and not {"lock_enabled", "lock_key"} & set(_annotated(app.annotations, task_class) or ())


def _plain_function(attribute: Any) -> Any:
    return attribute.__func__ if isinstance(attribute, staticmethod) else attribute

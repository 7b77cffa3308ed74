"""Where the lock goes: around ``run`` of a task, so that it is taken wherever the body is reached, whoever calls it.

Promises: after :func:`lock_run` each way to the body leads through the lock: the worker's, ``self.run()`` in the ``__call__``
of another base (as Flask's documentation writes it), ``super().__call__()``, ``task.run()``. What ``autoretry_for`` adds is
inside of the lock, so that a try which is to be repeated does not count as the end of its task. The lock of an ``async def`` is held
until its coroutine has ended. A task of which that cannot be said is refused.

Not promised: what somebody puts in the place of ``run`` later (a mock); a worker looks once more when it starts.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from celery import Task
from celery.app.autoretry import add_autoretry_behaviour

from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.tasks.awaiting import has_call, is_awaited

__all__ = ["Unraised", "lock_run"]

#: The mark of a function that takes the lock.
_MARK: Final = "lockbeat_takes_the_lock"


class Unraised:
    """What ``_run_locked`` returns for an exception that ``run`` is to raise, without the frames between the two."""

    __slots__ = ("exception",)

    def __init__(self, exception: BaseException) -> None:
        self.exception: Final = exception


def lock_run(task_class: type[Task], tasks: Iterable[Task]) -> None:
    """Let ``run`` of a class go through its ``_run_locked``, and that of those ``tasks`` of it that have one of their own.

    Each once, however often this is called. Raises ConfigurationError.
    """
    tasks = list(tasks)
    for task in tasks:
        # Celery does so itself as soon as the task is bound (celery 5.7, app/base.py), when it would get outside of the lock
        add_autoretry_behaviour(task)
    own = inspect.getattr_static(task_class, "run")
    if own is Task.run:
        _refuse_a_body_in_call(tasks)
    elif not _takes_the_lock(own):
        task_class.run = _of_class(task_class, own)
    for task in tasks:
        if "run" in vars(task) and not _is_locked(task):
            task.run = _of_task(task, task.run)
        if not any(map(_takes_the_lock, _layers(task.run))):
            raise ConfigurationError(
                f"run of {task.name} is {task.run!r}; allowed: a function or a method of its class"
            )


def _of_class(task_class: type[Task], own: Any) -> Callable[..., Any]:
    """What stands in a class in the place of ``own``: a function, or what Celery makes of it, a staticmethod."""
    bind = own.__get__ if hasattr(own, "__get__") else lambda _task, _cls: own
    as_called = own if inspect.isfunction(own) else bind(object(), task_class)
    _refuse_a_generator(task_class, as_called)

    def run(task: Any, /, *args: Any, **kwargs: Any) -> Any:
        result = task._run_locked(bind(task, type(task)), args, kwargs)
        if type(result) is Unraised:
            raise result.exception.with_traceback(None) from None
        return result

    async def run_awaited(task: Any, /, *args: Any, **kwargs: Any) -> Any:
        return await task._await_locked(bind(task, type(task)), args, kwargs)

    locked = _marked(run_awaited if is_awaited(as_called) else run, as_called)
    if as_called is not own:
        # inspect sees through what wraps() makes; but what it sees there has no parameter for the task
        signature = inspect.signature(as_called)
        itself = inspect.Parameter("_task", inspect.Parameter.POSITIONAL_ONLY)
        locked.__signature__ = signature.replace(parameters=[itself, *signature.parameters.values()])  # type: ignore[attr-defined]
    return locked


def _of_task(task: Task, own: Callable[..., Any]) -> Callable[..., Any]:
    """What stands in an instance in the place of ``own``, which ``autoretry_for`` or its ``__init__`` has put there."""
    _refuse_a_generator(task, own)

    def run(*args: Any, **kwargs: Any) -> Any:
        result = task._run_locked(own, args, kwargs)
        if type(result) is Unraised:
            raise result.exception.with_traceback(None) from None
        return result

    async def run_awaited(*args: Any, **kwargs: Any) -> Any:
        return await task._await_locked(own, args, kwargs)

    return _marked(run_awaited if is_awaited(own) else run, own)


def _marked(run: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    functools.update_wrapper(run, own)
    setattr(run, _MARK, run)
    return run


def _takes_the_lock(run: Any) -> bool:
    function = getattr(run, "__func__", run)
    # wraps() copies the mark, but not what it says
    return getattr(function, _MARK, None) is function


def _is_locked(task: Task) -> bool:
    """Whether ``task.run`` takes the lock outside of what ``autoretry_for`` adds."""
    inner = vars(task).get("_orig_run")
    for layer in _layers(task.run):
        if layer == inner:
            return False
        if _takes_the_lock(layer):
            return True
    return False


def _layers(run: Any) -> Iterator[Any]:
    """A function, and what it wraps, from the outside in."""
    while run is not None:
        yield run
        run = getattr(run, "__wrapped__", None)


def _refuse_a_body_in_call(tasks: list[Task]) -> None:
    for task in tasks:
        if has_call(task):
            allowed = "a body in run(), which __call__ calls: the lock is taken there"
            raise ConfigurationError(f"__call__ of {task.name} is its body, for it has no run(); allowed: {allowed}")


def _refuse_a_generator(task: Any, run: Callable[..., Any]) -> None:
    if inspect.isgeneratorfunction(run) or inspect.isasyncgenfunction(run):
        allowed = "a function that returns, or a coroutine: a lock cannot be held while others iterate"
        raise ConfigurationError(f"run of {task.name} is a generator; allowed: {allowed}")

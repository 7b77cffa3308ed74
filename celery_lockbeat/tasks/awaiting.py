"""Who awaits the body of a task that is ``async def``.

A worker of Celery's own awaits nothing: it takes the coroutine for the result. There is somebody who awaits it under a
pool of another kind (celery-aio-pool), and where a base of the task does in its ``__call__``. Which pool there is only the
worker knows; a beat, or a web process that sends the task, need not.

Promises: where it is certain that nothing awaits a task, a worker that consumes its queue does not start, and one that gets
it all the same fails it, with what to do.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

from celery import Task, signals
from celery.app.autoretry import add_autoretry_behaviour
from celery.app.base import Celery

from celery_lockbeat.exceptions import ConfigurationError

__all__ = ["carried", "carry_requests", "has_call", "is_awaited", "refuse_what_nothing_awaits"]

logger: Final = logging.getLogger("celery_lockbeat")

WHAT_TO_DO: Final = (
    "run it in a worker whose pool awaits (celery-aio-pool), or give it a base whose __call__ does, by "
    "asyncio.run(self.run(*args, **kwargs)), or make it a plain function"
)

#: Where Celery makes wrappers of a body that hand on what it returns: pydantic=True, autoretry_for.
_BY_CELERY: Final = frozenset({Celery.task.__code__.co_filename, add_autoretry_behaviour.__code__.co_filename})


def is_awaited(run: Any) -> bool:
    """Whether whoever calls this gets a coroutine, as far as its definition tells."""
    while not inspect.iscoroutinefunction(run):
        code = getattr(getattr(run, "__func__", run), "__code__", None)
        if code is None or code.co_filename not in _BY_CELERY or not hasattr(run, "__wrapped__"):
            return False
        run = run.__wrapped__
    return True


def has_call(task: Task) -> bool:
    """Whether a base of this task has a ``__call__`` of its own, which may await what ``run`` returns."""
    # not task_has_custom(): in a worker it takes the __call__ that Celery has patched for one
    return type(task).__call__ is not Task.__call__


# -- requests, where a body runs in another thread than the worker's ---------------------------------------------------

#: The task and the request that Celery is about to run in this context. Contexts go where the body goes, by ``asyncio`` and
#: ``to_thread``; Celery's own stack of requests stays in the thread.
carried: ContextVar[tuple[Any, Any] | None] = ContextVar("lockbeat_carried", default=None)


def carry_requests() -> None:
    """Take requests along from now on. Not before somebody needs it, for Celery's signals cost each run some time."""
    signals.task_prerun.connect(_take_along, weak=False)
    signals.task_postrun.connect(_leave_behind, weak=False)


def _take_along(task: Any, **_: Any) -> None:
    carried.set((task, task.request_stack.top))


def _leave_behind(task: Any, retval: Any = None, **_: Any) -> None:
    carried.set(None)
    if inspect.iscoroutine(retval) and hasattr(task, "_run_locked"):
        retval.close()
        logger.error("%s did not run, for nothing has awaited it: %s", task.name, WHAT_TO_DO)


# -- the worker --------------------------------------------------------------------------------------------------------


def refuse_what_nothing_awaits(worker: Any, tasks: list[Any]) -> None:
    """Look at the pool of a worker that starts: raises ConfigurationError for a task that it consumes and would not await."""
    if not worker.pool_cls.__module__.startswith("celery.concurrency.") or "celery_aio_pool" in sys.modules:
        carry_requests()  # which may run any task in another thread
        return
    for task in tasks:
        if is_awaited(task.run) and not has_call(task):
            refusal = ConfigurationError(
                f"run of {task.name} is async def, and the pool {worker.pool_cls.__module__} awaits nothing; "
                f"allowed: {WHAT_TO_DO}"
            )
            if _queue_of(task) in worker.app.amqp.queues.consume_from:
                raise refusal
            # another worker's, it seems; but whoever sends it may name any queue
            task.run = _refusing(task.run, refusal)


def _refusing(run: Callable[..., Any], refusal: ConfigurationError) -> Callable[..., Any]:
    @functools.wraps(run)
    def refuse(*_: Any, **__: Any) -> None:
        raise ConfigurationError(*refusal.args)

    return refuse


def _queue_of(task: Any) -> str | None:
    try:
        route = task.app.amqp.router.route(dict(task._get_exec_options()), task.name, (), {})
        return str(route["queue"].name)
    except Exception:  # noqa: BLE001  a router of the user's, which wants arguments
        return None

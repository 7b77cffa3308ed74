"""LockedTask: a task whose body runs under its lock.

Promises: whoever calls the body, and in whatever way, one attempt of the task is made of that call (see ``run.py``), but
for calls from within an attempt of the same request: those are a part of it. Wrong options are refused when the task is bound.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import CoroutineType
from typing import TYPE_CHECKING, Any
from weakref import ref

from celery import Task, states
from celery.app.task import Context
from celery.exceptions import TaskRevokedError
from celery.fixups.django import DjangoFixup
from celery.result import EagerResult
from celery.states import IGNORED

from celery_lockbeat.exceptions import ConfigurationError, TaskSkipped
from celery_lockbeat.tasks.awaiting import WHAT_TO_DO, carried, carry_requests, is_awaited
from celery_lockbeat.tasks.binding import Unraised, lock_run
from celery_lockbeat.tasks.plan import LockPlan
from celery_lockbeat.tasks.run import Attempt, AwaitedAttempt, lock_of_eager
from celery_lockbeat.tasks.unique import send_once

__all__ = ["LockedTask"]

#: The requests whose bodies are under way here, of whatever tasks. Not a mark in the requests themselves: Celery makes
#: copies of them, and sends on what it does not know in them.
_going: ContextVar[tuple[Any, ...]] = ContextVar("lockbeat_going", default=())

#: The request whose run has ended here last: a ``__call__`` that calls ``self.run()`` twice starts another run.
_ended: ContextVar[Callable[[], Any]] = ContextVar("lockbeat_ended", default=lambda: None)


class _OnCommit:
    """A method of Celery's ``DjangoTask``, for the tasks of an app with Celery's support for Django; all others have none.

    Asked for at each look-up, not copied when a task is bound: so a subclass can call its ``super()``.
    """

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self._name = name

    def __get__(self, task: LockedTask | None, owner: type[LockedTask]) -> Any:
        # another base of a user's may have it
        found = getattr(super(LockedTask, owner), self._name, None)
        if found is None and _supports_django(owner._app):
            # late: it imports Django
            from celery.contrib.django.task import DjangoTask  # noqa: PLC0415

            found = getattr(DjangoTask, self._name)
        if found is None:
            raise AttributeError(f"{owner.__name__} has no {self._name}: its app has no support for Django")
        return found if task is None else found.__get__(task, owner)


class LockedTask(Task):  # type: ignore[misc]
    """A task of which at most one run per lock key goes on at a time.

    >>> @app.task(base=LockedTask, lock_ttl=60)  # doctest: +SKIP
    ... def sync_report(): ...

    Its options are the attributes ``lock_*`` (see docs/reference.md); None means: as the setting ``lockbeat_*`` says. A
    held key skips the run (state REVOKED, :class:`TaskSkipped`), or fails it with :class:`LockNotAcquired` where
    ``lock_if_held`` is "fail". A store out of reach fails it with :class:`StoreUnavailable`, and a lock that was lost
    with :class:`LockLost`; ``autoretry_for`` works for all three. Wrong options are a :class:`ConfigurationError`, when
    the app is finalized: at the start of a worker or a beat.
    """

    abstract = True

    lock_enabled: bool | None = None
    lock_key: Any = None
    lock_driver: str | None = None
    lock_connection: str | None = None
    lock_ttl: float | None = None
    lock_auto_extend: bool | None = None
    lock_extend_interval: float | None = None
    lock_retry_attempts: int | None = None
    lock_retry_delay: float | None = None
    lock_retry_jitter: float | None = None
    lock_if_held: str | None = None
    lock_skip_if_locked: bool | None = None
    lock_wait_at_most: float | None = None
    lock_line_limit: int | None = None
    lock_limit: int | None = None
    lock_hold_at_least: float | None = None
    lock_hold_at_most: float | None = None
    lock_on_lost: str | None = None
    lock_dedupe_ttl: float | None = None
    lock_unique: str | bool | None = None
    lock_unique_ttl: float | None = None
    lock_expected_within: float | None = None
    lock_logging: str | bool | None = None

    #: by the name of the task, for two instances of one class may be registered under names of their own
    _lock_plans: Mapping[str, LockPlan] = {}

    if TYPE_CHECKING:

        def delay_on_commit(self, *args: Any, **kwargs: Any) -> None:
            """Under Django: ``delay`` the task as soon as the transaction is committed."""

        def apply_async_on_commit(self, *args: Any, **kwargs: Any) -> None:
            """Under Django: ``apply_async`` the task as soon as the transaction is committed."""
    else:
        delay_on_commit = _OnCommit()
        apply_async_on_commit = _OnCommit()

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Validate the options as soon as Celery binds the task, after ``task_annotations``, and lock its body."""
        super().on_bound(app)
        cls._lock_plans = {}
        tasks = _registered(cls, app)
        # first, for the app knows the task by now, and so may another thread
        lock_run(cls, tasks)
        known: list[Any] = [*tasks] or [cls]
        for task in known:
            LockPlan(task, app)
        if any(is_awaited(task.run) for task in tasks):
            carry_requests()

    def apply_async(
        self, args: Any = None, kwargs: Any = None, task_id: str | None = None, *more: Any, **options: Any
    ) -> Any:
        """Send a message for one run; with ``lock_unique`` only if there is none for its key, else return the result of that one."""
        send = super().apply_async
        unique = self.lock_unique if self.lock_unique is not None else self.app.conf.get("lockbeat_unique")
        plan = self._plan() if unique else None
        if plan is None or not plan.options.enabled:
            return send(args, kwargs, task_id, *more, **options)
        options.update(zip(("producer", "link", "link_error", "shadow"), more, strict=False))
        return send_once(self, plan, send, args, kwargs, task_id, options)

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task here and now; a skipped run has the state REVOKED, as it has from a worker."""
        result = super().apply(*args, **kwargs)
        if isinstance(result.result, CoroutineType):
            result.result.close()
            raise ConfigurationError(
                f"run of {self.name} is async def, and apply() awaits nothing; allowed: {WHAT_TO_DO}"
            )
        if result.state == IGNORED and isinstance(result.result, TaskSkipped):
            return EagerResult(result.id, TaskRevokedError(str(result.result)), states.REVOKED, name=self.name)
        return result

    def on_replace(self, sig: Any) -> Any:
        """Hand over to what replaces this run, which may have the same key."""
        lock = lock_of_eager(self.request)
        if lock is not None:
            # In a worker the other begins when this run has ended. Called at once, it would find its key held by this one.
            lock.end(hold=False, finished=False)
        return super().on_replace(sig)

    def _run_locked(self, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a body under its lock, once per request; ``binding`` puts this around ``run``.

        Where no message asks for it, a held key raises :class:`TaskSkipped`.
        """
        stack: list[Any] = self.request_stack.stack
        if not stack:
            # task.run(): a request says that it is under way. Or a pool that runs a body in another thread than the worker's.
            request = self._carried() or Context(args=args, kwargs=kwargs)
            return self._run_within(request, body, args, kwargs)
        going = _going.get()
        if stack[-1] in going:
            # self.run() or super().run() within the body
            return body(*args, **kwargs)
        message = _message_of(stack, going)
        if message is not None:
            if message is not stack[-1]:
                # Out of a worker super().__call__ pushes an empty request before the one that the body asks for (celery 5.4,
                # app/task.py; app/trace.py patches it within a worker only).
                return self._run_within(message, body, args, kwargs)
            # a body that calls its own task starts another run: else Celery's __call__ would take this request for that call's
            message._protected = 1
        first = stack[0]
        outer = _going.set((*going, *stack))
        try:
            return Attempt(self, self._plan(), message, body, args, kwargs).carry_out()
        except TaskSkipped as skipped:
            if message is None:
                raise
            # Celery copies and formats each frame of it, twice, and shows none: that was a third of what a skipped run costs
            return Unraised(skipped)
        finally:
            _going.reset(outer)
            _ended.set(ref(first))

    async def _await_locked(self, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As ``_run_locked``, of a coroutine: the lock is held until it has ended."""
        request = self._carried()
        # copied, for others of this thread change it meanwhile
        stack = [*self.request_stack.stack] or [request or Context(args=args, kwargs=kwargs)]
        going = _going.get()
        if stack[-1] in going:
            return await body(*args, **kwargs)
        message = _message_of(stack, going)
        if message is not None:
            message._protected = 1
        before = carried.get()
        _going.set((*going, *stack))
        carried.set((self, stack[-1]))
        try:
            return await AwaitedAttempt(self, self._plan(), message, body, args, kwargs).carry_out()
        finally:
            # not reset(): a coroutine may be closed in another context than it ran in
            _going.set(going)
            carried.set(before)
            _ended.set(ref(stack[0]))

    def _carried(self) -> Any:
        """The request of this task that a pool has taken to another thread."""
        of, request = carried.get() or (None, None)
        return request if of is self else None

    def _run_within(self, request: Any, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.request_stack.push(request)
        try:
            return self._run_locked(body, args, kwargs)
        finally:
            self.request_stack.pop()

    def _plan(self) -> LockPlan:
        plan = self._lock_plans.get(self.name)
        if plan is None:
            # read at the first run, so that settings made after the task's definition count
            plan = LockPlan(self, self.app)
            type(self)._lock_plans = {**self._lock_plans, self.name: plan}
        return plan


def _registered(cls: type[LockedTask], app: Any) -> list[LockedTask]:
    """The instances of a class that an app knows by now: Celery enters them before it binds them."""
    task = app._tasks.get(cls.name)
    if type(task) is cls:
        return [task]
    # the name is the instance's own
    return [task for task in app._tasks.values() if type(task) is cls]


def _message_of(stack: list[Any], going: tuple[Any, ...]) -> Any:
    """The request of the message, or of ``apply()``, that asks for a run; None where it is another call."""
    if _ended.get()() is stack[0] or (going and any(request in going for request in stack)):
        return None
    for request in reversed(stack):
        if not request.called_directly:
            return request
    return None


def _supports_django(app: Any) -> bool:
    """Whether Celery has installed its support for Django in this app, or its tasks are Django's for another reason."""
    if app is None:
        return False
    if any(isinstance(fixup, DjangoFixup) for fixup in app._fixups or ()):
        return True
    djangos = sys.modules.get("celery.contrib.django.task")
    return djangos is not None and issubclass(app.Task, djangos.DjangoTask)

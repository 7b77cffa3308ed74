"""LockedTask: acquire, run, release around a task's body, told as one story.

Promises: the body runs only while its key is ours; whatever ends it frees the key; a run that could not have its key,
or has been brought to its end before, answers whoever waits for it; each run logs one ``task_started``, one of
``task_succeeded``, ``task_failed``, ``task_retried`` and ``task_skipped``, and one ``task_finished``.

A run is one try of one task (see ``runs.py``). When it comes to its end, so do all tries of that task, whatever copies of
their messages are under way: a copy of a try that could not have its key would else start a second chain of tries.
"""

from __future__ import annotations

import inspect
import logging
import socket
import sys
import time
from asyncio import CancelledError
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, NoReturn
from weakref import WeakKeyDictionary, ref

from celery import Task, signals, states
from celery.app.annotations import resolve_all as resolve_all_annotations
from celery.app.autoretry import add_autoretry_behaviour
from celery.app.task import Context
from celery.exceptions import Ignore, Reject, Retry, TaskRevokedError
from celery.fixups.django import DjangoFixup
from celery.result import EagerResult
from celery.states import IGNORED
from celery.utils.functional import firstmethod

from celery_lockbeat.exceptions import (
    ConfigurationError,
    LockbeatError,
    LockLost,
    LockNotAcquired,
    StoreUnavailable,
    TaskSkipped,
)
from celery_lockbeat.locks.children import events_wanted, this_process
from celery_lockbeat.locks.lock import Lock, Scope
from celery_lockbeat.observe.events import Story
from celery_lockbeat.options import LOCK_NAMES, TASK_PREFIX, AppOptions, LockOptions
from celery_lockbeat.stores import Finished, Held, Stores, stores_of
from celery_lockbeat.tasks import limits
from celery_lockbeat.tasks.awaiting import (
    WHAT_TO_DO,
    carried,
    carry_requests,
    is_awaited,
    off_the_loop,
    refuse_what_nothing_awaits,
)
from celery_lockbeat.tasks.binding import Unraised, lock_run
from celery_lockbeat.tasks.copies import (
    NONCE,
    POSTPONED,
    REDELIVERED,
    delivered_again,
    headers_of,
    may_be_sent_anew,
    name_of,
    name_of_all_tries,
    nonce_of,
    postponed,
    task_of,
)
from celery_lockbeat.tasks.keys import bound_key

__all__ = ["LockedTask"]

logger: Final = logging.getLogger("celery_lockbeat")

#: At most so many seconds pass until a copy of a message asks again whether its run is over: less than a lease, for the
#: lock of a run that dies may be freed long before its lease ends, and a copy costs but a message and a round trip.
COPY_COMES_WITHIN: Final = 5.0

#: The headers of ours: the tick of a beat, and those of runs.py.
_HEADERS: Final = ("lockbeat", NONCE, POSTPONED)

#: One of these is told of each run.
_OUTCOMES: Final = frozenset({"task_succeeded", "task_failed", "task_retried", "task_skipped"})

#: The requests whose bodies are under way here, of whatever tasks. Not told by a mark in them: Celery makes copies of
#: requests, and sends on what it does not know in them.
_going: ContextVar[tuple[Any, ...]] = ContextVar("lockbeat_going", default=())

#: The request whose run has ended here last: a ``__call__`` that calls ``self.run()`` twice starts another run.
_ended: ContextVar[Callable[[], Any]] = ContextVar("lockbeat_ended", default=lambda: None)


#: The locks of the runs of ``apply()`` that go on here, by their requests.
_eager: Final[WeakKeyDictionary[Any, Lock]] = WeakKeyDictionary()

#: What ``task_annotations`` say of a task by its name.
_annotated: Final = firstmethod("annotate")


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
    ``lock_skip_if_locked`` is False. A store out of reach fails it with :class:`StoreUnavailable`, and a lock that was lost
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
    lock_skip_if_locked: bool | None = None
    lock_hold_at_least: float | None = None
    lock_on_lost: str | None = None
    lock_dedupe_ttl: float | None = None
    lock_logging: str | bool | None = None

    #: by the name of the task, for two instances of one class may be registered under names of their own
    _lock_plans: Mapping[str, _Plan] = {}

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
            _Plan(task, app)
        if any(is_awaited(task.run) for task in tasks):
            carry_requests()

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
        lock = _eager.get(self.request)
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
            return _Run(self, self._plan(), message, body, args, kwargs).carry_out()
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
            return await _Run(self, self._plan(), message, body, args, kwargs).carry_out_awaited()
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

    def _plan(self) -> _Plan:
        plan = self._lock_plans.get(self.name)
        if plan is None:
            # read at the first run, so that settings made after the task's definition count
            plan = _Plan(self, self.app)
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
    return next((request for request in reversed(stack) if not request.called_directly), None)


@signals.celeryd_after_setup.connect  # type: ignore[untyped-decorator]
def _check_before_the_start(instance: Any, **_: Any) -> None:
    """Look at the tasks and at the servers of their locks before the worker has a pool, and end it if one cannot do what is needed."""
    app = instance.app
    tasks = [task for task in app.tasks.values() if isinstance(task, LockedTask)]
    plans = {task: _Plan(task, app).options for task in tasks}
    try:
        _refuse_options_without_a_lock(app)
        for task in tasks:
            lock_run(type(task), [task])
        refuse_what_nothing_awaits(instance, [task for task in tasks if plans[task].enabled])
        for driver, connection in {(plan.driver, plan.connection) for plan in plans.values() if plan.enabled}:
            _check_store(stores_of(app).choose(driver, connection)[0], connection)
    except ConfigurationError as exc:
        # Celery swallows all but what ends the process
        raise SystemExit(f"{type(exc).__name__}: {exc}") from exc


@signals.beat_init.connect  # type: ignore[untyped-decorator]
def _check_before_the_start_of_a_beat(sender: Any, **_: Any) -> None:
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


class _Plan:
    """What all runs of a task share: its options, and how a call's key is made. Raises ConfigurationError."""

    __slots__ = ("key_of", "options")

    def __init__(self, task: LockedTask | type[LockedTask], app: Any) -> None:
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
        self.key_of: Final = bound_key(self.options, body, owner=owner)


def _is_celerys(task_class: type[LockedTask], app: Any) -> bool:
    """Whether this is one of Celery's own tasks, which has become a locked one by ``app.task_cls`` alone.

    Under one key most of ``celery.chord_unlock`` would be skipped, and chords never end. ``task_annotations`` can ask for
    the lock of one, by its name.
    """
    celerys = str(task_class.name).startswith("celery.") and task_class.__module__.startswith("celery.")
    return celerys and not {"lock_enabled", "lock_key"} & set(_annotated(app.annotations, task_class) or ())


def _supports_django(app: Any) -> bool:
    """Whether Celery has installed its support for Django in this app, or its tasks are Django's for another reason."""
    if app is None:
        return False
    if any(isinstance(fixup, DjangoFixup) for fixup in app._fixups or ()):
        return True
    djangos = sys.modules.get("celery.contrib.django.task")
    return djangos is not None and issubclass(app.Task, djangos.DjangoTask)


def _plain_function(attribute: Any) -> Any:
    return attribute.__func__ if isinstance(attribute, staticmethod) else attribute


class _Run:
    """One run. It knows its lock, if it has one, and tells its story."""

    lock: Lock | None = None
    whole_is_over = False
    result: Any = None
    #: whether its message has been postponed: then nothing is told of it
    is_postponed = False
    #: whether its lock was still ours at the release; None: not yet released
    held: bool | None = None
    #: what it ends with, as far as that is known; None: with its result
    ending: BaseException | None = None
    is_answered = False
    is_told = False
    #: when the body was entered, on the local clock, and what the run has spent, ms: in the body, and on its lock
    entered: float | None = None
    duration_ms = 0.0
    acquire_ms: float | None = None
    release_ms: float | None = None

    def __init__(
        self,
        task: LockedTask,
        plan: _Plan,
        request: Any,
        body: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.task = task
        self.options = plan.options
        self.key_of = plan.key_of
        self.request = request
        self.body = body
        self.args = args
        self.kwargs = kwargs
        if request is not None:
            _unhide_headers(request)
        tick = _tick_of(request)
        self.story = Story(
            task,
            plan.options.logging,
            task_id=request and request.id,
            task_name=task.name,
            kind=tick.get("kind", "task"),
            schedule=tick.get("entry"),
            tick=tick.get("due"),
            hostname=request and request.hostname,
        )

    def carry_out(self) -> Any:
        """Acquire, run, release. Returns what the body returns; raises what it raises, or why it did not run."""
        try:
            try:
                return self._carry_out()
            except BaseException as exc:
                if exc is self.ending or self.is_postponed:
                    raise
                self._end_struck(exc)
                if self.ending is not None:
                    raise self.ending from None
                return self.result
        finally:
            self._leave()

    def _carry_out(self) -> Any:
        try:
            self.result = self._run_body()
        except _SafetyCopy as copy:
            raise self._postpone(copy) from None
        except BaseException as exc:
            self._end(exc)
            if self.ending is None or self.ending is exc:
                raise
            raise self.ending from exc
        self._end(None)
        if self.ending is not None:
            raise self.ending
        return self.result

    def _leave(self) -> None:
        if self.lock is not None:
            # an exception from outside may have hit the release itself, and hit it again
            self.lock.abandon()
        request = self.request
        limits.over(self, None if request is None or request.is_eager else request)

    def _run_body(self) -> Any:
        if self.options.enabled:
            self._acquire()
        limits.ending(self)  # no line of the start may be lost, either
        self._start()
        limits.over(self)
        self.entered = time.monotonic()
        scope = Scope(self.lock)
        try:
            if self.lock is None:
                return self.body(*self.args, **self.kwargs)
            self.lock.arm()
            try:
                result = self.body(*self.args, **self.kwargs)
            finally:
                self.lock.disarm()
        finally:
            limits.ending(self)
            scope.leave()
        if type(result) is CoroutineType:
            result.close()
            allowed = "an async def without a wrapper around it, or what awaits it itself"
            raise ConfigurationError(
                f"run of {self.task.name} returns a coroutine, which has no lock; allowed: {allowed}"
            )
        return result

    async def carry_out_awaited(self) -> Any:
        """As ``carry_out``, of a coroutine. What waits for the store does so off the event loop."""
        try:
            try:
                self.result = await self._await_body()
            except GeneratorExit as exc:
                # it is closed, not cancelled: nothing can be awaited any more
                self._end(exc)
                raise
            except _SafetyCopy as copy:
                raise await self._elsewhere(self._postpone, copy) from None
            except BaseException as exc:
                await self._elsewhere(self._end, exc)
                if self.ending is None or self.ending is exc:
                    raise
                raise self.ending from exc
            await self._elsewhere(self._end, None)
            if self.ending is not None:
                raise self.ending
            return self.result
        finally:
            self._leave()

    async def _await_body(self) -> Any:
        if self.options.enabled:
            await self._elsewhere(self._acquire)
        limits.ending(self)  # no line of the start may be lost, either
        self._start()
        limits.over(self)
        self.entered = time.monotonic()
        scope = Scope(self.lock)
        try:
            if self.lock is None:
                return await self.body(*self.args, **self.kwargs)
            abort = self.lock.arm(awaited=True)
            try:
                return await self.body(*self.args, **self.kwargs)
            except CancelledError as exc:
                if abort is None or not abort.cancelled:
                    raise
                raise LockLost from exc
            except Exception as exc:
                if self.request is None or not self.task.autoretry_for:
                    raise
                # what autoretry_for adds around a body awaits nothing, so it has not seen this
                raise await self._elsewhere(self._autoretried, exc) from exc
            finally:
                self.lock.disarm()
        finally:
            limits.ending(self)
            scope.leave()

    async def _elsewhere(self, step: Callable[..., Any], *args: Any) -> Any:
        """Take a step that waits for a server in another thread, which has this run's request, too."""
        return await off_the_loop(self._with_request, step, *args)

    def _with_request(self, step: Callable[..., Any], *args: Any) -> Any:
        if self.request is None:
            return step(*args)
        self.task.request_stack.push(self.request)
        try:
            return step(*args)
        finally:
            self.task.request_stack.pop()

    # -- acquire -------------------------------------------------------------------------------------------------------

    def _acquire(self) -> None:
        key = self.key_of(self.task, self.args, self.kwargs)
        lock = Lock.of_run(
            key,
            self.options,
            stores_of(self.task.app),
            self.story,
            run=name_of(self.request),
            whole=name_of_all_tries(self.request),
            description=f"{self._hostname()} pid {this_process.pid} {self.task.name}[{self.request and self.request.id}]",
        )
        self.lock = lock
        if self.request is not None and self.request.is_eager:
            _eager[self.request] = lock
        began = time.monotonic()
        try:
            refusal = lock.take()
        finally:
            self.acquire_ms = _ms_since(began)
        if refusal is not None:
            raise self._refused(key, refusal)

    def _hostname(self) -> str:
        return str((self.request and self.request.hostname) or socket.gethostname())

    def _refused(self, key: str, refusal: Held | Finished) -> Exception:
        """What is raised in place of the run."""
        if isinstance(refusal, Finished):
            self.whole_is_over = refusal.whole
            return TaskSkipped(f"duplicate: this run has ended before, under lock {key!r}", reason="duplicate", key=key)
        if refusal.same_run:
            return _SafetyCopy(refusal.remaining)
        if name_of(self.request) is not None and task_of(refusal.run) == self.request.id:
            # Celery sends the message of self.retry() and self.replace() from within the body, under its lock: this is
            # that next run, come before its predecessor has ended. It is about to, whatever is left of its lease. Or it
            # was sent anew under the id of a run that still goes on, whose result no answer to this one may overwrite.
            return _SafetyCopy(0.0)
        held = f"lock {key!r} is held by {refusal.description}"
        if self.options.skip_if_locked:
            return TaskSkipped(f"locked: {held}", key=key, holder=refusal.description)
        return LockNotAcquired(held, key=key, holder=refusal.description)

    def _postpone(self, copy: _SafetyCopy) -> Ignore:
        """Send this copy of a message whose run goes on elsewhere once more, for later.

        Acknowledged away it could not run if the running one dies; put back at once it would only circle. That one may
        be dead already: the broker is told of a dead pool child sooner than its lock is free. So the first time it
        comes again soon, and then ever later, but not much later than a lock that is freed meanwhile.
        """
        limits.ending(self)
        self.is_postponed = True
        request = self.request
        headers = {**headers_of(request), NONCE: nonce_of(request), POSTPONED: postponed(request) + 1}
        if delivered_again(request):
            headers[REDELIVERED] = True
        delay = min(2.0 ** postponed(request), max(1.0, copy.remaining), COPY_COMES_WITHIN)
        try:
            self.task.signature_from_request(
                request, countdown=delay, retries=request.retries, headers=headers
            ).apply_async()
        except Exception as exc:  # noqa: BLE001  whatever it was, the message must stay with the broker
            return Reject(exc, requeue=True)
        text = "a copy of %s[%s] came while that run goes on elsewhere; it comes again in %.0f s"
        logger.info(text, self.task.name, request.id, delay)
        return Ignore("postponed: this run goes on elsewhere")

    # -- release -------------------------------------------------------------------------------------------------------

    def _end(self, exc: BaseException | None) -> None:
        """Release, answer, and tell the end: ``ending``. If something has struck it, it goes on where it was when it is called again."""
        limits.ending(self)
        if self.held is None:
            self._release(exc)
        self.ending = self._ending(exc)
        if isinstance(self.ending, TaskSkipped) and not self.is_answered:
            self.is_answered = True
            self._answer(self.ending)
        self._tell_end(self.ending)

    def _release(self, exc: BaseException | None) -> None:
        if self.entered is not None and not self.duration_ms:
            self.duration_ms = _ms_since(self.entered)
        # Remembered is what came to an end. A message that goes back to its queue (Reject), or whose worker is going
        # down (SystemExit), is to run again. A try that ended in self.retry() is over: the next one has its own name,
        # but a late copy of this one would start a second chain of tries.
        over = exc is None or (isinstance(exc, Exception) and not isinstance(exc, Reject))
        whole = over and not isinstance(exc, Retry)
        began = time.monotonic()
        self.held = self.lock is None or self.lock.end(finished=over, hold=whole, whole=whole)
        if self.lock is not None and self.lock.lease is not None:
            self.release_ms = _ms_since(began)

    def _ending(self, exc: BaseException | None) -> BaseException | None:
        """What the run ends with, whose body, or lock, has raised this."""
        ending, lock = exc, self.lock
        if lock is not None and not self.held and lock.lost and self.options.on_lost != "warn" and _good(exc):
            ending = LockLost(f"lock {lock.key!r} was lost before the run ended")
        if type(ending) is LockLost and lock is not None and not ending.args:
            # raised in a thread, where only a class can be (see abort.py)
            ending.args = (f"lock {lock.key!r} was lost, which ended the run",)
        if isinstance(ending, LockbeatError) and self.request is not None:
            ending = self._autoretried(ending)
        return ending

    def _end_struck(self, exc: BaseException) -> None:
        """Come to the end all the same, though this was raised from outside on the way there.

        The run ends with it, unless it has been told already that it ends otherwise. Then nothing else may be said of it to
        Celery; but what ends a process, or a greenlet, is no answer to anybody, and goes on its way.
        """
        if not self._outcome_is_told():
            self._end(exc)
            return
        self._tell_end(self.ending)
        if not isinstance(exc, Exception):
            self.ending = exc
        else:
            text = "%r came to %s[%s] when that was over, and changes nothing"
            logger.warning(text, exc, self.task.name, self.request and self.request.id)

    def _outcome_is_told(self) -> bool:
        return self.is_told or not _OUTCOMES.isdisjoint(self.story.told)

    def _autoretried(self, exc: Exception) -> BaseException:
        """Let ``autoretry_for`` have what was raised around the body: Celery applies it to ``run`` alone."""
        step = _Step(self.task, exc)
        add_autoretry_behaviour(step)
        try:
            step.run()
        except BaseException as ending:  # noqa: BLE001  it is raised by the caller
            return ending
        return exc

    def _answer(self, skipped: TaskSkipped) -> None:
        """Tell whoever waits for the result, the chord or the chain: Celery leaves an Ignore without an answer."""
        request, backend = self.request, self.task.backend
        if request is None or request.is_eager:
            return
        try:
            if skipped.reason == "duplicate" and _answered(backend, request.id, self.whole_is_over):
                if may_be_sent_anew(request):
                    self._give_on(backend.get_task_meta(request.id, cache=False))
                return
            # Not mark_as_revoked(): it forgets a chord around a chain whose member is skipped.
            backend.mark_as_failure(
                request.id,
                TaskRevokedError(str(skipped)),
                request=request,
                store_result=not self._ignores_result(),
                call_errbacks=False,
                state=states.REVOKED,
            )
            if events_wanted() and self.task.send_events:
                # as the worker does for a task that it does not run (celery 5.7, worker/request.py, _announce_revoked)
                reason = repr(TaskRevokedError(str(skipped)))
                self.task.send_event("task-revoked", terminated=False, signum=None, expired=False, exception=reason)
        except Exception:
            logger.exception("nobody could be told that %s[%s] was skipped", self.task.name, request.id)

    def _give_on(self, answer: Mapping[str, Any]) -> None:
        """Give the answer of an earlier run to the chord, the chain and the callbacks of a message that was sent anew.

        Those of a copy have had it from its run. As Celery does at a run's end (celery 5.7, app/trace.py).
        """
        request, backend = self.request, self.task.backend
        state, result = answer["status"], answer["result"]
        if state == states.SUCCESS:
            *rest, following = request.chain or [None]
            options = {"parent_id": request.id, "root_id": request.root_id or request.id}
            for each, more in [(each, {}) for each in request.callbacks or ()] + [(following, {"chain": rest})]:
                if each is not None:
                    self.task.app.signature(each).apply_async((result,), **options, **more)
            backend.mark_as_done(request.id, result, request, store_result=False)
        elif state in states.READY_STATES:
            trace, failed = answer.get("traceback"), state == states.FAILURE
            backend.mark_as_failure(
                request.id, result, trace, request, store_result=False, call_errbacks=failed, state=state
            )

    def _ignores_result(self) -> bool:
        # None: the caller, who knows only the task's name, leaves it to the task (celery 5.7, app/base.py, send_task)
        asked = vars(self.request).get("ignore_result")
        return bool(self.task.ignore_result if asked is None else asked)

    # -- tell ----------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.story.emit("task_started")
        if self.lock is not None and self.lock.held:
            self.story.emit("lock_acquired")

    def _tell_end(self, ending: BaseException | None) -> None:
        """Tell what is not yet told of these: the start, the outcome, the end."""
        if "task_started" not in self.story.told:
            self._start()
        spent = {"duration_ms": self.duration_ms, "acquire_ms": self.acquire_ms, "release_ms": self.release_ms}
        status, event, told = self._outcome(ending, spent)
        if not self.is_told:
            self.story.emit(event, status=status, **told)
            self.is_told = True
        self.story.emit("task_finished", status=status, **spent)

    def _outcome(self, ending: BaseException | None, spent: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
        if isinstance(ending, TaskSkipped):
            told = {"reason": ending.reason, "holder": ending.holder, "acquire_ms": self.acquire_ms}
            return "skipped", "task_skipped", told
        if _good(ending):
            return "success", "task_succeeded", spent
        if isinstance(ending, Retry) and self.request is not None:
            # of a direct call nothing is tried again: Celery raises what the body gave as the cause, or this
            pause = ending.when if isinstance(ending.when, (int, float)) else None
            return "retry", "task_retried", {**spent, **_error_of(ending.exc), "retry_in": pause}
        return "failed", "task_failed", {**spent, **_error_of(ending)}


class _SafetyCopy(Exception):  # noqa: N818  no error: it never leaves this module
    """The run of this message, or the one before it, goes on elsewhere, for about ``remaining`` seconds more."""

    def __init__(self, remaining: float) -> None:
        super().__init__(remaining)
        self.remaining = remaining


class _Step:
    """What ``add_autoretry_behaviour`` takes for the task: all of it is the task's, but its ``run`` raises."""

    def __init__(self, task: LockedTask, exc: Exception) -> None:
        self._task = task
        self._exc = exc

    def __getattr__(self, name: str) -> Any:
        if name == "_orig_run":  # Celery's mark of a task that it has wrapped
            raise AttributeError(name)
        return getattr(self._task, name)

    def run(self) -> NoReturn:
        """Fail as the lock did."""
        raise self._exc


def _good(ending: BaseException | None) -> bool:
    """Whether a run ended well: with a result, or with Ignore, the body's word for "no result"; replace() ends so."""
    return ending is None or (isinstance(ending, Ignore) and not isinstance(ending, TaskSkipped))


def _ms_since(began: float) -> float:
    return round((time.monotonic() - began) * 1000, 3)


def _error_of(exc: BaseException | None) -> dict[str, Any]:
    """Return the fields that tell of an exception."""
    if exc is None:
        return {}
    return {"error_name": type(exc).__name__, "error_message": str(exc), "holder": getattr(exc, "holder", None)}


def _unhide_headers(request: Any) -> None:
    """Put our headers back into ``request.headers``, for the body, and for the message of the next try.

    A tracer that sends headers in a header named ``headers``, as ddtrace does (celery#4875), replaces by them all others
    that would be there; each is an attribute of the request all the same (celery 5.7, app/task.py, Context).
    """
    headers = request.headers
    if isinstance(headers, dict):
        hidden = {name: vars(request)[name] for name in _HEADERS if name not in headers and name in vars(request)}
        if hidden:
            request.headers = {**headers, **hidden}


def _tick_of(request: Any) -> Mapping[str, Any]:
    """The tick that a beat has written into the headers of this message."""
    tick = headers_of(request).get("lockbeat")
    return tick if isinstance(tick, Mapping) else {}


def _answered(backend: Any, task_id: str, whole_is_over: bool) -> bool:
    """Whether this task's result is told; that it has begun another try, or a state of the user's, is enough until it is over."""
    try:
        state = backend.get_state(task_id)
    except Exception:  # noqa: BLE001  a backend that cannot tell, such as the disabled one
        return False
    return state in states.READY_STATES or not (
        whole_is_over or state in (states.PENDING, states.RECEIVED, states.STARTED)
    )

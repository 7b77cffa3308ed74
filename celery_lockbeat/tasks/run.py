"""One attempt of a task: acquire its lock, run its body, release, and answer whoever waits.

Promises: the body runs only while its key is ours; whatever ends it frees the key; an attempt that could not have its key,
or whose message has been dealt with before, replies to whoever waits for it.

An attempt is one message's: ``self.retry()`` sends the message of the next one, under the same task id. The attempt that
brings its task to the end ends all of them, whatever copies of their messages are under way: a copy of one that could
not have its key would else start a second chain of attempts.

What is raised from outside, at whatever moment, ends the attempt, too, unless somebody has heard how it ends (see ``limits.py``
for the soft time limit).
"""

from __future__ import annotations

import logging
import socket
import time
from asyncio import CancelledError
from collections.abc import Callable, Mapping
from types import CoroutineType
from typing import Any, Final, NoReturn
from weakref import WeakKeyDictionary

from celery.app.autoretry import add_autoretry_behaviour
from celery.exceptions import Ignore, Reject, Retry

from celery_lockbeat.exceptions import (
    ConfigurationError,
    LockbeatError,
    LockLost,
    LockNotAcquired,
    StoreUnavailable,
    TaskSkipped,
)
from celery_lockbeat.locks.acquisition import Asker
from celery_lockbeat.locks.lock import Lock
from celery_lockbeat.locks.scope import Scope
from celery_lockbeat.process import this_process
from celery_lockbeat.stores import Finished, Held, Place, Reservation, Waiting
from celery_lockbeat.tasks import replacing
from celery_lockbeat.tasks.answers import answer_skipped
from celery_lockbeat.tasks.copies import RESERVED, TICK, name_of, names_of, postpone, task_of, tick_in, unhidden_headers
from celery_lockbeat.tasks.limits import soft_limits
from celery_lockbeat.tasks.plan import LockPlan
from celery_lockbeat.tasks.report import Report, ends_well, has_failed, ms_since
from celery_lockbeat.tasks.unique import OF_SEVERAL, ends_with_acquire, give_back, reserved_by
from celery_lockbeat.tasks.waiting import COMES_WITHIN, has_waited, is_superfluous, is_told, place_of, send_again
from celery_lockbeat.threads import off_the_loop

__all__ = ["Attempt", "AwaitedAttempt", "lock_of_eager"]

#: Seconds for which a run that has waited is remembered at least: its other copies come within them.
REMEMBERED_AT_LEAST: Final = 20 * COMES_WITHIN

#: Why a run has no place in line, by what the store says, and who has it where that is not known.
_WHY_NOT_IN_LINE: Final = {
    "waited": ("it has waited for as long as it may", ""),
    "queued": ("{who} waits already", "another"),
    "full": ("the line is full", ""),
    "superseded": ("{who} has taken its place in line", "a later one"),
    "cleared": ("the line was cleared", ""),
}

logger: Final = logging.getLogger("celery_lockbeat")

#: The locks of the attempts of ``apply()`` that go on here, by their requests.
_eager: Final[WeakKeyDictionary[Any, Lock]] = WeakKeyDictionary()


def lock_of_eager(request: Any) -> Lock | None:
    """Return the lock of an attempt of ``apply()`` that goes on here."""
    return _eager.get(request)


class _Steps:
    """The steps of an attempt, which its two kinds take in the same order. It knows its lock, if it has one."""

    lock: Lock | None = None
    #: what the body has returned
    result: Any = None
    #: what the attempt ends with, as far as that is known; None: with its result
    ending: BaseException | None = None
    #: whether its message has been postponed: then nothing is logged of it
    is_postponed = False
    #: whether an earlier attempt was the task's last
    task_is_over = False
    #: whether the lock was still ours at the release; None: it is not yet released
    held: bool | None = None
    #: whether it has been told to stop by then, since another waits to replace it
    is_replaced = False
    is_answered = False
    #: what its end was counted as among those of its entry: whether it failed; None: it is not counted yet
    counted: bool | None = None
    #: why its entry is paused, if this run was the last straw
    paused_for: str | None = None
    #: what its message has reserved, as long as that is not over
    reservation: Reservation | None = None

    def __init__(
        self,
        task: Any,
        plan: LockPlan,
        request: Any,
        body: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.task = task
        self.plan = plan
        self.options = plan.options
        self.request = request
        self.body = body
        self.args = args
        self.kwargs = kwargs
        headers: Mapping[str, Any] = {}
        if request is not None:
            headers = unhidden_headers(request)
            if RESERVED in headers or RESERVED in vars(request):
                self.reservation = reserved_by(task, request)
        self.report = Report(task, plan, request, tick_in(headers) if TICK in headers else {})

    # -- acquire -------------------------------------------------------------------------------------------------------

    def _acquire(self) -> None:
        keys = self.plan.keys_of(self.task, self.args, self.kwargs)
        which = OF_SEVERAL if len(keys) > 1 else ""
        who = f"{self.task.name}[{self.request and self.request.id}]"
        host = (self.request and self.request.hostname) or socket.gethostname()
        reserved = self.reservation
        if reserved is not None and not ends_with_acquire(reserved, self.task, self.options, keys):
            reserved = None
        run, task = names_of(self.request)
        asker = Asker(f"{host} pid {this_process.pid}{which} {who}", run, task, reserved)
        lock = Lock.of_run(keys, self.options, self.plan.stores, self.report.story, asker)
        self.lock = lock
        if self.request is not None and self.request.is_eager:
            _eager[self.request] = lock
        began = time.monotonic()
        try:
            refusal = self._take(lock)
        finally:
            self.report.acquire_ms = ms_since(began)
        if refusal is not None:
            raise self._refused(lock.key, refusal)
        if reserved is not None and lock.is_at_home:
            self.reservation = None
        elif self.reservation is not None and self.options.unique != "until_finished":
            # it is of other keys, or in another store
            self._give_back(later=True)

    def _give_back(self, *, later: bool) -> None:
        """End what the message has reserved, unless that is over."""
        reservation, self.reservation = self.reservation, None
        if reservation is not None:
            give_back(self.task, self.options, reservation, later=later)

    def _take(self, lock: Lock) -> Held | Finished | Waiting | None:
        """Ask for the key, and, where it is held and this run is to wait, for a place in line, in the same call if it is likely."""
        if self.options.waits is None or self.request is None or self.request.is_eager:
            return lock.take()
        waited = has_waited(self.request)
        if waited:
            lock.remembered_at_least = REMEMBERED_AT_LEAST
        # to write down a message costs time, and most wait for nothing
        refusal = lock.take(self._place() if self.plan.is_contended or waited else None)
        self.plan.is_contended = isinstance(refusal, (Held, Waiting))
        if isinstance(refusal, Held) and not (refusal.why or refusal.same_run or self._is_our_own(refusal)):
            refusal = lock.take(self._place())
        return refusal

    def _place(self) -> Place:
        return place_of(self.task, self.request, self.options)

    def _is_our_own(self, refusal: Held) -> bool:
        """Whether the key is held by another attempt of this very task."""
        return name_of(self.request) is not None and task_of(refusal.run) == self.request.id

    def _refused(self, key: str, refusal: Held | Finished | Waiting) -> Exception:
        """What is raised in place of the body."""
        if isinstance(refusal, Waiting):
            return _WaitsInLine(refusal)
        if isinstance(refusal, Finished):
            return self._over(key, refusal)
        if refusal.same_run:
            return _WaitsInLine(None) if is_superfluous(self.request) else _GoesOnElsewhere(refusal.remaining)
        if self._is_our_own(refusal):
            # Celery sends the message of self.retry() and self.replace() from within the body, under its lock: this is
            # that next attempt, come before its predecessor has ended. It is about to, whatever is left of its lease. Or
            # it was sent anew under the id of a run that still goes on, whose reply this one may not overwrite.
            return _GoesOnElsewhere(0.0)
        if refusal.key:  # of several
            self.report.story.fields["held_key"] = key = refusal.key
        held = f"lock {key!r} is held by {refusal.description}"
        if self.options.if_held == "fail":
            return LockNotAcquired(held, key=key, holder=refusal.description)
        reason = {"": "locked", "full": "queued"}.get(refusal.why, refusal.why)
        if refusal.why == "full":
            self.report.story.fields["line"] = "full"
        why = f"{self._why_not_in_line(refusal)}; " if refusal.why else ""
        return TaskSkipped(f"{reason}: {why}{held}", reason=reason, key=key, holder=refusal.description)

    def _why_not_in_line(self, refusal: Held | Finished) -> str:
        """Say why there is no place in line, and who has it, as the event does."""
        said, another = _WHY_NOT_IN_LINE[refusal.why]
        if refusal.who:
            self.report.story.fields["who"] = refusal.who
        return said.format(who=refusal.who or another)

    def _over(self, key: str, refusal: Finished) -> Exception:
        """What is raised where this attempt, or its task, has ended before."""
        self.task_is_over = refusal.task
        if refusal.why and not is_told(self.task, self.request):
            reason = "superseded" if refusal.why == "superseded" else "waited"
            if refusal.why == "cleared":
                self.report.story.fields["line"] = "cleared"
            said = f"{reason}: {self._why_not_in_line(refusal)} for lock {key!r}"
            return TaskSkipped(said, reason=reason, key=key)
        if is_superfluous(self.request):
            return _WaitsInLine(None)
        return TaskSkipped(f"duplicate: this run has ended before, under lock {key!r}", reason="duplicate", key=key)

    def _postpone(self, other: _ComesAgain) -> Ignore:
        soft_limits.ending(self)
        self.is_postponed = True
        if isinstance(other, _WaitsInLine):
            waiting = other.waiting
            if waiting is None:
                return Ignore("a copy of what has waited: its run goes on, or has ended")
            if waiting.copy == 1:
                held_key = waiting.key or None
                self.report.story.emit(
                    "task_waiting", holder=waiting.description, held_key=held_key, count=waiting.before
                )
                if self.options.if_held == "replace" and self.lock is not None:
                    replacing.tell(self.task.app, waiting.key or self.lock.key, waiting.description)
            return send_again(self.task, self.request, self.options, waiting)
        return postpone(self.task, self.request, other.remaining)

    # -- start ---------------------------------------------------------------------------------------------------------

    def _start(self, *, awaited: bool = False) -> None:
        soft_limits.ending(self)  # no line of the start may be lost, either
        self.report.start(self.lock)
        soft_limits.over(self)
        self.report.enter(awaited=awaited)

    # -- release -------------------------------------------------------------------------------------------------------

    def _end(self, exc: BaseException | None) -> None:
        """Release, answer, and log the end: ``ending``. Called again after something has struck it, it goes on where it was."""
        soft_limits.ending(self)
        counts = self.report.streak is not None
        if self.held is None:
            if counts and not (isinstance(exc, LockbeatError) or (self.lock is not None and self.lock.lost)):
                # it ends as it is: while nobody else can know, a kill would let its message come, and be counted, again
                self._count(exc)
            self._release(exc)
        self.ending = self._ending(exc)
        if counts:
            self._count(self.ending)
        if isinstance(self.ending, TaskSkipped) and not self.is_answered:
            self.is_answered = True
            self._answer(self.ending)
        if self.reservation is not None and self._is_the_end():
            self._give_back(later=isinstance(exc, StoreUnavailable))
        self.report.end(self.ending, self.lock)
        if self.paused_for is not None:
            limit = self.report.streak and self.report.streak.limit
            self.report.story.emit("entry_paused", who="lockbeat", count=limit, reason=self.paused_for)
            self.paused_for = None

    def _count(self, ending: BaseException | None) -> None:
        """Count the end among those of its entry, where that is to be paused after so many failures."""
        streak, failed = self.report.streak, has_failed(ending)
        if streak is None or failed is None or failed == self.counted:
            return
        if failed:
            self.paused_for = streak.failed(self.task.app, f"{type(ending).__name__}: {ending}")
        else:
            streak.succeeded(self.task.app)
        self.counted = failed

    def _is_the_end(self) -> bool:
        """Whether no other attempt of the task will come, as far as this one knows."""
        if isinstance(self.ending, TaskSkipped) and self.ending.reason == "duplicate":
            return self.task_is_over
        return not isinstance(self.ending, Retry) and (self.ending is None or isinstance(self.ending, Exception))

    def _release(self, exc: BaseException | None) -> None:
        self.report.leave()
        # What came to an end is remembered, so that a late copy of its message does not run. A message that goes back to
        # its queue (Reject), or whose worker is going down (SystemExit), is to run again. With self.retry() this attempt
        # is over, and a late copy of it would start a second chain; but its task, whose next attempt comes, is not.
        over = exc is None or (isinstance(exc, Exception) and not isinstance(exc, Reject))
        if self.lock is not None and self.lock.replaced_by is not None and self.options.on_replaced != "warn":
            # it must not come again, and replace in turn: autoretry_for has sent its next attempt by now
            self.is_replaced, self.lock.remembered_at_least = True, REMEMBERED_AT_LEAST
        task_is_over = over and (self.is_replaced or not isinstance(exc, Retry))
        began = time.monotonic()
        self.held = self.lock is None or self.lock.end(finished=over, hold=task_is_over, task=task_is_over)
        if self.lock is not None and self.lock.lease is not None:
            self.report.release_ms = ms_since(began)

    def _ending(self, exc: BaseException | None) -> BaseException | None:
        """What the attempt ends with, whose body, or lock, has raised this."""
        ending, lock = exc, self.lock
        lost = lock is not None and not self.held and lock.lost and self.options.on_lost != "warn"
        if (lost and ends_well(exc)) or (self.is_replaced and (ends_well(exc) or isinstance(exc, Retry))):
            assert lock is not None  # noqa: S101
            ending = LockLost(f"lock {lock.key!r} was lost before the run ended{_because(lock)}")
        if type(ending) is LockLost and lock is not None and not ending.args:
            # raised in a thread, where only a class can be (see abort.py)
            ending.args = (f"lock {lock.key!r} was lost, which ended the run{_because(lock)}",)
        if isinstance(ending, LockbeatError) and self._autoretries() and not self.is_replaced:
            ending = self._autoretried(ending)
        return ending

    def _autoretries(self) -> bool:
        # Celery's Task has no such attribute, unless it is given
        return self.request is not None and bool(getattr(self.task, "autoretry_for", ()))

    def _autoretried(self, exc: Exception) -> BaseException:
        """Let ``autoretry_for`` have what was raised around the body: Celery applies it to ``run`` alone."""
        raising = _Raising(self.task, exc)
        add_autoretry_behaviour(raising)
        try:
            raising.run()
        except BaseException as ending:  # noqa: BLE001  it is raised by the caller
            return ending
        return exc

    def _answer(self, skipped: TaskSkipped) -> None:
        if self.request is not None and not self.request.is_eager:
            answer_skipped(self.task, self.request, skipped, task_is_over=self.task_is_over)

    def _end_struck(self, exc: BaseException) -> None:
        """Come to the end all the same, though this was raised from outside on the way there.

        The attempt ends with it, unless somebody has heard that it ends otherwise. Then Celery hears the same; but what ends
        a process, or a greenlet, is no answer to anybody, and goes on its way.
        """
        if not self.report.has_outcome:
            self._end(exc)
            return
        self.report.end(self.ending, self.lock)
        if not isinstance(exc, Exception):
            self.ending = exc
        else:
            text = "%r came to %s[%s] when that was over, and changes nothing"
            logger.warning(text, exc, self.task.name, self.request and self.request.id)

    def _leave(self) -> None:
        if self.lock is not None:
            # an exception from outside may have hit the release itself, and hit it again
            self.lock.abandon()
        request = self.request
        soft_limits.over(self, None if request is None or request.is_eager else request)


class Attempt(_Steps):
    """An attempt whose body is a function."""

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
        except (_GoesOnElsewhere, _WaitsInLine) as other:
            raise self._postpone(other) from None
        except BaseException as exc:
            self._end(exc)
            if self.ending is None or self.ending is exc:
                raise
            raise self.ending from exc
        self._end(None)
        if self.ending is not None:
            raise self.ending
        return self.result

    def _run_body(self) -> Any:
        if self.options.enabled:
            self._acquire()
        self._start()
        abortable = self.lock if self.options.aborts else None
        scope = Scope(self.lock)
        try:
            if abortable is not None:
                abortable.arm()
            try:
                result = self.body(*self.args, **self.kwargs)
            finally:
                if abortable is not None:
                    abortable.disarm()
        finally:
            soft_limits.ending(self)
            scope.leave()
        if self.lock is not None and type(result) is CoroutineType:
            result.close()
            allowed = "an async def without a wrapper around it, or what awaits it itself"
            raise ConfigurationError(
                f"run of {self.task.name} returns a coroutine, which has no lock; allowed: {allowed}"
            )
        return result


class AwaitedAttempt(_Steps):
    """An attempt whose body is a coroutine. What waits for the store does so off the event loop."""

    async def carry_out(self) -> Any:
        """Acquire, run, release, as :meth:`Attempt.carry_out` does."""
        try:
            try:
                self.result = await self._run_body()
            except GeneratorExit as exc:
                # it is closed, not cancelled: nothing can be awaited any more
                self._end(exc)
                raise
            except (_GoesOnElsewhere, _WaitsInLine) as other:
                raise await self._elsewhere(self._postpone, other) from None
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

    async def _run_body(self) -> Any:
        if self.options.enabled:
            await self._elsewhere(self._acquire)
        self._start(awaited=True)
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
                if not self._autoretries():
                    raise
                # what autoretry_for adds around a body awaits nothing, so it has not seen this
                raise await self._elsewhere(self._autoretried, exc) from exc
            finally:
                self.lock.disarm()
        finally:
            soft_limits.ending(self)
            scope.leave()

    async def _elsewhere(self, step: Callable[..., Any], *args: Any) -> Any:
        """Take a step that waits for a server in another thread, which has this attempt's request, too."""
        return await off_the_loop(self._with_request, step, *args)

    def _with_request(self, step: Callable[..., Any], *args: Any) -> Any:
        if self.request is None:
            return step(*args)
        self.task.request_stack.push(self.request)
        try:
            return step(*args)
        finally:
            self.task.request_stack.pop()


def _because(lock: Lock) -> str:
    return f": {lock.why_lost}" if lock.why_lost else ""


class _GoesOnElsewhere(Exception):  # noqa: N818  no error: it never leaves this module
    """The run of this message, or the one before it, goes on elsewhere, for about ``remaining`` seconds more."""

    def __init__(self, remaining: float) -> None:
        super().__init__(remaining)
        self.remaining = remaining


class _WaitsInLine(Exception):  # noqa: N818  as above
    """The run of this message waits in line; None: another copy of it has run, or runs."""

    def __init__(self, waiting: Waiting | None) -> None:
        super().__init__(waiting)
        self.waiting = waiting


_ComesAgain = _GoesOnElsewhere | _WaitsInLine


class _Raising:
    """What ``add_autoretry_behaviour`` takes for the task: all of it is the task's, but its ``run`` raises."""

    def __init__(self, task: Any, exc: Exception) -> None:
        self._task = task
        self._exc = exc

    def __getattr__(self, name: str) -> Any:
        if name == "_orig_run":  # Celery's mark of a task that it has wrapped
            raise AttributeError(name)
        return getattr(self._task, name)

    def run(self) -> NoReturn:
        """Fail as the lock did."""
        raise self._exc

"""``lock_unique``: a task whose key is queued already, or runs, is not sent once more.

Promises: of all messages of a task for one key one is in a queue, and whoever would send another gets the result of the one that is
there. That is one round trip for each message, from whatever process, and none for its run: what a message has reserved ends with
the very call that takes its lock. With ``until_finished`` that lock tells, as long as it is held, that the run is there. What is
reserved is ended by its own message alone: when its run begins, or it will not have one; a message that is lost keeps it for
``lock_unique_ttl``. Nobody waits for ever for a message that was not sent.

Not promised: the same for what ``app.send_task`` sends by a name, or while the store does not answer. Then the message is sent, and
the lock decides when it runs. The next attempt of a run, by ``self.retry()`` or ``self.replace()``, is sent whoever is queued. What waits in line
(``waiting.py``) keeps what its message has reserved.
"""

from __future__ import annotations

import json
import logging
import secrets
import socket
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from celery import signals, uuid
from celery._state import get_current_worker_task
from celery.utils.time import maybe_iso8601, maybe_make_aware
from kombu import serialization

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import ConfigurationError, StoreUnavailable
from celery_lockbeat.journal.writer import journal_of
from celery_lockbeat.locks.renewal import renewer_of
from celery_lockbeat.observe.events import Story
from celery_lockbeat.options import LockOptions, shown_keys
from celery_lockbeat.stores import Held, Reservation, Store, stores_of
from celery_lockbeat.tasks.answers import answer_refused
from celery_lockbeat.tasks.copies import (
    NONCE,
    RESERVED,
    TICK,
    headers_of,
    is_copy_for_later,
    is_nonce,
    task_of,
)
from celery_lockbeat.tasks.plan import LockPlan

__all__ = ["OF_SEVERAL", "ends_with_acquire", "give_back", "reserved_by", "send_once"]

logger: Final = logging.getLogger("celery_lockbeat")

#: Seconds for which a store that does not answer is asked to end what is reserved.
ASKED_FOR: Final = 60.0

#: What needs no serializer to be as it arrives.
_PLAIN: Final = frozenset({str, int, float, bool, type(None)})

#: In what a run that has more than one key says of itself, before its task's name.
OF_SEVERAL: Final = " (several keys)"

#: Of so many refusals the journal is told once each: that of a message stands for all that it is the reason of.
TOLD_AT_MOST: Final = 1000
_told: Final[OrderedDict[tuple[str, str, str], None]] = OrderedDict()

_hostname: Final = socket.gethostname


# -- whoever sends -----------------------------------------------------------------------------------------------------


def send_once(
    task: Any,
    plan: LockPlan,
    send: Callable[..., Any],
    args: Any,
    kwargs: Any,
    task_id: str | None,
    options: dict[str, Any],
) -> Any:
    """Send a message by ``send``, as ``apply_async`` is asked to, unless its key is taken; return its result, or that of who is there."""
    headers = {**(options.get("headers") or {})}
    run = _run_that_goes_on(task, task_id)
    if task.app.conf.task_always_eager or (run is not None and is_copy_for_later(headers, run)):
        # nothing is queued; or it is a copy of a message that has reserved what it can
        return send(args, kwargs, task_id, **options)
    args, kwargs = tuple(args or ()), {**(kwargs or {})}
    keys = plan.keys_of(task, *_as_they_arrive(task, args, kwargs, options))
    sent_as = task_id or uuid()
    key, name = keys[0], _name_of(task, keys)
    reservation = Reservation(key, name, sent_as, _token(run, key, headers))
    store = plan.stores.choose(plan.options.driver, plan.options.connection)[0]
    there = _reserve(task, store, reservation, plan.options, _lasts(task, options, _may_wait(plan.options)), run)
    if there is not None and run is None:
        message = {**options, "headers": headers}
        return _refused(task, plan.options, store, keys, there, task_id, message)
    headers[RESERVED] = {"key": key, "token": reservation.token}
    if len(keys) > 1:
        headers[RESERVED]["name"] = name
    try:
        return send(args, kwargs, sent_as, **{**options, "headers": headers})
    except BaseException:
        # no broker has it, for all that is known
        give_back(task, plan.options, reservation)
        raise


def _name_of(task: Any, keys: Sequence[str]) -> str:
    """Name the task in what a message reserves of the first of its keys: messages with the same keys, and only these, have one name."""
    return str(task.name) if len(keys) == 1 else f"{task.name} {json.dumps(keys[1:])}"


def _run_that_goes_on(task: Any, task_id: str | None) -> Any:
    """Return the request of the run that sends a message under its own id; None: no run does."""
    if task_id is None:
        return None
    for sender in (task, get_current_worker_task()):
        request = sender and sender.request
        if request is not None and request.id == task_id and not (request.called_directly or request.is_eager):
            return request
    return None


def _token(run: Any, key: str, headers: Mapping[str, Any]) -> str:
    """Tell a message from others under its id: the next attempt of a run is as that was, and so is each copy of a tick."""
    before = headers_of(run).get(RESERVED)
    if isinstance(before, Mapping) and before.get("key") == key and is_nonce(before.get("token")):
        return str(before["token"])
    nonce = headers.get(NONCE)
    return str(nonce) if TICK in headers and is_nonce(nonce) else secrets.token_urlsafe(9)


def _reserve(
    task: Any, store: Store, reservation: Reservation, options: LockOptions, ttl: float, run: Any
) -> Reservation | Held | None:
    """Ask for the place; None: it is had, or nobody can tell."""
    # As a run describes itself to whoever finds its key held (run.py). Of several keys its lock does not tell whether it has them all:
    # there the reservation lasts as long as the run (ends_with_acquire).
    by_its_lock = options.unique == "until_finished" and run is None and reservation.name == task.name
    unless_run_by = f" {task.name}[" if by_its_lock else None
    try:
        there = store.locks.reserve(reservation, ttl=ttl, unless_run_by=unless_run_by)
        if isinstance(there, Held) and f"{OF_SEVERAL}{unless_run_by}" in there.description:
            # it has other keys besides, so it does not stand for what this message asks for
            there = store.locks.reserve(reservation, ttl=ttl)
        return there  # noqa: TRY300  an else would be read as belonging to the if
    except StoreUnavailable as exc:
        text = "whether %s is queued already under lock %r is not known, and it is sent: %s"
        logger.warning(text, task.name, reservation.key, exc)
        return None


def _refused(
    task: Any,
    options: LockOptions,
    store: Store,
    keys: Sequence[str],
    there: Reservation | Held,
    asked_for: str | None,
    message: Mapping[str, Any],
) -> Any:
    """Say that a message is not sent, for another is there; return the result of that one."""
    if isinstance(there, Held):
        task_id, holder = task_of(there.run) or there.run, there.description
    else:
        task_id, holder = there.task_id, f"{task.name}[{there.task_id}]"
    headers = message["headers"]
    _tell(task, options, store, keys, holder, asked_for, headers)
    if asked_for is not None and asked_for != task_id:
        text = f"unique: lock {shown_keys(keys)!r} is reserved by {holder}"
        answer_refused(task, asked_for, message, text, anybody_waits=TICK not in headers)
    result = task.AsyncResult(task_id)
    result.already_queued = True
    return result


def _tell(
    task: Any,
    options: LockOptions,
    store: Store,
    keys: Sequence[str],
    holder: str,
    asked_for: str | None,
    headers: Mapping[str, Any],
) -> None:
    tick = headers.get(TICK)
    tick = tick if isinstance(tick, Mapping) else {}
    which = task.name, shown_keys(keys), holder
    journal = journal_of(task.app) if tick or which not in _told else None
    _told[which] = None
    if len(_told) > TOLD_AT_MOST:
        _told.popitem(last=False)
    story = Story(
        task,
        options.logging,
        journal,
        task_id=asked_for,
        task_name=task.name,
        kind=tick.get("kind", "task"),
        schedule=tick.get("entry"),
        tick=tick.get("due"),
        run=tick.get("run"),
        hostname=_hostname(),
        lock_key=shown_keys(keys),
        lock_keys=keys if len(keys) > 1 else None,
        connection=options.connection,
        driver=store.driver,
    )
    # as in a run's own: what a beat has begun for this message, such as Sentry's check-in, is found by its headers
    task.push_request(id=asked_for, task=task.name, headers={**headers})
    try:
        story.emit("task_skipped", status="skipped", reason="unique", holder=holder)
    finally:
        task.pop_request()


# -- what is sent ------------------------------------------------------------------------------------------------------


def _as_they_arrive(task: Any, args: Any, kwargs: Any, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return arguments as the run will have them, of which it makes its key: a tuple may be a list then. Raises what Celery does."""
    if task.typing and hasattr(task, "__header__"):
        task.__header__(*args, **kwargs)
    serializer = options.get("serializer") or task.serializer
    dump = getattr(task, "_dump_pydantic_arguments", None)
    if dump is not None and serializer != "pickle":
        args, kwargs = dump(args, kwargs)
    if all(map(_is_plain, args)) and all(map(_is_plain, kwargs.values())):
        return args, kwargs
    kind, encoding, data = serialization.dumps((args, kwargs), serializer)  # type: ignore[no-untyped-call]
    args, kwargs = serialization.loads(data, kind, encoding, accept=[kind])  # type: ignore[no-untyped-call]
    return tuple(args), kwargs


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind is list:
        return all(map(_is_plain, value))
    if kind is dict:
        return all(type(name) is str and _is_plain(each) for name, each in value.items())
    return kind in _PLAIN


def _may_wait(options: LockOptions) -> float:
    """Seconds for which a message may be queued from when it is to run: what waits in line is queued, and its copies reserve nothing."""
    return options.unique_ttl + (options.wait_at_most if options.waits else 0.0)


def _lasts(task: Any, options: Mapping[str, Any], unique_ttl: float) -> float:
    """Seconds for which a message may be in its queue: until it is to run, and as long as it may be late, or until it expires."""
    when = options.get("countdown") if options.get("countdown") is not None else options.get("eta")
    lasts = unique_ttl + max(0.0, _seconds_until(task, when) or 0.0)
    expires = _seconds_until(task, options.get("expires", task.expires))
    return lasts if expires is None else max(0.001, min(lasts, expires))


def _seconds_until(task: Any, when: Any) -> float | None:
    """Return how far a moment is away, in whatever way Celery takes it; None: there is none, or Celery will refuse it."""
    if when is None:  # nearly always
        return None
    if isinstance(when, (int, float)):
        return float(when)
    if isinstance(when, timedelta):
        return when.total_seconds()
    try:
        at = maybe_make_aware(maybe_iso8601(when), task.app.timezone)
        return (at - datetime.now(timezone.utc)).total_seconds() if isinstance(at, datetime) else None
    except (TypeError, ValueError, AttributeError):
        return None


# -- whoever has it ----------------------------------------------------------------------------------------------------


def reserved_by(task: Any, request: Any) -> Reservation | None:
    """Return what a message has reserved, as it says itself; another's, whose headers it was sent with, is not its own."""
    # an attribute, too, as in nonce_of
    told = headers_of(request).get(RESERVED) or vars(request).get(RESERVED)
    if told is None or not isinstance(told, Mapping):
        return None
    key, token, name = told.get("key"), told.get("token"), told.get("name", task.name)
    if not isinstance(key, str) or not key or not is_nonce(token) or not isinstance(name, str):
        return None
    return Reservation(key, name, str(request.id), str(token))


def ends_with_acquire(reservation: Reservation, task: Any, options: LockOptions, keys: Sequence[str]) -> bool:
    """Whether what a message has reserved is over with the call that takes these keys, for from then on their lock tells of its run."""
    if reservation[:2] != (keys[0], _name_of(task, keys)):
        return False
    return len(keys) == 1 or options.unique != "until_finished"


def give_back(task: Any, options: LockOptions, reservation: Reservation, *, later: bool = False) -> None:
    """End what a message has reserved that will have no run. ``later``: the caller cannot wait for the store."""
    store = stores_of(task.app).choose(options.driver, options.connection)[0]
    if not later:
        try:
            store.locks.unreserve(reservation)
        except StoreUnavailable as exc:
            logger.debug("what %s[%s] has reserved is still there: %s", reservation.name, reservation.task_id, exc)
        else:
            return
    # the message itself tells nobody whether the store has it; at the latest it ends with its time
    ask = _Unreserve(reservation)
    renewer_of(store).errand(ask, until=monotonic() + ASKED_FOR, then=ask.done)


class _Unreserve:
    """The errand that ends a reservation."""

    def __init__(self, reservation: Reservation) -> None:
        self._reservation = reservation

    def __call__(self, store: Store) -> None:
        store.locks.unreserve(self._reservation)

    def done(self) -> None:
        """Nothing waits for it."""


@signals.task_revoked.connect  # type: ignore[untyped-decorator]
def _give_back_what_will_not_run(sender: Any = None, request: Any = None, **_: Any) -> None:
    """A message was revoked, or has expired: its worker tells so without a run."""
    is_locked = request is not None and hasattr(sender, "_plan")
    reservation = reserved_by(sender, request) if is_locked else None
    if reservation is not None:
        try:
            give_back(sender, sender._plan().options, reservation, later=True)
        except ConfigurationError:
            logger.exception("what %s[%s] has reserved ends with its time", reservation.name, reservation.task_id)

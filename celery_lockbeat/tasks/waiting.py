"""A run that finds its key held, and waits in line: its message goes back to the broker, and comes again when it is its turn.

Promises: a message that waits is in its queue, to come again within :data:`COMES_WITHIN`, whatever becomes of the store, or of
who is to call it; and in the store, for whoever frees the key, who sends it at once. Of all its copies one runs. It occupies
neither a pool's child nor a place of the prefetch meanwhile, for Celery counts one for later besides those.
"""

from __future__ import annotations

import logging
import random
from typing import Any, Final

from celery import states
from celery.exceptions import Ignore, Reject

from celery_lockbeat.locks.calls import Recorder, written
from celery_lockbeat.options import LockOptions
from celery_lockbeat.stores import Place, Waiting
from celery_lockbeat.stores.base import SINCE
from celery_lockbeat.tasks.copies import LINE, NONCE, delivered_again, headers_of, name_of_all_tries, nonce_of

__all__ = ["COMES_WITHIN", "has_waited", "is_superfluous", "is_told", "place_of", "send_again"]

logger: Final = logging.getLogger("celery_lockbeat")

#: Seconds until a waiting message comes again by itself.
COMES_WITHIN: Final = 30.0


def _line_of(request: Any) -> tuple[int, float, int]:
    """Return since when a message has waited: its arrival, the beginning of this try's waiting, and the number of this copy."""
    line = headers_of(request).get(LINE)
    if not (isinstance(line, list) and len(line) == 4 and all(isinstance(n, (int, float)) for n in line)):  # noqa: PLR2004
        return 0, 0.0, 0
    since, began, copy, try_ = line
    # the next try waits anew, in its old place
    return (int(since), began, int(copy)) if try_ == request.retries else (int(since), 0.0, 0)


def has_waited(request: Any) -> bool:
    """Whether copies of this message may come that were sent to wait."""
    return _line_of(request)[2] > 0


def is_superfluous(request: Any) -> bool:
    """Whether nothing is lost with this message where its run goes on, or has ended: it is a copy that was sent to wait."""
    return has_waited(request) and not delivered_again(request)


def is_told(task: Any, request: Any) -> bool:
    """Whether whoever asked has its answer already, where this is the copy that was to come by itself: it is another's then."""
    if request.eta is None or not is_superfluous(request):
        return False
    try:
        return task.backend.get_state(request.id) in states.READY_STATES
    except Exception:  # noqa: BLE001  a backend that cannot tell, such as the disabled one
        return False


def place_of(task: Any, request: Any, options: LockOptions) -> Place:
    """Make what is asked for where the key is held."""
    since, began, copy = _line_of(request)
    message = _copy(task, request, [since or SINCE, began, copy + 1, request.retries])
    return Place(
        str(name_of_all_tries(request)),
        options.wait_at_most,
        kind=str(options.waits),
        room=options.line_limit,
        grace=options.ttl,
        text=written(task.app, message),
        since=since,
        began=began,
        copy=copy,
        again=delivered_again(request),
    )


def send_again(task: Any, request: Any, options: LockOptions, waiting: Waiting) -> Ignore:
    """Let a message that waits come again, unless another copy of it will. Returns what is to be raised in place of the run."""
    if waiting.copy:
        line = [waiting.since, waiting.began, waiting.copy, request.retries]
        # those that have come together do not come together again, and keep whoever is called from the worker
        pause = COMES_WITHIN * (random.uniform(0.5, 1) if waiting.copy == 1 else 1)  # noqa: S311
        try:
            _signature(task, request, line, countdown=min(pause, options.wait_at_most)).apply_async()
        except Exception as exc:  # noqa: BLE001  whatever it was, the message must stay with the broker
            return Reject(exc, requeue=True)
    return Ignore("it waits in line")


def _copy(task: Any, request: Any, line: list[Any]) -> Recorder:
    message = Recorder()
    _signature(task, request, line).apply_async(producer=message)
    return message


def _signature(task: Any, request: Any, line: list[Any], **options: Any) -> Any:
    headers = {**headers_of(request), NONCE: nonce_of(request), LINE: line}
    headers.pop("redelivered", None)
    return task.signature_from_request(request, retries=request.retries, headers=headers, **options)

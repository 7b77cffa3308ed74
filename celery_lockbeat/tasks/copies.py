"""Copies of a message: how they are told from a message that somebody has sent anew, and how one is put off.

Promises: all copies of one message, whoever has made them (a broker that delivers again, a beat that takes over, a
worker that postpones), name the same run; each sending of a message, by whoever imports this package, names another,
though it has the id of an earlier one; a task's retries are attempts of one task. A name is told from all others, whatever
is in a task id.

Not promised: that for a message without a nonce, whose sender knows nothing of this package. It is named as release
0.1.0 does: all that come under its id are copies of one.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import Any, Final, TypeGuard
from weakref import WeakKeyDictionary

from celery import signals
from celery._state import get_current_worker_task
from celery.exceptions import Ignore, Reject

__all__ = [
    "LINE",
    "NONCE",
    "POSTPONED",
    "REDELIVERED",
    "RESERVED",
    "TICK",
    "delivered_again",
    "headers_of",
    "is_copy_for_later",
    "is_nonce",
    "may_be_sent_anew",
    "name_of",
    "name_of_all_tries",
    "names_of",
    "nonce_of",
    "postpone",
    "postponed",
    "task_of",
    "tick_in",
    "tick_of",
    "unhidden_headers",
]

logger: Final = logging.getLogger("celery_lockbeat")

#: The header that tells apart what was sent under one task id. Celery copies it into the messages of a task's retries.
NONCE: Final = "lockbeat_nonce"

#: The header of a copy that we have postponed: how often it has been.
POSTPONED: Final = "lockbeat_postponed"

#: The header of a copy that waits in line: its arrival, when its waiting began, its number, and its try.
LINE: Final = "lockbeat_line"

#: The header of what a broker delivers again, where kombu's transport has put it back itself.
REDELIVERED: Final = "redelivered"

#: The header of a message with ``lock_unique``: which key it has reserved, and by which token.
RESERVED: Final = "lockbeat_reserved"

#: The header in which a beat says which tick this is.
TICK: Final = "lockbeat"

#: What it says there, of a tick that no worker shall begin later: when that is.
BEGIN_BY: Final = "begin_by"

#: The headers that a body, or the message of the next attempt, may need.
_OURS: Final = (TICK, NONCE, POSTPONED, LINE, RESERVED)

#: At most so many seconds pass until a copy of a message asks again whether its run is over: less than a lease, for the
#: lock of a run that dies may be freed long before its lease ends, and a copy costs but a message and a round trip.
COPY_COMES_WITHIN: Final = 5.0

#: A run counts how often it has sent a message, for so many ids; later ones have nonces by chance. Hardly any run sends
#: so many, and one that does must not grow for it.
COUNTED_AT_MOST: Final = 10_000

#: How often the runs that go on here have sent a message, by its task id. Not an attribute of a request: Celery sends on
#: what it does not know in one.
_sent: Final[WeakKeyDictionary[Any, dict[Any, int]]] = WeakKeyDictionary()

_NONCE: Final = re.compile(r"[\w-]{1,64}", re.ASCII)

#: A task id may hold what stands behind it, too: it is read from its end.
_NAME: Final = re.compile(r"(?P<task>.*):\d*:\d+(?P<nonce>~[\w-]{1,64})?", re.ASCII | re.DOTALL)


def names_of(request: Any) -> tuple[str, str] | tuple[None, None]:
    """Name a run, and it together with its retries (see below). A call that no message stands for has no names."""
    if request is None or request.is_eager:
        return None, None
    nonce = nonce_of(request)
    # A beat's tick is named as release 0.1.0 names it, whose workers may get its copies: its id is nobody else's anyway.
    end = f":{request.replaced_task_nesting}" + ("" if nonce is None or nonce == request.id else f"~{nonce}")
    return f"{request.id}:{request.retries}{end}", f"{request.id}:{end}"


def name_of(request: Any) -> str | None:
    """Name a run, the same in each copy of its message."""
    return names_of(request)[0]


def name_of_all_tries(request: Any) -> str | None:
    """Name a run and its retries, the same in each of them; never what ``name_of`` gives to any run."""
    return names_of(request)[1]


def task_of(name: str) -> str | None:
    """Return the task id of a run's name; None: it is none."""
    match = _NAME.fullmatch(name)
    return match and match["task"]


def headers_of(request: Any) -> Mapping[str, Any]:
    """Return the headers of a message that are not Celery's own; none, where another client has sent what is no mapping."""
    headers = request and request.headers
    # a dict, nearly always: to ask for a Mapping takes a microsecond, and each run asks four times
    return headers if type(headers) is dict or isinstance(headers, Mapping) else {}


def unhidden_headers(request: Any) -> Mapping[str, Any]:
    """Return the headers of a message, and see that ours are in ``request.headers``, for its body, and for the next attempt's.

    A tracer that sends headers in a header named ``headers``, as ddtrace does (celery#4875), replaces by them all others
    that would be there; each is an attribute of the request all the same (celery 5.7, app/task.py, Context).
    """
    headers = request.headers
    if not isinstance(headers, dict):
        return headers_of(request)
    known = vars(request)
    for name in _OURS:
        if name in known and name not in headers:
            request.headers = headers = {**headers, name: known[name]}
    return headers


def tick_of(request: Any) -> Mapping[str, Any]:
    """Return the tick that a beat has written into the headers of this message; empty, where none has."""
    return tick_in(headers_of(request))


def tick_in(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the tick that is in these headers; empty, where none is."""
    tick = headers.get(TICK)
    return tick if tick is not None and isinstance(tick, Mapping) else {}


def nonce_of(request: Any) -> str | None:
    """Return what tells this message from others under its task id, if anything does."""
    # with task protocol 2 each header is an attribute, too
    nonce = vars(request).get(NONCE) or headers_of(request).get(NONCE)
    return nonce if is_nonce(nonce) else None


def is_nonce(value: Any) -> TypeGuard[str]:
    """Whether this is one: what comes in a header may be anything."""
    return isinstance(value, str) and _NONCE.fullmatch(value) is not None


def postponed(request: Any) -> int:
    """Return how often a copy has been postponed."""
    count = headers_of(request).get(POSTPONED)
    return min(count, 30) if isinstance(count, int) and count > 0 else 0


def delivered_again(request: Any) -> bool:
    """Whether the broker says that it has delivered this message before."""
    return bool(headers_of(request).get(REDELIVERED) or (request.delivery_info or {}).get("redelivered"))


def is_copy_for_later(headers: Mapping[str, Any], request: Any) -> bool:
    """Whether what a run sends, under its own id, is its own message: put off, or to wait in line."""
    line = headers.get(LINE)
    return (headers.get(POSTPONED) or 0) > postponed(request) or (
        line is not None and line != headers_of(request).get(LINE)
    )


def may_be_sent_anew(request: Any) -> bool:
    """Whether a message that is named as an earlier one may be another: nothing tells, and no beat or broker has made it."""
    return nonce_of(request) is None and TICK not in headers_of(request) and not delivered_again(request)


# -- postponing --------------------------------------------------------------------------------------------------------


def postpone(task: Any, request: Any, remaining: float) -> Ignore:
    """Send this copy of a message once more, for later: its run goes on elsewhere, for ``remaining`` seconds or longer.

    Acknowledged away it could not run if the running one dies; put back at once it would only circle. That one may
    be dead already: the broker is told of a dead pool child sooner than its lock is free. So the first time it
    comes again soon, and then ever later, but not much later than a lock that is freed meanwhile. Returns what is to be
    raised in place of the run.
    """
    headers = {**headers_of(request), NONCE: nonce_of(request), POSTPONED: postponed(request) + 1}
    if delivered_again(request):
        headers[REDELIVERED] = True
    delay = min(2.0 ** postponed(request), max(1.0, remaining), COPY_COMES_WITHIN)
    try:
        task.signature_from_request(request, countdown=delay, retries=request.retries, headers=headers).apply_async()
    except Exception as exc:  # noqa: BLE001  whatever it was, the message must stay with the broker
        return Reject(exc, requeue=True)
    text = "a copy of %s[%s] came while that run goes on elsewhere; it comes again in %.0f s"
    logger.info(text, task.name, request.id, delay)
    return Ignore("postponed: this run goes on elsewhere")


# -- sending -----------------------------------------------------------------------------------------------------------


@signals.before_task_publish.connect  # type: ignore[untyped-decorator]
def _tell_apart(headers: dict[str, Any], body: Any, **_: Any) -> None:
    """Give a message its nonce, unless it has one: a tick has that of its claim, a retry that of its task."""
    task = get_current_worker_task()
    request = task and task.request
    if request is None or request.is_eager:
        if headers.get(NONCE) is None:
            headers[NONCE] = secrets.token_urlsafe(12)
        return
    sent = headers if "id" in headers else body  # task protocol 2, else 1
    ours = nonce_of(request)
    if headers.get(NONCE) in (None, ours):
        # A body may pass the headers of its own message on to what it sends. These are no tries of itself.
        own = _is_own_next(sent, headers, request)
        headers[NONCE] = ours if own else _nonce_of_what_is_sent_by(request, sent.get("id"))
    if headers[NONCE] is None:
        del headers[NONCE]


def _is_own_next(sent: Mapping[str, Any], headers: Mapping[str, Any], request: Any) -> bool:
    """Whether a run's own next try is sent, by ``self.retry()``, or a copy of its message, for later."""
    return sent.get("id") == request.id and (
        (sent.get("retries") or 0) > request.retries or is_copy_for_later(headers, request)
    )


def _nonce_of_what_is_sent_by(request: Any, task_id: Any) -> str:
    """Make the nonce of a message that a run sends: the same when that run is carried out again, for it is a copy then.

    So the next link of a chain is not run twice, though the one before was, and its worker died between two lines. What
    a run sends twice, under one id, are two.
    """
    counts = _sent.setdefault(request, {})
    count = counts.get(task_id, 0)
    if not count and len(counts) >= COUNTED_AT_MOST:
        return secrets.token_urlsafe(12)
    counts[task_id] = count + 1
    text = f"{name_of(request)} {count} {task_id}"
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()
    return urlsafe_b64encode(digest).decode()

"""The message of a tick: its entry's, under the task id of the claim, with the tick in its headers.

Promises: what is written into the options of one message stays in that message.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from celery.beat import BeatLazyFunc
from celery.schedules import crontab, schedule

from celery_lockbeat.beat.ledger import Tick
from celery_lockbeat.schedules.when import OwnSchedule
from celery_lockbeat.tasks.copies import BEGIN_BY, NONCE

#: The header of an entry's messages in which RedBeat's entries have their policies (see contrib/policies.py).
POLICY: Final = "lockbeat_policy"

__all__ = ["copied", "message_of"]

#: What is in the details of a claim, and no matter of the task's: whose tick it is, and the arguments, which are in the message.
OURS: Final = frozenset({"flag", "args", "kwargs"})


def message_of(tick: Tick, entry: Any) -> Any:
    """Return an entry whose message is that of this tick. Raises ValueError."""
    message = copied(entry)
    options = message.options
    # the claim's, unless the user wants another
    options["task_id"] = options.get("task_id") or tick.task_id
    header = _header(tick)
    if options["task_id"] != tick.task_id:
        header["claim"] = tick.task_id
    options["headers"] = {
        **_without_policy(options.get("headers") or {}),
        "celery_beat_task": True,
        "lockbeat": header,
        # whoever takes the claim over sends a copy
        NONCE: tick.task_id,
    }
    if BEGIN_BY in tick.details:
        options["expires"] = _earlier(options.get("expires"), datetime.fromisoformat(tick.details[BEGIN_BY]))
    # retried by us, for a claim has its time
    options["retry"] = False
    message.args, message.kwargs = _evaluated(entry)
    if "args" in tick.details:
        message.args = tick.details["args"]
    if "kwargs" in tick.details:
        message.kwargs = tick.details["kwargs"]
    return message


def _without_policy(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave out what a beat alone has to know."""
    return {name: value for name, value in headers.items() if name != POLICY} if POLICY in headers else headers


def copied(entry: Any) -> Any:
    """Copy an entry, so that its options can be written into; copy.copy() does as pickle does, which entries make more of."""
    other = object.__new__(type(entry))
    vars(other).update(vars(entry))
    other.options = options = dict(entry.options or {})
    if isinstance(options.get("headers"), Mapping):
        options["headers"] = dict(options["headers"])
    return other


def _earlier(expires: Any, begin_by: datetime) -> Any:
    """Return when a message expires: as the user says, in so many seconds or at a time, but not after ``begin_by``."""
    if isinstance(expires, (int, float)):
        expires = datetime.now(timezone.utc) + timedelta(seconds=expires)
    if isinstance(expires, str):
        expires = datetime.fromisoformat(expires)
    if isinstance(expires, datetime) and (expires if expires.tzinfo else expires.astimezone()) < begin_by:
        return expires
    return begin_by


def _evaluated(entry: Any) -> tuple[list[Any], dict[str, Any]]:
    try:
        args = [value() if isinstance(value, BeatLazyFunc) else value for value in entry.args or ()]
        kwargs = {
            name: value() if isinstance(value, BeatLazyFunc) else value for name, value in (entry.kwargs or {}).items()
        }
    except Exception as exc:
        # a function of the user's that raises OSError is no broker in trouble
        raise ValueError(f"its arguments cannot be made: {type(exc).__name__}: {exc}") from exc
    return args, kwargs


def _header(tick: Tick) -> dict[str, Any]:
    told = {name: value for name, value in tick.details.items() if name not in OURS}
    kind = _kind(tick.item.schedule)
    return {**told, "entry": tick.item.entry.name, "run": tick.run, **({"kind": kind} if kind else {})}


def _kind(when: Any) -> str | None:
    if isinstance(when, OwnSchedule):
        return when.kind
    if isinstance(when, crontab):
        return "cron"
    return "interval" if isinstance(when, schedule) else None

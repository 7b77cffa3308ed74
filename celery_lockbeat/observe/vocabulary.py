"""The vocabulary: each event's level, which values of ``lock_logging`` log it, and its short text.

Promises: the constant part of a text is the same for all events of a kind, and short, for error trackers group by it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from logging import ERROR, INFO, WARNING
from typing import Any, Final, NamedTuple

__all__ = ["EVENTS", "Event", "Fields", "still_running", "took"]

Fields = Mapping[str, Any]

_UUID: Final = re.compile(r"\[([0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\]")


class Event(NamedTuple):
    """How an event is logged; its Signal has the same name."""

    level: int
    #: which values of ``lock_logging`` log it
    logged_by: frozenset[str | bool]
    #: the constant part of its text, and what goes into it
    text: str
    words: Callable[[Fields], tuple[str, ...]]


def _who(fields: Fields) -> str:
    task, key = fields.get("task_name"), fields.get("lock_key")
    return str(task or key) if task == key or not (task and key) else f"{task} [{key}]"


def _key(fields: Fields) -> str:
    return str(fields.get("lock_key"))


def took(seconds: float) -> str:
    """Write a time as people do."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if round(seconds * 1000) else "under 1 ms"
    if seconds < 60:  # noqa: PLR2004  the units of time
        return f"{seconds:g} s" if seconds == round(seconds) else f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds:.0f} s"


def _ran(fields: Fields) -> str:
    return took(fields["duration_ms"] / 1000)


def _error(fields: Fields) -> str:
    return ": ".join(str(fields[name]) for name in ("error_name", "error_message") if fields.get(name))


def _failure(fields: Fields) -> str:
    # nothing of the body has run where it has taken no time
    return f" after {_ran(fields)}: {_error(fields)}" if fields["duration_ms"] else f": {_error(fields)}"


def _next_try(fields: Fields) -> str:
    pause, error = fields.get("retry_in"), _error(fields)
    return (f" in {took(pause)}" if pause else "") + (f": {error}" if error else "")


def _why_skipped(fields: Fields) -> str:
    reason = fields.get("reason")
    if reason == "duplicate":
        return "a copy of a message whose run has ended"
    if reason == "unique":
        return "queued already, or running: " + _short(fields)
    who = _short(fields, "who") if fields.get("who") else ""
    if reason == "superseded":
        return f"{who or 'a later one'} has taken its place in line"
    if fields.get("line") == "cleared":
        return "the line in which it waited was cleared"
    why = {"waited": "it has waited for too long, ", "queued": f"{who or 'another'} waits already, "}.get(
        str(reason), ""
    )
    why = "the line is full, " if fields.get("line") == "full" else why
    which = f"{fields['held_key']} " if fields.get("held_key") else ""
    return f"{why}{which}held by " + _short(fields)


def _short(fields: Fields, name: str = "holder") -> str:
    holder = str(fields.get(name) or "another run")
    # as git cuts its ids; what Celery logs of that run is found by it
    return _UUID.sub(r"[\1]", holder.replace(f"{fields.get('task_name')}[", "["))


def _entry(fields: Fields) -> str:
    return str(fields.get("schedule"))


def _late(fields: Fields) -> str:
    return f"{took(fields['late'])} after {fields.get('tick')}: {fields.get('reason')}"


def _missed(fields: Fields) -> str:
    ticks = "a tick" if fields.get("count") == 1 else f"{fields.get('count')} ticks"
    until = f", {fields['tick']}" if fields.get("tick") else f", the last of {fields.get('last_due')}"
    return f"{ticks}{until}: {fields.get('reason')}"


_BY_ALL: Final[frozenset[str | bool]] = frozenset({"brief", "default", "verbose"})
_BY_BRIEF: Final[frozenset[str | bool]] = frozenset({"brief"})
_BY_DEFAULT: Final[frozenset[str | bool]] = frozenset({"default", "verbose"})
_BY_VERBOSE: Final[frozenset[str | bool]] = frozenset({"verbose"})

#: That a run falls back is logged whatever ``lock_logging`` says, and that failures have paused an entry: a run outside of its
#: store, and runs that do not come any more, must never go unseen. A failure is no ERROR, for Celery logs one itself, and error trackers would count two.
EVENTS: Final[Mapping[str, Event]] = {
    "task_started": Event(INFO, _BY_DEFAULT, "%s has started", lambda fields: (_who(fields),)),
    "lock_acquired": Event(INFO, _BY_VERBOSE, "lock acquired: %s", lambda fields: (_key(fields),)),
    "lock_extended": Event(INFO, _BY_VERBOSE, "lock extended: %s", lambda fields: (_key(fields),)),
    "lock_extend_failed": Event(
        ERROR, _BY_ALL, "lock not extended: %s: %s", lambda fields: (_key(fields), _error(fields))
    ),
    "lock_expired_before_finish": Event(ERROR, _BY_ALL, "lock lost: %s", lambda fields: (_key(fields),)),
    "lock_replaced": Event(
        INFO, _BY_ALL, "lock to be handed over: %s, replaced by %s", lambda fields: (_key(fields), _short(fields))
    ),
    "lock_released": Event(INFO, _BY_VERBOSE, "lock released: %s", lambda fields: (_key(fields),)),
    "task_succeeded": Event(INFO, _BY_ALL, "%s succeeded in %s", lambda fields: (_who(fields), _ran(fields))),
    "task_failed": Event(WARNING, _BY_ALL, "%s failed%s", lambda fields: (_who(fields), _failure(fields))),
    "task_retried": Event(INFO, _BY_ALL, "%s retries%s", lambda fields: (_who(fields), _next_try(fields))),
    "task_skipped": Event(INFO, _BY_ALL, "%s skipped: %s", lambda fields: (_who(fields), _why_skipped(fields))),
    "task_finished": Event(INFO, _BY_DEFAULT, "%s is over: %s", lambda fields: (_who(fields), fields["status"])),
    "task_waiting": Event(INFO, _BY_ALL, "%s waits: %s", lambda fields: (_who(fields), _why_skipped(fields))),
    "run_overdue": Event(
        WARNING, _BY_ALL, "%s is overdue: %s", lambda fields: (_who(fields), str(fields.get("reason")))
    ),
    "tick_late": Event(WARNING, _BY_ALL, "%s was published late: %s", lambda fields: (_entry(fields), _late(fields))),
    "tick_missed": Event(WARNING, _BY_ALL, "%s has missed %s", lambda fields: (_entry(fields), _missed(fields))),
    "entry_silent": Event(
        WARNING, _BY_ALL, "%s is silent: %s", lambda fields: (_entry(fields), str(fields.get("reason")))
    ),
    "entry_paused": Event(
        ERROR, _BY_ALL | {False}, "%s is paused: %s", lambda fields: (_entry(fields), str(fields.get("reason")))
    ),
    "driver_fallback": Event(
        ERROR, _BY_ALL | {False}, "%s falls back to memory: %s", lambda fields: (_who(fields), _error(fields))
    ),
}


def still_running(seconds: float) -> Event:
    """What ``brief`` logs in place of a renewal, once a run has lasted for so many seconds."""
    return Event(INFO, _BY_BRIEF, "%s still running after %s", lambda fields: (_who(fields), took(seconds)))

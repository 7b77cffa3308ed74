"""What is said in a line: of an event, of a time that is to come, and of one that is over."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Final

from celery_lockbeat.journal.records import Record
from celery_lockbeat.journal.ticks import Attempt, Tick
from celery_lockbeat.observe.vocabulary import EVENTS, took

__all__ = ["event_of", "held_by", "span_of", "why_of", "why_skipped"]

_EPOCH: Final = datetime.fromtimestamp(0, timezone.utc)
_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86400


def span_of(seconds: float) -> str:
    """Write a duration in at most eight characters."""
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds / _HOUR:.1f} h" if seconds < _DAY else f"{seconds / _DAY:.0f} d"


def held_by(holder: str, task: str | None) -> str:
    """Say who held a lock, as the log does."""
    return _logged(Record(event="task_skipped", at=_EPOCH, reason="locked", holder=holder, task_name=task)).partition(
        ": "
    )[2]


def why_skipped(attempt: Attempt) -> str:
    """Say why a run was skipped, and for whom, as the log does; "" where nobody has recorded it."""
    if attempt.holder is None and attempt.who is None:
        return attempt.reason or ""
    told = {name: getattr(attempt, name) for name in ("reason", "holder", "who", "line", "held_key", "task_name")}
    return _logged(Record(event="task_skipped", at=_EPOCH, **told)).partition(": ")[2]


def why_of(tick: Tick) -> str:
    """Say why a tick fared as it did, and for whom, in some words; "" where there is nothing to say."""
    last = tick.last
    if tick.waits is not None:
        return f"waits in line: {held_by(tick.waits.behind(), tick.task_name)}"
    if last is not None and last.lost_at is not None:
        return f"lost its lock; {tick.reason or ''}".rstrip("; ")
    if last is not None and last.status == "skipped":
        return why_skipped(last)
    return tick.reason or ""


def event_of(record: Record) -> str:
    """Say what has happened in a line, in the words of the log."""
    where = f" ({record.hostname})" if record.hostname else ""
    said = _OWN[record.event](record) if record.event in _OWN else _logged(record)
    return said + (where if record.event.startswith("task_") else "")


def _logged(record: Record) -> str:
    fields = {**record.fields(), "schedule": record.entry, "tick": record.due and record.due.isoformat()}
    try:
        event = EVENTS[record.event]
        said = event.text % event.words(fields)
        # many entries may have one task
        of_entry = record.entry and record.task_name and said.startswith(record.task_name)
        return f"{record.entry}{said[len(record.task_name or '') :]}" if of_entry else said
    except (KeyError, TypeError, ValueError):  # of a later release, or what nobody of ours has written
        known = (record.entry or record.task_name, record.lock_key, record.reason)
        return " ".join((record.event.replace("_", " "), *(each for each in known if each)))


def _published(record: Record) -> str:
    late = f", {took(record.late)} late" if record.late is not None and record.late >= 1 else ""
    over = ", taken over from another" if record.taken_over else ""
    return f"{record.entry} published by {record.hostname or 'a beat'}{late}{over}"


def _died(record: Record) -> str:
    return f"{record.entry or record.task_name} died: {record.reason or 'its process has ended'}"


def _dropped(record: Record) -> str:
    return f"{record.count} records dropped by {record.hostname or 'a process'}: the store did not take them"


_OWN: Final = {"tick_published": _published, "task_died": _died, "records_dropped": _dropped}

"""A record of the journal: one event of a tick or a run, as it is written and as it is read.

Promises: whatever stands in a store's text, reading it raises nothing; fields that a reader does not know, of a later release,
are in ``more``. A record takes less than 400 bytes in Redis, but for long names and messages, which are cut.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from json.encoder import encode_basestring_ascii
from typing import Any, Final, NamedTuple

from celery_lockbeat.stores.base import StoredRecord

__all__ = ["ENDINGS", "VERSION", "Record", "Said", "encode", "encode_published", "read_record"]

#: Of the schema: what a later release adds, an older reader passes over; what it would misread gets another number.
VERSION: Final = 1

#: The events that end a run, and the status of the run then.
ENDINGS: Final[Mapping[str, str]] = {
    "task_succeeded": "success",
    "task_failed": "failed",
    "task_retried": "retry",
    "task_skipped": "skipped",
    "task_died": "died",
}

#: How the fields are called in a store's text.
WRITTEN_AS: Final[Mapping[str, str]] = {
    "execution_id": "x",
    "task_id": "id",
    "task_name": "task",
    "kind": "kind",
    "entry": "entry",
    "due": "due",
    "run": "run",
    "late": "late",
    "hostname": "host",
    "pid": "pid",
    "lock_key": "key",
    "lock_keys": "keys",
    "held_key": "held",
    "line": "line",
    "token": "token",
    "driver": "driver",
    "reason": "why",
    "holder": "by",
    "duration_ms": "ms",
    "acquire_ms": "acq",
    "release_ms": "rel",
    "error_name": "err",
    "error_message": "msg",
    "count": "n",
    "last_due": "last",
    "signal": "sig",
    "taken_over": "over",
    "where": "where",
    "who": "who",
}

#: No number of seconds or milliseconds is larger.
LARGEST: Final = 1e13

#: Characters that are kept of a text.
LONGEST: Final = 200

#: What other events call a field, by the names of the log (docs/reference.md).
_AS_LOGGED: Final = {"schedule": "entry", "tick": "due"}

_NAMES: Final = {written: name for name, written in WRITTEN_AS.items()}
_WRITTEN: Final = {**WRITTEN_AS, **{logged: WRITTEN_AS[name] for logged, name in _AS_LOGGED.items()}}
_TIMES: Final = frozenset({"due", "last"})
_to_json: Final = json.JSONEncoder(separators=(",", ":"), default=str).encode


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One record. Fields that do not apply are None; times are aware, and ``at`` is by the store's clock.

    ``event`` is one of those in docs/journal.md; ``position`` tells this record from all others of its app.
    """

    event: str
    at: datetime
    position: str = ""
    execution_id: str | None = None
    task_id: str | None = None
    task_name: str | None = None
    #: cron, interval or timeout, or of a tick beside the schedule manual, backfill or catchup; None: not a tick's
    kind: str | None = None
    entry: str | None = None
    due: datetime | None = None
    run: int | None = None
    #: seconds from when a tick was due to when it was published, or missed for good
    late: float | None = None
    #: the worker, or the beat
    hostname: str | None = None
    pid: int | None = None
    lock_key: str | None = None
    #: where there are several; ``lock_key`` is all of them in one text
    lock_keys: tuple[str, ...] | None = None
    #: of several the one that was another's
    held_key: str | None = None
    #: of one that was skipped: the line in which it would have waited is "full", or was "cleared"
    line: str | None = None
    token: int | None = None
    driver: str | None = None
    reason: str | None = None
    holder: str | None = None
    duration_ms: float | None = None
    acquire_ms: float | None = None
    release_ms: float | None = None
    error_name: str | None = None
    error_message: str | None = None
    #: of how many ticks, or records, it tells
    count: int | None = None
    #: of several ticks the last one; ``due`` is the first
    last_due: datetime | None = None
    #: the signal that ended a process
    signal: int | None = None
    taken_over: bool | None = None
    #: where the body of a run stood
    where: str | None = None
    #: who wants it so; of a run that was skipped, the one that waits in its place
    who: str | None = None
    #: what a later release has written
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> str | None:
        """How a run ended: success, failed, retry, skipped or died; "running" for its start; None for all else."""
        return "running" if self.event == "task_started" else ENDINGS.get(self.event)

    @property
    def started(self) -> datetime | None:
        """When the body of an ended run was entered; of a ``task_started``, when it was."""
        if self.event == "task_started":
            return self.at
        if self.duration_ms is None:
            return None
        try:
            return self.at - timedelta(milliseconds=self.duration_ms + (self.release_ms or 0.0))
        except OverflowError:
            return None

    def fields(self) -> dict[str, Any]:
        """Return what applies, by its names, as JSON can write it: times in ISO 8601."""
        told: dict[str, Any] = {}
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if value is not None and each.name not in ("position", "more"):
                told[each.name] = value.isoformat() if isinstance(value, datetime) else value
        if self.status is not None:
            told["status"] = self.status
        return {**self.more, **told}


class Said(NamedTuple):
    """What an operator says with what is asked of beats: who, when (in ISO 8601) and why, in that form wherever it is kept."""

    who: str | None = None
    at: str | None = None
    note: str | None = None

    def text(self) -> str:
        """Write it."""
        return _to_json({name: value for name, value in self._asdict().items() if value})

    @classmethod
    def read(cls, text: str) -> Said:
        """Read it; what is none says nothing."""
        try:
            told = json.loads(text)
        except (ValueError, RecursionError):
            return cls()
        if not isinstance(told, dict):
            return cls()
        return cls(*(_text(told.get(name)) for name in cls._fields))


def encode(event: str, fields: Mapping[str, Any], ago: float) -> str:
    """Write a record of what happened ``ago`` seconds ago; what the journal has no field for is left out."""
    told: dict[str, Any] = {"e": event}
    for name, value in fields.items():
        written = _WRITTEN.get(name)
        if written is None or value is None or (written == "kind" and value == "task"):
            continue
        if isinstance(value, str):
            told[written] = _epoch(value) if written in _TIMES else value if len(value) <= LONGEST else _cut(value)
        elif written == "keys":
            told[written] = [_cut(each) for each in value]
        else:
            told[written] = value
    told["ago"] = round(ago, 3)
    return _to_json(told)


def encode_published(
    *,
    entry: str,
    task: str,
    due: float,
    run: int,
    task_id: str,
    late: float,
    hostname: str,
    taken_over: bool,
    ago: float,
) -> str:
    """Write a ``tick_published``, as :func:`encode` would: a beat publishes thousands a second, and this takes a fifth of the time."""
    over = ',"over":true' if taken_over else ""
    return (
        f'{{"e":"tick_published","entry":{_quoted(entry)},"task":{_quoted(task)},"due":{due:.3f},"run":{run},'
        f'"id":{_quoted(task_id)},"late":{late:.3f},"host":{_quoted(hostname)}{over},"ago":{ago:.3f}}}'
    )


def _quoted(text: str) -> str:
    return encode_basestring_ascii(_cut(text))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def read_record(stored: StoredRecord) -> Record:
    """Read a record; what is none has the event "unreadable"."""
    try:
        told = json.loads(stored.text)
    except (ValueError, RecursionError):
        told = None
    written = _time(stored.written) or _EPOCH
    if not isinstance(told, dict) or not isinstance(told.get("e"), str):
        return Record(event="unreadable", at=written, position=stored.position)
    ago = told.pop("ago", 0)
    try:
        at = written - timedelta(seconds=ago if _is_number(ago) else 0)
    except (OverflowError, ValueError):  # JSON as Python reads it has NaN
        at = written
    known, more = {}, {}
    event = told.pop("e")
    for name, value in told.items():
        read = _READ.get(name)
        value = value if read is None else read(value)  # noqa: PLW2901
        if read is None:
            more[name] = value
        elif value is not None:
            known[_NAMES[name]] = value
    return Record(event=event, at=at, position=stored.position, more=more, **known)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _texts(value: Any) -> tuple[str, ...] | None:
    return tuple(value) if isinstance(value, list) and all(isinstance(each, str) for each in value) else None


def _number(value: Any) -> float | None:
    return value if _is_number(value) else None


def _whole(value: Any) -> int | None:
    # a token is as large as this
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _time(value: Any) -> datetime | None:
    try:
        return _EPOCH + timedelta(seconds=value)
    except (TypeError, OverflowError, ValueError):
        return None


def _epoch(text: str) -> float | str:
    try:
        return round(datetime.fromisoformat(text).timestamp(), 3)
    except (ValueError, OverflowError, OSError):
        return text[:LONGEST]


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)

#: How each field is read, by its name in the text; None: what was written is no such thing.
_READ: Final[Mapping[str, Callable[[Any], Any]]] = {
    **dict.fromkeys(_NAMES, _text),
    **dict.fromkeys(("late", "ms", "acq", "rel"), _number),
    **dict.fromkeys(("run", "pid", "token", "n", "sig"), _whole),
    **dict.fromkeys(("due", "last"), _time),
    "over": _flag,
    "keys": _texts,
}

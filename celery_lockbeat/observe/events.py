"""What happens to runs and locks, logged on the logger ``celery_lockbeat.events`` and sent as Signals.

Promises: a run's events carry one ``execution_id``; fields that do not apply are left out; an observer, be it a log
handler or a receiver of the event's Signal, can slow a run but never break it. No handler is forced on anyone.

An event is a log record whose constant part, ``record.msg``, is short and human, for error trackers group by it, and whose
message is one JSON object on one line; or, with ``brief`` and :func:`log_fields`, the short text.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import weakref
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import partial
from logging import INFO
from typing import TYPE_CHECKING, Any, Final, TextIO

from celery_lockbeat import signals
from celery_lockbeat.clock import monotonic
from celery_lockbeat.journal.records import ENDINGS
from celery_lockbeat.journal.writer import Journal
from celery_lockbeat.observe.observers import Pending, pending_of
from celery_lockbeat.observe.vocabulary import EVENTS, Event, Fields, still_running

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Story", "log_fields", "log_json_lines", "text_of"]

events_logger: Final = logging.getLogger("celery_lockbeat.events")
logger: Final = logging.getLogger("celery_lockbeat")

#: With ``lock_logging="brief"`` a run that lasts is logged once: when its lock is renewed after so many seconds.
LONG: Final = 10.0

_KINDS: Final = {event: (how, getattr(signals, event)) for event, how in EVENTS.items()}

#: The events of an attempt, of which each is sent once.
_ONCE: Final = frozenset(event for event in EVENTS if event.startswith("task_"))

#: The events that go into the journal, whatever is logged; an end of an attempt says all that ``task_finished`` does.
_JOURNALED: Final = frozenset(
    {
        *("task_waiting", "task_started", *ENDINGS, "run_overdue"),
        *("lock_expired_before_finish", "lock_replaced", "driver_fallback"),
    }
)

#: The fields that say who a run is.
_WHO: Final = ("task_id", "task_name", "kind", "schedule", "tick", "hostname")

#: How all events are written in this process, if somebody has asked for a form: by :func:`log_json_lines`, or by
#: :func:`log_fields`.
_form: str | None = None


class Story:
    """Who a run, or a lock outside of tasks, is in the log: the fields that all of its events share.

    ``sender``, of its Signals, is the task, or a weak reference to the lock. ``journal`` is where it is written; None: nowhere.
    """

    __slots__ = (
        "_began",
        "_journal",
        "_logging",
        "_sender",
        "emitted",
        "execution_id",
        "fields",
        "journaled",
        "pending",
        "streak",
    )

    def __init__(self, sender: Any, logging: str | bool, journal: Journal | None = None, **fields: Any) -> None:
        self.execution_id = new_id()
        self.fields = fields
        self._sender = sender
        self._journal = journal
        #: as ``lock_logging``; what suits the log is looked up once something is logged
        self._logging = logging
        self._began: float | None = None
        #: which events of an attempt have been logged, and which Signals sent: each is so once, whatever strikes in between
        self.emitted: dict[Any, bool] = {}
        #: which events of an attempt have been put into the journal
        self.journaled: tuple[str, ...] = ()
        #: events that others have found out, and that are not yet delivered (see observers.py)
        self.pending: Pending | None = None
        #: what counts the run's failure, should its process die (see locks/streaks.py)
        self.streak = ""

    def emit(self, event: str, *, later: bool = False, **details: Any) -> None:
        """Journal an event; log it, as far as ``lock_logging`` asks for it, and send its Signal, after all that came before it."""
        if self._journal is not None and event in _JOURNALED and event not in self.journaled:
            self._journal.put(event, self.fields, details, self.execution_id)
            if event in _ONCE:
                self.journaled += (event,)
        how, signal = _KINDS[event]
        logs = events_logger.isEnabledFor(how.level)
        if logs:
            if self._logging == "auto":
                self._logging = _what_suits_the_log()
            if self._logging == "brief":
                how = self._in_brief(event, how)
            logs = self._logging in how.logged_by
        if not logs and not signal.receivers:
            return
        deliver = partial(self._deliver, how if logs else None, signal, self._shown(event, details))
        if later:
            pending_of(self).put(deliver)
        elif self.pending is None or self.pending.flush() or not self.pending.put(deliver):
            deliver()

    def later(self, event: str, **details: Any) -> None:
        """As ``emit``, for a renewing thread: another delivers it, or who ends this story."""
        self.emit(event, later=True, **details)

    def journaled_fields(self) -> tuple[tuple[str, str], ...]:
        """Return who the run is, for whoever writes in its place that its process has died."""
        if self._journal is None or not self.fields.get("task_name"):
            return ()
        who: tuple[tuple[str, str], ...] = (("streak", self.streak),) if self.streak else ()
        for name in (*_WHO, "lock_key") if self.fields.get("lock_keys") else _WHO:
            if self.fields.get(name) is not None:
                who += ((name, str(self.fields[name])),)
        return who

    def flush(self) -> None:
        """Deliver what is still pending."""
        if self.pending is not None:
            self.pending.flush()

    def _shown(self, event: str, details: dict[str, Any]) -> dict[str, Any]:
        """The fields of an event as of now."""
        given = {"event": event, "execution_id": self.execution_id, **self.fields, **details}
        given.update(hostname=given.get("hostname") or socket.gethostname(), pid=os.getpid())
        given["timestamp"] = datetime.now(timezone.utc).isoformat()
        return {name: value for name, value in given.items() if value is not None}

    def _deliver(self, how: Event | None, signal: Any, shown: dict[str, Any]) -> None:
        if how is not None and shown["event"] not in self.emitted:
            self._log(how, shown)
        if signal.receivers and signal not in self.emitted:
            sender = self._sender() if isinstance(self._sender, weakref.ref) else self._sender
            if shown["event"] in _ONCE:
                self.emitted[signal] = True
            signal.send(sender=sender, **shown)  # logs what a receiver raises

    def _log(self, how: Event, shown: dict[str, Any]) -> None:
        for attempt in (1, 2):
            try:
                record = _record(how, shown, form=_form or ("text" if self._logging == "brief" else "json"))
                if shown["event"] in _ONCE:
                    self.emitted[shown["event"]] = True
                events_logger.handle(record)
            except Exception:
                # or it was raised from outside, before the handlers had it
                if attempt == 1 and shown["event"] in _ONCE - self.emitted.keys():
                    continue
                logger.exception("a log handler failed at %s", shown["event"])
            return

    def _in_brief(self, event: str, how: Event) -> Event:
        """Let the first renewal that comes late enough say that the run lasts: there is no timer to do so."""
        if event == "task_started":
            self._began = monotonic()
        elif event == "lock_extended" and self._began is not None and (lasted := monotonic() - self._began) >= LONG:
            self._began = None
            return still_running(lasted)
        return how


def new_id() -> str:
    """Make an execution_id."""
    return os.urandom(16).hex()


def _record(how: Event, shown: dict[str, Any], *, form: str) -> logging.LogRecord:
    text = _JsonLine(how.text, shown) if form == "json" else how.text
    # What log() does but to look for who called it: that is always this module, and costs more than all the rest.
    record = events_logger.makeRecord(events_logger.name, how.level, __file__, 0, text, how.words(shown), None, "emit")
    vars(record).update(shown if form == "fields" else {"lockbeat": shown})
    return record


class _JsonLine(str):
    """The constant part of an event's text, which becomes the event's JSON line when logging puts the words into it.

    It is in ``record.msg``, for records are copied by their fields: structlog does so, and queues do (structlog 26.1,
    stdlib.py). Trackers group by it: Sentry, Elastic APM, Rollbar.
    """

    __slots__ = ("_fields",)
    _fields: Fields

    def __new__(cls, text: str, fields: Fields) -> Self:
        line = super().__new__(cls, text)
        line._fields = fields
        return line

    def __getnewargs__(self) -> tuple[str, Fields]:  # type: ignore[override]  # to be copied and pickled
        return str.__str__(self), self._fields

    def __str__(self) -> str:
        # logging asks for it before it puts the words in
        return self

    def __mod__(self, words: Any) -> str:
        return json.dumps(self._fields, default=str, separators=(",", ":"))


def text_of(record: logging.LogRecord) -> str:
    """Return the short human text of an event's record, whatever its message is."""
    return str.__mod__(record.msg, record.args)


# -- where events go ---------------------------------------------------------------------------------------------------


def log_json_lines(stream: TextIO | None = None, *, level: int | str = INFO) -> None:
    """Write each event as one bare JSON line to ``stream``, by default stderr, whatever the worker's own log looks like.

    Call it once, where the app is made. The events are then not repeated in the worker's log. The worker replaces
    ``sys.stderr`` by a proxy into its log, so the process's real one is used.
    """
    _write("json", level)
    events_logger.addHandler(_JsonLines(stream or sys.__stderr__))
    events_logger.propagate = False


def log_fields(*, level: int | str = INFO) -> None:
    """Log each event with its fields as attributes of the record (``extra``) and a short text as its message.

    For formatters that write such attributes, of python-json-logger and structlog, say: one stream of lines for Celery's
    own and ours. Call it once, where the app is made; the events go wherever the process's log goes.
    """
    _write("fields", level)
    events_logger.propagate = True


def _write(form: str, level: int | str) -> None:
    global _form  # noqa: PLW0603  one logger, one form
    _form = form
    events_logger.handlers = [handler for handler in events_logger.handlers if type(handler) is not _JsonLines]
    events_logger.setLevel(level)


class _JsonLines(logging.StreamHandler):  # type: ignore[type-arg]  # not subscriptable in Python 3.10
    """A handler that :func:`log_json_lines` recognises as its own; logging's default format is the bare message."""


def _what_suits_the_log() -> str:
    """Return what ``auto`` means: ``brief`` where people read the log, at a terminal, and nothing else does."""
    if _form is not None:
        return "default"
    handlers: list[logging.Handler | None] = list(_handlers()) or [logging.lastResort]
    return "brief" if all(map(_is_a_terminal, handlers)) else "default"


def _handlers() -> Iterator[logging.Handler]:
    """Who gets the events; as Logger.callHandlers finds them."""
    at: logging.Logger | None = events_logger
    while at is not None:
        yield from at.handlers
        at = at.parent if at.propagate else None


def _is_a_terminal(handler: logging.Handler | None) -> bool:
    try:
        return isinstance(handler, logging.StreamHandler) and bool(handler.stream.isatty())
    except (AttributeError, ValueError, OSError):  # no file, or one that is closed
        return False

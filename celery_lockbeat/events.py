"""The vocabulary of what happens to runs and locks: one JSON object per line on ``celery_lockbeat.events``.

Promises: a run's events carry one ``execution_id``; fields that do not apply are left out; an observer, be it a log
handler or a receiver of the event's Signal, can slow a run but never break it. No handler is forced on anyone.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Final, TextIO

from celery_lockbeat import signals

__all__ = ["EVENTS", "Story", "log_json_lines"]

events_logger: Final = logging.getLogger("celery_lockbeat.events")
logger: Final = logging.getLogger("celery_lockbeat")

#: event -> (level, whether ``lock_logging="verbose"`` is needed to log it). Its Signal has the same name.
EVENTS: Final[Mapping[str, tuple[int, bool]]] = {
    "task_started": (logging.INFO, False),
    "lock_acquired": (logging.INFO, True),
    "lock_extended": (logging.INFO, True),
    "lock_extend_failed": (logging.ERROR, False),
    "lock_expired_before_finish": (logging.ERROR, False),
    "lock_released": (logging.INFO, True),
    "task_succeeded": (logging.INFO, False),
    "task_failed": (logging.ERROR, False),
    "task_skipped": (logging.INFO, False),
    "task_finished": (logging.INFO, False),
    "driver_fallback": (logging.ERROR, False),
}

_KINDS: Final = {event: (*how, getattr(signals, event)) for event, how in EVENTS.items()}

#: Logged whatever ``lock_logging`` says: a run outside of its store must never go unseen.
_ALWAYS: Final = frozenset({"driver_fallback"})


class Story:
    """Who a run, or a lock outside of tasks, is in the log: the fields that all of its events share."""

    __slots__ = ("_logging", "_sender", "execution_id", "fields")

    def __init__(self, sender: Any, logging: str | bool, **fields: Any) -> None:
        self.execution_id = os.urandom(16).hex()
        self.fields = fields
        self._sender = sender
        self._logging = logging

    def emit(self, event: str, **details: Any) -> None:
        """Log an event, as far as ``lock_logging`` asks for it, and send its Signal."""
        level, verbose, signal = _KINDS[event]
        logs = events_logger.isEnabledFor(level) and (
            self._logging == "verbose" or (self._logging and not verbose) or event in _ALWAYS
        )
        if not logs and not signal.receivers:
            return
        given = {"event": event, "execution_id": self.execution_id, **self.fields, **details}
        given.update(hostname=given.get("hostname") or socket.gethostname(), pid=os.getpid())
        given["timestamp"] = datetime.now(timezone.utc).isoformat()
        shown = {name: value for name, value in given.items() if value is not None}
        if logs:
            try:
                events_logger.log(level, "%s", _Line(shown), extra={"lockbeat": shown})
            except Exception:
                logger.exception("a log handler failed at %s", event)
        if signal.receivers:
            signal.send(sender=self._sender, **shown)  # logs what a receiver raises


class _Line:
    """An event as its JSON text, made only if a handler wants it."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields

    def __str__(self) -> str:
        return json.dumps(self._fields, default=str, separators=(",", ":"))


def log_json_lines(stream: TextIO | None = None, *, level: int | str = logging.INFO) -> None:
    """Write each event as one bare JSON line to ``stream``, by default stderr, whatever the worker's own log looks like.

    Call it once, where the app is made. The events are then not repeated in the worker's log. The worker replaces
    ``sys.stderr`` by a proxy into its log, so the process's real one is used.
    """
    events_logger.handlers = [handler for handler in events_logger.handlers if type(handler) is not _JsonLines]
    events_logger.addHandler(_JsonLines(stream or sys.__stderr__))
    events_logger.setLevel(level)
    events_logger.propagate = False


class _JsonLines(logging.StreamHandler):  # type: ignore[type-arg]  # not subscriptable in Python 3.10
    """A handler that :func:`log_json_lines` recognises as its own; logging's default format is the bare message."""

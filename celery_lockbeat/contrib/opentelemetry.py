"""OpenTelemetry: a span for each lock that is held, and the metrics of what happens in this process, by its API alone.

Promises: nothing is done before :func:`instrument` is called; the span of a run's lock is a child of whatever span its task runs
in, and ends with the lock: released, lost, with its run, with whoever had it, or with the process. What a forked child inherits is its
parent's to end. Which spans and metrics are exported, and where to, is for the SDK that its user has set up.

Not promised: the span of a process that is killed, for nobody is left to export it.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Any, Final, NamedTuple

from celery.signals import after_task_publish, worker_process_shutdown
from celery.utils.dispatch import Signal
from opentelemetry import metrics, trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Span, Status, StatusCode, TracerProvider

from celery_lockbeat import signals
from celery_lockbeat.contrib.measures import ACQUIRE, DURATION, ENTRIES_AT_MOST, LATENESS, TASKS_AT_MOST, Labels
from celery_lockbeat.tasks.copies import POSTPONED, TICK

__all__ = ["instrument", "uninstrument"]

_NAME: Final = "celery_lockbeat"

#: The attributes of a span, by the fields of its lock's events.
_ATTRIBUTES: Final = {
    "lock_key": "lockbeat.lock.key",
    "token": "lockbeat.lock.token",
    "attempts": "lockbeat.lock.attempts",
    "driver": "lockbeat.lock.driver",
    "connection": "lockbeat.lock.connection",
    "ttl": "lockbeat.lock.ttl",
    "execution_id": "lockbeat.execution_id",
    "schedule": "lockbeat.entry",
    "tick": "lockbeat.tick",
    "task_name": "celery.task_name",
    "task_id": "celery.task_id",
}

_LOST: Final = "lockbeat.lock.lost"


def instrument(*, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None) -> None:
    """Begin to make spans and to count, once per process; without providers, for those that are set globally.

    Call it where ``CeleryInstrumentor().instrument()`` is called, in a worker's children and in beats, or where the app is made.
    """
    uninstrument()
    release = version("celery-lockbeat")
    spans = _Spans(trace.get_tracer(_NAME, release, tracer_provider))
    counts = _Counts(metrics.get_meter(_NAME, release, meter_provider), spans)
    _used.append(spans)
    _connected.extend((*spans.receivers(), *counts.receivers()))
    for signal, receiver in _connected:
        signal.connect(receiver, weak=False)


def uninstrument() -> None:
    """Undo it; spans that are open are ended."""
    while _connected:
        signal, receiver = _connected.pop()
        signal.disconnect(receiver)
    while _used:
        _used.pop().end_all()


_Receivers = Sequence[tuple[Signal, Callable[..., Any]]]

#: What is connected to which signal, and the spans.
_connected: Final[list[tuple[Signal, Callable[..., Any]]]] = []
_used: Final[list[_Spans]] = []


class _Open(NamedTuple):
    """The span of a lock that is held, and what ends it with a Lock that nobody has any more."""

    span: Span
    driver: str
    finalizer: weakref.finalize[Any, Any] | None


class _Spans:
    """The spans of the locks that this process holds, by the ``execution_id`` of who holds them.

    Each is taken out by one, who ends it: no mutex, that a fork could copy while it is locked.
    """

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer
        self._open: dict[str, _Open] = {}
        #: is called with 1 and -1, and the driver
        self.when_held_changes: Callable[[int, str], object] = lambda _change, _driver: None

    def receivers(self) -> _Receivers:
        return [
            (signals.lock_acquired, self._begin),
            (signals.lock_expired_before_finish, self._lose),
            (signals.lock_released, self._end),
            (signals.task_finished, self._end),  # the store was away at the release
            (signals.task_skipped, self._tell_of_skip),
            (worker_process_shutdown, self.end_all),
        ]

    def forget(self) -> None:
        """Have none: a fork's are its parent's."""
        for each in self._open.values():
            if each.finalizer is not None:
                each.finalizer.detach()
        self._open.clear()

    def _begin(self, sender: Any, execution_id: str, timestamp: str, **fields: Any) -> None:
        self._close(execution_id)
        fields["execution_id"] = execution_id
        attributes = {name: fields[field] for field, name in _ATTRIBUTES.items() if fields.get(field) is not None}
        name = f"lock/{fields['task_name']}" if "task_name" in fields else "lock"
        span = self._tracer.start_span(name, attributes=attributes, start_time=_nanoseconds(timestamp))
        finalizer = None
        if "task_name" not in fields:
            # a Lock outside of tasks, which may be dropped, or its release not come through
            finalizer = weakref.finalize(sender, self._close, execution_id)
        self._open[execution_id] = _Open(span, fields["driver"], finalizer)
        self.when_held_changes(1, fields["driver"])

    def _lose(self, execution_id: str, timestamp: str, error_message: str = "", **_: Any) -> None:
        held = self._open.get(execution_id)
        if held is not None:
            at = _nanoseconds(timestamp)
            held.span.set_attribute(_LOST, True)
            held.span.add_event("lock lost", {"reason": error_message}, timestamp=at)
            held.span.set_status(Status(StatusCode.ERROR, f"the lock was lost: {error_message}"))
            self._close(execution_id, at)

    def _end(self, execution_id: str, timestamp: str, **_: Any) -> None:
        self._close(execution_id, _nanoseconds(timestamp))

    def end_all(self, **_: Any) -> None:
        """End those that are open."""
        for execution_id in list(self._open):
            self._close(execution_id)

    def _close(self, execution_id: str, at: int | None = None) -> None:
        held = self._open.pop(execution_id, None)
        if held is None:
            return
        if held.finalizer is not None:
            held.finalizer.detach()
        held.span.end(at)
        self.when_held_changes(-1, held.driver)

    def _tell_of_skip(self, reason: str | None = None, holder: str | None = None, **_: Any) -> None:
        """Say in the task's own span why it did not run."""
        told = {"reason": reason, "holder": holder}
        trace.get_current_span().add_event("lockbeat skipped", {name: text for name, text in told.items() if text})


class _Counts:
    """The metrics of this process: the names and labels are those of ``celery lockbeat metrics``."""

    def __init__(self, meter: metrics.Meter, spans: _Spans) -> None:
        self._entries, self._tasks = Labels(ENTRIES_AT_MOST), Labels(TASKS_AT_MOST)
        count, seconds = meter.create_counter, meter.create_histogram
        self._ticks = count("lockbeat.ticks", description="Due ticks of entries, by what became of them")
        self._late = count("lockbeat.late_ticks", description="Ticks that were published late")
        self._silences = count("lockbeat.silences", description="Times that an entry fell silent: no success")
        self._runs = count("lockbeat.runs", description="Runs that have ended, by how")
        self._overdue = count("lockbeat.overdue_runs", description="Runs that took longer than they should")
        self._lost = count("lockbeat.locks_lost", description="Locks that were lost while they were needed")
        self._fallbacks = count("lockbeat.fallbacks", description="Runs that fell back to the memory store")
        self._lateness = seconds(
            "lockbeat.tick_lateness",
            "s",
            "From when a tick was due to when it was published",
            explicit_bucket_boundaries_advisory=LATENESS,
        )
        self._durations = seconds(
            "lockbeat.run_duration", "s", "Time spent in the body", explicit_bucket_boundaries_advisory=DURATION
        )
        self._acquires = seconds(
            "lockbeat.acquire", "s", "Until a lock was got or given up", explicit_bucket_boundaries_advisory=ACQUIRE
        )
        held = meter.create_up_down_counter("lockbeat.locks_held", description="Locks that are held")
        spans.when_held_changes = lambda change, driver: held.add(change, {"driver": driver})

    def receivers(self) -> _Receivers:
        return [
            (after_task_publish, self._published),
            (signals.tick_missed, self._missed),
            (signals.tick_late, self._of_entry(self._late)),
            (signals.entry_silent, self._of_entry(self._silences)),
            (signals.run_overdue, self._of_task(self._overdue)),
            (signals.lock_expired_before_finish, self._of_task(self._lost)),
            (signals.driver_fallback, self._of_task(self._fallbacks)),
            (signals.task_succeeded, self._ended),
            (signals.task_failed, self._ended),
            (signals.task_retried, self._ended),
            (signals.task_skipped, self._ended),
        ]

    def _of_entry(self, counter: metrics.Counter) -> Callable[..., None]:
        return lambda schedule=None, **_: counter.add(1, {"entry": self._entries.of(schedule)})

    def _of_task(self, counter: metrics.Counter) -> Callable[..., None]:
        return lambda task_name=None, **_: counter.add(1, {"task": self._tasks.of(task_name)})

    def _published(self, headers: Mapping[str, Any] | None = None, **_: Any) -> None:
        headers = headers or {}
        tick = headers.get(TICK)
        # a run's next attempt has its headers, and so has a copy that was put off
        if not isinstance(tick, Mapping) or headers.get("retries") or POSTPONED in headers:
            return
        self._ticks.add(1, {"entry": self._entries.of(str(tick.get("entry") or "")), "outcome": "published"})
        due = _nanoseconds(tick.get("due"))
        if due is not None:
            self._lateness.record(max(0.0, time.time() - due / 1e9))

    def _missed(self, schedule: str | None = None, count: int = 1, **_: Any) -> None:
        self._ticks.add(count, {"entry": self._entries.of(schedule), "outcome": "missed"})

    def _ended(
        self,
        task_name: str,
        status: str,
        driver: str | None = None,
        reason: str | None = None,
        duration_ms: float | None = None,
        acquire_ms: float | None = None,
        **_: Any,
    ) -> None:
        task = self._tasks.of(task_name)
        self._runs.add(1, {"task": task, "status": status, "reason": reason or ""})
        if acquire_ms is not None:
            self._acquires.record(acquire_ms / 1000, {"driver": driver or ""})
        # a body that has not run has taken no time
        if duration_ms or (duration_ms is not None and status == "success"):
            self._durations.record(duration_ms / 1000, {"task": task})


def _nanoseconds(time_: Any) -> int | None:
    try:
        return int(datetime.fromisoformat(time_).timestamp() * 1e9)
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _begin_anew() -> None:
    for each in _used:
        each.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)

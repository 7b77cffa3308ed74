"""Tasks with and without a lock, in processes that other tools watch; for ``imports`` of the app that the tests load.

Which tool it is, and how it is set up, is a section of docs/how-to/other-tools.md, in the setting ``test_tool``. What it is told
goes to the file ``test_record``, a JSON line each.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from functools import partial
from pathlib import Path

from apps import app
from celery import Task
from celery.exceptions import Ignore, Reject
from celery.schedules import schedstate, schedule

from celery_lockbeat import LockedTask, current_lock


def record(**told: object) -> None:
    """Write one line, in one piece, whoever else writes."""
    with Path(app.conf.test_record).open("ab", buffering=0) as file:
        file.write(json.dumps({"pid": os.getpid(), **told}, default=str).encode() + b"\n")


class EachMinute(schedule):
    """An interval of a minute, the shortest that Sentry Crons knows, whose first tick is due at once."""

    began = None

    def is_due(self, last_run_at):
        self.began = self.began or last_run_at
        return schedstate(is_due=last_run_at <= self.began, next=60.0)

    def __reduce__(self):
        # PersistentScheduler reads it back from its file
        return (*super().__reduce__(), {"began": self.began})


class Trouble(Exception):  # noqa: N818  no error of anybody's
    """What the bodies fail of."""


def fail(task, key: str, how: str) -> str:
    """End as asked."""
    if how == "raise":
        raise Trouble(key)
    if how == "retry":
        if task.request.retries < 2:
            raise task.retry(countdown=0.1, exc=Trouble(key))
        return "in the end"
    if how == "give up":
        raise task.retry(countdown=0.1, exc=Trouble(key), max_retries=1)
    if how == "ignore":
        raise Ignore(key)
    if how == "reject":
        raise Reject(key, requeue=False)
    return "well"


def fail_by_itself(task, key: str) -> str:
    """Let autoretry try again, once."""
    if task.request.retries < 1:
        raise Trouble(key)
    return "in the end"


def lose(_task, key: str) -> str:
    """Lose the lock and see it."""
    lock = current_lock()
    lock._store.locks.release(lock.lease)
    deadline = time.monotonic() + 20
    while not lock.lost and time.monotonic() < deadline:
        time.sleep(0.01)
    return key


LOCK = {"lock_key": "{key}"}
for prefix, base, options in [("stock", Task, {}), ("locked", LockedTask, LOCK)]:
    app.task(bind=True, base=base, name=f"{prefix}.fail", **options)(fail)
    again = {"autoretry_for": (Trouble,), "retry_kwargs": {"countdown": 0.1, "max_retries": 2}}
    app.task(bind=True, base=base, name=f"{prefix}.fail_by_itself", **again, **options)(fail_by_itself)
app.task(bind=True, base=LockedTask, name="locked.lose", lock_ttl=0.5, **LOCK)(lose)
if "gone" in app.conf.get("lockbeat_connections", ()):
    app.task(bind=True, base=LockedTask, name="locked.fall_back", lock_connection="gone", **LOCK)(fail)

if entries := app.conf.get("test_entries"):
    app.conf.beat_schedule = {
        name: {"task": task, "args": args, "schedule": EachMinute(60.0)} for name, (task, *args) in entries.items()
    }


# -- tools -------------------------------------------------------------------------------------------------------------


#: What the page defines: Celery's signals keep no receiver alive.
_scope = {"__name__": "page"}


def set_up(tool: str) -> None:
    """Do what the page says."""
    sys.path.append(str(Path(__file__).parent.parent))
    docs = importlib.import_module("docs")
    exec(compile(docs.python_of("how-to/other-tools.md", tool), tool, "exec"), _scope)


def sentry() -> None:
    import sentry_sdk
    from sentry_sdk.transport import Transport

    class Recorder(Transport):
        def capture_envelope(self, envelope) -> None:
            for item in envelope.items:
                if item.type in ("event", "check_in"):
                    record(**{**item.payload.json, "type": item.type})

    # not what happens to be installed here, such as Django
    sentry_sdk.init = partial(sentry_sdk.init, transport=Recorder, auto_enabling_integrations=False)
    set_up("Sentry")


def open_telemetry() -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

    class Recorder(SpanExporter):
        def export(self, spans) -> SpanExportResult:
            for span in spans:
                record(**json.loads(span.to_json(indent=None)))
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Recorder()))
    trace.set_tracer_provider(provider)
    set_up("OpenTelemetry")


def datadog() -> None:
    # what ddtrace-run does for Celery, without what looks for an agent
    os.environ |= {"DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false", "DD_REMOTE_CONFIGURATION_ENABLED": "false"}
    os.environ["DD_CELERY_DISTRIBUTED_TRACING"] = "true"
    import ddtrace
    from ddtrace.trace import TraceFilter, tracer

    class Recorder(TraceFilter):
        def process_trace(self, trace) -> None:
            for span in trace:
                tags = {name: span.get_tag(name) for name in ("celery.state", "error.type", "celery.id")}
                record(
                    name=span.name,
                    resource=span.resource,
                    error=span.error,
                    trace=str(span.trace_id),
                    id=span.span_id,
                    parent=span.parent_id,
                    **tags,
                )

    tracer.configure(trace_processors=[Recorder()])
    ddtrace.patch(celery=True)


tool = app.conf.test_tool
{"Sentry": sentry, "OpenTelemetry": open_telemetry, "Datadog": datadog}.get(tool, partial(set_up, tool))()

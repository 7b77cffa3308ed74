"""Spans of locks and metrics of runs, as OpenTelemetry's SDK gets them."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from celery.signals import after_task_publish, worker_process_shutdown
from servers import wait_until

import docs
from celery_lockbeat import Lock, LockedTask, LockLost, current_lock, signals

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from celery_lockbeat.contrib.opentelemetry import instrument, uninstrument
from celery_lockbeat.contrib.prometheus import LockbeatCollector


@pytest.fixture
def telemetry():
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    meters = MeterProvider([reader])
    instrument(tracer_provider=provider, meter_provider=meters)

    def points():
        """Each point of each metric: its name, its labels, its value or how many times it has."""
        data = reader.get_metrics_data()
        for metric in data.resource_metrics[0].scope_metrics[0].metrics if data else ():
            for point in metric.data.data_points:
                value = point.count if hasattr(point, "count") else point.value
                yield metric, dict(point.attributes), value

    def values(name):
        return {tuple(sorted(labels.items())): value for metric, labels, value in points() if metric.name == name}

    yield SimpleNamespace(
        tracer=provider.get_tracer("test"), spans=exporter.get_finished_spans, points=points, values=values
    )
    uninstrument()
    meters.shutdown()


def only(spans):
    (span,) = [span for span in spans if span.name.startswith("lock")]
    return span


def task_of(app, body, **options):
    body.__name__ = "body"  # Celery writes a function of this name
    options = {"lock_key": "key", "lock_logging": False, **options}
    return app.task(bind=True, base=LockedTask, name="shop.sync", **options)(body)


def test_a_held_lock_is_a_span_within_that_of_its_task_with_key_token_driver_and_attempts(app, driver, telemetry):
    tokens = []
    task = task_of(app, lambda _: tokens.append(current_lock().token))
    with telemetry.tracer.start_as_current_span("run/shop.sync") as outer:
        result = task.apply()
    lock, _ = telemetry.spans()
    assert lock.name == "lock/shop.sync"
    assert lock.parent.span_id == outer.get_span_context().span_id
    assert outer.start_time <= lock.start_time + 1_000_000  # it knows microseconds
    assert lock.start_time <= lock.end_time <= outer.end_time
    assert lock.status.status_code == StatusCode.UNSET
    attributes = dict(lock.attributes)
    assert attributes.pop("lockbeat.execution_id")
    assert attributes == {
        "lockbeat.lock.key": "key",
        "lockbeat.lock.token": tokens[0],
        "lockbeat.lock.driver": driver,
        "lockbeat.lock.connection": "default",
        "lockbeat.lock.ttl": 30.0,
        "lockbeat.lock.attempts": 1,
        "celery.task_name": "shop.sync",
        "celery.task_id": result.id,
    }


def test_the_attempts_that_it_took_are_counted(app, telemetry):
    task = task_of(app, lambda _: None, lock_retry_attempts=200, lock_retry_delay=0.05)
    held = Lock("key", app=app, ttl=0.4, auto_extend=False, logging=False)
    assert held.acquire()
    assert task.apply().state == "SUCCESS"
    span = only(span for span in telemetry.spans() if span.name != "lock")
    assert span.attributes["lockbeat.lock.attempts"] > 2


def fail(_):
    raise ValueError("no")


def exit_(_):
    raise SystemExit(3)


@pytest.mark.parametrize("body", [fail, exit_])
def test_a_body_that_raises_ends_the_span_of_its_lock(app, telemetry, body):
    task = task_of(app, body)
    with pytest.raises((ValueError, SystemExit)):
        task()
    assert only(telemetry.spans()).status.status_code == StatusCode.UNSET


@pytest.mark.parametrize("on_lost", ["fail", "abort", "warn"])
def test_a_lost_lock_is_an_event_and_an_error_of_its_span_which_ends_then(app, telemetry, on_lost):
    def lose(_):
        lock = current_lock()
        lock._store.locks.release(lock.lease)
        wait_until(telemetry.spans)  # where it is not aborted before
        seen.append(time.time_ns())

    seen = []
    task = task_of(app, lose, lock_ttl=0.5, lock_on_lost=on_lost)
    result = task.apply()
    assert result.state == ("SUCCESS" if on_lost == "warn" else "FAILURE")
    assert isinstance(result.result, LockLost) or on_lost == "warn"
    span = only(telemetry.spans())
    assert span.attributes["lockbeat.lock.lost"] is True
    assert span.status.status_code == StatusCode.ERROR
    (event,) = span.events
    assert event.name == "lock lost"
    assert "lock is not ours" in event.attributes["reason"]
    assert event.timestamp == span.end_time
    assert span.end_time < (seen[0] if seen else time.time_ns())
    assert seen or on_lost == "abort"
    assert telemetry.values("lockbeat.locks_lost") == {(("task", "shop.sync"),): 1}


def test_a_skipped_run_has_no_span_of_a_lock_and_says_why_in_that_of_its_task(app, telemetry):
    task = task_of(app, lambda _: None)
    with Lock("key", app=app, logging=False), telemetry.tracer.start_as_current_span("run/shop.sync"):
        task.apply()
    run, held = telemetry.spans()
    assert (run.name, held.name) == ("run/shop.sync", "lock")
    (event,) = run.events
    assert event.name == "lockbeat skipped"
    assert event.attributes["reason"] == "locked"
    assert str(os.getpid()) in event.attributes["holder"]


def test_a_lock_outside_of_tasks_is_a_span_with_and_without_a_block(app, telemetry):
    with Lock("a", app=app):
        pass
    lock = Lock("b", app=app)
    assert lock.acquire()
    lock.release()
    assert [(span.name, span.attributes["lockbeat.lock.key"]) for span in telemetry.spans()] == [
        ("lock", "a"),
        ("lock", "b"),
    ]


def test_a_span_ends_though_its_lock_is_dropped_or_cannot_be_released(make_app, spare_server, telemetry, monkeypatch):
    # pytest keeps what is logged, with the frames of its exceptions
    monkeypatch.setattr(logging.getLogger("celery_lockbeat"), "disabled", True)
    app = make_app(lockbeat_redis_url=spare_server.url, lockbeat_redis_options={"socket_timeout": 0.2})
    dropped = Lock("dropped", app=app)
    assert dropped.acquire()
    del dropped
    gc.collect()
    assert len(telemetry.spans()) == 1
    task = task_of(app, lambda _: spare_server.pause())
    assert task.apply().state == "SUCCESS"
    assert len(telemetry.spans()) == 2
    spare_server.resume()
    with Lock("kept", app=app) as lock:
        spare_server.pause()
    del lock
    gc.collect()
    assert len(telemetry.spans()) == 3
    spare_server.resume()


def test_what_is_open_when_a_pools_child_ends_is_ended(app, telemetry):
    with Lock("key", app=app):
        worker_process_shutdown.send(sender=None, pid=os.getpid(), exitcode=0)
        assert len(telemetry.spans()) == 1
    assert len(telemetry.spans()) == 1


def test_each_of_several_threads_has_its_locks_in_its_own_span(app, telemetry):
    task = task_of(app, lambda _, number: time.sleep(0.01 * number), lock_key="key:{number}")
    app.finalize()

    def run(number):
        with telemetry.tracer.start_as_current_span(f"run {number}"):
            task.apply([number])

    threads = [threading.Thread(target=run, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    parents = {span.context.span_id: span.name for span in telemetry.spans() if span.name.startswith("run")}
    pairs = {
        span.attributes["lockbeat.lock.key"]: parents[span.parent.span_id]
        for span in telemetry.spans()
        if span.name.startswith("lock")
    }
    assert pairs == {f"key:{number}": f"run {number}" for number in range(8)}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_ends_no_span_of_its_parents_locks(app, telemetry):
    lock = Lock("key", app=app)
    assert lock.acquire()
    child = os.fork()
    if not child:
        del lock
        gc.collect()
        uninstrument()
        os._exit(len(telemetry.spans()))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    lock.release()
    assert len(telemetry.spans()) == 1


def test_to_instrument_twice_doubles_nothing_and_uninstrument_undoes_it(app, telemetry):
    instrument()
    uninstrument()
    with Lock("key", app=app):
        pass
    assert not telemetry.spans()


def test_the_page_says_how_to_begin():
    page = docs.run("how-to/metrics.md", "OpenTelemetry")
    before = len(signals.lock_acquired.receivers or ())
    page["trace"]()
    assert len(signals.lock_acquired.receivers) == before + 1
    uninstrument()


def test_nothing_of_it_is_imported_before_somebody_asks_for_it():
    def imported(*modules):
        code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return {name for name in done.stdout.split() if name.startswith(("opentelemetry", "prometheus_client"))}

    # redis-py looks for it, too
    ours = ("celery_lockbeat.cli.metrics", "celery_lockbeat.testing", "celery_lockbeat.contrib.measures")
    assert imported("celery.bin.celery", "redis", *ours) == imported("celery.bin.celery", "redis")


# -- metrics -----------------------------------------------------------------------------------------------------------


def make_something_happen(app):
    task = task_of(app, lambda _: None)
    task.apply()
    failing = app.task(bind=True, base=LockedTask, name="shop.fail")(fail)
    failing.apply()
    with Lock("key", app=app, logging=False):
        task.apply()
    for retries in (0, 1):
        headers = {"lockbeat": {"entry": "report", "due": "2024-01-01T00:00:00+00:00", "run": 7}, "retries": retries}
        after_task_publish.send(sender="shop.sync", headers=headers, body=(), exchange="", routing_key="")


def test_runs_and_ticks_are_counted_and_timed(app, driver, telemetry):
    make_something_happen(app)
    sync, failing = (("task", "shop.sync"),), (("task", "shop.fail"),)
    assert telemetry.values("lockbeat.runs") == {
        (("reason", ""), ("status", "success"), *sync): 1,
        (("reason", "locked"), ("status", "skipped"), *sync): 1,
        (("reason", ""), ("status", "failed"), *failing): 1,
    }
    assert telemetry.values("lockbeat.run_duration") == {sync: 1, failing: 1}
    assert telemetry.values("lockbeat.acquire") == {(("driver", driver),): 3}
    assert telemetry.values("lockbeat.locks_held") == {(("driver", driver),): 0}
    assert telemetry.values("lockbeat.ticks") == {(("entry", "report"), ("outcome", "published")): 1}
    assert telemetry.values("lockbeat.tick_lateness") == {(): 1}
    with Lock("other", app=app):
        assert telemetry.values("lockbeat.locks_held") == {(("driver", driver),): 1}


def test_the_metrics_are_called_as_prometheus_calls_them(app, telemetry):
    make_something_happen(app)
    exported = {family.name for family in LockbeatCollector(app).describe()}
    for metric, labels, _ in telemetry.points():
        name = metric.name.replace(".", "_") + ("_seconds" if metric.unit == "s" else "")
        assert name in exported
        assert set(labels) <= {"task", "status", "reason", "driver", "entry", "outcome"}

"""How events are written: levels, texts that group, JSON lines, fields, and one short line where people read the log."""

from __future__ import annotations

import copy
import json
import logging
import logging.handlers
import os
import pickle
import queue
import socket
import time
from types import SimpleNamespace

import pytest
from celery.exceptions import Ignore, Reject, Retry

import celery_lockbeat.signals
from celery_lockbeat import Lock, LockedTask, TaskSkipped, current_lock
from celery_lockbeat.observe import events
from celery_lockbeat.observe.events import Story, log_fields, log_json_lines, text_of
from celery_lockbeat.observe.vocabulary import EVENTS, took
from celery_lockbeat.stores import stores_of
from celery_lockbeat.tasks import report as tasks_report
from celery_lockbeat.tasks import run as tasks_run

LOGGER = logging.getLogger("celery_lockbeat.events")


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    """What a test asks for ends with it."""
    monkeypatch.setattr(events, "_form", None)
    before = LOGGER.handlers[:], LOGGER.level, LOGGER.propagate
    yield
    LOGGER.handlers, LOGGER.propagate = before[0], before[2]
    LOGGER.setLevel(before[1])


class Terminal:
    """A stream that says that it is a terminal, or not."""

    def __init__(self, *, is_one: bool = True) -> None:
        self.text = ""
        self._is_one = is_one

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        """Nothing is kept back."""

    def isatty(self) -> bool:
        return self._is_one

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


@pytest.fixture
def show():
    """Let the events go to these streams, and nowhere else."""

    def shown_on(*streams):
        LOGGER.handlers = [logging.StreamHandler(stream) for stream in streams]
        LOGGER.setLevel(logging.INFO)
        LOGGER.propagate = False
        return streams[0]

    return shown_on


def told(caplog) -> list[dict[str, object]]:
    """The fields of each event so far."""
    return [record.lockbeat for record in caplog.records if record.name == LOGGER.name]


def names(caplog) -> list[str]:
    return [event["event"] for event in told(caplog)]


def lose(lock) -> None:
    """Take a lock away under its holder, and wait until that is known."""
    lock._store.locks.release(lock.lease)
    deadline = time.monotonic() + 20
    while not lock.lost and time.monotonic() < deadline:
        time.sleep(0.01)


# -- what is told ------------------------------------------------------------------------------------------------------


def test_what_celery_does_not_count_as_an_error_is_not_logged_as_one_and_what_it_logs_itself_is_not_logged_twice(
    app, caplog
):
    """Of all endings only the loss of a lock, which nobody else tells, is an ERROR."""
    caplog.set_level(logging.DEBUG, LOGGER.name)

    @app.task(base=LockedTask, bind=True, lock_key="k", max_retries=1)
    def body(self, how):
        if how == "retry":
            raise self.retry(countdown=0, exc=ValueError("not yet"))
        raise {"raise": ValueError, "ignore": Ignore, "reject": Reject, "skip": TaskSkipped}[how]("why")

    for how in ("raise", "ignore", "reject", "skip", "retry"):
        body.apply((how,))
    with Lock("k", app=app), pytest.raises(TaskSkipped):
        body("raise")
    levels = {(record.lockbeat["event"], record.levelname) for record in caplog.records if record.name == LOGGER.name}
    assert levels == {
        ("task_started", "INFO"),
        ("task_succeeded", "INFO"),
        ("task_failed", "WARNING"),
        ("task_retried", "INFO"),
        ("task_skipped", "INFO"),
        ("task_finished", "INFO"),
    }
    assert {event for event, how in EVENTS.items() if how.level == logging.ERROR} == {
        "lock_extend_failed",
        "lock_expired_before_finish",
        "driver_fallback",
        "entry_paused",
    }


def test_a_retry_is_told_as_one_with_its_cause_and_its_pause_and_has_a_signal_of_its_own(app, caplog):
    caplog.set_level(logging.INFO, LOGGER.name)
    seen = []

    def receiver(**fields):
        seen.append(fields)

    celery_lockbeat.signals.task_retried.connect(receiver)

    @app.task(base=LockedTask, bind=True, lock_enabled=False, max_retries=1)
    def body(self):
        if not self.request.retries:
            raise self.retry(countdown=3, exc=ValueError("not yet"))
        return "in the end"

    assert body.apply().get() == "in the end"
    celery_lockbeat.signals.task_retried.disconnect(receiver)
    stories: dict[str, list[str]] = {}
    for event in told(caplog):
        stories.setdefault(event["execution_id"], []).append(event["event"])
    assert sorted(stories.values()) == [
        ["task_started", "task_retried", "task_finished"],
        ["task_started", "task_succeeded", "task_finished"],
    ]
    [retried] = [event for event in told(caplog) if event["event"] == "task_retried"]
    assert seen == [{"signal": celery_lockbeat.signals.task_retried, "sender": body, **retried}]
    why = {"status": "retry", "retry_in": 3, "error_name": "ValueError", "error_message": "not yet"}
    assert why.items() <= retried.items()
    ends = [event["status"] for event in told(caplog) if event["event"] == "task_finished"]
    assert sorted(ends) == ["retry", "success"]


def test_a_direct_call_that_ends_in_retry_has_failed_for_nothing_is_tried_again(app, caplog):
    caplog.set_level(logging.INFO, LOGGER.name)

    @app.task(base=LockedTask, bind=True)
    def body(self):
        self.retry(countdown=0)

    with pytest.raises(Retry):
        body()
    assert names(caplog) == ["task_started", "task_failed", "task_finished"]


def test_the_duration_is_the_bodys_own_and_what_the_lock_cost_is_told_beside_it(app, caplog, monkeypatch):
    caplog.set_level(logging.INFO, LOGGER.name)
    store = stores_of(app).choose(app.conf.lockbeat_driver, "default")[0]
    clock = SimpleNamespace(now=7.0, monotonic=lambda: clock.now)
    for module in (tasks_run, tasks_report):
        monkeypatch.setattr(module, "time", clock)

    def slowly(ask, seconds):
        def asked(*args, **kwargs):
            assert set(names(caplog)) <= {"task_started"}, "its end is told when all is over"
            clock.now += seconds
            return ask(*args, **kwargs)

        return asked

    monkeypatch.setattr(store.locks, "acquire", slowly(store.locks.acquire, 0.6))
    monkeypatch.setattr(store.locks, "release", slowly(store.locks.release, 1.2))

    @app.task(base=LockedTask)
    def body():
        clock.now += 0.2

    body()
    _, *ended = told(caplog)
    assert [event["event"] for event in ended] == ["task_succeeded", "task_finished"]
    for event in ended:
        assert [event[what] for what in ("duration_ms", "acquire_ms", "release_ms")] == [200, 600, 1200]


def test_a_skipped_run_tells_what_it_cost_to_find_out_and_no_release(app, caplog):
    caplog.set_level(logging.INFO, LOGGER.name)

    @app.task(base=LockedTask, lock_key="k", lock_retry_attempts=2, lock_retry_delay=0.1)
    def body():
        raise AssertionError

    with Lock("k", app=app), pytest.raises(TaskSkipped):
        body()
    _, skipped, finished = told(caplog)
    for event in (skipped, finished):
        assert event["acquire_ms"] >= 200
        assert "release_ms" not in event
    assert finished["duration_ms"] == 0


def test_a_tick_is_known_though_a_tracer_hides_the_headers_and_by_the_next_try_too(app, caplog, monkeypatch):
    caplog.set_level(logging.INFO, LOGGER.name)
    tick = {"entry": "nightly", "due": "2026-11-27T00:00:00.000+00:00", "run": 7, "kind": "cron"}
    seen = []

    @app.task(base=LockedTask, bind=True)
    def body(self):
        seen.append(self.request.headers)
        raise self.retry(countdown=0)

    sent = []
    app.finalize()
    monkeypatch.setattr(
        type(app.tasks[body.name]), "apply_async", lambda *_, **options: sent.append(options["headers"])
    )
    # as ddtrace leaves it: a header named headers, which Celery takes for all there are
    message = {"id": "i", "task": body.name, "lockbeat": tick, "headers": {"x-datadog-trace-id": "1"}}
    body.push_request(**message, retries=0, called_directly=False, is_eager=False, hostname="w1")
    try:
        with pytest.raises(Retry):
            body.run()
    finally:
        body.pop_request()
    assert {event["schedule"] for event in told(caplog)} == {"nightly"}
    assert {event["tick"] for event in told(caplog)} == {tick["due"]}
    assert seen == sent == [{"x-datadog-trace-id": "1", "lockbeat": tick}]


# -- JSON lines --------------------------------------------------------------------------------------------------------


def test_what_an_error_tracker_groups_by_is_short_and_constant_and_the_message_is_still_the_json_line(app, caplog):
    caplog.set_level(logging.INFO, LOGGER.name)

    @app.task(base=LockedTask, lock_key="report:{customer}", lock_ttl=0.5, lock_on_lost="warn")
    def body(customer):
        lose(current_lock())

    body(7)
    body(8)
    lost = [record for record in caplog.records if record.levelname == "ERROR"]
    assert {record.msg for record in lost} == {"lock not extended: %s: %s", "lock lost: %s"}
    assert [text_of(record) for record in lost if record.msg == "lock lost: %s"] == [
        "lock lost: report:7",
        "lock lost: report:8",
    ]
    for record in caplog.records:
        assert json.loads(record.getMessage()) == record.lockbeat
        assert logging.Formatter().format(record) == record.getMessage()


def test_the_json_line_survives_what_handlers_do_to_records(caplog):
    caplog.set_level(logging.INFO, LOGGER.name)
    Story("sender", "default", lock_key="k").emit("lock_expired_before_finish")
    [record] = caplog.records
    line = record.getMessage()
    assert json.loads(line)["event"] == "lock_expired_before_finish"
    # structlog's formatter, a queue, a socket, and whoever copies
    assert logging.makeLogRecord(record.__dict__).getMessage() == line
    assert copy.copy(record).getMessage() == copy.deepcopy(record).getMessage() == line
    assert pickle.loads(pickle.dumps(record)).getMessage() == line
    handler = logging.handlers.QueueHandler(queue.Queue())
    assert pickle.loads(pickle.dumps(handler.prepare(record))).getMessage() == line
    sent = logging.handlers.SocketHandler("127.0.0.1", 1).makePickle(record)
    assert pickle.loads(sent[4:])["msg"] == line


def test_a_record_factory_of_others_is_used(caplog):
    """That of OpenTelemetry adds the trace to each record, and Datadog patches Logger.makeRecord."""
    caplog.set_level(logging.INFO, LOGGER.name)
    before = logging.getLogRecordFactory()

    def traced(*args, **kwargs):
        record = before(*args, **kwargs)
        record.otelTraceID = "abc"
        return record

    logging.setLogRecordFactory(traced)
    try:
        Story("sender", "default", lock_key="k").emit("lock_expired_before_finish")
    finally:
        logging.setLogRecordFactory(before)
    assert caplog.records[0].otelTraceID == "abc"


# -- fields ------------------------------------------------------------------------------------------------------------


def test_with_log_fields_each_field_is_told_once_beside_a_short_text(app, caplog):
    log_json_lines()
    log_fields()

    @app.task(base=LockedTask, lock_key="report:{customer}")
    def body(customer):
        pass

    with caplog.at_level(logging.INFO):
        body(7)
    started, succeeded, finished = caplog.records
    assert started.getMessage() == f"{body.name} [report:7] has started"
    assert succeeded.getMessage().startswith(f"{body.name} [report:7] succeeded in ")
    assert finished.getMessage() == f"{body.name} [report:7] is over: success"
    own = vars(logging.makeLogRecord({})).keys() | {"message"}
    fields = {name: value for name, value in vars(succeeded).items() if name not in own}
    assert fields["event"] == "task_succeeded"
    assert fields["lock_key"] == "report:7"
    assert fields["execution_id"] == started.execution_id
    assert "lockbeat" not in fields


# -- in brief ----------------------------------------------------------------------------------------------------------


def test_in_brief_each_run_is_one_short_human_line(app, show):
    seen = show(Terminal(is_one=False))

    @app.task(base=LockedTask, name="sync", lock_key="sync:{how}", lock_logging="brief")
    def body(how):
        if how == "raise":
            raise ValueError("boom")

    with Lock("sync:held", app=app):
        for how in ("well", "raise", "held"):
            body.apply((how,))
    lines = seen.lines
    assert len(lines) == 3
    assert lines[0].startswith("sync [sync:well] succeeded in ")
    assert lines[0].endswith(" ms")
    assert lines[1].startswith("sync [sync:raise] failed after ")
    assert lines[1].endswith(" ms: ValueError: boom")
    assert lines[2] == f"sync [sync:held] skipped: held by {socket.gethostname()} {os.getpid()}"


def of_sync(logging: str) -> Story:
    return Story("sender", logging, task_name="sync", lock_key="sync")


def test_in_brief_the_holders_line_is_short_and_its_id_still_leads_to_it(show):
    seen = show(Terminal())
    for holder in (
        "celery@w1 pid 812 sync[f3e6f669-04d5-4b7c-8bd0-6b1f7a3c9f10]",
        "celery@w1 pid 812 other[f3e6f669-04d5-4b7c-8bd0-6b1f7a3c9f10]",
        "celery@w1 pid 812 sync[report-2026-11-27]",
    ):
        of_sync("brief").emit("task_skipped", status="skipped", reason="locked", holder=holder)
    of_sync("brief").emit("task_skipped", status="skipped", reason="duplicate")
    assert seen.lines == [
        "sync skipped: held by celery@w1 pid 812 [f3e6f669]",
        "sync skipped: held by celery@w1 pid 812 other[f3e6f669]",
        "sync skipped: held by celery@w1 pid 812 [report-2026-11-27]",
        "sync skipped: a copy of a message whose run has ended",
    ]


def test_in_brief_a_retry_says_why_and_when(show):
    seen = show(Terminal())
    why = {"error_name": "OSError", "error_message": "no", "retry_in": 180}
    of_sync("brief").emit("task_retried", status="retry", duration_ms=5.0, **why)
    of_sync("brief").emit("task_retried", status="retry", duration_ms=5.0)
    assert seen.lines == ["sync retries in 3 min 0 s: OSError: no", "sync retries"]


def test_in_brief_a_run_that_lasts_is_told_once_and_a_lost_lock_is(app, show, monkeypatch):
    monkeypatch.setattr(events, "LONG", 0.5)
    seen = show(Terminal())

    @app.task(base=LockedTask, name="sync", lock_logging="brief", lock_ttl=2.0, lock_on_lost="warn")
    def body():
        deadline = time.monotonic() + 20
        while not seen.lines and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(1.0)  # more renewals
        lose(current_lock())

    body()
    lasts, *lost, end = seen.lines
    assert lasts.startswith("sync still running after ")
    assert len(lost) == 2
    assert lost[0].startswith("lock not extended: sync: LockLost: ")
    assert lost[1] == "lock lost: sync"
    assert end.startswith("sync succeeded in ")


def test_in_brief_the_levels_and_fields_are_those_of_the_events(app, caplog):
    caplog.set_level(logging.INFO, LOGGER.name)

    @app.task(base=LockedTask, lock_logging="brief")
    def body():
        raise ValueError("boom")

    body.apply()
    [record] = [each for each in caplog.records if each.name == LOGGER.name]
    assert record.levelname == "WARNING"
    assert record.lockbeat["error_name"] == "ValueError"


@pytest.mark.parametrize(
    ("terminals", "how"),
    [([True], "brief"), ([False], "default"), ([True, False], "default"), ([], "default")],
    ids=["terminal", "file", "both", "nobody"],
)
def test_the_default_is_brief_where_nobody_but_a_terminal_gets_the_events(show, monkeypatch, terminals, how):
    monkeypatch.setattr(logging, "lastResort", None)
    streams = [Terminal(is_one=is_one) for is_one in terminals] or [None]
    seen = show(*streams)
    if seen is None:
        LOGGER.handlers = []
    story = Story("sender", "auto", task_name="sync", lock_key="sync")
    story.emit("task_started")
    assert story._logging == how
    story.emit("task_succeeded", status="success", duration_ms=2000)
    story.emit("task_finished", status="success", duration_ms=2000)
    if how == "brief":
        assert seen.lines == ["sync succeeded in 2 s"]
    elif seen is not None:
        assert [json.loads(line)["event"] for line in streams[-1].lines] == [
            "task_started",
            "task_succeeded",
            "task_finished",
        ]


def test_a_terminal_that_was_asked_for_json_lines_gets_them():
    terminal = Terminal()
    log_json_lines(terminal)
    Story("sender", "auto", task_name="sync").emit("task_started")
    Story("sender", "brief", task_name="sync").emit("task_skipped", status="skipped", reason="locked")
    assert [json.loads(line)["event"] for line in terminal.lines] == ["task_started", "task_skipped"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "under 1 ms"),
        (0.35, "350 ms"),
        (2.04, "2.0 s"),
        (3, "3 s"),
        (59.96, "60.0 s"),
        (200.2, "3 min 20 s"),
        (3600, "1 h 0 min"),
        (90061, "25 h 1 min"),
    ],
)
def test_durations_are_told_as_people_write_them(seconds, text):
    assert took(seconds) == text

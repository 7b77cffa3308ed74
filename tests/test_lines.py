"""One run that waits in line, in one process: what becomes of its message, and of its copies. Under real workers: processes/test_waiting.py."""

from __future__ import annotations

import json
import logging
from datetime import timezone

import pytest
from celery import states
from celery.app.trace import build_tracer, reset_worker_optimizations, setup_worker_optimizations

from celery_lockbeat import Lock, LockedTask, journal, signals
from celery_lockbeat.cli.history import _why as history_why
from celery_lockbeat.insight.said import why_skipped
from celery_lockbeat.journal.sentences import Writing, sentence_of
from celery_lockbeat.journal.ticks import ticks_of
from celery_lockbeat.journal.writer import finish, journal_of
from celery_lockbeat.observe.vocabulary import took
from celery_lockbeat.stores import stores_of
from celery_lockbeat.tasks.copies import LINE, NONCE

RAN = []


@pytest.fixture
def app(make_app, driver):
    app = make_app(lockbeat_driver=driver)
    setup_worker_optimizations(app)
    yield app
    reset_worker_optimizations(app)


@pytest.fixture
def queue(app):
    with app.connection_for_read() as connection, connection.SimpleQueue(app.main) as queue:
        queue.clear()
        yield queue


def messages(queue) -> list:
    found = []
    while True:
        try:
            message = queue.get(block=False)
        except queue.Empty:
            return found
        message.ack()
        found.append(message)


def deliver(task, headers=None, **more):
    """Carry out a message as a worker does."""
    RAN.clear()
    tracer = build_tracer(task.name, task, app=task.app, eager=False)
    known = {name: (headers or {}).get(name) for name in (LINE, NONCE, "eta", "retries") if name in (headers or {})}
    request = {"id": "id", "delivery_info": {"exchange": "", "routing_key": task.app.main}, "retries": 0, NONCE: "n"}
    return tracer("id", (), {}, {**request, **known, **more}).info


def waits(app, **options):
    options = {"lock_if_held": "wait", **options}

    @app.task(base=LockedTask, name="it", lock_key="k", **options)
    def body(*task):
        RAN.append(True)
        if task and not task[0].request.retries:
            raise task[0].retry(countdown=0)
        return "done"

    return body


def test_a_waiting_message_goes_back_to_its_queue_once(app, queue, caplog):
    caplog.set_level(logging.INFO, "celery_lockbeat.events")
    task = waits(app)
    with Lock("k", app=app):
        assert deliver(task).state == states.IGNORED
        (copy,) = messages(queue)
        assert copy.headers["eta"] is not None
        assert copy.headers[LINE][2:] == [1, 0]
        assert copy.headers["id"] == "id"
        assert copy.headers[NONCE] == "n"
        # the same message, from elsewhere: the copy is on its way
        assert deliver(task).state == states.IGNORED
        assert messages(queue) == []
        # the copy comes, and there is one again, in the same place
        assert deliver(task, copy.headers).state == states.IGNORED
        (again,) = messages(queue)
        assert again.headers[LINE] == [*copy.headers[LINE][:2], 2, 0]
    (called,) = messages(queue)
    assert called.headers["eta"] is None
    assert called.headers[LINE][2] == 2
    assert called.properties["correlation_id"] == "id"
    assert json.loads(called.body)[0] == []
    assert deliver(task, called.headers) is None
    assert RAN
    # the copy that was to come by itself comes for nothing, and in silence
    told = len(caplog.records)
    assert deliver(task, again.headers).state == states.IGNORED
    assert not RAN
    assert len(caplog.records) == told
    assert [json.loads(record.getMessage())["event"] for record in caplog.records].count("task_waiting") == 1


def test_who_waits_and_behind_whom_is_in_the_journal_once(app, queue):
    task = waits(app)
    with Lock("k", app=app):
        holder = Lock.holder_of("k", app=app)
        deliver(task, id="first")
        deliver(task)
        deliver(task)
    assert journal_of(app).write(within=10)
    told = [record for record in journal.read(app) if record.event == "task_waiting"]
    assert [(each.task_id, each.count, each.holder, each.lock_key) for each in told] == [
        ("first", 0, holder, "k"),
        ("id", 1, holder, "k"),
    ]


def test_a_run_that_has_waited_is_remembered_though_its_task_says_not_to(app, queue):
    task = waits(app, lock_dedupe_ttl=0)
    with Lock("k", app=app):
        deliver(task)
    copy, called = messages(queue)
    assert deliver(task, called.headers) is None
    assert RAN
    deliver(task, copy.headers)
    assert not RAN


def test_a_message_that_cannot_go_back_stays_with_the_broker_and_keeps_its_place(app, queue, monkeypatch):
    task = waits(app)
    with Lock("k", app=app):
        monkeypatch.setattr(app.amqp.producer_pool, "acquire", lambda **_: 1 / 0)
        assert deliver(task).state == states.REJECTED
        monkeypatch.undo()
        assert (
            deliver(task, delivery_info={"redelivered": True, "exchange": "", "routing_key": app.main}).state
            == states.IGNORED
        )
        assert len(messages(queue)) == 1


def test_the_next_try_of_a_run_that_has_waited_waits_anew_in_its_old_place(app, queue):
    task = waits(app, bind=True, max_retries=3)
    with Lock("k", app=app):
        deliver(task)
    copy, called = messages(queue)
    assert deliver(task, called.headers).state == states.RETRY
    (retried,) = messages(queue)
    with Lock("k", app=app):
        assert deliver(task, retried.headers).state == states.IGNORED
        (later,) = messages(queue)
    assert later.headers[LINE][0] == copy.headers[LINE][0]
    assert later.headers[LINE][1] > copy.headers[LINE][1]
    assert later.headers[LINE][2:] == [1, 1]


def test_a_direct_call_and_apply_never_wait(app, queue):
    task = waits(app)
    with Lock("k", app=app):
        assert task.apply().state == states.REVOKED
    assert messages(queue) == []


def test_headers_that_are_none_of_ours_are_no_place(app, queue):
    task = waits(app)
    with Lock("k", app=app):
        for strange in ("x", [1], [1, 2, "x", 0], {}, [[], 0, 0, 0]):
            deliver(task, {LINE: strange})
        assert [message.headers[LINE][2] for message in messages(queue)] == [1]


def test_a_skip_in_line_says_why_and_who(app, queue, caplog):
    """In the answer, in the log, and in the journal's sentence."""
    caplog.set_level(logging.INFO, "celery_lockbeat.events")
    task = waits(app, lock_line_limit=1, lock_logging="brief")
    with Lock("k", app=app, logging=False):
        deliver(task)
        tracer = build_tracer(task.name, task, app=app, eager=False)
        tracer("other", (), {}, {"id": "other", "delivery_info": {"routing_key": app.main}, "retries": 0, NONCE: "o"})
        assert str(task.AsyncResult("other").result).startswith("queued: the line is full; lock 'k' is held by ")
        assert "skipped: the line is full, held by " in caplog.messages[-1]
        store = stores_of(app).choose(app.conf.lockbeat_driver, "default")[0]
        assert store.locks.clear_line("k") == 1
        (told,) = [message for message in messages(queue) if "eta" not in message.headers or not message.headers["eta"]]
        caplog.clear()
        deliver(task, told.headers)
    assert str(task.AsyncResult("id").result) == "waited: the line was cleared for lock 'k'"
    assert caplog.messages[-1] == "it [k] skipped: the line in which it waited was cleared"
    finish()
    ticks = ticks_of(journal.read(app))
    sentences = [sentence_of(tick, (), Writing(timezone.utc, took)) for tick in ticks]
    assert any(": the line was full: its lock 'k' was held by " in each for each in sentences)
    assert any(each.endswith("the line in which it waited for its lock 'k' had been cleared.") for each in sentences)


@pytest.mark.parametrize(
    ("if_held", "skipped", "who", "answer", "logged", "sentence"),
    [
        (
            "wait_one",
            "b",
            "a",
            "queued: {who} waits already; lock 'k' is held by ",
            "{short} waits already, held by ",
            ": {who} waited in line",
        ),
        (
            "wait_latest",
            "a",
            "b",
            "superseded: {who} has taken its place in line for lock 'k'",
            "{short} has taken its place in line",
            ": {who} had taken its place in line for its lock 'k'.",
        ),
    ],
)
def test_a_run_that_has_no_place_in_line_is_told_who_has_it(
    app, queue, caplog, if_held, skipped, who, answer, logged, sentence
):
    """In its answer, the log, the event, the journal, and in what the commands and the page say of it."""
    caplog.set_level(logging.INFO, "celery_lockbeat.events")
    told = []

    def tell(**event):
        told.append(event)

    task = waits(app, lock_if_held=if_held, lock_logging="brief")
    signals.task_skipped.connect(tell)
    try:
        with Lock("k", app=app, logging=False):
            for name in "ab":
                deliver(task, id=name, **{NONCE: name})
            for message in [each for each in messages(queue) if not each.headers["eta"]]:
                deliver(task, message.headers, id=message.headers["id"])
    finally:
        signals.task_skipped.disconnect(tell)
    (event,) = told
    assert event["task_id"] == skipped
    assert event["who"].endswith(f" it[{who}]")
    names = {"who": event["who"], "short": event["who"].replace("it[", "[")}
    assert str(task.AsyncResult(skipped).result).startswith(answer.format(**names))
    assert f"it [k] skipped: {logged.format(**names)}" in caplog.messages[-1]
    finish()
    (tick,) = [each for each in ticks_of(journal.read(app)) if each.last is not None and each.last.status == "skipped"]
    assert sentence.format(**names) in sentence_of(tick, (), Writing(timezone.utc, took))
    assert tick.fields()["who"] == event["who"]
    assert logged.format(**names) in why_skipped(tick.last)
    assert history_why(tick, app) == f"{event['reason']}: {event['who']}"

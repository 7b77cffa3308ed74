"""The journal as it is written and read: what a run leaves in it, and what happens where its store does not answer."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from datetime import datetime, timedelta, timezone

import pytest
from celery.exceptions import Reject, Retry
from servers import wait_until

from celery_lockbeat import Lock, LockedTask, LockNotAcquired, StoreUnavailable, TaskSkipped, journal
from celery_lockbeat.journal import writer
from celery_lockbeat.journal.records import ENDINGS, WRITTEN_AS, Record, encode, encode_published, read_record
from celery_lockbeat.journal.writer import Journal, journal_of
from celery_lockbeat.stores import home_store_of
from celery_lockbeat.stores.base import StoredRecord

PAST = datetime(2026, 1, 1, tzinfo=timezone.utc)


def written(app, **which):
    """All that stands in the journal once what is in memory has been written."""
    assert journal_of(app).write(within=10)
    return journal.read(app, limit=None, **which)


def stored(text, at=1_800_000_000.5):
    return StoredRecord("1-0", at, text)


@pytest.fixture
def nothing_is_written(monkeypatch):
    """But by those who ask for it: the thread does not begin."""
    monkeypatch.setattr(Journal, "_begin", lambda _journal: None)


def task_of(app, body, **options):
    @app.task(base=LockedTask, name="shop.report", **options)
    def report():
        return body()

    app.finalize()
    return report


# -- what a run leaves -------------------------------------------------------------------------------------------------


def test_a_short_run_is_one_record_that_has_all_of_it(app, nothing_is_written):
    task_of(app, lambda: None, lock_key="jobs:report").apply(task_id="t1")
    (run,) = written(app)
    assert (run.event, run.status, run.task_id, run.task_name) == ("task_succeeded", "success", "t1", "shop.report")
    assert (run.lock_key, run.driver, run.entry, run.kind) == ("jobs:report", app.conf.lockbeat_driver, None, None)
    assert run.token > 0
    assert run.pid == os.getpid()
    assert 0 <= run.duration_ms < 10_000
    assert run.started <= run.at
    assert timedelta(0) <= datetime.now(timezone.utc) - run.at < timedelta(minutes=1)


def test_a_run_that_lasts_has_a_start_of_its_own(app, nothing_is_written):
    seen = []
    task = task_of(app, lambda: seen.extend(written(app)))
    task.apply(task_id="t1")
    assert [(record.event, record.status) for record in seen] == [("task_started", "running")]
    assert [record.event for record in written(app)] == ["task_started", "task_succeeded"]
    assert len({record.execution_id for record in written(app)}) == 1


def raising(exc):
    def body():
        raise exc

    return body


@pytest.mark.parametrize(
    ("exc", "event", "error"),
    [
        (ValueError("no such customer"), "task_failed", ("ValueError", "no such customer")),
        (Retry(exc=OSError("away")), "task_retried", ("OSError", "away")),
        (Reject("no"), "task_failed", ("Reject", "('no', False)")),
        (SystemExit(3), "task_failed", ("SystemExit", "3")),
    ],
)
def test_a_run_ends_as_it_did(app, nothing_is_written, exc, event, error):
    task = task_of(app, raising(exc))
    with contextlib.suppress(SystemExit):
        task.apply(task_id="t1")
    (run,) = written(app)
    assert (run.event, (run.error_name, run.error_message)) == (event, error)


def test_a_skipped_run_says_why_and_who(app, nothing_is_written):
    task = task_of(app, lambda: None, lock_key="k")
    with Lock("k", app=app), pytest.raises(TaskSkipped):
        task()
    (run,) = written(app)
    assert (run.status, run.reason) == ("skipped", "locked")
    assert str(os.getpid()) in run.holder
    assert run.started is None


def test_a_run_that_fails_for_its_lock_says_who_has_it(app, nothing_is_written):
    task = task_of(app, lambda: None, lock_key="k", lock_skip_if_locked=False)
    with Lock("k", app=app), pytest.raises(LockNotAcquired):
        task()
    (run,) = written(app)
    assert (run.event, run.error_name) == ("task_failed", "LockNotAcquired")
    assert str(os.getpid()) in run.holder


def test_a_run_without_a_lock_and_one_that_logs_nothing_are_in_it_too(app, nothing_is_written):
    task_of(app, lambda: None, lock_enabled=False, lock_logging=False).apply()
    (run,) = written(app)
    assert (run.event, run.lock_key) == ("task_succeeded", None)


def test_0_keeps_no_journal(make_app, driver):
    app = make_app(lockbeat_driver=driver, lockbeat_journal=0)
    task_of(app, lambda: None).apply()
    assert written(app) == []


# -- read --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(app, nothing_is_written):
    """Ten runs of two entries, one a minute."""
    put = journal_of(app).put
    for number in range(10):
        name = "task_failed" if number % 3 == 0 else "task_succeeded"
        who = {"schedule": f"e{number % 2}", "task_name": f"t{number % 2}", "lock_key": f"k{number}"}
        put(name, who, {}, f"run{number}")
    return app


def test_read_takes_what_is_asked_for_and_the_newest_of_it(filled):
    assert [run.execution_id for run in written(filled)] == [f"run{number}" for number in range(10)]

    def read(**which):
        return [run.execution_id for run in journal.read(filled, **which)]

    assert read(limit=2) == ["run8", "run9"]
    assert read(entry="e1", limit=2) == ["run7", "run9"]
    assert read(task="t0", status="failed") == ["run0", "run6"]
    assert read(key="k4") == ["run4"]
    assert read(entry="nobody") == []
    assert len(read(since=PAST)) == len(read(until=datetime.now(timezone.utc) + timedelta(minutes=1))) == 10
    assert read(since=datetime.now(timezone.utc) + timedelta(minutes=1)) == read(until=PAST) == []


@pytest.mark.parametrize("which", ["since", "until"])
def test_a_naive_time_is_refused(app, which):
    with pytest.raises(ValueError, match="naive time; allowed: an aware one"):
        journal.read(app, **{which: datetime(2026, 1, 1)})


def test_more_than_a_page_is_read_and_followed_without_a_hole(app, nothing_is_written):
    follower = journal.follow(app, wait=lambda _seconds: None)
    assert next(follower) is None
    for number in range(1700):
        journal_of(app).put("task_succeeded", {}, {}, f"run{number}")
    expected = [f"run{number}" for number in range(1700)]
    assert [run.execution_id for run in written(app)] == expected
    assert [next(follower).execution_id for _ in range(1700)] == expected
    assert next(follower) is None
    journal_of(app).put("task_succeeded", {}, {}, "last")
    written(app)
    assert next(follower).execution_id == "last"


def test_an_event_that_was_put_twice_is_read_once(app, nothing_is_written):
    for _ in range(2):
        journal_of(app).put("task_failed", {}, {}, "run")
        journal_of(app).write(within=10)
    assert [run.event for run in written(app)] == ["task_failed"]


# -- a store that does not answer --------------------------------------------------------------------------------------


class Away:
    """A store's journal that does not answer; ``late``: what it is asked for is carried out all the same."""

    def __init__(self, real, *, late):
        self.real, self.late, self.asked = real, late, 0

    def append(self, *args, **options):
        self.asked += 1
        if self.late:
            self.real.append(*args, **options)
        raise StoreUnavailable("it is away")


@pytest.fixture
def away(app, nothing_is_written, monkeypatch):
    store = home_store_of(app)
    monkeypatch.setattr(store, "twin", lambda: store)  # with what the test makes of it
    real = store.journal

    def go(*, late=False):
        store.journal = Away(real, late=late)
        return store.journal

    yield go
    store.journal = real


@pytest.mark.parametrize("late", [False, True])
def test_what_a_store_did_not_answer_is_written_later_and_once(app, away, caplog, late):
    store, real = home_store_of(app), home_store_of(app).journal
    ours = journal_of(app)
    ours.put("task_succeeded", {"task_id": "1"})
    gone = away(late=late)
    assert ours.write() is False
    assert ours.write() is False
    assert gone.asked == 2
    ours.put("task_succeeded", {"task_id": "2"})
    store.journal = real
    assert [record.task_id for record in written(app)] == ["1", "2"]
    assert sum("journal is not written" in record.getMessage() for record in caplog.records) == 1


def test_the_oldest_are_dropped_and_how_many_is_written(app, away, monkeypatch):
    monkeypatch.setattr(writer, "AT_MOST", 10)
    store, real = home_store_of(app), home_store_of(app).journal
    ours = journal_of(app)
    ours.put("task_succeeded", {"task_id": "first"})
    away()
    assert ours.write() is False
    for number in range(25):
        ours.put("task_succeeded", {"task_id": str(number)})
    store.journal = real
    found = written(app)
    assert [record.event for record in found[:2]] == ["task_succeeded", "records_dropped"]
    assert (found[0].task_id, found[1].count) == ("first", 15)
    assert [record.task_id for record in found[2:]] == [str(number) for number in range(15, 25)]


def test_when_it_happened_counts_and_not_when_it_was_written(app, away, monkeypatch):
    store, real = home_store_of(app), home_store_of(app).journal
    now = writer.monotonic()
    monkeypatch.setattr(writer, "monotonic", lambda: now)
    journal_of(app).put("task_succeeded", {})
    away()
    journal_of(app).write()
    store.journal = real
    monkeypatch.setattr(writer, "monotonic", lambda: now + 300)
    (record,) = written(app)
    late = datetime.now(timezone.utc) - record.at
    assert timedelta(minutes=4) < late < timedelta(minutes=6)


def test_a_journal_that_raises_what_nobody_expects_breaks_no_run_and_no_end_of_a_process(
    app, away, monkeypatch, caplog
):
    home_store_of(app).journal = object()
    assert task_of(app, lambda: 7).apply().get() == 7
    journal_of(app).write()
    writer.finish()
    assert "the journal cannot be written" in caplog.text


def test_a_store_that_refuses_lets_runs_go_on(server, make_app, nothing_is_written, caplog):
    app = make_app(lockbeat_driver="redis")
    home_store_of(app).journal.append(app.main, "b", ["{}"], keep=10)
    with server.client() as client:
        (key,) = client.scan_iter("*:journal")
        client.delete(key)
        client.set(key, "of another type")
    task_of(app, lambda: None).apply(task_id="t1")
    assert [record.task_id for record in written(app)] == ["t1"]
    assert "is a string, which no beat of" in caplog.text


# -- cases -------------------------------------------------------------------------------------------------------------


def test_of_many_who_see_a_case_one_says_it(make_app, driver):
    apps = [make_app(lockbeat_driver=driver) for _ in range(3)]
    name = apps[0].main
    said = []
    for number, app in enumerate(apps):
        app.main = name
        for _ in range(2):
            journal_of(app).case("late:1", "tick_late", {"schedule": "e"}, lambda number=number: said.append(number))
        journal_of(app).write(within=10)
    assert len(said) == 1
    assert [(record.event, record.entry) for record in written(apps[0])] == [("tick_late", "e")]


def test_a_case_is_said_by_each_where_the_store_is_away_and_written_later(app, away):
    store, real, said = home_store_of(app), home_store_of(app).journal, []
    away()
    journal_of(app).case("late:1", "tick_late", {"schedule": "e"}, lambda: said.append(1))
    journal_of(app).write()
    assert said == [1]
    store.journal = real
    assert [record.event for record in written(app)] == ["tick_late"]


# -- threads and processes ---------------------------------------------------------------------------------------------


def test_it_is_written_within_a_second_by_itself_and_the_thread_ends(app, monkeypatch):
    monkeypatch.setattr(writer, "IDLE_FOR", 0.0)
    # apps of other tests, whose store is gone, may have one that goes on
    others = set(threading.enumerate())
    task = task_of(app, lambda: None)
    for _ in range(2):
        before = len(journal.read(app))
        task.apply()
        wait_until(lambda before=before: len(journal.read(app)) == before + 1, 10)
        wait_until(lambda: "lockbeat-journal" not in {each.name for each in {*threading.enumerate()} - others}, 10)


def test_threads_that_write_at_once_lose_nothing(app):
    put = journal_of(app).put

    def run(number):
        for each in range(200):
            put("task_succeeded", {}, {}, f"{number}:{each}")

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {record.execution_id for record in written(app)} == {f"{n}:{each}" for n in range(8) for each in range(200)}


def test_a_fork_takes_nothing_along_and_writes_its_own(app, nothing_is_written):
    journal_of(app).put("task_succeeded", {"task_id": "parent's"})
    pid = os.fork()
    if not pid:
        try:
            journal_of(app).put("task_succeeded", {"task_id": "child's"})
            writer.finish()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert [record.task_id for record in journal.read(app)] == ["child's"]
    assert [record.task_id for record in written(app)] == ["child's", "parent's"]


# -- texts -------------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_again():
    values = {
        **dict.fromkeys(WRITTEN_AS, "x"),
        **dict.fromkeys(("run", "pid", "token", "count", "signal"), 7),
        **dict.fromkeys(("late", "duration_ms", "acquire_ms", "release_ms"), 1.5),
        **dict.fromkeys(("due", "last_due"), "2026-11-28T05:00:00.123000+00:00"),
        "taken_over": True,
        "lock_keys": ("x", "y"),
    }
    record = read_record(stored(encode("task_succeeded", values, 0.5)))
    assert record.at == datetime.fromtimestamp(1_800_000_000, timezone.utc)
    assert {name: value for name, value in record.fields().items() if name in values} == values
    assert record.more == {}
    assert json.loads(json.dumps(record.fields()))["status"] == "success"


def test_fields_have_names_of_their_own_that_the_typed_record_knows():
    assert len(set(WRITTEN_AS.values())) == len(WRITTEN_AS)
    assert set(WRITTEN_AS) <= set(Record.__dataclass_fields__)


def test_a_record_of_a_usual_run_is_short():
    fields = {
        "execution_id": "f" * 32,
        "task_id": "01234567-0123-0123-0123-0123456789ab",
        "task_name": "project.tasks.hourly_report",
        "kind": "cron",
        "schedule": "hourly-report",
        "tick": "2026-11-28T05:00:00.123+00:00",
        "hostname": "celery@worker-7f9c8d5b4-x2x8z",
        "pid": 12345,
        "lock_key": "jobs:hourly-report",
        "token": 1_795_844_053_069_996,
        "driver": "redis",
        "duration_ms": 12345.678,
        "acquire_ms": 0.457,
        "release_ms": 0.311,
    }
    assert len(encode("task_succeeded", fields, 0.456)) < 380


def test_a_published_tick_is_written_as_all_else_is():
    own = {
        "entry": 'a "name"\n\N{SNOWMAN}',
        "task": "t" * 300,
        "due": 1795842000.125,
        "run": 7,
        "task_id": "id",
        "hostname": "h",
    }
    for over in (False, True):
        text = encode_published(**own, late=0.25, taken_over=over, ago=0.5)
        same = {**own, "task_name": own["task"], "late": 0.25, "taken_over": over or None}
        assert json.loads(text) == json.loads(encode("tick_published", same, 0.5))
        assert len(text) < 400


def test_long_texts_are_cut():
    fields = {"lock_key": "k" * 10_000, "error_message": "e" * 10_000, "holder": "\N{SNOWMAN}" * 10_000}
    text = encode("task_failed", fields, 0)
    assert len(text) < 200 * (1 + 1 + 6) + 100
    assert read_record(stored(text)).lock_key == "k" * 197 + "..."


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[]",
        "7",
        "null",
        "{}",
        '{"e": 7}',
        "[" * 100_000,
        '{"e": "task_failed", "ago": "x", "due": "no time", "run": "x", "token": true, "pid": 1.5, "ms": null}',
        '{"e": "task_failed", "ago": 1e300, "due": 1e300}',
        '{"e": "task_failed", "ago": NaN, "due": NaN, "ms": Infinity}',
        '{"e": "\\ud800"}',
    ],
)
@pytest.mark.parametrize("at", [0.0, 1_800_000_000.0, 1e18])
def test_garbage_is_read_as_what_it_is(text, at):
    record = read_record(stored(text, at))
    assert isinstance(record.fields(), dict)
    assert record.event in ("unreadable", "task_failed", "\ud800")
    assert record.started is None or record.started.tzinfo


def test_an_older_reader_passes_over_what_a_later_release_writes():
    record = read_record(stored('{"e": "task_paused", "id": "1", "moon": "full", "ago": 0}'))
    assert (record.event, record.task_id, record.more, record.status) == ("task_paused", "1", {"moon": "full"}, None)


def test_each_end_has_a_status():
    assert {Record(event=event, at=PAST).status for event in ENDINGS} == {*ENDINGS.values()}
    assert Record(event="tick_published", at=PAST).status is None


def test_a_signal_handler_that_puts_something_while_it_is_put_waits_for_nobody(app):
    """As a soft time limit does, in the middle of whatever goes on."""
    put = journal_of(app).put
    before = signal.signal(signal.SIGALRM, lambda *_: put("task_succeeded", {"task_id": "handler's"}))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0005)
        for _ in range(20_000):
            put("task_succeeded", {"task_id": "body's"})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    wait_until(lambda: len(written(app, since=PAST)) > 0, 10)

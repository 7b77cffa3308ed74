"""Runs that take too long are said once each, where they stand."""

from __future__ import annotations

import asyncio
import threading

import pytest
from servers import wait_until

from celery_lockbeat import ConfigurationError, LockedTask, journal, signals
from celery_lockbeat.journal.writer import journal_of
from celery_lockbeat.tasks import overdue


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(overdue, "LOOKS_EVERY", 0.05)
    monkeypatch.setattr(overdue, "SHORTEST", 0.3)


@pytest.fixture
def said():
    """What is said of runs that are overdue."""
    heard = []

    def receiver(task_name, **fields):
        if task_name == "overdue.report":  # not what other tests have left behind
            heard.append({"task_name": task_name, **fields})

    signals.run_overdue.connect(receiver)
    yield heard
    signals.run_overdue.disconnect(receiver)


def runs_of(app, *seconds):
    for number, each in enumerate(seconds):
        fields = {"task_name": "overdue.report", "duration_ms": each * 1000}
        journal_of(app).put("task_succeeded", fields, {}, f"run{number}")
    journal_of(app).write(within=10)


def wait_here(event):
    assert event.wait(30)


def test_a_run_that_is_longer_than_expected_is_said_once_with_where_it_stands(app, said):
    ends = threading.Event()

    @app.task(base=LockedTask, name="overdue.report", lock_expected_within=0.2, lock_key="k")
    def report():
        wait_here(ends)

    app.finalize()
    running = threading.Thread(target=report.apply, kwargs={"task_id": "t1"})
    running.start()
    wait_until(lambda: said, 10)
    first = said[0]
    ends.wait(0.5)
    ends.set()
    running.join(30)
    assert len(said) == 1
    assert (first["task_id"], first["task_name"], first["lock_key"]) == ("t1", "overdue.report", "k")
    assert "more than its lock_expected_within" in first["reason"]
    assert "test_overdue.py" in first["where"]
    assert "wait" in first["where"]
    assert "run.py" not in first["where"]
    journal_of(app).write(within=10)
    events = [record.event for record in journal.read(app)]
    assert events.count("run_overdue") == 1
    assert events[-1] == "task_succeeded"


def test_without_an_expectation_ten_times_the_median_counts(app, said):
    runs_of(app, *[0.05] * 5, 20)
    ends = threading.Event()

    @app.task(base=LockedTask, name="overdue.report")
    def report():
        ends.wait(30)

    app.finalize()
    running = threading.Thread(target=report.apply)
    running.start()
    wait_until(lambda: said, 10)
    ends.set()
    running.join(30)
    assert "more than 10 times its median" in said[0]["reason"]
    assert said[0]["duration_ms"] >= 500


@pytest.mark.parametrize("lasted", [(), (0.01,) * 4, (10,) * 6])
def test_where_the_median_is_unknown_or_long_nothing_is_said(app, said, lasted):
    runs_of(app, *lasted)

    @app.task(base=LockedTask, name="overdue.report")
    def report():
        threading.Event().wait(1)

    app.finalize()
    report.apply()
    assert said == []


def test_a_run_that_ends_in_time_is_not_said(app, said):
    @app.task(base=LockedTask, name="overdue.report", lock_expected_within=0.5)
    def report():
        pass

    app.finalize()
    report.apply()
    threading.Event().wait(0.8)
    assert said == []
    assert "overdue.report" not in {report.task.name for report in reports()}


def reports():
    return [report for body in overdue._watcher.bodies.values() if (report := body.report()) is not None]


def test_of_a_coroutine_is_said_that_it_is_overdue_and_not_where(app, said):
    @app.task(base=LockedTask, name="overdue.report", lock_expected_within=0.2)
    async def report():
        await asyncio.sleep(1)

    app.finalize()
    asyncio.run(report())
    assert len(said) == 1
    assert "where" not in said[0]


@pytest.mark.parametrize("wrong", [0, -1, "x", float("nan"), True])
def test_a_wrong_expectation_is_refused(app, wrong):
    with pytest.raises(ConfigurationError, match="lock_expected_within of .*; allowed: seconds"):

        @app.task(base=LockedTask, name="overdue.report", lock_expected_within=wrong)
        def report():
            pass

        app.finalize()

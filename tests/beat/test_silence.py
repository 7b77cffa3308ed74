from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from celery_lockbeat import LockedTask, journal
from celery_lockbeat.beat.silence import Silence
from celery_lockbeat.journal.writer import journal_of

AFTER = 3


class Sender:
    pass


@pytest.fixture
def one(app):
    return One(app)


class One:
    def __init__(self, app):
        self.app = app
        self.later = timedelta(0)
        self.sender = Sender()
        self.silence = Silence(self.sender, app, AFTER, now=lambda: datetime.now(timezone.utc) + self.later)

    def put(self, event, entry="report", number=0, **fields):
        fields = {"schedule": entry, "task_name": "t", **fields}
        journal_of(self.app).put(event, fields, {}, f"run{number}" if event.startswith("task_") else None)

    def ticks(self, count, **more):
        for _ in range(count):
            self.put("tick_published", **more)

    def look(self, later=120):
        self.later = timedelta(seconds=later)
        journal_of(self.app).write(within=10)
        self.silence.look()
        journal_of(self.app).write(within=10)
        return [(record.entry, record.reason) for record in journal.read(self.app) if record.event == "entry_silent"]


def test_an_entry_whose_runs_all_fail_is_silent_and_it_is_said_once_by_all_beats(one):
    other = Silence(one.sender, one.app, AFTER, now=lambda: datetime.now(timezone.utc) + timedelta(seconds=120))
    one.ticks(AFTER)
    for number in range(AFTER):
        one.put("task_failed", number=number, error_name="ValueError")
    ((entry, reason),) = one.look()
    assert entry == "report"
    assert reason.startswith("3 ticks without a success since 20")
    assert reason.endswith("UTC (ValueError)")
    assert "ended as failed" in reason
    other.look()
    one.ticks(5)
    assert len(one.look()) == 1


def test_one_that_succeeds_now_and_then_is_not(one):
    for number in range(10):
        one.ticks(AFTER - 1)
        one.put("task_succeeded", number=number)
    assert one.look() == []


def test_a_new_silence_is_said_anew(one):
    one.put("task_skipped", number=0, reason="locked")
    one.ticks(AFTER)
    assert len(one.look()) == 1
    one.put("task_succeeded", number=1)
    assert len(one.look()) == 1
    one.ticks(AFTER)
    one.put("task_skipped", number=2, reason="locked")
    assert len(one.look()) == 2


def test_a_minute_must_have_passed(one):
    one.put("task_failed", number=0)
    one.ticks(50)
    assert one.look(later=30) == []
    assert len(one.look(later=90)) == 1


def test_of_a_plain_task_nobody_knows_and_of_a_locked_one_that_nobody_runs_everybody_should(one):
    one.ticks(AFTER)
    assert one.look() == []

    @one.app.task(base=LockedTask, name="t")
    def t():
        pass

    one.app.finalize()
    ((_, reason),) = one.look()
    assert reason.endswith("none has ended")


def test_ticks_that_were_missed_count_and_those_taken_over_count_once(one):
    one.put("task_failed", number=0)
    one.ticks(1)
    one.ticks(5, taken_over=True)
    assert one.look() == []
    one.put("tick_missed", count=2)
    assert len(one.look()) == 1


def test_a_journal_of_many_pages_is_read(one):
    one.put("task_failed", number=0)
    for _ in range(1300):
        one.put("task_succeeded", entry="other", number=1)
    one.ticks(AFTER)
    assert [entry for entry, _ in one.look()] == ["report"]

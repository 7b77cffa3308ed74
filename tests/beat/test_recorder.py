from __future__ import annotations

from datetime import timedelta

import pytest
from beat_parts import START, Parts
from celery.schedules import crontab, schedule

from celery_lockbeat import signals
from celery_lockbeat.beat.agenda import Item
from celery_lockbeat.beat.ledger import Tick
from celery_lockbeat.beat.recorder import SAID_AT_MOST
from celery_lockbeat.observe.observers import finish
from celery_lockbeat.stores.base import Claim, EntryState


class One(Parts):
    def item(self, when=None) -> Item:
        entry = self.scheduler.entry("report")
        entry.schedule = when or entry.schedule
        return Item("report", entry)

    def tick(self, due: str | None = None, **more) -> Tick:
        details = {} if due is None else {"due": due}
        return Tick(self.item(), 7, "t1", details, 0.0, 0.0, **more)

    def said(self) -> list[tuple[str, dict]]:
        return [(event, {**fields}) for event, fields in self.journal.written]


@pytest.fixture
def one() -> One:
    return One()


def claim(due: str) -> Claim:
    return Claim("t1", "report", EntryState(7, "now"), {"due": due})


def ago(seconds: float) -> str:
    return (START - timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def test_a_tick_that_is_published_is_recorded_with_how_late_it_was(one):
    one.recorder.published([one.tick(ago(1.5))])
    ((event, fields),) = one.said()
    assert event == "tick_published"
    assert fields == {
        "entry": "report",
        "task": "t",
        "due": START.timestamp() - 1.5,
        "host": "host-1-a",
        "id": "t1",
        "run": 7,
        "late": 1.5,
        "ago": 0,
    }


def test_one_that_was_taken_over_says_so(one):
    one.recorder.published([one.tick(ago(6), taken_over=True)])
    assert one.said()[0][1]["over"] is True
    assert one.journal.events() == ["tick_published"]


def test_one_that_is_late_is_an_event_too_once_for_all_beats(one):
    heard = []

    def receiver(**fields):
        heard.append(fields)

    signals.tick_late.connect(receiver)
    try:
        one.recorder.published([one.tick(ago(31), taken_over=True)])
        finish()
    finally:
        signals.tick_late.disconnect(receiver)
    assert one.journal.events() == ["tick_published", "tick_late"]
    assert one.journal.cases == ["late:t1"]
    (fields,) = heard
    assert (fields["schedule"], fields["late"], fields["reason"]) == ("report", 31.0, "another beat had left it")


def test_one_that_was_late_when_it_was_claimed_is_looked_at(one):
    one.recorder.claimed(one.item(crontab(hour=3)), claim(ago(45)), 45.0)
    one.recorder.published([one.tick(ago(45))])
    assert one.journal.events() == ["tick_published", "tick_late"]
    one.recorder.published([one.tick(ago(45))])
    assert one.journal.events() == ["tick_published", "tick_late", "tick_published"]


def test_a_due_time_that_another_release_has_not_written_is_not_late(one):
    one.recorder.published([one.tick(), one.tick("soon")])
    assert one.journal.events() == ["tick_published"] * 2
    assert [fields["late"] for _, fields in one.said()] == [0.0, 0.0]


def test_a_tick_that_will_not_be_published_is_missed(one):
    one.recorder.not_published(one.tick(ago(1)), "its entry was deleted or disabled")
    ((event, fields),) = one.said()
    assert (event, fields["count"], fields["reason"]) == ("tick_missed", 1, "its entry was deleted or disabled")


@pytest.mark.parametrize(
    ("when", "late", "missed"),
    [
        (schedule(10), 9.0, None),
        (schedule(10), 35.0, (3, START + timedelta(seconds=30))),
        (schedule(0.2), 0.9, None),  # not worth it
        (crontab(), 59.0, None),
        (crontab(), 600.0, (10, START + timedelta(minutes=10))),
        (crontab(hour=3, minute=0), 7 * 86400.0, (7, START + timedelta(days=6, hours=3))),
    ],
)
def test_what_else_was_due_meanwhile_is_missed(one, when, late, missed):
    when.app = when.app or one.scheduler.entry("x").app
    one.recorder.claimed(one.item(when), claim(START.isoformat()), late)
    if missed is None:
        assert one.said() == []
        return
    ((event, fields),) = one.said()
    assert (event, fields["count"], fields["last_due"]) == ("tick_missed", missed[0], missed[1].isoformat())
    assert START.isoformat() in fields["reason"]


def test_not_more_are_said_than_anybody_reads_and_all_are_recorded(one, caplog):
    finish()
    caplog.clear()
    for _ in range(SAID_AT_MOST + 50):
        one.recorder.not_published(one.tick(ago(1)), "its entry was deleted or disabled")
    assert one.journal.events() == ["tick_missed"] * (SAID_AT_MOST + 50)
    finish()
    said = [record for record in caplog.records if record.name == "celery_lockbeat.events"]
    assert len(said) == SAID_AT_MOST
    assert sum("more than 100 ticks a minute" in record.getMessage() for record in caplog.records) == 1


def test_of_a_schedule_of_somebodys_own_nobody_can_tell_what_was_due(one):
    item = one.item()
    item.schedule = object()
    one.recorder.claimed(item, claim(START.isoformat()), 600.0)
    one.recorder.claimed(one.item(), claim("no time"), 600.0)
    assert one.said() == []


@pytest.mark.parametrize("early", [0, 0.001, 0.4])
def test_the_tick_that_stands_for_those_that_were_missed_is_none_of_them(one, early):
    """A beat may call the tick of 12:00 that of 11:59:59.999."""
    noon = START.replace(hour=12, minute=0, second=0, microsecond=0)
    due = (noon - timedelta(seconds=early)).isoformat(timespec="milliseconds")
    one.recorder.claimed(one.item(crontab()), claim(due), 50)
    assert one.said() == []
    one.recorder.claimed(one.item(crontab()), claim(due), 150)
    assert [fields["count"] for _, fields in one.said()] == [2]

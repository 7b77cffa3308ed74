from __future__ import annotations

from datetime import timedelta

import pytest
from beat_parts import START, Parts
from celery.schedules import crontab

from celery_lockbeat.beat.clocks import overdue_for
from celery_lockbeat.stores.base import EntryState


@pytest.fixture
def parts() -> Parts:
    return Parts()


def test_a_wall_clock_that_is_set_is_noticed_once(parts):
    parts.clock.elapsed = 100.0
    assert not parts.clocks.has_stepped()
    parts.clock.skew = -3600.0
    assert parts.clocks.has_stepped()
    assert not parts.clocks.has_stepped()


def test_a_clock_that_is_wrong_is_warned_of_once_and_a_slow_answer_is_no_wrong_clock(parts, caplog):
    asked = parts.clock()
    parts.clock.elapsed += 10.0
    parts.clocks.compare(parts.store.time() - 9.0, asked)
    assert caplog.text == ""
    parts.clock.skew = 5.0
    for _ in range(2):
        parts.clocks.compare(parts.store.time(), parts.clock())
    assert caplog.text.count("differs from the store's by +5.0 s: crontabs fire as much earlier") == 1


def test_the_run_of_an_interval_is_told_by_the_stores_clock_and_that_of_a_crontab_by_its_name(parts):
    parts.clock.skew = 5.0
    parts.clocks.compare(parts.store.time(), parts.clock())
    every, cron = parts.scheduler.entry("every"), parts.scheduler.entry("cron")
    cron.schedule = crontab()
    here = START + timedelta(seconds=65)
    assert parts.clocks.state(every, 1, here) == EntryState(1, (START + timedelta(seconds=60)).isoformat())
    assert parts.clocks.state(cron, 1, here) == EntryState(1, here.isoformat())
    for entry in (every, cron):
        assert parts.clocks.time_of(parts.clocks.state(entry, 1, here), entry, here.tzinfo) == here


def test_a_schedule_that_cannot_tell_has_been_due_for_no_time(parts):
    entry = parts.scheduler.entry("e", last_run_at=START - timedelta(seconds=30))
    assert overdue_for(entry) == 20.0
    entry.schedule = object()
    assert overdue_for(entry) == 0.0

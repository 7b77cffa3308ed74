from __future__ import annotations

import logging

import pytest
from beat_parts import Clock

from celery_lockbeat.beat.trouble import COMPLAIN_EVERY, RETRY_AT_MOST, Backoff, Complaints


def test_the_same_trouble_is_complained_about_once_a_minute_and_another_at_once(caplog):
    clock = Clock()
    complaints = Complaints(clock)
    for second in range(150):
        clock.elapsed = second
        complaints.make("store", "at %s s", second)
    complaints.make("broker", "another")
    assert [record.getMessage() for record in caplog.records] == ["at 0 s", "at 60 s", "at 120 s", "another"]
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


def test_trouble_that_is_over_is_told_of_once_and_complained_about_anew_when_it_comes_back(caplog):
    complaints = Complaints(Clock())
    assert not complaints.end("store")
    complaints.make("store", "away")
    assert "store" in complaints
    assert complaints.end("store")
    assert not complaints.end("store")
    complaints.make("store", "away")
    assert caplog.text.count("away") == 2


def test_pauses_grow_up_to_the_longest_and_begin_anew_when_all_is_well():
    clock = Clock()
    backoff = Backoff(clock)
    pauses = [backoff.next_pause() for _ in range(8)]
    assert pauses[:3] == [0.1, 0.2, 0.4]
    assert pauses[-1] == RETRY_AT_MOST < COMPLAIN_EVERY
    clock.elapsed = 0.5
    assert backoff.rest() == pytest.approx(RETRY_AT_MOST - 0.5)
    backoff.reset()
    assert backoff.next_pause() == 0.1

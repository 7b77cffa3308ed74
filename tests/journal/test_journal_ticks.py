"""What became of each tick, of records as they may come: late, doubled, in part, and of what no journal has written."""

from __future__ import annotations

import json
import random
from datetime import datetime, timezone
from functools import partial
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.schedules import crontab
from hypothesis import given
from hypothesis import strategies as st
from ledgers import at, of_run, published, ran, record

from celery_lockbeat.journal.audit import Calendar, Counted, audit
from celery_lockbeat.journal.records import WRITTEN_AS, Record, read_record
from celery_lockbeat.journal.sentences import Writing, holder_since, sentence_of
from celery_lockbeat.journal.statistics import statistics_of
from celery_lockbeat.journal.ticks import OUTCOMES, ticks_of
from celery_lockbeat.observe.vocabulary import took
from celery_lockbeat.schedules.dues import dues_between
from celery_lockbeat.stores.base import StoredRecord


def only(records):
    (tick,) = ticks_of(records)
    return tick


def test_a_tick_and_its_run_are_one():
    tick = only(ran(3, 0, took=2))
    assert (tick.entry, tick.run, tick.outcome, tick.late) == ("report", 3, "succeeded", 0.1)
    assert (tick.started, tick.last.ended, tick.last.took, tick.last.worker) == (at(0.2), at(2.2), 2.0, "celery@w1")


def test_a_run_that_was_written_before_its_tick_is_its_run():
    assert only(reversed(ran(3, 0))).outcome == "succeeded"


def test_of_a_run_without_a_start_its_end_tells_when_it_began():
    tick = only([published(1, 0), of_run("task_succeeded", 0.5, 1, duration_ms=200, release_ms=100)])
    assert (tick.outcome, tick.started) == ("succeeded", at(0.2))


def test_an_end_that_comes_twice_is_one():
    records = ran(1, 0)
    tick = only([*records, records[-1], of_run("task_failed", 9, 1)])
    assert (tick.outcome, len(tick.attempts), tick.last.ended) == ("succeeded", 1, at(1.2))


def test_a_tick_that_two_beats_have_published_is_one():
    again = published(1, 0, late=5.1, hostname="beat-2", taken_over=True)
    tick = only([published(1, 0), again, *ran(1, 0)[1:], of_run("task_skipped", 6, 1, attempt=2, reason="duplicate")])
    assert (tick.outcome, tick.beats, tick.taken_over, tick.late) == ("succeeded", ("beat-1", "beat-2"), True, 0.1)


def test_retries_are_attempts_of_one_tick():
    retried = of_run("task_retried", 1, 1, duration_ms=500, error_name="OSError")
    assert only([published(1, 0), retried]).outcome == "queued"
    failed = of_run("task_failed", 3, 1, attempt=2, duration_ms=100, error_name="OSError", error_message="no route")
    tick = only([published(1, 0), retried, failed])
    assert (tick.outcome, len(tick.attempts), tick.reason) == ("failed", 2, "OSError: no route")


def test_a_copy_that_was_skipped_ends_nothing():
    records = [*ran(1, 0, status="failed"), of_run("task_skipped", 6, 1, attempt=2, reason="duplicate")]
    assert only(records).outcome == "failed"
    assert only([records[0], records[-1]]).outcome == "skipped"


def test_who_held_the_lock_of_a_skipped_run_held_it_since_it_got_it_last_before():
    holder = "celery@w1 pid 812 jobs.report[other-1]"
    records = [published(1, 60), of_run("task_skipped", 60.5, 1, 60, reason="locked", holder=holder)]
    for attempt, seconds in ((1, 10), (2, 40), (3, 90)):
        token = int(at(seconds).timestamp() * 1_000_000)
        more = {"entry": "other", "attempt": attempt, "token": token, "duration_ms": 10.0}
        records.append(of_run("task_retried", seconds + 15, 1, 0, **more))
    ticks = ticks_of(records)
    (skipped,) = [tick for tick in ticks if tick.outcome == "skipped"]
    assert holder_since(skipped.last, ticks) == at(40)
    assert sentence_of(skipped, ticks, Writing(timezone.utc, took)) == (
        "The tick of 'report' at 2026-03-01 12:01:00 UTC was skipped at 12:01:00.5 by celery@w1: its lock 'jobs:report' was held by "
        "celery@w1 pid 812 jobs.report[other-1], since 12:00:40.0."
    )


def test_a_run_that_died_and_came_again_has_the_end_of_the_second():
    died = of_run("task_died", 1, 1, signal=9, reason="its process was killed by SIGKILL")
    tick = only([published(1, 0), of_run("task_started", 0.2, 1), died])
    assert (tick.outcome, tick.reason) == ("died", "its process was killed by SIGKILL")
    again = [of_run("task_started", 2, 1, attempt=2), of_run("task_succeeded", 3, 1, attempt=2, duration_ms=1000)]
    assert only([published(1, 0), died, *again]).outcome == "succeeded"


def test_a_child_that_was_taken_for_dead_and_has_ended_all_the_same_has_ended():
    assert only([*ran(1, 0)[:2], of_run("task_died", 1, 1), ran(1, 0)[2]]).outcome == "succeeded"


def test_a_run_whose_lock_another_has_had_since_is_not_running():
    first = [published(1, 0), of_run("task_started", 0.2, 1, token=5)]
    assert only(first).outcome == "running"
    second = [published(2, 60), of_run("task_started", 60.2, 2, 60, token=6, hostname="celery@w2")]
    before, after = ticks_of([*first, *second])
    assert (before.outcome, after.outcome) == ("died", "running")
    assert "celery@w2 had its lock after it" in before.reason
    # tokens of two stores tell nothing of each other
    other = [published(2, 60), of_run("task_started", 60.2, 2, 60, token=6, driver="memory")]
    assert [tick.outcome for tick in ticks_of([*first, *other])] == ["running", "running"]


def test_what_a_plain_task_does_nobody_knows():
    plain = published(1, 0, entry="plain", task_name="jobs.plain")
    assert [tick.outcome for tick in ticks_of([plain], tells=lambda task: task == "jobs.report")] == ["published"]
    assert only([published(1, 0)]).outcome == "published"
    # of a task whose runs are told elsewhere, one that is not told has not begun
    assert [tick.outcome for tick in ticks_of([*ran(1, 0), published(2, 60)])] == ["succeeded", "queued"]


def test_a_run_whose_tick_nobody_has_recorded_is_that_of_a_tick():
    tick = only(ran(4, 0)[1:])
    assert (tick.entry, tick.due, tick.run, tick.published, tick.outcome) == ("report", at(0), None, None, "succeeded")


def test_runs_that_no_tick_has_asked_for_are_by_themselves():
    records = [
        of_run("task_succeeded", 5, 1, None, duration_ms=10),
        # sent anew under the id of one that has ended
        of_run("task_succeeded", 9, 1, None, attempt=2, duration_ms=10),
        of_run("task_skipped", 9.5, 1, None, attempt=3, reason="duplicate"),
    ]
    ticks = ticks_of(records)
    assert [(tick.entry, tick.due, len(tick.attempts)) for tick in ticks] == [(None, None, 1), (None, None, 2)]


def test_ticks_whose_messages_have_one_id_are_told_apart_by_their_times():
    records = [published(1, 0), published(2, 60)]
    for run, due in ((1, 0), (2, 60)):
        end = "task_succeeded" if run == 1 else "task_failed"
        records.append(of_run(end, due + 1, run, due, task_id="nightly", duration_ms=10))
    assert [(tick.run, tick.outcome) for tick in ticks_of(records)] == [(1, "succeeded"), (2, "failed")]


def test_what_was_missed_is_told_once_with_the_tick_that_stands_for_it():
    missed = {"entry": "report", "count": 120, "last_due": at(7200), "reason": "nobody"}
    records = [published(7, 0, late=7250), record("tick_missed", 7250, **missed), record("tick_missed", 7251, **missed)]
    first, tick = ticks_of(records)
    assert (first.run, tick.outcome, tick.count) == (7, "missed", 120)
    assert (tick.due_after, tick.due) == (at(0), at(7200))


def test_what_one_beat_has_published_and_the_next_could_not_is_published():
    missed = record("tick_missed", 6, entry="report", run=1, due=at(0), count=1, reason="its entry was deleted")
    assert only([published(1, 0), missed]).outcome == "published"
    assert only([missed]).outcome == "missed"


def test_a_lock_that_was_lost_and_a_run_that_takes_too_long_are_told():
    records = ran(1, 0)[:2]
    overdue = of_run("run_overdue", 50, 1, duration_ms=49_800, reason="it has run for 50 s")
    tick = only([*records, overdue])
    assert (tick.outcome, tick.reason, tick.started) == ("running", "it has run for 50 s", at(0.2))
    tick = only([*records, overdue, of_run("lock_expired_before_finish", 60, 1)])
    assert tick.last.lost_at == at(60)
    # the lock of no task is no run
    assert ticks_of([record("lock_expired_before_finish", 1, execution_id="x", lock_key="k")]) == []


def test_a_clock_that_jumps_back_between_two_ticks_loses_neither():
    ticks = ticks_of([*ran(1, 0), *ran(2, -3600)])
    assert sorted((tick.run, tick.outcome) for tick in ticks) == [(1, "succeeded"), (2, "succeeded")]


HELD = "celery@w1 pid 812 jobs.report[other-1]"


def waits(seconds, run=1, due=0, **more):
    told = {"holder": HELD, "count": 3, "attempt": f"waits-{seconds}", "hostname": "celery@w2", **more}
    return of_run("task_waiting", seconds, run, due, **told)


def test_a_tick_whose_run_waits_is_queued_since_when_and_behind_whom():
    tick = only([published(1, 0), waits(0.5), waits(1.5, count=2)])
    assert (tick.outcome, tick.reason) == ("queued", f"waits in line: {HELD}, and behind 2 others")
    assert tick.waits.since == at(1.5)
    assert {name: tick.fields()[name] for name in ("waits_since", "waits_behind", "holder", "lock_key")} == {
        "waits_since": at(1.5).isoformat(),
        "waits_behind": 2,
        "holder": HELD,
        "lock_key": "jobs:report",
    }
    assert sentence_of(tick, [], Writing(timezone.utc, took)) == (
        "The tick of 'report' at 2026-03-01 12:00:00 UTC was published 100 ms late by the beat beat-1, and waits in line for its lock "
        f"'jobs:report' since 12:00:01.5: for {HELD}, and behind 2 others."
    )


def test_what_has_waited_is_what_it_became():
    for status in ("succeeded", "failed", "skipped"):
        assert only([waits(0.5), *ran(1, 0, status=status)]).outcome == status
    # the last record of a process may be written after the first of another
    started = [published(1, 0), of_run("task_started", 0.7, 1)]
    assert only([*started, waits(0.5)]).outcome == "running"
    assert only([*ran(1, 0), waits(0.5)]).waits is None


def test_the_next_try_of_a_run_waits_anew():
    retried = of_run("task_retried", 1, 1, duration_ms=500, error_name="OSError")
    tick = only([published(1, 0), waits(0.2), retried])
    assert (tick.waits, tick.outcome) == (None, "queued")
    assert only([published(1, 0), retried, waits(3)]).waits.since == at(3)
    died = of_run("task_died", 1, 1, signal=9, reason="killed")
    assert only([published(1, 0), of_run("task_started", 0.2, 1), died, waits(3)]).outcome == "queued"


def test_a_run_that_no_tick_has_asked_for_and_that_waits_is_one_with_what_it_becomes():
    assert only([waits(0.5, None, None)]).outcome == "queued"
    ended = of_run("task_succeeded", 5, 1, None, duration_ms=10)
    for records in ([waits(0.5, 1, None), ended], [ended, waits(0.5, 1, None)]):
        assert only(records).outcome == "succeeded"
    before, after = ticks_of([ended, waits(9, 1, None)])
    assert (before.outcome, after.outcome) == ("succeeded", "queued")


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**25), 10**25),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(), max_size=2),
    st.just("2026-03-01T12:00:00"),
)
EVENTS = ["tick_published", "tick_late", "tick_missed", "task_started", "task_succeeded", "task_skipped", "task_died"]
EVENTS += [
    "task_waiting",
    "lock_replaced",
    "lock_expired_before_finish",
    "run_overdue",
    "records_dropped",
    "unreadable",
    "of a later release",
]
TEXTS = st.dictionaries(st.sampled_from(["ago", *WRITTEN_AS.values()]), VALUES).map(
    lambda fields: {"entry": "e", **fields}
)


@given(st.lists(st.tuples(st.sampled_from(EVENTS), TEXTS, st.integers(0, 100)), max_size=8))
def test_whatever_stands_in_the_journal_it_can_be_read_and_shown(garbage):
    stored = [
        StoredRecord(str(n), written, json.dumps({"e": event, **fields}))
        for n, (event, fields, written) in enumerate(garbage)
    ]
    assert_all_can_be_shown([read_record(each) for each in stored])


def assert_all_can_be_shown(records: list[Record]) -> None:
    ticks = ticks_of(records)
    write = Writing(ZoneInfo("America/New_York"), took)
    for tick in ticks:
        assert tick.outcome in OUTCOMES
        json.dumps(tick.fields(), allow_nan=False)
        if tick.entry is not None:
            assert sentence_of(tick, ticks, write)
    span = {"since": datetime(1, 1, 2, tzinfo=timezone.utc), "until": datetime(9999, 12, 30, tzinfo=timezone.utc)}
    ledger = audit(ticks, records, **span)
    assert sum(account.due for account in ledger.accounts) >= sum(tick.count for tick in ticks if tick.entry)
    json.dumps([each.fields() for each in statistics_of(ticks, ledger)], allow_nan=False)
    minutely = Calendar(partial(dues_between, crontab(app=Celery(set_as_current=False))), True, "* * * * *")
    stored = {"e": Counted(5, records[0].at, 1)} if records else {}
    span = {"since": datetime(1969, 12, 1, tzinfo=timezone.utc), "until": datetime(1970, 2, 1, tzinfo=timezone.utc)}
    for account in audit(ticks, records, calendars={"e": minutely}, stored=stored, **span).accounts:
        json.dumps(account.fields(), allow_nan=False)


@pytest.mark.parametrize("seed", range(20))
def test_records_in_any_order_and_in_part_tell_no_tick_twice(seed):
    chance = random.Random(seed)
    records = [each for run in range(1, 30) for each in ran(run, run * 60)]
    records += [published(run, run * 60, late=5, hostname="beat-2", taken_over=True) for run in range(1, 30, 3)]
    some = chance.sample(records, chance.randrange(len(records)))
    dues = [tick.due for tick in ticks_of(some)]
    assert sorted(dues) == sorted({each.due for each in some})

"""The ledger adds up where all is well, has a gap where something is lacking, and accuses nobody of what it cannot know."""

from __future__ import annotations

import random
from datetime import datetime, timedelta, timezone
from functools import partial
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.schedules import crontab, schedule
from ledgers import NOON, at, of_run, published, ran, record

from celery_lockbeat.journal.audit import Calendar, Counted, audit, holes_of
from celery_lockbeat.journal.statistics import spread_of, statistics_of
from celery_lockbeat.journal.ticks import ticks_of
from celery_lockbeat.schedules.dues import dues_between

HOUR = 3600.0


def ledger_of(records, *, since=-HOUR, until=24 * HOUR, reach=-2 * HOUR, **more):
    ticks = ticks_of(records, tells=lambda _task: True)
    return audit(ticks, records, since=at(since), until=at(until), reach=at(reach), **more)


def account_of(records, **more):
    (account,) = ledger_of(records, **more).accounts
    assert account.due == sum(account.counts.values()) + account.waiting + account.unknown + account.unaccounted
    return account


def calendar(*fields: object, zone: str = "UTC") -> Calendar:
    app = Celery(set_as_current=False)
    app.conf.timezone = zone
    when = crontab(*fields, app=app)
    return Calendar(partial(dues_between, when), True, " ".join(map(str, fields)))


def every(seconds: float) -> Calendar:
    return Calendar(partial(dues_between, schedule(timedelta(seconds=seconds))), False, f"every {seconds:g} s")


def gaps(account):
    return [(gap.first, gap.last, gap.count) for gap in account.gaps]


def some(*runs: int, every: float = 60.0):
    return [each for run in runs for each in ran(run, run * every)]


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_numbers_without_a_hole_add_up():
    account = account_of(some(*range(5, 20)))
    assert (account.due, account.counts["succeeded"], account.gaps) == (15, 15, [])


def test_a_hole_is_a_gap_that_says_between_which_ticks_how_many_and_why():
    account = account_of(some(1, 2, 5, 6))
    assert gaps(account) == [(at(120), at(300), 2)]
    assert account.gaps[0].why.startswith("runs 3 to 4: claimed, and nobody has recorded what became of it")
    assert account.due == 6


def test_a_tick_that_was_published_twice_is_one_and_what_was_taken_over_late_is_no_hole():
    late = [published(2, 120, late=100, taken_over=True, hostname="beat-2"), of_run("task_succeeded", 221, 2, 120)]
    account = account_of([*some(1, 3, 4), published(3, 180, late=6, taken_over=True), *late])
    assert (account.due, account.gaps) == (4, [])


def test_a_tick_whose_record_went_with_its_beat_is_known_by_its_run():
    records = [each for each in some(1, 2, 3, 4) if not (each.event == "tick_published" and each.run in (2, 3))]
    account = account_of(records)
    assert (account.due, account.gaps) == (4, [])
    assert holes_of(ticks_of(records)) == []


def test_a_claim_that_was_not_published_counts_as_missed():
    missed = record(
        "tick_missed", 121, entry="report", run=2, due=at(120), count=1, reason="its message cannot be made"
    )
    account = account_of([*some(1, 3), missed])
    assert (account.due, account.counts["missed"], account.gaps) == (3, 1, [])


def paused(run, due):
    return record("tick_paused", due, entry="report", run=run, due=at(due), reason="it is paused", who="ann@ops")


def test_ticks_that_were_paused_add_up():
    records = [*some(1, 4), paused(2, 120), paused(3, 180)]
    account = account_of(records, calendars={"report": calendar("*")}, until=245)
    assert (account.due, account.counts["paused"], account.counts["succeeded"], account.gaps) == (4, 2, 2, [])
    (gap,) = account_of(records[:-1], calendars={"report": calendar("*")}, until=245).gaps
    assert gap.count == 1


def test_what_was_paused_and_run_after_all_is_one_tick_and_no_hole():
    caught_up = [
        published(None, 180, task_id="c", kind="catchup"),
        of_run("task_succeeded", 400, 3, 180, duration_ms=1.0),
    ]
    records = [*some(1, 4), paused(2, 120), paused(3, 180), *caught_up]
    account = account_of(records)
    assert (account.due, account.counts["paused"], account.gaps) == (4, 1, [])
    # it has the number of the one that was passed over, and the task id of the one that ran
    assert [(tick.run, tick.task_id) for tick in ticks_of(records) if tick.due == at(180)] == [(3, "c")]


def test_numbers_that_begin_anew_in_a_store_that_was_emptied_are_no_hole():
    later = [each for run in (1, 2, 3, 4) for each in ran(run, 6000 + run * 60, attempt=2)]
    later = [each for each in later if each.event == "tick_published"]
    fresh = [published(each.run, (each.due - NOON).total_seconds(), task_id=f"new-{each.run}") for each in later]
    assert holes_of(ticks_of([*some(57, 58, 59), *fresh])) == []
    (hole,) = holes_of(ticks_of([*some(57, 58, 59), *fresh[:2], fresh[3]]))
    assert (hole.first, hole.last) == (3, 3)
    # of which the old ones had the number too
    (hole,) = holes_of(ticks_of([*some(2, 3, 4), *fresh[:2], fresh[3]]))
    assert (hole.first, hole.last) == (3, 3)


def test_a_clock_that_jumps_makes_no_hole_and_hides_none():
    # by the clocks of their hosts run 3 was due before run 2
    records = [*some(1, 2), published(3, 30, late=150), *some(4, 5)]
    assert account_of(records).gaps == []
    (gap,) = account_of([*some(1, 2), published(4, 30, late=210), *some(5)]).gaps
    assert gap.count == 1


def test_numbers_that_no_journal_has_written_take_no_time():
    records = [published(1, 0), published(10**18, 60), published(5, 120, task_id="other"), published(-3, 180)]
    assert sum(gap.count for gap in account_of(records).gaps) > 10**17


# -- what the journal cannot know --------------------------------------------------------------------------------------


def dropped(seconds: float, since: float, count: int = 12):
    return record("records_dropped", seconds, count=count, hostname="beat-1", duration_ms=(seconds - since) * 1000)


def test_a_journal_that_has_dropped_records_accuses_nobody_and_says_where():
    records = [*some(1, 2, 5, 6), dropped(310, 100)]
    ledger = ledger_of(records)
    (account,) = ledger.accounts
    assert (account.unknown, account.gaps, account.due) == (2, [], 6)
    ((first, last, why),) = ledger.blind
    assert (first, last) == (at(100), at(310))
    assert why == "12 records were dropped by beat-1, whose store was away"


def test_what_was_dropped_at_another_time_excuses_nothing():
    (gap,) = account_of([*some(1, 2, 5, 6), dropped(3000, 2000)]).gaps
    assert gap.count == 2


def test_who_does_not_say_since_when_may_have_dropped_all_that_was_before():
    records = [*some(1, 2, 5, 6), record("records_dropped", 3000, count=1)]
    assert account_of(records).unknown == 2


def test_a_record_that_cannot_be_read_excuses_what_was_written_about_then():
    records = [*some(1, 2), record("unreadable", 185), *some(4, 5)]
    assert (account_of(records).unknown, account_of(records).gaps) == (1, [])


def test_nobody_is_accused_of_what_is_older_than_the_journal():
    account = account_of(some(50, 51), reach=49 * 60.0, calendars={"report": calendar()}, until=51 * 60.0 + 5)
    assert (account.due, account.gaps) == (2, [])


def test_what_may_not_be_written_yet_is_no_gap():
    # the record of run 2 is on its way
    assert account_of(some(1, 3), until=179).gaps == []


def test_claims_that_wait_to_be_published_are_no_gap():
    stored = {"report": Counted(4, at(240), 2)}
    account = account_of(some(1, 2), stored=stored)
    assert (account.waiting, account.gaps, account.due) == (2, [], 4)


def test_the_last_number_of_the_store_shows_what_the_killed_beat_took_along():
    account = account_of(some(1, 2), stored={"report": Counted(4, at(240), 0)})
    assert gaps(account) == [(at(120), at(240), 2)]
    # one that is known by its run
    assert account_of([*some(1, 2), *ran(3, 180)[1:]], stored={"report": Counted(3, at(180), 0)}).gaps == []
    # it was claimed a moment ago
    assert account_of(some(1, 2), stored={"report": Counted(3, at(180), 0)}, until=179).gaps == []


# -- the schedule ------------------------------------------------------------------------------------------------------


def test_dues_of_a_crontab_that_are_all_there_add_up():
    account = account_of(some(*range(1, 61)), until=HOUR + 30, calendars={"report": calendar()})
    assert (account.due, account.gaps) == (60, [])


def test_dues_of_a_crontab_that_nobody_has_published_are_a_gap_though_no_number_lacks():
    # the beats claimed nothing for five minutes: runs 1 to 3, and then 4
    records = [*some(1, 2, 3), *ran(4, 9 * 60)]
    account = account_of(records, until=9 * 60 + 30, calendars={"report": calendar()})
    assert gaps(account) == [(at(180), at(480), 5)]
    assert account.gaps[0].why.endswith("by its schedule as it is now, ")
    assert account.due == 9


def test_ticks_that_are_recorded_as_missed_are_no_gap():
    missed = record("tick_missed", 545, entry="report", count=5, last_due=at(540), reason="nobody")
    late = published(4, 240, late=305)
    records = [*some(1, 2, 3), late, missed, *ran(5, 600)]
    account = account_of(records, until=630, calendars={"report": calendar()})
    assert (account.due, account.counts["missed"], account.gaps) == (10, 5, [])
    # of which there were more
    fewer = record("tick_missed", 545, entry="report", count=3, last_due=at(540), reason="nobody")
    account = account_of([*some(1, 2, 3), late, fewer, *ran(5, 600)], until=630, calendars={"report": calendar()})
    assert gaps(account) == [(at(240), at(540), 2)]


def test_a_hole_is_not_counted_twice():
    account = account_of(some(1, 2, 5), until=330, calendars={"report": calendar()})
    assert [gap.count for gap in account.gaps] == [2]


def test_a_hole_hides_no_dues_that_lack_after_it():
    account = account_of(some(1, 2, 5) + ran(6, 420), until=430, calendars={"report": calendar()})
    assert gaps(account) == [(at(120), at(300), 2), (at(300), at(360), 1)]


def test_an_entry_that_fell_silent_has_a_gap_until_now():
    account = account_of(some(1, 2), until=600, silence=timedelta(seconds=30), calendars={"report": calendar()})
    assert gaps(account) == [(at(120), at(540), 7)]
    account = account_of(some(1, 2), until=600, calendars={"report": every(60)})
    assert [gap.count for gap in account.gaps] == [7]
    # what is due just now may yet come
    silence = timedelta(seconds=30)
    assert account_of(some(1, 2), until=205, silence=silence, calendars={"report": calendar()}).gaps == []


def test_what_may_be_put_off_still_is_no_gap_and_nothing_is_due_after_so_many_runs():
    spread = calendar()._replace(put_off=timedelta(seconds=45))
    assert account_of(some(1, 2), until=224, calendars={"report": spread}).gaps == []
    assert gaps(account_of(some(1, 2), until=230, calendars={"report": spread})) == [(at(120), at(180), 1)]
    twice = calendar()._replace(max_runs=2)
    stored = {"report": Counted(2, at(120), 0)}
    assert account_of(some(1, 2), until=600, calendars={"report": twice}, stored=stored).gaps == []
    assert account_of(some(1, 2), until=600, calendars={"report": calendar()}, stored=stored).gaps != []


def test_intervals_are_counted_from_the_last_tick_and_not_between():
    # they drift, and one was run a long time after it was due
    records = [*ran(1, 0), published(2, 60, late=100), *ran(3, 220)]
    assert account_of(records, until=270, calendars={"report": every(60)}).gaps == []


def test_an_entry_without_a_tick_is_judged_by_what_the_store_has_of_it():
    stored = {"nightly": Counted(7, at(-7200), 0)}
    (account,) = ledger_of([], calendars={"nightly": calendar(0)}, stored=stored, since=-HOUR, until=HOUR).accounts
    assert gaps(account) == [(at(-HOUR), at(HOUR), 2)]
    # no beat has ever listed it: it is new
    assert ledger_of([], calendars={"nightly": calendar(0)}, until=HOUR).accounts == []


def test_a_run_that_was_asked_for_by_hand_hides_no_due_and_makes_none():
    by_hand = published(3, 150, taken_over=True, late=0)
    account = account_of([*some(1, 2), by_hand, *ran(4, 180)], until=200, calendars={"report": calendar()})
    assert (account.due, account.gaps) == (4, [])
    account = account_of([*some(1, 2), by_hand, *ran(4, 240)], until=260, calendars={"report": calendar()})
    assert gaps(account) == [(at(120), at(180), 1)]


def test_what_was_due_by_an_earlier_schedule_is_not_compared_with_the_one_of_today():
    half_past = [each for run in range(1, 5) for each in ran(run, run * HOUR + 1800)]
    new = [each for run in range(5, 9) for each in ran(run, run * HOUR)]
    account = account_of([*half_past, *new], until=8 * HOUR + 60, calendars={"report": calendar(0)})
    assert (account.due, account.gaps) == (8, [])
    # nor is what was due by another one meanwhile
    for run in (1, 2):
        half_past[(run - 1) * 3 : run * 3] = ran(run, run * HOUR)
    account = account_of([*half_past, *new], until=8 * HOUR + 60, calendars={"report": calendar(0)})
    assert (account.due, account.gaps) == (8, [])


@pytest.mark.parametrize("minute", [0, 30])
@pytest.mark.parametrize(("day", "hours"), [((2026, 3, 29), 24), ((2026, 10, 25), 26)])
def test_a_change_of_the_clock_is_no_gap(day, hours, minute):
    zone = ZoneInfo("Europe/Berlin")
    begin = datetime(*day, 0, minute, tzinfo=zone).astimezone(timezone.utc)
    # as Celery's crontab has it: each hour that there is
    dues = [begin + timedelta(hours=n) for n in range(hours)]
    records = [published(n + 1, (due - NOON).total_seconds(), task_id=f"t{n}") for n, due in enumerate(dues)]
    span = {"since": begin - timedelta(hours=1), "until": dues[-1] + timedelta(minutes=1)}
    calendars = {"report": calendar(minute, zone="Europe/Berlin")}
    (account,) = audit(ticks_of(records), records, reach=span["since"], calendars=calendars, **span).accounts
    assert (account.due, account.gaps) == (hours, [])


@pytest.mark.parametrize("seed", range(30))
def test_whatever_is_taken_away_is_found_and_counted(seed):
    """Each tick that was published, and each record that was lost, is there, in a gap or unknown: none twice."""
    chance = random.Random(seed)
    runs = list(range(1, 60))
    lost = set(chance.sample(runs[1:-1], chance.randrange(20)))
    records = [each for run in runs if run not in lost for each in ran(run, run * 60)]
    blind = chance.random() < 0.5
    if blind:
        records.append(dropped(60 * 61, 0))
    chance.shuffle(records)
    account = account_of(records, until=59 * 60 + 30, calendars={"report": calendar()})
    assert account.due == len(runs)
    assert (account.unknown if blind else account.unaccounted) == len(lost)


# -- statistics --------------------------------------------------------------------------------------------------------


def test_statistics_count_what_ran_was_skipped_missed_and_lost():
    skipped = of_run("task_skipped", 240.5, 4, 240, reason="locked", holder="celery@w2")
    missed = record("tick_missed", 900, entry="report", count=3, last_due=at(800), reason="nobody")
    failed = ran(3, 180, 4, status="failed", error_name="ValueError")
    records = [*some(1, 2), *failed, published(4, 240), skipped, missed, *some(6)]
    copy = of_run("task_skipped", 70, 1, 60, attempt=2, reason="duplicate")
    records.append(copy)
    ticks = ticks_of(records)
    (one,) = statistics_of(ticks, ledger_of(records))
    assert (one.due, one.run, one.failed, one.skipped, one.missed, one.lost, one.overlaps) == (9, 4, 1, 1, 3, 1, 1)
    assert (one.late.max, one.took.p50, one.took.max) == (0.1, 1.0, 4.0)


def test_of_a_hundred_values_95_are_at_most_the_95th():
    spread = spread_of([float(n) for n in range(1, 101)])
    assert (spread.p50, spread.p95, spread.max) == (50.0, 95.0, 100.0)
    assert spread_of([7.0]).p95 == 7.0
    assert spread_of([]) is None

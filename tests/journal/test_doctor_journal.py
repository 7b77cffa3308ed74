"""What the doctor finds in the journal: each rule of records that are given, and that they are gathered from real stores."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from celery import Celery
from ledgers import NOON, at, of_run, published, ran, record
from test_doctor import BEAT, FINE, FOUND

from celery_lockbeat import LockedTask
from celery_lockbeat.insight.doctor.facts import READ_AT_MOST, Facts, JournalFacts, gather
from celery_lockbeat.insight.doctor.kinds import KINDS
from celery_lockbeat.insight.doctor.rules import examine
from celery_lockbeat.journal.writer import journal_of
from celery_lockbeat.stores import home_store_of
from celery_lockbeat.stores.base import Beats, EntryState, JournalStore
from celery_lockbeat.stores.redis.journal import RedisJournal

HOUR, DAY = 3600, 86400


def facts(*records, now: float = HOUR, **changes) -> Facts:
    """Facts of an app that has two entries, hourly and once, and these records."""
    flat = [each for part in records for each in (part if isinstance(part, list) else [part])]
    journal = JournalFacts(**{"now": at(now), "records": tuple(sorted(flat, key=lambda each: each.at)), **changes})
    return replace(FINE, tasks=(), journal=journal)


def found(facts: Facts) -> dict[str, tuple[str, str]]:
    return {finding.kind.name: (finding.about, finding.what) for finding in examine(facts)}


def fails(run, due, **more):
    return ran(run, due, status="failed", entry="hourly", error_name="ValueError", error_message="no", **more)


def skipped(run, due, *, entry="hourly", **more):
    return [
        published(run, due, entry=entry),
        of_run("task_skipped", due + 0.2, run, due, entry=entry, reason="locked", **more),
    ]


def succeeds(run, due, took=1.0, **more):
    return ran(run, due, took, **{"entry": "hourly", **more})


# -- entries -----------------------------------------------------------------------------------------------------------


def test_an_entry_without_a_success_for_as_many_ticks_as_are_set_is_silent():
    ticks = [succeeds(1, 0), *(fails(run, run * 60) for run in range(2, 6)), *skipped(6, 360)]
    about, what = found(facts(*ticks))["entry-silent"]
    assert about == "entry hourly"
    assert what == (
        "5 ticks without a success since 2026-03-01 12:00:01 UTC, 4 failed, 1 skipped; the last one skipped: locked"
    )
    assert found(facts(*ticks, silent_after=6)) == found(facts(*ticks[:-3], now=HOUR)) == {}
    assert found(facts(*ticks, silent_after=0)) == {}


def test_an_entry_without_a_success_for_days_is_silent_after_fewer_ticks():
    ticks = [succeeds(1, 0), fails(2, DAY), fails(3, 2 * DAY)]
    assert found(facts(*ticks, now=2 * DAY - 60)) == {}
    for after in (0, 5):
        _, what = found(facts(*ticks, now=2 * DAY + HOUR, silent_after=after))["entry-silent"]
        assert what.startswith(
            "2 ticks without a success since 2026-03-01 12:00:01 UTC, 2 failed; the last one failed: Value"
        )
    # once is none
    assert found(facts(*ticks[:2], now=3 * DAY)) == {}


def test_an_entry_whose_ticks_nobody_runs_is_silent_if_its_task_would_tell():
    ticks = [published(run, run * 60, entry="hourly") for run in range(1, 7)]
    assert found(facts(*ticks)) == {}
    known = replace(facts(*ticks), tasks=(replace(FINE.tasks[0], name="jobs.report"),))
    what = found(known)["entry-silent"][1]
    assert "(the journal knows none before), 6 queued; the last one queued" in what


@pytest.mark.parametrize(
    "ticks",
    [
        # it succeeded again, and late: what was due before that is of no interest
        [*(fails(run, run * 60) for run in range(1, 9)), succeeds(9, 540)],
        [published(run, run * 60, entry="hourly") for run in range(2, 9)] + succeeds(1, 0, took=600),
        # what was skipped for a run that goes on
        [
            published(1, 0, entry="hourly"),
            of_run("task_started", 0.2, 1, 0, entry="hourly"),
            *(skipped(run, run * 60) for run in range(2, 9)),
        ],
        # nothing was published
        [record("tick_missed", 400, entry="hourly", count=9, last_due=at(300), task_name="jobs.report")],
        # no entry any more
        [ran(run, run * 60, status="failed", entry="gone") for run in range(1, 9)],
        # too new
        [fails(run, HOUR - 60 + run) for run in range(2, 9)],
    ],
)
def test_what_is_no_silence(ticks):
    assert "entry-silent" not in found(facts(*ticks))


def test_a_beat_whose_clock_is_fast_makes_no_entry_silent():
    # what is due at five past by its clock has ended a minute past by the store's
    ticks = [
        each
        for run in range(1, 13)
        for each in (
            record("tick_published", run * 60 + 0.1, due=at(run * 60 + 300), late=0.1, **of_tick(run)),
            record("task_succeeded", run * 60 + 1, due=at(run * 60 + 300), execution_id=f"{run}", **of_tick(run)),
        )
    ]
    assert found(facts(ticks)) == {}
    bad = [
        record("tick_published", HOUR - 300 + run, due=at(HOUR + run), late=0.1, **of_tick(run))
        for run in range(13, 19)
    ]
    assert "entry-silent" in found(facts(ticks, bad))


def of_tick(run):
    return {"entry": "hourly", "run": run, "task_id": f"{run}", "task_name": "jobs.report"}


def test_an_entry_that_only_the_beats_know_is_judged_too():
    known = facts(*(fails(run, run * 60) for run in range(1, 9)))
    known.entries = {}
    assert "entry-silent" in found(known)
    known.beats = Beats([replace(BEAT, entries=frozenset({"once"}))], [], 0)
    assert found(known) == {}


def overlapping(took: float, interval: float = 60) -> list:
    """Every second tick is skipped."""
    return [
        each
        for run in range(1, 13, 2)
        for each in (
            *succeeds(run, run * interval, took),
            *skipped(run + 1, (run + 1) * interval),
        )
    ]


def test_an_entry_that_is_due_before_its_run_has_ended_says_both_numbers():
    told = found(facts(overlapping(90)))
    assert told == {
        "always-skipped": (
            "entry hourly",
            "a run takes 1 min 30 s, the median of 6, and it is due every 1 min 0 s: 6 of the last 12 ticks were skipped",
        )
    }
    # a run that is shorter, one that was skipped for another's lock; and no run has met another
    assert found(facts(overlapping(30))) == {}
    assert found(facts([each for run in range(1, 13) for each in succeeds(run, run * 60, 90.0)])).keys() <= {"busy-key"}


def test_an_interval_that_was_made_longer_is_no_finding_any_more():
    after = [succeeds(run, run * 60 + HOUR, 90) for run in range(13, 64, 2)]
    later = [each for tick in after for each in tick]
    assert "always-skipped" not in found(facts(overlapping(90), later, now=3 * HOUR))


# -- locks -------------------------------------------------------------------------------------------------------------


def test_a_key_that_is_held_more_than_not_says_for_whom_and_what_was_skipped():
    runs = [succeeds(run, run * 100, 95.0) for run in range(1, 13)]
    others = [skipped(run, run * 200 + 10, entry="once", task_name="jobs.mail") for run in range(1, 6)]
    last = succeeds(99, 1300, 1.0)
    about, what = found(facts(*runs, *others, last, silent_after=99))["busy-key"]
    assert about == "key jobs:report"
    assert what == (
        "95% of the last 20 min 1 s it was held, by 13 runs of jobs.report; 5 runs of jobs.mail were skipped for it"
    )
    assert "none was skipped for it" in found(facts(*runs, last))["busy-key"][1]


@pytest.mark.parametrize(
    "runs",
    [
        [succeeds(run, run * 100, 75.0) for run in range(1, 13)],
        # the time is too short to tell
        [succeeds(run, run * 10, 9.9) for run in range(1, 31)],
        # in other places one key is several
        [succeeds(run, run * 100, 95.0, driver=("redis", "memory")[run % 2]) for run in range(1, 13)],
        # one run
        [succeeds(1, 0, 2000.0)],
        # runs beside each other hold it once
        [succeeds(run, 0, 600.0) for run in range(1, 13)] + [succeeds(99, 1200)],
        # nobody knows for how long
        [published(1, 0, entry="hourly"), of_run("task_started", 0.2, 1, 0, entry="hourly"), published(2, 2000)],
    ],
)
def test_what_is_no_busy_key(runs):
    assert found(facts(*runs)) == {}


def test_a_run_without_an_end_holds_its_key_until_the_last_that_met_it():
    runs = [published(1, 0, entry="hourly"), of_run("task_started", 0.2, 1, 0, entry="hourly")]
    met = [skipped(run, run * 600) for run in range(2, 4)]
    assert "100% of the last 30 min 0 s" in found(facts(runs, *met))["busy-key"][1]


# -- clocks ------------------------------------------------------------------------------------------------------------


def by_clock(ahead: float, beat: str = "one", count: int = 9, begin: int = 1) -> list:
    """Ticks that a beat published a tenth of a second after they were due by its own clock."""
    return [
        record(
            "tick_published",
            run * 60 + 0.1 - ahead,
            entry="hourly",
            run=run,
            due=at(run * 60),
            late=0.1,
            hostname=beat,
            task_name="jobs.report",
        )
        for run in range(begin, begin + count)
    ]


@pytest.mark.parametrize(("ahead", "told"), [(7.2, "7.2 s ahead of"), (-90, "90.0 s behind")])
def test_a_beat_whose_clock_is_not_the_stores_is_told(ahead, told):
    (finding,) = examine(facts(by_clock(ahead)))
    assert (finding.kind.name, finding.about) == ("clock-skew", "beat one")
    assert finding.what == f"its clock is {told} the store's, by its last 9 ticks"


def test_clocks_that_differ_little_were_set_or_are_of_beats_that_are_gone_are_no_finding():
    assert found(facts(by_clock(0.9))) == {}
    assert found(facts(by_clock(9, count=4))) == {}
    assert found(facts(by_clock(9), by_clock(0, count=20, begin=10))) == {}
    assert found(facts(by_clock(9, beat="gone"))) == {}
    # ticks that are late are no clock's fault
    assert (
        found(facts([published(run, run * 60, entry="hourly", late=40, hostname="one") for run in range(1, 9)])) == {}
    )


def test_one_tick_that_is_written_as_nonsense_is_no_clock():
    assert (
        found(facts(by_clock(0), record("tick_published", 30, entry="hourly", due=at(-9e9), late=1.0, hostname="one")))
        == {}
    )


# -- the journal itself ------------------------------------------------------------------------------------------------


def test_a_journal_that_is_off_or_cannot_be_read_is_the_only_finding_of_it():
    assert found(facts(keep=0, trouble="no")) == {"journal-off": ("the journal", "lockbeat_journal is 0")}
    assert found(facts(trouble="NOPERM xrevrange")) == {"journal-unreadable": ("the journal", "NOPERM xrevrange")}
    assert found(replace(FINE, journal=None)) == found(facts()) == {}


def test_a_journal_without_what_the_beats_publish_is_not_written():
    record_at_10 = published(1, 10, entry="hourly")
    assert found(facts(now=300, last_published=at(200)))["journal-not-written"] == (
        "the journal",
        "it is empty, and the last tick was published at 2026-03-01 12:03:20 UTC",
    )
    what = found(facts(record_at_10, now=300, last_published=at(200)))["journal-not-written"][1]
    assert what.startswith("its newest record is of 2026-03-01 12:00:10 UTC, and the last")
    # it may yet be written, it is, and nobody is there to write it
    assert found(facts(record_at_10, now=300, last_published=at(260))) == {}
    assert found(facts(record_at_10, now=300, last_published=at(40))) == {}
    none = replace(facts(now=300, last_published=at(200)), beats=Beats([], [], 0))
    assert "journal-not-written" not in found(none)


def full(count: int, every: float) -> list:
    return [record("task_succeeded", number * every) for number in range(count)]


def test_a_journal_that_is_full_and_short_says_how_many_make_a_day():
    what = found(facts(full(1000, 2.4), keep=1000))["journal-short"][1]
    assert what == "1,000 records are the last 39 min 58 s here; a day has some 37,000"
    assert found(facts(full(999, 2.4), keep=1000)) == {}
    assert found(facts(full(1000, 90), keep=1000)) == {}


def test_of_a_journal_that_is_larger_than_what_is_read_the_rest_is_reckoned():
    records = full(READ_AT_MOST, 0.24)
    assert "100,000 are kept, and a day has some" in found(facts(records, keep=100_000))["journal-short"][1]
    assert found(facts(records, keep=400_000)) == {}


def test_records_that_were_dropped_or_cannot_be_read_are_counted():
    drops = [
        record("records_dropped", 5, count=1200, hostname="w1"),
        record("records_dropped", 9, count=1, hostname="b"),
    ]
    garbage = [record("unreadable", -NOON.timestamp()), record("unreadable", 7)]
    told = found(facts(drops, garbage))
    assert told == {
        "records-dropped": ("the journal", "1,201 records were dropped by b, w1, the last at 2026-03-01 12:00:09 UTC"),
        "records-unreadable": ("the journal", "2 of 4 records cannot be read, the last is of 2026-03-01 12:00:07 UTC"),
    }
    assert found(facts(full(9, 1))) == {}
    # nothing else is known of a journal that is full of it
    assert found(facts([record("unreadable", 1)] * 9, keep=9)).keys() == {"records-unreadable"}


def test_each_kind_is_tried_here_or_where_the_others_are():
    here = {"entry-silent", "always-skipped", "busy-key", "journal-off", "journal-unreadable", "journal-not-written"}
    here |= {"journal-short", "records-dropped", "records-unreadable"}
    assert {kind for kind, _, _ in FOUND} | here == set(KINDS)
    assert here.isdisjoint(kind for kind, _, _ in FOUND)


# -- gathering ---------------------------------------------------------------------------------------------------------


SECRET = "s3cret"


@pytest.fixture(params=["redis", "memory"])
def app(request, server, tmp_path):
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update(
        lockbeat_memory_path=str(tmp_path / "memory"),
        lockbeat_driver=request.param,
        lockbeat_redis_url=server.url,
        broker_transport_options={"password": SECRET},
        beat_schedule={"hourly": {"task": "jobs.report", "schedule": 60}},
    )

    @app.task(base=LockedTask, name="jobs.report")
    def report(): ...

    return app


def written(app, *events: tuple[str, dict]) -> None:
    journal = journal_of(app)
    for event, fields in events:
        journal.put(event, fields, {})
    assert journal.write(within=10)


def test_the_journal_is_read_from_the_store_without_passwords(app):
    failed = {
        "schedule": "hourly",
        "task_name": "jobs.report",
        "error_message": f"no user:{SECRET}@host",
        "task_id": "1",
    }
    written(app, ("tick_published", {"entry": "hourly"}), ("task_failed", failed))
    store = home_store_of(app)
    hour_ago = datetime.now(timezone.utc) - timedelta(hours=1)
    store.beats.join("shop", "one")
    store.beats.list_entries("shop", "one", [("hourly", EntryState(3, hour_ago.isoformat()))], complete=True)
    journal = gather(app).journal
    assert [each.event for each in journal.records] == ["tick_published", "task_failed"]
    assert journal.records[1].error_message == "no user:**@host"
    assert abs(datetime.now(timezone.utc) - journal.now) < timedelta(minutes=5)
    assert journal.last_published == hour_ago
    assert (journal.keep, journal.silent_after, journal.trouble) == (10_000, 5, None)


def test_no_more_is_read_than_is_judged(app, monkeypatch):
    monkeypatch.setattr("celery_lockbeat.insight.doctor.facts.READ_AT_MOST", 3)
    written(app, *(("tick_published", {"entry": "hourly", "run": run}) for run in range(9)))
    assert [each.run for each in gather(app).journal.records] == [6, 7, 8]


def test_a_journal_that_is_off_is_not_asked_for(app, monkeypatch):
    app.conf.lockbeat_journal = 0
    monkeypatch.setattr(JournalStore, "records", None)
    assert gather(app).journal.keep == 0


@pytest.mark.parametrize("app", ["redis"], indirect=True)
@pytest.mark.parametrize("trouble", [RuntimeError(f"what is this {SECRET}"), None])
def test_a_journal_that_cannot_be_read_is_a_finding_beside_the_others(app, server, monkeypatch, trouble):
    if trouble is not None:
        monkeypatch.setattr(RedisJournal, "records", lambda *_args, **_options: (_ for _ in ()).throw(trouble))
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "limited", "on", ">pw", "~*", "&*", "+@all", "-xrange", "-xrevrange")
        app.conf.lockbeat_redis_url = server.url.replace("://", "://limited:pw@")
        told = {each.kind.name: each.what for each in examine(gather(app))}
        client.execute_command("ACL", "DELUSER", "limited")
    assert ("what is this **" if trouble else "xrevrange") in told["journal-unreadable"]
    assert "persistence" in told


@pytest.mark.parametrize("app", ["redis"], indirect=True)
def test_garbage_in_the_stream_is_counted(app, server):
    written(app, ("tick_published", {"entry": "hourly"}))
    with server.client() as client:
        (key,) = [key for key in client.scan_iter() if client.type(key) in (b"stream", "stream")]
        client.xadd(key, {"r": "}{", "t": "x"})
        client.xadd(key, {"who": "are you"})
    assert {each.kind.name for each in examine(gather(app))} >= {"records-unreadable"}

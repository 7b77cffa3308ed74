"""What the commands make of times, tables and a journal that they are asked about: without processes."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import click
import pytest
from celery.bin.base import CLIContext
from celery.schedules import crontab

from celery_lockbeat import ConfigurationError, LockedTask
from celery_lockbeat.cli import history, why
from celery_lockbeat.cli.journals import refuse_unknown
from celery_lockbeat.cli.output import printable, table_lines
from celery_lockbeat.insight.journals import audited, calendars_of, story_since
from celery_lockbeat.insight.times import moment_of, since_of
from celery_lockbeat.journal import writer
from celery_lockbeat.journal.records import encode
from celery_lockbeat.journal.writer import Journal
from celery_lockbeat.schedules import Cron
from celery_lockbeat.stores import home_store_of

# -- times -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def berlin(make_app):
    return make_app(timezone="Europe/Berlin")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("24h", 86400), ("7d", 604800), ("1.5h", 5400)]
)
def test_since_takes_how_long_ago(berlin, text, seconds):
    assert abs(since_of(text, berlin).timestamp() - (time.time() - seconds)) < 5


def test_times_are_in_the_apps_timezone_where_they_name_none(berlin):
    assert since_of("2026-03-01T03:00", berlin) == datetime(2026, 3, 1, 2, tzinfo=timezone.utc)
    assert since_of("2026-03-01T03:00Z", berlin) == datetime(2026, 3, 1, 3, tzinfo=timezone.utc)
    assert moment_of("2026-03-01", berlin) == datetime(2026, 2, 28, 23, tzinfo=timezone.utc)


@pytest.mark.parametrize("text", ["03:00", "3:00", "23:59:59", "00:00"])
def test_a_time_of_the_clock_is_the_last_such(berlin, text):
    at, now = moment_of(text, berlin), datetime.now(timezone.utc)
    assert now - timedelta(days=1, hours=1) < at <= now
    hour, minute = map(int, text.split(":")[:2])
    local = at.astimezone(berlin.timezone)
    assert (local.hour, local.minute) == (hour, minute)


def test_ago_is_understood(berlin):
    assert abs(moment_of("10m ago", berlin).timestamp() - (time.time() - 600)) < 5


@pytest.mark.parametrize("text", ["yesterday", "", "24", "3 weeks", "25:00", "9999-01-01", "9" * 30 + "d", "-1h"])
def test_no_time_and_one_to_come_are_refused_with_what_is_allowed(berlin, text):
    with pytest.raises(ConfigurationError, match="allowed: 90s, 10m, 24h, 7d, or a time in ISO 8601"):
        since_of(text, berlin)
    with pytest.raises(ConfigurationError, match=r"allowed: a time in ISO 8601 .*, 03:00 \(the last one\), or 10m ago"):
        moment_of(text, berlin)


# -- tables ------------------------------------------------------------------------------------------------------------


def test_a_narrow_table_leaves_out_what_can_be_spared_and_then_cuts_the_longest():
    head, row = ("due", "why", "worker", "beat"), ("12:00", "w" * 60, "celery@w1", "beat-1")
    assert [len(line) for line in table_lines(head, [row], None)] == [5 + 60 + 9 + 4 + 6, 5 + 60 + 9 + 6 + 6]
    lines = table_lines(head, [row], 80, spare=("beat", "worker"))
    assert (lines[0].split(), len(lines[1])) == (["due", "why", "worker"], 78)
    lines = table_lines(head, [row], 30, spare=("beat", "worker"))
    assert (lines[0].split(), lines[1]) == (["due", "why"], "12:00  " + "w" * 22 + "…")
    assert table_lines(head, [], 80) == ["due  why  worker  beat"]


def test_what_a_terminal_would_obey_is_not_printed():
    assert printable("no\nsuch \x1b[31mcustomer\ud800") == "no such  [31mcustomer "
    assert table_lines(("a",), [["x\ny"]], None)[1] == "x y"


# -- questions ---------------------------------------------------------------------------------------------------------


class Asked:
    """An app whose journal has what is written here, and the answers about it. Times are in hours before the last full hour."""

    def __init__(self, app) -> None:
        self.app = app
        self.now = datetime.now(timezone.utc)
        self.hour = self.now.replace(minute=0, second=0, microsecond=0)
        self._batches = 0

        @app.task(base=LockedTask, name="jobs.report")
        def report() -> None: ...

    def write(self, event: str, hours: float, **fields: object) -> None:
        self._batches += 1
        ago = (self.now - self.hour).total_seconds() + hours * 3600
        texts = [encode(event, fields, 0)]
        journal = home_store_of(self.app).journal
        journal._database.wall = lambda: self.now.timestamp() - ago
        journal.append(self.app.main, f"b{self._batches}", texts, keep=1000)

    def tick(self, run: int, hours: float, **more: object) -> None:
        due = (self.hour - timedelta(hours=hours)).isoformat()
        who = {"schedule": "report", "task_name": "jobs.report", "tick": due, "task_id": f"t{run}"}
        self.write("tick_published", hours, **{**who, "run": run, "late": 0.1, "hostname": "beat-1", **more})
        ran = {**who, "execution_id": f"x{run}", "hostname": "celery@w1", "duration_ms": 100.0}
        self.write("task_succeeded", hours, **ran)

    def answer(self, hours: float, entry: str = "report"):
        moment = self.hour - timedelta(hours=hours)
        story = story_since(self.app, moment - why.BEFORE)
        ticks = [tick for tick in story.ticks if tick.entry == entry]
        return why._Question(self.app, entry, moment, story, ticks).answer()


@pytest.fixture
def asked(make_app):
    schedule = {"report": {"task": "jobs.report", "schedule": crontab(minute=0)}}
    return Asked(make_app(lockbeat_driver="memory", beat_schedule=schedule, task_default_queue="q"))


def test_the_tick_of_a_time_is_the_one_that_is_told_of(asked):
    for run, hours in ((7, 4), (8, 3), (9, 2), (10, 1), (11, 0)):
        asked.tick(run, hours)
    answer = asked.answer(3)
    assert (answer.is_known, answer.tick.run) == (True, 8)
    assert answer.text.startswith(
        f"The tick of 'report' at {asked.hour - timedelta(hours=3):%Y-%m-%d %H:%M:%S} UTC was"
    )
    # it is due at full hours
    answer = asked.answer(2.4)
    assert "was not due at" in answer.text
    assert "the nearest tick is this one. The tick of 'report' at" in answer.text


def test_a_tick_that_is_lacking_is_no_other_tick(asked):
    for run, hours in ((7, 3), (9, 1), (10, 0)):
        asked.tick(run, hours)
    answer = asked.answer(2)
    assert not answer.is_known
    assert "Of 'report' a tick between" in answer.text
    assert "run 8: claimed, and nobody has recorded what became of it" in answer.text


def test_a_tick_of_an_interval_that_is_lacking_is_not_the_one_before(asked):
    for run, seconds in ((1, 90), (2, 60), (4, 0), (5, -30)):
        asked.tick(run, 1 + seconds / 3600, schedule="often")
    answer = asked.answer(1 + 30 / 3600, "often")
    assert not answer.is_known
    assert "run 3: claimed" in answer.text
    # near one that is there, that is meant
    assert asked.answer(1 + 75 / 3600, "often").tick.run in (1, 2)


def test_what_no_beat_has_claimed_is_told_by_the_schedule(asked):
    for run, hours in ((7, 3), (8, 1), (9, 0)):
        asked.tick(run, hours)
    answer = asked.answer(2)
    assert not answer.is_known
    assert "by its schedule as it is now, 0 * * * *" in answer.text


def test_a_time_at_which_records_were_dropped_is_not_known(asked):
    for run, hours in ((7, 3), (9, 1), (10, 0)):
        asked.tick(run, hours)
    asked.write("records_dropped", 1.5, count=12, hostname="beat-1", duration_ms=3600_000.0)
    answer = asked.answer(2)
    assert not answer.is_known
    assert "is not known: 12 records were dropped by beat-1, whose store was away, until" in answer.text
    ledger = audited(
        asked.app, story_since(asked.app, asked.hour - timedelta(hours=4)), asked.now - timedelta(hours=4), asked.now
    )
    assert ([account.unknown for account in ledger.accounts], ledger.gaps) == ([1], [])


def test_a_time_before_the_journal_and_one_before_the_entry_are_told_apart(asked):
    asked.write("task_succeeded", 5, task_name="jobs.report", execution_id="x", duration_ms=1.0)
    for run, hours in ((1, 2), (2, 1), (3, 0)):
        asked.tick(run, hours)
    assert "is not known: the journal reaches back to" in asked.answer(8).text
    answer = asked.answer(3.5)
    assert answer.is_known
    assert "did not exist at" in answer.text
    assert "or was not due yet; its first tick is this one" in answer.text


def test_all_that_is_missed_at_once_answers_for_each_of_it(asked):
    asked.tick(7, 8, late=5 * 3600)
    last = (asked.hour - timedelta(hours=3)).isoformat()
    asked.write("tick_missed", 3, schedule="report", count=5, last_due=last, hostname="beat-1", reason="nobody")
    for run, hours in ((8, 2), (9, 1), (10, 0)):
        asked.tick(run, hours)
    answer = asked.answer(5)
    assert answer.is_known
    assert answer.text.startswith("5 ticks of 'report' after that of")
    assert answer.text.endswith(": nobody.")
    # the tick that stands for them is one by itself
    assert asked.answer(8).tick.run == 7


def test_ten_thousand_records_are_shown_within_a_second(asked, capsys):
    texts = []
    for n in range(5000):
        who = {"schedule": "report", "task_name": "jobs.report", "task_id": f"t{n}", "hostname": "host"}
        who["tick"] = (asked.now - timedelta(seconds=15 * (5000 - n))).isoformat()
        texts.append(encode("tick_published", {**who, "run": n, "late": 0.1}, 15 * (5000 - n)))
        texts.append(encode("task_succeeded", {**who, "execution_id": f"x{n}", "duration_ms": 9.5}, 15 * (5000 - n)))
    journal = home_store_of(asked.app).journal
    for at in range(0, len(texts), 500):
        journal.append(asked.app.main, f"many{at}", texts[at : at + 500], keep=20_000)
    context = CLIContext(app=asked.app, no_color=True, workdir=None)
    began = time.process_time()
    history.history.main(args=["--since", "7d"], obj=context, standalone_mode=False)
    took = time.process_time() - began
    assert len(capsys.readouterr().out.splitlines()) == 5002
    assert took < 2  # 0.6 on an idle machine


def test_a_name_that_is_near_one_is_told():
    told = []
    ctx = SimpleNamespace(obj=SimpleNamespace(error=told.append), exit=pytest.fail)
    refuse_unknown(ctx, "report", ["report"])
    with pytest.raises(click.exceptions.Exit):
        refuse_unknown(click.Context(why.why, obj=ctx.obj), "reprot", ["report", "sync"])
    assert told == ["'reprot' is no entry and no task that the app or its journal knows; near it: report"]


def test_without_a_journal_there_is_no_answer(make_app):
    with pytest.raises(ConfigurationError, match="lockbeat_journal is 0"):
        story_since(make_app(lockbeat_journal=0), datetime.now(timezone.utc))


def test_calendars_are_of_what_is_certain(make_app):
    app = make_app(beat_schedule={"a": {"task": "t", "schedule": crontab(hour=3)}, "b": {"task": "t", "schedule": 10}})
    calendars = calendars_of(app)
    assert (calendars["a"].text, calendars["a"].by_the_clock) == ("* 3 * * *", True)
    assert (calendars["b"].text, calendars["b"].by_the_clock) == ("every 10 s", False)
    redbeat = make_app(
        beat_scheduler="celery_lockbeat.contrib.redbeat:LockedRedBeatScheduler", beat_schedule=app.conf.beat_schedule
    )
    assert calendars_of(redbeat) == {}


def test_calendars_go_by_what_the_setting_says_of_entries(make_app):
    noon = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
    app = make_app(
        beat_schedule={"a": {"task": "t", "schedule": crontab()}, "b": {"task": "t", "schedule": Cron("* * * * *")}},
        lockbeat_entries={
            "*": {"end": noon, "jitter": 30, "max_runs": 5},
            "b": {"start": noon - timedelta(minutes=3), "jitter": 0},
        },
    )
    calendars, hour = calendars_of(app), timedelta(hours=1)
    assert calendars["a"].dues(noon - hour, noon + hour) == (59, noon - timedelta(minutes=1))
    assert calendars["b"].dues(noon - hour, noon + hour) == (3, noon - timedelta(minutes=1))
    assert [(each.put_off.total_seconds(), each.max_runs) for each in calendars.values()] == [(30, 5), (0, 5)]


def test_what_a_process_drops_says_since_when(make_app, monkeypatch):
    app = make_app(lockbeat_driver="memory")
    monkeypatch.setattr(writer, "AT_MOST", 3)
    journal, clock = Journal(app, 100), [50.0]
    monkeypatch.setattr(writer, "monotonic", lambda: clock[0])
    journal._running = True  # no thread
    for _ in range(5):
        journal.put("task_started", {"task_name": "t"})
        clock[0] += 10
    assert journal.write()
    records = story_since(app, datetime.now(timezone.utc) - timedelta(hours=1)).records
    (dropped,) = [each for each in records if each.event == "records_dropped"]
    assert dropped.count == 2
    assert (dropped.at - dropped.started).total_seconds() == pytest.approx(50, abs=0.1)

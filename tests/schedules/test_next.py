"""``celery lockbeat next``: when entries will be due, in their zone and in UTC, with a note at changes of the clocks."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest
from celery.bin.celery import celery as command_line
from celery.schedules import crontab, schedule
from click.testing import CliRunner

from celery_lockbeat import cron, interval, timeout
from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.insight.times import any_moment_of
from celery_lockbeat.options import written
from celery_lockbeat.schedules import Cron, Every, Once
from celery_lockbeat.stores import home_store_of, name_of
from celery_lockbeat.stores.base import EntryState

UTC = timezone.utc


@pytest.fixture
def driver() -> str:
    return "memory"


@pytest.fixture
def ask(app, monkeypatch):
    """Run ``next`` over an app with these entries."""

    def run(*arguments: str, status: int = 0, **schedules: object):
        app.conf.update(timezone="Europe/Berlin", result_expires=None)
        app.conf.beat_schedule = {name: {"task": name, "schedule": when} for name, when in schedules.items()}
        monkeypatch.setattr("celery.bin.celery.find_app", lambda *_args, **_more: app)
        done = CliRunner().invoke(command_line, ["-A", "shop", "lockbeat", "next", *arguments])
        assert done.exit_code == status, done.output
        return json.loads(done.stdout) if "--json" in arguments else done.output.splitlines()

    return run


def test_it_tells_the_next_ones_of_an_entry_in_its_zone_and_in_utc_with_a_note_where_the_clocks_are_changed(ask):
    assert ask("report", "--count", "3", "--at", "2026-03-27T12:00", report=Cron("30 2 * * *")) == [
        "due                           UTC             note",
        "Sat 2026-03-28 02:30:00 CET   03-28 01:30:00",
        "Sun 2026-03-29 03:00:00 CEST  03-29 01:00:00  clock 02:00 -> 03:00",
        "Mon 2026-03-30 02:30:00 CEST  03-30 00:30:00",
    ]
    assert ask("q", "--count", "3", "--at", "2026-10-25T02:20+02:00", q=Cron("30,45 * * * *"))[1:] == [
        "Sun 2026-10-25 02:30:00 CEST  10-25 00:30:00",
        "Sun 2026-10-25 02:45:00 CEST  10-25 00:45:00",
        "Sun 2026-10-25 02:30:00 CET   10-25 01:30:00  clock 03:00 -> 02:00",
    ]


def test_without_an_entry_it_tells_the_next_ones_of_all_in_their_order_each_in_its_zone(ask):
    found = ask(
        *("--json", "--count", "4", "--at", "2026-06-01T00:00Z"),
        hourly=crontab(minute=0),
        tokyo=Cron("30 9 * * *", timezone="Asia/Tokyo"),
        once=Once(at=datetime(2026, 6, 1, 0, 45, tzinfo=UTC)),
        boot=Once(after=5),
        over=Once(at=datetime(2026, 5, 1, tzinfo=UTC)),
    )
    assert [(each["entry"], each["due"]) for each in found] == [
        ("tokyo", "2026-06-01T09:30:00+09:00"),
        ("once", "2026-06-01T02:45:00+02:00"),
        ("hourly", "2026-06-01T03:00:00+02:00"),
        ("hourly", "2026-06-01T04:00:00+02:00"),
        ("boot", None),
        ("over", None),
    ]
    assert [each["note"] for each in found[4:]] == ["once, 5 s after a cold start of the beats", "not due any more"]
    assert found[0]["utc"] == "2026-06-01T00:30:00+00:00"
    assert found[0]["zone"] == "Asia/Tokyo"


def test_the_name_of_an_entry_decides_h_and_its_jitter_is_told(ask):
    when = Cron("H H * * *", jitter=600)
    first, second = ask("--json", "--at", "2026-06-01", "--count", "2", one=when, other=when)
    assert first["due"] != second["due"]
    bound = when.bound_to(first["entry"])
    due = datetime.fromisoformat(first["due"])
    assert due == bound.next_due(due - timedelta(seconds=1))
    assert first["note"] == f"+{written(round(bound.policy.offset(first['entry'], due), 1))} s"


def test_what_lockbeat_entries_says_counts(ask, app):
    app.conf.lockbeat_entries = {
        "report-*": {"start": datetime(2026, 6, 2, tzinfo=UTC), "end": datetime(2026, 6, 2, 2, tzinfo=UTC)},
        "*-own": {"jitter": 600},
    }
    ours, theirs = Cron("0 * * * *", timezone="UTC"), crontab(minute=0)
    told = ask("--json", "--at", "2026-06-01T00:00Z", "--count", "9", **{"report-own": ours, "report-x": theirs})
    at = [(each["entry"], datetime.fromisoformat(each["due"]).astimezone(UTC).hour) for each in told]
    assert at == [("report-own", 0), ("report-x", 0), ("report-own", 1), ("report-x", 1)]
    assert [bool(each["note"]) for each in told] == [True, False, True, False]


def test_an_interval_goes_on_from_its_last_tick_which_the_store_knows(ask, app):
    at = "2026-06-01T10:00:00+00:00"
    intervals = {
        "ours": Every(3600),
        "celerys": schedule(3600),
        "grid": Every(3600, start=datetime(2026, 6, 1, tzinfo=UTC)),
    }
    told = ask("--json", "--count", "3", "--at", at, **intervals)
    assert {each["entry"]: each["note"] for each in told} == {
        "ours": "if counted from --at on",
        "celerys": "if counted from --at on",
        "grid": None,
    }
    states = [(name, EntryState(4, "2026-06-01T07:15:00+00:00")) for name in ("ours", "celerys")]
    store = home_store_of(app)
    store.beats.join(name_of(app), "beat-1")
    store.beats.list_entries(name_of(app), "beat-1", states, removed=[], complete=True)
    told = ask("--json", "--count", "3", "--at", at, **intervals)
    assert {each["entry"]: each["utc"][11:16] for each in told} == {
        "ours": "10:15",
        "celerys": "10:15",
        "grid": "11:00",
    }
    assert {each["note"] for each in told} == {None}


def test_entries_of_decorators_are_known(ask, app):
    def nothing(): ...

    cron("0 * * * *", name="hourly", app=app)(nothing)
    interval(60, name="sync", app=app, jitter=5)(nothing)
    timeout(5, name="boot", app=app)(nothing)
    lines = ask("--count", "100")
    assert any("hourly" in line for line in lines)
    assert lines[-1] == "boot: once, 5 s after a cold start of the beats"


def test_each_line_fits_into_80_columns_for_one_entry(ask):
    lines = ask(
        "x",
        "--count",
        "400",
        "--at",
        "2026-10-24T23:00",
        x=Cron("* * * * *", timezone="Australia/Lord_Howe", jitter=59),
    )
    assert max(map(len, lines)) <= 80
    lines = ask("y", "--count", "400", "--at", "2026-10-24T23:30", y=Cron("* * * * *", jitter=59))
    assert any("second 02:59, +" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_an_unknown_entry_is_refused_with_those_that_are_like_it(ask):
    (line,) = ask("raport", status=1, report=Cron("0 * * * *"))
    assert "'raport' is no entry whose schedule this app knows; near it: report" in line


def test_a_wrong_time_is_refused_with_what_is_allowed(ask):
    (line,) = ask("--at", "yesterday", status=1)
    assert "--at is 'yesterday'; allowed: now, 2h (from now), 10m ago, 03:00 (today's), or a time in ISO 8601" in line


def test_a_moment_may_be_past_or_to_come(make_app):
    app = make_app(timezone="Europe/Berlin")
    now = datetime.now(UTC)
    for text, seconds in (("now", 0), ("2h", 7200), ("1.5d", 1.5 * 86400), ("10m ago", -600)):
        assert abs((any_moment_of(text, app) - now).total_seconds() - seconds) < 5
    assert any_moment_of("2036-03-01", app) == datetime(2036, 2, 29, 23, tzinfo=UTC)
    assert any_moment_of("23:59", app).astimezone(app.timezone).date() == now.astimezone(app.timezone).date()
    with pytest.raises(ConfigurationError, match="allowed: now"):
        any_moment_of("99999999d", app)


def test_what_has_had_its_runs_is_due_no_more_and_what_has_not_so_often(ask, app):
    beats, at = home_store_of(app).beats, ("--at", "2026-06-01T00:00Z", "--count", "5")
    beats.join(name_of(app), "a")
    beats.list_entries(name_of(app), "a", [("e", EntryState(2, "2026-05-31T23:00:00+00:00"))], complete=True)
    assert len(ask("e", "--json", *at, e=Cron("0 * * * *", max_runs=4))) == 2
    assert ask("e", *at, e=Cron("0 * * * *", max_runs=2)) == ["e: not due any more: it has had 2 runs (max_runs)"]

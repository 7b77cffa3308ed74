"""The commands that steer, without processes: what they refuse, ask, do and show."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta, timezone

import pytest
from celery.bin.base import CLIContext
from celery.schedules import crontab
from click.testing import CliRunner

from celery_lockbeat import LockedTask, journal, schedules_of
from celery_lockbeat.cli import lockbeat
from celery_lockbeat.exceptions import ConfigurationError, LockbeatError
from celery_lockbeat.insight.times import coming_of
from celery_lockbeat.journal.writer import journal_of
from celery_lockbeat.stores import home_store_of, name_of
from celery_lockbeat.stores.base import Claim, EntryState


class Terminal:
    """An app with two entries, and the commands on it."""

    def __init__(self, app):
        self.app = app
        app.conf.beat_schedule = {
            "second": {"task": "report", "schedule": 1.0, "args": (1,), "kwargs": {"dry": True}},
            "minute": {"task": "report", "schedule": crontab()},
        }

        @app.task(base=LockedTask, name="report")
        def report(*args, **kwargs):
            pass

        self.store = home_store_of(app)

    def lists(self, *names):
        self.store.beats.join(name_of(self.app), "a")
        self.store.beats.list_entries(
            name_of(self.app), "a", [(name, EntryState(0, "t")) for name in names], complete=True
        )

    def run(self, *words, answer=None):
        context = CLIContext(self.app, no_color=True, workdir=None)
        done = CliRunner().invoke(lockbeat, list(words), obj=context, input=answer)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    def told(self, *words):
        done = self.run(*words, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    def records(self):
        journal_of(self.app).write(5.0)
        return journal.read(self.app)


@pytest.fixture
def terminal(make_app):
    return Terminal(make_app(lockbeat_driver="memory"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pause", "nonsense"], "'nonsense' names no one entry: neither the beats nor the app know it"),
        (["pause", "secnd"], "near it: second"),
        (["pause"], "give one of ENTRY, --match GLOB and --all"),
        (["pause", "second", "--all"], "give one of ENTRY, --match GLOB and --all"),
        (["pause", "--match", "x*", "--yes"], r"no entry matches 'x\*'"),
        (["pause", "second", "--until", "yesterday"], "--until is 'yesterday'; allowed: 2h, 30m or 1d from now"),
        (["backfill", "second", "1h", "--yes"], "give both FROM and TO, or neither"),
        (["backfill", "second", "now", "2d ago", "--dry-run"], "allowed: a time after since"),
        (
            ["backfill", "second", "3650d", "now", "--dry-run"],
            "cannot be told; allowed: .*at most 100000 ticks at once",
        ),
        (["backfill", "second", "1h", "now", "--yes"], "no beat that runs lists 'second'"),
        (["backfill", "second", "1h", "now", "--cancel"], "give no times with it"),
        (["run", "second"], "'second' names no one entry: no beat that runs lists it"),
        (["run", "second", "--args", "{}"], "--args is '{}'; allowed: JSON such as"),
        (["run", "second", "--kwargs", "nonsense"], "--kwargs is 'nonsense'; allowed: JSON such as"),
        (["resume", "second"], "'second' is not paused"),
        (["resume", "--all", "--yes"], "none of them is paused"),
        (["describe", "nonsense"], "names no one entry"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_wrong_words_are_refused_with_what_is_allowed(terminal, words, expected):
    done = terminal.run(*words)
    assert done.exit_code == 1
    assert re.search(expected, done.stderr), done.stderr


def test_what_is_asked_of_many_is_asked_for_first(terminal):
    terminal.lists("second", "minute")
    done = terminal.run("pause", "--all", answer="n\n")
    assert done.exit_code == 1
    assert "Pause 2 entries (minute, second)? [y/N]" in done.stderr
    assert schedules_of(terminal.app).flags() == {}
    assert terminal.run("pause", "--match", "m*", answer="y\n").exit_code == 0
    assert list(schedules_of(terminal.app).flags()) == ["minute"]
    span = ("2026-01-01T00:00Z", "2026-01-01T01:00Z")
    assert (
        "Publish 61 ticks of 'minute', at most 1 at once? [y/N]"
        in terminal.run("backfill", "minute", *span, answer="n\n").stderr
    )
    assert schedules_of(terminal.app)["minute"].backfills() == []


def test_a_pause_is_said_shown_recorded_and_ended(terminal):
    terminal.lists("second", "minute")
    done = terminal.run("pause", "second", "--until", "2h", "--note", "the database moves")
    assert re.fullmatch(r"'second' is paused, until 20\d\d-.*\n", done.stdout)
    told = terminal.told("describe", "second")
    assert told["task"] == "report"
    assert (told["args"], told["kwargs"], told["enabled"]) == (["1"], {"dry": "True"}, True)
    assert told["paused"]["note"] == "the database moves"
    assert "@" in told["paused"]["who"]
    assert len(told["next"]) == 10
    text = terminal.run("describe", "second").stdout
    assert re.search(r"^paused     by .*@.*, until .*: the database moves$", text, re.MULTILINE)
    assert "task       report(1, dry=True)" in text
    assert terminal.told("resume", "second", "--catchup", "none") == {"resumed": ["second"], "catchup": "none"}
    assert terminal.told("describe", "second")["paused"] is None
    paused, resumed = terminal.records()
    assert (paused.event, paused.entry, resumed.event, resumed.entry) == (
        "entry_paused",
        "second",
        "entry_resumed",
        "second",
    )
    assert paused.who == told["paused"]["who"]
    assert paused.reason.endswith(": the database moves")


def test_what_a_caller_gives_is_who_asked(terminal):
    terminal.lists("second", "minute")
    schedules = schedules_of(terminal.app)
    schedules.pause(who="web:ann", note="n")
    schedules.skip(2, who="web:bob")
    assert schedules.resume(who="web:eve") == ["minute", "second"]
    schedules["minute"].run(who="web:joe")
    assert {(each.event, each.who) for each in terminal.records()} == {
        ("entry_paused", "web:ann"),
        ("entry_skips", "web:bob"),
        ("entry_resumed", "web:eve"),
        ("entry_run", "web:joe"),
    }


def test_of_many_at_once_there_is_one_record(terminal):
    names = [f"entry-{number}" for number in range(150)]
    terminal.lists(*names)
    schedules_of(terminal.app).matching("entry-*").pause(note="n")
    (record,) = terminal.records()
    assert (record.event, record.entry, record.reason) == ("entry_paused", None, "150 entries: n")


def test_a_skip_is_said_and_shown(terminal):
    terminal.lists("second")
    assert terminal.told("skip", "second", "3") == {"entry": "second", "skip": 3, "note": None}
    assert terminal.told("describe", "second")["skip"] == 3
    assert "skips      its next 3 ticks" in terminal.run("describe", "second").stdout
    terminal.run("skip", "second", "0")
    assert terminal.told("describe", "second")["skip"] == 0


def test_a_backfill_is_shown_beforehand_meanwhile_and_cancelled(terminal):
    terminal.lists("minute")
    span = ("2026-01-01T00:00Z", "2026-01-01T01:00Z")
    told = terminal.told("backfill", "minute", *span, "--dry-run")
    assert (told["count"], len(set(told["dues"]))) == (61, 61)
    text = terminal.run("backfill", "minute", *span, "--dry-run").stdout
    assert text.startswith("61 ticks of 'minute':\n  2026-01-01 00:00:00 UTC\n")
    assert len(text.splitlines()) == 12
    assert terminal.told("backfill", "minute") == []
    asked = terminal.told("backfill", "minute", *span, "--at-once", "5", "--reverse", "--yes")
    assert (asked["total"], asked["published"], asked["at_once"], asked["reverse"]) == (61, 0, 5, True)
    assert terminal.told("backfill", "minute") == [asked]
    assert "backfill   0 of 61 ticks, asked for by" in terminal.run("describe", "minute").stdout
    assert [each["cancelled"] for each in terminal.told("backfill", "minute", "--cancel")] == [True]
    assert terminal.run("backfill", "minute", "--cancel").stdout == "no backfill of 'minute' is under way\n"
    events = [each.event for each in terminal.records()]
    assert events == ["entry_backfill", "entry_backfill_cancelled"]


def test_what_is_wrong_is_refused_from_python_too(terminal):
    terminal.lists("minute")
    entry, now = schedules_of(terminal.app)["minute"], datetime.now(timezone.utc)
    for act, expected in (
        (lambda: entry.pause(until=datetime(2099, 1, 1)), "until is .*; allowed: an aware datetime"),
        (lambda: entry.pause(until=now - timedelta(1)), "until is .*; allowed: a time that is to come"),
        (lambda: entry.resume(catchup="some"), "catchup is 'some'; allowed: latest, all, none"),
        (lambda: entry.skip(-1), "the ticks to skip are -1"),
        (lambda: entry.run([object()]), "allowed: what JSON can write"),
        (lambda: entry.backfill(now - timedelta(1), now + timedelta(1)), "allowed: a time that is past"),
        (lambda: entry.backfill(now - timedelta(1), now, at_once=0), "at_once is 0"),
        (lambda: entry.backfill(datetime(2026, 1, 1), now), "since is .*; allowed: an aware datetime"),
    ):
        with pytest.raises(ConfigurationError, match=expected):
            act()
    assert terminal.records() == []
    with pytest.raises(LockbeatError, match="no beat that runs lists 'second'"):
        schedules_of(terminal.app)["second"].run()


def test_the_lock_of_an_entry_is_released(terminal):
    task = terminal.app.tasks["report"]
    (key,) = task._plan().keys_of(task, (), {})
    terminal.store.locks.acquire(key, holder="a", ttl=30, description="w1")
    (freed,) = schedules_of(terminal.app)["minute"].release()
    assert (freed.key, freed.description) == (key, "w1")
    assert schedules_of(terminal.app)["minute"].release() == []


def test_times_that_are_to_come(make_app):
    app, now = make_app(timezone="Europe/Berlin"), datetime.now(timezone.utc)
    assert abs(coming_of("2h", app, "--until") - now - timedelta(hours=2)) < timedelta(seconds=5)
    at = coming_of("03:00", app, "--until")
    assert now < at <= now + timedelta(days=1, hours=1)
    assert coming_of("2099-01-01T00:00", app, "--until") == datetime(2098, 12, 31, 23, tzinfo=timezone.utc)
    for text in ("2h ago", "2000-01-01", "nonsense", ""):
        with pytest.raises(ConfigurationError, match="allowed: 2h, 30m or 1d from now, 18:00"):
            coming_of(text, app, "--until")


# -- policies ----------------------------------------------------------------------------------------------------------


def test_what_is_due_next_is_so_by_the_policies_that_the_setting_gives(terminal):
    end = datetime.now(timezone.utc) + timedelta(minutes=2, seconds=30)
    terminal.app.conf.lockbeat_entries = {"minute": {"end": end}, "second": {"max_runs": 3, "jitter": 0.5}}
    entries = schedules_of(terminal.app)
    assert len(entries["minute"].next(10)) in (2, 3)
    assert all(due < end for due in entries["minute"].next(10))
    told = terminal.told("describe", "second")
    assert told["policy"] == {"jitter": 0.5, "max_runs": 3}
    assert len(told["next"]) == 3
    assert "policy     jitter=0.5, max_runs=3" in terminal.run("describe", "second").stdout
    terminal.lists("second")
    beats, app = terminal.store.beats, name_of(terminal.app)
    for run in (1, 2, 3):
        beats.claim(app, "a", [Claim(f"id-{run}", "second", EntryState(run, "t"), {})], ttl=5)
    assert schedules_of(terminal.app)["second"].next(10) == []

"""What ``watch`` knows and shows, without a store, a beat or a terminal."""

from __future__ import annotations

import threading
import time
from datetime import timedelta, timezone
from types import SimpleNamespace

import pytest
from celery import Celery
from celery.bin.celery import celery as command_line
from celery.schedules import crontab, schedule
from click.testing import CliRunner
from ledgers import NOON, at, of_run, published, ran, record
from rich.cells import cell_len

from celery_lockbeat.cli.signs import SIGNS, Sign, Track, strip_of
from celery_lockbeat.cli.watch.keys import KeyReader
from celery_lockbeat.cli.watch.view import View
from celery_lockbeat.exceptions import StoreUnavailable
from celery_lockbeat.insight import feed, model
from celery_lockbeat.insight.feed import Feed
from celery_lockbeat.insight.model import KEPT, SORTS, Model
from celery_lockbeat.insight.planned import Plans
from celery_lockbeat.insight.said import event_of, span_of
from celery_lockbeat.journal.ticks import OUTCOMES, ticks_of
from celery_lockbeat.schedules import Cron
from celery_lockbeat.stores.base import Beats, EntryState, LiveLock, Replica, StoredEntry

HOSTILE = "evil \x1b[2J\x1b]0;x\x07\nname \u202e漢字漢字 [bold]x[/bold] " + "w" * 300


def model_of(*records, schedules=None, listed=()) -> Model:
    made = Model(schedules or {}, lambda task: True, NOON)
    made.take_records(records)
    made.is_read = True
    if listed:
        entries = [StoredEntry(name, EntryState(1, NOON.isoformat()), 0) for name in listed]
        beats = Beats([Replica("beat-1", 1.0, frozenset(listed), complete=True)], entries, 0)
        made.take_beats(beats, {}, {})
    return made


def view_of(made: Model) -> View:
    return View(made, "shop", "redis://h/0", timezone.utc, True)


def text_of(view: View, width: int = 80, height: int = 24, seconds: float = 60) -> str:
    return "\n".join(line.plain.rstrip() for line in view.frame(width, height, at(seconds)))


def line_of(text: str, word: str) -> str:
    return next(line for line in text.splitlines() if word in line)


def test_the_next_is_due_by_its_policy_and_overdue_when_its_jitter_is_over():
    app = Celery(set_as_current=False)
    app.conf.update(lockbeat_entries={"*": {"end": at(200)}, "spread": {"jitter": 30}}, timezone="UTC")
    schedules = {name: ("t", Cron("* * * * *")) for name in ("plain", "spread")}
    made = Model(schedules, lambda task: True, NOON, Plans(app))
    names = tuple(schedules)
    entries = [StoredEntry(name, EntryState(1, at(60).isoformat()), 0) for name in names]
    beats = Beats([Replica("beat-1", 1.0, frozenset(names), complete=True)], entries, 0)
    made.take_beats(beats, {}, dict.fromkeys(names, at(60)))
    plain, spread = (made.row(name) for name in names)
    assert plain.next_due == spread.next_due == at(120)
    offset = spread.plan.policy.offset("spread", at(120))
    assert 3 < offset < 30
    assert spread.overdue(at(140)) == pytest.approx(plain.overdue(at(140)) - offset) or offset > 18
    assert plain.overdue(at(140)) == 20
    for row in (plain, spread):
        row.was_due(at(180))
        assert row.next_due is None


# -- signs -------------------------------------------------------------------------------------------------------------


def test_each_outcome_has_a_letter_of_its_own_so_colours_are_not_needed():
    assert set(SIGNS) == set(OUTCOMES)
    assert len({sign.text for sign in SIGNS.values()}) == len(SIGNS)
    assert all(len(sign.text) == 1 and sign.text.isascii() for sign in SIGNS.values())


def test_a_strip_has_a_sign_for_each_of_the_last_runs():
    skip = of_run("task_skipped", 20.2, 3, 20, reason="locked", holder="w2")
    lines = [*ran(1, 0), *ran(2, 10, status="failed"), published(3, 20), skip, published(4, 30)]
    lines += [of_run("task_started", 30.2, 4, 30), published(5, 40)]
    lines += [record("tick_missed", 50, entry="report", count=3, last_due=at(49), reason="away")]
    assert "".join(sign.text for sign in strip_of(ticks_of(lines), 80)) == ".Fs>~M"
    assert "".join(sign.text for sign in strip_of(ticks_of(lines), 2)) == "~M"
    assert strip_of(ticks_of(lines), 0) == []


def test_a_track_has_bars_marks_and_a_cell_for_each_of_what_comes_together():
    bar, mark = Sign("=", "green"), Sign("x", "red")
    track = Track(0.5)
    track.bar(1.0, 2.2, bar)
    track.mark(1.6, mark)
    assert "".join(sign.text for sign in track.signs(0, 5)) == "··=x=·"
    track = Track(0.5)
    for _ in range(3):
        track.next_mark(1.0, mark)
    assert "".join(sign.text for sign in track.signs(0, 5)) == "··xxx·"


# -- the model ---------------------------------------------------------------------------------------------------------


def test_rows_are_sorted_by_name_next_due_lateness_and_last_failure():
    schedules = {"a": ("t", schedule(timedelta(seconds=300))), "b": ("t", schedule(timedelta(seconds=100)))}
    schedules["c"] = ("t", schedule(timedelta(seconds=200)))
    lines = [published(1, 0, entry="a", late=5.0), published(1, 1, entry="b"), published(1, 2, entry="c", late=9.0)]
    lines.append(of_run("task_failed", 3, 1, 1, entry="b"))
    made = model_of(*lines, schedules=schedules)
    orders = {sort: [row.name for row in made.rows(sort, "", at(10))] for sort in SORTS}
    assert orders["name"] == ["a", "b", "c"]
    assert orders["next due"] == ["b", "c", "a"]
    assert orders["lateness"] == ["c", "a", "b"]
    assert orders["last failure"] == ["b", "a", "c"]


def test_what_is_overdue_while_beats_list_it_is_late_by_now():
    made = model_of(published(1, 0), schedules={"report": ("t", schedule(timedelta(seconds=30)))}, listed=["report"])
    row = made.row("report")
    assert (row.overdue(at(20)), row.overdue(at(31)), row.overdue(at(50))) == (0, 0, 20)
    row.listed = 0
    assert row.overdue(at(50)) == 0


def test_a_crontab_tells_when_it_is_due_next():
    app = Celery("shop", set_as_current=False)
    made = model_of(published(1, 0), schedules={"report": ("t", crontab(minute="*/10", app=app))})
    assert made.row("report").next_due == at(600)


def test_what_is_kept_is_bounded():
    made = model_of(*(published(run, run) for run in range(3000)))
    assert len(made.row("report").records) == KEPT
    assert len(made.events) == model.EVENTS
    assert sum(share.ticks for share in made.shares()) == model.SHARED


def test_beats_have_their_share_and_those_that_are_gone_are_said():
    lines = [published(run, run, hostname="beat-2" if run % 4 else "beat-1") for run in range(1, 9)]
    shares = model_of(*lines, listed=["report"]).shares()
    assert [(each.name, each.share, each.silent_for) for each in shares] == [
        ("beat-1", 0.25, 1.0),
        ("beat-2", 0.75, None),
    ]


def test_only_the_rows_that_are_seen_are_made_of_ten_thousand(monkeypatch):
    lines = [published(1, number / 100, entry=f"entry-{number:05}") for number in range(10_000)]
    view = view_of(model_of(*lines))
    joined = []
    monkeypatch.setattr(model, "ticks_of", lambda records, tells: joined.append(1) or ticks_of(records, tells))
    text = text_of(view)
    assert "10000 entries" in text
    assert 5 <= len(joined) <= 24
    began = time.process_time()
    for _ in range(20):
        text_of(view)
    assert time.process_time() - began < 2
    assert 5 <= len(joined) <= 24, "nothing is joined anew while nothing comes"


# -- frames ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(80, 24), (140, 40), (30, 6), (10, 3), (1, 1), (200, 60)])
def test_a_frame_fits_whatever_users_have_named_and_no_terminal_obeys_it(size):
    failed = of_run("task_failed", 3, 1, 0, entry=HOSTILE, error_name="E", error_message=HOSTILE, hostname=HOSTILE)
    made = model_of(published(1, 0, entry=HOSTILE, task_name=HOSTILE, hostname=HOSTILE), failed, *ran(1, 5))
    made.take_locks("s", [LiveLock(HOSTILE, "h", HOSTILE, "r", 1, 5.0)])
    made.away["journal"] = (HOSTILE, NOON)
    view = view_of(made)
    for keys in ([], ["/"], ["w", "enter"], ["enter"], ["p"], ["escape", "?"]):
        for key in keys:
            view.press(key)
        lines = view.frame(*size, at(60))
        assert len(lines) == size[1]
        for line in lines:
            assert cell_len(line.plain) <= size[0]
            assert line.plain.isprintable(), line.plain


def test_a_frame_of_a_small_terminal_has_all_that_matters():
    waits = of_run("task_started", 58, 2, 50)
    made = model_of(*ran(1, 0), published(2, 50), waits, listed=["report", "other"])
    made.take_locks(
        "s", [LiveLock("jobs:report", "h", "celery@w1 pid 7 report[x]", "r", int(at(58).timestamp() * 1e6), 28)]
    )
    text = text_of(view_of(made))
    row = line_of(text, " report  ")
    assert ".>" in row
    assert "celery@w1 for 2 s" in row
    assert "held 2 s" in line_of(text, "jobs:report ")
    assert "by celery@w1 pid 7" in line_of(text, "jobs:report ")
    assert "100%" in line_of(text, "beat-1 ")
    assert "report has started" not in line_of(text, "succeeded in 1 s")
    assert "[jobs:report] has started (celery@w1)" in text


def test_a_store_that_is_away_is_said_and_makes_nothing_late():
    plan = {"report": ("t", schedule(timedelta(seconds=30)))}
    made = model_of(published(1, 0), schedules=plan, listed=["report"])
    made.away["journal"] = ("the Redis at h does not answer", at(20))
    text = text_of(view_of(made), seconds=100)
    assert "[no answer for 1 min]" in text
    assert "the Redis at h does not answer" in text
    assert "in 10 s" in line_of(text, "report ")
    made.away.clear()
    assert "1 min ago" in line_of(text_of(view_of(made), seconds=100), "report ")


def test_that_no_beat_runs_is_said_once_it_is_known():
    made = model_of()
    assert "no beat runs" not in text_of(view_of(made))
    made.take_beats(Beats([], [], 0), {}, {})
    assert "no beat runs" in text_of(view_of(made))


def test_without_a_journal_that_is_said():
    view = View(model_of(), "shop", "redis://h/0", timezone.utc, False)
    assert "lockbeat_journal is 0" in text_of(view)


# -- keys --------------------------------------------------------------------------------------------------------------


def test_bytes_are_keys():
    reader = KeyReader()
    assert list(reader.keys(b"a\x1b[A\x1bOB\x1b[5~\r\x7f")) == ["a", "up", "down", "page up", "enter", "backspace"]
    assert list(reader.keys(b"\x1b")) == ["escape"]
    assert list(reader.keys(b"\x1b[1;5C\x01\x1b[<0;1;1M")) == []
    assert [*reader.keys("ü".encode()[:1]), *reader.keys("ü".encode()[1:])] == ["ü"]


def test_keys_sort_filter_open_and_go_back():
    lines = [
        *ran(1, 0, entry="alpha"),
        *ran(1, 1, entry="beta", status="failed", error_name="ValueError", error_message="no"),
    ]
    view = view_of(model_of(*lines, *ran(2, 30, entry="alpha")))
    assert ">alpha" in text_of(view)
    for _ in range(3):
        view.press("s")
    text = text_of(view)
    assert "sort: last failure" in text
    assert ">beta" in text
    view.press("s")
    for key in ("/", *"ALP"):
        view.press(key)
    text = text_of(view)
    assert "1 found" in text
    assert "beta  " not in text
    for key in ("enter", "escape", "down"):
        view.press(key)
        text_of(view)
    view.press("enter")
    text = text_of(view)
    assert "ValueError: no" in text
    assert "what became of it" in text
    assert view.press("q")
    view.press("escape")
    assert "newest events" in text_of(view)


def test_the_chosen_entry_is_followed_and_the_first_place_is_not():
    view = view_of(model_of(published(1, 0, entry="b"), published(1, 0, entry="c")))
    text_of(view)
    view.press("down")
    assert ">c" in text_of(view)
    view._model.take_records([published(1, 1, entry="a")])
    assert ">c" in text_of(view)
    view.press("home")
    view._model.take_records([published(1, 1, entry="0")])
    assert ">0" in text_of(view)


def test_a_chosen_run_stays_chosen_while_later_ones_come():
    view = view_of(model_of(*ran(1, 0), *ran(2, 10)))
    text_of(view)
    for key in ("enter", "down"):
        text_of(view)
        view.press(key)
    view.press("down")
    assert ". succeeded   03-01 12:00:00" in line_of(text_of(view), ">.")
    view._model.take_records(ran(3, 20))
    assert "12:00:00" in line_of(text_of(view), ">.")


def test_a_paused_view_stands_still():
    view = view_of(model_of(published(1, 0), schedules={"report": ("t", schedule(timedelta(seconds=300)))}))
    before = text_of(view, seconds=60)
    view.press("p")
    assert view.paused
    assert text_of(view, seconds=120).replace("  [paused]", "").split() == before.replace("p pause", "p go on").split()
    view.press("p")
    assert not view.paused


def test_events_are_said_by_the_names_of_their_entries_and_nothing_that_is_in_a_record_raises():
    skipped = of_run(
        "task_skipped", 1, 1, 0, reason="locked", holder="w pid 1 jobs.report[9d939861-09f9-49a4-b334-c7bbb2072518]"
    )
    assert event_of(skipped) == "report [jobs:report] skipped: held by w pid 1 [9d939861] (celery@w1)"
    assert event_of(record("of_a_later_release", 1, entry="e", reason="why")) == "of a later release e why"
    for event in (
        *model_of(skipped).events,
        *(record(name, 1) for name in ("task_failed", "tick_late", "task_retried")),
    ):
        assert event_of(event)
    assert [span_of(each) for each in (4, 59, 61, 3700, 90000)] == ["4 s", "59 s", "1 min", "1.0 h", "1 d"]


# -- the store ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """A feed of a memory store that is asked ten times as often; what was asked, and whether there are answers."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update(lockbeat_driver="memory", lockbeat_memory_path=str(tmp_path / "memory"))
    told = SimpleNamespace(app=app, calls=[], away=False, rings=0)
    monkeypatch.setattr(feed, "ASKED_EVERY", 0.05)
    monkeypatch.setattr(feed, "SNAPSHOT_EVERY", 0.0)
    (used,) = feed.stores_in_use(app)
    told.store = used.store
    for part, name in ((used.store.journal, "records"), (used.store.beats, "status"), (used.store.locks, "held")):
        real = getattr(part, name)

        def call(*args, _real=real, _name=name, **kwargs):
            told.calls.append(_name)
            if told.away:
                raise StoreUnavailable("the store at redis://:secret@h is away")
            return _real(*args, **kwargs)

        monkeypatch.setattr(part, name, call)
    told.feed = Feed(app, lambda: None)
    yield told
    told.feed.end()
    wait_for_end(told.feed)
    app.close()


def wait_for_end(_feed) -> None:
    for thread in threading.enumerate():
        if thread.name == "lockbeat-watch":
            thread.join(5)


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_store_is_asked_one_question_at_a_time_and_no_more_often(asked):
    began = time.monotonic()
    asked.feed.start()
    until(lambda: len(asked.calls) > 12)
    most = (time.monotonic() - began) / 0.05 + 2
    # the first look at the journal has a page to begin with, and what has come meanwhile
    assert len(asked.calls) <= most + 1
    assert set(asked.calls) == {"records", "status", "held"}


def test_a_store_that_was_away_is_caught_up_with(asked):
    made = model_of()

    def brought(condition):
        asked.feed.bring(made)
        return condition()

    asked.store.journal.append("shop", "b1", ['{"e":"tick_published","entry":"a"}'], keep=100)
    asked.feed.start()
    until(lambda: brought(lambda: made.row("a") is not None))
    asked.away = True
    until(lambda: brought(lambda: len(made.away) == 3))
    asked.store.journal.append("shop", "b2", ['{"e":"tick_published","entry":"b"}'], keep=100)
    asked.away = False
    until(lambda: brought(lambda: not made.away))
    until(lambda: brought(lambda: made.row("b") is not None))
    assert len(made.row("a").records) == 1


# -- the command -------------------------------------------------------------------------------------------------------


def test_without_rich_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("celery_lockbeat.cli.watch.find_spec", lambda name: None)
    done = CliRunner().invoke(command_line, ["-A", "celery_lockbeat.demo", "lockbeat", "watch", "--once"])
    assert done.exit_code == 2
    assert "pip install 'celery-lockbeat[cli]'" in done.output


def test_where_there_is_no_terminal_it_says_what_to_use():
    done = CliRunner().invoke(command_line, ["-A", "celery_lockbeat.demo", "lockbeat", "watch"])
    assert done.exit_code == 2
    assert "history --json" in done.output
    assert "status --json" in done.output

"""``pause_after_failures``: which ends of runs count, when they are counted, and what is said once they have paused an entry."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timedelta, timezone

import pytest
from celery.exceptions import Ignore, Reject, Retry
from servers import wait_until
from simulation import every

from celery_lockbeat import Lock, LockedTask, StoreUnavailable, current_lock, journal, signals
from celery_lockbeat.journal.records import Said
from celery_lockbeat.locks import streaks
from celery_lockbeat.locks.streaks import Streak
from celery_lockbeat.schedules import Cron, Every
from celery_lockbeat.stores import home_store_of, name_of

START = datetime(2026, 6, 1, tzinfo=timezone.utc)


def tick(number, limit=2, **more):
    return {"lockbeat": {"entry": "report-job", "due": "x", "run": number, "pause_after": [limit, "flag"], **more}}


@pytest.fixture
def body(app):
    @app.task(base=LockedTask, lock_key="k", bind=True, max_retries=1, default_retry_delay=0)
    def body(self, ending=None):
        if ending is not None:
            raise ending

    return body


def ends(body, ending, number, **more):
    """Let a tick's run end so."""
    try:
        return body.apply((ending,), task_id=f"tick-{number}", headers=tick(number, **more))
    except BaseException as exc:
        if exc is not ending:
            raise


def flag(app):
    (found,) = home_store_of(app).controls.flags(name_of(app), ["flag"]) or [None]
    return found


# -- what counts -------------------------------------------------------------------------------------------------------


def test_the_last_of_so_many_failures_in_a_row_pauses_the_entry_and_says_so(app, body, caplog):
    caplog.set_level(logging.INFO, "celery_lockbeat.events")
    heard = []
    signals.entry_paused.connect(lambda **fields: heard.append(fields), weak=False, dispatch_uid="test_streaks")
    try:
        ends(body, ValueError("one"), 1)
        assert flag(app) is None
        ends(body, KeyError("two"), 2)
    finally:
        signals.entry_paused.disconnect(dispatch_uid="test_streaks")
    reason = "2 failures in a row, the last: KeyError: 'two'"
    said = Said.read(flag(app).told)
    assert (said.who, said.note, flag(app).until) == ("lockbeat", reason, None)
    assert datetime.now(timezone.utc) - datetime.fromisoformat(said.at) < timedelta(minutes=1)
    told = [json.loads(record.getMessage()) for record in caplog.records if record.name == "celery_lockbeat.events"]
    assert [event["event"] for event in told][-3:] == ["task_failed", "task_finished", "entry_paused"]
    (event,) = (each for each in told if each["event"] == "entry_paused")
    assert {"schedule": "report-job", "who": "lockbeat", "count": 2, "reason": reason}.items() <= event.items()
    assert {record.levelname for record in caplog.records if "is paused" in str(record.msg)} == {"ERROR"}
    assert [each["task_id"] for each in heard] == ["tick-2"]
    wait_until(lambda: any(each.event == "entry_paused" for each in journal.read(app)), 10, "it is in the journal")
    (record,) = (each for each in journal.read(app) if each.event == "entry_paused")
    assert (record.entry, record.more.get("who", record.who), record.reason) == ("report-job", "lockbeat", reason)


@pytest.mark.parametrize(
    "ending",
    [Retry("later", when=0), Reject("no", requeue=False), SystemExit(3), KeyboardInterrupt()],
    ids=lambda ending: type(ending).__name__,
)
def test_what_is_neither_a_failure_nor_a_success_changes_nothing(app, body, ending):
    ends(body, ValueError(), 1)
    ends(body, ending, 2)
    assert flag(app) is None
    ends(body, ValueError(), 3)
    assert flag(app) is not None


def test_a_skipped_run_changes_nothing(app, body):
    ends(body, ValueError(), 1)
    with Lock("k", app=app):
        assert ends(body, None, 2).state == "REVOKED"
    assert flag(app) is None
    ends(body, ValueError(), 3)
    assert flag(app) is not None


@pytest.mark.parametrize("ending", [None, Ignore("no result")], ids=["a result", "Ignore"])
def test_after_a_success_they_are_counted_anew(app, body, ending):
    for number in range(1, 6, 2):
        ends(body, ValueError(), number)
        ends(body, ending, number + 1)
    assert flag(app) is None


def test_the_last_try_of_a_run_counts_once_and_the_others_do_not(app):
    @app.task(base=LockedTask, bind=True, max_retries=3)
    def body(self):
        self.retry(countdown=0, exc=ValueError("each time"))

    body.apply(task_id="tick-1", headers=tick(1))
    assert flag(app) is None
    body.apply(task_id="tick-2", headers=tick(2))
    assert "each time" in flag(app).told


def test_a_run_whose_lock_was_lost_has_failed_though_its_body_has_not(app):
    @app.task(base=LockedTask, lock_key="k", lock_ttl=0.5)
    def body():
        lock = current_lock()
        lock._store.locks.release(lock.lease)
        wait_until(lambda: lock.lost, 20, "it knows")

    body.apply(task_id="tick-1", headers=tick(1, limit=1))
    assert "LockLost" in flag(app).told


def test_ticks_of_one_task_id_are_told_apart_by_their_claims(app, body):
    for number in (1, 1, 2):
        assert flag(app) is None
        body.apply((ValueError(),), task_id="nightly", headers=tick(number, claim=f"claim-{number}"))
    assert flag(app) is not None


def test_a_run_without_a_lock_counts_too(app):
    @app.task(base=LockedTask, lock_enabled=False)
    def body():
        raise ValueError

    body.apply(task_id="tick-1", headers=tick(1, limit=1))
    assert flag(app) is not None


# -- when --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [None, ValueError()], ids=["success", "failure"])
def test_an_end_is_counted_before_anybody_can_take_its_message_for_a_duplicate(app, body, ending, monkeypatch):
    store, order = home_store_of(app), []
    for part, name in ((store.controls, "failed"), (store.controls, "succeeded"), (store.locks, "release")):
        before = getattr(part, name)

        def call(*args, _before=before, _name=name, **more):
            order.append(_name)
            return _before(*args, **more)

        monkeypatch.setattr(part, name, call)
    ends(body, ending, 1)
    assert order == ["failed" if ending else "succeeded", "release"]


def test_where_nobody_asks_for_it_no_end_costs_a_round_trip(app, body, monkeypatch):
    monkeypatch.setattr(streaks, "home_store_of", lambda _app: pytest.fail("it asks the store"))
    for ending in (None, ValueError()):
        body.apply((ending,), task_id="x", headers={"lockbeat": {"entry": "e", "due": "x", "run": 1}})


@pytest.mark.parametrize("ending", [None, ValueError("its own")], ids=["success", "failure"])
def test_a_store_that_cannot_count_changes_nothing_for_the_run(app, body, ending, monkeypatch, caplog):
    def away(*_args, **_more):
        raise StoreUnavailable("away")

    for name in ("failed", "succeeded"):
        monkeypatch.setattr(home_store_of(app).controls, name, away)
    result = ends(body, ending, 1)
    assert (result.state, result.result) == (("FAILURE", ending) if ending else ("SUCCESS", None))
    assert "report-job" in caplog.text
    assert "away" in caplog.text


@pytest.mark.parametrize("told", [None, 3, [], [1], ["1", "flag"], [1, 2], [1, "flag", 3], {"limit": 1}])
def test_a_header_that_others_have_written_counts_nothing(told):
    assert Streak.of({"entry": "e", "pause_after": told}, "id") is None


def test_a_streak_is_read_as_it_is_written():
    streak = Streak.of({"entry": "é", "pause_after": [3, "flag"]}, "id")
    assert streak == Streak("é", "flag", 3, "id") == Streak.read(streak.text())


# -- what beats say of it ----------------------------------------------------------------------------------------------


def headers(simulation):
    return [message.headers["lockbeat"].get("pause_after") for message in simulation.messages]


def test_beats_tell_it_to_the_runs_of_the_schedule_and_of_what_was_caught_up_with(simulation):
    entries = {"e": {"task": "t", "schedule": Every(10, pause_after_failures=3, catchup="all")}, "other": every(10)}
    beat = simulation.beat(entries)
    simulation.world.run(beat, seconds=11)
    controls = simulation.store.store.controls
    controls.pause("simulated", ["e"], "")
    simulation.world.run(beat, seconds=20)
    controls.resume("simulated", ["e"], request="r", text=json.dumps({"kind": "catchup", "who": "", "at": ""}))
    simulation.world.run(beat, seconds=5)
    told = [
        (each.headers["lockbeat"].get("origin"), each.headers["lockbeat"].get("pause_after"))
        for each in simulation.messages
        if each.entry == "e"
    ]
    assert told == [(None, [3, "e"]), ("catchup", [3, "e"]), ("catchup", [3, "e"])]
    assert {
        str(each.headers["lockbeat"].get("pause_after")) for each in simulation.messages if each.entry == "other"
    } == {"None"}


def test_what_is_asked_for_by_hand_counts_neither_way(simulation):
    beat = simulation.beat({"e": {"task": "t", "schedule": Cron("0 * * * *", pause_after_failures=3)}})
    simulation.world.run(beat, seconds=1)
    at = [(START + timedelta(hours=hours)).isoformat() for hours in (-3, 0)]
    text = json.dumps({"kind": "backfill", "who": "", "at": "", "since": at[0], "until": at[1], "at_once": 10})
    simulation.store.store.controls.ask("simulated", "r", "e", text)
    simulation.world.run(beat, seconds=5)
    assert headers(simulation) == [None] * 4


def test_entries_of_others_are_told_by_the_setting(simulation):
    beat = simulation.beat({"e": every(10)}, lockbeat_entries={"*": {"pause_after_failures": 5}})
    simulation.world.run(beat, seconds=11)
    assert headers(simulation) == [[5, "e"]]

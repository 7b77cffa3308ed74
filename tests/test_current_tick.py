"""What a task is told of its tick, what its message has, and what a worker says of one that came too late."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
from celery import signals as celery_signals
from servers import wait_until

import docs
from celery_lockbeat import LockedTask, current_tick, signals
from celery_lockbeat.beat.messages import message_of
from celery_lockbeat.schedules import Cron, Every, Once

UTC = timezone.utc
DUE = "2026-03-01T02:00:00.000+01:00"
TICK = {"entry": "report", "due": DUE, "run": 7}


@pytest.fixture(params=[LockedTask, None], ids=["locked", "plain"])
def ask(app, request):
    """What a body is told whose message has these headers."""
    told = []

    @app.task(**({"base": request.param} if request.param else {}))
    def asks():
        told.append(current_tick())

    def asked(headers):
        asks.apply(headers=headers).get()
        return told.pop()

    return asked


def test_a_body_is_told_which_tick_it_runs_for(ask):
    previous = "2026-03-01T01:00:00.000+01:00"
    tick = ask({"lockbeat": {**TICK, "previous_due": previous, "origin": "catchup", "kind": "cron"}})
    assert (tick.entry, tick.run, tick.kind) == ("report", 7, "catchup")
    assert tick.due == datetime(2026, 3, 1, 1, tzinfo=UTC)
    assert (tick.due.date().isoformat(), tick.due.hour) == ("2026-03-01", 2)  # by the clock of its schedule
    assert tick.due - tick.previous_due == timedelta(hours=1)
    assert tick.lateness == pytest.approx((datetime.now(UTC) - tick.due).total_seconds(), abs=60)


def test_a_tick_of_an_earlier_release_has_no_tick_before(ask):
    tick = ask({"lockbeat": TICK})
    assert (tick.kind, tick.previous_due) == ("schedule", None)


@pytest.mark.parametrize(
    "garbage",
    [
        *(None, 3, [], {}, {"entry": "e"}, {"entry": 3, "due": DUE}),
        *({"entry": "e", "due": due} for due in (3, "noon", "2026-03-01T02:00:00")),
    ],
)
def test_what_is_no_tick_tells_of_none(ask, garbage):
    assert ask({"lockbeat": garbage}) is None


def test_what_stands_beside_a_tick_is_left_out_where_it_is_garbage(ask):
    tick = ask({"lockbeat": {**TICK, "run": "x", "previous_due": 1e300, "origin": ["?"]}})
    assert (tick.run, tick.previous_due, tick.kind) == (None, None, "schedule")


def test_outside_of_tasks_and_without_a_tick_there_is_none(ask):
    assert current_tick() is None
    assert ask({}) is None


# -- when its message expires ------------------------------------------------------------------------------------------

BEGIN_BY = datetime(2026, 3, 1, 1, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("users", "expires"),
    [
        (None, BEGIN_BY),
        (datetime(2026, 3, 1, 1, 2, tzinfo=UTC), datetime(2026, 3, 1, 1, 2, tzinfo=UTC)),
        (datetime(2026, 3, 1, 1, 9, tzinfo=UTC), BEGIN_BY),
        (60 * 365 * 86400, BEGIN_BY),
    ],
)
def test_a_message_expires_when_no_worker_may_begin_it_or_earlier_if_its_user_says_so(app, users, expires):
    entry = app_entry(app, Cron("* * * * *"), {"expires": users})
    tick = SimpleNamespace(
        task_id="id", run=7, details={"due": DUE, "begin_by": BEGIN_BY.isoformat()}, item=SimpleNamespace(entry=entry)
    )
    tick.item.schedule = entry.schedule
    assert message_of(tick, entry).options["expires"] == expires


@pytest.mark.parametrize(
    ("when", "kind"), [(Cron("* * * * * *"), "cron"), (Every(3), "interval"), (Once(after=3), "timeout")]
)
def test_a_message_says_of_what_kind_its_schedule_is(app, when, kind):
    entry = app_entry(app, when, {})
    tick = SimpleNamespace(task_id="id", run=7, details={"due": DUE}, item=SimpleNamespace(entry=entry, schedule=when))
    assert message_of(tick, entry).options["headers"]["lockbeat"]["kind"] == kind


def app_entry(app, when, options):
    from celery.beat import ScheduleEntry

    return ScheduleEntry(name="report", task="t", schedule=when, options=options, app=app)


# -- too late ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def missed():
    found = []

    def note(**fields):
        found.append(fields)

    signals.tick_missed.connect(note)
    yield found
    signals.tick_missed.disconnect(note)


def revoked(app, *, expired=True, **tick):
    @app.task
    def late():
        pass

    request = SimpleNamespace(id="one", hostname="w1", headers={"lockbeat": {**TICK, **tick}})
    celery_signals.task_revoked.send(sender=late, request=request, terminated=False, signum=None, expired=expired)


def test_a_worker_that_finds_a_tick_too_late_says_that_it_is_missed(app, missed):
    revoked(app, begin_by=BEGIN_BY.isoformat())
    wait_until(lambda: missed, 10, "it is said")
    (said,) = missed
    assert (said["schedule"], said["tick"], said["count"], said["task_id"]) == ("report", DUE, 1, "one")
    assert said["reason"] == "no worker began it within 300 s (start_within)"


@pytest.mark.parametrize(
    "tick", [{}, {"begin_by": "soon"}, {"begin_by": 3}, {"begin_by": BEGIN_BY.isoformat(), "expired": False}]
)
def test_of_what_was_revoked_or_expires_by_its_users_will_nothing_is_said(app, missed, tick):
    revoked(app, **tick)
    revoked(app, entry="last", begin_by=BEGIN_BY.isoformat())
    wait_until(lambda: missed, 10, "it is said")
    assert [each["schedule"] for each in missed] == ["last"]


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_on_catching_up_works():
    scope = docs.run("how-to/catch-up.md")
    scope["app"].finalize()
    assert scope["app"].conf.lockbeat_entries["report-*"] == {"jitter": 30, "catchup": "none"}
    headers = {"lockbeat": {**TICK, "previous_due": "2026-03-01T01:00:00.000+01:00"}}
    scope["app"].conf.lockbeat_driver = "memory"
    result = scope["bill"].apply(headers=headers).get()
    assert result == "bill what was sold since 2026-03-01 01:00:00+01:00, until 2026-03-01 02:00:00+01:00"

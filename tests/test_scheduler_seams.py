"""What other software finds where it finds it in Celery's own beat: the methods that it wraps or overrides, and the schedule."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
from celery.beat import Scheduler
from celery.schedules import schedule
from celery.signals import before_task_publish
from simulation import every

from celery_lockbeat import LockedScheduler
from celery_lockbeat.beat.scheduler import LockedSchedulerMixin


@pytest.fixture
def driver() -> str:
    """The store has no part in this."""
    return "memory"


@pytest.fixture(params=["one by one", "batch"])
def how(request) -> str:
    return str(request.param)


@pytest.fixture
def app_of(simulation, server, how):
    """Make apps whose beat publishes message by message, or all that is due at once."""

    def make(entries, **settings):
        app = simulation.app(entries, **settings)
        if how == "batch":
            app.conf.broker_url = app.conf.broker_write_url = server.url
        return app

    return make


@pytest.fixture
def sent():
    """What is sent, as (task, id, header of the tick, all headers)."""
    sent = []

    def before(sender, headers, **_):
        sent.append((sender, headers["id"], headers.get("lockbeat"), dict(headers)))

    before_task_publish.connect(before)
    yield sent
    before_task_publish.disconnect(before)


def run(simulation, app, scheduler=LockedScheduler, seconds=2.5):
    beat = simulation.beat(app, scheduler=scheduler)
    simulation.world.run(beat, seconds=seconds)
    beat.close()
    return beat


# -- apply_entry, apply_async ------------------------------------------------------------------------------------------


def test_what_wraps_celerys_apply_entry_sees_each_tick_as_with_celerys_beat(simulation, app_of, sent, monkeypatch):
    """As Sentry does it (sentry-sdk 2, integrations/celery/beat.py), and ddtrace."""
    seen = []
    original = Scheduler.apply_entry

    def wrapped(*args, **kwargs):
        scheduler, entry = args
        seen.append((entry.name, type(entry.schedule), scheduler.app, sorted(kwargs), len(sent)))
        headers = entry.options.pop("headers", {})
        headers.update({"check-in": len(seen)})
        entry.options["headers"] = headers
        return original(*args, **kwargs)

    monkeypatch.setattr(Scheduler, "apply_entry", wrapped)
    entries = {"a": every(1, "t", options={"headers": {"mine": 1}}), "b": every(1, "u")}
    app = app_of(entries)
    run(simulation, app)
    assert sorted(name for name, *_ in seen) == ["a", "a", "b", "b"]
    assert all(each[1:4] == (schedule, app, ["producer"]) for each in seen)
    # each before its own message
    assert [count for *_, count in seen] == [0, 1, 2, 3]
    assert [headers["check-in"] for *_, headers in sent] == [1, 2, 3, 4]
    assert all(headers.get("mine") == (1 if task == "t" else None) for task, *_, headers in sent)


def test_what_is_written_into_the_options_of_one_tick_is_gone_at_the_next(simulation, app_of, sent, monkeypatch):
    original = Scheduler.apply_entry

    def wrapped(scheduler, entry, **kwargs):
        if len(sent) == 0:
            entry.options.setdefault("headers", {})["only"] = "once"
            entry.options["priority"] = 9
        return original(scheduler, entry, **kwargs)

    monkeypatch.setattr(Scheduler, "apply_entry", wrapped)
    app = app_of({"e": every(1, options={"headers": {"mine": 1}})})
    beat = run(simulation, app)
    assert [headers.get("only") for *_, headers in sent] == ["once", None]
    assert app.conf.beat_schedule["e"]["options"] == {"headers": {"mine": 1}}
    assert beat.scheduler.schedule["e"].options == {"headers": {"mine": 1}}


@pytest.mark.parametrize("made", ["of ours", "by the mixin"])
def test_a_subclass_that_overrides_them_is_called_for_each_tick(simulation, app_of, sent, made):
    calls = []
    bases = (LockedScheduler,) if made == "of ours" else (LockedSchedulerMixin, Scheduler)

    class Mine(*bases):
        def apply_entry(self, entry, producer=None):
            calls.append(("apply_entry", entry.name, producer is self.producer))
            entry.options["headers"] = {"by": "apply_entry"}
            super().apply_entry(entry, producer=producer)

        def apply_async(self, entry, producer=None, advance=True, **kwargs):
            calls.append(("apply_async", entry.name, producer is self.producer, advance))
            result = super().apply_async(entry, producer=producer, advance=advance, **kwargs)
            calls.append(("sent", result.id))
            return result

    run(simulation, app_of({"e": every(1)}), Mine)
    one = [("apply_entry", "e", True), ("apply_async", "e", True, False)]
    assert calls == [*one, ("sent", sent[0][1]), *one, ("sent", sent[1][1])]
    assert [(header["run"], headers["by"]) for *_, header, headers in sent] == [(1, "apply_entry"), (2, "apply_entry")]


def test_a_subclass_that_raises_loses_its_tick_as_with_celerys_beat_and_says_so(simulation, app_of, sent, caplog):
    class Picky(LockedScheduler):
        def apply_entry(self, entry, producer=None):
            if entry.name == "b":
                raise ZeroDivisionError("not by me")
            super().apply_entry(entry, producer=producer)

        def apply_async(self, entry, **options):
            if entry.name == "c":
                raise ZeroDivisionError("nor by me")
            return super().apply_async(entry, **options)

    run(simulation, app_of({name: every(1, name) for name in "abcd"}), Picky)
    assert sorted(task for task, *_ in sent) == ["a", "a", "d", "d"]
    assert caplog.text.count("of entry 'b' is lost: its message cannot be made: ZeroDivisionError: not by me") == 2
    assert caplog.text.count("nor by me") >= 2


def test_a_subclass_hears_of_a_message_that_cannot_be_sent_and_it_is_sent_later_under_its_id(simulation, sent):
    heard = []

    class Listening(LockedScheduler):
        def apply_async(self, entry, **options):
            try:
                return super().apply_async(entry, **options)
            except Exception as exc:
                heard.append(exc)
                raise

    simulation.world.broker.refuses = lambda message: (
        ConnectionResetError("not now") if simulation.world.elapsed < 3 else None
    )
    run(simulation, simulation.app({"e": every(1)}), Listening, seconds=10)
    assert any("not now" in str(exc) for exc in heard)
    assert sorted(simulation.world.broker.runs("e"))[:3] == [1, 2, 3]
    tried = [id_ for _, id_, header, _ in sent if header["run"] == 1]
    assert len(tried) > 1
    assert {*tried} == {message.id for message in simulation.messages if message.run == 1}


def test_a_broker_that_refuses_is_told_of_once_a_minute_and_a_message_that_cannot_be_made_once_with_its_traceback(
    simulation, caplog
):
    """And not by Celery's apply_entry, too, which tells of each try with two tracebacks."""
    simulation.world.broker.refuses = lambda message: ConnectionResetError() if message.task == "bad" else None
    run(simulation, simulation.app({"bad": every(1, "bad")}), seconds=60)
    assert [record.name for record in caplog.records if record.levelno >= logging.ERROR] == ["celery_lockbeat.beat"]
    caplog.clear()
    run(simulation, simulation.app({"worse": every(1, args=[object()])}, name="other"), seconds=1.5)
    (error,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert error.getMessage().startswith("tick {'due': '2026-06-01T00:01:01.000+00:00'} of entry 'worse' is lost")
    assert error.exc_info


def test_other_messages_that_a_subclass_sends_in_a_tick_are_none_of_that_tick(simulation, app_of, sent):
    class Chatty(LockedScheduler):
        def apply_entry(self, entry, producer=None):
            super().apply_entry(entry, producer=producer)
            other = self.Entry(name="other", task="other", schedule=60, app=self.app)
            self.apply_async(other, producer=producer)

    run(simulation, app_of({"e": every(1)}), Chatty, seconds=1.5)
    assert [(task, header and header["entry"]) for task, _, header, _ in sent] == [("t", "e"), ("other", None)]
    assert sent[0][1] != sent[1][1]


def test_what_wraps_celerys_tick_sees_each_round_with_all_that_is_sent_in_it(simulation, app_of, sent, monkeypatch):
    """As ddtrace does it (ddtrace 4, contrib/internal/celery/app.py)."""
    rounds = []
    original = Scheduler.tick

    def wrapped(scheduler, *args, **kwargs):
        before = len(sent)
        try:
            return original(scheduler, *args, **kwargs)
        finally:
            rounds.append(len(sent) - before)

    monkeypatch.setattr(Scheduler, "tick", wrapped)
    beat = run(simulation, app_of({"a": every(1), "b": every(1)}), seconds=1.5)
    assert len(rounds) == beat.ticks
    assert sum(rounds) == 2


# -- an entry's own task id --------------------------------------------------------------------------------------------


def test_a_task_id_in_the_options_is_the_messages_and_the_claims_is_in_the_header(simulation, app_of, sent):
    run(simulation, app_of({"e": every(1, options={"task_id": "the same for all"}), "f": every(1, "u")}))
    theirs = [(id_, header) for task, id_, header, _ in sent if task == "t"]
    assert [id_ for id_, _ in theirs] == ["the same for all"] * 2
    assert [header["run"] for _, header in theirs] == [1, 2]
    claims = [header["claim"] for _, header in theirs]
    assert len({*claims, "the same for all"}) == 3
    assert all("claim" not in header for task, _, header, _ in sent if task == "u")


def test_what_a_dead_beat_has_left_is_sent_under_the_entrys_task_id_and_the_same_claim(simulation, sent):
    entries = {"e": every(1, options={"task_id": "mine"})}
    victim, other = simulation.beat(entries, lockbeat_claim_ttl=2), simulation.beat(entries, lockbeat_claim_ttl=2)

    def die(ticks):
        victim.scheduler._publisher._publish_one_by_one(ticks)
        raise SystemExit  # before it settles

    victim.scheduler._publisher.publish = die
    with pytest.raises(SystemExit):
        simulation.world.run(victim, seconds=2)
    simulation.world.run(other, seconds=4)
    first = [(id_, header["claim"]) for _, id_, header, _ in sent if header["run"] == 1]
    assert len(first) == 2
    assert len({*first}) == 1
    assert first[0][0] == "mine"


# -- schedulers that Celery makes, and subclasses ----------------------------------------------------------------------


def test_a_lazy_scheduler_ticks_as_celerys_does(simulation, sent):
    """Which has no entries, but for those that it is given."""
    app = simulation.app({"e": every(1)})
    beat = simulation.beat(app)
    beat.scheduler = LockedScheduler(app=app, lazy=True)
    theirs = Scheduler(app=app, lazy=True)
    assert theirs.tick() == theirs.max_interval
    assert 0 < beat.scheduler.tick() <= beat.scheduler.max_interval
    assert dict(beat.scheduler.schedule) == dict(theirs.schedule) == {}
    simulation.world.run(beat, seconds=2)
    assert sent == []
    beat.scheduler.add(name="added", task="added", schedule=schedule(1, nowfun=app.now))
    simulation.world.run(beat, seconds=3.5)
    assert {task for task, *_ in sent} == {"added"}
    assert len(sent) >= 2


def test_a_subclass_that_sets_up_its_entries_itself_works_as_with_celerys(simulation):
    def subclass(base):
        class Mine(base):
            def setup_schedule(self):
                self.install_default_entries(self.data)
                self.update_from_dict({"own": every(10, "own")})

        return Mine

    settings = {"configured": every(10, "configured")}
    ours = simulation.beat(settings, scheduler=subclass(LockedScheduler))
    theirs = simulation.celery(settings, subclass(Scheduler))
    simulation.world.run(ours, theirs, seconds=35)
    assert simulation.times().keys() == theirs.broker.times().keys() == {"own"}
    assert len(simulation.times()["own"]) == len(theirs.broker.times()["own"]) == 3
    assert ours.scheduler.schedule.keys() == theirs.scheduler.schedule.keys()


def test_the_schedule_tells_the_entries_before_the_first_tick(simulation):
    scheduler = simulation.beat({"e": every(10)}).scheduler
    assert {name: entry.task for name, entry in scheduler.schedule.items()} == {"e": "t"}


START = """
import logging, redbeat
from celery import Celery
from celery.beat import Scheduler, Service
from celery.signals import beat_init
from celery_lockbeat import LockedScheduler
from celery_lockbeat.beat.scheduler import LockedSchedulerMixin

class Own(LockedSchedulerMixin, Scheduler): ...

logging.basicConfig()
app = Celery("started", broker="memory://", set_as_current=False)
for scheduler in LockedScheduler, Own:
    service = Service(app, scheduler_cls=scheduler)
    beat_init.send(sender=service)
"""


def test_redbeats_receiver_says_nothing_when_a_beat_of_ours_starts_beside_it():
    """It is connected by whatever imports celery-redbeat: in a process of its own, and not in all later tests."""
    pytest.importorskip("redbeat")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", START], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr

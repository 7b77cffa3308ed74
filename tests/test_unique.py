"""``lock_unique``: what is queued already, or runs, is not sent once more, and nobody waits for ever for it."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from datetime import datetime, timedelta, timezone

import pytest
from celery import chain, chord, group, signals, states
from celery.app.task import Context
from celery.exceptions import ChordError, Ignore, Reject, TaskRevokedError
from kombu.exceptions import OperationalError
from messages import Queue
from servers import free_port, wait_until
from simulation import every

from celery_lockbeat import ConfigurationError, Lock, LockedTask, StoreUnavailable, journal
from celery_lockbeat import signals as ours
from celery_lockbeat.journal.writer import finish
from celery_lockbeat.stores import stores_of
from celery_lockbeat.stores.base import Reservation
from celery_lockbeat.tasks.copies import NONCE, POSTPONED, RESERVED

BOTH = pytest.mark.parametrize("until", ["until_started", "until_finished"])


@pytest.fixture
def queue(app, server) -> Queue:
    return Queue(app, server)


@pytest.fixture
def make(app):
    """Make a task that is unique ``until`` then; its body is a function of the task, or nothing."""

    def made(until="until_started", body=None, *, name="unique", **options):
        @app.task(base=LockedTask, bind=True, name=name, **{"lock_key": "{x}", "lock_unique": until, **options})
        def unique(self, x=1, *, y=None):
            return None if body is None else body(self)

        return unique

    return made


@pytest.fixture
def skips():
    """The ``task_skipped`` so far."""
    told = []

    def tell(sender, **fields):
        told.append(fields)

    ours.task_skipped.connect(tell)
    yield told
    ours.task_skipped.disconnect(tell)


def locks_of(app):
    return stores_of(app).choose(app.conf.lockbeat_driver, "default")[0].locks


def is_reserved(app, key="1", name="unique") -> bool:
    probe = Reservation(key, name, "probe", "probe")
    there = locks_of(app).reserve(probe, ttl=30)
    if there is None:
        locks_of(app).unreserve(probe)
    return there is not None


# -- queued, or running ------------------------------------------------------------------------------------------------


@BOTH
def test_a_call_whose_task_is_queued_sends_nothing_and_has_the_result_of_that_one(make, queue, until):
    task = make(until)
    first = task.delay(1)
    again = task.delay(1)
    assert again.id == first.id
    assert queue.ids() == [first.id]
    assert again.already_queued
    assert not hasattr(first, "already_queued")
    queue.deliver()
    assert again.get(timeout=5) is None


@BOTH
def test_other_keys_and_other_tasks_are_others(make, queue, until):
    task, other = make(until), make(until, name="other")
    sent = [task.delay(1).id, task.delay(2).id, other.delay(1).id]
    assert queue.ids() == sent


@BOTH
def test_whatever_is_no_part_of_the_key_makes_no_other(make, queue, until):
    task = make(until)
    first = task.delay(1, y=1)
    assert task.apply_async((), {"x": 1, "y": 2}).id == first.id
    assert len(queue) == 1


def test_a_task_without_it_is_sent_each_time_and_asks_no_store(app, queue, monkeypatch):
    @app.task(base=LockedTask, name="plain", lock_key="{x}")
    def plain(x):
        pass

    monkeypatch.setattr(stores_of(app), "choose", None)
    assert plain.delay(1).id != plain.delay(1).id
    assert RESERVED not in queue.messages()[0].headers


def test_the_setting_of_that_name_is_its_default(make_app, server, driver):
    app = make_app(lockbeat_driver=driver, lockbeat_unique="until_started")

    @app.task(base=LockedTask, name="unique", lock_key="{x}")
    def unique(x):
        pass

    @app.task(base=LockedTask, name="each", lock_unique=False)
    def each():
        pass

    assert unique.delay(1).id == unique.delay(1).id
    assert each.delay().id != each.delay().id


def test_until_started_another_is_queued_as_soon_as_the_body_begins(make, queue):
    sent = []
    task = make("until_started", lambda self: sent.append(self.delay(1)) if not sent else None)
    first = task.delay(1)
    queue.deliver()
    assert sent[0].id != first.id
    assert queue.ids() == [sent[0].id]
    assert task.delay(1).id == sent[0].id, "and that one is queued now"


def test_until_finished_a_run_is_there_until_its_end(make, queue):
    sent = []
    task = make("until_finished", lambda self: sent.append(self.delay(1)))
    first = task.delay(1)
    queue.deliver()
    assert sent[0].id == first.id
    assert len(queue) == 0
    assert task.delay(1).id != first.id


def test_until_finished_a_run_is_there_whose_message_has_reserved_nothing(app, make, queue):
    """It was sent by its name, or before lock_unique was set."""
    sent = []
    make("until_finished", lambda self: sent.append(self.delay(1)))
    by_name = app.send_task("unique", (1,))
    queue.deliver()
    assert sent[0].id == by_name.id
    assert len(queue) == 0


def test_another_task_that_runs_under_the_same_key_is_not_the_one(make, queue):
    sent = []
    task = make("until_finished")
    other = make("until_finished", lambda self: sent.append(task.delay(1)), name="other")
    first = other.delay(1)
    queue.deliver()
    assert sent[0].id != first.id
    assert queue.ids() == [sent[0].id]


@pytest.mark.parametrize("driver", ["redis"])
@BOTH
def test_a_message_costs_one_round_trip_and_its_run_no_more_than_any(app, make, queue, server, until):
    app.conf.lockbeat_journal = 0  # whose thread makes round trips of its own
    task, plain = make(until), make(None, name="plain")

    def calls(do) -> int:
        with server.client() as client:
            client.config_resetstat()
            do()
            stats = client.info("commandstats")
            return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))

    for each in (plain, task):
        each.delay(0)
        queue.deliver()
    assert calls(lambda: plain.delay(1)) == 0
    assert calls(lambda: task.delay(1)) == 1
    assert calls(lambda: task.delay(1)) == 1, "refused"
    assert calls(queue.deliver) == calls(queue.deliver) == 2


# -- when it is to run, and how long that is waited for ---------------------------------------------------------------


@pytest.mark.parametrize("driver", ["redis"])
@pytest.mark.parametrize(
    ("options", "least", "most"),
    [
        (lambda now: {}, 80, 100),
        (lambda now: {"countdown": 1000}, 1080, 1100),
        (lambda now: {"eta": now + timedelta(seconds=1000)}, 1080, 1100),
        (lambda now: {"eta": (now + timedelta(seconds=1000)).isoformat()}, 1080, 1100),
        (lambda now: {"eta": now - timedelta(seconds=1000)}, 80, 100),
        (lambda now: {"expires": 70}, 50, 70),
        (lambda now: {"expires": now + timedelta(seconds=70)}, 50, 70),
        (lambda now: {"countdown": 1000, "expires": 2000}, 1080, 1100),
        (lambda now: {"countdown": 1000, "expires": 1010}, 990, 1010),
    ],
)
def test_a_message_is_waited_for_from_when_it_is_to_run_and_not_after_it_has_expired(
    make, server, options, least, most
):
    task = make(lock_unique_ttl=100)
    task.apply_async((1,), **options(datetime.now(timezone.utc)))
    with server.client() as client:
        (name,) = client.keys("lockbeat:reserved:*")
        assert least <= client.pttl(name) / 1000 <= most


def test_what_is_lost_is_there_for_its_ttl(app, make, queue):
    task = make(lock_unique_ttl=0.2)
    first = task.delay(1)
    queue.lose()
    again = []
    wait_until(lambda: again.append(task.delay(1)) or again[-1].id != first.id)
    assert queue.ids() == [again[-1].id]


def test_a_publisher_that_is_killed_between_the_two_keeps_others_away_for_its_ttl(app, make, queue):
    """Of which it leaves nothing but what it had reserved."""
    task = make(lock_unique_ttl=1.5)
    assert locks_of(app).reserve(Reservation("1", "unique", "dead", "dead"), ttl=1.5) is None
    assert task.delay(1).id == "dead"
    wait_until(lambda: task.delay(1).id != "dead")
    assert len(queue) == 1


# -- who ends it -------------------------------------------------------------------------------------------------------


def body_that(how):
    def body(self):
        if how == "fails":
            raise ZeroDivisionError
        if how == "rejects":
            raise Reject("no", requeue=False)
        if how == "ignores":
            raise Ignore

    return body


@BOTH
@pytest.mark.parametrize("how", ["returns", "fails", "rejects", "ignores"])
def test_however_a_run_ends_the_next_is_sent(app, make, queue, until, how):
    task = make(until, body_that(how))
    first = task.delay(1)
    queue.deliver()
    assert not is_reserved(app)
    assert task.delay(1).id != first.id


@BOTH
@pytest.mark.parametrize("skip", [True, False])
def test_a_run_that_finds_its_key_held_has_been_queued_no_longer(app, make, queue, until, skip):
    task = make(until, lock_skip_if_locked=skip)
    first = task.delay(1)
    with Lock("1", app=app):
        queue.deliver()
        assert first.state == (states.REVOKED if skip else states.FAILURE)
        assert not is_reserved(app)


@BOTH
def test_a_run_that_failed_for_the_store_has_been_queued_no_longer_once_that_is_back(
    app, make, queue, monkeypatch, until
):
    task = make(until)
    first = task.delay(1)
    locks = locks_of(app)
    with monkeypatch.context() as away:
        for name in ("acquire", "unreserve", "free"):
            away.setattr(locks, name, _away)
        queue.deliver()
        assert first.state == states.FAILURE
        assert is_reserved_by(locks)
    wait_until(lambda: not is_reserved(app), message="it is asked again until it answers")


def is_reserved_by(locks) -> bool:
    return locks.reserve(Reservation("1", "unique", "probe", "probe"), ttl=30) is not None


def _away(*_args, **_kwargs):
    raise StoreUnavailable("away")


@BOTH
def test_a_run_ends_no_reservation_but_its_own(app, make, queue, until):
    """It has waited for so long that what it had reserved was over, and is another's."""
    task = make(until, lock_unique_ttl=0.1)
    task.delay(1)
    other = Reservation("1", "unique", "other", "other")
    wait_until(lambda: locks_of(app).reserve(other, ttl=30) is None)
    queue.deliver()
    assert locks_of(app).unreserve(other) is True


def test_a_message_that_was_sent_with_anothers_headers_ends_nothing_of_that_one(app, make, queue):
    @app.task(base=LockedTask, name="unique2", lock_key="other")
    def other():
        pass

    task = make()
    task.delay(1)
    (message,) = queue.messages()
    other.apply_async(headers={name: message.headers[name] for name in (RESERVED, NONCE)})
    queue.deliver(queue.messages()[1])
    assert is_reserved(app)


def test_a_copy_of_an_attempt_that_has_ended_keeps_the_place_of_the_next_one(app, make, queue):
    def body(self):
        raise self.retry(countdown=30, exc=ZeroDivisionError())

    task = make("until_started", body)
    first = task.delay(1)
    (message,) = queue.messages()
    queue.deliver()
    assert queue.ids() == [first.id]
    queue.deliver(message)
    assert task.delay(1).id == first.id
    assert len(queue) == 1


def test_a_copy_that_is_put_off_reserves_nothing(app, make, queue):
    """Its run goes on, and has given up its place."""
    seen = []

    def body(self):
        if not seen:
            seen.append(1)
            elsewhere = threading.Thread(target=queue.deliver, args=(message,))
            elsewhere.start()
            elsewhere.join()
            seen.append(self.delay(1).id)

    task = make("until_started", body)
    first = task.delay(1)
    (message,) = queue.messages()
    queue.deliver()
    copy, next_ = queue.messages()
    assert (copy.id, copy.headers[POSTPONED]) == (first.id, 1)
    assert next_.id == seen[1] != first.id


@BOTH
def test_what_waits_in_line_keeps_its_place_and_no_other_is_sent(app, make, queue, monkeypatch, until):
    ran = []
    task = make(until, lambda self: ran.append(self.request.id), lock_if_held="wait")
    with Lock("1", app=app):
        first = task.delay(1)
        for _ in range(2):  # its message, and the copy that comes by itself
            with monkeypatch.context() as patched:
                patched.setattr(type(locks_of(app)), "reserve", None)
                queue.deliver()
            assert queue.ids() == [first.id], "its copy, which has reserved nothing of its own"
            again = task.delay(1)
            assert (again.id, again.already_queued) == (first.id, True)
        assert not ran
    assert queue.ids() == [first.id, first.id], "it is called, too"
    assert task.delay(1).id == first.id
    queue.deliver_all()
    assert ran == [first.id]
    second = task.delay(1)
    assert second.id != first.id
    queue.deliver_all()
    assert ran == [first.id, second.id]


@BOTH
@pytest.mark.parametrize("why", ["superseded", "waited"])
def test_a_run_that_waits_in_line_no_more_has_been_queued_no_longer(app, make, queue, until, why, skips):
    task = make(until, lock_if_held="wait_latest")
    with Lock("1", app=app):
        first = task.delay(1)
        queue.deliver()
        if why == "waited":
            locks_of(app).clear_line("1")
        else:
            app.send_task("unique", (1,))
            queue.deliver(queue.messages()[-1])
        assert is_reserved(app)
        (told,) = [each for each in queue.messages() if each.id == first.id and each.headers["eta"] is None]
        queue.deliver(told)
        assert [each["reason"] for each in skips] == [why]
        assert not is_reserved(app)


@pytest.mark.parametrize("driver", ["redis"])
def test_a_message_that_may_wait_in_line_is_waited_for_so_much_longer(make, server):
    make(lock_unique_ttl=100, lock_if_held="wait", lock_wait_at_most=1000).delay(1)
    with server.client() as client:
        (name,) = client.keys("lockbeat:reserved:*")
        assert 1080 < client.pttl(name) / 1000 <= 1100


def test_without_a_lock_nothing_is_unique_and_what_others_have_reserved_ends_with_the_run(app, make, queue):
    task = make("until_finished", lambda self: seen.append(is_reserved(app)))
    seen = []
    task.delay(0)
    queue.deliver()  # Celery binds it once more
    seen.clear()
    task.delay(1)

    @app.task(base=LockedTask, name="off", lock_unique="until_started", lock_enabled=False)
    def off():
        pass

    assert off.delay().id != off.delay().id
    message = queue.lose()
    plan = task._lock_plans["unique"]
    plan.options = dataclasses.replace(plan.options, enabled=False)
    queue.deliver(message)
    assert seen == [True]
    assert not is_reserved(app)


@pytest.mark.parametrize("name", ["revoked", "expired"])
def test_a_message_that_its_worker_does_not_run_is_queued_no_longer(app, make, queue, name):
    task = make()
    task.delay(1)
    message = queue.lose()
    request = Context({**message.headers, "args": message.args, "kwargs": message.kwargs})
    signals.task_revoked.send(sender=task, request=request, terminated=False, signum=None, expired=name == "expired")
    wait_until(lambda: not is_reserved(app))


# -- the next attempt of a run -----------------------------------------------------------------------------------------


@BOTH
def test_a_retry_is_sent_and_is_queued_as_the_first_attempt_was(app, make, queue, until):
    tries = []

    def body(self):
        tries.append(self.request.id)
        if len(tries) == 1:
            raise self.retry(countdown=0.01, exc=ZeroDivisionError())

    task = make(until, body)
    first = task.delay(1)
    queue.deliver()
    assert queue.ids() == [first.id]
    assert task.delay(1).id == first.id
    assert len(queue) == 1
    queue.deliver()
    assert tries == [first.id] * 2
    assert task.delay(1).id != first.id


def test_a_retry_is_sent_though_another_is_queued_meanwhile(app, make, queue):
    tries = []

    def body(self):
        tries.append(self.request.id)
        if len(tries) == 1:
            other.append(self.delay(1))
            raise self.retry(countdown=0.01, exc=ZeroDivisionError())

    other = []
    task = make("until_started", body)
    first = task.delay(1)
    queue.deliver()
    assert queue.ids() == [other[0].id, first.id]
    queue.deliver(queue.messages()[1])
    assert is_reserved(app), "the other one's"
    queue.deliver()
    assert not is_reserved(app)
    assert tries == [first.id, first.id, other[0].id]


@BOTH
def test_what_replaces_a_run_is_sent(make, queue, until):
    tries = []

    def body(self):
        tries.append(self.request.id)
        if len(tries) == 1:
            raise self.replace(self.s(1))
        return "in the end"

    task = make(until, body)
    first = task.delay(1)
    queue.deliver()
    assert queue.ids() == [first.id]
    assert task.delay(1).id == first.id
    queue.deliver()
    assert first.get(timeout=5) == "in the end"
    assert task.delay(1).id != first.id


@BOTH
def test_autoretry_for_is_a_retry(make, queue, until):
    tries = []

    def body(self):
        tries.append(1)
        if len(tries) == 1:
            raise ZeroDivisionError

    task = make(until, body, autoretry_for=(ZeroDivisionError,), retry_backoff=False, default_retry_delay=0)
    first = task.delay(1)
    queue.deliver()
    assert task.delay(1).id == first.id
    queue.deliver()
    assert len(tries) == 2
    assert task.delay(1).id != first.id


# -- who waits for what was not sent -----------------------------------------------------------------------------------


def assert_refused(result, first):
    with pytest.raises(TaskRevokedError) as told:
        result.get(timeout=5)
    assert str(told.value) == f"unique: lock '1' is reserved by unique[{first.id}]"
    assert result.state == states.REVOKED


def test_who_chose_an_id_gets_the_result_of_who_is_there_and_the_id_an_answer(app, make, queue):
    task = make()
    first = task.delay(1)
    result = task.apply_async((1,), task_id="chosen")
    assert result.id == first.id
    assert_refused(app.AsyncResult("chosen"), first)
    assert queue.ids() == [first.id]


def test_a_second_message_under_the_id_of_the_first_leaves_that_one_its_answer(app, make, queue):
    task = make()
    first = task.apply_async((1,), task_id="chosen")
    assert task.apply_async((1,), task_id="chosen").id == "chosen"
    assert first.state == states.PENDING
    assert queue.ids() == ["chosen"]
    queue.deliver()
    assert first.get(timeout=5) is None


def test_nothing_is_answered_where_nobody_wants_results(app, make, queue):
    task = make(ignore_result=True)
    task.delay(1)
    task.apply_async((1,), task_id="chosen")
    assert app.AsyncResult("chosen").state == states.PENDING


def test_a_chain_stops_at_a_member_that_is_not_sent(app, make, queue):
    task, plain = make(), make(None, name="plain")
    first = task.delay(1)
    beginning = chain(task.si(1), plain.si(2), plain.si(3)).apply_async()
    assert_refused(beginning, first)
    assert beginning.parent.state == beginning.parent.parent.state == states.REVOKED
    middle = chain(plain.si(2), task.si(1), plain.si(3)).apply_async()
    queue.deliver(queue.messages()[1])
    assert_refused(middle, first)
    assert middle.parent.state == states.REVOKED
    assert middle.parent.parent.state == states.SUCCESS
    alone = chain(task.si(1)).apply_async()
    assert alone.id == first.id


def test_a_group_with_members_that_are_not_sent_ends(app, make, queue):
    task, plain = make(), make(None, name="plain")
    first = task.delay(1)
    members = group(task.si(1), plain.si(2), task.si(3), task.si(3)).apply_async()
    queue.deliver_all()
    assert [each.state for each in members] == [states.REVOKED, states.SUCCESS, states.SUCCESS, states.REVOKED]
    assert_refused(members[0], first)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_chord_with_a_member_that_is_not_sent_ends_and_its_body_does_not_run(app, make, queue, place):
    ran = []
    task, plain = make(), make(None, name="plain")
    end = make(None, lambda self: ran.append(1), name="end")
    task.delay(1)
    header = [plain.si(2), plain.si(3)]
    header.insert(place, task.si(1))
    body = chord(header)(end.si(4))
    queue.deliver_all()
    with pytest.raises(ChordError, match="unique: lock '1' is reserved"):
        app.AsyncResult(body.id).get(timeout=5)
    assert not ran


def test_a_chord_all_of_whose_members_are_not_sent_ends(app, make, queue):
    task, end = make(), make(None, name="end")
    task.delay(1), task.delay(2)
    body = chord([task.si(1), task.si(2)])(end.si(4))
    with pytest.raises(ChordError, match="unique"):
        app.AsyncResult(body.id).get(timeout=5)


def test_a_chord_ends_whose_member_is_a_chain_with_a_member_that_is_not_sent(app, make, queue):
    task, plain, end = make(), make(None, name="plain"), make(None, name="end")
    first = task.delay(1)
    body = chord([plain.si(2) | task.si(1) | plain.si(5), task.si(1) | plain.si(6), plain.si(3)])(end.si(4))
    queue.lose()
    queue.deliver_all()
    with pytest.raises(ChordError, match="unique"):
        app.AsyncResult(body.id).get(timeout=5)
    assert first.state == states.PENDING


def test_a_body_of_a_chord_that_is_not_sent_has_an_answer(app, make, queue):
    task, plain = make(), make(None, name="plain")
    first = task.delay(1)
    body = chord([plain.si(2), plain.si(3)])(task.si(1))
    for message in queue.messages()[1:]:
        queue.deliver(message)
    assert_refused(body, first)


def test_what_is_linked_to_a_message_that_is_not_sent_is_not_called(app, make, queue):
    ran = []
    task = make()
    then = make(None, lambda self: ran.append(self.request.args), name="then")
    task.apply_async((1,), link=then.si("of the first"))
    task.apply_async((1,), link=then.si("of the second"), link_error=then.si("its errback"))
    queue.deliver_all()
    assert ran == [["of the first"]]


# -- here and now ------------------------------------------------------------------------------------------------------


def test_apply_runs_though_one_is_queued_and_reserves_nothing(app, make, queue):
    task = make("until_finished", lambda self: "ran")
    first = task.delay(1)
    assert task.apply((1,)).get() == "ran"
    assert task.apply((2,)).get() == "ran"
    assert not is_reserved(app, "2")
    assert task.delay(1).id == first.id


def test_an_eager_app_queues_nothing_so_each_call_runs(make_app, server, driver):
    app = make_app(lockbeat_driver=driver, task_always_eager=True)
    ran = []

    @app.task(base=LockedTask, name="unique", lock_unique="until_finished")
    def unique():
        ran.append(1)

    assert unique.delay().state == unique.delay().state == states.SUCCESS
    assert ran == [1, 1]
    assert not is_reserved(app, "unique")


# -- what fails --------------------------------------------------------------------------------------------------------


@BOTH
def test_a_broker_that_refuses_the_message_frees_its_place(make_app, server, driver, until):
    away = f"redis://127.0.0.1:{free_port()}/0"
    app = make_app(lockbeat_driver=driver, lockbeat_redis_url=server.url, broker_url=away, broker_write_url=away)

    @app.task(base=LockedTask, name="unique", lock_key="{x}", lock_unique=until)
    def unique(x):
        pass

    with pytest.raises(OperationalError):
        unique.apply_async((1,), retry=False)
    assert not is_reserved(app)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_whatever_strikes_a_publish_frees_its_place(app, make, error):
    task = make()

    def strike(*_args, **_options):
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("celery.app.amqp.AMQP.send_task_message", property(lambda _: strike))
        with pytest.raises(error):
            task.delay(1)
    assert not is_reserved(app)


def test_a_call_with_wrong_arguments_raises_what_celery_does_and_reserves_nothing(app, make):
    task = make()
    with pytest.raises(TypeError, match="z"):
        task.delay(1, z=2)
    assert not is_reserved(app)


def test_while_the_store_is_away_messages_are_sent_and_say_so(app, make, queue, monkeypatch, caplog):
    task = make()
    locks = locks_of(app)
    with monkeypatch.context() as away:
        away.setattr(locks, "reserve", _away)
        first, second = task.delay(1), task.delay(1)
    assert queue.ids() == [first.id, second.id]
    assert "whether unique is queued already under lock '1' is not known, and it is sent: away" in caplog.text


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"lock_unique": True}, "lock_unique of unique is True; allowed: False, 'until_started', 'until_finished'"),
        ({"lock_unique": "always"}, "lock_unique of unique is 'always'"),
        ({"lock_unique_ttl": 0}, "lock_unique_ttl of unique is 0; allowed: seconds"),
    ],
)
def test_what_is_no_value_of_it_is_refused_at_once(app, options, match):
    @app.task(base=LockedTask, name="unique", **options)
    def unique():
        pass

    with pytest.raises(ConfigurationError, match=match):
        app.finalize()


# -- its key -----------------------------------------------------------------------------------------------------------


@BOTH
def test_a_key_is_made_of_arguments_as_they_arrive(app, make, queue, until):
    """A tuple is a list by then, and a message that had reserved another key would never end it."""
    task = make(until, serializer="json")
    first = task.delay((1, 2))
    assert task.delay([1, 2]).id == first.id
    assert is_reserved(app, "[1, 2]")
    queue.deliver()
    assert not is_reserved(app, "[1, 2]")


@BOTH
def test_a_key_that_is_another_one_at_the_run_ends_all_the_same(app, make, queue, until):
    now, seen = ["before"], []

    def body(self):
        if until == "until_started":
            wait_until(lambda: not is_reserved(app, "before"))
        seen.append(is_reserved(app, "before"))

    task = make(until, body, lock_key=lambda x=1, *, y=None: now[0])
    task.delay(1)
    now[0] = "after"
    queue.deliver()
    assert seen == [until == "until_finished"]
    assert not is_reserved(app, "before")


# -- what is told ------------------------------------------------------------------------------------------------------


def test_a_message_that_is_not_sent_is_a_skip_that_names_the_task_that_is_there(app, make, skips, caplog):
    caplog.set_level(logging.INFO, "celery_lockbeat.events")
    task = make("until_finished")
    first = task.delay(1)
    task.apply_async((1,), task_id="chosen")
    (told,) = skips
    assert (told["reason"], told["status"], told["holder"]) == ("unique", "skipped", f"unique[{first.id}]")
    assert (told["task_name"], told["task_id"], told["lock_key"]) == ("unique", "chosen", "1")
    (record,) = [r for r in caplog.records if r.name == "celery_lockbeat.events"]
    assert json.loads(record.getMessage())["holder"] == f"unique[{first.id}]"


def test_who_listens_sees_the_message_that_was_not_sent(make, app):
    """By its headers Sentry's check-in is found, which a beat has begun for it."""
    seen = []

    def see(sender, task_id, **_):
        seen.append((sender.request.id == task_id, sender.request.headers["sentry"]))

    task = make()
    task.delay(1)
    ours.task_skipped.connect(see)
    try:
        task.apply_async((1,), task_id="chosen", headers={"sentry": "check-in"})
    finally:
        ours.task_skipped.disconnect(see)
    assert seen == [(True, "check-in")]
    assert task.request.id is None


def test_a_run_that_is_there_is_named_with_its_host(make, queue, skips):
    task = make("until_finished", lambda self: self.delay(1))
    first = task.delay(1)
    queue.deliver()
    (told,) = skips
    assert told["holder"].startswith("worker@tests pid ")
    assert told["holder"].endswith(f" unique[{first.id}]")


def test_the_journal_has_each_message_that_others_were_not_sent_for_once(app, make, queue, skips):
    task = make()
    for _ in range(2):
        task.delay(1)
        for _ in range(3):
            task.delay(1)
        queue.lose()
        locks_of(app).unreserve(Reservation("1", "unique", *next(iter(_reserved(queue, app)))))
    finish()
    records = [each for each in journal.read(app) if each.event == "task_skipped"]
    assert [each.reason for each in records] == ["unique"] * 2
    assert len(skips) == 6


def _reserved(queue, app):
    there = locks_of(app).reserve(Reservation("1", "unique", "probe", "probe"), ttl=30)
    yield there.task_id, there.token


# -- beats -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def unique_entry(simulation):
    """Make an app with an entry each so many seconds, whose task no worker takes."""

    def made(seconds, **options):
        app = simulation.app({"report": every(seconds, "unique")})

        @app.task(base=LockedTask, shared=False, name="unique", **{"lock_unique": "until_started", **options})
        def unique():
            raise AssertionError

        return app

    return made


@pytest.mark.parametrize("driver", ["memory"])  # in Redis it is the server's time that ends what is reserved
def test_a_tick_whose_task_is_queued_is_not_sent_and_says_which(simulation, unique_entry, skips):
    beat = simulation.beat(unique_entry(1, lock_unique_ttl=9.5))
    simulation.world.run(beat, seconds=15.5)
    sent = [(each.run, each.id) for each in simulation.messages]
    assert [run for run, _ in sent] == [1, 11]
    assert [each["run"] for each in skips] == [*range(2, 11), *range(12, 16)]
    assert all((each["schedule"], each["reason"]) == ("report", "unique") for each in skips)
    assert [each["holder"] for each in skips] == [f"unique[{sent[0][1]}]"] * 9 + [f"unique[{sent[1][1]}]"] * 4
    (entry,) = simulation.store.store.beats.status("simulated").entries
    assert (entry.state.total_run_count, entry.pending) == (15, 0), "they are settled all the same"
    beat.close()


def test_a_tick_that_is_taken_over_is_sent_again_as_its_own_copy(simulation, unique_entry, skips):
    """A beat has sent it, and is killed before it could say so."""
    killed, other = simulation.beat(unique_entry(60)), simulation.beat(unique_entry(60))
    simulation.store.fails = lambda name: "before" if name == "settle" else None
    simulation.world.run(killed, seconds=60.5)
    simulation.store.fails = lambda _: None
    simulation.world.run(other, seconds=20)
    assert [each.run for each in simulation.messages] == [1, 1]
    assert len({each.id for each in simulation.messages}) == 1
    assert not skips
    other.close()


def test_a_tick_that_the_broker_refuses_is_sent_later(simulation, unique_entry, skips):
    beat = simulation.beat(unique_entry(60))
    simulation.world.broker.down = True
    simulation.world.run(beat, seconds=62)
    assert not simulation.messages
    simulation.world.broker.down = False
    simulation.world.run(beat, seconds=30)
    assert [each.run for each in simulation.messages] == [1]
    assert not skips
    beat.close()

"""A run that has several keys, all or none: what its task may say, what it is told, and what is told of it."""

from __future__ import annotations

import logging
import threading
from datetime import timezone

import pytest
from celery import states
from celery.exceptions import TaskRevokedError
from held import is_free
from messages import Queue
from scripted import DOWN, ScriptedStore, Time, renewer
from servers import wait_until
from test_renewal import Recorder

from celery_lockbeat import ConfigurationError, Lock, LockedTask, LockLost, LockNotAcquired, TaskSkipped, current_lock
from celery_lockbeat import signals as ours
from celery_lockbeat.journal import read
from celery_lockbeat.journal.sentences import Writing, sentence_of
from celery_lockbeat.journal.ticks import ticks_of
from celery_lockbeat.journal.writer import finish
from celery_lockbeat.observe.vocabulary import took
from celery_lockbeat.stores import stores_of
from celery_lockbeat.stores.redis.node import Node


def moves(app, body=None, **options):
    """A task that has the keys of two accounts."""
    options = {"lock_key": ["account:{source}", "account:{target}"], **options}

    @app.task(base=LockedTask, bind=True, name="move", **options)
    def move(self, source, target):
        return None if body is None else body(self)

    app.finalize()
    return move


def locks_of(app):
    return stores_of(app).choose(app.conf.lockbeat_driver, "default")[0].locks


def held(app) -> dict[str, str]:
    return {lock.key: lock.holder for lock in locks_of(app).held()}


@pytest.fixture
def queue(app, server) -> Queue:
    return Queue(app, server)


@pytest.fixture
def told():
    """The events of tasks, and what their fields were."""
    events = []

    def tell(event, sender, signal, **fields):
        events.append({"event": event, **fields})

    names = ("task_started", "task_succeeded", "task_failed", "task_skipped", "task_waiting", "task_finished")
    for name in names:
        getattr(ours, name).connect(tell)
    yield events
    for name in names:
        getattr(ours, name).disconnect(tell)


# -- what may be said --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [[], (), [""], ["a", 7], ["a", None], [["a"]], {"a"}, {"a": "b"}, ["{source}"] * 101, ["{source"], ["{nobody}"]],
)
def test_what_is_no_list_of_keys_is_refused_when_the_task_is_bound(app, value):
    with pytest.raises(ConfigurationError, match=r"lock_key of move is .*; allowed: "):
        moves(app, lock_key=value)


@pytest.mark.parametrize("value", [[], [""], ["a", 7], [f"k{number}" for number in range(101)], 7, None])
def test_a_function_that_returns_none_is_refused_at_the_call(app, value):
    task = moves(app, lock_key=lambda source, target: value)
    with pytest.raises(ConfigurationError, match=r"lock_key of move is .*; allowed: .*a list of 1 to 100 of them"):
        task(1, 2)
    with pytest.raises(ConfigurationError, match=r"the key of Lock is .*; allowed: .*a list of 1 to 100 of them"):
        Lock(value, app=app)


@pytest.mark.parametrize(
    "value",
    [
        ["account:{source}", "account:{target}"],
        ("account:{target}", "account:{source}", "account:{source}"),
        lambda source, target: [f"account:{target}", f"account:{source}"],
        lambda source, target: {f"account:{target}", f"account:{source}"},
        lambda self, source, target: (f"account:{source}", f"account:{target}"),
    ],
)
def test_the_keys_of_a_call_are_the_same_in_whatever_order_they_are_said(app, value):
    seen = []
    task = moves(app, lambda self: seen.append((current_lock().keys, set(held(app)))), lock_key=value)
    task(1, 2)
    task(source=2, target=1)
    assert seen == [(("account:1", "account:2"), {"account:1", "account:2"})] * 2
    assert held(app) == {}


def test_two_keys_that_are_the_same_are_one(app):
    seen = []
    moves(app, lambda self: seen.append((current_lock().key, current_lock().tokens)))(1, 1)
    ((key, tokens),) = seen
    assert (key, list(tokens)) == ("account:1", ["account:1"])


# -- all or none -------------------------------------------------------------------------------------------------------


def test_with_a_lock_of_several_keys_each_has_a_token_and_the_greatest_is_the_locks(app):
    with Lock(["b", "a"], app=app) as lock:
        assert (lock.keys, lock.key) == (("a", "b"), "a, b")
        assert list(lock.tokens) == ["a", "b"]
        assert lock.token == max(lock.tokens.values())
        assert not is_free(app, "a")
        assert not is_free(app, "b")
        assert lock.extend(60)
        assert lock.remaining > 50
    assert is_free(app, "a")
    assert is_free(app, "b")
    with Lock("b", app=app) as later:
        assert later.token > lock.tokens["b"]


def test_who_is_refused_hears_which_of_them_is_held_and_has_none(app):
    with Lock("b", app=app):
        with pytest.raises(LockNotAcquired, match="lock 'b' is held by") as refused, Lock(["a", "b"], app=app):
            pass
        assert refused.value.key == "b"
        assert is_free(app, "a")


def test_a_lock_of_several_keys_may_be_tried_again_and_awaited_on_no_event_loop(app):
    first = Lock("b", app=app)
    assert first.acquire()
    timer = threading.Timer(0.1, first.release)
    timer.start()
    with Lock(["a", "b"], app=app, retry_attempts=200, retry_delay=0.02):
        pass
    timer.join()


def test_a_lock_of_several_keys_waits_for_the_one_that_is_held(app):
    first = Lock("b", app=app)
    assert first.acquire()
    timer = threading.Timer(0.3, first.release)
    timer.start()
    with Lock(["a", "b"], app=app, wait=20) as lock:
        assert list(lock.tokens) == ["a", "b"]
    timer.join()
    assert locks_of(app).line("b") == []
    with Lock("b", app=app), pytest.raises(LockNotAcquired, match="lock 'b'"), Lock(["a", "b"], app=app, wait=0.1):
        pass
    assert is_free(app, "a")


@pytest.mark.parametrize("lost", ["a", "b"])
def test_who_has_lost_one_of_them_has_lost_all(app, lost):
    with pytest.raises(LockLost), Lock(["a", "b"], app=app, ttl=30) as lock:
        assert locks_of(app).free(lost, holder=held(app)[lost])
        assert lock.extend() is False
        assert lock.lost
        with pytest.raises(LockLost):
            lock.check()
    wait_until(lambda: is_free(app, "a") and is_free(app, "b"), 10, "nothing of it is left")


def test_a_run_that_loses_one_of_its_keys_fails(app, told):
    def body(self):
        assert locks_of(app).free("account:2", holder=held(app)["account:2"])
        assert Lock("account:2", app=app, hold_at_least=60).acquire()

    task = moves(app, body)
    with pytest.raises(LockLost):
        task(1, 2)
    assert [event["event"] for event in told] == ["task_started", "task_failed", "task_finished"]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([True, True, True], ["extended", "extended"]),
        ([False, True, True], ["refused", "extended"]),
        ([True, False, True], ["refused", "extended"]),
        ([DOWN, False, True], ["refused", "extended"]),
        ([True, DOWN, True], ["StoreUnavailable", "extended"]),
        ([True, True, False], ["extended", "refused"]),
    ],
)
def test_all_keys_of_a_lock_are_renewed_in_one_call_or_it_is_lost(answers, expected):
    time = Time()
    store = ScriptedStore(time, [answers])
    made, run_until = renewer(store, time)
    locks = [Recorder(time, "a b"), Recorder(time, "c")]
    made._locks = locks  # in this order
    made._wakes_at = 10.0
    run_until(10.5)
    assert store.extensions == [(10, {"a", "b", "c"})]
    assert [lock.told[0][0] for lock in locks] == expected


@pytest.mark.parametrize("driver", ["redis"])
@pytest.mark.parametrize("unique", [False, "until_started"])
def test_a_run_of_several_keys_costs_two_round_trips_as_one_of_one_key_does(app, queue, monkeypatch, unique):
    app.conf.lockbeat_journal = 0  # whose thread makes round trips of its own
    task = moves(app, lock_unique=unique)
    task.delay(3, 4)
    queue.deliver()
    task.delay(1, 2)
    trips, talk = [], Node.talk
    monkeypatch.setattr(Node, "talk", lambda *asked: trips.append(asked) or talk(*asked))
    queue.deliver()
    assert len(trips) == 2


# -- when one is held --------------------------------------------------------------------------------------------------


def test_a_run_whose_key_is_held_is_skipped_with_that_key_in_what_is_told(app, queue, told):
    task = moves(app)
    with Lock("account:2", app=app):
        with pytest.raises(TaskSkipped, match="locked: lock 'account:2' is held by") as skipped:
            task(1, 2)
        assert skipped.value.key == "account:2"
        result = task.delay(1, 2)
        queue.deliver()
        with pytest.raises(TaskRevokedError, match="account:2"):
            result.get(timeout=5)
        assert is_free(app, "account:1")
    (event,) = [each for each in told if each["event"] == "task_skipped" and each.get("task_id") == result.id]
    assert (event["reason"], event["held_key"]) == ("locked", "account:2")
    assert (event["lock_key"], event["lock_keys"]) == ("account:1, account:2", ("account:1", "account:2"))
    assert "token" not in event


def test_a_run_whose_key_is_held_fails_with_that_key(app):
    task = moves(app, lock_if_held="fail")
    with Lock("account:2", app=app), pytest.raises(LockNotAcquired, match="lock 'account:2' is held by") as failed:
        task(2, 1)
    assert failed.value.key == "account:2"


def test_a_run_waits_for_the_key_that_is_held_and_has_both_when_it_is_free(app, queue, told):
    task = moves(app, lock_if_held="wait")
    with Lock("account:2", app=app):
        result = task.delay(1, 2)
        queue.deliver()
        (waiting,) = [each for each in told if each["event"] == "task_waiting"]
        assert (waiting["held_key"], waiting["count"]) == ("account:2", 0)
        assert is_free(app, "account:1")
        assert [len(locks_of(app).line(f"account:{number}")) for number in (1, 2)] == [0, 1]
        queue.lose()  # the copy that comes by itself
    assert queue.ids() == [result.id], "it was called when the key was free"
    queue.deliver()
    assert result.state == states.SUCCESS
    assert held(app) == {}


def test_who_has_one_of_the_keys_is_told_to_stop_for_a_run_that_replaces_it(app, queue):
    task = moves(app, lock_if_held="replace")
    with pytest.raises(LockLost), Lock(["account:2", "other"], app=app) as lock:
        result = task.delay(1, 2)
        queue.deliver()
        assert lock.extend()
        wait_until(lambda: lock.lost, 10, "it is told")
    wait_until(lambda: result.id in queue.ids(), 10, "the other is called")
    queue.deliver_all()
    assert result.state == states.SUCCESS


def test_each_key_may_have_as_many_holders_as_the_limit_says(app):
    with Lock(["a", "b"], app=app, limit=2), Lock(["b", "c"], app=app, limit=2):
        with pytest.raises(LockNotAcquired, match="lock 'b'"), Lock(["a", "b"], app=app, limit=2):
            pass
        with Lock(["a", "c"], app=app, limit=2):
            pass


def test_a_finished_run_of_several_keys_is_not_run_once_more(app, queue, told):
    task = moves(app)
    task.delay(1, 2)
    message = queue.lose()
    queue.deliver(message)
    queue.deliver(message)
    assert [each["reason"] for each in told if each["event"] == "task_skipped"] == ["duplicate"]


# -- not even queued ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("until", ["until_started", "until_finished"])
def test_a_message_with_the_same_keys_is_not_sent_and_one_with_others_is(app, queue, until, told):
    task = moves(app, lock_unique=until)
    first = task.delay(1, 2)
    assert task.delay(2, 1).id == first.id
    assert task.delay(1, 3).id != first.id
    assert len(queue) == 2
    (event,) = told
    assert (event["reason"], event["lock_key"], event["lock_keys"]) == (
        "unique",
        "account:1, account:2",
        ("account:1", "account:2"),
    )
    assert event["holder"] == f"move[{first.id}]"
    queue.deliver_all()
    assert not hasattr(task.delay(1, 2), "already_queued")


def test_until_it_has_started_another_may_be_queued_while_it_runs(app, queue):
    sent = []
    task = moves(app, lambda self: sent.append(task.delay(2, 1)), lock_unique="until_started")
    first = task.delay(1, 2)
    queue.deliver()
    assert [each.id for each in sent] == queue.ids() != [first.id]


def test_until_it_has_finished_none_with_its_keys_is_queued_and_those_with_others_are(app, queue):
    sent = {}

    def body(self):
        if self.request.id == first.id:
            sent.update(same=task.delay(2, 1), other=task.delay(1, 3), one=task.delay(1, 1))

    task = moves(app, body, lock_unique="until_finished")
    first = task.delay(1, 2)
    queue.deliver()
    assert sent["same"].id == first.id
    assert queue.ids() == [sent["other"].id, sent["one"].id]
    again = task.delay(1, 2)
    assert again.id != first.id


# -- what is told ------------------------------------------------------------------------------------------------------


def test_the_journal_has_all_keys_and_finds_a_run_by_each_of_them(app, queue):
    began = []

    def body(self):
        if not began:
            began.append(True)
            skipped.append(task.apply(args=(3, 2)))

    skipped = []
    task = moves(app, body)
    task.delay(1, 2)
    queue.deliver()
    finish()
    one, other = read(app, key="account:2", status="skipped"), read(app, key="account:1", status="success")
    assert [(each.lock_key, each.lock_keys, each.held_key) for each in one] == [
        ("account:2, account:3", ("account:2", "account:3"), "account:2")
    ]
    assert [each.lock_keys for each in other] == [("account:1", "account:2")]
    assert read(app, key="account:3", status="success") == []
    ticks = ticks_of(read(app))
    (skip,) = [tick for tick in ticks if tick.outcome == "skipped"]
    sentence = sentence_of(skip, ticks, Writing(timezone.utc, took))
    assert "its lock 'account:2' was held by" in sentence
    assert ", since " in sentence


def test_in_brief_it_is_told_which_of_the_keys_is_held(app, caplog):
    task = moves(app, lock_logging="brief")
    with caplog.at_level(logging.INFO, "celery_lockbeat.events"):
        task(1, 2)
        with Lock("account:2", app=app, logging=False), pytest.raises(TaskSkipped):
            task(1, 2)
    done, skipped = [record.getMessage() for record in caplog.records]
    assert done.startswith("move [account:1, account:2] succeeded in ")
    assert skipped.startswith("move [account:1, account:2] skipped: account:2 held by ")

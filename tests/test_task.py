"""LockedTask in one process, on each driver: whatever Celery lets a task be, and every way in which it can end."""

from __future__ import annotations

import logging
import time

import celery
import pytest
from celery import _state, shared_task, states
from celery.app.trace import build_tracer
from celery.exceptions import Ignore, Reject, Retry, TaskRevokedError
from held import is_free
from pydantic import BaseModel

import celery_lockbeat
from celery_lockbeat import Lock, LockedTask, LockLost, LockNotAcquired, StoreUnavailable, TaskSkipped, current_lock
from celery_lockbeat.stores import stores_of


def names(events) -> list[str]:
    return [event["event"] for event in events()]


# -- how tasks are made and called -------------------------------------------------------------------------------------


def test_a_bound_task_sees_the_workers_own_request(app):
    @app.task(base=LockedTask, bind=True)
    def body(self, x):
        return self.request.id, self.request.retries, self.request.headers, current_lock().held

    assert body.apply((1,), task_id="mine", headers={"a": 1}).get() == ("mine", 0, {"a": 1}, True)


def test_a_direct_call_takes_the_lock_and_a_held_one_raises_task_skipped(app):
    @app.task(base=LockedTask, lock_key="k")
    def body():
        assert not is_free(app, "k")
        return 5

    assert body() == 5
    with Lock("k", app=app), pytest.raises(TaskSkipped) as skipped:
        body()
    assert skipped.value.reason == "locked"
    assert skipped.value.key == "k"
    assert "pid" in skipped.value.holder or skipped.value.holder


def test_a_skipped_run_leaves_celery_no_frames_of_ours_to_copy_and_format(app):
    @app.task(base=LockedTask, lock_key="k")
    def body():
        pass

    body.push_request(id="id", called_directly=False, is_eager=False, retries=0)
    try:
        with Lock("k", app=app), pytest.raises(TaskSkipped) as skipped:
            body()
    finally:
        body.pop_request()
    names = [entry.name for entry in skipped.traceback]
    assert names[1:-1] == ["__call__"] * (len(names) - 2), "those of Celery and of the proxy that it makes of a task"
    assert names[-1] == "run", "ours"
    with Lock("k", app=app), pytest.raises(TaskSkipped) as skipped:
        body()
    assert len(skipped.traceback) > 2, "whoever calls it directly sees all"


def test_a_skipped_apply_is_revoked_and_tells_who_waits(app):
    @app.task(base=LockedTask, lock_key="k")
    def body():
        raise AssertionError

    with Lock("k", app=app):
        result = body.apply()
    assert result.state == states.REVOKED
    with pytest.raises(TaskRevokedError, match="locked: lock 'k' is held by "):
        result.get()


def test_a_task_that_calls_itself_finds_its_own_key_held(app):
    @app.task(base=LockedTask, bind=True)
    def body(self, depth=0):
        inner = self.request.called_directly
        if depth == 0:
            with pytest.raises(TaskSkipped):
                self(1)
        return inner

    assert body.apply().get() is False


def test_a_nested_call_of_another_task_has_a_lock_and_a_request_of_its_own(app):
    @app.task(base=LockedTask, bind=True)
    def inner(self):
        return current_lock().key, self.request.called_directly

    @app.task(base=LockedTask, bind=True)
    def outer(self):
        return inner(), current_lock().key, self.request.called_directly

    assert outer.apply().get() == ((inner.name, True), outer.name, False)


# -- eagerly, as in a worker --------------------------------------------------------------------------------------------


def test_what_replaces_a_run_may_have_its_key_also_eagerly(app):
    held = []

    @app.task(base=LockedTask, bind=True, lock_key="k", lock_hold_at_least=0)
    def body(self, way):
        held.append(current_lock().held)
        assert not is_free(app, "k")
        if way == "itself":
            return self.replace(self.s("done"))
        if way == "chain":
            return self.replace(self.si("done") | self.si("done"))
        if way == "group":
            return self.replace(celery.group(self.si("done"), self.si("done")))
        if way == "within a block":
            with Lock("another", app=app):
                return self.replace(self.s("done"))
        return way

    # not by task_always_eager: there Celery forbids replace() to wait for what replaces
    assert [body.apply((way,)).get() for way in ("itself", "chain", "within a block")] == ["done"] * 3
    assert body.apply(("group",)).get() == ["done", "done"]
    assert all(held)
    assert is_free(app, "k")


def test_a_run_that_is_replaced_eagerly_tells_its_story_as_in_a_worker(app, events):
    @app.task(base=LockedTask, bind=True, lock_key="k", lock_hold_at_least=30)
    def body(self, last=False):
        if not last:
            self.replace(self.s(last=True))
            assert not current_lock()

    assert body.apply().state == states.SUCCESS
    assert sorted(names(events)) == ["task_finished"] * 2 + ["task_started"] * 2 + ["task_succeeded"] * 2


def test_a_retry_and_the_links_of_a_chain_may_have_one_key_also_eagerly(app):
    app.conf.task_always_eager = True

    @app.task(base=LockedTask, bind=True, lock_key="k", max_retries=3)
    def body(self, x):
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return x + 1

    assert body.delay(1).get() == 2
    assert celery.chain(body.s(1), body.s(), body.s()).delay().get() == 4
    assert celery.chain(body.s(1), body.s()).apply().get() == 3
    assert celery.chord([body.s(1), body.s(2)], app.tasks["celery.accumulate"].s()).delay().get() == ([2, 3],)


# -- Celery's own tasks --------------------------------------------------------------------------------------------------


def locked_everywhere(make_app, **settings):
    class Everywhere(LockedTask):
        abstract = True
        lock_key = "{customer_id}"

    app = make_app(lockbeat_driver="memory", **settings)
    app.task_cls = Everywhere
    return app


@pytest.fixture
def no_tasks_but_celerys(monkeypatch):
    """Shared tasks of other modules that this process has imported would be made for a later app, too, and bound to it."""
    own = {each for each in _state._on_app_finalizers if each.__module__ == "celery.app.builtins"}
    assert len(own) >= 8
    monkeypatch.setattr(_state, "_on_app_finalizers", own)


@pytest.mark.usefixtures("no_tasks_but_celerys")
def test_celerys_own_tasks_are_not_locked_with_all_others(make_app):
    app = locked_everywhere(make_app)

    @app.task
    def body(customer_id):
        return current_lock().key

    assert body("c") == "c"
    own = [task for name, task in app.tasks.items() if name.startswith("celery.")]
    assert len(own) >= 8
    assert not any(task._plan().options.enabled for task in own)
    with Lock("celery.accumulate", app=app):
        assert app.tasks["celery.accumulate"](1, 2) == (1, 2)


@pytest.mark.usefixtures("no_tasks_but_celerys")
def test_celerys_own_task_is_locked_when_it_is_asked_for_by_name(make_app):
    for asked, key in (({"lock_key": "mine"}, "mine"), ({"lock_enabled": True, "lock_key": "its"}, "its")):
        annotations = {"celery.accumulate": asked, "*": {"lock_enabled": True}}
        app = locked_everywhere(make_app, task_annotations=annotations)
        assert not app.tasks["celery.chord_unlock"]._plan().options.enabled
        with Lock(key, app=app), pytest.raises(TaskSkipped):
            app.tasks["celery.accumulate"](1, 2)


def test_a_task_of_a_users_own_may_be_named_as_celerys_are(app):
    @app.task(base=LockedTask, name="celery.mine")
    def body():
        return current_lock().key

    assert body() == "celery.mine"


# -- how tasks are made, again --------------------------------------------------------------------------------------------


def test_a_class_based_task_works(app):
    class Report(LockedTask):
        name = "report"

        def lock_key(self, customer):
            return f"{self.name}:{customer}"

        def run(self, customer):
            return current_lock().key

    task = app.register_task(Report())
    assert task(3) == "report:3"
    assert task.apply((4,)).get() == "report:4"


def test_a_shared_task_works(app):
    app.set_current()

    @shared_task(base=LockedTask, name="shared", lock_key="s:{x}")
    def shared(x):
        return current_lock().key

    assert app.tasks["shared"].apply((1,)).get() == "s:1"


def test_annotations_set_options(make_app, driver):
    app = make_app(lockbeat_driver=driver, task_annotations={"noted": {"lock_key": "from annotations", "lock_ttl": 7}})

    @app.task(base=LockedTask, name="noted")
    def noted():
        return current_lock().key, current_lock().ttl

    assert noted() == ("from annotations", 7)


def test_settings_made_after_the_task_count(app):
    @app.task(base=LockedTask, name="early")
    def early():
        return current_lock().ttl

    app.finalize()
    app.conf.lockbeat_ttl = 9
    assert early() == 9


@pytest.mark.skipif(celery.VERSION < (5, 5), reason="Celery has pydantic=True since 5.5")
def test_pydantic_tasks_work(app):
    class Customer(BaseModel):
        id: int

    def body(customer: Customer) -> int:
        return customer.id

    body.__annotations__ = {"customer": Customer, "return": int}
    task = app.task(base=LockedTask, pydantic=True, lock_key="c:{customer[id]}")(body)
    assert task.apply(({"id": 7},)).get() == 7


def test_always_eager_works(make_app, driver):
    app = make_app(lockbeat_driver=driver, task_always_eager=True)

    @app.task(base=LockedTask)
    def body(x):
        return x

    assert body.delay(4).get() == 4


def test_a_disabled_lock_is_no_lock(app, events):
    @app.task(base=LockedTask, lock_enabled=False, lock_key="k")
    def body():
        return current_lock()

    with Lock("k", app=app):
        assert body() is None
    assert names(events) == ["task_started", "task_succeeded", "task_finished"]


def test_retry_and_autoretry_are_new_runs(app):
    tries = []

    @app.task(base=LockedTask, bind=True, max_retries=2)
    def by_hand(self):
        tries.append(self.request.retries)
        if len(tries) < 3:
            raise self.retry(countdown=0)
        return "done"

    assert by_hand.apply().get() == "done"
    assert tries == [0, 1, 2]
    tries.clear()

    @app.task(base=LockedTask, autoretry_for=(ValueError,), retry_kwargs={"countdown": 0, "max_retries": 1})
    def by_itself():
        tries.append(1)
        raise ValueError

    assert by_itself.apply().state == states.FAILURE
    assert len(tries) == 2


def test_a_held_lock_fails_the_run_where_it_may_not_be_skipped_and_autoretry_sees_it(app):
    def body():
        raise AssertionError

    task = app.task(base=LockedTask, name="a", lock_key="k", lock_skip_if_locked=False)(body)
    again = app.task(
        base=LockedTask,
        name="b",
        lock_key="k",
        lock_skip_if_locked=False,
        autoretry_for=(LockNotAcquired,),
        retry_kwargs={"countdown": 0, "max_retries": 2},
    )(body)
    with Lock("k", app=app):
        result = task.apply()
        retried = again.apply()
    assert isinstance(result.result, LockNotAcquired)
    assert isinstance(retried.result, LockNotAcquired)


def test_as_many_runs_hold_a_key_as_its_limit_says(app):
    @app.task(base=LockedTask, lock_key="k", lock_limit=2)
    def body():
        return current_lock().token

    with Lock("k", app=app) as first:
        assert body.apply().get() > first.token
        with Lock("k", app=app, limit=2):
            assert body.apply().state == states.REVOKED
        assert body() > first.token


def test_a_run_fails_or_is_skipped_as_the_newer_option_says_too(app):
    def body():
        raise AssertionError

    with Lock("k", app=app):
        failed = app.task(base=LockedTask, name="a", lock_key="k", lock_if_held="fail")(body).apply()
        skipped = app.task(base=LockedTask, name="b", lock_key="k", lock_if_held="skip")(body).apply()
    assert isinstance(failed.result, LockNotAcquired)
    assert skipped.state == states.REVOKED


def test_a_held_lock_is_tried_again_as_often_as_asked(app):
    @app.task(base=LockedTask, lock_key="k", lock_retry_attempts=200, lock_retry_delay=0.05, lock_retry_jitter=0.01)
    def body():
        return "got it"

    import threading

    before = threading.active_count()
    with Lock("k", app=app, hold_at_least=2):
        pass
    started = time.monotonic()
    assert not is_free(app, "k")
    assert body() == "got it"
    assert time.monotonic() - started < 10
    assert threading.active_count() < before + 5


def test_a_key_is_held_for_at_least_as_long_as_asked_but_not_for_a_retry(app):
    @app.task(base=LockedTask, lock_key="k", lock_hold_at_least=30)
    def body():
        pass

    body()
    assert not is_free(app, "k")

    @app.task(base=LockedTask, bind=True, lock_key="k2", lock_hold_at_least=30)
    def again(self):
        if not self.request.retries:
            raise self.retry(countdown=0)
        return "again"

    assert again.apply().get() == "again"


# -- how runs end ------------------------------------------------------------------------------------------------------


class Gone(BaseException):
    pass


GOOD = ["task_started", "task_succeeded", "task_finished"]
BAD = ["task_started", "task_failed", "task_finished"]


@pytest.mark.parametrize(
    ("raised", "expected", "error"),
    [
        (None, GOOD, None),
        (Ignore("no result"), GOOD, None),
        (ValueError("boom"), BAD, ("ValueError", "boom")),
        (Reject("no", requeue=False), BAD, ("Reject", "('no', False)")),
        (Retry("later", exc=None), BAD, ("Retry", "later")),
        (SystemExit(3), BAD, ("SystemExit", "3")),
        (KeyboardInterrupt(), BAD, ("KeyboardInterrupt", "")),
        (Gone("away"), BAD, ("Gone", "away")),
        (TaskSkipped("inner", reason="locked"), ["task_started", "task_skipped", "task_finished"], None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_each_ending_is_told_once_in_order_and_frees_the_key(app, events, raised, expected, error):
    @app.task(base=LockedTask, lock_key="k:{x}")
    def body(x):
        if raised is not None:
            raise raised
        return "fine"

    if raised is None:
        assert body(1) == "fine"
    else:
        with pytest.raises(type(raised)) as caught:
            body(1)
        assert caught.value is raised
    told = events()
    assert [event["event"] for event in told] == expected
    assert len({event["execution_id"] for event in told}) == 1
    status = {"task_succeeded": "success", "task_failed": "failed", "task_skipped": "skipped"}[expected[1]]
    assert [event.get("status") for event in told] == [None, status, status]
    for event in told:
        assert event["task_name"] == body.name
        assert event["lock_key"] == "k:1"
        assert event["kind"] == "task"
        assert event["ttl"] == 30
        assert event["token"] > 0
        assert event["hostname"]
        assert event["pid"]
        assert event["timestamp"].endswith("+00:00")
        assert None not in event.values()
    assert (told[1].get("error_name"), told[1].get("error_message")) == (error or (None, None))
    assert is_free(app, "k:1")


def test_verbose_tells_the_locks_story_too(app, events):
    @app.task(base=LockedTask, lock_logging="verbose", lock_ttl=3)
    def body():
        time.sleep(1.4)

    body()
    told = names(events)
    assert told[:2] == ["task_started", "lock_acquired"]
    assert set(told[2:-3]) == {"lock_extended"}
    assert told[-3:] == ["lock_released", "task_succeeded", "task_finished"]


def test_logging_can_be_off_and_signals_still_come(app, events):
    seen = []

    def receiver(event, **_):
        seen.append(event)

    for name in ("task_started", "task_finished"):
        getattr(celery_lockbeat.signals, name).connect(receiver)

    @app.task(base=LockedTask, lock_logging=False)
    def body():
        pass

    body()
    assert names(events) == []
    assert seen == ["task_started", "task_finished"]


def test_an_observer_that_raises_breaks_nothing(app, events):
    def receiver(**_):
        raise RuntimeError("observer")

    class Broken(logging.Handler):
        def emit(self, record):
            raise RuntimeError("handler")

    celery_lockbeat.signals.task_started.connect(receiver)
    broken = Broken()
    logging.getLogger("celery_lockbeat.events").addHandler(broken)
    try:

        @app.task(base=LockedTask)
        def body():
            return "fine"

        assert body() == "fine"
    finally:
        logging.getLogger("celery_lockbeat.events").removeHandler(broken)
        celery_lockbeat.signals.task_started.disconnect(receiver)


def test_a_finished_run_is_remembered_for_longer_than_its_broker_takes_to_deliver_it_again(make_app, server):
    app = make_app(lockbeat_driver="redis", broker_transport_options={"visibility_timeout": 7200})

    @app.task(base=LockedTask)
    def body():
        pass

    build_tracer(body.name, body, app=app)("id", (), {}, {"id": "id", "task": body.name, "delivery_info": {}})
    with server.client() as client:
        assert max(client.ttl(key) for key in client.keys("lockbeat:*")) > 7200


@pytest.mark.parametrize("on_lost", ["fail", "warn"])
def test_a_lost_lock_reads_in_order_and_is_no_success_unless_asked(app, events, on_lost):
    @app.task(base=LockedTask, lock_key="k", lock_ttl=1.5, lock_on_lost=on_lost)
    def body():
        lock = current_lock()
        assert not lock.lost
        # the admin's way to take a lock away: its lease is released under its holder
        lock._store.locks.release(lock.lease)
        deadline = time.monotonic() + 20
        while not lock.lost and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(LockLost):
            lock.check()
        return "body"

    losses = ["task_started", "lock_extend_failed", "lock_expired_before_finish"]
    if on_lost == "fail":
        with pytest.raises(LockLost, match="'k'"):
            body()
        assert names(events) == [*losses, "task_failed", "task_finished"]
        assert events()[-2]["error_name"] == "LockLost"
    else:
        assert body() == "body"
        assert names(events) == [*losses, "task_succeeded", "task_finished"]


def test_a_loss_is_told_before_the_end_of_the_run_however_slow_an_observer_is(app, events):
    @app.task(base=LockedTask, lock_ttl=1)
    def body():
        lock = current_lock()
        lock._store.locks.release(lock.lease)
        deadline = time.monotonic() + 20
        while not lock.lost and time.monotonic() < deadline:
            time.sleep(0.001)

    def slow(**_):
        time.sleep(0.2)

    celery_lockbeat.signals.lock_extend_failed.connect(slow)
    try:
        with pytest.raises(LockLost):
            body()
    finally:
        celery_lockbeat.signals.lock_extend_failed.disconnect(slow)
    losses = ["task_started", "lock_extend_failed", "lock_expired_before_finish"]
    assert names(events) == [*losses, "task_failed", "task_finished"]


def test_a_lock_that_is_not_renewed_is_lost_with_its_ttl(app, events):
    @app.task(base=LockedTask, lock_ttl=0.2, lock_auto_extend=False)
    def body():
        lock = current_lock()
        while lock.held:
            time.sleep(0.01)
        assert lock.remaining == 0

    with pytest.raises(LockLost):
        body()
    assert names(events) == ["task_started", "lock_expired_before_finish", "task_failed", "task_finished"]


def test_a_run_outlives_its_ttl_many_times(app):
    @app.task(base=LockedTask, lock_key="k", lock_ttl=1)
    def body():
        token = current_lock().token
        for _ in range(40):
            assert not is_free(app, "k")
            current_lock().check()
            time.sleep(0.08)
        return token

    assert body() > 0


def test_a_store_out_of_reach_runs_nothing_on_redis_and_says_so(make_app, events):
    app = make_app(lockbeat_driver="redis", lockbeat_redis_url="redis://127.0.0.1:1/0")

    @app.task(base=LockedTask)
    def body():
        raise AssertionError

    with pytest.raises(StoreUnavailable):
        body()
    assert names(events) == BAD
    assert events()[1]["error_name"] == "StoreUnavailable"


def test_auto_falls_back_to_memory_for_the_run_and_says_so_loudly(make_app, events, spare_server):
    app = make_app(lockbeat_redis_url=spare_server.url)
    spare_server.kill()

    @app.task(base=LockedTask, lock_key="k", lock_logging=False)
    def body():
        with pytest.raises(LockNotAcquired):
            Lock("k", app=app, logging=False).__enter__()
        return current_lock()._store.driver

    assert body() == "memory"
    assert set(names(events)) == {"driver_fallback"}
    spare_server.start()
    with Lock("k", app=app) as lock:
        assert lock._store.driver == "redis"


# -- Lock outside of tasks ---------------------------------------------------------------------------------------------


def test_a_lock_is_one_hold_and_frees_its_key_when_the_block_raises(app):
    lock = Lock("k", app=app)
    with pytest.raises(ZeroDivisionError), lock:
        assert current_lock() is lock
        assert lock.held
        assert 0 < lock.remaining <= 30
        raise ZeroDivisionError
    assert current_lock() is None
    assert is_free(app, "k")
    with pytest.raises(RuntimeError, match="one hold"):
        lock.__enter__()


def test_a_held_lock_says_who_holds_it(app):
    with Lock("k", app=app), pytest.raises(LockNotAcquired) as refused, Lock("k", app=app):
        pass
    assert refused.value.key == "k"
    assert refused.value.holder


def test_leaving_a_block_whose_lock_was_lost_raises(app):
    with pytest.raises(LockLost), Lock("k", app=app, ttl=0.2, auto_extend=False) as lock:
        while lock.held:
            time.sleep(0.01)


def test_a_lock_that_nobody_keeps_a_reference_to_is_not_renewed_for_ever(app):
    import gc

    Lock("k", app=app, ttl=0.3).acquire()
    gc.collect()
    from servers import wait_until

    wait_until(lambda: is_free(app, "k"), 15)


def test_a_lock_that_is_dropped_after_a_renewal_is_not_renewed_for_ever_either(app):
    import gc

    from servers import wait_until

    def renewed_and_dropped() -> None:
        lock = Lock("k", app=app, ttl=0.6)
        lock.acquire()
        first = lock._own.next_action
        wait_until(lambda: lock._own.next_action != first, 15, "a renewal")
        assert lock.held

    renewed_and_dropped()

    def is_free_by_now() -> bool:
        gc.collect()
        return is_free(app, "k")

    wait_until(is_free_by_now, 10)


# -- whose run it is that has the key -----------------------------------------------------------------------------------


def run_of(task, id_, **more):
    """Run a task as a worker does for a message of this id."""
    task.push_request(id=id_, called_directly=False, is_eager=False, **more)
    try:
        return task()
    finally:
        task.pop_request()


@pytest.mark.parametrize("theirs", ["job:1:0:0", "job:1:1:0~nonce", "other:0:0", "jo:0:0"])
def test_a_task_id_that_is_the_beginning_of_anothers_is_not_taken_for_its_next_try(app, driver, theirs):
    @app.task(base=LockedTask, lock_key="k", lock_skip_if_locked=False)
    def body():
        raise AssertionError

    store = stores_of(app).choose(driver, "default")[0]
    lease = store.locks.acquire("k", holder="theirs", ttl=30, run=theirs)
    with pytest.raises(LockNotAcquired):
        run_of(body, "job")
    store.locks.release(lease)


@pytest.mark.parametrize("strange", ["text", ["a", "list"], 7])
def test_headers_of_a_message_that_are_no_mapping_do_not_keep_a_run_from_its_story(app, events, strange):
    @app.task(base=LockedTask, lock_key="k")
    def body():
        return "ran"

    assert run_of(body, "job", headers=strange) == "ran"
    assert names(events) == ["task_started", "task_succeeded", "task_finished"]

"""A run that another wants to replace, in one process: it is told, keeps its key, and does not come again. Under real workers:
processes/test_waiting.py and test_pools.py."""

from __future__ import annotations

import asyncio
import time

import pytest
from celery import states
from celery.app.trace import reset_worker_optimizations, setup_worker_optimizations
from held import is_free
from servers import wait_until
from test_lines import deliver, messages, queue  # noqa: F401  a fixture

from celery_lockbeat import Lock, LockedTask, LockLost, current_lock, journal
from celery_lockbeat.journal.writer import journal_of
from celery_lockbeat.locks.children import renew_at_once
from celery_lockbeat.stores.base import Lease, Place, Waiting
from celery_lockbeat.tasks import replacing

NEWCOMER = "w pid 7 it[new]"


def names(events) -> list[str]:
    return [event["event"] for event in events()]


def asks(lock: Lock) -> Lease | Waiting:
    """Want to replace who has this lock."""
    place = Place("new::0", 60, kind="replace")
    return lock._store.locks.acquire(
        lock.key, holder="newcomer", ttl=30, run="new:0:0", task="new::0", description=NEWCOMER, place=place
    )


def replace() -> Lock:
    """Want to replace the body that runs here."""
    lock = current_lock()
    assert isinstance(asks(lock), Waiting)
    return lock


def test_a_body_that_is_replaced_is_ended_at_once_and_the_key_is_the_newcomers_then(app, events):
    locks = []

    @app.task(base=LockedTask, lock_key="k", lock_ttl=10, lock_extend_interval=0.2, lock_if_held="replace")
    def body():
        locks.append(replace())
        time.sleep(30)

    began = time.monotonic()
    with pytest.raises(LockLost, match=f"replaced by {NEWCOMER}".replace("[", r"\[")):
        body()
    assert time.monotonic() - began < 5
    assert names(events) == ["task_started", "lock_replaced", "task_failed", "task_finished"]
    (told,) = (event for event in events() if event["event"] == "lock_replaced")
    assert (told["holder"], told["lock_key"], told["task_name"]) == (NEWCOMER, "k", body.name)
    assert journal_of(app).write(within=10)
    (record,) = (each for each in journal.read(app) if each.event == "lock_replaced")
    assert (record.holder, record.lock_key, record.task_name) == (NEWCOMER, "k", body.name)
    assert isinstance(asks(locks[0]), Lease)


def test_what_does_not_stop_keeps_its_key_for_many_leases_and_ends_as_failed(app, events):
    @app.task(base=LockedTask, lock_key="k", lock_ttl=1.2, lock_extend_interval=0.2, lock_if_held="replace")
    def body():
        lock = replace()
        try:
            time.sleep(30)
        except LockLost:
            until = time.monotonic() + 3
            while time.monotonic() < until:
                assert isinstance(asks(lock), Waiting)
                time.sleep(0.05)
            assert lock.replaced_by == NEWCOMER
        return "fine"

    with pytest.raises(LockLost, match="replaced by"):
        body()
    assert names(events) == ["task_started", "lock_replaced", "task_failed", "task_finished"], "it is told once"


@pytest.mark.parametrize("on_lost", ["fail", "abort", "warn"])
def test_a_holder_of_another_kind_is_told_as_when_its_lock_is_lost(app, events, on_lost):
    @app.task(base=LockedTask, lock_key="k", lock_ttl=10, lock_extend_interval=0.2, lock_on_lost=on_lost)
    def body():
        lock = replace()
        assert lock.held
        deadline = time.monotonic() + 20
        while not lock.lost and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (lock.held, lock.remaining) == (False, 0.0)
        with pytest.raises(LockLost):
            lock.check()
        assert not is_free(app, "k")
        return "done"

    if on_lost == "warn":
        assert body() == "done"
    else:
        with pytest.raises(LockLost, match="replaced by"):
            body()
    end = "task_succeeded" if on_lost == "warn" else "task_failed"
    assert names(events) == ["task_started", "lock_replaced", end, "task_finished"]


def test_a_block_of_a_lock_is_told_too(app):
    with (
        pytest.raises(LockLost, match="before the block ended: replaced by"),
        Lock("k", app=app, ttl=10, extend_interval=0.2) as lock,
    ):
        replace()
        wait_until(lambda: lock.lost)
    assert lock.released
    assert isinstance(asks(lock), Lease)
    with pytest.raises(LockLost, match="replaced by"), Lock("l", app=app, ttl=10, extend_interval=0.2, on_lost="abort"):
        replace()
        time.sleep(30)


def test_a_coroutine_is_cancelled_and_ends_as_replaced(app, events):
    @app.task(base=LockedTask, lock_key="k", lock_ttl=10, lock_extend_interval=0.2, lock_if_held="replace")
    async def body():
        replace()
        await asyncio.sleep(30)

    with pytest.raises(LockLost, match="replaced by"):
        asyncio.run(body())
    assert names(events) == ["task_started", "lock_replaced", "task_failed", "task_finished"]

    async def block():
        async with Lock("l", app=app, ttl=10, extend_interval=0.2, on_lost="abort"):
            replace()
            await asyncio.sleep(30)

    with pytest.raises(LockLost, match="replaced by"):
        asyncio.run(block())


@pytest.mark.parametrize("how", ["autoretry_for", "retry"])
def test_who_is_replaced_is_not_tried_again_for_it_would_replace_in_turn(app, queue, events, how):  # noqa: F811
    ran = []
    options = {"autoretry_for": (Exception,), "retry_kwargs": {"countdown": 0}} if how == "autoretry_for" else {}

    @app.task(
        base=LockedTask,
        bind=True,
        name="it",
        lock_key="k",
        lock_ttl=10,
        lock_extend_interval=0.2,
        lock_if_held="replace",
        **options,
    )
    def body(self):
        ran.append(True)
        replace()
        try:
            time.sleep(30)
        except LockLost:
            if how == "retry":
                raise self.retry(countdown=0) from None
            raise

    setup_worker_optimizations(app)
    try:
        info = deliver(body)
        assert info.state == states.FAILURE
        assert isinstance(info.retval, LockLost)
        assert "replaced by" in str(info.retval)
        (again,) = messages(queue)
        assert again.headers["retries"] == 1
        deliver(body, again.headers, delivery_info={"redelivered": False, "exchange": "", "routing_key": app.main})
    finally:
        reset_worker_optimizations(app)
    assert ran == [True]
    assert [event["reason"] for event in events() if event["event"] == "task_skipped"] == ["duplicate"]


def test_a_holder_is_told_at_once_where_it_listens(app):
    """Here it is this process that listens; workers: processes/test_pools.py."""
    lock = Lock("k", app=app, ttl=300)
    assert lock.acquire()
    assert isinstance(asks(lock), Waiting)
    renew_at_once("k")
    wait_until(lambda: lock.replaced_by == NEWCOMER, 10)
    assert lock.release()


def test_nobody_is_told_by_remote_control_where_that_is_off_or_the_holder_is_no_run(app, monkeypatch):
    told = []
    monkeypatch.setattr(type(app.control), "broadcast", lambda *_args, **options: told.append(options))
    replacing.tell(app, "k", "w@h pid 7 it[id]")
    assert [(each["arguments"], each["destination"]) for each in told] == [({"key": "k"}, ["w@h"])]
    replacing.tell(app, "k", "host 7")
    app.conf.worker_enable_remote_control = False
    replacing.tell(app, "k", "w@h pid 7 it[id]")
    assert len(told) == 1


def test_a_broker_that_broadcasts_nothing_breaks_nothing(app, monkeypatch):
    monkeypatch.setattr(type(app.control), "broadcast", lambda *_args, **_options: 1 / 0)
    replacing.tell(app, "k", "w@h pid 7 it[id]")

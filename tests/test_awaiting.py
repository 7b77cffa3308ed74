"""Bodies that are coroutines, in one process. Under real workers: processes/test_coroutines.py."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import logging
import types

import celery
import pytest
from celery import Task, states
from celery.app.trace import build_tracer
from held import is_free
from pydantic import BaseModel
from servers import wait_until

from celery_lockbeat import ConfigurationError, Lock, LockedTask, LockLost, TaskSkipped, current_lock
from celery_lockbeat.tasks.awaiting import refuse_what_nothing_awaits


class Runs(Task):
    """A base whose ``__call__`` awaits, if there is something to await, as many projects have one."""

    abstract = True

    def __call__(self, *args, **kwargs):
        if inspect.iscoroutinefunction(self.run):
            return asyncio.run(self.run(*args, **kwargs))
        return self.run(*args, **kwargs)


class RunsLocked(Runs, LockedTask):
    abstract = True


def test_whoever_awaits_a_task_holds_its_lock_until_the_coroutine_has_ended(app):
    @app.task(base=LockedTask, bind=True, name="it")
    async def body(self, nested=False):
        token = current_lock().token
        await asyncio.sleep(0.05)
        assert not is_free(app, "it")
        if not nested:
            assert await self.run(True) == token, "a part of this run"
        return token

    async def both():
        return await asyncio.gather(body(), body.run(), return_exceptions=True)

    first, second = sorted(asyncio.run(both()), key=lambda outcome: isinstance(outcome, TaskSkipped))
    assert first > 0
    assert isinstance(second, TaskSkipped)
    assert is_free(app, "it")
    assert asyncio.run(body.run()) > first


@pytest.mark.parametrize("first", [True, False])
def test_a_base_that_awaits_sees_a_coroutine_function(app, first):
    base = type("Base", (Runs, LockedTask) if first else (LockedTask, Runs), {"abstract": True})

    @app.task(base=base, bind=True, name="it", lock_key="k:{x}")
    async def body(self, x):
        await asyncio.sleep(0)
        return current_lock().key, x, self.request.id

    assert inspect.iscoroutinefunction(body.run)
    assert list(inspect.signature(body.run).parameters) == ["x"]
    assert body(7)[:2] == ("k:7", 7)
    assert body.apply((7,), task_id="mine").get() == ("k:7", 7, "mine")
    with Lock("k:7", app=app):
        assert body.apply((7,)).state == states.REVOKED


def test_a_class_may_have_a_coroutine_for_its_body(app):
    class Report(RunsLocked):
        name = "it"

        async def run(self, x):
            await asyncio.sleep(0)
            return current_lock().key, x

    assert app.register_task(Report()).apply((7,)).get() == ("it", 7)


@pytest.mark.skipif(celery.VERSION < (5, 5), reason="Celery has pydantic=True since 5.5")
def test_a_coroutine_that_celery_wraps_is_held_too(app):
    class Customer(BaseModel):
        id: int

    async def body(customer: Customer) -> int:
        await asyncio.sleep(0)
        return current_lock().token and customer.id

    body.__annotations__ = {"customer": Customer, "return": int}
    task = app.task(base=RunsLocked, pydantic=True, autoretry_for=(ValueError,))(body)
    assert task.apply(({"id": 7},)).get() == 7


def test_a_coroutine_that_raises_fails_with_what_it_has_raised(make_app, driver):
    app = make_app(lockbeat_driver=driver, result_backend="cache+memory://")

    @app.task(base=RunsLocked)
    async def body():
        raise ZeroDivisionError("its own")

    build_tracer(body.name, body, app=app)("t1", (), {}, {"id": "t1", "task": body.name, "delivery_info": {}})
    assert repr(app.AsyncResult("t1").result) == "ZeroDivisionError('its own')"


def test_a_coroutine_that_is_cancelled_leaves_no_lock(app):
    begun = asyncio.Event()

    @app.task(base=LockedTask, name="it", lock_ttl=300)
    async def body():
        begun.set()
        await asyncio.sleep(60)

    async def cancelled():
        task = asyncio.create_task(body.run())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert is_free(app, "it")


def test_one_that_is_cancelled_while_it_waits_for_its_lock_leaves_none_either(app):
    @app.task(base=LockedTask, name="it", lock_ttl=300, lock_retry_attempts=1000, lock_retry_delay=0.05)
    async def body():
        raise AssertionError

    async def cancelled():
        task = asyncio.create_task(body.run())
        await asyncio.sleep(0.2)
        task.cancel()
        # it gets what it waits for, for a thread cannot be cancelled; and frees it
        other.release()
        with pytest.raises(asyncio.CancelledError):
            await task

    other = Lock("it", app=app)
    other.acquire()
    asyncio.run(cancelled())
    wait_until(lambda: is_free(app, "it"), 10)


def test_a_coroutine_that_is_closed_leaves_no_lock(app):
    begun = []

    @app.task(base=LockedTask, name="it", lock_ttl=300)
    async def body():
        begun.append(current_lock().key)
        await asyncio.sleep(60)

    loop = asyncio.new_event_loop()
    running = body.run()
    task = loop.create_task(running)
    while not begun:
        loop.run_until_complete(asyncio.sleep(0.01))
    running.close()
    wait_until(lambda: is_free(app, "it"), 10)
    task._log_destroy_pending = False  # asyncio's word for it
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def test_the_loop_goes_on_while_a_run_waits_for_its_lock(app):
    @app.task(base=LockedTask, name="it", lock_retry_attempts=1000, lock_retry_delay=0.05)
    async def body():
        return current_lock().key

    async def turns():
        task = asyncio.create_task(body.run())
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert not task.done()
        other.release()
        return await task

    other = Lock("it", app=app)
    other.acquire()
    assert asyncio.run(turns()) == "it"


def test_a_coroutine_whose_lock_is_lost_fails_as_any_other_body(app):
    @app.task(base=LockedTask, name="it", lock_ttl=0.3, lock_auto_extend=False)
    async def body():
        while current_lock().held:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return "late"

    with pytest.raises(LockLost):
        asyncio.run(body.run())


@pytest.mark.parametrize("kind", ["generator", "async generator"])
def test_a_generator_is_refused_when_it_is_bound(app, kind):
    if kind == "generator":

        def body():
            yield 1
    else:

        async def body():
            yield 1

    task = app.task(base=LockedTask, name="it")(body)
    with pytest.raises(ConfigurationError, match="run of it is a generator; allowed: a function that returns"):
        task.apply()


def test_eager_where_nothing_awaits_is_refused_with_what_to_do(app):
    @app.task(base=LockedTask, name="it")
    async def body():
        raise AssertionError

    with pytest.raises(
        ConfigurationError, match=r"run of it is async def, and apply\(\) awaits nothing; allowed: run it"
    ):
        body.apply()


def test_a_wrapper_that_hands_on_a_coroutine_is_refused_at_its_run(app):
    async def body():
        raise AssertionError

    @functools.wraps(body)
    def wrapper():
        return body()

    task = app.task(base=LockedTask, name="it")(wrapper)
    with pytest.raises(ConfigurationError, match="run of it returns a coroutine, which has no lock"):
        task()
    assert is_free(app, "it")

    @functools.wraps(body)
    def runs():
        return current_lock().key

    assert app.task(base=LockedTask, name="another")(runs)() == "another", "one that awaits it itself is a plain body"


def test_a_run_that_nothing_has_awaited_is_told_of(make_app, caplog):
    """A pool, or a __call__, that is thought to await, and does not."""
    app = make_app(lockbeat_driver="memory")

    class Nothing(LockedTask):
        abstract = True

        def __call__(self):
            return self.run()

    @app.task(base=Nothing, name="it", ignore_result=True)
    async def body():
        raise AssertionError

    tracer = build_tracer("it", app.tasks["it"], app=app, eager=False)
    with caplog.at_level(logging.ERROR, "celery_lockbeat"):
        tracer("id", (), {}, {"id": "id", "delivery_info": {}, "retries": 0})
    assert [
        record.getMessage()
        for record in caplog.records
        if "it did not run, for nothing has awaited it" in record.msg % record.args
    ]
    gc.collect()


def worker(app, pool="celery.concurrency.prefork", queues=()):
    app.amqp.queues.select(queues or [app.conf.task_default_queue])
    return types.SimpleNamespace(app=app, pool_cls=type("Pool", (), {"__module__": pool}))


def test_a_worker_refuses_what_it_consumes_and_would_not_await_and_nothing_else(make_app, monkeypatch):
    monkeypatch.delitem(__import__("sys").modules, "celery_aio_pool", raising=False)
    app = make_app(lockbeat_driver="memory")

    @app.task(base=LockedTask, name="it")
    async def body():
        await asyncio.sleep(0)

    @app.task(base=RunsLocked, name="awaited")
    async def awaited():
        await asyncio.sleep(0)

    @app.task(base=LockedTask, name="plain")
    def plain():
        pass

    app.conf.task_routes = {"elsewhere": {"queue": "elsewhere"}}

    @app.task(base=LockedTask, name="elsewhere")
    async def elsewhere():
        await asyncio.sleep(0)

    tasks = {name: app.tasks[name] for name in ("it", "awaited", "plain", "elsewhere")}
    with pytest.raises(
        ConfigurationError, match="run of it is async def, and the pool celery.concurrency.prefork awaits nothing"
    ):
        refuse_what_nothing_awaits(worker(app), [tasks["it"]])
    refuse_what_nothing_awaits(worker(app, "celery_aio_pool.pool"), [tasks["it"]])
    refuse_what_nothing_awaits(worker(app), [tasks["awaited"], tasks["plain"], tasks["elsewhere"]])
    assert asyncio.run(tasks["awaited"].run()) is None
    with pytest.raises(ConfigurationError, match="run of elsewhere is async def"):
        tasks["elsewhere"].run()

"""However that which a lock guards is left, its key is free then, or its renewal ends; and current_lock() is right."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from scripted import DOWN, ScriptedStore, Time, renewer
from servers import wait_until

import celery_lockbeat
from celery_lockbeat import Lock, LockedTask, LockNotAcquired, StoreUnavailable, current_lock, signals, threads
from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.locks import acquisition, lease
from celery_lockbeat.locks import scope as scopes
from celery_lockbeat.stores import Stores

#: Where our code is. Its name is in that of a source distribution's directory, too, and so in those of the tests.
PACKAGE = str(Path(celery_lockbeat.__file__).parent)


def is_free(app, key="k") -> bool:
    try:
        with Lock(key, app=app, logging=False):
            return True
    except LockNotAcquired:
        return False


def locked(app, key="k"):
    with Lock(key, app=app) as lock:
        yield lock


# -- another context, another thread -----------------------------------------------------------------------------------


def test_a_block_that_is_left_in_another_context_frees_its_key_and_is_current_in_neither(app):
    first, second = contextvars.copy_context(), contextvars.copy_context()
    steps = locked(app)
    held = first.run(next, steps)
    assert first.run(current_lock) is held
    assert second.run(current_lock) is None
    with pytest.raises(StopIteration):
        second.run(next, steps)
    assert is_free(app)
    assert first.run(current_lock) is None
    assert second.run(current_lock) is None


def test_a_block_that_is_left_in_a_copy_of_its_context_gives_back_what_was_current_in_both(app):
    def inner_is_left_in_a_copy():
        with Lock("outer", app=app) as outer:
            steps = locked(app)
            held = next(steps)
            copy = contextvars.copy_context()
            assert copy.run(current_lock) is held
            with pytest.raises(StopIteration):
                copy.run(next, steps)
            assert current_lock() is outer
            assert copy.run(current_lock) is outer
        assert copy.run(current_lock) is None

    contextvars.copy_context().run(inner_is_left_in_a_copy)
    assert is_free(app)
    assert is_free(app, "outer")


def test_a_block_that_is_left_in_another_thread_frees_its_key(app):
    # so does FastAPI with a dependency that yields, in a pool of threads
    steps = locked(app)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        held = one.submit(next, steps).result()
        assert one.submit(current_lock).result() is held
        with pytest.raises(StopIteration):
            other.submit(next, steps).result()
        assert is_free(app)
        assert one.submit(current_lock).result() is None
        assert other.submit(current_lock).result() is None


def test_an_async_generator_that_is_broken_off_frees_its_key(app):
    async def stream():
        with Lock("k", app=app):
            yield current_lock()
            yield current_lock()

    async def read_one():
        async for held in stream():
            assert held.held
            break
        # asyncio ends it in a task of its own, which has a copied context
        gc.collect()
        for _ in range(3):
            await asyncio.sleep(0)
        assert is_free(app)
        assert current_lock() is None

    asyncio.run(read_one())
    assert is_free(app)


def test_blocks_that_are_left_in_the_order_in_which_they_were_entered_leave_the_other_current(app):
    def by_turns():
        one, other = locked(app, "one"), locked(app, "other")
        next(one)
        inner = next(other)
        with pytest.raises(StopIteration):
            next(one)
        assert current_lock() is inner
        assert is_free(app, "one")
        with pytest.raises(StopIteration):
            next(other)
        assert current_lock() is None

    contextvars.copy_context().run(by_turns)


def test_blocks_that_go_on_by_turns_for_ever_remember_no_more_than_those_that_are_open(app):
    def by_turns():
        open_one = locked(app, "0")
        next(open_one)
        for turn in range(20):
            following = locked(app, str(turn + 1))
            next(following)
            with pytest.raises(StopIteration):
                next(open_one)
            open_one = following
        scope, depth = scopes._current.get(), 0
        while scope is not None:
            scope, depth = scope.outer, depth + 1
        assert depth <= 3
        open_one.close()

    contextvars.copy_context().run(by_turns)


def test_a_task_that_is_left_in_whatever_context_is_current_there_no_more(app):
    contexts = []

    @app.task(base=LockedTask)
    def body():
        contexts.append(contextvars.copy_context())
        return current_lock().key

    assert body() == body.name
    assert contexts[0].run(current_lock) is None
    assert current_lock() is None


# -- what nobody has any more ------------------------------------------------------------------------------------------


def test_a_lock_whose_owner_is_gone_is_not_renewed_whatever_contexts_remember(make_app, driver):
    app = make_app(lockbeat_driver=driver)
    kept = contextvars.copy_context()  # as that of the main thread, which never ends
    gc.disable()  # a lock in a cycle would live until a collection, which may be far away
    try:

        def abandon():
            contextlib.ExitStack().enter_context(Lock("k", app=app, ttl=0.5))

        kept.run(abandon)
        assert kept.run(current_lock) is None
        wait_until(lambda: is_free(app), 3)
    finally:
        gc.enable()


# -- what may be raised on the way -------------------------------------------------------------------------------------


class Struck(BaseException):
    pass


def test_a_block_that_an_observer_keeps_from_being_entered_frees_its_key(app):
    def receiver(**_):
        raise Struck

    kept = Lock("k", app=app)  # by somebody: else it would go with its block
    signals.lock_acquired.connect(receiver)
    try:
        with pytest.raises(Struck), kept:
            pass
    finally:
        signals.lock_acquired.disconnect(receiver)
    assert is_free(app)
    assert current_lock() is None


def test_a_store_that_is_no_longer_as_configured_changes_no_outcome_at_the_release(app, monkeypatch, caplog):
    kept = Lock("k", app=app, ttl=300)
    locks = kept._store.locks

    def refuse(*_, **__):
        monkeypatch.undo()
        raise ConfigurationError("the directory is another's now")

    with kept:
        monkeypatch.setattr(type(locks), "release", refuse)
    assert "the directory is another's now" in caplog.text
    wait_until(lambda: is_free(app), 5)


def test_a_lock_whose_renewal_cannot_begin_is_refused_and_freed(app, monkeypatch):
    def no_thread(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "start", no_thread)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="thread"), Lock("k", app=app):
            pass
    monkeypatch.undo()
    assert is_free(app)


def test_what_frees_an_acquire_whose_answer_was_lost_does_not_free_the_next_one(monkeypatch, app):
    time_ = Time()
    store = ScriptedStore(time_, [DOWN, DOWN])
    made, run_until = renewer(store, time_)
    monkeypatch.setattr(acquisition, "monotonic", time_)
    monkeypatch.setattr(lease, "monotonic", time_)
    monkeypatch.setattr(acquisition, "renewer_of", lambda _: made)
    monkeypatch.setattr(Stores, "choose", lambda *_: (store, None))
    again = Lock("k", app=app)
    with pytest.raises(StoreUnavailable):
        again.acquire()
    run_until(0.5)  # the store is still down
    again.acquire()
    run_until(5)
    (_, _, first), (_, _, second) = store.freed
    assert first == second != again.lease.holder


def strike(at: int, action) -> bool:
    """Raise Struck in ``action``, the so many-th time that Python would look for signals in our code; whether there was one.

    Once it is ``armed``, and this is CPython's: when a function begins, and when a call returns.
    """
    left, struck = at, False

    def look(frame, event, _):
        nonlocal left, struck
        if event != "c_call" and frame.f_code.co_filename.startswith(PACKAGE) and armed:
            left -= 1
            if left == 0:
                struck = True
                raise Struck

    armed: list[bool] = []
    sys.setprofile(look)
    try:
        action(armed)
    except Struck:
        pass
    finally:
        sys.setprofile(None)
    return struck


@pytest.mark.parametrize("kind", ["block", "task"])
def test_an_exception_from_outside_at_any_moment_of_the_way_out_leaves_no_key_that_is_renewed(app, kind, caplog):
    """A soft time limit may come at any moment; a lock that is then not released is at least not renewed."""
    caplog.set_level(logging.CRITICAL)
    locks = []

    @app.task(base=LockedTask, lock_key="{key}", lock_ttl=0.5)
    def body(key, armed):
        armed.append(True)

    def block(key, armed):
        with Lock(key, app=app, ttl=0.5):
            armed.append(True)

    way = body if kind == "task" else block
    while strike(len(locks) + 1, partial(way, str(len(locks)))):
        locks.append(str(len(locks)))
    assert len(locks) > 20
    held = [key for key in locks if not is_free(app, key)]
    wait_until(lambda: all(is_free(app, key) for key in held), 5, message=str(held))
    assert current_lock() is None


def test_a_lock_that_somebody_has_is_not_renewed_wherever_the_way_out_of_its_block_is_struck(app, caplog):
    """One that nobody has is not renewed anyway; a traceback may have it for long."""
    caplog.set_level(logging.CRITICAL)
    locks: list[Lock] = []

    def block(armed):
        locks.append(Lock(f"kept {len(locks)}", app=app, ttl=0.5))
        with locks[-1]:
            armed.append(True)

    # the first moment is before anything of ours has begun on the way out
    while strike(len(locks) + 2, block):
        pass
    assert len(locks) > 20
    keys = [lock.key for lock in locks]
    wait_until(lambda: all(is_free(app, key) for key in keys), 5, message=str(keys))

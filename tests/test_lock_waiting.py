"""Locks that wait in line: woken, in order, in the same line as tasks, and never in the way of an event loop."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from held import is_free
from servers import wait_until

from celery_lockbeat import ConfigurationError, Lock, LockNotAcquired
from celery_lockbeat.process import stopping
from celery_lockbeat.stores import Place, Waiting
from celery_lockbeat.tasks.waiting import COMES_WITHIN


@pytest.fixture
def app(make_app, driver):
    return make_app(lockbeat_driver=driver)


def line(app, key: str = "k"):
    return store(app).locks.line(key)


def store(app):
    return Lock("any", app=app)._store


def in_line(app, count: int) -> None:
    wait_until(lambda: len(line(app)) == count)


def test_who_waits_is_woken_when_the_key_is_free_in_the_order_of_arrival(app):
    began = []

    def waits(number: int) -> int:
        with Lock("k", app=app, wait=60) as lock:
            began.append((number, time.monotonic()))
            return lock.token

    with ThreadPoolExecutor(4) as pool:
        with Lock("k", app=app, ttl=60) as first:
            waiting = []
            for number in range(4):
                waiting.append(pool.submit(waits, number))
                in_line(app, number + 1)
            freed = time.monotonic()
        tokens = [each.result(30) for each in waiting]
    assert [number for number, _ in began] == [0, 1, 2, 3]
    assert began[-1][1] - freed < 4 * 0.5 + 2, "woken: nobody has looked at the end of a lease, or of its time"
    assert [first.token, *tokens] == sorted({first.token, *tokens})
    assert line(app) == []
    assert is_free(app, "k")


def test_who_has_waited_for_too_long_is_refused_and_gone(app):
    with Lock("k", app=app) as holder:
        lock = Lock("k", app=app, wait=0.3)
        began = time.monotonic()
        assert lock.acquire() is False
        assert 0.25 < time.monotonic() - began < 5
        assert lock.refusal.why == "waited"
        assert lock.refusal.description == Lock.holder_of("k", app=app)
        assert line(app) == []
        assert lock.acquire(wait=0) is False
        assert lock.refusal.why == ""
        with pytest.raises(LockNotAcquired), Lock("k", app=app, wait=0.1):
            pass
    assert holder.released
    assert lock.acquire(wait=5)
    assert lock.release()


def test_a_lock_waits_in_the_same_line_as_runs_and_keeps_what_is_free(app):
    """In the place of a run: who asks with a text is sent it when it is called."""
    told = []

    def task(name: str) -> object:
        place = Place(f"{name}::0", 60, text="come")
        return store(app).locks.acquire("k", holder=name, ttl=30, run=f"{name}:0:0", task=f"{name}::0", place=place)

    with ThreadPoolExecutor(1) as pool:
        with Lock("k", app=app, ttl=60) as lock:
            lock._store.locks.called = lambda _key, texts: told.extend(texts)
            assert isinstance(task("a"), Waiting)
            waits = pool.submit(lambda: Lock("k", app=app, wait=60).acquire())
            in_line(app, 2)
            assert isinstance(task("b"), Waiting)
        assert told == ["come"]
        assert not is_free(app, "k")
        assert store(app).locks.release(task("a"))
        assert waits.result(20)
    assert [waiter.ticket for waiter in line(app)] == ["b::0"]


def test_a_line_that_is_full_refuses_at_once(make_app, driver):
    app = make_app(lockbeat_driver=driver, lockbeat_line_limit=1)
    with Lock("k", app=app), ThreadPoolExecutor(1) as pool:
        waits = pool.submit(lambda: Lock("k", app=app, wait=1).acquire())
        in_line(app, 1)
        lock = Lock("k", app=app, wait=60)
        assert lock.acquire() is False
        assert lock.refusal.why == "full"
        assert waits.result(20) is False


def test_as_many_hold_the_key_as_may(app):
    first, second = (Lock("k", app=app, limit=2) for _ in range(2))
    assert first.acquire()
    assert second.acquire()
    with ThreadPoolExecutor(1) as pool:
        third = Lock("k", app=app, limit=2, wait=60)
        waits = pool.submit(third.acquire)
        in_line(app, 1)
        assert second.release()
        assert waits.result(20)
    assert third.release()
    assert first.release()


def test_a_holder_that_has_died_is_followed_when_its_lease_has_ended(app):
    # nobody renews it, and nobody will say that it is over
    answer = store(app).locks.acquire("k", holder="dead", ttl=1)
    began = time.monotonic()
    lock = Lock("k", app=app, wait=COMES_WITHIN)
    assert lock.acquire()
    assert time.monotonic() - began < 5
    assert lock.token > answer.token
    assert lock.release()


def test_a_waiter_that_has_died_is_passed_over(app):
    store(app).locks.acquire("k", holder="first", ttl=300)
    dead = Place("dead", 60, grace=0.5)
    assert isinstance(store(app).locks.acquire("k", holder="dead", ttl=30, place=dead), Waiting)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(lambda: Lock("k", app=app, wait=COMES_WITHIN).acquire())
        in_line(app, 2)
        assert store(app).locks.free("k", holder="first")
        began = time.monotonic()
        assert waits.result(20)
        assert time.monotonic() - began < 8


def test_a_worker_that_shuts_down_waits_for_nothing(app):
    with Lock("k", app=app), ThreadPoolExecutor(1) as pool:
        waits = pool.submit(lambda: Lock("k", app=app, wait=60).acquire())
        in_line(app, 1)
        stopping.set()
        try:
            assert waits.result(20) is False
        finally:
            stopping.clear()
        assert line(app) == []


def test_a_wait_that_is_wrong_is_refused(app):
    for wrong in (-1, "10", True, float("inf")):
        with pytest.raises(ConfigurationError, match=r"wait of Lock\('k'\)"):
            Lock("k", app=app, wait=wrong)
        with pytest.raises(ConfigurationError, match=r"wait of Lock\('k'\).acquire"):
            Lock("k", app=app).acquire(wait=wrong)


def test_coroutines_that_wait_do_not_keep_the_one_that_holds_the_key_from_releasing_it(app):
    """More of them than the event loop has threads."""
    order, ticks = [], []

    async def waits(number: int) -> None:
        async with Lock("k", app=app, wait=60):
            order.append(number)

    async def ticker() -> None:
        while len(order) < 40:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.01)

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        ticking = asyncio.create_task(ticker())
        async with Lock("k", app=app, ttl=60):
            tasks = [asyncio.create_task(waits(number)) for number in range(40)]
            await asyncio.to_thread(in_line, app, 40)
        await asyncio.wait_for(asyncio.gather(*tasks), 60)
        await ticking

    asyncio.run(main())
    assert sorted(order) == list(range(40))
    assert max(after - before for before, after in itertools.pairwise(ticks)) < 2
    assert threading.active_count() < 40


def test_a_coroutine_that_is_cancelled_while_it_waits_is_out_of_the_line_soon(app):
    async def main() -> float:
        async with Lock("k", app=app, ttl=60):

            async def waits() -> None:
                async with Lock("k", app=app, wait=60):
                    pytest.fail("it is another's")

            task = asyncio.create_task(waits())
            await asyncio.to_thread(in_line, app, 1)
            began = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return time.monotonic() - began

    assert asyncio.run(main()) < 10
    assert line(app) == []
    assert is_free(app, "k")


# -- several keys ------------------------------------------------------------------------------------------------------


def test_who_waits_for_several_keys_goes_on_to_the_line_of_the_next_one_with_its_first_place(app):
    began = []

    def waits(name: str, keys: list[str]) -> None:
        with Lock(keys, app=app, wait=60) as lock:
            began.append((name, sorted(lock.tokens)))

    first, second = Lock("a", app=app), Lock("b", app=app)
    assert first.acquire()
    assert second.acquire()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(waits, "both", ["b", "a"])]
        wait_until(lambda: len(line(app, "a")) == 1)
        (ticket,) = [waiter.ticket for waiter in line(app, "a")]
        assert line(app, "b") == [], "it waits in one line at a time"
        waiting.append(pool.submit(waits, "one", ["b"]))
        wait_until(lambda: len(line(app, "b")) == 1)
        assert first.release()
        wait_until(lambda: len(line(app, "b")) == 2)
        assert line(app, "b")[0].ticket == ticket, "it came before the other"
        wait_until(lambda: is_free(app, "a"), message="what it has got it gives back")
        freed = time.monotonic()
        assert second.release()
        for each in waiting:
            each.result(30)
    assert began == [("both", ["a", "b"]), ("one", ["b"])]
    assert time.monotonic() - freed < 5, "it was woken"
    assert (line(app, "a"), line(app, "b")) == ([], [])
    assert is_free(app, "a")
    assert is_free(app, "b")


def test_who_has_waited_for_several_keys_for_too_long_has_none_and_is_in_no_line(app):
    with Lock("b", app=app), Lock("a", app=app) as holder:
        lock = Lock(["a", "b", "c"], app=app, wait=0.3)
        assert lock.acquire() is False
        assert (lock.refusal.why, lock.refusal.key) == ("waited", "a")
        assert holder.release()
        lock = Lock(["a", "b", "c"], app=app, wait=0.3)
        assert lock.acquire() is False
        assert (lock.refusal.why, lock.refusal.key) == ("waited", "b")
        assert [line(app, key) for key in "abc"] == [[], [], []]
        assert is_free(app, "a")
        assert is_free(app, "c")


def test_who_gives_up_has_no_place_in_the_line_of_another_of_its_keys_and_nothing_is_kept_for_it(app):
    locks = store(app).locks
    later = locks.acquire("b", holder="x", ttl=1)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(lambda: Lock(["a", "b"], app=app, wait=60).acquire())
        wait_until(lambda: len(line(app, "b")) == 1)
        assert locks.extend([(later, 60)]) == [True]
        first = locks.acquire("a", holder="y", ttl=60)
        # it looks when the lease was to end, finds another of them held, and waits for that too
        wait_until(lambda: len(line(app, "a")) == 1)
        stopping.set()
        try:
            assert waits.result(20) is False
        finally:
            stopping.clear()
        assert (line(app, "a"), line(app, "b")) == ([], [])
        for lease in first, later:
            assert locks.release(lease)
            assert is_free(app, lease.key), "it is kept for nobody"


@pytest.mark.parametrize("limit", [1, 2])
def test_those_that_wait_for_overlapping_keys_all_have_theirs_and_no_more_than_may_are_inside(app, limit):
    inside, most, mutex, ran = dict.fromkeys("abcd", 0), dict.fromkeys("abcd", 0), threading.Lock(), []
    pairs = ["ab", "bc", "cd", "da", "ca", "bd"]

    def waits(number: int) -> None:
        for turn in range(5):
            keys = pairs[(number + turn) % len(pairs)]
            with Lock(list(keys), app=app, ttl=60, limit=limit, wait=60, logging=False) as lock:
                with mutex:
                    for key in keys:
                        inside[key] += 1
                        most[key] = max(most[key], inside[key])
                time.sleep(0.005)
                with mutex:
                    for key in keys:
                        inside[key] -= 1
                    ran.append(lock.token)

    with ThreadPoolExecutor(6) as pool:
        for each in [pool.submit(waits, number) for number in range(6)]:
            each.result(60)
    assert len(ran) == 30
    assert max(most.values()) <= limit
    assert [line(app, key) for key in "abcd"] == [[]] * 4
    assert all(is_free(app, key) for key in "abcd")


def test_one_of_several_keys_whose_holder_has_died_is_waited_for_until_its_lease_has_ended(app):
    token = store(app).locks.acquire("b", holder="dead", ttl=1).token
    lock = Lock(["a", "b"], app=app, wait=COMES_WITHIN)
    began = time.monotonic()
    assert lock.acquire()
    assert time.monotonic() - began < 5
    assert lock.tokens["b"] > token
    assert lock.release()


def test_a_coroutine_waits_for_several_keys(app):
    async def main() -> list[str]:
        async with Lock("b", app=app, ttl=60) as first:

            async def waits() -> list[str]:
                async with Lock(["a", "b"], app=app, wait=60) as lock:
                    return sorted(lock.tokens)

            task = asyncio.create_task(waits())
            await asyncio.to_thread(wait_until, lambda: len(line(app, "b")) == 1)
            assert first.held
        return await asyncio.wait_for(task, 30)

    assert asyncio.run(main()) == ["a", "b"]

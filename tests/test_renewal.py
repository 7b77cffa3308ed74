"""The renewing of locks, as a table of timelines: what the store answers, and what is asked and told when."""

from __future__ import annotations

import gc
import multiprocessing
import threading
import time as time_module

import pytest
from scripted import DOWN, ScriptedStore, Time, renewer

from celery_lockbeat.locks import renewal
from celery_lockbeat.locks.renewal import renewer_of
from celery_lockbeat.stores.base import Lease


class Recorder:
    """A lock as far as the renewer knows one: due every ``every`` seconds, and a list of what it was told."""

    def __init__(self, time: Time, key: str = "key", *, ttl: float = 30.0, every: float = 10.0) -> None:
        self.leases = [Lease(each, "holder", None, 1) for each in key.split()]
        self.ttl = self.attempt = ttl
        self.auto_extend = True
        self.next_action: float | None = time.now + every
        self.told: list[tuple[str, float]] = []
        self._time = time
        self._every = every

    def extended(self, started: float, ttl: float) -> None:
        self.told.append(("extended", started))
        self.next_action = started + self._every

    def extend_refused(self) -> None:
        self.told.append(("refused", self._time.now))
        self.next_action = None

    def extend_failed(self, started: float, error: Exception, retry_every: float) -> None:
        self.told.append((type(error).__name__, self._time.now))
        self.next_action = self._time.now + retry_every

    def expire(self) -> None:
        pass

    @property
    def remaining(self) -> float:
        return self.ttl

    def lose(self, why: str) -> None:
        self.told.append((why, self._time.now))


@pytest.mark.parametrize(
    ("script", "asked", "told"),
    [
        pytest.param(
            [],
            [10, 20, 30],
            [("extended", 10), ("extended", 20), ("extended", 30)],
            id="a renewal is asked for every interval",
        ),
        pytest.param(
            [DOWN, DOWN],
            [10, 11, 12, 22, 32],
            [("StoreUnavailable", 10), ("StoreUnavailable", 11), ("extended", 12), ("extended", 22), ("extended", 32)],
            id="a failed one is tried again soon",
        ),
        pytest.param(
            [False],
            [10],
            [("refused", 10)],
            id="a refused one is never asked for again",
        ),
        pytest.param(
            [4.0],
            [10, 20, 30],
            [("extended", 10), ("extended", 20), ("extended", 30)],
            id="a slow answer counts from when it was asked for",
        ),
        pytest.param(
            [ZeroDivisionError()],
            [10, 11, 21, 31],
            [("ZeroDivisionError", 10), ("extended", 11), ("extended", 21), ("extended", 31)],
            id="whatever the store raises, the thread goes on",
        ),
    ],
)
def test_the_renewers_timeline(script, asked, told):
    time = Time()
    store = ScriptedStore(time, script)
    made, run_until = renewer(store, time)
    lock = Recorder(time)
    made.add(lock)
    run_until(35)
    assert [when for when, _ in store.extensions] == asked
    assert [(what, round(when, 3)) for what, when in lock.told] == told


def test_all_locks_that_are_due_or_soon_will_be_go_into_one_call():
    time = Time()
    store = ScriptedStore(time, [])
    made, run_until = renewer(store, time)
    # ttl / 20 = 1.5 s before its time is soon
    locks = [Recorder(time, key, every=every) for key, every in [("a", 10), ("b", 10.5), ("c", 11.5), ("d", 12)]]
    for lock in locks:
        made.add(lock)
    run_until(13)
    assert store.extensions == [(10, {"a", "b", "c"}), (12, {"d"})]


@pytest.mark.parametrize("renewals", [0, 1])
def test_a_lock_that_was_discarded_or_dropped_is_not_renewed_any_more(renewals):
    time = Time()
    store = ScriptedStore(time, [])
    made, run_until = renewer(store, time)
    locks = {key: Recorder(time, key) for key in ("discarded", "dropped", "kept")}
    for key in ("discarded", "dropped", "kept"):
        made.add(locks[key])
    discarded = locks["discarded"]

    def meanwhile() -> None:
        # the thread is asleep, and must not keep alive what nobody else references
        if len(store.extensions) == renewals and len(locks) > 1:
            made.discard(discarded)
            del locks["discarded"], locks["dropped"]
            gc.collect()

    time.meanwhile = meanwhile
    run_until(35)
    assert [keys for _, keys in store.extensions] == [{"discarded", "dropped", "kept"}] * renewals + [{"kept"}] * (
        3 - renewals
    )


def test_a_lock_that_is_dropped_is_not_renewed_though_who_watched_its_last_renewal_is_slow_to_go(monkeypatch):
    expire = renewal._expire

    def slow_to_go(locks, over) -> None:
        expire(locks, over)
        time_module.sleep(0.2)

    monkeypatch.setattr(renewal, "_expire", slow_to_go)
    time = Time()
    store = ScriptedStore(time, [])
    made, run_until = renewer(store, time)
    locks = {key: Recorder(time, key) for key in ("dropped", "kept")}
    for key in ("dropped", "kept"):
        made.add(locks[key])

    def meanwhile() -> None:
        if store.extensions:
            locks.pop("dropped", None)
            gc.collect()

    time.meanwhile = meanwhile
    run_until(25)
    assert [keys for _, keys in store.extensions] == [{"dropped", "kept"}, {"kept"}]


def test_locks_that_end_before_their_first_renewal_wake_the_thread_once_in_an_interval():
    time = Time()
    made, run_until = renewer(ScriptedStore(time, []), time)
    for _ in range(95):  # one every 0.1 s
        lock = Recorder(time)
        made.add(lock)
        made.discard(lock)
        run_until(time.now + 0.1)
    assert time.notified == 1


def test_a_lock_that_is_due_before_all_others_wakes_the_thread():
    time = Time()
    store = ScriptedStore(time, [])
    made, run_until = renewer(store, time)
    patient, urgent = Recorder(time, "patient"), Recorder(time, "urgent", ttl=3, every=1)
    made.add(patient)
    assert time.notified == 1
    made.add(urgent)
    assert time.notified == 2
    run_until(1.5)
    assert store.extensions == [(1, {"urgent"})]


def test_each_store_has_a_renewer_of_its_own():
    time = Time()
    one, other = ScriptedStore(time, []), ScriptedStore(time, [])
    assert renewer_of(one) is renewer_of(one)
    assert renewer_of(one) is not renewer_of(other)


def test_nothing_is_renewed_in_a_forked_child():
    time = Time()
    store = ScriptedStore(time, [])
    lock = Recorder(time, every=1e9)
    parents = renewer_of(store)
    parents.add(lock)

    def child() -> None:
        assert threading.active_count() == 1
        assert not renewal._renewers
        assert renewer_of(store) is not parents

    forked = multiprocessing.get_context("fork").Process(target=child)
    forked.start()
    forked.join(30)
    assert forked.exitcode == 0
    parents.discard(lock)

"""A body that holds the GIL keeps its renewing thread from running: in prefork the parent renews its lock."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

import pytest
from celery.exceptions import TaskRevokedError
from fleet import Fleet, names
from servers import wait_until

from celery_lockbeat import LockLost

#: Of the locks of ``busy_tasks.py``.
TTL = 1.5

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody can tell whether a child can run")


@pytest.fixture(scope="module")
def fleet(broker, witness_server, locks, tmp_path_factory):
    directory = tmp_path_factory.mktemp("busy")
    settings = {"lockbeat_redis_url": locks.url, "include": ["busy_tasks"]}
    with contextlib.closing(Fleet(broker, witness_server, directory, **settings)) as fleet:
        fleet.workers("busy", "other", concurrency=2)
        yield fleet


@pytest.fixture(params=["redis", "memory"])
def driver(request):
    return request.param


def told_of_a_loss(fleet, run) -> list[str]:
    return [name for name in names(fleet.told(run)) if name in ("lock_extend_failed", "lock_expired_before_finish")]


def test_one_regular_expression_of_some_leases_keeps_its_lock_in_prefork(fleet, witness, key, driver):
    run = fleet.send(f"search_{driver}", key, 4 * TTL, to="busy")
    entered = witness.wait_for(key, "enter", run)
    time.sleep(2 * TTL)
    with pytest.raises(TaskRevokedError):
        fleet.send(f"stay_{driver}", key, 0, to="other").get(timeout=10)
    follower = fleet.send(f"follow_{driver}", key, 0, to="other")
    assert run.get(timeout=120) == key
    assert follower.get(timeout=20) == f"held {key}"
    assert witness.never_overlapped(key)
    left = witness.wait_for(key, "leave", run)
    assert left["at"] - entered["at"] > 2.5 * TTL  # as it was meant to, but for what the measuring was off
    assert witness.entered(key, follower)[0]["at"] >= left["at"]
    assert told_of_a_loss(fleet, run) == []
    assert f"lock '{key}' is renewed in place of the pool child {entered['pid']}" in fleet.processes[0].log()


def test_a_body_that_lets_go_of_the_gil_for_moments_keeps_its_lock(fleet, witness, key, driver):
    run = fleet.send(f"grip_{driver}", key, 0.9 * TTL, to="busy", kwargs={"times": 5})
    follower = fleet.send(f"follow_{driver}", key, 0, to="other", countdown=TTL)
    assert run.get(timeout=60) == key
    assert follower.get(timeout=20) == f"held {key}"
    assert witness.never_overlapped(key)
    assert told_of_a_loss(fleet, run) == []


@pytest.mark.parametrize("body", ["stay", "grip"])
def test_what_a_stopped_child_holds_is_free_after_the_ttl_and_its_run_is_lost(fleet, witness, key, driver, body):
    run = fleet.send(f"{body}_{driver}", key, 3 * TTL, to="busy")
    pid = witness.wait_for(key, "enter", run)["pid"]
    os.kill(pid, signal.SIGSTOP)
    stopped = time.time()
    try:
        follower = fleet.send(f"follow_{driver}", key, 0, to="other")
        assert follower.get(timeout=20) == f"held {key}"
        assert witness.entered(key, follower)[0]["at"] < stopped + TTL + 2
        time.sleep(max(0.0, stopped + 3 * TTL - time.time()))
    finally:
        os.kill(pid, signal.SIGCONT)
    with pytest.raises(LockLost):
        run.get(timeout=20)
    assert told_of_a_loss(fleet, run) == ["lock_extend_failed", "lock_expired_before_finish"]


def test_a_busy_child_that_is_killed_frees_its_lock_at_once(fleet, witness, key, driver):
    run = fleet.send(f"grip_{driver}", key, 40 * TTL, to="busy")
    pid = witness.wait_for(key, "enter", run)["pid"]
    time.sleep(2 * TTL)
    os.kill(pid, signal.SIGKILL)
    died = time.time()
    follower = fleet.send(f"follow_{driver}", key, 0, to="other")
    assert follower.get(timeout=20) == f"held {key}"
    assert witness.entered(key, follower)[0]["at"] < died + 2.5


def test_a_key_that_was_taken_from_a_busy_child_stays_lost(fleet, witness, key, locks):
    run = fleet.send("grip_redis", key, 4 * TTL, to="busy")
    witness.wait_for(key, "enter", run)
    time.sleep(1.5 * TTL)
    with locks.client() as store:
        assert store.delete(f"lockbeat:lock:{{{key}}}")
    assert fleet.send("stay_redis", key, 0, to="other").get(timeout=10) == f"held {key}"
    with pytest.raises(LockLost):
        run.get(timeout=20)


def test_a_run_that_renews_in_time_costs_two_round_trips(make_fleet, spare_server, witness, key):
    # the journal goes to the store in batches of its own, once a second
    fleet = make_fleet(lockbeat_redis_url=spare_server.url, lockbeat_journal=0, include=["busy_tasks"])
    fleet.workers("one", concurrency=1)
    fleet.send("stay_redis", key, 0, to="one").get(timeout=20)

    def asked() -> int:
        with spare_server.client() as client:
            return sum(told["calls"] for name, told in client.info("commandstats").items() if "evalsha" in name)

    time.sleep(0.5)
    before = asked()
    for number in range(10):
        fleet.send("stay_redis", f"{key}{number}", 0.02, to="one").get(timeout=20)
    assert asked() - before == 20


def test_in_a_pool_of_threads_it_is_lost(fleet, witness, key):
    fleet.workers("threads", pool="threads", concurrency=2)
    run = fleet.send("grip_redis", key, 3 * TTL, to="threads")
    with pytest.raises(LockLost):
        run.get(timeout=20)
    wait_until(lambda: told_of_a_loss(fleet, run), 5)

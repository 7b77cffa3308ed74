"""The same endings in every pool: the lock is free at once, and what was lost ends its body."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time

import pytest
from celery.exceptions import TaskRevokedError
from fleet import Fleet, assert_whole_story, names, stories
from servers import wait_until

from celery_lockbeat import LockLost

#: prefork's endings are in test_worker.py and test_endings.py.
POOLS = ["threads", "solo", "gevent", "eventlet", "prefork"]


def require(pool: str) -> None:
    if pool in ("gevent", "eventlet") and not importlib.util.find_spec(pool):
        if os.environ.get("CI"):
            pytest.fail(f"{pool} is missing: pip install -e '.[dev]'")
        pytest.skip(f"{pool} is missing")


@pytest.fixture(scope="module", params=POOLS)
def pool(request):
    require(request.param)
    return request.param


@pytest.fixture(scope="module")
def fleet(pool, broker, witness_server, locks, tmp_path_factory):
    """A worker with the pool, and a prefork one beside it."""
    directory = tmp_path_factory.mktemp(pool)
    with contextlib.closing(
        Fleet(
            broker, witness_server, directory, lockbeat_redis_url=locks.url, include=["ending_tasks", "waiting_tasks"]
        )
    ) as fleet:
        fleet.workers("one", pool=pool, concurrency=1 if pool == "solo" else 4)
        fleet.workers("other", concurrency=2)
        yield fleet


@pytest.mark.parametrize("how", ["return", "raise", "ignore", "requeue", "replace", "retry"])
def test_however_a_run_ends_its_lock_of_300_s_is_free_at_once(fleet, pool, witness, key, how):
    if pool == "prefork":
        pytest.skip("in test_worker.py")
    run = fleet.send("end", key, how, to="one")
    again = how in ("retry", "replace", "requeue")
    fleet.told(run, runs=2 if how in ("replace", "requeue") else 1)  # its next run comes at once, and wants the key too
    assert fleet.send("hold_when_free", key, 0, to="other").get(timeout=10) == f"held {key}"
    if again:
        assert run.get(timeout=20) == "in the end"
    for story in stories(fleet.told(run, runs=1 + again)).values():
        assert_whole_story(story)
    assert witness.never_overlapped(key)
    assert len(witness.entered(key, run)) == 1 + again


def test_a_run_keeps_its_lock_for_longer_than_the_ttl(fleet, pool, witness, key):
    if pool == "prefork":
        pytest.skip("in test_worker.py")
    run = fleet.send("hold", key, to="one")
    witness.wait_for(key, "enter", run)
    time.sleep(3)
    with pytest.raises(TaskRevokedError):
        fleet.send("hold", key, 0, to="other").get(timeout=10)
    witness.let_go(run)
    assert run.get(timeout=10) == f"held {key}"
    assert not witness.lines(key, "lost")


def test_a_body_whose_lock_is_lost_is_ended_at_once_with_lock_on_lost_abort(fleet, pool, locks, witness, key):
    # a thread cannot be woken, so it is ended with its next line
    run = fleet.send("sleep", key, 0.05 if pool == "threads" else 60, to="one")
    witness.wait_for(key, "enter", run)
    bystander = None if pool == "solo" else fleet.send("sleep", f"{key}-bystander", 0.5, to="one")
    with locks.client() as store:
        assert store.delete(f"lockbeat:lock:{{{key}}}")
    lost = time.time()
    aborted = witness.wait_for(key, "aborted", run)
    assert aborted["at"] < lost + 1.5
    with pytest.raises(LockLost, match="was lost"):
        run.get(timeout=10)
    assert witness.lines(key, "cleaned")
    told = names(fleet.told(run))
    assert told == ["task_started", "lock_extend_failed", "lock_expired_before_finish", "task_failed", "task_finished"]
    if bystander is not None:
        assert not witness.lines(f"{key}-bystander", "aborted")
        with locks.client() as store:
            wait_until(lambda: store.delete(f"lockbeat:lock:{{{key}-bystander}}"))
        witness.wait_for(f"{key}-bystander", "aborted", bystander)
    assert fleet.send("hold", key, 0, to="one").get(timeout=10) == f"held {key}"


def test_a_body_is_replaced_in_every_pool(fleet, pool, witness, key):
    run = fleet.send("replace", key, 0.05 if pool == "threads" else 60.0, to="one")
    witness.wait_for(key, "enter", run)
    newcomer = fleet.send("replace", key, 0.0, to="other")
    assert newcomer.get(timeout=20) == f"held {key}"
    with pytest.raises(LockLost, match="replaced by"):
        run.get(timeout=10)
    assert names(fleet.told(run)) == ["task_started", "lock_replaced", "task_failed", "task_finished"]
    assert witness.never_overlapped(key)


def test_whoever_is_to_be_replaced_hears_of_it_at_once_where_its_worker_listens(fleet, pool, witness, key):
    if pool == "solo":
        pytest.skip("it listens between two tasks")
    run = fleet.send("replace_at_once", key, 0.05 if pool == "threads" else 60.0, to="one")
    witness.wait_for(key, "enter", run)
    newcomer = fleet.send("replace_at_once", key, 0.0, to="other")
    # its lease is of 300 s
    assert newcomer.get(timeout=20) == f"held {key}"
    with pytest.raises(LockLost, match="replaced by"):
        run.get(timeout=10)


@pytest.mark.parametrize("driver", ["redis", "memory"])
def test_a_body_that_never_yields_keeps_its_lock_but_under_eventlet(fleet, pool, witness, key, driver):
    if pool not in ("gevent", "eventlet"):
        pytest.skip("no loop to yield to")
    run = fleet.send(f"block_with_{driver}", key, 3, to="one")
    witness.wait_for(key, "enter", run)
    time.sleep(2)
    other = fleet.send(f"block_with_{driver}", key, 0, to="other")
    if pool == "gevent":
        with pytest.raises(TaskRevokedError):
            other.get(timeout=10)
        assert run.get(timeout=10) == key
    else:
        with pytest.raises(LockLost):
            run.get(timeout=10)


def test_a_body_that_exits_frees_its_lock_though_it_ends_a_solo_worker(fleet, pool, witness, key):
    run = fleet.send("end", key, "exit", to="one")
    assert_whole_story(fleet.told(run))
    assert fleet.send("hold_when_free", key, 0, to="other").get(timeout=10) == f"held {key}"
    assert witness.never_overlapped(key)

"""Bodies that are coroutines, in real workers: the lock is held until they have ended, wherever something awaits them."""

from __future__ import annotations

import contextlib

import pytest
from celery.exceptions import TaskRevokedError
from fleet import Fleet, assert_whole_story, names, stories
from servers import wait_until

from celery_lockbeat import ConfigurationError, LockLost

for module in ("celery_aio_pool", "asgiref"):
    pytest.importorskip(module)

#: Who awaits: the worker's pool, or a base's __call__, in its own thread or by asgiref in another.
WHO = ["pool", "runs", "asgi"]


@pytest.fixture(scope="module")
def fleet(broker, witness_server, locks, tmp_path_factory):
    """A worker for each, with its pool, and another one beside it: celery-aio-pool runs one task at a time."""
    directory = tmp_path_factory.mktemp("awaiting")
    with contextlib.closing(
        Fleet(broker, witness_server, directory, lockbeat_redis_url=locks.url, include=["awaited_tasks"])
    ) as fleet:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CELERY_CUSTOM_WORKER_POOL", "celery_aio_pool.pool:AsyncIOPool")
            fleet.workers("pool", "pool2", pool="custom", concurrency=1, shared=False)
        fleet.workers("runs", concurrency=3, shared=False)
        yield fleet


def workers_of(who: str) -> tuple[str, str]:
    return ("pool", "pool2") if who == "pool" else ("runs", "runs")


@pytest.mark.parametrize("who", WHO)
def test_the_lock_is_held_until_the_coroutine_has_ended(fleet, witness, key, who):
    one, other = workers_of(who)
    run = fleet.send(f"{who}_body", key, to=one)
    wait_until(lambda: witness.entered(key))
    skipped = fleet.send(f"{who}_body", key, to=other)
    with pytest.raises(TaskRevokedError, match="locked"):
        skipped.get(timeout=20)
    witness._client.set(f"go:{key}", 1)
    held, waits = run.get(timeout=20)
    assert held, "current_lock() is the lock of the run, in the coroutine too"
    assert waits
    assert len(witness.entered(key)) == 1
    assert fleet.send(f"{who}_body", key, 0, to=other).get(timeout=20)[0], "the key of 300 s is free again"
    for result in (run, skipped):
        for story in stories(fleet.told(result)).values():
            assert_whole_story(story)


def test_without_locked_task_coroutines_overlap_a_control(fleet, witness, key):
    runs = [fleet.send("runs_control", key, to="runs") for _ in range(2)]
    wait_until(lambda: len(witness.entered(key)) == 2)
    witness._client.set(f"go:{key}", 1)
    assert [run.get(timeout=20)[0] for run in runs] == [False, False]
    assert not witness.never_overlapped(key)


@pytest.mark.parametrize("who", WHO)
def test_a_coroutine_whose_lock_is_lost_is_cancelled_and_ends_as_lost(fleet, witness, locks, key, who):
    run = fleet.send(f"{who}_abort", key, to=workers_of(who)[0])
    wait_until(lambda: witness.entered(key))
    with locks.client() as store:
        assert store.delete(f"lockbeat:lock:{{{key}}}")
    with pytest.raises(LockLost, match="was lost"):
        run.get(timeout=20)
    assert witness.lines(key, "cancelled")
    losses = ["task_started", "lock_extend_failed", "lock_expired_before_finish"]
    assert names(fleet.told(run)) == [*losses, "task_failed", "task_finished"]
    witness._client.set(f"go:{key}", 1)
    assert fleet.send(f"{who}_body", key, 0, to=workers_of(who)[0]).get(timeout=20)[0], "the loop goes on"


@pytest.mark.parametrize("who", WHO)
def test_autoretry_sees_what_a_coroutine_raises(fleet, witness, key, who):
    run = fleet.send(f"{who}_fails", key, to=workers_of(who)[0])
    assert int(run.get(timeout=20))
    assert names(fleet.told(run, runs=2)).count("task_retried") == 1
    assert len(witness.entered(key)) == 2


def test_a_copy_of_a_coroutines_message_is_known_for_one(fleet, witness, key):
    for who in WHO:
        worker = workers_of(who)[0]
        ids = {"task_id": f"{key}-{who}"}
        fleet.send(f"{who}_body", f"{key}{who}", 0, to=worker, **ids).get(timeout=20)
        copy = fleet.send(f"{who}_body", f"{key}{who}", 0, to=worker, headers={}, **ids)
        assert fleet.told(copy, runs=2)
        assert names(fleet.events(task_id=copy.id)).count("task_skipped") == 1


def test_a_plain_body_under_a_pool_that_runs_it_in_another_thread_has_its_request_and_its_copies(fleet, witness, key):
    run = fleet.send("pool_plain", key, to="pool")
    assert run.get(timeout=20) == [True, run.id]
    told = fleet.told(run)
    assert {event["task_id"] for event in told} == {run.id}


@pytest.mark.parametrize("pool", ["prefork"])
def test_a_worker_that_would_not_await_what_it_consumes_does_not_start(fleet, broker, pool):
    arguments = ["worker", "-P", pool, "-c", "1", "-n", f"refused-{pool}@tests", "-Q", "queue-of-pool"]
    worker = fleet._start(f"refused-{pool}", arguments, {})
    assert worker.process.wait(60) != 0
    said = worker.events_path.read_text()
    assert "ConfigurationError: run of pool_body is async def, and the pool celery.concurrency" in said
    assert "asyncio.run(self.run(*args, **kwargs))" in said


def test_a_worker_that_would_not_await_it_fails_what_it_gets_all_the_same(fleet, witness, key):
    run = fleet.send("pool_body", key, to="runs")
    with pytest.raises(ConfigurationError, match="run of pool_body is async def.*awaits nothing; allowed: run it in"):
        run.get(timeout=20)
    assert not witness.entered(key)

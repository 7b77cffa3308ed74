"""Runs that wait in line for their key, under real workers that die: each runs once, in its turn, and soon."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import statistics
import time

import pytest
from celery.exceptions import TaskRevokedError
from fleet import Fleet
from servers import wait_until

from celery_lockbeat import LockLost
from celery_lockbeat.tasks.waiting import COMES_WITHIN


@pytest.fixture(scope="module")
def fleet(broker, witness_server, locks, tmp_path_factory):
    settings = {"lockbeat_redis_url": locks.url, "include": ["waiting_tasks"]}
    with contextlib.closing(Fleet(broker, witness_server, tmp_path_factory.mktemp("waiting"), **settings)) as fleet:
        fleet.workers("a", "b", concurrency=2)
        yield fleet


def told_to_wait(fleet, *runs) -> None:
    """Send runs, each when the one before has its place."""
    for run in runs:
        wait_until(lambda run=run: fleet.events(event="task_waiting", task_id=run.id), 30, "it waits")


def line_of(fleet, key: str, count: int, *, task: str = "wait", seconds: float = 0.0) -> list:
    runs = []
    for _ in range(count):
        runs.append(fleet.send(task, key, seconds))
        told_to_wait(fleet, runs[-1])
    return runs


def test_those_who_wait_run_in_their_order_at_once_and_occupy_no_child_meanwhile(fleet, witness, key):
    first = fleet.send("wait", key)
    witness.wait_for(key, "enter", first)
    runs = line_of(fleet, key, 12)
    # two workers of two children each, and one of these is held: who waits is in none
    assert fleet.send("wait", f"{key}-other", 0).get(timeout=20)
    witness.let_go(first)
    assert [run.get(timeout=60) for run in runs] == [f"held {key}"] * 12
    entered, left = witness.entered(key), witness.lines(key, "leave")
    assert [line["id"] for line in entered] == [first.id, *(run.id for run in runs)]
    assert witness.never_overlapped(key)
    assert [line["token"] for line in entered] == sorted(line["token"] for line in entered)
    gaps = [after["at"] - before["at"] for before, after in zip(left, entered[1:], strict=False)]
    print(f"until the next has begun: median {statistics.median(gaps):.3f} s, at most {max(gaps):.3f} s")
    # on a machine that does nothing else the median is below 0.05
    assert statistics.median(gaps) < 2
    assert max(gaps) < COMES_WITHIN / 3, "they were called: none has come by itself"
    for run in runs:
        assert [event["event"] for event in fleet.events(task_id=run.id) if event["event"] != "task_waiting"][-1] == (
            "task_finished"
        )
        assert len(fleet.events(task_id=run.id, event="task_waiting")) == 1


def test_a_killed_childs_key_goes_to_who_waits_and_its_own_run_comes_after(fleet, witness, key):
    killed = fleet.send("wait", key)
    entered = witness.wait_for(key, "enter", killed)
    (run,) = line_of(fleet, key, 1)
    os.kill(entered["pid"], signal.SIGKILL)
    assert run.get(timeout=30) == f"held {key}"
    began = witness.entered(key, run)[0]["at"]
    witness.let_go(killed)
    assert killed.get(timeout=60) == f"held {key}"
    assert began < witness.entered(key, killed)[1]["at"]
    assert len(witness.entered(key, run)) == 1


def test_a_dead_hosts_key_goes_to_who_waits_when_its_lease_ends(make_fleet, locks, witness, key):
    fleet = make_fleet(lockbeat_redis_url=locks.url, include=["waiting_tasks"])
    doomed, _ = fleet.workers("doomed", "lives")
    held = fleet.send("wait_shortly", key, to="doomed")
    witness.wait_for(key, "enter", held)
    run = fleet.send("wait_shortly", key, 0, to="lives")
    told_to_wait(fleet, run)
    doomed.kill()
    killed = time.time()
    assert run.get(timeout=COMES_WITHIN) == f"held {key}"
    began = witness.entered(key, run)[0]["at"]
    print(f"{began - killed:.2f} s after the death of a worker whose lease was of 3 s")
    assert began < killed + COMES_WITHIN / 3, "it was called: it has not come by itself"
    witness.let_go(held)


def test_in_memory_a_killed_childs_key_goes_to_who_waits_too(fleet, witness, key):
    killed = fleet.send("wait_in_memory", key)
    entered = witness.wait_for(key, "enter", killed)
    (run,) = line_of(fleet, key, 1, task="wait_in_memory")
    os.kill(entered["pid"], signal.SIGKILL)
    assert run.get(timeout=20) == f"held {key}"
    witness.let_go(killed)


def test_as_many_run_as_may_hold_the_key_and_the_others_wait(fleet, witness, key):
    firsts = [fleet.send("share", key) for _ in range(2)]
    for first in firsts:
        witness.wait_for(key, "enter", first)
    runs = line_of(fleet, key, 3, task="share")
    witness.let_go(*firsts)
    assert [run.get(timeout=60) for run in runs] == [f"held {key}"] * 3
    assert max(line["inside"] for line in witness.entered(key)) == 2


def test_of_the_ones_that_may_wait_there_is_one_and_the_others_are_answered(fleet, witness, key):
    for task, reason in (("wait_one", "queued"), ("wait_latest", "superseded")):
        own = f"{key}-{task}"
        first = fleet.send(task, own)
        witness.wait_for(own, "enter", first)
        (earlier,) = line_of(fleet, own, 1, task=task)
        later = fleet.send(task, own, 0)
        skipped, waits = (later, earlier) if task == "wait_one" else (earlier, later)
        with pytest.raises(TaskRevokedError, match=rf"{reason}: .*\[{waits.id}\]"):
            skipped.get(timeout=20)
        wait_until(lambda own=skipped: fleet.events(event="task_skipped", task_id=own.id), 20, "it is told")
        told = fleet.events(event="task_skipped", task_id=skipped.id)
        assert {event["reason"] for event in told} == {reason}
        assert all(f"{task}[{waits.id}]" in event["who"] for event in told), "who waits in its place"
        witness.let_go(first)
        assert waits.get(timeout=30) == f"held {own}"


def test_who_has_waited_for_too_long_is_answered(fleet, witness, key):
    first = fleet.send("wait", key)
    witness.wait_for(key, "enter", first)
    (run,) = line_of(fleet, key, 1, task="wait_briefly")
    with pytest.raises(TaskRevokedError, match="waited"):
        run.get(timeout=20)
    witness.let_go(first)


def test_a_newcomer_replaces_the_run_that_has_the_key_and_begins_when_that_has_really_ended(fleet, witness, key):
    stubborn = fleet.send("replace", key, 60.0, 4.0)
    witness.wait_for(key, "enter", stubborn)
    superseded, newcomer = line_of(fleet, key, 2, task="replace", seconds=0)
    with pytest.raises(TaskRevokedError, match="superseded"):
        superseded.get(timeout=20)
    told = witness.wait_for(key, "replaced", stubborn)
    assert "replaced by" in told["error"]
    assert superseded.id in told["error"], "it is told once, at once, and that one came first"
    assert newcomer.get(timeout=30) == f"held {key}"
    with pytest.raises(LockLost, match="replaced by"):
        stubborn.get(timeout=20)
    assert witness.never_overlapped(key)
    left, entered = witness.lines(key, "leave")[0], witness.entered(key, newcomer)[0]
    assert left["id"] == stubborn.id
    assert left["at"] > told["at"] + 3.9, "for more than two leases it did not stop, and had the key"
    assert entered["token"] > witness.entered(key, stubborn)[0]["token"]
    assert [event["event"] for event in fleet.told(stubborn)] == [
        "task_started",
        "lock_replaced",
        "task_failed",
        "task_finished",
    ]
    (event,) = fleet.events(event="lock_replaced", task_id=stubborn.id)
    assert superseded.id in event["holder"]


@pytest.mark.soak
def test_a_line_outlives_the_death_of_all_workers(make_fleet, locks, witness, key):
    """The copies that wait come again: the broker's visibility timeout is two seconds here."""
    options = {"visibility_timeout": 2}
    fleet = make_fleet(lockbeat_redis_url=locks.url, include=["waiting_tasks"], broker_transport_options=options)
    fleet.workers("a", concurrency=2)
    first = fleet.send("wait", key)
    witness.wait_for(key, "enter", first)
    runs = line_of(fleet, key, 3)
    for worker in fleet.processes:
        worker.kill()
    with locks.client() as client:
        client.flushall()  # the store has lost all of it, too
    witness.let_go(first)
    fleet.workers("b", concurrency=2)
    wait_until(lambda: len(witness.entered(key)) >= 4, 120, "each has run")
    for run in runs:
        assert run.get(timeout=60) == f"held {key}"
    for before, after in itertools.pairwise(witness.entered(key)[1:]):
        assert before["at"] <= after["at"]
    time.sleep(1)
    assert all(len(witness.entered(key, run)) == 1 for run in runs)

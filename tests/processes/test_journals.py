"""What real beats and workers leave in the journal: of runs that end, that are killed with their child, and of ticks."""

from __future__ import annotations

import os
import signal

import pytest
from celery import Celery
from servers import wait_until

from celery_lockbeat import journal


@pytest.fixture
def shop(make_fleet, locks):
    fleet = make_fleet(lockbeat_redis_url=locks.url, include=["ending_tasks"])
    fleet.workers("w", concurrency=2)
    fleet.reader = Celery("processes", broker=locks.url, set_as_current=False)
    yield fleet
    fleet.reader.close()


def of(fleet, task_id):
    return [record for record in journal.read(fleet.reader, limit=None) if record.task_id == task_id]


def events(fleet, task_id):
    return [record.event for record in of(fleet, task_id)]


@pytest.mark.parametrize("lasts", [0, 1.5])
def test_a_run_is_in_it_within_a_second_of_its_end(shop, key, lasts):
    run = shop.send("hold", key, lasts)
    run.get(timeout=20)
    wait_until(lambda: "task_succeeded" in events(shop, run.id), 10)
    assert events(shop, run.id) == ["task_started", "task_succeeded"][lasts == 0 :]
    end = of(shop, run.id)[-1]
    assert end.lock_key
    assert end.hostname == "w@tests"
    assert lasts * 1000 <= end.duration_ms < lasts * 1000 + 10_000


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_of_a_run_whose_child_is_killed_its_parent_writes_how_it_died(shop, witness, key, number):
    run = shop.send("die", key)
    victim = witness.wait_for(key, "enter", run)
    wait_until(lambda: events(shop, run.id) == ["task_started"], 10)
    os.kill(victim["pid"], number)
    wait_until(lambda: "task_died" in events(shop, run.id), 10)
    start, end = of(shop, run.id)
    assert (end.status, end.signal, end.pid) == ("died", number, victim["pid"])
    assert end.reason == f"its process was killed by {number.name}"
    assert (end.execution_id, end.task_name, end.token) == (start.execution_id, start.task_name, victim["token"])


@pytest.mark.parametrize(
    ("how", "options", "reason"),
    [
        ("exit", {}, "its process ended with exit status 3"),
        ("segfault", {}, "its process was killed by SIGSEGV"),
        ("", {"time_limit": 1}, "it exceeded its hard time limit of 1 s"),
    ],
)
def test_of_one_that_dies_by_itself_it_says_of_what(shop, witness, key, how, options, reason):
    run = shop.send("die", key, how, **options)
    witness.wait_for(key, "enter", run)
    wait_until(lambda: "task_died" in events(shop, run.id), 10)
    assert of(shop, run.id)[-1].reason == reason


def test_of_one_that_is_revoked_it_says_so(shop, witness, key):
    run = shop.send("die", key)
    witness.wait_for(key, "enter", run)
    shop.client.control.revoke(run.id, terminate=True, signal="SIGKILL")
    wait_until(lambda: "task_died" in events(shop, run.id), 10)
    assert of(shop, run.id)[-1].reason == "it was revoked, with terminate"


def test_what_a_warm_shutdown_waits_for_is_in_it(shop, key):
    run = shop.send("hold", key, 1)
    wait_until(lambda: "task_started" in events(shop, run.id), 20)
    shop.processes[0].terminate()
    assert events(shop, run.id) == ["task_started", "task_succeeded"]

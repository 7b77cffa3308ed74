"""Runs and ticks through a failover of Sentinels and a Cluster that loses a node; what a worker asks of its Redis."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import pytest
from fake_redis import fake_redis, of_version
from fleet import HERE, ROOT, Fleet
from servers import Server, wait_until
from topologies import NAME, Nodes, Trio


@pytest.fixture
def make_fleet_on(broker, witness_server, tmp_path):
    with contextlib.ExitStack() as stack:

        def make(url, options, **settings):
            directory = tmp_path / "fleet"
            directory.mkdir()
            settings = {"lockbeat_redis_url": url, "lockbeat_redis_options": options, "lockbeat_ttl": 12, **settings}
            return stack.enter_context(contextlib.closing(Fleet(broker, witness_server, directory, **settings)))

        yield make


def run_through(fleet, witness, key, end_one):
    """A run and ticks go on while a server is lost, and each comes to its end once."""
    ticks = f"{key}-ticks"
    schedule = {"each": {"task": "tick", "schedule": "marks 1", "args": [ticks], "options": {"queue": fleet.queue}}}
    for name in ("beat1", "beat2"):
        fleet.beat(name, schedule)
    fleet.workers("a", "b", concurrency=2)
    run = fleet.send("hold_with_redis", key, to="a")
    witness.wait_for(key, "enter", run)

    def runs():
        return [line["run"] for line in witness.lines(ticks, "tick")]

    wait_until(lambda: len(runs()) >= 2, 60, "ticks")
    end_one()
    before = len(runs())
    wait_until(lambda: len(runs()) >= before + 4, 60, "ticks after it")
    overlapping = fleet.send("hold_with_redis", key, to="b")
    assert {event.get("reason") for event in fleet.told(overlapping)} >= {"locked"}, "P1"
    # more than the lease that there was before
    wait_until(lambda: fleet.events(task_id=run.id, event="lock_extended"), 30)
    witness.let_go(run)
    assert run.get(timeout=30) == f"held {key}"
    assert len(witness.entered(key)) == 1
    told = runs()
    assert len(told) == len(set(told)), "P2: each once"
    # two that come late, at one moment, are one run and one skip; whose run met no store has failed; and each tells so
    ends = fleet.events(task_name="tick", event="task_finished")
    assert len({event["task_id"] for event in ends}) >= max(told) - 2, "P2: none is lost"
    untold = set(range(1, max(told) - 1)) - set(told)
    assert len(untold) <= sum(event["status"] != "success" for event in ends)


def test_runs_and_ticks_go_through_a_failover_of_sentinels(make_fleet_on, witness, key, tmp_path):
    with Trio(tmp_path) as trio:
        options = {"master_name": NAME}
        fleet = make_fleet_on(trio.url, options, lockbeat_redis_min_replicas=1)
        run_through(fleet, witness, key, trio.fail_over)


def test_runs_and_ticks_go_through_the_loss_of_a_clusters_primary(make_fleet_on, witness, key):
    with Nodes(replicas=True) as nodes:
        fleet = make_fleet_on(nodes.urls, {"cluster": True})
        run_through(fleet, witness, key, lambda: nodes.has_lock(key).kill())


def test_a_child_has_at_most_two_connections_and_its_parent_one(make_fleet, key, witness):
    with Server() as locks, locks.client() as client:
        fleet = make_fleet(lockbeat_redis_url=locks.url, lockbeat_redis_options={"client_name": "of-locks"})
        (worker,) = fleet.workers("a", concurrency=3)
        runs = [fleet.send("hold", f"{key}{number}", 3) for number in range(9)]
        most = 0
        while not all(run.ready() for run in runs):
            most = max(most, sum(each["name"] == "of-locks" for each in client.client_list()))
        children = len(worker.family()) - 1
        assert children == 3
        assert children <= most <= 2 * children + 1
        # children that run one task after another do not open more
        wait_until(lambda: sum(each["name"] == "of-locks" for each in client.client_list()) <= 2 * children + 1)


@pytest.mark.parametrize("program", ["worker", "beat"])
def test_a_redis_that_is_too_old_is_refused_at_start_up_with_its_version(broker, witness_server, program, tmp_path):
    with fake_redis(of_version("5.0.14")) as server:
        settings = {
            "broker_url": broker.url,
            "lockbeat_redis_url": server.url,
            "lockbeat_redis_options": {"protocol": 2},
            "lockbeat_memory_path": str(tmp_path / "memory"),
        }
        environment = {
            **os.environ,
            "PYTHONPATH": f"{HERE}{os.pathsep}{ROOT}",
            "LOCKBEAT_TEST_WITNESS": witness_server.url,
            "LOCKBEAT_TEST_SETTINGS": json.dumps(settings),
        }
        scheduler = ["-S", "celery_lockbeat:LockedScheduler", "--pidfile="] if program == "beat" else ["-P", "solo"]
        ended = subprocess.run(
            [sys.executable, "-m", "celery", "-A", "apps", program, *scheduler],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert ended.returncode != 0
    assert "the Redis of the locks is of version 5.0.14; allowed: from 6.2 on" in ended.stdout + ended.stderr


def test_a_worker_warns_once_of_a_redis_that_may_evict_its_locks(make_fleet):
    with Server("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as locks:
        fleet = make_fleet(lockbeat_redis_url=locks.url)
        (worker,) = fleet.workers("a", concurrency=3)
        for run in [fleet.send("hold", f"key{number}", 0.1) for number in range(6)]:
            run.get(timeout=30)
        assert worker.log().count("may drop them: its maxmemory_policy is allkeys-lru") == 1

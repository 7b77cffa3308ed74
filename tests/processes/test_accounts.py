"""Runs that need several keys, under real workers: never two that share one, none stuck, and nothing left of a killed one."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal

import pytest
from celery import Celery, states
from fleet import Fleet
from servers import wait_until

from celery_lockbeat import Lock


@pytest.fixture(scope="module")
def fleet(broker, witness_server, locks, tmp_path_factory):
    settings = {"lockbeat_redis_url": locks.url, "include": ["account_tasks"]}
    with contextlib.closing(Fleet(broker, witness_server, tmp_path_factory.mktemp("several"), **settings)) as fleet:
        fleet.workers("a", "b", concurrency=3)
        yield fleet


def test_runs_that_want_the_same_keys_in_any_order_never_overlap_and_none_is_stuck(fleet, witness, key):
    keys = [f"{key}-{letter}" for letter in "abc"]
    pairs = [*itertools.permutations(keys, 2)] * 8
    random.shuffle(pairs)
    runs = [fleet.send("move", *pair) for pair in pairs]
    assert [run.get(timeout=120) for run in runs] == [None] * len(pairs)
    for each in keys:
        assert witness.never_overlapped(each)
        entered = witness.entered(each)
        assert sorted(line["id"] for line in entered) == sorted(
            run.id for run, pair in zip(runs, pairs, strict=True) if each in pair
        ), "each has run once"


def test_of_runs_that_are_skipped_when_one_is_held_some_run_and_all_are_answered(fleet, witness, key):
    pairs = [(f"{key}-a", f"{key}-b"), (f"{key}-b", f"{key}-a")] * 20
    runs = [fleet.send("move_or_skip", *pair) for pair in pairs]
    wait_until(lambda: all(run.state in states.READY_STATES for run in runs), 60, "all are answered")
    done = [run for run in runs if run.state == states.SUCCESS]
    assert done
    assert {run.state for run in runs} <= {states.SUCCESS, states.REVOKED}
    for each in pairs[0]:
        assert witness.never_overlapped(each)
        assert len(witness.entered(each)) == len(done)


def test_a_killed_childs_keys_are_free_within_a_second_of_its_death_all_of_them(fleet, witness, locks, key):
    killed = fleet.send("hold_two", key)
    entered = witness.wait_for(key, "enter", killed)
    app = Celery(set_as_current=False)
    app.conf.lockbeat_redis_url = locks.url
    assert Lock.locked(key, app=app)
    assert Lock.locked(f"{key}-2", app=app)
    os.kill(entered["pid"], signal.SIGKILL)
    wait_until(lambda: len(witness.entered(key)) == 2, 30, "its message has come again, and has both")
    witness.let_go(killed)
    assert killed.get(timeout=30) == f"held {key}"
    assert not Lock.locked(f"{key}-2", app=app)
    app.close()

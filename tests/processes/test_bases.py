"""LockedTask beside another base with a ``__call__`` of its own, in real workers: both count, in whatever order they stand."""

from __future__ import annotations

import contextlib

import pytest
from celery.exceptions import TaskRevokedError
from fleet import Fleet, assert_whole_story, stories

pytest.importorskip("flask")

KINDS = ["flask", "super", "tenant", "meta", "django"]


@pytest.fixture(scope="module")
def fleet(broker, witness_server, locks, tmp_path_factory):
    directory = tmp_path_factory.mktemp("bases")
    with contextlib.closing(
        Fleet(broker, witness_server, directory, lockbeat_redis_url=locks.url, include=["based_tasks"])
    ) as fleet:
        fleet.workers("a")
        yield fleet


@pytest.mark.parametrize("task", [f"{kind}_{order}" for kind in KINDS for order in ("last", "first")] + ["yearly"])
def test_the_lock_is_taken_and_the_other_bases_call_runs_in_whatever_order_they_stand(fleet, witness, key, task):
    run = fleet.send(task, key)
    witness.wait_for(key, "enter", run)
    with pytest.raises(TaskRevokedError, match="locked"):
        fleet.send(task, key).get(timeout=20)
    witness.let_go(run)
    assert run.get(timeout=20) == [True, True], "it has its lock, and the context that the other base gives it"
    assert {line["id"] for line in witness.entered(key)} == {run.id}
    assert fleet.send(task, key, 0).get(timeout=20) == [True, True], "the key of 300 s is free again"
    for story in stories(fleet.told(run)).values():
        assert_whole_story(story)


@pytest.mark.parametrize("kind", KINDS)
def test_without_locked_task_they_overlap_a_control(fleet, witness, key, kind):
    runs = [fleet.send(f"{kind}_control", key) for _ in range(2)]
    for run in runs:
        witness.wait_for(key, "enter", run)
    witness.let_go(*runs)
    assert [run.get(timeout=20) for run in runs] == [[False, True]] * 2
    assert not witness.never_overlapped(key)

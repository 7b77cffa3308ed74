"""Real workers: renewal, every way in which a run can end, copies of messages, and the other pools."""

from __future__ import annotations

import json
import time

import pytest
from celery.exceptions import TaskRevokedError
from fleet import assert_whole_story, names, stories
from servers import wait_until


def test_a_run_of_several_ttls_keeps_its_lock_all_along(pair, witness, key):
    run = pair.send("hold", key)
    witness.wait_for(key, "enter", run)
    began = time.monotonic()
    others = []
    while time.monotonic() < began + 7:  # three and a half times the ttl
        others.append(pair.send("hold", key, 0))
        time.sleep(0.25)
    for other in others:
        with pytest.raises(TaskRevokedError):
            other.get(timeout=10)
    witness.let_go(run)
    assert run.get(timeout=10) == f"held {key}"
    assert len(witness.entered(key)) == 1
    assert not witness.lines(key, "lost")
    told = names(pair.told(run))
    assert told[:2] == ["task_started", "lock_acquired"]
    assert told[-3:] == ["lock_released", "task_succeeded", "task_finished"]
    assert len(told) - 5 == told.count("lock_extended") >= 6
    assert pair.send("hold", key, 0).get(timeout=10)


# -- endings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "how", "first", "error"),
    [
        ("end", "return", "task_succeeded", None),
        ("end", "raise", "task_failed", "ZeroDivisionError"),
        ("end", "retry", "task_retried", None),
        ("end_autoretried", None, "task_retried", "ZeroDivisionError"),
        ("end", "requeue", "task_failed", "Reject"),
        ("end", "replace", "task_succeeded", None),
        ("end", "ignore", "task_succeeded", None),
        ("end", "exit", "task_failed", "SystemExit"),
    ],
)
def test_however_a_run_ends_its_lock_is_free_at_once_and_its_story_told(pair, witness, key, task, how, first, error):
    later = task == "end_autoretried" or how == "retry"  # its next run comes in a second
    again = later or how in ("requeue", "replace")
    run = pair.send(task, key, *[how] if how else [])
    pair.told(run, runs=2 if again and not later else 1)
    # its lease of 300 s has been released, or neither this nor its own next run would come in
    assert pair.send("hold", key, 0).get(timeout=10) == f"held {key}"
    told = pair.told(run, runs=2 if again else 1)
    runs = sorted(stories(told).values(), key=lambda events: events[0]["timestamp"])
    for events in runs:
        assert_whole_story(events)
    ends = [events[-2] for events in runs]
    assert ends[0]["event"] == first
    assert ends[0].get("error_name") == error
    assert len(witness.entered(key, run)) == len(runs) == 1 + again
    assert witness.never_overlapped(key)
    if again:
        assert ends[1]["event"] == "task_succeeded"
        assert run.get(timeout=10) == "in the end"


@pytest.mark.parametrize("how", ["retry", "replace"])
def test_a_next_run_of_the_same_task_that_comes_before_its_lock_is_released_does_run(pair, witness, key, how):
    run = pair.send("hand_over", key, how)
    # neither skipped by its own predecessor, nor run beside it, nor put off until the end of its lease of 300 s
    assert run.get(timeout=15) == "in the end"
    assert len(witness.entered(key, run)) == 2
    assert witness.never_overlapped(key)
    assert [event["status"] for event in pair.told(run, runs=2) if event["event"] == "task_finished"] == [
        "success" if how == "replace" else "retry",
        "success",
    ]


def test_a_run_that_may_not_be_skipped_gets_its_turn_by_autoretry(pair, witness, key):
    first = pair.send("hold", key)
    witness.wait_for(key, "enter", first)
    second = pair.send("hold_in_turn", key, 0)
    [retried] = [event for event in pair.told(second) if event["event"] == "task_retried"]
    assert retried["error_name"] == "LockNotAcquired"
    assert retried["retry_in"] == 0.3
    assert retried["holder"]
    assert not witness.entered(key, second)
    witness.let_go(first)
    assert second.get(timeout=10) == f"held {key}"
    assert witness.never_overlapped(key)
    for run in stories(pair.told(second)).values():
        assert_whole_story(run)


# -- copies of a message -----------------------------------------------------------------------------------------------


def test_a_copy_of_a_finished_run_is_a_duplicate_and_leaves_its_result_alone(pair, witness, key):
    run = pair.send("hold_late", key, 0)
    assert run.get(timeout=10) == f"held {key}"
    pair.send("hold_late", key, 0, task_id=run.id)
    pair.told(run, runs=2)
    [skipped] = pair.events(task_id=run.id, event="task_skipped")
    assert skipped["reason"] == "duplicate"
    assert len(witness.entered(key)) == 1
    assert pair.client.AsyncResult(run.id).state == "SUCCESS"
    assert pair.client.AsyncResult(run.id).get(timeout=10) == f"held {key}"


def test_a_copy_of_any_try_of_a_task_that_has_come_to_its_end_is_a_duplicate(pair, witness, key):
    first = pair.send("hold", key)
    witness.wait_for(key, "enter", first)
    second = pair.send("hold_in_turn", key, 0)
    pair.told(second)  # its first try could not have the key
    witness.let_go(first)
    assert second.get(timeout=10) == f"held {key}"
    assert len(witness.entered(key, second)) == 1
    tries = len(stories(pair.told(second, runs=2)))
    for retries in (0, 59):
        pair.send("hold_in_turn", key, 0, task_id=second.id, retries=retries)
    pair.told(second, runs=tries + 2)
    skipped = pair.events(task_id=second.id, event="task_skipped")
    assert [event["reason"] for event in skipped] == ["duplicate"] * 2
    assert len(witness.entered(key, second)) == 1
    assert second.get(timeout=10) == f"held {key}"


def test_a_copy_answers_for_a_last_try_that_died_between_its_release_and_its_result(pair, witness, key):
    first = pair.send("hold", key)
    witness.wait_for(key, "enter", first)
    run = pair.send("hold_in_turn", key, 0)
    pair.told(run)
    witness.let_go(first)
    assert run.get(timeout=10) == f"held {key}"
    backend = pair.client.backend
    told = json.loads(backend.get(backend.get_key_for_task(run.id)))
    backend.set(backend.get_key_for_task(run.id), json.dumps({**told, "status": "RETRY", "result": None}))
    pair.send("hold_in_turn", key, 0, task_id=run.id, retries=1)
    wait_until(lambda: pair.client.AsyncResult(run.id).state == "REVOKED", 20, "whoever waits for it is answered")


def test_a_copy_of_a_run_that_goes_on_elsewhere_waits_and_is_a_duplicate_after_its_end(pair, witness, key):
    run = pair.send("hold_late", key, to="a")
    witness.wait_for(key, "enter", run)
    pair.send("hold_late", key, to="b", task_id=run.id)
    postponed = f"a copy of hold_late[{run.id}] came while that run goes on elsewhere"
    pair.processes[1].wait_for_log(postponed)
    time.sleep(2.5)  # longer than the ttl: it comes again, and is postponed again
    assert not pair.events(task_id=run.id, event="task_skipped")
    assert pair.client.AsyncResult(run.id).state == "PENDING"
    witness.let_go(run)
    assert run.get(timeout=10) == f"held {key}"
    pair.told(run, runs=2)
    [skipped] = pair.events(task_id=run.id, event="task_skipped")
    assert skipped["reason"] == "duplicate"
    assert len(witness.entered(key)) == 1
    assert pair.processes[1].log().count(postponed) >= 2
    assert pair.client.AsyncResult(run.id).state == "SUCCESS"


def test_a_copy_runs_once_the_worker_of_its_run_is_dead(make_fleet, locks, witness, key):
    fleet = make_fleet(lockbeat_redis_url=locks.url)
    doomed, other = fleet.workers("doomed", "other", concurrency=2)
    run = fleet.send("hold_late", key, to="doomed")
    first = witness.wait_for(key, "enter", run)
    fleet.send("hold_late", key, to="other", task_id=run.id)
    other.wait_for_log(f"a copy of hold_late[{run.id}] came while that run goes on elsewhere")
    assert len(witness.entered(key)) == 1
    killed = time.time()
    doomed.kill()
    wait_until(lambda: len(witness.entered(key)) == 2, 15, "the copy runs")
    second = witness.entered(key)[1]
    assert second["token"] > first["token"]
    # the lease of 2 s was renewed at most two thirds of a second before the kill
    assert second["at"] > killed + 0.8
    witness.let_go(run)
    assert run.get(timeout=10) == f"held {key}"
    assert not fleet.events(task_id=run.id, event="task_skipped")


# -- other pools -------------------------------------------------------------------------------------------------------


def test_the_threads_of_one_worker_exclude_each_other(make_fleet, locks, witness, key):
    fleet = make_fleet(lockbeat_redis_url=locks.url)
    fleet.workers("threads", pool="threads", concurrency=4)
    run = fleet.send("hold", key)
    witness.wait_for(key, "enter", run)
    others = [fleet.send("hold", key, 0) for _ in range(6)]
    for other in others:
        with pytest.raises(TaskRevokedError):
            other.get(timeout=10)
    elsewhere = fleet.send("hold", f"{key}-2", 0)
    assert elsewhere.get(timeout=10)
    witness.let_go(run)
    assert run.get(timeout=10) == f"held {key}"
    assert fleet.send("hold", key, 0).get(timeout=10) == f"held {key}"
    assert len(witness.entered(key)) == 2
    assert witness.never_overlapped(key)
    wait_until(lambda: names(fleet.events()).count("task_finished") == 9, message="all have told")
    for story in stories(fleet.events()).values():
        assert_whole_story(story)


def test_a_solo_worker_renews_releases_and_skips(make_fleet, pair, locks, witness, key):
    fleet = make_fleet(lockbeat_redis_url=locks.url)
    fleet.workers("solo", pool="solo")
    run = fleet.send("hold", key)
    witness.wait_for(key, "enter", run)
    time.sleep(2.5)  # longer than the ttl
    with pytest.raises(TaskRevokedError):
        pair.send("hold", key, 0).get(timeout=10)
    witness.let_go(run)
    assert run.get(timeout=10) == f"held {key}"
    run = pair.send("hold", key)
    witness.wait_for(key, "enter", run)
    with pytest.raises(TaskRevokedError):
        fleet.send("hold", key, 0).get(timeout=10)
    witness.let_go(run)
    assert run.get(timeout=10)
    assert fleet.send("hold", key, 0).get(timeout=10) == f"held {key}"
    assert len(witness.entered(key)) == 3
    assert witness.never_overlapped(key)
    wait_until(lambda: names(fleet.events()).count("task_finished") == 3, message="all have told")
    for story in stories(fleet.events()).values():
        assert_whole_story(story)

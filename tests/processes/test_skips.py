"""P8, with the Redis result backend: whoever waits for what was skipped gets an answer at once."""

from __future__ import annotations

import time

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError, TaskRevokedError
from fleet import assert_whole_story, names
from servers import wait_until


@pytest.fixture
def held(pair, witness, key):
    """The run that holds ``key`` throughout."""
    run = pair.send("hold", key)
    witness.wait_for(key, "enter", run)
    yield run
    witness.let_go(run)
    assert run.get(timeout=10) == f"held {key}"
    assert witness.entered(key) == witness.entered(key, run)


def test_who_waits_for_a_skipped_run_is_told_the_reason_and_the_holder(pair, held, key):
    began = time.monotonic()
    skipped = pair.send("hold", key, 0)
    with pytest.raises(TaskRevokedError) as told:
        skipped.get(timeout=10)
    assert time.monotonic() - began < 5
    assert str(told.value).startswith(f"locked: lock {key!r} is held by ")
    assert f"@tests pid {_pid(pair, held)} hold[{held.id}]" in str(told.value)
    assert skipped.state == "REVOKED"
    events = pair.told(skipped)
    assert_whole_story(events)
    assert names(events) == ["task_started", "task_skipped", "task_finished"]
    assert (events[1]["reason"], events[1]["status"]) == ("locked", "skipped")
    assert f"hold[{held.id}]" in events[1]["holder"]


def _pid(fleet, run):
    return fleet.events(task_id=run.id, event="task_started")[0]["pid"]


def test_a_group_with_a_skipped_member_ends(pair, held, key):
    members = group([pair.s("hold", key, 0), pair.s("hold", f"{key}-free", 0)], app=pair.client).apply_async()
    with pytest.raises(TaskRevokedError):
        members.get(timeout=10)
    assert sorted(member.get(timeout=10, propagate=False).__class__.__name__ for member in members) == [
        "TaskRevokedError",
        "str",
    ]


def assert_ends(pair, body):
    """The result of a chord's body fails with the member that was skipped, as does waiting for chord and members."""
    with pytest.raises(ChordError, match="TaskRevokedError"):
        pair.client.AsyncResult(body.id).get(timeout=10)
    with pytest.raises((ChordError, TaskRevokedError)):
        body.get(timeout=10)


def test_a_chord_with_a_skipped_member_ends(pair, held, witness, key):
    header = [pair.s("hold", key, 0), pair.s("hold", f"{key}-free", 0)]
    body = chord(header, app=pair.client)(pair.s("note", f"{key}-body"))
    assert_ends(pair, body)
    assert not witness.entered(f"{key}-body")


def test_a_chord_ends_whose_member_is_a_chain_that_begins_with_a_skipped_task(pair, held, witness, key):
    header = [
        chain(pair.s("hold", key, 0), pair.s("note", f"{key}-chain"), app=pair.client),
        pair.s("hold", f"{key}-free", 0),
    ]
    body = chord(header, app=pair.client)(pair.s("note", f"{key}-body"))
    assert_ends(pair, body)
    assert not witness.entered(f"{key}-chain")
    assert not witness.entered(f"{key}-body")


def test_a_chord_ends_whose_member_is_a_chain_that_ends_with_a_skipped_task(pair, held, witness, key):
    header = [
        chain(pair.s("note", f"{key}-chain"), pair.s("hold", key, 0, immutable=True), app=pair.client),
        pair.s("hold", f"{key}-free", 0),
    ]
    body = chord(header, app=pair.client)(pair.s("note", f"{key}-body"))
    assert_ends(pair, body)
    assert witness.entered(f"{key}-chain")
    assert not witness.entered(f"{key}-body")


def test_a_chain_stops_at_a_skipped_member_and_its_last_result_says_so(pair, held, witness, key):
    last = chain(
        pair.s("note", f"{key}-before"),
        pair.s("hold", key, 0, immutable=True),
        pair.s("note", f"{key}-after"),
        pair.s("note", f"{key}-last"),
        app=pair.client,
    ).apply_async()
    with pytest.raises(TaskRevokedError, match="locked"):
        last.get(timeout=10)
    # get() raises as soon as a member before it is revoked, and the worker answers for one after the other
    wait_until(lambda: last.state == "REVOKED", message="the last member is answered, too")
    assert last.parent.parent.state == "REVOKED"
    assert witness.entered(f"{key}-before")
    assert not witness.entered(f"{key}-after")
    assert not witness.entered(f"{key}-last")


def test_a_skipped_run_whose_result_nobody_wants_is_no_error(pair, held, key):
    skipped = [pair.send("hold_without_result", key, 0), pair.send("hold", key, 0, ignore_result=True)]
    for each in skipped:
        events = pair.told(each)
        assert_whole_story(events)
        assert "task_skipped" in names(events)
        # nothing was written for it
        assert pair.client.AsyncResult(each.id).state == "PENDING", events[0]["task_name"]
    assert "nobody could be told" not in "".join(worker.log() for worker in pair.processes)

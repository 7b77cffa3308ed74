"""P8 on Celery's other result backends, and what monitors see: nobody waits for a run that will not come."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict

import pytest
from celery import chain, chord, group
from celery.events.state import State
from celery.exceptions import ChordError, TaskRevokedError
from celery.signals import before_task_publish
from fleet import Fleet
from servers import free_port, wait_until

from celery_lockbeat import LockLost
from celery_lockbeat.tasks import copies as runs

#: The promise is one second; two noisy cores may add to it.
AT_ONCE = 1.0 + 2.0


@pytest.fixture(scope="module", params=["redis", "rpc", "database"])
def fleet(request, broker, witness_server, locks, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    backend = {"redis": broker.url, "rpc": "rpc://", "database": f"db+sqlite:///{directory}/results"}[request.param]
    settings = {"lockbeat_redis_url": locks.url, "include": ["ending_tasks"], "result_backend": backend}
    with contextlib.closing(Fleet(broker, witness_server, directory, **settings)) as fleet:
        fleet.backend = request.param
        fleet.workers("w", concurrency=4, heartbeat=True)  # without one, nobody can ask for its events
        yield fleet


@pytest.fixture
def held(fleet, witness, key):
    run = fleet.send("hold", key)
    witness.wait_for(key, "enter", run)
    yield run
    witness.let_go(run)
    assert run.get(timeout=20) == f"held {key}"


def test_a_skipped_run_is_answered_at_once_with_reason_and_holder(fleet, held, key):
    began = time.monotonic()
    skipped = fleet.send("hold", key, 0)
    with pytest.raises(TaskRevokedError, match=rf"locked: lock '{key}' is held by w@tests pid \d+ hold\[{held.id}\]"):
        skipped.get(timeout=10)
    assert time.monotonic() - began < AT_ONCE
    assert skipped.state == "REVOKED"


def test_a_duplicate_is_answered_with_the_result_of_the_run_that_it_repeats(fleet, witness, key):
    run = fleet.send("hold", key, 0)
    assert run.get(timeout=10) == f"held {key}"
    began = time.monotonic()
    copy = fleet.send("hold", key, 0, task_id=run.id)
    if fleet.backend == "rpc":
        # the result went to who asked first, and is nowhere any more
        with contextlib.suppress(TaskRevokedError):
            assert copy.get(timeout=10) == f"held {key}"
    else:
        assert copy.get(timeout=10) == f"held {key}"
    assert time.monotonic() - began < AT_ONCE
    fleet.told(run, runs=2)
    assert len(witness.entered(key)) == 1


def test_a_lost_run_is_a_failure_whose_result_is_nowhere_and_whose_hooks_know_it(fleet, witness_server, key):
    run = fleet.send("lose_and_tell", key)
    with pytest.raises(LockLost, match="was lost before the run ended"):
        run.get(timeout=10)
    assert run.state == "FAILURE"
    with witness_server.client() as client:
        wait_until(lambda: client.exists(f"hooks:{run.id}"))
        assert client.lrange(f"hooks:{run.id}", 0, -1) == ["on_failure LockLost"]
    assert fleet.told(run)[-2]["error_name"] == "LockLost"


def test_a_chain_stops_and_a_group_ends(fleet, held, witness, key):
    links = chain(
        fleet.s("hold", key, 0), fleet.s("note", f"{key}-after", immutable=True), app=fleet.client
    ).apply_async()
    if fleet.backend == "rpc":
        # Celery's RPC backend sends each answer to one who waits for that very task
        with pytest.raises(TaskRevokedError):
            links.parent.get(timeout=10)
    else:
        with pytest.raises(TaskRevokedError):
            links.get(timeout=10)
    assert not witness.entered(f"{key}-after")
    members = group([fleet.s("hold", key, 0), fleet.s("hold", f"{key}-free", 0)], app=fleet.client).apply_async()
    with pytest.raises(TaskRevokedError):
        members.get(timeout=10)


def test_a_chord_with_a_skipped_member_ends(fleet, held, witness, key):
    if fleet.backend == "rpc":
        pytest.skip("Celery has no chords on the RPC backend")
    header = [fleet.s("hold", key, 0), fleet.s("hold", f"{key}-free", 0)]
    body = chord(header, app=fleet.client)(fleet.s("note", f"{key}-body"))
    with pytest.raises((ChordError, TaskRevokedError)):
        fleet.client.AsyncResult(body.id).get(timeout=20)
    assert not witness.entered(f"{key}-body")


def test_neither_link_nor_link_error_of_a_skipped_run_is_called(fleet, held, witness, key):
    skipped = fleet.s("hold", key, 0)
    skipped.link(fleet.s("note", f"{key}-linked"))
    skipped.link_error(fleet.s("note", f"{key}-error", immutable=True))
    with pytest.raises(TaskRevokedError):
        skipped.apply_async().get(timeout=10)
    time.sleep(0.5)
    assert not witness.lines(f"{key}-linked")
    assert not witness.lines(f"{key}-error")


def test_a_lost_run_calls_its_link_error_and_not_its_link(fleet, witness, key):
    run = fleet.s("lose", key)
    run.link(fleet.s("note", f"{key}-linked", immutable=True))
    run.link_error(fleet.s("note", f"{key}-error", immutable=True))
    with pytest.raises(LockLost):
        run.apply_async().get(timeout=10)
    wait_until(lambda: witness.entered(f"{key}-error"))
    assert not witness.lines(f"{key}-linked")


def test_whose_result_is_ignored_is_skipped_all_the_same(fleet, held, key):
    skipped = fleet.send("hold", key, 0, ignore_result=True)
    assert "task_skipped" in [event["event"] for event in fleet.told(skipped)]
    assert "nobody could be told" not in fleet.processes[0].log()


# -- sent again by a client that knows nothing of us: nobody can tell that it is no copy ---------------------------------


@pytest.fixture
def foreign(fleet):
    if fleet.backend == "rpc":
        pytest.skip("Celery has no chords on the RPC backend, and each of its answers goes to one")
    before_task_publish.disconnect(runs._tell_apart)
    yield
    before_task_publish.connect(runs._tell_apart)


def test_a_second_chord_with_a_task_that_has_ended_ends(fleet, foreign, witness, key):
    for number in (1, 2):
        header = [fleet.s("hold", key, 0, task_id=f"once-{key}"), fleet.s("hold", f"{key}-{number}", 0)]
        body = chord(header, app=fleet.client)(fleet.s("note", f"{key}-body"))
        assert fleet.client.AsyncResult(body.id).get(timeout=20) == f"{key}-body"
    assert len(witness.entered(key)) == 1
    assert len(witness.entered(f"{key}-body")) == 2


def test_a_second_chord_with_a_task_that_has_failed_fails(fleet, foreign, witness, key):
    for _ in range(2):
        header = [fleet.s("end", key, "raise", task_id=f"once-{key}"), fleet.s("hold", f"{key}-other", 0)]
        body = chord(header, app=fleet.client)(fleet.s("note", f"{key}-body"))
        with pytest.raises((ChordError, ZeroDivisionError)):
            fleet.client.AsyncResult(body.id).get(timeout=20)
    assert len(witness.entered(key)) == 1
    assert not witness.entered(f"{key}-body")


def test_a_second_chain_goes_on_with_the_result_that_is_there(fleet, foreign, witness, key):
    for _ in range(2):
        links = chain(
            fleet.s("hold", key, 0, task_id=f"once-{key}"),
            fleet.s("note", f"{key}-then"),
            fleet.s("note", f"{key}-last"),
        ).apply_async()
        assert links.get(timeout=20) == f"{key}-last"
    assert len(witness.entered(key)) == 1
    assert len(witness.entered(f"{key}-then")) == len(witness.entered(f"{key}-last")) == 2


def test_a_second_messages_callbacks_are_called(fleet, foreign, witness, key):
    for how in ("return", "raise"):
        for number in (1, 2):
            run = fleet.s("end", f"{key}-{how}", how, task_id=f"once-{key}-{how}")
            run.link(fleet.s("note", f"{key}-{how}-linked", immutable=True))
            run.link_error(fleet.s("note", f"{key}-{how}-error", immutable=True))
            run.apply_async()
            called = f"{key}-{how}-{'linked' if how == 'return' else 'error'}"
            wait_until(lambda called=called, number=number: len(witness.entered(called)) == number)
        assert len(witness.entered(f"{key}-{how}")) == 1
    assert not witness.entered(f"{key}-return-error")
    assert not witness.entered(f"{key}-raise-linked")


# -- monitors ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def watched(app):
    """What ``celery events`` and Flower keep: the state that the workers' events make up."""
    state, seen, over, ready = State(), defaultdict(list), threading.Event(), threading.Event()

    def receive() -> None:
        def on_event(event) -> None:
            state.event(event)
            seen[event.get("uuid")].append(event["type"])

        with app.connection_for_read() as connection:
            with app.events.Receiver(connection, handlers={"*": on_event}).consumer_context() as (used, _, _):
                ready.set()
                while not over.is_set():
                    with contextlib.suppress(TimeoutError):
                        used.drain_events(timeout=0.5)

    thread = threading.Thread(target=receive)
    thread.start()
    ready.wait(10)
    time.sleep(0.5)
    try:
        yield state, seen
    finally:
        over.set()
        thread.join()


def test_monitors_see_a_skipped_run_as_revoked_with_its_reason_once_they_have_asked_for_events(fleet, held, key):
    if fleet.backend != "redis":
        pytest.skip("no matter of the backend")
    with watched(fleet.client) as (state, seen):
        before = fleet.send("hold", key, 0)
        fleet.told(before)
        fleet.client.control.enable_events()
        time.sleep(0.5)
        skipped = fleet.send("hold", key, 0)
        wait_until(lambda: "task-revoked" in seen[skipped.id])
    task = state.tasks[skipped.id]
    assert task.state == "REVOKED"
    assert f"locked: lock '{key}' is held by" in task.exception
    assert seen[skipped.id] == ["task-received", "task-started", "task-revoked"]
    assert before.id not in seen


def test_flower_shows_a_skipped_run_as_revoked_with_its_reason(fleet, held, key):
    if fleet.backend != "redis":
        pytest.skip("no matter of the backend")
    if not importlib.util.find_spec("flower") and not os.environ.get("CI"):
        pytest.skip("flower is missing")
    port = free_port()
    environment = {**os.environ, "FLOWER_UNAUTHENTICATED_API": "true"}
    command = [sys.executable, "-m", "celery", "-b", fleet.client.conf.broker_url, "flower", f"--port={port}"]
    flower = subprocess.Popen([*command, "--address=127.0.0.1"], env=environment, cwd=fleet.directory)

    def shown(path: str) -> dict[str, object]:
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/{path}", timeout=5) as answer:
                return json.load(answer)
        return {}

    try:
        wait_until(lambda: shown("workers"), 30, "Flower knows the worker")
        fleet.client.control.enable_events()  # Flower does so too, every five seconds
        time.sleep(0.5)
        skipped = fleet.send("hold", key, 0)
        wait_until(lambda: shown(f"task/info/{skipped.id}").get("state") == "REVOKED", message="Flower shows it")
        assert f"locked: lock '{key}' is held by" in str(shown(f"task/info/{skipped.id}")["exception"])
    finally:
        flower.kill()
        flower.wait()

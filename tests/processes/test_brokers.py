"""Locks in Redis beside other brokers and result backends: real beats, real workers, real kills."""

from __future__ import annotations

import contextlib
import time
from types import SimpleNamespace

import pytest
from fleet import Fleet
from rabbitmq import RabbitMQ
from servers import wait_until


@pytest.fixture(scope="module")
def rabbitmq():
    with RabbitMQ() as server:
        yield server


@pytest.fixture(params=["rabbitmq", "filesystem"])
def fleet(request, witness_server, locks, tmp_path):
    """A fleet on that broker, whose results are in a database of its own."""
    settings = {
        "lockbeat_redis_url": locks.url,
        "lockbeat_key_prefix": f"{request.param}:",  # entries of its own
        "result_backend": f"db+sqlite:///{tmp_path / 'results.db'}",
        "include": ["ending_tasks"],
        "task_reject_on_worker_lost": True,
    }
    if request.param == "rabbitmq":
        url = request.getfixturevalue("rabbitmq").url
    else:
        url = "filesystem://"
        for name in ("queue", "control"):
            (tmp_path / name).mkdir()
        folders = {"data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control"}
        settings["broker_transport_options"] = {name: str(tmp_path / folder) for name, folder in folders.items()}
    with contextlib.closing(Fleet(SimpleNamespace(url=url), witness_server, tmp_path, **settings)) as fleet:
        fleet.client.conf.broker_transport_options = settings.get("broker_transport_options", {})
        yield fleet


def runs_of(witness, key):
    return [line["run"] for line in witness.lines(key, "tick")]


def test_each_tick_of_two_beats_runs_once_though_one_of_them_is_killed(fleet, witness, key):
    schedule = {"each": {"task": "tick", "schedule": "marks 1", "args": [key], "options": {"queue": fleet.queue}}}
    fleet.workers("a", "b", concurrency=2)
    beats = [fleet.beat(name, schedule) for name in ("beat1", "beat2")]
    wait_until(lambda: len(runs_of(witness, key)) >= 3, 60, "ticks")
    beats[0].kill()
    before = len(runs_of(witness, key))
    wait_until(lambda: len(runs_of(witness, key)) >= before + 4, 60, "ticks of the one that is left")
    ran = runs_of(witness, key)
    beats[1].terminate()
    assert len(ran) == len(set(ran)), "each once"
    # two that come late, at one moment, are one run and one skip; workers do not keep the order of two messages
    missing = set(range(1, max(ran) - 1)) - set(ran)
    assert len(missing) <= len(fleet.events(task_name="tick", event="task_skipped", reason="locked")), (
        "and none is lost"
    )


def test_a_held_key_is_skipped_and_a_killed_child_frees_it(fleet, witness, key):
    fleet.workers("a", "b", concurrency=2)
    first = fleet.send("work_late", key, 30, to="a")
    entered = witness.wait_for(key, "enter", first)
    second = fleet.send("hold", key, 0, to="b")
    assert [event["reason"] for event in fleet.told(second) if event["event"] == "task_skipped"] == ["locked"]
    assert second.get(timeout=20, propagate=False) is not None
    assert second.state == "REVOKED"
    next(child for child in fleet.processes[0].family() if child.pid == entered["pid"]).kill()
    killed = time.time()
    # the broker has the message still, and its lease of 300 s is not waited for
    wait_until(lambda: len(witness.entered(key, first)) == 2, 40, "it runs again")
    assert witness.entered(key, first)[1]["at"] < killed + 30


def test_a_run_whose_whole_worker_is_killed_comes_to_its_end_once(
    rabbitmq, witness_server, locks, tmp_path, witness, key
):
    """RabbitMQ delivers again as soon as the worker's connection is gone; the lease of the dead one is waited for."""
    settings = {"lockbeat_redis_url": locks.url, "result_backend": "rpc://", "task_reject_on_worker_lost": True}
    with contextlib.closing(Fleet(rabbitmq, witness_server, tmp_path, **settings)) as fleet:
        fleet.workers("a", concurrency=1)
        run = fleet.send("hold_late", key, 4)
        witness.wait_for(key, "enter", run)
        fleet.workers("b", concurrency=1)
        fleet.processes[0].kill()
        killed = time.time()
        assert run.get(timeout=60) == f"held {key}"
        first, second = witness.entered(key)
        assert first["at"] < killed < second["at"]
        assert second["token"] > first["token"]
        assert len(witness.lines(key, "leave")) == 1


@pytest.mark.parametrize("backend", ["none", "rpc"])
def test_without_a_result_backend_or_with_rpc_a_run_excludes_and_a_skip_is_told(
    rabbitmq, witness_server, locks, tmp_path, witness, key, backend
):
    settings = {"lockbeat_redis_url": locks.url, "result_backend": "rpc://" if backend == "rpc" else "disabled://"}
    with contextlib.closing(Fleet(rabbitmq, witness_server, tmp_path, **settings)) as fleet:
        fleet.workers("a", "b", concurrency=2)
        first = fleet.send("hold", key, to="a")
        witness.wait_for(key, "enter", first)
        second = fleet.send("hold", key, to="b")
        assert {event.get("reason") for event in fleet.told(second)} >= {"locked"}
        witness.let_go(first)
        assert fleet.told(first)[-1]["status"] == "success"
        if backend == "rpc":
            assert first.get(timeout=20) == f"held {key}"
            assert second.get(timeout=20, propagate=False) is not None
            assert second.state == "REVOKED"
        assert len(witness.entered(key)) == 1

"""What is sent anew, under an id that has been used before, runs; what a broker delivers again is a copy."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from types import SimpleNamespace

import pytest
from celery import Celery, chain, chord, group
from fleet import Fleet
from rabbitmq import RabbitMQ
from servers import wait_until


@pytest.fixture(scope="module")
def rabbitmq():
    with RabbitMQ() as server:
        yield server


@pytest.fixture(params=["redis", "rabbitmq"])
def fleet(request, broker, witness_server, locks, tmp_path):
    """A fleet whose broker delivers again soon what a dead worker had."""
    settings = {"lockbeat_redis_url": locks.url, "include": ["ending_tasks"], "result_backend": broker.url}
    if request.param == "redis":
        settings["broker_transport_options"] = {"visibility_timeout": 2}
    server = broker if request.param == "redis" else SimpleNamespace(url=request.getfixturevalue("rabbitmq").url)
    with contextlib.closing(Fleet(server, witness_server, tmp_path, **settings)) as fleet:
        yield fleet


def test_a_run_that_failed_runs_again_when_it_is_sent_anew_and_not_when_its_broker_delivers_it_again(
    fleet, witness, key
):
    (doomed,) = fleet.workers("doomed", concurrency=1)
    run = fleet.send("fail_at_first", key, anew=True)
    witness.wait_for(key, "enter", run)
    # the child goes on, but nobody acknowledges the message
    os.kill(doomed.pid, signal.SIGSTOP)
    witness.let_go(run)
    wait_until(lambda: doomed.events(task_id=run.id, event="task_finished"), message="it has failed")
    wait_until(lambda: run.state == "FAILURE", message="and says so")
    doomed.kill()
    time.sleep(2.5)  # longer than the visibility timeout
    fleet.workers("other", concurrency=1)
    wait_until(lambda: fleet.events(task_id=run.id, event="task_skipped"), 40, "it is delivered again")
    assert [event["reason"] for event in fleet.events(task_id=run.id, event="task_skipped")] == ["duplicate"]
    assert len(witness.entered(key)) == 1
    assert fleet.client.AsyncResult(run.id).state == "FAILURE"

    again = fleet.send("fail_at_first", key, anew=True, task_id=run.id)
    wait_until(lambda: len(witness.entered(key)) == 2, message="it runs")
    wait_until(lambda: fleet.client.AsyncResult(run.id).state == "SUCCESS", message="and ends well")
    assert again.get(timeout=10) == "in the end"


def client_of(fleet, protocol):
    client = Celery("client", broker=fleet.client.conf.broker_url, backend=fleet.client.conf.result_backend)
    client.conf.update(task_protocol=protocol, task_default_queue=fleet.queue)
    return client


@pytest.mark.parametrize("protocol", [1, 2])
def test_what_is_sent_twice_under_one_id_runs_twice(pair, witness, key, protocol):
    with contextlib.closing(client_of(pair, protocol)) as client:
        for number in (1, 2):
            client.send_task("hold", (key, 0), task_id=f"report-{key}")
            wait_until(lambda number=number: len(witness.entered(key)) == number)
            wait_until(lambda number=number: len(pair.events(task_id=f"report-{key}", event="task_finished")) == number)
    assert not pair.events(task_id=f"report-{key}", event="task_skipped")


@pytest.mark.parametrize("protocol", [1, 2])
@pytest.mark.parametrize("how", ["retry", "replace"])
def test_each_of_two_that_are_sent_under_one_id_has_its_own_tries(pair, witness, key, protocol, how):
    with contextlib.closing(client_of(pair, protocol)) as client:
        for number in (1, 2):
            client.send_task("end", (f"{key}-{number}", how), task_id=f"report-{key}-{number}")
            wait_until(lambda number=number: len(witness.lines(f"{key}-{number}", "leave")) == 2)
            client.send_task("end", (f"{key}-{number}", how), task_id=f"report-{key}-{number}")
            wait_until(lambda number=number: len(witness.lines(f"{key}-{number}", "leave")) == 3)
    assert not pair.events(task_id=f"report-{key}-1", event="task_skipped")


def test_one_that_is_sent_under_the_id_of_a_run_that_goes_on_comes_after_it(pair, witness, key):
    first = pair.send("hold", key, to="a")
    witness.wait_for(key, "enter", first)
    pair.send("hold", key, to="b", anew=True, task_id=first.id)
    pair.processes[1].wait_for_log(f"a copy of hold[{first.id}] came while that run goes on elsewhere")
    assert first.state == "PENDING", "its result is that of the first"
    witness.let_go(first)
    wait_until(lambda: len(witness.lines(key, "leave")) == 2)
    assert witness.never_overlapped(key)
    assert first.get(timeout=10) == f"held {key}"


def test_a_second_chord_around_one_frozen_task_ends(pair, witness, key):
    frozen = pair.s("hold", key, 0)
    frozen.freeze()
    for number in (1, 2):
        header = [frozen, pair.s("hold", f"{key}-{number}", 0)]
        body = chord(header, app=pair.client)(pair.s("note", f"{key}-body"))
        assert pair.client.AsyncResult(body.id).get(timeout=20) == f"{key}-body"
    assert len(witness.entered(key)) == 2
    links = chain(frozen.clone(), pair.s("note", f"{key}-then")).apply_async()
    assert links.get(timeout=20) == f"{key}-then"
    both = group([frozen.clone(), pair.s("hold", f"{key}-3", 0)], app=pair.client).apply_async()
    assert both.get(timeout=20) == [f"held {key}", f"held {key}-3"]


def test_what_a_run_sends_comes_once_more_when_that_run_is_carried_out_again_and_is_a_copy(pair, witness, key):
    """The run before in a chain is no locked one: its worker died after it had sent the next, and it runs again."""
    before = {"link": [pair.s("hold", f"{key}-then", 0, task_id=f"then-{key}", immutable=True)]}
    pair.send("note", key, task_id=f"before-{key}", **before)
    wait_until(lambda: pair.events(task_id=f"then-{key}", event="task_finished"))
    pair.send("note", key, task_id=f"before-{key}", **before)
    wait_until(lambda: len(pair.events(task_id=f"then-{key}", event="task_finished")) == 2)
    assert len(witness.entered(key)) == 2
    assert len(witness.entered(f"{key}-then")) == 1
    pair.send("note", key, task_id=f"before-{key}", anew=True, **before)
    wait_until(lambda: len(witness.entered(f"{key}-then")) == 2, message="sent anew, the whole chain runs")

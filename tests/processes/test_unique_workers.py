"""``lock_unique`` among real publishers and workers: whoever is killed, the place is free again, and never for two."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from datetime import timezone

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError
from fleet import HERE, Fleet
from kombu.exceptions import OperationalError
from servers import Server, wait_until
from unique_publisher import known_to

from celery_lockbeat import journal
from celery_lockbeat.journal.sentences import Writing, sentence_of
from celery_lockbeat.journal.ticks import ticks_of
from celery_lockbeat.observe.vocabulary import took


@pytest.fixture
def fleet(broker, witness_server, locks, tmp_path):
    settings = {"lockbeat_redis_url": locks.url, "include": ["unique_tasks"]}
    with contextlib.closing(Fleet(broker, witness_server, tmp_path, **settings)) as fleet:
        yield fleet


@pytest.fixture
def sender(fleet, locks):
    """The tasks, as an app knows them that sends them."""
    with contextlib.closing(publisher(fleet, locks)) as app:
        yield app.tasks


def publisher(fleet, locks, **settings):
    app = Celery("publisher", broker=fleet.client.conf.broker_url, backend=fleet.client.conf.result_backend)
    app.conf.update(task_default_queue=fleet.queue, lockbeat_redis_url=locks.url, **settings)
    return known_to(app)


def another(fleet, locks, name, key, how, **more):
    """Another process that sends."""
    command = [sys.executable, str(HERE / "unique_publisher.py"), fleet.client.conf.broker_url, name, key, how]
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "QUEUE": fleet.queue, "LOCKS": locks.url}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **more)


def test_whatever_happens_to_a_message_or_its_run_the_next_one_is_sent(fleet, sender, locks, witness, key):
    (worker,) = fleet.workers("w", concurrency=1)
    started, finished = sender["unique_started"], sender["unique_finished"]

    # another process is told of the one that is queued, or runs
    first = finished.delay(key)
    told = another(fleet, locks, "unique_finished", key, "once").communicate(timeout=30)[0]
    assert told.strip() == first.id
    witness.wait_for(key, "enter", first)
    assert finished.delay(key).id == first.id
    queued = started.delay(key)
    assert queued.id != first.id, "it is another task's"
    assert started.delay(key).id == queued.id

    # revoked while it waits: its worker gives its place back
    fleet.client.control.revoke(queued.id)
    wait_until(lambda: queued.id in worker.log(), message="the worker has heard of it")
    expired = started.apply_async((f"{key}-expires",), expires=1)
    over = time.monotonic() + 1
    entered = witness.wait_for(key, "enter", first)
    # else the only child runs it, and nothing after it
    wait_until(lambda: time.monotonic() > over)
    # the child of the pool is killed
    os.kill(entered["pid"], signal.SIGKILL)
    killed = time.monotonic()
    ids = []
    wait_until(
        lambda: ids.append(finished.delay(key).id) or ids[-1] != first.id, 10, "its lock is free, and so is its place"
    )
    assert time.monotonic() - killed < 5, "long before the lease ends"
    second = fleet.client.AsyncResult(ids[-1])
    wait_until(lambda: started.delay(f"{key}-expires").id != expired.id, message="it has expired")
    with pytest.raises(TaskRevokedError):
        queued.get(timeout=20)
    wait_until(lambda: started.delay(key).id != queued.id, 10, "what was revoked is not queued any more")
    witness.let_go(second)
    assert second.get(timeout=20) == f"held {key}"
    wait_until(lambda: finished.delay(key, 0).id != second.id)


def test_the_place_of_a_dead_worker_is_free_with_its_lease(fleet, sender, witness, key):
    (doomed,) = fleet.workers("doomed", concurrency=1)
    run = sender["unique_leased"].delay(key)
    witness.wait_for(key, "enter", run)
    time.sleep(2.5)  # a lease, which was renewed
    assert sender["unique_leased"].delay(key).id == run.id
    doomed.kill()
    wait_until(lambda: sender["unique_leased"].delay(key).id != run.id, 10)


def test_a_publisher_that_dies_before_it_has_sent_keeps_others_waiting_for_the_ttl_and_no_longer(
    fleet, sender, locks, witness, key
):
    dying = another(fleet, locks, "unique_short", key, "killed")
    assert dying.wait(30) == -signal.SIGKILL
    dying.stdout.close()
    died = time.monotonic()
    task = sender["unique_short"]
    dead = task.delay(key)
    ids = []
    wait_until(lambda: ids.append(task.delay(key, 0).id) or ids[-1] != dead.id, 10)
    assert time.monotonic() - died < 4
    fleet.workers("w", concurrency=1)
    assert fleet.client.AsyncResult(ids[-1]).get(timeout=20) == f"held {key}"
    assert len(witness.entered(key)) == 1
    # and its worker is free for the next, though it came late
    assert task.delay(key, 0).get(timeout=20) == f"held {key}"


def test_while_the_broker_is_away_nothing_is_queued_and_then_it_is(fleet, locks, key):
    with Server() as away, contextlib.closing(publisher(fleet, locks, broker_url=away.url)) as app:
        task = app.tasks["unique_finished"]
        first = task.delay(key)
        away.kill()
        for number in range(3):
            with pytest.raises(OperationalError):
                task.apply_async((f"{key}-{number}",), retry=False)
        away.restart()
        for number in range(3):
            assert task.delay(f"{key}-{number}").id == task.delay(f"{key}-{number}").id
        assert task.delay(key).id == first.id, "the broker has lost it, and nobody can know"


def test_many_publishers_never_queue_what_would_find_its_key_held(fleet, locks, witness, key, tmp_path):
    fleet.workers("a", "b", concurrency=2)
    publishers = [another(fleet, locks, "unique_finished", key, "4") for _ in range(3)]
    told = [each.communicate(timeout=60)[0].split() for each in publishers]
    ids = {id_ for each in told for id_ in each}
    runs = {line["id"] for line in witness.entered(key)}
    wait_until(lambda: {line["id"] for line in witness.lines(key, "leave")} == ids, message="all that was sent has run")
    assert len(ids) > 2
    assert sum(map(len, told)) > len(ids) + 10, "and much was not sent"
    assert runs <= ids
    assert witness.never_overlapped(key)
    assert fleet.events(event="task_skipped") == [], "none was sent in vain"


def test_a_tick_whose_task_is_queued_is_in_the_journal_as_skipped_with_the_task_that_is_there(fleet, locks, key):
    fleet.beat("b", {"report": {"task": "unique_started", "schedule": 1, "args": [key]}})
    reader = Celery("processes", set_as_current=False)
    reader.conf.lockbeat_redis_url = locks.url

    def ticks():
        return [each for each in ticks_of(journal.read(reader, limit=None)) if each.entry == "report"]

    with contextlib.closing(reader):
        wait_until(lambda: len(ticks()) >= 3, 30)
        first, *rest = ticks()
        assert (first.run, first.outcome) == (1, "queued"), "there is no worker"
        assert first.published is not None
        for run, each in enumerate(rest, 2):
            assert (each.run, each.outcome, each.reason, each.published) == (run, "skipped", "unique", None)
            assert each.last.holder == f"unique_started[{first.task_id}]"
        sentence = sentence_of(rest[0], ticks(), Writing(timezone.utc, took))
        assert sentence.endswith(f": its task was queued already, or running, as unique_started[{first.task_id}].")


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_under_kills_of_publishers_and_workers_a_key_is_never_taken_for_good(fleet, locks, witness, key):
    """Whoever is killed, at any moment: after each storm the next message runs within the ttl and a lease."""
    for round_ in range(6):
        mine = f"{key}-{round_}"
        workers = fleet.workers(f"a{round_}", f"b{round_}", concurrency=1)
        publishers = [another(fleet, locks, "unique_short", mine, "3") for _ in range(3)]
        time.sleep(1 + round_ * 0.3)
        publishers[0].kill()
        workers[0].kill()
        time.sleep(0.5)
        publishers[1].kill()
        for each in publishers:
            each.communicate(timeout=60)
        before = len(witness.entered(mine))
        assert before, "some ran"
        last = another(fleet, locks, "unique_short", mine, "6")
        last.communicate(timeout=60)
        wait_until(lambda mine=mine, before=before: len(witness.entered(mine)) > before + 3, 20)
        workers[1].kill()

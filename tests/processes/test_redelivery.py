"""P2 of runs: whatever the broker delivers again, and whoever dies at whatever moment, a run comes to its end once."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import time
from collections import defaultdict

import psutil
import pytest
from fleet import Fleet, _alive
from proxy import Proxy
from servers import wait_until

RUNS = 200
KILLS = 60


@pytest.fixture(scope="module")
def fleet(broker, witness_server, locks, tmp_path_factory):
    directory = tmp_path_factory.mktemp("redelivery")
    settings = {"lockbeat_redis_url": locks.url, "include": ["ending_tasks"]}
    with contextlib.closing(Fleet(broker, witness_server, directory, **settings)) as fleet:
        fleet.workers("a", "b", concurrency=4)
        yield fleet


def kill_children_at_random(fleet, over) -> dict[int, float]:
    """SIGKILL a child now and then, until enough are dead or it is over; returns when, by pid."""
    killed: dict[int, float] = {}
    while len(killed) < KILLS and not over():
        time.sleep(random.uniform(0, 0.2))
        children = [child for worker in fleet.processes for child in worker.family()[1:] if _alive(child)]
        if children:
            victim = random.choice(children)
            when = time.time()
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
                killed[victim.pid] = when
    return killed


def test_of_200_runs_whose_children_are_killed_at_random_each_ends_once(fleet, witness, key):
    late = [fleet.send("work_late", f"{key}-late-{n}", random.uniform(0.05, 0.3)) for n in range(RUNS)]
    early = [fleet.send("work_early", f"{key}-early-{n}", random.uniform(0.05, 0.3)) for n in range(RUNS // 4)]
    lines = defaultdict(list)

    def read() -> int:
        for kind, runs in (("late", late), ("early", early)):
            for n in range(len(runs)):
                lines[kind, n] = witness.lines(f"{key}-{kind}-{n}")
        return sum(any(line["what"] == "end" for line in told) for (kind, _), told in lines.items() if kind == "late")

    killed = kill_children_at_random(fleet, lambda: read() == RUNS)
    # billiard gives a killed child's job up for lost after ten seconds
    wait_until(lambda: read() == RUNS, 60, "none is lost")
    for result in late:
        result.get(timeout=30, propagate=False)
    read()
    begun_again = ended_again = 0
    for (kind, _), told in lines.items():
        entered = [line for line in told if line["what"] == "enter"]
        for before, after in itertools.pairwise(entered):
            # two bodies are never there at once: the one before has been killed
            assert killed[before["pid"]] < after["at"], told
            assert before["token"] < after["token"], told
        ends = [line for line in told if line["what"] == "end"]
        if kind == "early":
            assert len(entered) <= 1, told
            continue
        begun_again += len(entered) > 1
        for end in ends[:-1]:
            # killed between the body's last line and the release, so nobody could know that it had ended
            assert killed[end["pid"]] - end["at"] < 0.5, told
            ended_again += 1
    print(f"{len(killed)} killed, {begun_again} of {RUNS} begun again, {ended_again} killed after their last line")
    assert len(killed) >= 10
    assert begun_again >= 5
    assert ended_again <= begun_again / 4
    assert not any(event["event"] == "lock_expired_before_finish" for event in fleet.events())


def test_a_copy_runs_soon_after_its_run_is_dead(fleet, witness, key):
    """Its lease of 300 s is not waited for, and not the 10 s until billiard gives the job up for lost."""
    run = fleet.send("work_late", key, 30, to="a")
    entered = witness.wait_for(key, "enter", run)
    fleet.send("work_late", key, 0, to="b", task_id=run.id)
    time.sleep(2)  # it has been postponed several times
    assert len(witness.entered(key)) == 1
    os.kill(entered["pid"], signal.SIGKILL)
    killed = time.time()
    # the copy, or the message itself where billiard happens to look at that moment
    wait_until(lambda: len(witness.entered(key)) == 2, 20, "one of the two runs")
    assert witness.entered(key)[1]["at"] < killed + 5 + 2


def test_a_message_that_is_delivered_again_while_its_run_goes_on_does_not_run(make_fleet, locks, witness, key):
    """The Redis broker's visibility timeout, which a worker looks after when it starts, and then now and then."""
    options = {"visibility_timeout": 2}
    fleet = make_fleet(
        lockbeat_redis_url=locks.url, include=["ending_tasks"], broker_transport_options=options, task_acks_late=True
    )
    fleet.workers("a", concurrency=2)
    run = fleet.send("work_late", key, 6)
    witness.wait_for(key, "enter", run)
    time.sleep(2.5)
    fleet.workers("b", concurrency=2)
    again = f"a copy of work_late[{run.id}] came while that run goes on elsewhere"
    wait_until(lambda: any(again in worker.log() for worker in fleet.processes), 20, "it is delivered again")
    assert not witness.lines(key, "end")
    assert run.get(timeout=30) == key
    wait_until(lambda: fleet.events(task_id=run.id, event="task_skipped"), 20, "the copy is a duplicate")
    assert {event["reason"] for event in fleet.events(task_id=run.id, event="task_skipped")} == {"duplicate"}
    assert len(witness.entered(key)) == 1
    assert run.get(timeout=10) == key


def test_a_worker_that_lost_its_broker_for_a_moment_runs_nothing_twice(make_fleet, broker, locks, witness, key):
    with Proxy(broker.port) as proxy:
        fleet = make_fleet(lockbeat_redis_url=locks.url, include=["ending_tasks"])
        fleet.workers("cut", concurrency=2, broker_url=proxy.url)
        fleet.workers("other", concurrency=2)
        run = fleet.send("work_late", key, 2, to="cut")
        witness.wait_for(key, "enter", run)
        proxy.cut()
        assert run.get(timeout=30) == key
        after = fleet.send("work_late", f"{key}-after", 0, to="cut")
        assert after.get(timeout=30) == f"{key}-after"
        assert len(witness.entered(key)) == 1
        assert witness.never_overlapped(key)

"""P6: whatever ends a run frees its lock, when it is over and not before, and nothing else does.

All leases but the orphan's are of 300 s: who comes in found the lock freed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

import celery
import psutil
import pytest
from celery.exceptions import TaskRevokedError
from fleet import Fleet, assert_whole_story, names
from proxy import Proxy
from servers import wait_until

#: The promise is one second; the witness's look and two noisy cores may add to it.
FREE_WITHIN = 1.0 + 1.5


@pytest.fixture(scope="module")
def ward(broker, witness_server, locks, tmp_path_factory):
    """``ill``, whose children die, and ``well``, which takes over."""
    directory = tmp_path_factory.mktemp("ward")
    settings = {"lockbeat_redis_url": locks.url, "include": ["ending_tasks"], "worker_pool_restarts": True}
    with contextlib.closing(Fleet(broker, witness_server, directory, **settings)) as fleet:
        fleet.workers("ill", "well")
        yield fleet


@pytest.fixture(scope="module")
def bystander(ward, witness_server):
    """A run in a child of ``ill`` that nothing happens to: nobody ever frees its lock."""
    run = ward.send("hold_long", "bystander", to="ill")
    wait_until(lambda: ward.events(task_id=run.id, event="lock_acquired"))
    yield run
    with witness_server.client() as client:
        client.set(f"go:{run.id}", 1)
    assert run.get(timeout=10) == "held bystander"
    told = ward.told(run)
    assert_whole_story(told)
    assert names(told)[-3:] == ["lock_released", "task_succeeded", "task_finished"]


def dies(pid: int, timeout: float = 30) -> float:
    """Wait until this process is dead; return when it was, at the latest."""
    wait_until(lambda: not _lives(pid), timeout, f"{pid} is dead")
    return time.time()


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def control(ward, command: str, **arguments) -> None:
    ward.client.control.broadcast(command, arguments=arguments, destination=["ill@tests"])


DEATHS = {
    "segfault": ("segfault", {}, None),
    "os._exit": ("exit", {}, None),
    "os.abort": ("abort", {}, None),
    "SIGKILL, as the OOM killer sends": ("", {}, lambda ward, run, pid: os.kill(pid, signal.SIGKILL)),
    "SIGTERM": ("", {}, lambda ward, run, pid: os.kill(pid, signal.SIGTERM)),
    "SIGQUIT": ("", {}, lambda ward, run, pid: os.kill(pid, signal.SIGQUIT)),
    "hard time limit": ("", {"time_limit": 1}, None),
    "hard time limit of a body that is deaf to SIGTERM": ("deaf", {"time_limit": 1}, None),
    "revoke(terminate=True)": (
        "",
        {},
        lambda ward, run, pid: control(ward, "revoke", task_id=run.id, terminate=True, signal="SIGTERM"),
    ),
    "revoke(terminate=True, signal=SIGKILL)": (
        "",
        {},
        lambda ward, run, pid: control(ward, "revoke", task_id=run.id, terminate=True, signal="SIGKILL"),
    ),
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_dead_childs_lock_is_free_within_a_second_of_its_death_and_not_before(ward, bystander, witness, key, death):
    how, options, kill = DEATHS[death]
    run = ward.send("die", key, how, to="ill", **options)
    victim = witness.wait_for(key, "enter", run)
    successor = ward.send("hold_when_free", key, 0, to="well")
    if kill is not None:
        time.sleep(0.3)  # it is refused meanwhile
        kill(ward, run, victim["pid"])
    died = dies(victim["pid"])
    assert successor.get(timeout=20) == f"held {key}"
    [entered] = witness.entered(key, successor)
    assert entered["at"] > witness.last_beat(key)
    assert entered["at"] < died + FREE_WITHIN
    assert entered["token"] > victim["token"]
    with pytest.raises(TaskRevokedError):
        ward.send("hold", "bystander", 0, to="well").get(timeout=10)


@pytest.mark.parametrize("death", ["segfault", "SIGKILL, as the OOM killer sends", "hard time limit"])
def test_in_memory_the_kernel_frees_a_dead_childs_lock(ward, witness, key, death):
    how, options, kill = DEATHS[death]
    run = ward.send("die_in_memory", key, how, to="ill", **options)
    victim = witness.wait_for(key, "enter", run)
    successor = ward.send("hold_in_memory_when_free", key, 0, to="well")
    if kill is not None:
        time.sleep(0.3)
        kill(ward, run, victim["pid"])
    died = dies(victim["pid"])
    assert successor.get(timeout=20) == f"held {key}"
    assert witness.last_beat(key) < witness.entered(key, successor)[0]["at"] < died + FREE_WITHIN


@pytest.mark.parametrize("how", ["soft time limit", "SIGUSR1"])
def test_a_soft_time_limit_lets_the_body_clean_up_under_its_lock(ward, bystander, witness, key, how):
    run = ward.send("die", key, to="ill", **({"soft_time_limit": 1} if how == "soft time limit" else {}))
    victim = witness.wait_for(key, "enter", run)
    successor = ward.send("hold_when_free", key, 0, to="well")
    if how == "SIGUSR1":
        os.kill(victim["pid"], signal.SIGUSR1)
    clean = witness.wait_for(key, "clean", run)
    assert (clean["error"], clean["held"]) == ("SoftTimeLimitExceeded", True)
    assert successor.get(timeout=20) == f"held {key}"
    assert witness.never_overlapped(key)
    assert clean["at"] <= witness.entered(key, successor)[0]["at"] < clean["at"] + FREE_WITHIN
    assert_whole_story(ward.told(run))
    assert _lives(victim["pid"])


def test_a_soft_time_limit_that_strikes_within_the_release_comes_too_late(make_fleet, ward, locks, witness, key):
    with Proxy(locks.port) as proxy:
        fleet = make_fleet(lockbeat_redis_url=proxy.url, include=["ending_tasks"])
        fleet.workers("late", concurrency=1)
        assert fleet.send("hold_long", key, 0).get(timeout=20)
        began = time.monotonic()
        run = fleet.send("end_just_in_time", key, soft_time_limit=3)
        witness.wait_for(key, "enter", run)
        proxy.delay(2)
        time.sleep(max(0, began + 2 - time.monotonic()))
        witness.let_go(run)  # the release lasts from second 2 to second 4, in which the limit strikes
        assert run.get(timeout=20) == f"held {key}"
        assert "Soft time limit (3s) exceeded" in fleet.processes[0].log()
        proxy.restore()
    told = fleet.told(run)
    assert_whole_story(told)
    assert names(told)[-2:] == ["task_succeeded", "task_finished"]
    assert told[-1]["duration_ms"] < 3000 < told[-1]["duration_ms"] + told[-1]["release_ms"]
    assert ward.send("hold", key, 0, to="well").get(timeout=20) == f"held {key}"


def test_a_child_that_dies_before_it_hears_that_it_has_the_lock_leaves_none_behind(
    make_fleet, ward, locks, witness, key
):
    with Proxy(locks.port) as proxy, locks.client() as store:
        fleet = make_fleet(lockbeat_redis_url=proxy.url, include=["ending_tasks"])
        fleet.workers("deaf", concurrency=1)
        assert fleet.send("hold_long", key, 0).get(timeout=20)
        proxy.swallow_answers()
        fleet.send("die", key)
        wait_until(lambda: b" die[" in (store.get(f"lockbeat:lock:{{{key}}}") or "").encode(), message="it is granted")
        [_, child] = fleet.processes[0].family()
        child.kill()
        died = dies(child.pid)
        proxy.restore()
        assert ward.send("hold_when_free", key, 0, to="well").get(timeout=20) == f"held {key}"
        assert witness.entered(key)[-1]["at"] < died + FREE_WITHIN
        assert len(witness.entered(key)) == 2


# -- pools that change under a run -------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [{"worker_max_tasks_per_child": 1}, {"worker_max_memory_per_child": 90_000}])
def test_a_child_that_is_replaced_after_its_run_leaves_no_lock_behind(make_fleet, locks, witness, key, limit):
    fleet = make_fleet(lockbeat_redis_url=locks.url, include=["ending_tasks"], **limit)
    fleet.workers("replacing", concurrency=2)
    runs = []
    for _ in range(2):
        run = fleet.send("eat", key)
        assert run.get(timeout=20) == "ate 80000000"
        runs.append(run)
    assert len({witness.entered(key, run)[0]["pid"] for run in runs}) == 2
    assert witness.never_overlapped(key)
    assert "which held it, is dead" not in fleet.processes[0].log()


def test_a_pool_that_grows_and_shrinks_frees_no_lock_under_a_body(ward, bystander, witness, key):
    """Autoscale does the same."""
    run = ward.send("hold_long", key, to="ill")
    entered = witness.wait_for(key, "enter", run)
    successor = ward.send("hold_when_free", key, 0, to="well")
    control(ward, "pool_grow", n=1)
    control(ward, "pool_shrink", n=1)
    control(ward, "pool_shrink", n=1)
    time.sleep(1.5)
    assert _lives(entered["pid"])
    assert not witness.entered(key, successor)
    witness.let_go(run)
    assert run.get(timeout=10) == f"held {key}"
    assert successor.get(timeout=10) == f"held {key}"
    assert witness.never_overlapped(key)


def test_a_pool_restart_frees_no_lock_under_a_body_and_leaves_none_behind(make_fleet, ward, locks, witness, key):
    fleet = make_fleet(lockbeat_redis_url=locks.url, include=["ending_tasks"], worker_pool_restarts=True)
    fleet.workers("restarting", concurrency=2)
    run = fleet.send("hold_long", key)
    witness.wait_for(key, "enter", run)
    successor = ward.send("hold_when_free", key, 0, to="well")
    fleet.client.control.broadcast("pool_restart", destination=["restarting@tests"])
    time.sleep(1)
    assert not witness.entered(key, successor)
    witness.let_go(run)
    assert successor.get(timeout=20) == f"held {key}"
    assert witness.never_overlapped(key)
    # the new children's locks are looked after as well
    run = fleet.send("die", f"{key}-new")
    victim = witness.wait_for(f"{key}-new", "enter", run)
    os.kill(victim["pid"], signal.SIGKILL)
    died = dies(victim["pid"])
    assert ward.send("hold_when_free", f"{key}-new", 0, to="well").get(timeout=20)
    assert witness.entered(f"{key}-new")[-1]["at"] < died + FREE_WITHIN


# -- workers that shut down --------------------------------------------------------------------------------------------


def test_a_warm_shutdown_waits_for_its_runs_whose_locks_are_renewed_until_they_end(
    make_fleet, ward, locks, witness, key
):
    fleet = make_fleet(lockbeat_redis_url=locks.url)
    [warm] = fleet.workers("warm", concurrency=2)
    run = fleet.send("hold", key)
    witness.wait_for(key, "enter", run)
    successor = ward.send("hold_when_free", key, 0, to="well")
    os.kill(warm.pid, signal.SIGTERM)
    time.sleep(2.2)  # longer than the ttl of 2
    assert not witness.entered(key, successor)
    witness.let_go(run)
    assert run.get(timeout=10) == f"held {key}"
    assert successor.get(timeout=10) == f"held {key}"
    assert witness.never_overlapped(key)
    assert warm.process.wait(timeout=20) == 0
    assert_whole_story(fleet.told(run))


@pytest.mark.skipif(celery.VERSION < (5, 5), reason="Celery re-queues what a cold shutdown cancels since 5.5")
@pytest.mark.parametrize("how", ["cold", "soft"])
def test_what_a_cold_or_soft_shutdown_ends_runs_elsewhere_at_once(make_fleet, locks, witness, key, how):
    soft = {"worker_soft_shutdown_timeout": 2.0} if how == "soft" else {}
    fleet = make_fleet(lockbeat_redis_url=locks.url, include=["ending_tasks"], task_acks_late=True)
    [stopped] = fleet.workers("stopped", concurrency=3, **soft)
    run = fleet.send("die_at_first", key)
    short = fleet.send("hold_long", f"{key}-short", 1.5 if how == "soft" else 0)
    victim = witness.wait_for(key, "enter", run)
    witness.wait_for(f"{key}-short", "enter", short)
    fleet.workers("other", concurrency=2)
    os.kill(stopped.pid, signal.SIGQUIT)
    died = dies(victim["pid"])
    assert short.get(timeout=10)  # a soft shutdown has waited for it
    assert len(witness.entered(f"{key}-short")) == 1
    assert run.get(timeout=30) == "at last"
    first, second = witness.entered(key, run)
    assert second["at"] > witness.last_beat(key)
    # a copy that comes before the first is dead is postponed for a second
    assert second["at"] < died + FREE_WITHIN + 2
    assert second["token"] > first["token"]


# -- workers that die --------------------------------------------------------------------------------------------------


def test_a_child_that_outlives_its_worker_stops_renewing_and_learns_of_its_loss(make_fleet, ward, locks, witness, key):
    fleet = make_fleet(lockbeat_redis_url=locks.url, include=["ending_tasks"])
    [parent] = fleet.workers("parent", concurrency=2)
    run = fleet.send("orphan", key)
    entered = witness.wait_for(key, "enter", run)
    successor = ward.send("hold_when_free", key, 0, to="well")
    time.sleep(2.5)  # it is renewed
    assert not witness.entered(key, successor)
    os.kill(parent.pid, signal.SIGKILL)
    killed = dies(parent.pid)
    lost = witness.wait_for(key, "lost", run)
    assert _lives(entered["pid"])
    assert successor.get(timeout=20) == f"held {key}"
    [took_over] = witness.entered(key, successor)
    assert lost["at"] < took_over["at"] < killed + 2 + FREE_WITHIN
    witness.let_go(run)
    told = names(fleet.told(run))
    assert told[-4:] == ["lock_extend_failed", "lock_expired_before_finish", "task_failed", "task_finished"]


# -- what a body forks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fork", "multiprocessing", "subprocess"])
def test_what_a_body_forks_neither_renews_nor_frees_its_lock(ward, bystander, witness, key, how):
    run = ward.send("breed", key, how, to="ill")
    told = witness.wait_for(key, "bred", run)
    if how != "subprocess":
        assert told["child"] == {"held": False, "lost": True, "released": False, "connections": 0}
    with pytest.raises(TaskRevokedError):
        ward.send("hold", key, 0, to="well").get(timeout=10)
    # the body dies, what it has forked lives: it keeps nobody out
    os.kill(told["pid"], signal.SIGKILL)
    died = dies(told["pid"])
    assert ward.send("hold_when_free", key, 0, to="well").get(timeout=20) == f"held {key}"
    assert witness.entered(key)[-1]["at"] < died + FREE_WITHIN
    assert _lives(told["grandchild"])
    os.kill(told["grandchild"], signal.SIGKILL)

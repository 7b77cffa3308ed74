"""What a run knows of its lock when workers die or freeze, and when the store, or the way to it, is gone for a while.

Broker and result backend are another server: only the store is disturbed.
"""

from __future__ import annotations

import contextlib
import time

import pytest
from celery.exceptions import TaskRevokedError
from fleet import Fleet, assert_whole_story, names, stories
from proxy import Proxy
from servers import Server, wait_until

from celery_lockbeat import LockLost, StoreUnavailable

TTL = 2.0

#: What two noisy cores may add to any deadline.
SLACK = 3.0

#: A store that hangs is given up after two tries of this.
TIMEOUT = 0.3
PATIENCE = {"lockbeat_redis_options": {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT}}

LOSS = ["lock_extend_failed", "lock_expired_before_finish"]


def refuses(fleet, key, to=None) -> bool:
    """Whether another run of ``key`` is skipped; the witness has its word in each test."""
    try:
        fleet.send("hold", key, 0, to=to).get(timeout=10)
    except TaskRevokedError:
        return True
    return False


def told_without_renewals(fleet, result) -> list[str]:
    return [name for name in names(fleet.told(result)) if name != "lock_extended"]


def assert_ended_as_lost(fleet, result) -> None:
    with pytest.raises(LockLost):
        result.get(timeout=10)
    assert result.state == "FAILURE"
    told = fleet.told(result)
    assert_whole_story(told)
    assert told_without_renewals(fleet, result) == [
        "task_started",
        "lock_acquired",
        *LOSS,
        "task_failed",
        "task_finished",
    ]
    assert [event["error_name"] for event in told if event["event"] == "task_failed"] == ["LockLost"]


def assert_kept(fleet, result, key, *, failures=0) -> None:
    """It ended well, and at most so many rounds of its renewal had failed."""
    assert result.get(timeout=10) == f"held {key}"
    told = fleet.told(result)
    assert_whole_story(told)
    assert names(told).count("lock_extend_failed") <= failures
    assert "lock_expired_before_finish" not in names(told)
    assert names(told)[-3:] == ["lock_released", "task_succeeded", "task_finished"]


# -- workers that die or freeze ----------------------------------------------------------------------------------------


def test_the_key_of_a_killed_worker_is_free_when_its_lease_ends_and_in_memory_at_once(make_fleet, locks, witness, key):
    fleet = make_fleet(lockbeat_redis_url=locks.url, lockbeat_ttl=3)
    doomed, _ = fleet.workers("doomed", "other")
    in_memory = f"{key}-memory"
    first = fleet.send("hold", key, to="doomed")
    first_in_memory = fleet.send("hold_in_memory", in_memory, to="doomed")
    entered = witness.wait_for(key, "enter", first)
    entered_in_memory = witness.wait_for(in_memory, "enter", first_in_memory)
    # it asks for the key all the time
    second = fleet.send("hold_when_free", key, 0, to="other")
    time.sleep(4)  # a renewed lease
    assert refuses(fleet, key, to="other")
    assert len(witness.entered(key)) == 1
    killed = time.time()
    doomed.kill()
    assert fleet.send("hold_in_memory", in_memory, 0, to="other").get(timeout=10) == f"held {in_memory}"
    second_in_memory = witness.entered(in_memory)[1]
    assert second_in_memory["at"] < killed + 1
    assert second_in_memory["token"] > entered_in_memory["token"]
    assert second.get(timeout=20) == f"held {key}"
    took_over = witness.wait_for(key, "enter", second)
    # The lease was renewed every second: two of its three were left, at least.
    assert killed + 1.5 < took_over["at"] < killed + 3 + SLACK
    assert took_over["token"] > entered["token"]


def test_a_run_that_was_frozen_beyond_its_lease_learns_that_another_has_its_lock(make_fleet, locks, witness, key):
    fleet = make_fleet(lockbeat_redis_url=locks.url, lockbeat_ttl=1)
    frozen, _ = fleet.workers("frozen", "other", concurrency=4)
    keys = [f"{key}-ends-at-once", f"{key}-goes-on", f"{key}-warns"]
    tasks = ["hold", "hold", "hold_or_warn"]
    runs = [fleet.send(task, each, to="frozen") for task, each in zip(tasks, keys, strict=True)]
    before = [witness.wait_for(each, "enter", run) for each, run in zip(keys, runs, strict=True)]
    frozen.freeze()
    others = [fleet.send("hold_when_free", each, to="other") for each in keys]
    after = [witness.wait_for(each, "enter", other) for each, other in zip(keys, others, strict=True)]
    assert all(new["token"] > old["token"] for old, new in zip(before, after, strict=True))
    witness.let_go(runs[0])
    frozen.thaw()
    for each, run in zip(keys[1:], runs[1:], strict=True):
        witness.wait_for(each, "lost", run)  # while its body still runs
    witness.let_go(*runs[1:])
    assert_ended_as_lost(fleet, runs[0])
    assert_ended_as_lost(fleet, runs[1])
    assert runs[2].get(timeout=10) == f"held {keys[2]}"
    assert_whole_story(fleet.told(runs[2]))
    told = told_without_renewals(fleet, runs[2])
    assert told == ["task_started", "lock_acquired", *LOSS, "task_succeeded", "task_finished"]
    # Their late releases have freed nothing.
    for each in keys:
        assert refuses(fleet, each)
        assert len(witness.entered(each)) == 2
    witness.let_go(*others)
    for each, other in zip(keys, others, strict=True):
        assert_kept(fleet, other, each)


# -- a store that is gone for a while, under a run ---------------------------------------------------------------------


def test_a_run_keeps_its_lock_through_a_restart_of_a_store_that_remembers(make_fleet, witness, key):
    with Server(persistent=True) as store:
        fleet = make_fleet(lockbeat_redis_url=store.url, lockbeat_ttl=4, **PATIENCE)
        fleet.workers("w", concurrency=3)
        run = fleet.send("hold", key)
        witness.wait_for(key, "enter", run)
        store.restart()
        assert refuses(fleet, key)
        time.sleep(4.5)  # longer than the lease that it had before
        assert refuses(fleet, key)
        witness.let_go(run)
        assert_kept(fleet, run, key, failures=1)
        assert fleet.send("hold", key, 0).get(timeout=10)
        assert witness.never_overlapped(key)


def test_a_run_is_told_of_its_loss_after_a_restart_of_a_store_that_forgets(make_fleet, spare_server, witness, key):
    fleet = make_fleet(lockbeat_redis_url=spare_server.url, lockbeat_ttl=TTL, **PATIENCE)
    fleet.workers("w", concurrency=3)
    run = fleet.send("hold", key)
    entered = witness.wait_for(key, "enter", run)
    spare_server.restart()
    restarted = time.time()
    lost = witness.wait_for(key, "lost", run)
    # It had not to wait for its lease to end: the store said so when it was asked to extend.
    assert lost["at"] < restarted + TTL / 3 + SLACK
    other = fleet.send("hold", key, 0)
    assert other.get(timeout=10)
    assert witness.wait_for(key, "enter", other)["token"] > entered["token"]
    witness.let_go(run)
    assert_ended_as_lost(fleet, run)


def test_a_pause_of_the_store_that_is_shorter_than_the_lease_loses_nothing(make_fleet, spare_server, witness, key):
    fleet = make_fleet(lockbeat_redis_url=spare_server.url, lockbeat_ttl=3, lockbeat_extend_interval=0.5, **PATIENCE)
    fleet.workers("w", concurrency=3)
    run = fleet.send("hold", key)
    witness.wait_for(key, "enter", run)
    wait_until(lambda: fleet.events(task_id=run.id, event="lock_extended"))
    spare_server.pause()
    time.sleep(1.5)  # of three seconds, of which half a one may be gone
    spare_server.resume()
    renewals = len(fleet.events(task_id=run.id, event="lock_extended"))
    wait_until(lambda: len(fleet.events(task_id=run.id, event="lock_extended")) > renewals + 4)
    assert refuses(fleet, key)
    assert not witness.lines(key, "lost")
    witness.let_go(run)
    assert_kept(fleet, run, key, failures=1)


def test_a_cut_connection_loses_nothing(make_fleet, spare_server, witness, key):
    with Proxy(spare_server.port) as proxy:
        fleet = make_fleet(lockbeat_redis_url=proxy.url, lockbeat_ttl=TTL, **PATIENCE)
        fleet.workers("w", concurrency=3)
        run = fleet.send("hold", key)
        witness.wait_for(key, "enter", run)
        for _ in range(3):
            renewals = len(fleet.events(task_id=run.id, event="lock_extended"))
            proxy.cut()
            wait_until(lambda before=renewals: len(fleet.events(task_id=run.id, event="lock_extended")) > before)
        assert proxy.cuts >= 3
        assert refuses(fleet, key)
        witness.let_go(run)
        proxy.cut()  # the release needs a new connection too
        assert_kept(fleet, run, key)
        assert fleet.send("hold", key, 0).get(timeout=10)
        assert witness.never_overlapped(key)


def test_a_slow_way_to_the_store_loses_nothing(make_fleet, spare_server, witness, key):
    with Proxy(spare_server.port) as proxy:
        fleet = make_fleet(lockbeat_redis_url=proxy.url, lockbeat_ttl=TTL, **PATIENCE)
        fleet.workers("w", concurrency=3)
        proxy.delay(0.05)
        run = fleet.send("hold", key)
        witness.wait_for(key, "enter", run)
        time.sleep(1.5 * TTL)
        assert refuses(fleet, key)
        witness.let_go(run)
        assert_kept(fleet, run, key, failures=1)


def test_a_black_hole_longer_than_the_lease_is_a_loss_by_the_local_clock(make_fleet, spare_server, witness, key):
    with Proxy(spare_server.port) as proxy:
        # ``direct`` comes to the same store on another way
        fleet = make_fleet(lockbeat_ttl=TTL, **PATIENCE)
        fleet.workers("swallowed", concurrency=3, lockbeat_redis_url=proxy.url)
        fleet.workers("direct", concurrency=3, lockbeat_redis_url=spare_server.url)
        run = fleet.send("hold", key, to="swallowed")
        entered = witness.wait_for(key, "enter", run)
        wait_until(lambda: fleet.events(task_id=run.id, event="lock_extended"))
        other = fleet.send("hold_when_free", key, to="direct")
        proxy.black_hole()
        began = time.time()
        # told while the body runs, and before another has the key
        lost = witness.wait_for(key, "lost", run)
        assert began + TTL / 2 < lost["at"] < began + TTL + SLACK
        took_over = witness.wait_for(key, "enter", other)
        assert took_over["token"] > entered["token"]
        wait_until(
            lambda: fleet.events(task_id=run.id, event="lock_expired_before_finish"), message="its event is told"
        )
        failed, expired = fleet.events(task_id=run.id, event=LOSS[0]), fleet.events(task_id=run.id, event=LOSS[1])
        assert (len(failed), len(expired)) == (1, 1)
        witness.let_go(run)
        assert_ended_as_lost(fleet, run)  # though the store is not there yet
        proxy.restore()
        # What the hole had swallowed comes late, and changes nothing for the one that holds the key now.
        time.sleep(1.5 * TTL)
        assert refuses(fleet, key, to="direct")
        assert refuses(fleet, key, to="swallowed")
        witness.let_go(other)
        assert_kept(fleet, other, key)


# -- a store that is gone before a run ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outage():
    """A server that is there or not, as each test needs it, and the proxy before it."""
    with Server() as server, Proxy(server.port) as proxy:
        yield server, proxy


@pytest.fixture(scope="module")
def stranded(broker, witness_server, outage, tmp_path_factory):
    """Workers whose store is ``outage``."""
    _, proxy = outage
    directory = tmp_path_factory.mktemp("stranded")
    with contextlib.closing(
        Fleet(broker, witness_server, directory, lockbeat_redis_url=proxy.url, **PATIENCE)
    ) as fleet:
        fleet.workers("a", "b", concurrency=2)
        fleet.workers("connected", concurrency=1)
        yield fleet


@pytest.fixture
def connected(stranded, key):
    """A worker with one process, which has an open connection: what it asks next goes out, whoever reads it."""
    assert stranded.send("hold_with_redis", f"{key}-before", 0, to="connected").get(timeout=20)
    return "connected"


@pytest.fixture(params=["down", "paused", "black hole"])
def gone(request, outage):
    """Make the store go in one of three ways, and come back."""
    server, proxy = outage
    go, come_back = {
        "down": (server.kill, server.start),
        "paused": (server.pause, server.resume),
        "black hole": (proxy.black_hole, proxy.restore),
    }[request.param]
    ways = contextlib.ExitStack()
    ways.callback(come_back)
    go()
    with ways:
        # called by the test, or else by the end of it
        yield ways.close


def test_without_its_store_a_run_fails_within_a_bounded_time_and_its_body_never_starts(stranded, gone, witness, key):
    began = time.monotonic()
    runs = [stranded.send("hold_with_redis", key, 0) for _ in range(3)]
    for run in runs:
        with pytest.raises(StoreUnavailable):
            run.get(timeout=15)
        assert run.state == "FAILURE"
    assert time.monotonic() - began < 2 * TIMEOUT + SLACK
    assert not witness.lines(key)
    for run in runs:
        told = stranded.told(run)
        assert_whole_story(told)
        assert names(told) == ["task_started", "task_failed", "task_finished"]
        assert told[1]["error_name"] == "StoreUnavailable"


def test_autoretry_brings_a_run_to_its_end_once_the_store_is_back(stranded, connected, gone, witness, key):
    run = stranded.send("hold_or_try_again", key, 0, to=connected)
    # no try was a success, and none was the last one
    wait_until(lambda: len(stranded.events(task_id=run.id, event="task_finished")) >= 2)
    assert run.state == "RETRY"
    assert not witness.lines(key)
    gone()
    assert run.get(timeout=20) == f"held {key}"
    assert len(witness.entered(key)) == 1
    tries = stories(stranded.told(run, runs=3)).values()
    for story in tries:
        assert_whole_story(story)
    assert [story[-1]["status"] for story in tries] == ["retry"] * (len(tries) - 1) + ["success"]


def test_what_the_store_carries_out_when_nobody_waits_for_it_any_more_keeps_nobody_out(stranded, connected, gone, key):
    run = stranded.send("hold_with_redis", key, 0, to=connected)
    with pytest.raises(StoreUnavailable):
        run.get(timeout=15)
    gone()
    time.sleep(0.2)  # now the store reads what it was asked while it hung
    assert stranded.send("hold_with_redis", key, 0).get(timeout=10) == f"held {key}"


def test_with_the_auto_driver_a_run_falls_back_to_memory_and_the_next_is_on_redis_again(stranded, gone, witness, key):
    run = stranded.send("hold", key, to="a")
    witness.wait_for(key, "enter", run)
    [fallback] = stranded.events(task_id=run.id, event="driver_fallback")
    assert fallback["driver"] == "memory"
    assert fallback["error_name"] == "StoreUnavailable"
    levels = [line for worker in stranded.processes for line in worker.levels()]
    assert [line.split()[0] for line in levels if run.id in line and '"driver_fallback"' in line] == ["ERROR"]
    # another process of this host is refused all the same
    assert refuses(stranded, key, to="b")
    assert refuses(stranded, key, to="a")
    witness.let_go(run)
    assert run.get(timeout=10) == f"held {key}"
    assert_whole_story(stranded.told(run))
    gone()
    # It may have to wait for what the store carries out late (see the test above).
    after = stranded.send("hold_when_free", key, 0)
    assert after.get(timeout=10) == f"held {key}"
    told = stranded.told(after)
    assert "driver_fallback" not in names(told)
    assert {event["driver"] for event in told} == {"redis"}
    assert witness.never_overlapped(key)

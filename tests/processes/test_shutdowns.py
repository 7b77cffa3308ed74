"""Shutdowns in the pools that have no children: a warm one waits for its bodies, a cold one frees what it ends.

Prefork's are in test_endings.py.
"""

from __future__ import annotations

import os
import signal

import pytest
from test_pools import require

FREE_WITHIN = 1.0


@pytest.mark.parametrize("how", ["warm", "cold"])
@pytest.mark.parametrize("pool", ["threads", "solo", "gevent", "eventlet"])
def test_a_shutdown_frees_the_lock_of_300_s_when_its_body_is_over_and_not_before(
    make_fleet, pair, locks, witness, key, pool, how
):
    require(pool)
    fleet = make_fleet(lockbeat_redis_url=locks.url, include=["ending_tasks"])
    [worker] = fleet.workers("w", pool=pool, concurrency=2)
    run = fleet.send("work_late", key, 1.5)
    witness.wait_for(key, "enter", run)
    successor = pair.send("hold_when_free", key, 0)
    os.kill(worker.pid, signal.SIGTERM if how == "warm" else signal.SIGQUIT)
    assert successor.get(timeout=20) == f"held {key}"
    assert witness.never_overlapped(key)
    [left] = [line for line in witness.lines(key, "leave") if line["id"] == run.id]
    assert left["at"] <= witness.entered(key, successor)[0]["at"] < left["at"] + FREE_WITHIN
    # a thread cannot be ended: a cold shutdown waits for it as well
    assert bool(witness.lines(key, "end")) == (how == "warm" or pool == "threads")

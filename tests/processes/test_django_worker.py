"""Real workers whose locks are in Django's database."""

from __future__ import annotations

import os
import signal
import time

from celery import states


def test_runs_exclude_each_other_and_a_killed_childs_lock_is_free_at_once(make_fleet, database, witness, key):
    fleet = make_fleet(lockbeat_driver="database", lockbeat_ttl=60, test_django_database=database.database)
    fleet.workers("a", "b", concurrency=2)
    first = fleet.send("hold", key, to="a")
    child = witness.wait_for(key, "enter", first)["pid"]
    skipped = fleet.send("hold", key, to="b")
    assert fleet.told(skipped)[-1]["status"] == "skipped"
    assert skipped.state == states.REVOKED
    waiting = fleet.send("hold_when_free", key, 0, to="b")
    os.kill(child, signal.SIGKILL)
    killed = time.monotonic()
    witness.wait_for(key, "enter", waiting)
    # a second, and what a noisy machine adds to it; the lease would last for a minute
    assert time.monotonic() - killed < 5
    assert {event["driver"] for event in fleet.events(event="lock_acquired")} == {"database"}
    assert witness.entered(key, first)

"""Processes that fight over one key, each with the store opened by itself: fighter.py STORE TARGET WITNESS HOW_MANY TURNS.

The witness is a server of its own and knows nothing of the code under test: it counts who is inside.
"""

from __future__ import annotations

import multiprocessing
import random
import sys
import time

import redis
from opening import import_for, open_at

from celery_lockbeat.stores.base import Held, Store


def fight(store: Store, witness_url: str, name: str, turns: int, *, limit: int = 1) -> None:
    with redis.Redis.from_url(witness_url) as witness:
        for turn in range(turns):
            deadline = time.monotonic() + 60
            while isinstance(lease := store.locks.acquire("key", holder=f"{name}:{turn}", ttl=60, limit=limit), Held):
                assert time.monotonic() < deadline, "starved"
                # without a pause, 64 of them would keep each other from the key by asking for it
                time.sleep(random.uniform(0, 0.03))
            inside = witness.incr("inside")
            witness.rpush("seen", f"{inside} {lease.token}")
            witness.decr("inside")
            assert store.locks.release(lease)


def fight_alone(kind: str, target: str, witness_url: str, name: str, turns: int) -> None:
    fight(open_at(kind, target), witness_url, name, turns)


if __name__ == "__main__":
    kind, target, witness_url, how_many, turns = sys.argv[1:]
    # nothing is open yet: all that they have in common is what was imported, once
    import_for(kind)
    make = multiprocessing.get_context("fork").Process
    fighters = [
        make(target=fight_alone, args=(kind, target, witness_url, f"process {number}", int(turns)))
        for number in range(int(how_many))
    ]
    for fighter in fighters:
        fighter.start()
    for fighter in fighters:
        fighter.join()
    sys.exit(any(fighter.exitcode for fighter in fighters))

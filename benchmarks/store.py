"""What a lock costs: acquire + release of ours, of redis-py's Lock, and two bare EVALSHA, on one server in one run.

    python benchmarks/store.py

The rounds of the three are interleaved, and the medians compared, so that a noisy machine is noisy for all of them. The bare
scripts get as many keys and arguments as ours and return 1: they are the floor that a client and a round trip set.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import redis

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from servers import Server

from celery_lockbeat.stores.redis import RedisStore

ROUNDS, PAIRS = 40, 200


def main() -> None:
    with Server() as server:
        store, client = RedisStore(server.url), redis.Redis.from_url(server.url)
        theirs = client.lock("theirs", timeout=30)
        bare = client.script_load("return 1")
        runs = count()

        def lockbeat() -> None:
            store.release(
                store.acquire(
                    "ours", holder=f"h{next(runs)}", ttl=30, run=f"r{next(runs)}", description="w@host pid 1 task[id]"
                ),
                remember_for=60,
            )

        def redis_py() -> None:
            theirs.acquire()
            theirs.release()

        def two_scripts() -> None:
            client.evalsha(bare, 2, "k1", "k2", "holder", "run", 30000, 3600000, "w@host pid 1 task[id]", 0)
            client.evalsha(bare, 2, "k1", "k2", "token", "holder", 3600000, 0, 60000)

        lockbeat()
        scripts = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        lockbeat()
        trips = client.info("commandstats")["cmdstat_evalsha"]["calls"] - scripts
        times: dict[Callable[[], None], list[float]] = {lockbeat: [], redis_py: [], two_scripts: []}
        for _ in range(ROUNDS):
            for pair, seen in times.items():
                started = time.perf_counter()
                for _ in range(PAIRS):
                    pair()
                seen.append((time.perf_counter() - started) / PAIRS * 1e6)
        medians = {pair.__name__: statistics.median(seen) for pair, seen in times.items()}
        for name, median in medians.items():
            print(f"{name:12} {median:6.0f} us per acquire + release")
        print(f"round trips of ours: {trips}")
        print(f"ours / two bare scripts: {medians['lockbeat'] / medians['two_scripts']:.2f}")
        print(f"ours / redis-py's Lock:  {medians['lockbeat'] / medians['redis_py']:.2f}")


if __name__ == "__main__":
    main()

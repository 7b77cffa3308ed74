"""What a lock costs: acquire + release of ours, of redis-py's Lock, and two bare EVALSHA, on one server in one run.

    python benchmarks/store.py

The rounds are short and interleaved, and each ratio is the median of the rounds' ratios, so that a noisy machine is noisy
for all of them. The bare scripts get as many keys and arguments as ours and return 1: they are what a client and a round
trip cost. The second pair of them runs on one connection that is not given back to redis-py's pool in between, as ours do:
what ours takes beyond that is its own, the server's work included.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import redis

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from servers import Server

from celery_lockbeat.stores.redis.store import RedisStore

ROUNDS, PAIRS = 300, 30


@dataclass(frozen=True)
class Pairs:
    """Microseconds per acquire + release, a value a round, and how many round trips ours takes."""

    times: dict[str, list[float]]
    trips: int

    def median(self, name: str) -> float:
        return statistics.median(self.times[name])

    def ratio(self, other: str) -> float:
        return statistics.median(
            ours / its for ours, its in zip(self.times["lockbeat"], self.times[other], strict=True)
        )


def measure(rounds: int = ROUNDS) -> Pairs:
    with Server() as server:
        store, client = RedisStore(server.url), redis.Redis.from_url(server.url)
        single = client.client()
        theirs = client.lock("theirs", timeout=30)
        bare = client.script_load("return 1")
        runs = count()

        def lockbeat() -> None:
            store.locks.release(
                store.locks.acquire(
                    "ours", holder=f"h{next(runs)}", ttl=30, run=f"r{next(runs)}", description="w@host pid 1 task[id]"
                ),
                remember_for=60,
            )

        def redis_py() -> None:
            theirs.acquire()
            theirs.release()

        def evalsha_twice(client: redis.Redis) -> None:
            client.evalsha(bare, 2, "k1", "k2", "holder", "run", 30000, 3600000, "w@host pid 1 task[id]", 0)
            client.evalsha(bare, 2, "k1", "k2", "token", "holder", 3600000, 0, 60000)

        def two_scripts() -> None:
            evalsha_twice(client)

        def same_connection() -> None:
            evalsha_twice(single)

        lockbeat()
        scripts = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        lockbeat()
        trips = client.info("commandstats")["cmdstat_evalsha"]["calls"] - scripts
        times: dict[Callable[[], None], list[float]] = {
            lockbeat: [],
            redis_py: [],
            two_scripts: [],
            same_connection: [],
        }
        for _ in range(rounds):
            for pair, seen in times.items():
                started = time.perf_counter()
                for _ in range(PAIRS):
                    pair()
                seen.append((time.perf_counter() - started) / PAIRS * 1e6)
    return Pairs({pair.__name__: seen for pair, seen in times.items()}, trips)


def main() -> None:
    argparse.ArgumentParser(description="What a lock costs.").parse_args()
    pairs = measure()
    for name in pairs.times:
        print(f"{name:16} {pairs.median(name):6.0f} us per acquire + release")
    print(f"round trips of ours: {pairs.trips}")
    for other, what in (
        ("two_scripts", "two bare scripts"),
        ("same_connection", "two bare scripts on one connection"),
        ("redis_py", "redis-py's Lock"),
    ):
        print(f"ours / {what}: {pairs.ratio(other):.2f}")


if __name__ == "__main__":
    main()

"""What it costs to wait in line: 1,000 runs that wait for one key, under one real worker.

    python benchmarks/waiting.py [WAITERS] [SECONDS]

Store, broker and witness are a server each, on loopback. The key is held until all wait, and then let go. Told are the pause from
the end of a run to the beginning of the next, the rate against that of runs that wait for nothing, and, by the servers' own count,
the calls of the store and the messages for each waiter: until it has run, and until the last of its copies is gone.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import redis
from celery import Celery

from celery_lockbeat import Lock, LockedTask

WAITERS, SECONDS = 1000, 0.02

HERE = Path(__file__)
STORE, BROKER, WITNESS = "LOCKBEAT_BENCH_STORE", "LOCKBEAT_BENCH_BROKER", "LOCKBEAT_BENCH_WITNESS"


def make_app(store: str, broker: str, witness: str) -> tuple[Celery, Any, Any]:
    """Return the app, a task that waits, and one that waits for nothing."""
    app = Celery("waiting", broker=broker, set_as_current=False)
    app.conf.update(lockbeat_redis_url=store, lockbeat_logging=False, lockbeat_journal=0, task_ignore_result=True)
    told = redis.Redis.from_url(witness)

    def work(seconds: float) -> None:
        began = time.monotonic()
        time.sleep(seconds)
        told.rpush("runs", f"{began!r} {time.monotonic()!r}")

    waits = app.task(base=LockedTask, name="waits", lock_key="one", lock_ttl=60, lock_if_held="wait")(work)
    free = app.task(name="free")(work)
    return app, waits, free


def measure(waiters: int = WAITERS, seconds: float = SECONDS) -> dict[str, float]:
    sys.path.insert(0, str(HERE.parent.parent / "tests"))
    from servers import Server

    with Server() as store, Server() as broker, Server() as witness:
        urls = {STORE: store.url, BROKER: broker.url, WITNESS: witness.url}
        app, waits, free = make_app(*urls.values())
        command = [
            "-A",
            "benchmarks.waiting",
            "worker",
            "-c",
            "4",
            "-l",
            "ERROR",
            "--without-gossip",
            "--without-mingle",
        ]
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", *command], cwd=HERE.parent.parent, env={**os.environ, **urls}
        )
        try:
            with store.client() as stored, broker.client() as sent, witness.client() as told:
                return _measure(app, waits, free, waiters, seconds, stored, sent, told)
        finally:
            worker.terminate()
            worker.wait(60)
            app.close()


def _measure(
    app: Any, waits: Any, free: Any, waiters: int, seconds: float, store: Any, broker: Any, told: Any
) -> dict[str, float]:
    def runs(task: Any, count: int) -> list[tuple[float, float]]:
        for _ in range(count):
            task.delay(seconds)
        until(lambda: told.llen("runs") == count, 600)
        lines = [line.split() for line in told.lrange("runs", 0, -1)]
        told.delete("runs")
        return sorted((float(began), float(ended)) for began, ended in lines)

    runs(free, 20)
    alone = runs(waits, 1)
    assert alone
    with Lock("one", app=app, ttl=600):
        calls, messages = asked(store), pushed(broker)
        for _ in range(waiters):
            waits.delay(seconds)
        until(lambda: store.zcard("lockbeat:line:{one}") == waiters, 600)
    let_go = time.monotonic()
    until(lambda: told.llen("runs") == waiters, 600)
    lines = sorted(tuple(map(float, line.split())) for line in told.lrange("runs", 0, -1))
    found = {"until all have run, s": lines[-1][1] - let_go, "calls until then": (asked(store) - calls) / waiters}
    found["messages until then"] = (pushed(broker) - messages) / waiters
    pauses = [after[0] - before[1] for before, after in pairwise(lines)]
    assert min(pauses) > 0, "two have run at a time"
    until(lambda: broker.zcard("unacked_index") == 0 and broker.llen("celery") == 0, 120)
    found["calls in all"] = (asked(store) - calls) / waiters
    found["messages in all"] = (pushed(broker) - messages) / waiters
    found["pause, median, ms"] = statistics.median(pauses) * 1000
    found["pause, 99th, ms"] = statistics.quantiles(pauses, n=100)[98] * 1000
    found["pause, longest, ms"] = max(pauses) * 1000
    ran = sum(ended - began for began, ended in lines)
    found["share of the time in which a run goes on"] = ran / (lines[-1][1] - lines[0][0])
    return found


def asked(client: redis.Redis) -> int:
    """Count the scripts that a server has run."""
    told = client.info("commandstats")
    return sum(told.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))


def pushed(client: redis.Redis) -> int:
    """Count the messages that a broker has got."""
    return int(client.info("commandstats").get("cmdstat_lpush", {}).get("calls", 0))


def until(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.01)


def main() -> None:
    waiters = int(sys.argv[1]) if len(sys.argv) > 1 else WAITERS
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS
    for name, value in measure(waiters, seconds).items():
        print(f"{name:42} {value:8.2f}")


if STORE in os.environ:
    app, *_ = make_app(os.environ[STORE], os.environ[BROKER], os.environ[WITNESS])

if __name__ == "__main__":
    main()

"""What finished runs leave in Redis until they are forgotten: bytes per run, of a million.

    python -m benchmarks.remembered [--runs 1000000]

Each run is one acquire and one release, with the names that a LockedTask gives: a task id, a nonce, and who holds it. All
that the server has more afterwards counts, its tables included: of those it doubles one when it is full, so that what a run
takes depends on how many there are.
"""

from __future__ import annotations

import argparse
import os
import sys
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from servers import Server

from celery_lockbeat.options import LockOptions
from celery_lockbeat.stores.redis.store import RedisStore

RUNS = 1_000_000

#: label -> the lock's key of a run
KEYS: dict[str, Callable[[int], str]] = {
    "a key of its own": lambda number: f"report:{number}",
    "one key for all": lambda number: "report",
}


@dataclass(frozen=True)
class Remembered:
    """Bytes per finished run, by how runs have their keys."""

    runs: int
    bytes_each: dict[str, float]
    keys_each: dict[str, float]


def measure(runs: int = RUNS) -> Remembered:
    bytes_each, keys_each = {}, {}
    for label, key_of in KEYS.items():
        with Server() as server, server.client() as client:
            store = RedisStore(server.url)
            finish(store, "another", "first")  # the scripts and the connections are there
            before, keys = client.info("memory")["used_memory"], client.dbsize()
            for number in range(runs):
                finish(store, key_of(number), str(uuid.uuid4()))
            bytes_each[label] = (client.info("memory")["used_memory"] - before) / runs
            keys_each[label] = (client.dbsize() - keys) / runs
            store.close()
    return Remembered(runs, bytes_each, keys_each)


def finish(store: RedisStore, key: str, task_id: str) -> None:
    nonce = urlsafe_b64encode(os.urandom(12)).decode()
    lease = store.locks.acquire(
        key,
        holder=os.urandom(16).hex(),
        ttl=30,
        run=f"{task_id}:0:0~{nonce}",
        task=f"{task_id}::0~{nonce}",
        description=f"celery@worker-1 pid 1234 app.tasks.report[{task_id}]",
    )
    assert store.locks.release(
        lease, remember_for=10 * LockOptions.__dataclass_fields__["dedupe_ttl"].default, task=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS)
    measured = measure(parser.parse_args().runs)
    for label, each in measured.bytes_each.items():
        print(
            f"{label:20} {each:6.1f} bytes in {measured.keys_each[label]:.2f} keys per finished run, of {measured.runs:,}"
        )


if __name__ == "__main__":
    main()

"""How noisy the machine was: the same fixed work between all measurements, which nothing of what is measured can change."""

from __future__ import annotations

import time
from dataclasses import dataclass

import redis

LOOPS, PINGS = 1_000_000, 1000


@dataclass(frozen=True)
class Reading:
    #: milliseconds of a loop in Python
    loop: float
    #: microseconds of a round trip to a Valkey
    ping: float


def read(client: redis.Redis) -> Reading:
    started = time.perf_counter()
    total = 0
    for number in range(LOOPS):
        total += number
    looped = time.perf_counter()
    for _ in range(PINGS):
        client.ping()
    return Reading(1e3 * (looped - started), 1e6 * (time.perf_counter() - looped) / PINGS)

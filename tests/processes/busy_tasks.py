"""Tasks that hold the GIL, for workers that ``include`` this module."""

from __future__ import annotations

import ctypes
import math
import re
import time

from apps import app, holding, seen

from celery_lockbeat import LockedTask

TTL = 1.5


def search(seconds: float) -> None:
    """Try in vain to match one regular expression for at least so long: a letter more takes twice the time."""
    letters, took = 18, 0.0
    while took < 0.1:
        letters += 1
        started = time.perf_counter()
        re.match(r"(a+)+$", "a" * letters + "b")
        took = time.perf_counter() - started
    re.match(r"(a+)+$", "a" * (letters + math.ceil(math.log2(seconds / took))) + "b")


def grip(seconds: float) -> None:
    """Hold the GIL for so long, to the millisecond."""
    ctypes.PyDLL(None).usleep(round(seconds * 1_000_000))


for driver in ("redis", "memory"):

    @app.task(bind=True, base=LockedTask, name=f"search_{driver}", lock_key="{key}", lock_ttl=TTL, lock_driver=driver)
    def search_for(task, key: str, seconds: float) -> str:
        with seen(task, key):
            search(seconds)
        return key

    @app.task(bind=True, base=LockedTask, name=f"grip_{driver}", lock_key="{key}", lock_ttl=TTL, lock_driver=driver)
    def grip_for(task, key: str, seconds: float, *, times: int = 1) -> str:
        with seen(task, key):
            for _ in range(times):
                grip(seconds)
                time.sleep(0.01)
        return key

    holding(f"stay_{driver}", lock_ttl=TTL, lock_driver=driver)
    holding(
        f"follow_{driver}",
        lock_ttl=TTL,
        lock_driver=driver,
        lock_retry_attempts=1200,
        lock_retry_delay=0.05,
        lock_retry_jitter=0,
    )

"""What it costs to send a message of a unique task: ``lock_unique``, celery-singleton and a plain task, side by side.

    python benchmarks/unique.py

Each round sends some messages of each kind, in turns, to one Redis that is broker, result backend and store; each ratio is the median
of the rounds' ratios, so that a noisy machine is noisy for all of them. ``sent``: no other message is there; ``refused``: there is one.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from celery import Celery
from celery_singleton import Singleton

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from servers import Server

from celery_lockbeat import LockedTask

ROUNDS, MESSAGES = 150, 20


def measure(rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Microseconds a message, a value a round."""
    with Server() as server, server.client() as client:
        app = Celery("unique", broker=server.url, backend=server.url, set_as_current=False)
        # no events, and no record of the refused: celery-singleton has neither
        app.conf.update(lockbeat_logging=False, lockbeat_journal=0, singleton_lock_expiry=3600)

        @app.task(name="plain")
        def plain(number): ...

        @app.task(base=LockedTask, name="lockbeat", lock_key="lockbeat:{number}", lock_unique="until_finished")
        def lockbeat(number): ...

        @app.task(base=LockedTask, name="started", lock_key="started:{number}", lock_unique="until_started")
        def started(number): ...

        @app.task(base=Singleton, name="singleton")
        def singleton(number): ...

        numbers = count(1)

        def sends(task) -> Callable[[], None]:
            return lambda: task.delay(next(numbers))

        def is_refused(task) -> Callable[[], None]:
            task.delay(0)
            return lambda: task.delay(0)

        tasks = {"plain": plain, "lockbeat": lockbeat, "until_started": started, "singleton": singleton}
        kinds = {f"{name}, sent": sends(task) for name, task in tasks.items()}
        kinds |= {f"{name}, refused": is_refused(task) for name, task in tasks.items() if name != "plain"}
        times: dict[str, list[float]] = {name: [] for name in kinds}
        order = list(kinds)
        for round_ in range(rounds):
            # each goes first as often as any other
            for name in order[round_ % len(order) :] + order[: round_ % len(order)]:
                send = kinds[name]
                began = time.perf_counter()
                for _ in range(MESSAGES):
                    send()
                times[name].append((time.perf_counter() - began) / MESSAGES * 1e6)
            client.delete("celery")
        app.close()
    return times


def ratio(times: dict[str, list[float]], ours: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(times[ours], times[other], strict=True))


def main() -> None:
    times = measure()
    for name, seen in times.items():
        print(f"{name:24} {statistics.median(seen):6.0f} us a message")
    for what in ("sent", "refused"):
        for ours in ("lockbeat", "until_started"):
            print(f"{ours} / celery-singleton, {what}: {ratio(times, f'{ours}, {what}', f'singleton, {what}'):.2f}")
    print(f"lockbeat / a plain task, sent: {ratio(times, 'lockbeat, sent', 'plain, sent'):.2f}")


if __name__ == "__main__":
    main()

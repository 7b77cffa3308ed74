"""What a lock costs a worker: tasks per second through a real prefork worker, ours beside none and beside the peers.

    pip install -e '.[dev,bench]'
    python benchmarks/tasks.py [--messages 1000] [--rounds 15] [--results] [--only plain,locked]

One ``celery worker -P prefork -c 2`` runs them all, on a real Redis broker, with Celery's defaults: its log level
(WARNING), its prefetching, no task events. The body does nothing, so a lock is all there is beside Celery's own work: any
real body makes the ratios better. Results are ignored, so that their store is not what is measured; ``--results`` stores
them in the same server, as many projects do.

Each round publishes all messages of one kind before the worker sees the first of them, and the kinds take turns. The rate
is that between the first and the last run that the witness (kinds.py) sees finished; it costs the same for all. Ratios are
the medians of the rounds' ratios; ``best`` compares the fastest round of each, for a machine that others use too. ``CPU`` is
what a task takes in all processes: publisher, worker and server. The worker's parent can do less than its two children, so
what a lock takes in a child costs no rate as long as there is a free core for it.

celery-once and celery-singleton take their lock where the message is *published*, and only delete a key in the worker. They
do not renew a lock, notice its loss, or know a copy of a message. Of python-redis-lock, the lock that expires and is renewed
does what ours does. Two bare scripts in the body are what two round trips cost with redis-py.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
from servers import Server  # noqa: E402


@dataclass
class Round:
    published: float
    finished: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description="Tasks per second through a prefork worker, with and without locks.")
    parser.add_argument("--messages", type=int, default=1000, help="of each kind in each round")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--results", action="store_true", help="store results, in the broker's server")
    parser.add_argument("--only", help="names of tasks in kinds.py")
    parser.add_argument("--loglevel", default="WARNING", help="the worker's")
    options = parser.parse_args()
    with Server() as server, tempfile.NamedTemporaryFile() as page:
        page.truncate(1024)
        os.environ |= {"LOCKBEAT_BENCH_URL": server.url, "LOCKBEAT_BENCH_WITNESS": page.name}
        if options.results:
            os.environ["LOCKBEAT_BENCH_RESULTS"] = "1"
        import kinds  # reads these

        for package in sorted(kinds.missing):
            print(f"NOT MEASURED, for {package} is missing: pip install -e '.[dev,bench]'")
        chosen = {
            label: task
            for label, task in kinds.kinds.items()
            if not options.only or task.name in options.only.split(",") or label == "plain task"
        }
        path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        command = f"-m celery -A kinds worker -P prefork -c {kinds.CHILDREN} -l {options.loglevel}"
        with Path(server.directory, "worker.log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, *command.split()],
                cwd=server.directory,
                env={**os.environ, "PYTHONPATH": path},
                stdout=log,
                stderr=log,
            )
        try:
            report(measure(server, worker, kinds.Witness(), chosen, options.messages, options.rounds))
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait()


def measure(
    server: Server, worker: subprocess.Popen, witness, tasks: dict[str, Callable], messages: int, rounds: int
) -> dict[str, list[Round]]:
    seen: dict[str, list[Round]] = {label: [] for label in tasks}
    broker, calls = redis.Redis.from_url(server.url), 0
    for number in range(rounds + 1):
        for label, task in tasks.items():
            cpu, started = cpu_seconds(server, worker), time.perf_counter()
            for _ in range(messages):
                calls += 1
                task.apply_async((calls,), queue="staged")
            published = messages / (time.perf_counter() - started)
            broker.rename("staged", "bench")
            finished = rate(worker, witness, calls, messages)
            cpu = (cpu_seconds(server, worker) - cpu) / messages
            if number:  # the first round opens connections and fills caches
                seen[label].append(Round(published, finished, cpu))
    return seen


def rate(worker: subprocess.Popen, witness, calls: int, messages: int) -> float:
    """Wait until the worker has finished all ``calls``, of which the last ``messages`` are new; return how many a second."""
    first = None
    while True:
        time.sleep(0.002)
        if worker.poll() is not None:
            sys.exit("the worker has ended")
        now, done = time.perf_counter(), witness.total() - (calls - messages)
        if done and first is None:
            first = (now, done)
        if done >= messages:
            return (done - first[1]) / (now - first[0])


def cpu_seconds(server: Server, worker: subprocess.Popen) -> float:
    parent = psutil.Process(worker.pid)
    family = [psutil.Process(), psutil.Process(server.process.pid), parent, *parent.children()]
    return sum(sum(process.cpu_times()[:2]) for process in family)


def report(seen: dict[str, list[Round]]) -> None:
    plain = seen["plain task"]

    def median(rounds: list[Round], field: str) -> float:
        return statistics.median(getattr(each, field) for each in rounds)

    def ratio(rounds: list[Round], field: str) -> float:
        pairs = zip(rounds, plain, strict=True)
        return statistics.median(getattr(ours, field) / getattr(its, field) for ours, its in pairs)

    print(f"\n{'':38} finished/s  /plain   best   CPU us  /plain   published/s  /plain")
    for label, rounds in seen.items():
        best = max(each.finished for each in rounds) / max(each.finished for each in plain)
        print(
            f"{label:38} {median(rounds, 'finished'):10.0f}  {ratio(rounds, 'finished'):6.2f} {best:6.2f}"
            f" {median(rounds, 'cpu') * 1e6:8.0f}  {ratio(rounds, 'cpu'):6.2f}"
            f" {median(rounds, 'published'):13.0f}  {ratio(rounds, 'published'):6.2f}"
        )
    print(f"\nload average: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()

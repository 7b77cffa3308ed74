"""An app with a day behind it, for tests and pictures of the page: entries, beats, workers and locks, as their stores have them."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

from celery import Celery
from celery.schedules import crontab
from servers import Server

from celery_lockbeat import LockedTask
from celery_lockbeat.journal.records import encode
from celery_lockbeat.stores import home_store_of, name_of
from celery_lockbeat.stores.base import JOURNALED_AT_ONCE, EntryState, Place

HOSTS = ("web-1", "web-2", "jobs-1")


class Job(NamedTuple):
    """An entry: how many seconds are between its ticks, how long a run takes, and which of its runs fail of what."""

    every: float
    takes: float
    fails: Mapping[int, str] = {}
    schedule: Any = None


SMTP = "SMTPServerDisconnected: Connection unexpectedly closed by mx{}.example.com"
JOBS = {
    "clean-carts": Job(60, 4),
    "close-month": Job(86400, 900, schedule=crontab(minute="0", hour="3", day_of_month="1")),
    "export-orders": Job(
        1800, 70, dict.fromkeys(range(1, 4), "TimeoutError: the warehouse did not answer within 30 s")
    ),
    "import-prices": Job(300, 140),
    "mail-digest": Job(900, 35, {n: SMTP.format(n % 3) for n in (2, 3, 9, 17, 40)}),
    "purge-sessions": Job(3600, 12, schedule=crontab(minute="15")),
    "refresh-search": Job(120, 30),
    "report-job": Job(3600, 240, schedule=crontab(minute="0")),
    "sync-orders": Job(120, 170),
    "warm-cache": Job(30, 2),
}


class Day:
    """Writes what beats and workers would have written."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.store = home_store_of(app)
        self.now = time.time()
        self._batches = 0

    def journal(self, records: Iterable[tuple[str, float, Mapping[str, Any]]], keep: int = 1_000_000) -> None:
        """Put records, each an event, how many seconds ago, and its fields."""
        known = list(records)
        for start in range(0, len(known), JOURNALED_AT_ONCE):
            self._batches += 1
            since = time.time() - self.now  # it takes a while to make them
            texts = [
                encode(event, fields, ago + since) for event, ago, fields in known[start : start + JOURNALED_AT_ONCE]
            ]
            self.store.journal.append(name_of(self.app), f"day-{id(self)}-{self._batches}", texts, keep=keep)

    def beat(self, name: str, entries: Iterable[str] = ()) -> None:
        """Let a beat be there."""
        app = name_of(self.app)
        self.store.beats.join(app, name)
        states = [(entry, EntryState(1, datetime.now(timezone.utc).isoformat())) for entry in entries]
        self.store.beats.list_entries(app, name, states, complete=True)
        self.announce(name, "beat", scheduler="celery_lockbeat.beat.scheduler:LockedScheduler")

    @contextlib.contextmanager
    def living(self, live_on: Callable[[], object] | None = None) -> Iterator[None]:
        """Let the beats and workers be heard of for as long as the block lasts, or whoever else is to live on."""
        ended = threading.Event()

        def live() -> None:
            while not ended.wait(2):
                live_on() if live_on is not None else populate(self)

        thread = threading.Thread(target=live, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def announce(self, name: str, kind: str, **more: object) -> None:
        told = {"kind": kind, "host": name.partition(".")[0], "pid": 7, "version": "0.1.0", **more}
        self.store.announcements.announce(name_of(self.app), "member", {name: json.dumps(told)}, ttl=600)

    def lock(self, key: str, description: str, ttl: float = 300, limit: int = 1) -> None:
        holder = f"{description} of {key}" if limit > 1 else f"holder-of-{key}"
        self.store.locks.acquire(key, holder=holder, ttl=ttl, description=description, limit=limit)

    def wait(self, key: str, description: str, ttl: float = 300) -> None:
        """Let somebody wait for a lock that is held."""
        place = Place(description, 600)
        self.store.locks.acquire(key, holder=f"waits {description}", ttl=ttl, description=description, place=place)


def app_of(make_app: Any, **settings: object) -> Celery:
    """An app with these jobs."""
    app = make_app(**settings)
    app.main = "shop"
    app.conf.update(lockbeat_driver="redis", timezone="UTC")
    app.conf.beat_schedule = {
        name: {"task": f"shop.{name.replace('-', '_')}", "schedule": job.schedule or job.every}
        for name, job in JOBS.items()
    }
    for name in JOBS:
        app.task(base=LockedTask, name=f"shop.{name.replace('-', '_')}", lock_ttl=60)(_nothing)
    return app


def _nothing() -> None:
    pass


@contextlib.contextmanager
def shop(seconds: float = 600) -> Iterator[Celery]:
    """Such an app on a server of its own, with so much behind it, whose beats and workers live."""
    with Server() as server:
        app = app_of(lambda **_: Celery("shop", broker=server.url, set_as_current=False))
        with fill(app, seconds).living():
            yield app
        app.close()


def fill(app: Celery, seconds: float = 6 * 3600) -> Day:
    """Let it have a past: beats that were gone for a while, a child that was killed, runs that overlap their next tick."""
    day = Day(app)
    records = [record for name, job in JOBS.items() for record in past_of(name, job, seconds, day.now)]
    records.sort(key=lambda record: -record[1])
    day.journal(records)
    populate(day)
    return day


def populate(day: Day) -> None:
    """Let beats and workers be heard of."""
    for host in HOSTS:
        day.beat(f"{host}.beat", [*JOBS, "celery.backend_cleanup"])
    for host in HOSTS[1:]:
        day.announce(f"{host}.worker", "worker", node=f"celery@{host}")
    day.lock("shop.sync_orders", "celery@jobs-1 pid 71 shop.sync_orders[8f3ac1d2]")
    day.lock("shop.report_job", "celery@web-2 pid 8 shop.report_job[1b77e90c]", ttl=41)
    day.lock("customers:4711", "celery@jobs-1 pid 70 shop.merge_customer[c0ffee12]", ttl=18)
    for number, task in enumerate(("6d1f09aa", "e83b7c54", "1105fe9d")):
        day.wait("customers:4711", f"celery@{HOSTS[1 + number % 2]} pid {72 + number} shop.merge_customer[{task}]")
    day.lock("warehouse", "celery@jobs-1 pid 74 shop.export_orders[44d0c1b2]", limit=2)
    day.lock("warehouse", "celery@web-2 pid 9 shop.count_stock[7f23ae60]", limit=2)


def past_of(name: str, job: Job, seconds: float, now: float) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """Yield the records of an entry, of so many seconds ago each."""
    task, busy, holder, missed = f"shop.{name.replace('-', '_')}", 0.0, "", 0
    begin = now - seconds
    # at full intervals by the clock, as crontabs are
    ago = seconds - (-begin % job.every)
    run = 0
    while ago > 1:
        run += 1
        due = datetime.fromtimestamp(now - ago, timezone.utc)
        of_tick = {"entry": name, "task_name": task, "due": due.isoformat(), "task_id": f"{name}-{run:08x}"}
        if 5000 < ago < 5600:  # the beats were gone
            missed += 1
            ago -= job.every
            continue
        if missed:
            last = (due - timedelta(seconds=job.every)).isoformat()
            reason = "nobody published them in time"
            yield (
                "tick_missed",
                ago,
                {
                    "entry": name,
                    "task_name": task,
                    "due": (due - timedelta(seconds=job.every * (missed + 1))).isoformat(),
                    "last_due": last,
                    "count": missed,
                    "reason": reason,
                    "hostname": "web-2.beat",
                },
            )
            missed = 0
        late = 0.02 + (run * 7 % 13) / 40
        beat = f"{HOSTS[run * 5 % 3]}.beat"
        yield "tick_published", ago - late, {**of_tick, "run": run, "late": late, "hostname": beat}
        worker = f"celery@{HOSTS[1 + run % 2]}"
        of_run = {**of_tick, "execution_id": f"{name}-{run}.1", "hostname": worker, "lock_key": task, "pid": 70}
        takes = job.takes * (0.8 + (run * 11 % 17) / 40)
        if holder and busy > due.timestamp():
            yield "task_skipped", ago - late - 0.1, {**of_run, "reason": "locked", "holder": holder}
            ago -= job.every
            continue
        started = ago - late - 0.1
        token = int((now - started) * 1e6)
        yield "task_started", started, {**of_run, "token": token}
        busy, holder = due.timestamp() + takes, f"{worker} pid 70 {task}[{of_tick['task_id']}]"
        ended = started - takes
        if ended > 0:
            yield from _end(name, run, ended, takes, {**of_run, "token": token}, job)
        ago -= job.every


def _end(
    name: str, run: int, ago: float, takes: float, of_run: dict[str, Any], job: Job
) -> Iterator[tuple[str, float, dict[str, Any]]]:
    if name == "import-prices" and run % 19 == 5:
        yield "task_died", ago + takes / 2, {**of_run, "reason": "its process was killed by SIGKILL", "signal": 9}
        return
    if run in job.fails:
        error, _, message = job.fails[run].partition(": ")
        yield "task_failed", ago, {**of_run, "duration_ms": takes * 1000, "error_name": error, "error_message": message}
        return
    if name == "report-job" and run == 3:
        yield "lock_expired_before_finish", ago + 20, of_run
    yield "task_succeeded", ago, {**of_run, "duration_ms": takes * 1000}

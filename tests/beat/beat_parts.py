"""What the parts of a beat are made with in the tests of each part alone: a clock that is set, a scheduler, a store."""

from __future__ import annotations

import json
import math
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

from celery.beat import ScheduleEntry
from celery.schedules import schedule

from celery_lockbeat import StoreUnavailable
from celery_lockbeat.beat.agenda import Agenda
from celery_lockbeat.beat.clocks import Clocks
from celery_lockbeat.beat.planner import Planner
from celery_lockbeat.beat.recorder import Recorder
from celery_lockbeat.beat.rules import Rules
from celery_lockbeat.beat.trouble import Backoff, Complaints
from celery_lockbeat.stores.base import Claims, Joined

START = datetime(2026, 6, 1, tzinfo=timezone.utc)


class Clock:
    def __init__(self) -> None:
        self.elapsed = 0.0
        #: by how much the wall clock is ahead of the store's
        self.skew = 0.0

    def __call__(self) -> float:
        return 1000.0 + self.elapsed

    def wall(self) -> float:
        return START.timestamp() + self.elapsed + self.skew

    def now(self) -> datetime:
        return START + timedelta(seconds=self.elapsed + self.skew)


class Scheduler:
    """A scheduler as its parts see it; what it is asked for is in ``calls``."""

    max_interval = 300.0
    trusted_for = math.inf
    gather = 0.0

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.entries: dict[str, Any] = {}
        self.calls: list[Any] = []
        self.found: dict[str, tuple[str, Any]] | None = None

    def entry(self, name: str, seconds: float = 10.0, **more: Any) -> ScheduleEntry:
        app = SimpleNamespace(now=self.clock.now, timezone=timezone.utc)
        when = schedule(seconds, nowfun=self.clock.now, app=app)
        self.entries[name] = ScheduleEntry(name=name, task="t", schedule=when, app=app, **more)
        return self.entries[name]

    def refresh_schedule(self) -> None:
        self.calls.append("refresh_schedule")

    def is_due(self, entry: Any) -> tuple[bool, float]:
        return entry.is_due()

    def reserve(self, entry: Any) -> Any:
        return entry

    def adopted(self, entry: Any) -> None:
        self.calls.append(("adopted", entry.name, entry.total_run_count))

    def reread(self, keys: Any) -> Any:
        self.calls.append(("reread", sorted(keys)))
        return self.found

    def record_runs(self, keys: Any) -> None:
        self.calls.append(("record_runs", list(keys)))


class Store:
    """Grants what it is asked for, and keeps what that was. ``down``: the calls that it does not answer."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.calls: list[Any] = []
        self.down: set[str] = set()
        self.refusals: dict[str, Any] = {}
        self.overdue: list[Any] = []
        self.not_ours: set[str] = set()

    def _called(self, name: str, *what: Any) -> None:
        self.calls.append((name, *what))
        if name in self.down:
            raise StoreUnavailable(name)

    def time(self) -> float:
        return self.clock.wall() - self.clock.skew

    def check(self) -> None:
        self._called("check")

    def join(self, app: str, replica: str, *, cold_start: float | None = None) -> Joined:
        self._called("join", cold_start)
        return Joined(self.time() if cold_start is None else cold_start, self.time())

    def list_entries(self, app: str, replica: str, entries: Any, *, removed: Any, complete: bool) -> list[Any]:
        self._called("list", [key for key, _ in entries], list(removed), complete)
        return [state for _, state in entries]

    def claim(self, app: str, replica: str, claims: Any, *, ttl: float, skip: int = 0) -> Claims:
        self._called("claim", [(claim.entry, claim.task_id) for claim in claims], skip)
        refusals = [self.refusals.get(claim.entry) for claim in claims]
        return Claims(refusals, list(self.overdue), None, self.time(), listed=True)

    def take_over(self, app: str, replica: str, task_ids: Any, *, ttl: float, flags: Any = ()) -> list[bool]:
        self._called("take_over", list(task_ids))
        return [task_id not in self.not_ours for task_id in task_ids]

    def settle(self, app: str, replica: str, sent: Any, *, handed_over: Any) -> list[bool]:
        self._called("settle", list(sent), list(handed_over))
        return [task_id not in self.not_ours for task_id, _ in sent]

    def leave(self, app: str, replica: str) -> None:
        self._called("leave")


class Journal:
    """What a beat has written: (event, fields) each; who makes a case of something is the first."""

    def __init__(self) -> None:
        self.written: list[tuple[str, Any]] = []
        self.cases: list[str] = []

    def put(self, event: str, shared: Any, own: Any = None, execution_id: Any = None) -> None:
        self.written.append((event, shared))

    def put_all(self, records: Any) -> None:
        for each in records:
            told = json.loads(each.text(0.0))
            self.written.append((told.pop("e"), told))

    def case(self, name: str, event: str, fields: Any, then: Any) -> None:
        self.cases.append(name)
        self.written.append((event, fields))
        then()

    def events(self) -> list[str]:
        return [event for event, _ in self.written]


class Parts:
    """The parts that others are made of."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.scheduler = Scheduler(self.clock)
        self.store = Store(self.clock)
        self.clocks = Clocks(self.clock, self.clock.wall)
        self.complaints = Complaints(self.clock)
        self.backoff = Backoff(self.clock)
        self.agenda = Agenda(self.clock)
        self.planner = Planner(self.scheduler, Rules({}, 30), self.agenda, self.clocks, self.complaints)
        self.journal = Journal()
        self.recorder = Recorder("the scheduler", self.journal, lambda: "host-1-a", self.clock.wall, 30.0)

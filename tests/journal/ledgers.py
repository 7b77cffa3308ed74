"""Records as beats and workers write them, for tests of what is made of them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from itertools import count

from celery_lockbeat.journal.records import Record

NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)

_positions = count()


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def record(event: str, seconds: float, **fields: object) -> Record:
    return Record(event=event, at=at(seconds), position=str(next(_positions)), **fields)


def published(run: int, due: float, *, entry: str = "report", late: float = 0.1, **more: object) -> Record:
    fields = {"task_id": f"{entry}-{run}", "task_name": "jobs.report", "hostname": "beat-1", "late": late, **more}
    return record("tick_published", due + late, entry=entry, run=run, due=at(due), **fields)


def of_run(event: str, seconds: float, run: int, due: float | None = 0, *, attempt: int = 1, **more: object) -> Record:
    """An event of an attempt to run a tick; ``due`` None: of a run that no tick has asked for."""
    entry = more.pop("entry", "report")
    fields = {"task_id": f"{entry}-{run}", "execution_id": f"{entry}-{run}.{attempt}", "task_name": "jobs.report"}
    fields |= {"hostname": "celery@w1", "lock_key": "jobs:report"}
    if due is not None:
        fields |= {"entry": entry, "due": at(due)}
    return record(event, seconds, **{**fields, **more})


def ran(run: int, due: float, took: float = 1.0, *, status: str = "succeeded", **more: object) -> list[Record]:
    """A tick, and a run from its start to its end."""
    entry = more.get("entry", "report")
    return [
        published(run, due, entry=entry),
        of_run("task_started", due + 0.2, run, due, **more),
        of_run(f"task_{status}", due + 0.2 + took, run, due, duration_ms=took * 1000, **more),
    ]

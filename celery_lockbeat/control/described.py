"""All that is to be known of one entry, for people and programs: what it is, what is wanted of it, how it has fared."""

from __future__ import annotations

import inspect
from datetime import datetime, timezone
from typing import Any, Final

from celery_lockbeat.contrib.definition import Definition
from celery_lockbeat.insight.planned import Plan
from celery_lockbeat.journal import read
from celery_lockbeat.journal.records import Said
from celery_lockbeat.journal.statistics import spread_of
from celery_lockbeat.journal.ticks import ticks_of
from celery_lockbeat.options import AppOptions
from celery_lockbeat.stores.base import Flag

__all__ = ["described", "source_of"]

#: So many records are read for one run, and so many dues are told.
RECORDS_OF_A_RUN: Final = 6
DUES: Final = 10


def described(entry: Any, app: Any, runs: int) -> dict[str, Any]:
    """Describe a :class:`~celery_lockbeat.control.schedules.ScheduledEntry`, with its last ``runs`` ticks. Raises StoreUnavailable."""
    definition, known = entry.definition(), entry.known
    told: dict[str, Any] = {"name": entry.name, "beats": entry.beats, **_defined(definition, app)}
    if known is not None:
        told |= {
            "key": known.entry.name,
            "published": known.published,
            "last_published_at": known.last_published_at,
            "pending": known.entry.pending,
        }
    told |= {"policy": _policy(entry.plan()), **_flagged(entry.flag_now())}
    told["next"] = [at.isoformat() for at in entry.next(DUES)]
    told["backfills"] = [each.fields() for each in entry.backfills()]
    return told | (_fared(entry.name, app, runs) if AppOptions.read(app.conf).journal else {"runs": []})


def _defined(definition: Definition | None, app: Any) -> dict[str, Any]:
    if definition is None:
        return {"task": None, "schedule": None, "enabled": None, "where": None}
    return {
        "task": definition.task,
        "schedule": str(definition.schedule),
        "args": [repr(each) for each in definition.args],
        "kwargs": {str(name): repr(each) for name, each in definition.kwargs.items()},
        "enabled": definition.enabled,
        "where": definition.where,
        "source": source_of(app.tasks.get(definition.task)),
    }


def _policy(plan: Plan | None) -> dict[str, Any]:
    """Say what of its ticks is not as by default."""
    told = {} if plan is None else plan.policy.as_keywords()
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in told.items()}


def source_of(task: Any) -> str | None:
    """Say where the body of a task is written."""
    body: Any = getattr(task, "__wrapped__", None) or getattr(task, "run", None)
    try:
        lines, first = inspect.getsourcelines(inspect.unwrap(body))
        return f"{inspect.getsourcefile(body)}:{first}" if lines else None
    except (TypeError, OSError, ValueError):
        return None


def _flagged(flag: Flag) -> dict[str, Any]:
    over = flag.until is not None and flag.until <= datetime.now(timezone.utc).timestamp()
    told: dict[str, Any] = {"paused": None, "skip": flag.skip}
    if flag.paused and not over:
        said = Said.read(flag.told)
        until = None if flag.until is None else datetime.fromtimestamp(flag.until, timezone.utc).isoformat()
        told["paused"] = {"who": said.who, "at": said.at, "note": said.note, "until": until, "passed": flag.passed}
    if flag.skip:
        said = Said.read(flag.skip_told)
        told["skip_asked"] = {"who": said.who, "at": said.at, "note": said.note}
    return told


def _fared(name: str, app: Any, runs: int) -> dict[str, Any]:
    records = read(app, entry=name, limit=runs * RECORDS_OF_A_RUN)
    ticks = ticks_of(records)[-runs:]
    took = spread_of([last.took for tick in ticks if (last := tick.last) is not None and last.took is not None])
    spread = took and {"p50": took.p50, "p95": took.p95, "max": took.max}
    return {"runs": [tick.fields() for tick in ticks], "took": spread}

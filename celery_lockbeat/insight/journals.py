"""What those who look into the journal have in common: what they read, and what the app knows of its entries."""

from __future__ import annotations

import functools
from datetime import datetime, timedelta, timezone
from typing import Any, Final, NamedTuple

from celery.schedules import crontab, schedule

from celery_lockbeat.contrib.schedulers import static_schedules
from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.insight.entries import named_entries
from celery_lockbeat.insight.planned import Plan, Plans
from celery_lockbeat.insight.times import time_of
from celery_lockbeat.journal import Record, read
from celery_lockbeat.journal.audit import Calendar, Counted, Ledger, audit
from celery_lockbeat.journal.ticks import Tick, ticks_of
from celery_lockbeat.options import AppOptions
from celery_lockbeat.schedules.dues import dues_between
from celery_lockbeat.schedules.when import Cron, OwnSchedule
from celery_lockbeat.stores import Store, home_store_of, name_of
from celery_lockbeat.tasks.task import LockedTask

__all__ = ["Story", "audited", "calendars_of", "names_known", "story_since"]

#: A tick may be written before it is due, by hosts whose clocks differ.
SKEW: Final = timedelta(minutes=10)

#: Seconds after which what has happened is in the journal.
WRITTEN_AFTER: Final = 3.0


class Story(NamedTuple):
    """The records since some time, the ticks and runs that they tell of, and when the journal begins; None: it is empty."""

    records: list[Record]
    ticks: list[Tick]
    reach: datetime | None


def story_since(app: Any, since: datetime) -> Story:
    """Read the journal from a time on. Raises StoreUnavailable, and ConfigurationError where none is written."""
    if not AppOptions.read(app.conf).journal:
        raise ConfigurationError(
            "lockbeat_journal is 0, so no journal is written; allowed here: how many records are kept"
        )
    app.loader.import_default_modules()
    app.finalize()
    oldest = home_store_of(app).journal.records(name_of(app), limit=1)
    records = read(app, since=since - SKEW, limit=None)
    ran = {record.task_name for record in records if record.status is not None}
    ticks = ticks_of(records, functools.partial(_tells, app, ran))
    known = [tick for tick in ticks if tick.at >= since]
    # what was written before that is gone, whenever it happened
    reach = datetime.fromtimestamp(oldest[0].written, timezone.utc) if oldest else None
    return Story(records, known, reach)


def _tells(app: Any, ran: set[str | None], task: str) -> bool:
    # of a task that this process does not know, its runs tell
    return isinstance(app.tasks[task], LockedTask) if task in app.tasks else task in ran


def calendars_of(app: Any) -> dict[str, Calendar]:
    """Return when the entries of the settings and decorators are due, as far as it can be told beforehand."""
    plans = Plans(app)
    return {
        name: _calendar(when, plans.of(name, when))
        for name, when in static_schedules(app).items()
        # what is made of Celery's may be due in another way
        if isinstance(when, (OwnSchedule, crontab)) or type(when) is schedule
    }


def _calendar(when: Any, plan: Plan) -> Calendar:
    dues, policy = functools.partial(dues_between, plan.dues), plan.policy
    put_off = timedelta(seconds=policy.jitter)
    return Calendar(dues, not isinstance(when, schedule), _text_of(when), put_off, policy.max_runs)


def _text_of(when: Any) -> str:
    if isinstance(when, OwnSchedule):
        return when.expression if isinstance(when, Cron) else repr(when)
    if isinstance(when, crontab):
        fields = (when._orig_minute, when._orig_hour, when._orig_day_of_month)
        return " ".join(str(each) for each in (*fields, when._orig_month_of_year, when._orig_day_of_week))
    return f"every {when.run_every.total_seconds():g} s"


def audited(app: Any, story: Story, since: datetime, until: datetime) -> Ledger:
    """Audit what was due between two times. Raises StoreUnavailable."""
    return audit(
        story.ticks,
        story.records,
        since=since,
        until=until - timedelta(seconds=WRITTEN_AFTER),
        silence=timedelta(seconds=max(AppOptions.read(app.conf).late_after, WRITTEN_AFTER)),
        reach=story.reach,
        calendars=calendars_of(app),
        stored=_stored(app, home_store_of(app)),
    )


def _stored(app: Any, store: Store) -> dict[str, Counted]:
    """Return what the store knows of each entry; nothing of those that have it under several keys."""
    found: dict[str, list[Counted]] = {}
    for each in named_entries(app, store):
        state = each.entry.state
        counted = Counted(state.total_run_count, time_of(state.last_run_at, app), each.entry.pending)
        found.setdefault(each.name, []).append(counted)
    return {name: those[0] for name, those in found.items() if len(those) == 1}


def names_known(app: Any, story: Story) -> set[str]:
    """Return the names of entries and tasks that the app, its beats or its journal know. Raises StoreUnavailable."""
    stored = {each.name for each in named_entries(app, home_store_of(app))}
    told = {name for tick in story.ticks for name in (tick.entry, tick.task_name) if name is not None}
    tasks = {name for name in app.tasks if not name.startswith("celery.")}
    return stored | told | tasks | set(static_schedules(app))

"""Sentry Crons, for real, in real beats and workers: the same check-ins from our schedulers as from those that they stand on."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
from collections import defaultdict
from datetime import datetime, timedelta, timezone

import pytest
from celery import Celery
from celery.schedules import crontab, schedule
from fleet import Fleet
from servers import need_django, wait_until

if not os.environ.get("CI"):
    pytest.importorskip("sentry_sdk")

SCHEDULERS = {
    "celery": ("celery.beat:Scheduler", "celery_lockbeat:LockedScheduler"),
    "redbeat": ("redbeat:RedBeatScheduler", "celery_lockbeat.contrib.redbeat:LockedRedBeatScheduler"),
    "django": (
        "django_celery_beat.schedulers:DatabaseScheduler",
        "celery_lockbeat.contrib.django:LockedDatabaseScheduler",
    ),
}

LONG_AGO = datetime.now(timezone.utc) - timedelta(hours=2)

#: Of each hour: far from now.
MINUTE = str((datetime.now(timezone.utc).minute + 30) % 60)


@pytest.fixture
def fleet(make_fleet, locks) -> Fleet:
    return make_fleet(lockbeat_redis_url=locks.url, redbeat_redis_url=locks.url, result_expires=None)


def entries_of(who: str, key: str) -> dict[str, list[str]]:
    return {
        f"{who} well": ["interval", "note", f"{key}-{who}"],
        f"{who} badly": ["crontab", "end", f"{key}-{who}", "raise"],
        "left out": ["interval", "note", f"{key}-{who}"],
    }


def store(kind: str, entries: dict[str, list[str]], fleet: Fleet, settings: dict[str, object], who: str) -> None:
    """Put the entries where a scheduler of this kind finds them, all overdue."""
    if kind == "celery":
        settings["test_entries"] = entries
    elif kind == "redbeat":
        from redbeat import RedBeatSchedulerEntry

        settings |= {"redbeat_key_prefix": f"{fleet.queue}-{who}:"}
        with contextlib.closing(Celery("user", set_as_current=False)) as app:
            app.conf.update({**fleet.settings, **settings})
            whens = {"interval": schedule(3600.0, app=app), "crontab": crontab(minute=MINUTE, app=app)}
            for name, (when, task, *args) in entries.items():
                entry = RedBeatSchedulerEntry(name, task, whens[when], args=args, app=app)
                entry.last_run_at = LONG_AGO
                entry.save()
    else:
        import djangos

        settings["test_django_database"] = djangos.make_sqlite(fleet.directory / f"{who}.sqlite3")
        djangos.use(settings["test_django_database"], "default")
        from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

        every = IntervalSchedule.objects.create(every=1, period="hours")
        cron = CrontabSchedule.objects.create(minute=MINUTE)
        for name, (when, task, *args) in entries.items():
            which = {"interval": every} if when == "interval" else {"crontab": cron}
            PeriodicTask.objects.create(name=name, task=task, args=json.dumps(args), last_run_at=LONG_AGO, **which)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_sentry_crons_has_the_same_check_ins_of_our_scheduler_as_of_the_one_that_it_stands_on(fleet, key, kind):
    module = SCHEDULERS[kind][0].partition(".")[0].partition(":")[0]
    if kind == "django":
        need_django()
    elif importlib.util.find_spec(module) is None and not os.environ.get("CI"):
        pytest.skip(f"{module} is missing")
    record = fleet.directory / "check-ins"
    watched = {"imports": ["crons"], "test_record": str(record)}
    fleet.workers("a", pool="solo", **watched)
    beats = []
    for who, scheduler in zip(("stock", "ours"), SCHEDULERS[kind], strict=True):
        settings: dict[str, object] = {**watched, "lockbeat_key_prefix": f"{fleet.queue}-{who}:"}
        store(kind, entries_of(who, key), fleet, settings, who)
        beats.append(fleet._start(who, ["beat", "-S", scheduler, "-l", "INFO", "--pidfile="], settings))

    def check_ins() -> dict[str, list[tuple[str, str, str]]]:
        told = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
        by_id = defaultdict(list)
        for each in told:
            by_id[each["check_in_id"]].append(
                (each["monitor_slug"], each["status"], json.dumps(each["monitor_config"], sort_keys=True))
            )
        return dict(by_id)

    def whole() -> list[list[tuple[str, str, str]]]:
        return [told for told in check_ins().values() if len(told) > 1]

    wait_until(lambda: len(whole()) >= 4, 60, "each entry's check-in has ended")
    assert len(whole()) == len(check_ins()) == 4
    by_slug = {told[0][0]: told for told in whole()}
    for name, end in ("well", "ok"), ("badly", "error"):
        stock, ours = by_slug[f"stock {name}"], by_slug[f"ours {name}"]
        assert [status for _, status, _ in ours] == ["in_progress", end]
        assert [(status, config) for _, status, config in ours] == [(status, config) for _, status, config in stock]
        assert {slug for slug, *_ in ours} == {f"ours {name}"}
    assert {json.loads(by_slug[f"ours {name}"][0][2])["schedule"]["type"] for name in ("well", "badly")} == {
        "interval",
        "crontab",
    }
    stock, ours = beats
    # sentry-sdk imports celery-redbeat, whose receiver of beat_init takes each scheduler for RedBeat's
    assert ("no attribute 'lock_key'" in stock.log()) == (kind != "redbeat")
    assert "ERROR" not in ours.log()

"""Sentry Crons in the workers and beats of these tests; for ``imports`` of the app that they load.

What Sentry would be sent goes to the file ``test_record``, a JSON line for each check-in.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import sentry_sdk
from apps import app
from celery.schedules import crontab, schedstate, schedule
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.transport import Transport


class AtOnce:
    """Mixed into a schedule, it is due at once, and then no more for an hour."""

    began = None

    def is_due(self, last_run_at):
        self.began = self.began or last_run_at
        return schedstate(is_due=last_run_at <= self.began, next=3600.0)


class Interval(AtOnce, schedule):
    """An interval."""


class Crontab(AtOnce, crontab):
    """A crontab."""


class Recorder(Transport):
    """Writes check-ins down, each in one piece, whoever else writes."""

    def capture_envelope(self, envelope: Any) -> None:
        with Path(app.conf.test_record).open("ab", buffering=0) as file:
            for item in envelope.items:
                if item.type == "check_in":
                    file.write(json.dumps(item.payload.json).encode() + b"\n")


if entries := app.conf.get("test_entries"):
    kinds = {"interval": partial(Interval, 3600.0), "crontab": partial(Crontab, minute="0")}
    app.conf.beat_schedule = {
        name: {"task": task, "args": args, "schedule": kinds[kind]()} for name, (kind, task, *args) in entries.items()
    }

sentry_sdk.init(
    dsn="https://key@sentry.example.com/1",
    transport=Recorder,
    # not what happens to be installed here
    auto_enabling_integrations=False,
    integrations=[CeleryIntegration(monitor_beat_tasks=True, exclude_beat_tasks=["left out"])],
)

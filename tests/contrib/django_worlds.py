"""Beats over django-celery-beat's tables in simulated time, and users who change these."""

from __future__ import annotations

import contextlib

import djangos
import pytest
from simulation import Simulation
from worlds import World, simulate


class DjangoWorld(World):
    @property
    def ours(self):
        from celery_lockbeat.contrib.django import LockedDatabaseScheduler

        return LockedDatabaseScheduler

    @property
    def theirs(self):
        from django_celery_beat.schedulers import DatabaseScheduler

        return DatabaseScheduler

    def add(self, name="a", every=10):
        return self.create(name, every)

    def every(self, seconds):
        from django_celery_beat.models import IntervalSchedule

        return IntervalSchedule.objects.get_or_create(every=seconds, period="seconds")[0]

    def create(self, name="a", every=10, task="t", **more):
        from django_celery_beat.models import PeriodicTask

        if not {"crontab", "solar", "clocked"} & more.keys() and every is not None:
            more["interval"] = self.every(every)
        return PeriodicTask.objects.create(name=name, task=task, **more)

    def row(self, name="a"):
        from django_celery_beat.models import PeriodicTask

        return PeriodicTask.objects.get(name=name)

    def update(self, name="a", **columns):
        """Past all signals, and tell of it, as django-celery-beat's README has it."""
        from django_celery_beat.models import PeriodicTask, PeriodicTasks

        PeriodicTask.objects.filter(name=name).update(**columns)
        PeriodicTasks.update_changed()

    def total_run_count(self, name="a"):
        return self.row(name).total_run_count


def set_djangos_clocks(monkeypatch: pytest.MonkeyPatch, simulation: Simulation) -> None:
    """What Django and django-celery-beat read the time with."""
    from django_celery_beat.clockedschedule import clocked
    from django_celery_beat.schedulers import ModelEntry
    from django_celery_beat.tzcrontab import TzAwareCrontab

    now = lambda zone=None: simulation.world.now(*([zone] if zone else []))  # noqa: E731
    monkeypatch.setattr("django.utils.timezone.now", now)
    monkeypatch.setattr(ModelEntry, "_default_now", lambda self: now(self.app.timezone))
    monkeypatch.setattr(TzAwareCrontab, "nowfunc", lambda self: now(self.tz))
    monkeypatch.setattr(clocked, "now", lambda self: now())


@contextlib.contextmanager
def worlds(tmp_path, monkeypatch):
    """Make worlds over a fresh SQLite database."""
    djangos.use(djangos.make_sqlite(tmp_path / "db.sqlite3"), "default")
    with contextlib.ExitStack() as stack:

        def make(replicas=1):
            simulation = simulate(monkeypatch, tmp_path / "memory")
            set_djangos_clocks(monkeypatch, simulation)
            world = DjangoWorld(simulation, replicas)
            stack.callback(world.close)
            return world

        yield make
    from django.db import connections

    connections["default"].close()

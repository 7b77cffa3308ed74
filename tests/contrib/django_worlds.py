"""Beats over django-celery-beat's tables in simulated time, and users who change these."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta
from typing import Any

import djangos
import pytest
from simulation import Simulation, open_store, set_clocks


class World:
    """Replicas of our beat, each in an app of its own, over one database."""

    def __init__(self, simulation: Simulation, replicas: int) -> None:
        self.simulation, self.replicas = simulation, replicas
        self.beats: list[Any] = []

    def app(self, beat_schedule=None, **settings):
        settings = {"beat_max_loop_interval": 5, **settings}
        return self.simulation.app(beat_schedule, **settings)

    def start(self, beat_schedule=None, **settings):
        """Start the replicas, and let them read what is there."""
        from celery_lockbeat.contrib.django import LockedDatabaseScheduler

        self.beats = [
            self.simulation.beat(self.app(beat_schedule, **settings), scheduler=LockedDatabaseScheduler)
            for _ in range(self.replicas)
        ]
        self.run(0.01)
        return self.beats

    def stop(self):
        for beat in self.beats:
            beat.close()
        self.beats = []

    def plain(self, seconds, **settings):
        """Let django-celery-beat's own beat run for so long."""
        from django_celery_beat.schedulers import DatabaseScheduler

        beat = self.simulation.beat(self.app(**settings), scheduler=DatabaseScheduler)
        self.simulation.world.run(beat, seconds=seconds)
        beat.close()

    def run(self, seconds):
        self.simulation.world.run(*self.beats, seconds=seconds)

    # -- the user ------------------------------------------------------------------------------------------------------

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

    # -- what became of it ---------------------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        return self.simulation.world.now()

    def at(self, seconds: float) -> datetime:
        """A moment, by the seconds since the beginning."""
        return self.simulation.world.start + timedelta(seconds=seconds)

    def times(self, task="t"):
        """When each message of the task was sent, in seconds, to the tenth."""
        return [round(at, 1) for at in self.simulation.times().get(task, [])]

    def messages(self, task="t"):
        return [message for message in self.simulation.messages if message.task == task]


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
    made = []

    def make(replicas=1):
        simulation = Simulation(lambda world: open_store("memory", world, "", tmp_path / "memory"))
        set_clocks(monkeypatch, simulation)
        set_djangos_clocks(monkeypatch, simulation)
        made.append(World(simulation, replicas))
        return made[-1]

    yield make
    from django.db import connections

    for world in made:
        world.stop()
        world.simulation.close()
    connections["default"].close()

"""Beats over somebody else's scheduler in simulated time, and users who change what these read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.beat import Scheduler
from simulation import Beat, Simulation, open_store, set_clocks


class World(ABC):
    """Replicas of our beat, each in an app of its own, over one place that entries are kept in."""

    def __init__(self, simulation: Simulation, replicas: int, **settings: object) -> None:
        self.simulation, self.replicas = simulation, replicas
        #: of each app
        self.settings = {"beat_max_loop_interval": 5, **settings}
        self.beats: list[Beat] = []

    @property
    @abstractmethod
    def ours(self) -> type[Scheduler]:
        """Our scheduler."""

    @property
    @abstractmethod
    def theirs(self) -> type[Scheduler]:
        """The one that ours stands on."""

    def app(self, beat_schedule=None, **settings) -> Celery:
        return self.simulation.app(beat_schedule, **{**self.settings, **settings})

    def app_of_theirs(self, **settings) -> Celery:
        return self.app(**settings)

    def start(self, beat_schedule=None, **settings):
        """Start the replicas, and let them read what is there."""
        self.beats = [
            self.simulation.beat(self.app(beat_schedule, **settings), scheduler=self.ours) for _ in range(self.replicas)
        ]
        self.run(0.01)
        return self.beats

    def stop(self):
        for beat in self.beats:
            beat.close()
        self.beats = []

    def plain(self, seconds, **settings):
        """Let a beat of theirs run for so long."""
        beat = self.simulation.beat(self.app_of_theirs(**settings), scheduler=self.theirs)
        self.simulation.world.run(beat, seconds=seconds)
        beat.close()

    def run(self, seconds):
        self.simulation.world.run(*self.beats, seconds=seconds)

    def close(self):
        self.stop()
        self.simulation.close()

    # -- the user ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def add(self, name: str = "a", every: int = 10) -> object:
        """Keep an entry of the task ``t``."""

    # -- what became of it ---------------------------------------------------------------------------------------------

    @abstractmethod
    def total_run_count(self, name: str = "a") -> int:
        """As it is kept."""

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


def simulate(monkeypatch: pytest.MonkeyPatch, path: Any) -> Simulation:
    """Simulated time, with our store in this directory."""
    simulation = Simulation(lambda world: open_store("memory", world, "", path))
    set_clocks(monkeypatch, simulation)
    return simulation


def die_with_a_claim(world: World) -> None:
    """Let one beat claim the tick of second 10, and die before it publishes it."""
    (victim, *others) = world.beats

    def die(_ticks):
        raise SystemExit

    victim.scheduler._publisher.publish = die
    world.simulation.world.run(victim, seconds=9)
    with pytest.raises(SystemExit):
        world.simulation.world.run(victim, seconds=5)
    world.beats = others

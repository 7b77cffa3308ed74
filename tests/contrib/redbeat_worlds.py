"""Beats over RedBeat's entries in simulated time, and users who change these."""

from __future__ import annotations

import contextlib

from celery.schedules import schedule
from redbeat import RedBeatScheduler, RedBeatSchedulerEntry
from worlds import World, simulate

from celery_lockbeat.contrib.redbeat import LockedRedBeatScheduler


class RedBeatWorld(World):
    ours, theirs = LockedRedBeatScheduler, RedBeatScheduler

    def __init__(self, simulation, replicas, server) -> None:
        super().__init__(simulation, replicas, redbeat_redis_url=server.url)
        self.server, self.redis = server, server.client()
        #: whose user changes entries
        self.user = self.app()

    def app_of_theirs(self, **settings):
        app = self.app(**settings)
        app.conf.redbeat_lock_key = None  # as a lone beat of it runs
        return app

    def close(self):
        super().close()
        self.redis.close()

    def add(self, name="a", every=10):
        return self.entry(name, float(every)).save()

    def entry(self, name="a", when=10.0, task="t", **more):
        when = schedule(when, app=self.user) if isinstance(when, float) else when
        return RedBeatSchedulerEntry(name, task, when, app=self.user, **more)

    def load(self, name="a"):
        return RedBeatSchedulerEntry.from_key(f"redbeat:{name}", app=self.user)

    def score(self, name="a"):
        return self.redis.zscore("redbeat::schedule", f"redbeat:{name}")

    def total_run_count(self, name="a"):
        return self.load(name).total_run_count


@contextlib.contextmanager
def worlds(server, tmp_path, monkeypatch):
    """Make worlds over one Redis."""
    with contextlib.ExitStack() as stack:

        def make(replicas=1):
            world = RedBeatWorld(simulate(monkeypatch, tmp_path / "memory"), replicas, server)
            stack.callback(world.close)
            return world

        yield make

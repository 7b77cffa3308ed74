"""Whatever zones a project sets, an entry runs when the admin's clock shows its time.

Each test is one project: its settings, a database, and a beat that is started anew with an empty store half-way, so that its
rows alone tell it of the past. The clocks of the process are moved; nothing that reads them is replaced.
"""

from __future__ import annotations

import itertools
from datetime import timedelta
from zoneinfo import ZoneInfo

import pytest
from servers import need_django
from simulation import Simulation, World, let_them_sleep, open_store, set_clocks

HOUR = 3600.0

PROJECTS = list(
    itertools.product(
        [True, False],
        ["Europe/Berlin", "America/New_York"],
        [None, "Asia/Tokyo"],
        [True, False],
        [True, False],
    )
)


class MovedWorld(World):
    """The clocks of this process show its time."""

    def __init__(self, traveller, start):
        self._traveller = traveller
        super().__init__(start)

    @property
    def elapsed(self):
        return self._elapsed

    @elapsed.setter
    def elapsed(self, seconds):
        self._elapsed = seconds
        self._traveller.move_to(self.start.timestamp() + seconds)


@pytest.fixture
def make_project(tmp_path, monkeypatch):
    """Make a project with these settings, which ends with the test."""
    need_django()
    time_machine = pytest.importorskip("time_machine")
    import django_worlds
    import djangos
    from celery.utils.time import LocalTimezone
    from celery.utils.time import timezone as celerys_zones
    from django.db import connections
    from django.test import override_settings

    let_them_sleep(monkeypatch)
    monkeypatch.setattr("celery_lockbeat.beat.replicas.LOOK_EVERY", 300.0)
    djangos.configure()
    stores = itertools.count()

    def make(use_tz, time_zone, aware, database=None):
        djangos.use(database or djangos.make_sqlite(tmp_path / "db.sqlite3"), "default")
        settings = override_settings(USE_TZ=use_tz, TIME_ZONE=time_zone, DJANGO_CELERY_BEAT_TZ_AWARE=aware)
        settings.enable()
        undone.append(settings.disable)
        # what Celery finds the zone of the process to be, with its name, or, by older releases, without
        vars(celerys_zones)["local"] = ZoneInfo(time_zone) if aware else LocalTimezone()
        traveller = time_machine.travel(0.0, tick=False)
        moved = traveller.start()
        undone.append(traveller.stop)
        simulation = Simulation(
            lambda world: open_store("memory", world, "", tmp_path / f"memory{next(stores)}"),
            lambda start: MovedWorld(moved, start),
        )
        undone.append(simulation.close)
        set_clocks(monkeypatch, simulation)
        return django_worlds.DjangoWorld(simulation, 1)

    undone = [lambda: vars(celerys_zones).pop("local", None), connections["default"].close]
    yield make
    for undo in reversed(undone):
        undo()


def typed(world, seconds):
    """A moment, as it comes from one who has read it off a clock in the project's zone and typed it into the admin."""
    from django.conf import settings
    from django.forms.utils import from_current_timezone

    return from_current_timezone(world.at(seconds).astimezone(ZoneInfo(settings.TIME_ZONE)).replace(tzinfo=None))


def crontab_at(world, seconds, zone):
    """A crontab for the moment at which a clock in its own zone shows this one."""
    from django_celery_beat.models import CrontabSchedule

    then = world.at(seconds).astimezone(ZoneInfo(zone))
    return CrontabSchedule.objects.create(minute=str(then.minute), hour=str(then.hour), timezone=zone)


def let_four_hours_pass(world, time_zone, celery_timezone, enable_utc):
    """Let entries of all sorts run, and see that each does when a clock shows its time; return the row of an hourly one."""
    from celery.schedules import crontab
    from django_celery_beat.models import ClockedSchedule

    celerys_zone = celery_timezone or ("UTC" if enable_utc else time_zone)
    then = world.at(1.75 * HOUR).astimezone(ZoneInfo(celerys_zone))
    static = {"static": {"task": "static", "schedule": crontab(minute=then.minute, hour=then.hour)}}
    settings = {
        "timezone": celery_timezone,
        "enable_utc": enable_utc,
        "result_expires": 3600,
        "beat_max_loop_interval": 300,
        "lockbeat_claim_ttl": 1200,
    }
    zones = dict.fromkeys(["UTC", time_zone, celery_timezone or "Asia/Kolkata"])
    for zone in zones:
        world.create(f"early {zone}", crontab=crontab_at(world, 1.5 * HOUR, zone), task=f"early {zone}")
        world.create(f"late {zone}", crontab=crontab_at(world, 3.5 * HOUR, zone), task=f"late {zone}")
    for name, hours in (("clocked", 1.25), ("clocked later", 3.25)):
        clock = ClockedSchedule.objects.create(clocked_time=typed(world, hours * HOUR))
        world.create(name, clocked=clock, one_off=True, task=name)
    world.create("hourly", 3600, "hourly")
    world.create("starts", 3600, "starts", start_time=typed(world, 0.5 * HOUR))
    world.create("starts later", 3600, "starts later", start_time=typed(world, 2.5 * HOUR))
    world.create("expires", 1200, "expires", expires=typed(world, 0.9 * HOUR))
    world.create("once", 1200, "once", one_off=True)

    world.start(static, **settings)
    world.run(2.1 * HOUR)
    hourly = world.row("hourly")
    world.stop()
    world.simulation.store.store = world.simulation._open_store(world.simulation.world)
    world.start(static, **settings)
    world.run(1.8 * HOUR)

    times = world.simulation.times()
    times.pop("celery.backend_cleanup", None)
    assert {task: [round(at / HOUR, 2) for at in ats] for task, ats in times.items()} == {
        **{f"early {zone}": [1.5] for zone in zones},
        **{f"late {zone}": [3.5] for zone in zones},
        "clocked": [1.25],
        "clocked later": [3.25],
        "hourly": [1, 2, 3],
        "starts": [0.5, 1.5, 2.5, 3.5],
        "starts later": [2.5, 3.5],
        "expires": [0.33, 0.67],
        "once": [0.33],
        "static": [1.75],
    }
    assert not world.row("expires").enabled
    assert not world.row("once").enabled
    assert str(world.row("celery.backend_cleanup").crontab.timezone) == celerys_zone
    return hourly


@pytest.mark.parametrize(("use_tz", "time_zone", "celery_timezone", "enable_utc", "aware"), PROJECTS)
def test_an_entry_runs_when_the_admins_clock_shows_its_time(
    make_project, use_tz, time_zone, celery_timezone, enable_utc, aware
):
    world = make_project(use_tz, time_zone, aware)
    hourly = let_four_hours_pass(world, time_zone, celery_timezone, enable_utc)
    if use_tz or aware:
        assert hourly.last_run_at == pytest.approx(typed(world, 2 * HOUR), abs=timedelta(seconds=1))
    else:
        # as django-celery-beat, which may go on from it, has it there
        assert hourly.last_run_at == pytest.approx(world.at(2 * HOUR).replace(tzinfo=None), abs=timedelta(seconds=1))


@pytest.mark.parametrize("aware", [True, False])
def test_so_it_does_in_postgresql_which_has_a_zone_of_its_own(make_project, aware):
    need_django()
    import djangos
    from django.db import connections
    from postgres import Postgres

    with Postgres(timezone="Asia/Kolkata") as postgres:
        djangos.migrate(djangos.use(postgres.database, "default"))
        world = make_project(False, "America/New_York", aware, postgres.database)
        let_four_hours_pass(world, "America/New_York", None, False)
        world.stop()
        connections["default"].close()

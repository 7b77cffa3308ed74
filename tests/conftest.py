from __future__ import annotations

import itertools
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery import Celery, _state
from hypothesis import settings
from postgres import Postgres
from servers import ForeignServer, Server, need_django
from simulation import Simulation, World, open_store, set_clocks

_names = itertools.count()

# Hundreds of processes are started: where none may keep what it has compiled, each compiles Celery anew, and its start takes
# twice as long.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# a noisy machine is no finding
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "soak" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("soak"):
                item.add_marker(pytest.mark.skip("runs for long: pytest -m soak"))
    items[:] = _by_turns(items)


def _by_turns(items: list[pytest.Item]) -> list[pytest.Item]:
    """Order files so that those that wait for processes run beside those that keep a core busy, the largest first."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    kinds: tuple[list[list[pytest.Item]], list[list[pytest.Item]]] = [], []
    for tests in sorted(files.values(), key=len, reverse=True):
        kinds[any(test.get_closest_marker("processes") for test in tests)].append(tests)
    return [test for pair in itertools.zip_longest(*kinds, fillvalue=[]) for tests in pair for test in tests]


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    if item.get_closest_marker("no_cover"):
        # pytest-cov has two Coverages in a worker of xdist, and to pause the one sets the other going (pytest-cov 7.1)
        sys.settrace(None)
        threading.settrace(None)
    return (yield)


@pytest.fixture(autouse=True)
def no_shared_tasks() -> Iterator[None]:
    """Celery makes each task of an app one of all later apps too: those of a test end with it."""
    finalizers, apps = set(_state._on_app_finalizers), set(_state._apps)
    yield
    _state._on_app_finalizers.intersection_update(finalizers)
    for app in set(_state._apps) - apps:
        # and a later shared task is made one of each app that is still there
        _state._deregister_app(app)


@pytest.fixture(scope="session")
def session_server() -> Iterator[Server]:
    url = os.environ.get("LOCKBEAT_TEST_REDIS")
    with ForeignServer(url) if url else Server() as server:
        yield server


@pytest.fixture
def server(session_server: Server) -> Server:
    """A server without a key in it."""
    with session_server.client() as client:
        client.flushall()
    return session_server


@pytest.fixture
def spare_server() -> Iterator[Server]:
    """A server of this test alone, to be stopped, killed and paused."""
    with Server() as server:
        yield server


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[Postgres]:
    need_django()
    with Postgres() as cluster:
        import djangos

        djangos.migrate(djangos.use(cluster.database))
        yield cluster


@pytest.fixture
def cluster(session_cluster: Postgres) -> Postgres:
    """A PostgreSQL with Django's tables, and nothing of the store in them."""
    tables = session_cluster.query("SELECT tablename FROM pg_tables WHERE tablename LIKE 'lockbeat_%'")
    session_cluster.query(f"TRUNCATE {', '.join(name for (name,) in tables)}")
    return session_cluster


@pytest.fixture(params=["redis", "memory"])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_app(server: Server, tmp_path) -> Iterator[object]:
    """Make Celery apps whose locks live in ``server``, or in a directory of this test."""
    apps: list[Celery] = []

    def make(**settings: object) -> Celery:
        app = Celery(f"app{next(_names)}", broker=server.url, backend=server.url, set_as_current=False)
        app.conf.update(lockbeat_memory_path=str(tmp_path / "memory"), task_default_queue=app.main)
        app.conf.update(settings)
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.close()


@pytest.fixture
def app(make_app, driver: str) -> Celery:
    """An app on each driver."""
    return make_app(lockbeat_driver=driver)


@pytest.fixture
def events(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, object]]]:
    """The events so far, as their JSON lines say them."""
    caplog.set_level(logging.INFO, "celery_lockbeat.events")
    return lambda: [json.loads(r.getMessage()) for r in caplog.records if r.name == "celery_lockbeat.events"]


@pytest.fixture
def simulation(server: Server, driver: str, tmp_path, monkeypatch) -> Iterator[Simulation]:
    """Beats in simulated time, over each store."""
    numbers = itertools.count()

    def open_one(world: World) -> object:
        with server.client() as client:
            client.flushall()
        return open_store(driver, world, server.url, tmp_path / f"memory{next(numbers)}")

    simulation = Simulation(open_one)
    set_clocks(monkeypatch, simulation)
    yield simulation
    simulation.close()

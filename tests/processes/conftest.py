"""The servers of these tests, and fleets of workers and beats that end with the test or the module."""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import forker
from fleet import HERE, Fleet, Witness
from kombu import pools
from postgres import Postgres
from servers import Server, need_django

_numbers = itertools.count()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in [each for each in items if HERE in each.path.parents]:
        item.add_marker("processes")


@pytest.fixture(scope="session", autouse=True)
def heeded_sigint() -> Iterator[None]:
    """A shell's background job ignores SIGINT, and so does all that it starts, unless that is undone before."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def no_forker_left() -> Iterator[None]:
    yield
    forker.end()


@pytest.fixture(scope="module", autouse=True)
def no_open_questions() -> Iterator[None]:
    """A process that is forked from this one in a later test would wait for answers, such as to a ping, that are still due."""
    yield
    pools.reset()


@pytest.fixture(scope="session")
def broker() -> Iterator[Server]:
    """Broker and result backend: what happens to the locks' server does not happen to them."""
    with Server() as server:
        yield server
        gc.collect()  # results unsubscribe when they go, which takes a server


@pytest.fixture(scope="session")
def witness_server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def witness(witness_server: Server) -> Iterator[Witness]:
    witness = Witness(witness_server)
    yield witness
    witness.close()


@pytest.fixture(scope="module")
def locks() -> Iterator[Server]:
    """The locks' server, undisturbed."""
    with Server() as server:
        yield server


@pytest.fixture
def database() -> Iterator[Postgres]:
    """A PostgreSQL of this test alone, with Django's tables."""
    need_django()
    djangos = importlib.import_module("djangos")
    with Postgres() as database:
        djangos.migrate(djangos.use(database.database, "default"))
        yield database


@pytest.fixture
def key() -> str:
    return f"key-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def make_fleet(broker: Server, witness_server: Server, tmp_path: Path) -> Iterator[Any]:
    """Make fleets whose processes end with the test."""
    with contextlib.ExitStack() as stack:

        def make(**settings: object) -> Fleet:
            directory = tmp_path / f"fleet{next(_numbers)}"
            directory.mkdir()
            return stack.enter_context(contextlib.closing(Fleet(broker, witness_server, directory, **settings)))

        yield make


@pytest.fixture(scope="module")
def pair(
    broker: Server, witness_server: Server, locks: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """Two prefork workers, ``a`` and ``b``, that no test of the module harms."""
    directory = tmp_path_factory.mktemp("pair")
    with contextlib.closing(Fleet(broker, witness_server, directory, lockbeat_redis_url=locks.url)) as fleet:
        fleet.workers("a", "b")
        yield fleet

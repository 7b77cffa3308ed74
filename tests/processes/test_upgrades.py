"""A rolling update from each earlier release, and back, while the beats and workers of both are at work.

Seen from outside: by a file that the bodies write, and by the store read past our code.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fleet import HERE
from programs import Program
from releases import COMMITS, lay
from servers import Server, wait_until
from ticks import Book

CLAIM_TTL = 2
#: What noisy cores, on which processes start all the time, may add to a tick.
SLACK = 6
#: Longer than a beat's socket waits for a broker that hangs.
HANGS = 20


class Update:
    """The app, in processes of two releases, and its witness."""

    def __init__(self, directory: Path, old: Path, settings: dict[str, Any]) -> None:
        self.directory, self._old = directory, old
        self._witness = directory / "witness"
        self._witness.touch()
        self._settings = {
            "lockbeat_claim_ttl": CLAIM_TTL,
            "broker_connection_retry_on_startup": True,
            "worker_prefetch_multiplier": 1,
            **settings,
        }
        self.processes: list[Program] = []

    def beat(self, *, old: bool = False) -> Program:
        return self._start("beat", ["--pidfile=", "-l", "INFO"], "has joined the replicas", old=old)

    def worker(self, *, old: bool = False) -> Program:
        name = f"w{len(self.processes)}@tests"
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        return self._start("worker", ["-n", name, "-c", "4", "-l", "INFO", *quiet], f"{name} ready.", old=old)

    def _start(self, kind: str, arguments: list[str], ready: str, *, old: bool) -> Program:
        path = [*([str(self._old)] if old else []), str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        process = Program(
            [sys.executable, "-m", "celery", "-A", "rolling_tasks", kind, *arguments],
            self.directory / f"{kind}{len(self.processes)}",
            self.directory,
            {
                "PYTHONPATH": os.pathsep.join(each for each in path if each),
                "LOCKBEAT_TEST_WITNESS": str(self._witness),
                "LOCKBEAT_TEST_SETTINGS": json.dumps(self._settings),
            },
        )
        self.processes.append(process)
        process.wait_for_log(ready)
        assert (f"celery_lockbeat is {self._old}" in process.log()) == old, "each is of its release"
        return process

    def seen(self, what: str, task: str) -> list[dict[str, Any]]:
        lines = self._witness.read_text().split("\n")[:-1]
        return [line for line in map(json.loads, lines) if (line["what"], line["task"]) == (what, task)]

    def wait_for_more(self, by: Program | None = None, *, count: int = 3) -> None:
        """Wait until so many more ticks have come to their end, at one worker or at any."""

        def ends() -> int:
            return sum(by is None or line["pid"] == by.pid for line in self.seen("leave", "tick"))

        wanted = ends() + count
        wait_until(lambda: ends() >= wanted, 60, f"{count} more ticks")

    def stop(self, *processes: Program) -> None:
        """Ask them to end, as a rolling update does; a worker ends its runs, so its children must not be asked."""
        for process in processes:
            process.process.terminate()
        for process in processes:
            assert process.process.wait(60) == 0

    def close(self) -> None:
        for process in self.processes:
            process.end()
        for process in self.processes:
            # shown where a test has failed
            print(f"---- {process.pid}\n{process.log()[-3000:]}")


def assert_no_tick_is_lost_or_doubled(update: Update) -> None:
    began, ended = (Counter(line["run"] for line in update.seen(what, "tick")) for what in ("enter", "leave"))
    assert began == ended == dict.fromkeys(range(1, max(began) + 1), 1)
    dues = sorted({datetime.fromisoformat(line["due"]) for line in update.seen("enter", "tick")})
    longest = max((later - earlier).total_seconds() for earlier, later in pairwise(dues))
    assert longest < 1 + HANGS + CLAIM_TTL + SLACK


def assert_no_run_is_beside_another(update: Update) -> None:
    for task in ("tick", "short", "long"):
        spans = defaultdict(list)
        for line in [*update.seen("enter", task), *update.seen("leave", task)]:
            spans[line["id"]].append(line["at"])
        ordered = sorted(map(tuple, spans.values()))
        assert all(len(span) == 2 for span in ordered), task
        assert len(ordered) > 3
        assert all(before[1] <= after[0] for before, after in pairwise(ordered)), task


@pytest.fixture
def settings(request: pytest.FixtureRequest, spare_server: Server, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Of each store: the broker is a server of its own."""
    store = request.param
    told: dict[str, Any] = {"broker_url": spare_server.url, "result_backend": spare_server.url}
    if store == "redis":
        with Server() as locks:
            yield {**told, "lockbeat_redis_url": locks.url, "book": {"server": locks}}
    elif store == "memory":
        path = tmp_path / "memory"
        yield {**told, "lockbeat_driver": store, "lockbeat_memory_path": str(path), "book": {"path": path}}
    else:
        database = request.getfixturevalue("database").database
        yield {**told, "lockbeat_driver": store, "test_django_database": database, "book": None}


STORES = ["redis", pytest.param("memory", marks=pytest.mark.soak), pytest.param("database", marks=pytest.mark.soak)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("release", COMMITS)
@pytest.mark.parametrize("settings", STORES, indirect=True)
def test_an_update_and_the_way_back_lose_and_double_no_tick_and_let_no_run_be_beside_another(
    release, settings, spare_server, tmp_path
):
    book = settings.pop("book")
    update = Update(tmp_path, lay(release, tmp_path / release), settings)
    with contextlib.closing(update):
        old_worker, *old_beats = update.worker(old=True), update.beat(old=True), update.beat(old=True)
        update.wait_for_more()
        new_worker, new_beat = update.worker(), update.beat()
        # of both, whoever takes what whoever sends
        update.wait_for_more(by=old_worker)
        update.wait_for_more(by=new_worker)

        update.stop(old_beats[0])
        if book is not None:
            die_with_a_claim(old_beats[1], spare_server, book)
        old_beats[1].kill()
        update.wait_for_more()
        update.stop(old_worker)

        # a release that is taken back
        back = update.beat(old=True)
        update.stop(new_beat)
        update.wait_for_more(by=new_worker)
        update.stop(back)
        with spare_server.client() as broker:
            wait_until(lambda: not broker.llen("celery") + broker.hlen("unacked"), 60, "all has come to its end")
        update.stop(new_worker)
    assert all(process.log().count("Sending due task tick") for process in (*old_beats, new_beat, back))
    assert_no_tick_is_lost_or_doubled(update)
    assert_no_run_is_beside_another(update)


def die_with_a_claim(beat: Program, broker: Server, book: dict[str, Any]) -> None:
    """Kill a beat that has claimed a tick and cannot publish it: one of another release takes it over."""
    with contextlib.closing(Book(**book)) as claims:
        broker.pause()
        try:
            wait_until(lambda: claims.pending(beat.pid), HANGS, "it has a claim in its hands")
            beat.kill()
        finally:
            broker.resume()
        wait_until(lambda: not claims.pending(beat.pid), 30, "another has taken it over")


@pytest.mark.parametrize("kind", ["beat", "worker"])
def test_who_does_not_know_the_format_of_a_later_release_ends_at_its_start_with_one_line(kind, server, tmp_path):
    with server.client() as client:
        client.set("lockbeat:format", "9 7.0.0")
    environment = {
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
        "LOCKBEAT_TEST_SETTINGS": json.dumps({"broker_url": server.url}),
    }
    command = [sys.executable, "-m", "celery", "-A", "rolling_tasks", kind]
    process = Program(command, tmp_path / "output", tmp_path, environment, errors=tmp_path / "errors")
    try:
        assert process.process.wait(60) == 1
    finally:
        process.kill()
    told = (tmp_path / "errors").read_text()
    assert "is kept in format 9, which celery-lockbeat 7.0.0 has begun" in told
    assert "Traceback" not in told

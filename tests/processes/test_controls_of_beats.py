"""Hands on the schedule from outside: commands, and real beats that are killed meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from programs import Program
from servers import Server, wait_until

PROJ = """
import json, os
from celery import Celery
from celery.schedules import crontab

app = Celery("shop")
app.conf.update(
    broker_url=os.environ["URL"],
    lockbeat_redis_url=os.environ["URL"],
    lockbeat_claim_ttl=2.0,
    beat_schedule={
        "second": {"task": "proj.report", "schedule": 1.0},
        "minute": {"task": "proj.report", "schedule": crontab(), "args": (1,)},
    },
)

@app.task
def report(*args, **kwargs):
    pass
"""

#: Of its runs one raises, and the next one's process is killed.
FAILING = (
    PROJ
    + """
import signal
from celery_lockbeat import LockedTask
from celery_lockbeat.schedules import Every

app.conf.beat_schedule = {
    "breaks": {"task": "proj.breaks", "schedule": Every(3, pause_after_failures=3)},
    "works": {"task": "proj.works", "schedule": Every(3600, pause_after_failures=1), "kwargs": {"number": 7}},
}

@app.task(base=LockedTask)
def breaks():
    with open("runs", "a+b") as file:
        file.write(b".")
        number = file.tell()
    if number % 2 == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError(f"run {number}")

@app.task(base=LockedTask)
def works(number):
    assert number > 0, f"{number} is too small"
"""
)


class Project:
    def __init__(self, directory: Path, server: Server, text: str = PROJ) -> None:
        self.directory, self.server = directory, server
        (directory / "proj.py").write_text(text)
        self.environment = {**os.environ, "URL": server.url, "USER": "ann", "LOGNAME": "ann"}

    def run(self, *arguments: str, **more) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "celery", "-A", "proj", "lockbeat", *arguments],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=90,
            **more,
        )

    def told(self, *arguments: str):
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def beat(self, number: int) -> Program:
        command = [sys.executable, "-m", "celery", "-A", "proj", "beat", "-S", "lockbeat", "-l", "INFO", "--pidfile="]
        log = self.directory / f"beat{number}"
        return Program(command, log, self.directory, {"URL": self.server.url})

    def worker(self) -> Program:
        command = [sys.executable, "-m", "celery", "-A", "proj", "worker", "-c", "1", "-l", "INFO", "--without-mingle"]
        return Program(command, self.directory / "worker", self.directory, {"URL": self.server.url})

    def runs(self) -> int:
        file = self.directory / "runs"
        return file.stat().st_size if file.exists() else 0

    def sent(self) -> list[dict]:
        """The headers of all messages of ticks, the oldest first."""
        with self.server.client() as client:
            found = [json.loads(message)["headers"] for message in reversed(client.lrange("celery", 0, -1))]
        return [each for each in found if each["task"] == "proj.report"]

    def of(self, entry: str, kind: str | None = None) -> list[dict]:
        headers = [each["lockbeat"] | {"id": each["id"]} for each in self.sent()]
        return [each for each in headers if each["entry"] == entry and kind in (None, each.get("origin", "schedule"))]


@pytest.fixture
def project(tmp_path, server):
    return Project(tmp_path, server)


@pytest.mark.processes
def test_nothing_of_what_is_paused_is_published_and_a_backfill_is_a_thousand_ticks_through_kills_of_beats(project):
    with contextlib.ExitStack() as stack:
        beats = [project.beat(number) for number in range(3)]
        for beat in beats:
            stack.callback(beat.end)
        wait_until(lambda: len(project.of("second")) >= 2, 60, "beats publish")
        done = project.run("pause", "second", "--note", "the database moves")
        assert (done.returncode, done.stdout) == (0, "'second' is paused, until resumed\n"), done.stderr
        paused_at, before = time.monotonic(), len(project.of("second"))
        # one dies in the middle, and what it has claimed is nobody's
        beats[0].kill()
        until = datetime.now(timezone.utc).replace(second=0, microsecond=0) - timedelta(minutes=5)
        since = until - timedelta(minutes=999)
        span = (since.isoformat(), until.isoformat())
        assert project.told("backfill", "minute", *span, "--dry-run")["count"] == 1000
        asked = project.told("backfill", "minute", *span, "--at-once", "500", "--yes")
        assert (asked["total"], asked["published"], asked["who"].partition("@")[0]) == (1000, 0, "ann")
        for number in range(3, 6):
            beats.append(project.beat(number))
            stack.callback(beats[-1].end)
            reached = len(project.of("minute", "backfill"))
            wait_until(lambda: len(project.of("minute", "backfill")) > min(reached + 100, 990), 90, "it goes on")  # noqa: B023
            beats[number - 2].kill()
        wait_until(lambda: project.told("backfill", "minute") == [], 90, "it is over")
        ticks = project.of("minute", "backfill")
        assert len({each["due"] for each in ticks}) == len({each["id"] for each in ticks}) == 1000
        # a message that was sent twice is so by a beat that was killed just then
        assert len(ticks) <= 1000 + 3 * 8
        assert time.monotonic() - paused_at > 2
        assert len(project.of("second")) == before
        told = project.told("describe", "second")
        assert told["paused"]["note"] == "the database moves"
        assert told["paused"]["passed"] >= 2
        done = project.run("resume", "second", "--catchup", "all")
        assert done.stdout == "'second' is resumed\n"
        wait_until(
            lambda: len(project.of("second", "catchup")) >= min(2, told["paused"]["passed"]), 20, "it catches up"
        )
        wait_until(lambda: len(project.of("second", "schedule")) > before, 20, "it goes on")
    history = project.told("history", "second", "--status", "paused")
    dues = [each["due"] for each in project.of("second", "catchup")]
    assert len(set(dues)) == len(dues) <= 100
    assert {each["who"].partition("@")[0] for each in history} <= {"ann"}


@pytest.mark.processes
def test_an_entry_whose_runs_fail_or_die_in_a_row_is_paused_and_who_runs_it_by_hand_is_told_how_it_ends(
    tmp_path, server
):
    project = Project(tmp_path, server, FAILING)
    with contextlib.ExitStack() as stack:
        worker, *beats = project.worker(), project.beat(0), project.beat(1)
        for each in (worker, *beats):
            stack.callback(each.end)
        # while there is time until the third
        wait_until(lambda: project.runs() == 1, 60, "one has failed")
        done = project.run("run", "works", "--wait")
        assert (done.returncode, "'works' succeeded" in done.stdout) == (0, True), done.stdout + done.stderr
        told = project.run("run", "works", "--kwargs", '{"number": 0}', "--wait", "--json")
        assert (told.returncode, json.loads(told.stdout)["outcome"]["outcome"]) == (1, "failed"), told.stderr
        assert "0 is too small" in json.loads(told.stdout)["outcome"]["reason"]
        wait_until(lambda: project.told("describe", "breaks")["paused"], 60, "it is paused")
        paused = project.told("describe", "breaks")["paused"]
        # Celery says of the second one that it has failed as soon as there is another child, in which the third one fails
        last = ("ValueError: run 3", "its process was killed by SIGKILL")
        notes = [f"3 failures in a row, the last: {each}" for each in last]
        assert (paused["who"], paused["note"] in notes) == ("lockbeat", True), paused
        beats[0].kill()
        wait_until(lambda: project.told("describe", "breaks")["paused"]["passed"] >= 2, 60, "it stays so")
        assert project.runs() == 3
        # what is asked for by hand does not count
        assert project.told("describe", "works")["paused"] is None
        assert project.run("resume", "breaks", "--catchup", "none").returncode == 0
        wait_until(lambda: project.runs() >= 4, 60, "it goes on, and is counted anew")
        assert project.told("describe", "breaks")["paused"] is None
    assert '"entry_paused"' in worker.log()
    history = project.told("history", "breaks")
    assert [each["outcome"] for each in history if each["outcome"] != "paused"][:3] == ["failed", "died", "failed"]

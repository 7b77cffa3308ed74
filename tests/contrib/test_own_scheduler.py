"""The mixin on a scheduler that is neither Celery's nor ours: docs/how-to/own-scheduler.md, as it stands there."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections import Counter

import pytest
from servers import wait_until

import docs

if os.environ.get("CI"):
    import sqlalchemy_celery_beat  # noqa: F401

SessionManager = pytest.importorskip("sqlalchemy_celery_beat.session").SessionManager

EVERY_SECOND = {"task": "t", "schedule": 1.0}


@pytest.fixture
def make_replicas(make_app, server, tmp_path, monkeypatch):
    """Make replicas over one SQLite file, whose messages stay in the broker."""
    scheduler = docs.run("how-to/own-scheduler.md")["LockedDatabaseScheduler"]
    # it makes its tables once per process
    monkeypatch.setattr("sqlalchemy_celery_beat.schedulers.session_manager", SessionManager())
    path = tmp_path / "schedule.db"
    with contextlib.ExitStack() as stack:

        def make(beat_schedule, count=3):
            app = make_app(
                beat_dburi=f"sqlite:///{path}",
                beat_schedule=beat_schedule,
                beat_max_loop_interval=1,
                task_default_queue="queue",
            )
            replicas = [scheduler(app=app) for _ in range(count)]
            for replica in replicas:
                stack.callback(replica.close)
            return replicas

        def rows(query, *args):
            with contextlib.closing(sqlite3.connect(path, timeout=10)) as connection, connection:
                return connection.execute(query, args).fetchall()

        make.rows = rows
        yield make


@pytest.fixture
def sent(server):
    with server.client() as client:

        def sent():
            headers = [json.loads(message)["headers"]["lockbeat"] for message in client.lrange("queue", 0, -1)]
            return Counter((each["entry"], each["run"]) for each in headers)

        yield sent


def run_until(condition, replicas, timeout=20):
    def ticked():
        for replica in replicas:
            replica.tick()
        return condition()

    wait_until(ticked, timeout)


def run_for(seconds, replicas):
    end = time.monotonic() + seconds
    run_until(lambda: time.monotonic() > end, replicas)


def test_replicas_over_one_database_share_their_ticks(make_replicas, sent):
    replicas = make_replicas({"a": EVERY_SECOND, "b": {"task": "u", "schedule": 2.0}})
    run_until(lambda: ("a", 4) in sent(), replicas)
    assert set(sent().values()) == {1}
    runs = Counter(entry for entry, _ in sent())
    for replica in replicas:
        replica.close()
    told = dict(make_replicas.rows("SELECT name, total_run_count FROM celery_periodictask WHERE name IN ('a', 'b')"))
    # a replica that closes last may write the count of a run that it won itself, and not that of another's after it
    assert all(runs[name] - 1 <= told[name] <= runs[name] for name in ("a", "b")), (told, runs)
    assert runs["b"] >= 1


def test_what_is_to_run_once_runs_once_on_all_replicas(make_replicas, sent):
    replicas = make_replicas({"once": {**EVERY_SECOND, "options": {"one_off": True}}, "often": EVERY_SECOND})
    run_until(lambda: ("often", 4) in sent(), replicas)
    assert [run for entry, run in sent() if entry == "once"] == [1]


def test_a_change_in_the_database_reaches_all_replicas(make_replicas, sent):
    replicas = make_replicas({"a": EVERY_SECOND})
    run_until(lambda: ("a", 1) in sent(), replicas)
    make_replicas.rows("UPDATE celery_periodictask SET enabled = 0 WHERE name = 'a'")
    make_replicas.rows("UPDATE celery_periodictaskchanged SET last_update = datetime('now', '+1 minute')")
    run_for(1.2, replicas)
    runs = len(sent())
    run_for(2.5, replicas)
    assert len(sent()) == runs

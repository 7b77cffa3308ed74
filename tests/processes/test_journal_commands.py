"""``history``, ``why``, ``audit`` and ``report`` of real beats and a real worker: one beat is killed, then none is there for a while."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from celery import Celery
from commands import forker, running
from servers import Server, wait_until

from celery_lockbeat import Lock
from celery_lockbeat.journal import read

PROJ = """
import os, time
from celery import Celery
from celery_lockbeat import LockedTask

app = Celery("shop", broker=os.environ["URL"])
app.conf.update(
    beat_scheduler="lockbeat",
    lockbeat_late_after=1,
    task_ignore_result=True,
    beat_schedule={name: {"task": f"proj.{name}", "schedule": 1} for name in ("works", "held", "fails", "plain")},
)

@app.task(base=LockedTask)
def works():
    time.sleep(0.05)

@app.task(base=LockedTask, lock_key="jobs:held")
def held():
    pass

@app.task(base=LockedTask)
def fails():
    raise ValueError("no such\\ncustomer")

@app.task
def plain():
    pass
"""

BEAT = ("celery", "-A", "proj", "beat", "-l", "INFO", "--pidfile=")
WORKER = ("celery", "-A", "proj", "worker", "-c", "2", "-n", "w1@tests", "-l", "INFO")


class Shop:
    """What has happened, and the commands that tell of it."""

    def __init__(self, directory: Path, server: Server) -> None:
        self.directory, self.server = directory, server
        self.app = Celery("shop", broker=server.url, set_as_current=False)
        self.killed = self.stopped = datetime.min.replace(tzinfo=timezone.utc)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = forker.run(["-A", "proj", "lockbeat", *arguments], self.directory, {"URL": self.server.url}, timeout=100)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def told(self, *arguments: str):
        return json.loads(self.run(*arguments, "--json").stdout)

    def has(self, count: int, event: str, since: datetime | None = None) -> bool:
        counts = Counter(each.entry for each in read(self.app, since=since, limit=None) if each.event == event)
        return all(counts[name] >= count for name in ("works", "held", "fails", "plain"))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory):
    directory = tmp_path_factory.mktemp("shop")
    (directory / "proj.py").write_text(PROJ)
    with Server() as server:
        shop = Shop(directory, server)
        with Lock("jobs:held", app=shop.app), running([WORKER, BEAT, BEAT], directory, URL=server.url) as programs:
            wait_until(lambda: shop.has(3, "tick_published"), 60, "they tick")
            programs[2].end()
            shop.killed = datetime.now(timezone.utc)
            wait_until(lambda: shop.has(3, "tick_published", shop.killed), 60, "the other one goes on")
            programs[1].process.terminate()
            programs[1].process.wait(20)
            shop.stopped = stopped = datetime.now(timezone.utc)
            wait_until(lambda: datetime.now(timezone.utc) > stopped + timedelta(seconds=3.5), 20)
            (other := directory / "other").mkdir()
            (other / "proj.py").write_text(PROJ)
            with running([BEAT], other, URL=server.url):
                wait_until(lambda: shop.has(1, "tick_missed"), 60, "it tells what was missed")
                wait_until(lambda: shop.has(3, "tick_published", stopped), 60, "it ticks")
                yield shop
        shop.app.close()


def test_history_tells_what_became_of_each_tick_and_why(shop):
    ticks = shop.told("history")
    outcomes = {entry: {each["outcome"] for each in ticks if each["entry"] == entry} for entry in ("held", "plain")}
    assert outcomes == {"held": {"skipped", "missed", "queued"} & outcomes["held"], "plain": {"published", "missed"}}
    skipped = [each for each in ticks if each["outcome"] == "skipped"]
    assert {(each["reason"], each["worker"]) for each in skipped} == {("locked", "w1@tests")}
    assert all(str(os.getpid()) in each["holder"] for each in skipped)
    assert all(each["beat"] for each in ticks)

    done = shop.run("history", "fails", "--status", "failed", "--limit", "2")
    zone, head, *lines = done.stdout.splitlines()
    assert zone == "times are UTC, the app's timezone"
    assert head.split() == ["due", "late", "started", "took", "outcome", "why", "worker", "beat"]
    assert len(lines) == 2
    assert all(line.split()[-7:-1] == ["failed", "ValueError:", "no", "such", "customer", "w1@tests"] for line in lines)

    wrong = shop.run("history", "work")
    assert wrong.returncode == 1
    assert "'work' is no entry and no task that the app or its journal knows; near it: works" in wrong.stderr
    wrong = shop.run("history", "--since", "yesterday")
    assert wrong.returncode == 1
    assert "allowed: 90s, 10m, 24h, 7d, or a time in ISO 8601" in wrong.stderr


def test_why_says_in_one_sentence_what_became_of_a_tick(shop):
    ticks = shop.told("history")

    def sentence(entry: str, outcome: str) -> str:
        tick = next(each for each in ticks if (each["entry"], each["outcome"]) == (entry, outcome))
        done = shop.run("why", entry, "--at", tick["due"])
        assert (done.returncode, len(done.stdout.splitlines())) == (0, 1), done
        return done.stdout

    assert "by w1@tests: its lock 'jobs:held' was held by" in sentence("held", "skipped")
    assert "and succeeded on w1@tests at" in sentence("works", "succeeded")
    assert "and failed on w1@tests at" in sentence("fails", "failed")
    assert "what its run did is not in the journal, for proj.plain is no LockedTask" in sentence("plain", "published")
    assert "nobody published them in time" in sentence("works", "missed")

    early = shop.run("why", "works", "--at", "2h ago")
    assert early.returncode == 1
    assert "is not known: the journal reaches back to" in early.stdout
    assert "near it: works" in shop.run("why", "wroks", "--at", "1m ago").stderr


def test_report_counts_what_was_missed_and_fits_into_a_mail(shop):
    done = shop.run("report", "--since", "1h")
    assert done.returncode == 1  # some were missed
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "\x1b" not in done.stdout
    entries = {each["entry"]: each for each in shop.told("report")["entries"]}
    assert set(entries) == {"works", "held", "fails", "plain"}
    assert all(each["missed"] >= 1 for each in entries.values())
    assert (entries["held"]["run"], entries["plain"]["run"]) == (0, 0)
    assert entries["held"]["overlaps"] == entries["held"]["skipped"] >= 3
    assert entries["fails"]["failed"] == entries["fails"]["run"] >= 3
    assert entries["works"]["took"]["p50"] >= 0.05


def test_audit_adds_up_but_for_what_the_killed_beat_took_along_and_finds_what_is_taken_away(shop):
    def gaps():
        told = shop.told("audit", "--since", "1h")
        for each in told["entries"]:
            outcomes = ("succeeded", "failed", "skipped", "died", "running", "queued", "published", "missed")
            rest = each["waiting"] + each["unknown"] + each["unaccounted"]
            assert each["due"] == sum(each[name] for name in outcomes) + rest
        return [
            (each["entry"], each["count"], each["why"].partition(":")[0])
            for each in told["gaps"]
            if not _is_of(shop.killed, each)
        ]

    assert gaps() == []

    def on_time():
        records = read(shop.app, entry="plain", since=shop.stopped, limit=None)
        return [each for each in records if each.event == "tick_published" and each.late < 1]

    wait_until(lambda: len(on_time()) >= 8, 60, "some ticks more")
    # of a task that tells nothing of its runs, long after the kill
    lost = on_time()[2]
    with shop.server.client() as client:
        (stream,) = [key for key in client.scan_iter() if client.type(key) in ("stream", b"stream")]
        assert client.xdel(stream, lost.position) == 1
    assert gaps() == [("plain", 1, f"run {lost.run}")]
    done = shop.run("audit", "--since", "1h")
    assert done.returncode == 1
    assert "gap: plain, from " in done.stdout
    assert "it does not add up" in done.stdout


def _is_of(killed: datetime, gap: dict) -> bool:
    """Whether a gap is of what a kill may cost: what was not written yet, a second of it, or some on a busy machine."""
    return datetime.fromisoformat(gap["from"]) <= killed <= datetime.fromisoformat(gap["until"]) + timedelta(seconds=5)

"""``watch`` at a terminal of its own, and ``timeline``, of a real beat and a real worker: a child dies, a slow run overlaps its ticks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import psutil
import pytest
from celery import Celery
from commands import forker, running
from screens import Seat
from servers import Server, wait_until

from celery_lockbeat.cli.watch import loop
from celery_lockbeat.journal import read
from celery_lockbeat.stores import home_store_of
from celery_lockbeat.stores.base import EntryState

PROJ = """
import os, time
from celery import Celery
from celery_lockbeat import LockedTask

app = Celery("shop", broker=os.environ["URL"])
app.conf.update(
    beat_scheduler="lockbeat",
    task_ignore_result=True,
    beat_schedule={
        # a kill takes the last half second of its child along, so not each second
        name: {"task": f"proj.{name}", "schedule": 5 if name == "dies" else 1}
        for name in ("works", "slow", "fails", "dies")
    },
)
many = int(os.environ.get("MANY", "0"))
app.conf.beat_schedule |= {f"entry-{n:04}": {"task": "proj.works", "schedule": 60} for n in range(many)}

@app.task(base=LockedTask)
def works():
    time.sleep(0.05)

@app.task(base=LockedTask, lock_key="jobs:slow")
def slow():
    time.sleep(2.5)

@app.task(base=LockedTask)
def fails():
    raise ValueError("no <such> customer")

@app.task(base=LockedTask)
def dies():
    os.kill(os.getpid(), 9)

if "BREAK" in os.environ:
    from celery_lockbeat.cli.watch.view import View
    frames, frame = [], View.frame

    def broken(*arguments):
        frames.append(1)
        if len(frames) > 2:
            raise RuntimeError("it is broken")
        return frame(*arguments)

    View.frame = broken
"""

LOCKBEAT = [sys.executable, "-m", "celery", "-A", "proj", "lockbeat"]
BEAT = ("celery", "-A", "proj", "beat", "-l", "INFO", "--pidfile=")
WORKER = ("celery", "-A", "proj", "worker", "-c", "3", "-n", "w1@tests", "-l", "INFO")


class Shop:
    """A beat and a worker that have done something of each kind."""

    def __init__(self, directory: Path, server: Server) -> None:
        self.directory, self.server = directory, server

    def watch(self, *arguments: str, columns: int = 80, lines: int = 24, **environment: str) -> Seat:
        environment = {"URL": self.server.url, **environment}
        return Seat([*LOCKBEAT, "watch", *arguments], self.directory, environment, columns, lines)

    def run(self, *arguments: str, url: str | None = None) -> subprocess.CompletedProcess[str]:
        return forker.run(["-A", "proj", "lockbeat", *arguments], self.directory, {"URL": url or self.server.url})


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    directory = tmp_path_factory.mktemp("shop")
    (directory / "proj.py").write_text(PROJ)
    with Server() as server:
        app = Celery("shop", broker=server.url, set_as_current=False)

        def has_all() -> bool:
            seen = {(each.entry, each.status) for each in read(app, limit=None)}
            ends = [
                ("works", "success"),
                ("slow", "success"),
                ("slow", "skipped"),
                ("fails", "failed"),
                ("dies", "died"),
            ]
            return seen.issuperset(ends)

        with running([WORKER, BEAT], directory, URL=server.url):
            wait_until(has_all, 60, "one of each kind has happened")
            app.close()
            yield Shop(directory, server)


def line_of(text: str, word: str) -> str:
    return next(line for line in text.splitlines() if word in line)


def test_what_comes_just_after_a_frame_is_shown_soon(monkeypatch):
    frames, waits = [], []
    terminal = SimpleNamespace(noted=[], wants_stop=False, open=list, close=list, ring=list)

    def wait(seconds):
        waits.append(seconds)
        if len(waits) > 1:  # the first is ended by what comes
            time.sleep(min(seconds, 1.0))
        terminal.noted = [15] if len(waits) == 3 else []
        return []

    terminal.wait = wait
    feed = SimpleNamespace(start=list, end=list, bring=lambda _: len(waits) == 1)
    screen = SimpleNamespace(open=list, close=list, has_changed=bool, draw=lambda: frames.append(1))
    monkeypatch.setattr(loop, "Terminal", lambda _: terminal)
    monkeypatch.setattr(loop, "Feed", lambda *_: feed)
    monkeypatch.setattr(loop, "_Screen", lambda _: screen)
    monkeypatch.setattr(loop, "sys", SimpleNamespace(stdin=SimpleNamespace(fileno=int)))
    assert loop.look_on(None, None, SimpleNamespace(paused=False), 60.0) == 128 + 15
    assert len(frames) == 2
    assert waits[1] <= loop.AT_MOST_EVERY < waits[0]
    assert waits[2] > 1.0  # and then it waits for more


def test_the_view_answers_keys_and_survives_another_size(shop):
    with shop.watch() as seat:
        text = seat.wait_for("newest events", " works ", " slow ", "w1@tests", "jobs:slow")
        assert len(text.splitlines()) == 24
        assert "D" in line_of(text, " dies ")
        assert "F" in line_of(text, " fails ")
        assert "100%" in line_of(text, "##########")
        seat.press("sss")
        seat.wait_for("sort: last failure")
        seat.press("/fail")
        seat.wait_for("1 found")
        seat.press("\r\r")
        seat.wait_for("what became of it", "ValueError: no <such> customer", "The tick of 'fails' at")
        seat.resize(140, 40)
        seat.wait_for("what became of it", "ValueError: no <such> customer")
        seat.press("\x1b")
        seat.wait_for("newest events", "took", "failed")
        assert "works " not in line_of(seat.screen.text(), ">fails")
        seat.resize(24, 5)
        seat.wait_for("q quit")
        seat.resize(80, 24)
        seat.press("\x1b")
        seat.wait_for(" works ", "newest events")
        seat.press("p")
        paused = seat.wait_for("[paused]", "p go on")  # the last line of the frame too
        until = time.monotonic() + 2.5
        wait_until(lambda: time.monotonic() > until, 10)
        assert seat.read() == paused
        seat.press("p")
        seat.wait_without("[paused]")
        seat.press("q")
        assert seat.wait() == 0
        assert seat.is_restored()
        assert "Traceback" not in seat.written


@pytest.mark.parametrize(
    ("ends", "status"),
    [("\x03", 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["ctrl-c", "SIGTERM", "SIGHUP"],
)
def test_whatever_ends_it_the_terminal_is_as_it_was(shop, ends, status):
    with shop.watch() as seat:
        seat.wait_for("newest events")
        assert not seat.is_restored()
        seat.press(ends) if isinstance(ends, str) else os.kill(seat.process.pid, ends)
        assert seat.wait() == status
        assert seat.is_restored()


def test_an_exception_leaves_the_terminal_as_it_was_and_is_told(shop):
    with shop.watch(BREAK="1") as seat:
        seat.wait_for("newest events")
        assert seat.wait() == 1
        assert seat.is_restored()
        assert "RuntimeError: it is broken" in seat.written


def test_ctrl_z_gives_the_terminal_back_and_fg_takes_it_again(shop):
    with shop.watch() as seat:
        seat.wait_for("newest events")
        seat.press("\x1a")
        wait_until(lambda: psutil.Process(seat.process.pid).status() == psutil.STATUS_STOPPED, 20, "it stops")
        seat.read()
        assert seat.is_restored()
        seat.process.send_signal(signal.SIGCONT)
        wait_until(lambda: seat.read() and seat.screen.is_alternate, 20, "it goes on")
        seat.press("q")
        assert seat.wait() == 0
        assert seat.is_restored()


def test_a_store_that_is_away_is_said_and_caught_up_with(shop):
    with shop.watch() as seat:
        seat.wait_for("newest events", " works ")
        shop.server.pause()
        try:
            seat.wait_for("[no answer for", "does not answer", timeout=40)
            seat.press("?")  # keys are answered all the same
            seat.wait_for("any key goes back")
            seat.press("?")
        finally:
            shop.server.resume()
        seat.wait_without("[no answer for", timeout=40)
        seat.wait_for("newest events", " works ")
        seat.press("q")
        assert seat.wait() == 0


def test_one_frame_goes_into_a_pipe_and_no_view_does(shop):
    done = shop.run("watch", "--once")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24
    assert "\x1b" not in done.stdout
    assert "newest events" in done.stdout
    done = shop.run("watch")
    assert (done.returncode, done.stdout) == (2, "")
    assert "history --json" in done.stderr
    done = shop.run("watch", "--once", url="redis://:secret@127.0.0.1:1/0")
    assert done.returncode == 1
    assert "does not answer" in done.stderr
    assert "secret" not in done.stderr


def test_the_view_of_a_thousand_entries_takes_little_of_a_core(tmp_path):
    (tmp_path / "proj.py").write_text(PROJ)
    with Server() as server:
        app = Celery("shop", broker=server.url, set_as_current=False)
        store, names = home_store_of(app), [f"entry-{number:04}" for number in range(1000)]
        state = EntryState(1, "2026-03-01T00:00:00+00:00")
        store.beats.join("shop", "beat-1")
        store.beats.list_entries("shop", "beat-1", [(name, state) for name in names], complete=True)
        written = 0

        def write(count: int) -> None:
            nonlocal written
            texts = []
            for number in range(written, written + count):
                fields = {
                    "id": f"i{number}",
                    "task": "proj.works",
                    "entry": names[number % 1000],
                    "host": "beat-1",
                    "late": 0.1,
                }
                texts += [json.dumps({"e": "tick_published", "run": number, **fields})]
                texts += [json.dumps({"e": "task_succeeded", "x": f"x{number}", "ms": 12, **fields, "host": "w1"})]
            written += count
            assert store.journal.append("shop", f"b{written}", texts, keep=10_000)

        for _ in range(20):
            write(200)
        with Shop(tmp_path, server).watch(columns=140, lines=40, MANY="1000") as seat:
            seat.wait_for("1005 entries", "entry-0003", "newest events")
            process, settled = psutil.Process(seat.process.pid), time.monotonic() + 3
            wait_until(lambda: seat.read() and time.monotonic() > settled, 20)
            before, began = process.cpu_times(), time.monotonic()
            while (took := time.monotonic() - began) < 8:
                write(9)  # a thousand entries that are due each minute
                seat.read()
                time.sleep(0.5)
            after = process.cpu_times()
            share = (after.user + after.system - before.user - before.system) / took
            # it may take 5 %: the rest is for a machine that is slow just now
            assert share < 0.10, f"{share:.1%} of a core"
            seat.press("q")
            assert seat.wait() == 0
        app.close()


def test_the_timeline_is_text_or_a_picture_or_a_page(shop, tmp_path):
    done = shop.run("timeline", "--since", "10m")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines()[1:])) <= 80
    assert "F" in line_of(done.stdout, "fails")
    assert "D" in line_of(done.stdout, "dies")
    assert "s" in line_of(done.stdout, "slow").removeprefix("slow")
    for name in ("t.svg", "t.html"):
        done = shop.run("timeline", "--since", "10m", "--output", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
        assert "entries" in done.stdout
    picture = ET.fromstring((tmp_path / "t.svg").read_bytes())
    titles = [each.text or "" for each in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert any("ValueError: no <such> customer" in title for title in titles)
    assert any("killed by SIGKILL" in title for title in titles)
    assert "<svg" in (tmp_path / "t.html").read_text()

"""The tutorial, done as it stands there: three beats, of which two are killed, and each command that it names."""

from __future__ import annotations

import re
import shlex
import sys
import urllib.request
from pathlib import Path

import pytest
from commands import forker, running
from programs import Program
from servers import Server, free_port, wait_until

from docs import DOCS, python_of

PAGE = (DOCS / "tutorial.md").read_text("utf-8")
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.startswith("celery ")
]


@pytest.mark.timeout(240)
def test_the_tutorial_shows_what_it_says(spare_server: Server, tmp_path: Path):
    (tmp_path / "tasks.py").write_text(python_of("tutorial.md").replace("redis://localhost:6379/0", spare_server.url))
    (beat,) = (each for each in COMMANDS if "beat" in each)
    (worker,) = (each for each in COMMANDS if "worker" in each)
    looks = [each for each in COMMANDS if "lockbeat" in each]
    assert [each[4] for each in looks] == ["status", "web", "watch", "history", "timeline", "why", "audit", "doctor"]
    page = looks.pop(1)
    with running([beat, beat, beat, worker], tmp_path) as (first, second, third, log):

        def ended(task: str) -> int:
            return len(re.findall(rf'"event":"task_succeeded".*"task_name":"{task}"', log.log()))

        assert all("has joined the replicas" in wait_for(each, "has joined the replicas") for each in (first, second))
        wait_until(lambda: ended("sync") and '"reason":"locked"' in log.log(), 60, "a run and a skip")
        first.kill()
        second.kill()
        before = ended("heartbeat")
        wait_until(lambda: ended("heartbeat") >= before + 8, 40, "the last beat does all of it")
        assert third.process.poll() is None
        told = {look[4]: told_by(look, tmp_path) for look in looks}
        told["web"] = shown_by(page, tmp_path)
    assert "sync" in told["history"]
    assert "heartbeat" in told["timeline"]
    assert "The tick of 'sync' at" in told["why"]
    assert "heartbeat" in told["watch"]
    assert "heartbeat" in told["web"]


def wait_for(process, text: str) -> str:
    process.wait_for_log(text)
    return process.log()


def shown_by(command: list[str], directory: Path) -> str:
    """What is to be seen on the page."""
    port = str(free_port())
    page = Program([sys.executable, "-m", *command, "--port", port], directory / "page", directory, {})
    try:
        page.wait_for_log(f"http://127.0.0.1:{port}/")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
            return answer.read().decode()
    finally:
        page.end()


def told_by(command: list[str], directory: Path) -> str:
    done = forker.run(command[1:], directory, {"COLUMNS": "100"})
    # these two judge: a kill has taken records along, this Redis has no persistence
    assert done.returncode in ((0, 1) if command[4] in ("audit", "doctor") else (0,)), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout

"""A worker whose log is read in a terminal, and one whose log goes elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from celery import Celery
from servers import wait_until

APP = """
from celery import Celery
from celery_lockbeat import LockedTask

app = Celery("seen", broker={url!r}, backend={url!r})

@app.task(base=LockedTask, name="sync")
def sync():
    pass
"""


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_each_run_is_one_short_line_at_a_terminal_and_json_elsewhere(broker, tmp_path, key, terminal):
    (tmp_path / "seen.py").write_text(APP.format(url=broker.url))
    ours, theirs = pty.openpty() if terminal else os.pipe()
    command = [sys.executable, "-m", "celery", "-A", "seen", "worker", "-l", "INFO", "-c", "1", "-Q", key]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    worker = subprocess.Popen(
        [*command, "--without-gossip", "--without-mingle"],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    log = ""

    def says(text: str) -> bool:
        nonlocal log
        with contextlib.suppress(BlockingIOError):
            log += os.read(ours, 65536).decode()
        return text in log

    client = Celery("client", broker=broker.url, backend=broker.url, set_as_current=False)
    try:
        wait_until(lambda: says("ready."), 60, "the worker is ready")
        client.send_task("sync", queue=key).get(timeout=20)
        wait_until(lambda: says("Task sync[") and says("succeeded in 0."), message="Celery says so")
        told = [line.partition("] ")[2] for line in log.splitlines() if "sync" in line and "Task sync[" not in line]
        if terminal:
            [line] = told
            assert line.startswith("sync succeeded in ")
        else:
            events = [json.loads(line)["event"] for line in told if line.startswith("{")]
            assert events == ["task_started", "task_succeeded", "task_finished"]
    finally:
        client.close()
        worker.terminate()
        worker.wait(20)
        os.close(ours)

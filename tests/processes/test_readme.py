"""The README's own example, run as it stands there, does what the README says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from servers import Server, wait_until

README = (Path(__file__).parent.parent.parent / "README.md").read_text()

pytestmark = pytest.mark.processes


def test_the_readmes_example_runs_and_skips_the_ticks_meanwhile(spare_server: Server, tmp_path: Path):
    (source,) = re.findall(r"```python\n(# tasks\.py\n.*?)```", README, re.DOTALL)
    commands = re.findall(r"^celery -A tasks [^#\n]*", README, re.MULTILINE)
    assert len(commands) == 2
    (tmp_path / "tasks.py").write_text(source.replace("redis://localhost:6379/0", spare_server.url))
    processes = []
    try:
        for number, command in enumerate(commands):
            with (tmp_path / f"log{number}").open("wb") as log:
                arguments = [sys.executable, "-m", *command.split()]
                processes.append(
                    subprocess.Popen(arguments, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
                )
        worker_log = tmp_path / "log1"

        def told(event: str) -> bool:
            return f'"event":"{event}"' in worker_log.read_text()

        wait_until(lambda: told("task_succeeded") and told("task_skipped"), 60, "a run and a skip")
        assert '"reason":"locked","holder":"celery@' in worker_log.read_text()
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

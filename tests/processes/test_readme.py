"""The README's own example, run as it stands there, does what the README says."""

from __future__ import annotations

import re
from pathlib import Path

from commands import running
from servers import Server, wait_until

README = (Path(__file__).parent.parent.parent / "README.md").read_text()


def test_the_readmes_example_runs_on_two_beats_and_skips_the_ticks_meanwhile(spare_server: Server, tmp_path: Path):
    (source,) = re.findall(r"```python\n(# tasks\.py\n.*?)```", README, re.DOTALL)
    beat, worker = (command.split() for command in re.findall(r"^celery -A tasks [^#\n]*", README, re.MULTILINE))
    (tmp_path / "tasks.py").write_text(source.replace("redis://localhost:6379/0", spare_server.url))
    with running([beat, beat, worker], tmp_path) as (first, second, log):

        def ticks(event: str) -> list[str]:
            return re.findall(rf'"event":"{event}".*"task_name":"tasks\.sync_report".*"tick":"([^"]+)"', log.log())

        wait_until(lambda: ticks("task_succeeded") and ticks("task_skipped"), 60, "a run and a skip")
        assert '"reason":"locked","holder":"celery@' in log.log()
        first.kill()
        before = len(ticks("task_finished"))
        wait_until(lambda: len(ticks("task_finished")) >= before + 3, 30, "ticks of the other beat")
        assert second.process.poll() is None
    # each tick once
    assert len(ticks("task_started")) == len(set(ticks("task_started"))) > 3

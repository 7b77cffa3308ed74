"""Commands that users are told to run, run as they stand there."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from programs import Program


@contextlib.contextmanager
def running(commands: Sequence[Sequence[str]], directory: Path, **environment: str) -> Iterator[list[Program]]:
    """Run each ``celery ...`` in ``directory`` until the block ends."""
    with contextlib.ExitStack() as stack:
        started = []
        for number, arguments in enumerate(commands):
            assert arguments[0] == "celery"
            log = directory / f"log{number}"
            log.unlink(missing_ok=True)  # of those that have been run there before
            started.append(Program([sys.executable, "-m", *arguments], log, directory, environment))
            stack.callback(started[-1].end)
        yield started


class Forker:
    """Runs ``celery ...`` to its end, each time in a process of its own (see forked)."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(
        self, arguments: Sequence[str], directory: Path, environment: Mapping[str, str], timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """What ``python -m celery`` with these arguments comes to; ``environment`` is added to this process' own."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, Path(__file__).with_name("forked.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        with tempfile.TemporaryDirectory() as written:
            stdout, stderr = Path(written, "stdout"), Path(written, "stderr")
            request = {
                "arguments": list(arguments),
                "directory": str(directory),
                "environment": {**os.environ, **environment},
                "stdout": str(stdout),
                "stderr": str(stderr),
            }
            print(json.dumps(request), file=self._process.stdin, flush=True)
            if not select.select([self._process.stdout], [], [], timeout)[0]:
                self.end()
                raise subprocess.TimeoutExpired(list(arguments), timeout, stdout.read_text(), stderr.read_text())
            status = int(self._process.stdout.readline())
            return subprocess.CompletedProcess(list(arguments), status, stdout.read_text(), stderr.read_text())

    def end(self) -> None:
        """End it, with what it runs."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()
            self._process = None


forker = Forker()

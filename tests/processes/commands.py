"""Commands that users are told to run, run as they stand there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path


class Command:
    """One ``celery ...``, in a session of its own."""

    def __init__(self, arguments: Sequence[str], log: Path, directory: Path, environment: dict[str, str]) -> None:
        assert arguments[0] == "celery"
        self._log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=directory,
                env={**os.environ, **environment},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def end(self) -> None:
        self.kill(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()


@contextlib.contextmanager
def running(commands: Sequence[Sequence[str]], directory: Path, **environment: str) -> Iterator[list[Command]]:
    """Run each in ``directory`` until the block ends."""
    with contextlib.ExitStack() as stack:
        started = []
        for number, arguments in enumerate(commands):
            started.append(Command(arguments, directory / f"log{number}", directory, environment))
            stack.callback(started[-1].end)
        yield started

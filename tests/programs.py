"""Programs that tests and benchmarks start: each in a session of its own, with what it writes in a file, ended by its id."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from servers import wait_until


class Program:
    """One of them, with its children. ``errors``: where its stderr goes, if not to where its stdout does."""

    def __init__(
        self,
        command: Sequence[str],
        output: Path,
        directory: Path,
        environment: Mapping[str, str],
        *,
        errors: Path | None = None,
    ) -> None:
        self._output = output
        with output.open("ab") as out, (errors or output).open("ab") as err:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                env={**os.environ, **environment},
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def log(self) -> str:
        return self._output.read_text(errors="replace")

    def wait_for_log(self, text: str, timeout: float = 60) -> None:
        def is_there() -> bool:
            log = self.log()
            assert text in log or self.process.poll() is None, f"it ended: {log[-2000:]}"
            return text in log

        wait_until(is_there, timeout, f"it says {text!r}")

    def signal_all(self, number: int) -> None:
        """Signal the whole session: itself and its children, orphans too."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """SIGKILL the whole session, unless it has ended: the id may be another's by then."""
        if self.process.poll() is None:
            self.signal_all(signal.SIGKILL)
            self.process.wait()

    def end(self) -> None:
        """SIGTERM the whole session, and kill what does not end."""
        if self.process.poll() is None:
            self.signal_all(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()

"""Commands that users are told to run, run as they stand there."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
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

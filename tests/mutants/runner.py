"""Apply a mutant to a copy of the product, and see whether the tests that should notice it do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .listed import Mutant

ROOT = Path(__file__).parent.parent.parent

#: Seconds for the tests of one mutant: one that hangs is noticed, too.
LONGEST = 240


def apply(mutant: Mutant, root: Path) -> None:
    """Make the product in ``root`` the mutant."""
    path = root / "celery_lockbeat" / mutant.file
    text = path.read_text("utf-8")
    found = text.count(mutant.old)
    if found != 1:
        raise LookupError(f"{mutant.name!r}: {mutant.old!r} stands {found} times in {mutant.file}, not once")
    path.write_text(text.replace(mutant.old, mutant.new), "utf-8")


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the product, its tests, and what these run of the documentation."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as directory:
        root = Path(directory)
        for name in ("celery_lockbeat", "docs", "tests"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.png", "_build"))
        shutil.copy(ROOT / "setup.cfg", root)
        yield root


def run_tests(root: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run tests there, until one fails; returns pytest's status and output."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]
    # -n 0 from here wins over that of setup.cfg; the copy comes before the installed product, in child processes too
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LONGEST,
        )
    except subprocess.TimeoutExpired as exc:
        return 1, f"the tests hang: {exc}"
    return done.returncode, done.stdout


def verdict(mutant: Mutant) -> tuple[str, float, str]:
    """``killed``, ``survived`` or ``error`` (no test could tell), the seconds it took, and what pytest said."""
    started = time.monotonic()
    with copied() as root:
        apply(mutant, root)
        status, output = run_tests(root, mutant.tests)
    verdict = {0: "survived", 1: "killed"}.get(status, "error")
    return verdict, time.monotonic() - started, output


def control(mutants: Sequence[Mutant]) -> tuple[int, str]:
    """The same tests without a mutant: they must pass, or their failing says nothing."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    with copied() as root:
        status, output = run_tests(root, tests)
        where = subprocess.run(
            [sys.executable, "-c", "import celery_lockbeat; print(celery_lockbeat.__file__)"],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        if not Path(where).is_relative_to(root):
            raise RuntimeError(f"the tests would not see the copy, but {where}")
    return status, output

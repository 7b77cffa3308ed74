"""Celery's own integration tests give the same results with locked tasks, each run on a key of its own, as without.

    python -m pytest -n 0 -m soak tests/soak

Some twenty minutes, most of them waits. Celery's source distribution of the installed version is fetched by pip, and nothing of it is built or
installed: its tests run against the Celery that is there, on a Valkey and a worker with a pool of processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import celery
import psutil
import pytest
from servers import Server

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SUITE = ("t/integration/test_canvas.py", "t/integration/test_tasks.py")

#: Celery marks most of its integration tests as flaky, and runs them up to six times; so those that differ are tried again.
TRIES = 5

Outcomes = dict[str, str]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Celery's tests, without the Celery beside them, which would be in the way of the installed one."""
    directory = tmp_path_factory.mktemp("celery")
    what = [f"celery=={celery.__version__}", "--no-deps", "--no-binary", "celery", "--no-build-isolation"]
    fetch = [sys.executable, "-m", "pip", "download", *what, "--dest", str(directory)]
    fetched = subprocess.run(fetch, capture_output=True, text=True, timeout=300, check=False)
    if fetched.returncode:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"pip cannot fetch Celery's source: {fetched.stderr}")
    (archive,) = directory.glob("celery-*.tar.gz")
    with tarfile.open(archive) as tar:
        root = archive.name.removesuffix(".tar.gz")
        names = (f"{root}/t/", f"{root}/pyproject.toml")
        tar.extractall(directory, [each for each in tar.getmembers() if each.name.startswith(names)], filter="data")
    return directory / root


def outcomes_of(source: Path, tests: Iterable[str], *, locked: bool) -> Outcomes:
    """Run Celery's tests; the outcome of each, and of each of its subtests."""
    noted, log = (source / f"{what}-{'locked' if locked else 'plain'}" for what in ("outcomes", "log"))
    noted.unlink(missing_ok=True)
    with Server() as server:
        settings = {
            "TEST_BROKER": server.url,
            "TEST_BACKEND": server.url,
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(server.port),
            "LOCKBEAT_SOAK_LOCKED": str(int(locked)),
            "LOCKBEAT_SOAK_OUTCOMES": str(noted),
            "PYTHONPATH": os.pathsep.join(map(str, (HERE, ROOT))),
            "PYTEST_ADDOPTS": "",
        }
        plugins = ["-p", "celery.contrib.pytest", "-p", "locked_by_id", "-p", "no:ddtrace", "-p", "no:cacheprovider"]
        with log.open("w") as told:
            pytest_ = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-q", *plugins, *tests],
                cwd=source,
                env={**os.environ, **settings},
                stdout=told,
                stderr=told,
                start_new_session=True,
            )
            try:
                pytest_.wait(timeout=3600)
            finally:
                end(pytest_)
    lines = [json.loads(line) for line in noted.read_text().splitlines()] if noted.exists() else []
    runs = [line["run"] for line in lines if "run" in line]
    assert any(runs) is locked, log.read_text()[-5000:]
    outcomes: Outcomes = {}
    for line in lines:
        if "test" in line:
            outcome = f"{line['test']} ({line['when']})"
            # subtests of one test may have one name
            turn = sum(each.partition(" #")[0] == outcome for each in outcomes if each.startswith(outcome))
            outcomes[f"{outcome} #{turn}" if turn else outcome] = line["outcome"]
    return outcomes


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process, and the children of its worker's pool."""
    for each in [*psutil.Process(process.pid).children(recursive=True), process] if process.poll() is None else ():
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


def both(source: Path, tests: Iterable[str]) -> tuple[Outcomes, Outcomes]:
    """The outcomes without locks and with, at the same time: most of it is waiting."""
    tests = list(tests)
    with ThreadPoolExecutor(2) as threads:
        halves = [threads.submit(outcomes_of, source, tests, locked=locked) for locked in (False, True)]
        plain, locked = (half.result() for half in halves)
    return plain, locked


def node_of(outcome: str) -> str:
    return outcome.partition(" ")[0]


@pytest.mark.soak
@pytest.mark.processes
@pytest.mark.timeout(7200)
def test_celerys_own_tests_of_canvases_and_tasks_give_the_same_results_with_locked_tasks(source, record_property):
    plain, locked = both(source, SUITE)
    record_property("plain", _counts(plain))
    record_property("locked", _counts(locked))
    print(f"without: {_counts(plain)}; with: {_counts(locked)}")
    assert len(plain) > 300, (source / "log-plain").read_text()[-5000:]
    for _ in range(TRIES):
        differ = _differ(plain, locked)
        print("differ:", differ)
        if not differ:
            break
        again = both(source, sorted({node_of(outcome) for outcome in differ}))
        for seen, anew in zip((plain, locked), again, strict=True):
            seen.update((outcome, is_) for outcome, is_ in anew.items() if seen.get(outcome) != "passed")
    assert not _differ(plain, locked)


def _differ(plain: Outcomes, locked: Outcomes) -> dict[str, tuple[str | None, str | None]]:
    names = plain.keys() | locked.keys()
    return {name: (plain.get(name), locked.get(name)) for name in sorted(names) if plain.get(name) != locked.get(name)}


def _counts(outcomes: Outcomes) -> dict[str, int]:
    return {is_: list(outcomes.values()).count(is_) for is_ in sorted(set(outcomes.values()))}

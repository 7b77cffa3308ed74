"""What a release is made of, built and installed as users do it: ``python -m pytest -m soak -n 0 tests/soak/test_release.py``.

In environments of its own, from the package index that pip knows here.
"""

from __future__ import annotations

import configparser
import hashlib
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from programs import Program
from servers import Server, wait_until

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


def run(*command: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def make_venv(directory: Path, *packages: object) -> Path:
    """Make an environment with these; return its programs."""
    run(sys.executable, "-m", "venv", directory, cwd=directory.parent)
    run(directory / "bin" / "pip", "install", "-q", *packages, cwd=directory.parent)
    return directory / "bin"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """What is in the repository, and nothing else."""
    directory = tmp_path_factory.mktemp("checkout")
    packed = subprocess.run(["git", "-C", ROOT, "archive", "HEAD"], capture_output=True)
    if packed.returncode != 0:
        pytest.skip("this is no clone")
    subprocess.run(["tar", "x"], input=packed.stdout, cwd=directory, check=True)
    return directory


@pytest.fixture(scope="module")
def tools(tmp_path_factory) -> Path:
    return make_venv(tmp_path_factory.mktemp("tools") / "venv", "build", "twine")


@pytest.fixture(scope="module")
def built(checkout: Path, tools: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(tools / "python", "-m", "build", "-o", out, cwd=checkout, SOURCE_DATE_EPOCH="1767225600")
    return out


def wheel_of(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


def sdist_of(built: Path) -> Path:
    (sdist,) = built.glob("*.tar.gz")
    return sdist


def test_what_is_built_passes_the_check_of_an_index(built, tools, tmp_path):
    told = run(tools / "twine", "check", "--strict", wheel_of(built), sdist_of(built), cwd=tmp_path)
    assert told.count("PASSED") == 2


def test_a_wheel_that_is_built_again_is_the_same_to_the_last_byte(built, checkout, tools, tmp_path):
    run(tools / "python", "-m", "build", "-o", tmp_path, cwd=checkout, SOURCE_DATE_EPOCH="1767225600")
    first, again = (hashlib.sha256(wheel_of(each).read_bytes()).hexdigest() for each in (built, tmp_path))
    assert first == again


def extras() -> list[str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return ["", *(each for each in setup["options.extras_require"] if each not in ("bench", "dev"))]


def quickstart(programs: Path, directory: Path, server: Server) -> None:
    """Run what the README shows, from where it is installed."""
    (source,) = re.findall(r"```python\n(# tasks\.py\n.*?)```", README, re.DOTALL)
    commands = [command.split() for command in re.findall(r"^celery -A tasks [^#\n]*", README, re.MULTILINE)]
    (directory / "tasks.py").write_text(source.replace("redis://localhost:6379/0", server.url))
    where = run(programs / "python", "-c", "import celery_lockbeat; print(celery_lockbeat.__file__)", cwd=directory)
    assert str(programs.parent) in where
    # nothing of what this process has on its path
    environment = {"PYTHONPATH": "", "PYTHONSAFEPATH": ""}
    processes = []
    try:
        for number, (_, *arguments) in enumerate(commands):
            command = [str(programs / "celery"), *arguments]
            processes.append(Program(command, directory / f"log{number}", directory, environment))
        wait_until(
            lambda: all(f'"event":"{event}"' in processes[1].log() for event in ("task_succeeded", "task_skipped")),
            60,
            "a run and a skip",
        )
    finally:
        for process in processes:
            process.end()


@pytest.mark.parametrize("extra", extras())
def test_the_wheel_runs_the_quickstart_with_each_extra(built, tmp_path, extra):
    with Server() as server:
        programs = make_venv(tmp_path / "venv", f"{wheel_of(built)}[{extra}]" if extra else wheel_of(built))
        quickstart(programs, tmp_path, server)
        run(programs / "celery", "-A", "tasks", "lockbeat", "status", cwd=tmp_path)
        run(programs / "pip", "check", cwd=tmp_path)


def test_the_sdist_runs_the_quickstart(built, tmp_path):
    with Server() as server:
        quickstart(make_venv(tmp_path / "venv", sdist_of(built)), tmp_path, server)


#: What another place may break, and what reads the files beside the package: documents, manifests, settings of the tools. Not what
#: searches, harms, or has scenes of minutes (contrib, faults, model, mutants, processes): that tells of the code, and ``.ci/run`` has it.
UNITS = ["tests/beat", "tests/journal", "tests/schedules", "tests/stores", "tests/web"]
#: Nor the stores' promises on each further server, for the same reason.
STORES = "not redis7 and not cluster and not sentinel and not postgresql"


def test_the_sdists_own_unit_tests_pass(built, tmp_path):
    with tarfile.open(sdist_of(built)) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("celery_lockbeat-*")
    python = make_venv(tmp_path / "venv", "-e", f"{source}[dev]") / "python"
    # all of them, for each may need a helper, or a file, that was left out
    run(python, "-m", "pytest", "-q", "--collect-only", "-n", "0", cwd=source)
    own = sorted(str(file.relative_to(source)) for file in source.glob("tests/test_*.py"))
    chosen = ["-m", "not processes", "-k", STORES, *UNITS, *own]
    run(python, "-m", "pytest", "-q", "-n", "2", *chosen, cwd=source, CI="1")

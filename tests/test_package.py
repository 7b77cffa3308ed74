"""What is installed is what was written."""

from __future__ import annotations

import pkgutil
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import celery_lockbeat

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built of a copy: a build leaves traces where it is made."""
    source, out = tmp_path_factory.mktemp("source") / "it", tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "tests", "*.egg-info", "build", "__pycache__"))
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(source),
    ]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_has_the_lua_files_the_migration_and_the_types_mark(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    migrations = {
        str(path.relative_to(ROOT)) for path in (ROOT / "celery_lockbeat/contrib/django/migrations").glob("0*")
    }
    assert len(migrations) == 9
    assert migrations <= set(names)
    written = {str(path.relative_to(ROOT)) for path in (ROOT / "celery_lockbeat").rglob("*.lua")}
    assert len(written) == 19
    assert written | {"celery_lockbeat/py.typed"} <= set(names)
    assert not [name for name in names if name.startswith("tests")]
    assert "celery_lockbeat_pytest.py" in names
    (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
    assert "[pytest11]" in zipfile.ZipFile(wheel).read(entry_points).decode()


RUN_FROM_WHEEL = """
import sys
sys.path.insert(0, sys.argv[1])
import celery_lockbeat
from celery_lockbeat.stores.redis.store import RedisStore
from celery.utils.imports import symbol_by_name
from importlib.metadata import entry_points
assert celery_lockbeat.__file__.startswith(sys.argv[1]), celery_lockbeat.__file__
assert symbol_by_name("celery_lockbeat:LockedScheduler") is celery_lockbeat.LockedScheduler
(entry,) = [e for e in entry_points(group="celery.beat_schedulers") if e.name == "lockbeat" and sys.argv[1] in str(e.dist._path)]
assert entry.load() is celery_lockbeat.LockedScheduler
store = RedisStore(sys.argv[2])
lease = store.locks.acquire("key", holder="a", ttl=30)
assert store.locks.extend([(lease, 30)]) == [True] and store.locks.release(lease)
"""


def test_the_wheel_works_from_where_it_is_installed(wheel, server, tmp_path):
    target = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-P" if sys.version_info >= (3, 11) else "-E", "-c", RUN_FROM_WHEEL, str(target), server.url],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_public_names_are_those_of_the_contract():
    assert sorted(celery_lockbeat.__all__) == [
        "ConfigurationError",
        "Lock",
        "LockLost",
        "LockNotAcquired",
        "LockbeatError",
        "LockedScheduler",
        "LockedTask",
        "StoreUnavailable",
        "TaskSkipped",
        "__version__",
        "cron",
        "current_lock",
        "interval",
        "signals",
        "timeout",
    ]
    for name in celery_lockbeat.__all__:
        assert getattr(celery_lockbeat, name)


def test_completion_shows_what_is_documented_and_nothing_else():
    shown = set(dir(celery_lockbeat)) - {"__doc__"}
    modules = shown - set(celery_lockbeat.__all__)
    assert modules <= {"contrib", "events", "exceptions", "scheduler", "testing"}
    assert shown == set(celery_lockbeat.__all__) | modules
    pages = "\n".join(page.read_text("utf-8") for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    for name in shown - {"__version__"}:
        assert re.search(rf"\b{name}\b", pages), name
        assert getattr(celery_lockbeat, name)


def test_each_module_says_which_names_are_for_others():
    for info in pkgutil.walk_packages(celery_lockbeat.__path__, "celery_lockbeat."):
        source = Path(info.module_finder.path, info.name.rpartition(".")[2])
        file = source / "__init__.py" if info.ispkg else source.with_suffix(".py")
        if ".migrations" in info.name or not file.read_text("utf-8").partition("from __future__")[2]:
            continue
        assert re.search(r"^ *__all__ = ", file.read_text("utf-8"), re.MULTILINE), info.name


def test_ci_calls_the_readmes_own_command():
    command = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]' && .venv/bin/python -m pytest\n"
    assert command in (ROOT / "README.md").read_text()
    assert command in (ROOT / ".ci" / "run").read_text()

"""What is installed is what was written."""

from __future__ import annotations

import configparser
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest
import yaml

import celery_lockbeat

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built of a copy, for a build leaves traces where it is made: of what ``docker build`` sends, and no more."""
    source, out = tmp_path_factory.mktemp("source") / "it", tmp_path_factory.mktemp("wheel")
    first, *sent = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert (first, sent.pop()) == ("*", "**/__pycache__")
    for path in tracked(*(line.removeprefix("!") for line in sent)):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, source / path)
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


def tracked(*where: str) -> set[str]:
    """What is in the repository; all that is there, where this is none."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--", *where], capture_output=True, text=True
    )
    if listed.returncode == 0 and listed.stdout:
        return {path for path in listed.stdout.split("\0") if path and (ROOT / path).exists()}
    roots = [ROOT / each for each in where or (".",)]
    paths = [path for root in roots for path in (root.rglob("*") if root.is_dir() else [root])]
    return {str(path.relative_to(ROOT)) for path in paths if path.is_file() and "__pycache__" not in path.parts}


def test_the_wheel_has_all_of_the_package_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = tracked("celery_lockbeat")
    assert {Path(path).suffix for path in package} >= {".py", ".lua", ".sql", ".typed"}
    assert names == package | {"celery_lockbeat_pytest.py"}


def test_the_wheel_says_what_is_to_be_found_in_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
    assert "[pytest11]" in zipfile.ZipFile(wheel).read(entry_points).decode()


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A copy of what is in the repository."""
    copy = tmp_path_factory.mktemp("repository")
    for path in tracked():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, copy / path)
    return copy


BUILD_SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


def test_the_sdist_has_all_that_is_in_the_repository(repository, tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    build = [sys.executable, "-c", BUILD_SDIST, str(tmp_path)]
    done = subprocess.run(build, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        files = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    made = {path for path in files if ".egg-info/" in path} | {"PKG-INFO"}
    assert files - made == tracked()


METADATA = (
    "import sys; from setuptools import build_meta; print(build_meta.prepare_metadata_for_build_wheel(sys.argv[1]))"
)


def metadata(repository: Path, out: Path, **environment: str) -> Message:
    done = subprocess.run(
        [sys.executable, "-c", METADATA, str(out)],
        cwd=repository,
        env={**{k: v for k, v in os.environ.items() if k != "LOCKBEAT_REPOSITORY"}, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (file,) = out.glob("*.dist-info/METADATA")
    return message_from_string(file.read_text("utf-8"))


def links_of(told: Message) -> list[str]:
    """What an index page would link to, and show."""
    text = re.sub(r"^```.*?^```$", "", told.get_payload(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)


def test_an_index_page_has_no_link_that_leads_nowhere_where_no_repository_is_known(repository, tmp_path):
    told = metadata(repository, tmp_path)
    assert told["Version"] == celery_lockbeat.__version__
    assert told["Description-Content-Type"] == "text/markdown"
    assert [link for link in links_of(told) if "://" not in link] == []
    assert "<picture>" not in told.get_payload()
    assert "@interval" in told.get_payload()
    assert told["Project-URL"] is None


def test_where_the_repository_is_known_each_link_of_an_index_page_leads_into_this_release(repository, tmp_path):
    host = "https://code.example.com/team/celery-lockbeat"
    told = metadata(repository, tmp_path, LOCKBEAT_REPOSITORY=host)
    urls = dict(each.split(", ") for each in told.get_all("Project-URL"))
    assert urls["Source"] == host
    assert urls.keys() == {"Source", "Documentation", "Changelog", "Issues"}
    ours = [link for link in links_of(told) if link.startswith(host)]
    assert len(ours) > 10
    for link in ours:
        path = re.sub(rf"^{re.escape(host)}/(blob|raw)/v[\d.]+/", "", link).partition("#")[0]
        assert (repository / path).exists(), link
    assert [link for link in links_of(told) if not link.startswith(("https://", "#"))] == []


def test_the_workflow_takes_a_tag_for_a_release_only_if_the_version_and_the_changelog_are_its(tmp_path):
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    (check,) = (step["run"] for step in workflow["jobs"]["build"]["steps"] if "changelog" in step.get("name", ""))

    def passes(tag: str, changelog: str) -> bool:
        (tmp_path / "CHANGELOG.md").write_text(changelog)
        environment = {"PATH": os.defpath, "GITHUB_REF_NAME": tag}
        return subprocess.run(["bash", "-e", "-c", check], cwd=tmp_path, env=environment).returncode == 0

    shutil.copy(ROOT / "setup.cfg", tmp_path)
    version = celery_lockbeat.__version__
    released = f"# Changelog\n\n## [{version}] - 2026-11-28\n"
    assert passes(f"v{version}", released)
    assert not passes("v9.9.9", released)
    assert not passes(f"v{version}", "# Changelog\n\n## [Unreleased]\n")


def test_the_version_is_said_in_one_place():
    said = re.escape(celery_lockbeat.__version__)
    places = {
        path
        for path in tracked()
        if Path(path).suffix in (".py", ".cfg", ".toml", ".yml", ".yaml", ".in", ".ini")
        and re.search(rf"^\W*(__)?version(__)?\W* = \W?{said}\W?$", (ROOT / path).read_text("utf-8"), re.MULTILINE)
    }
    assert places == {"setup.cfg"}


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
        "Tick",
        "__version__",
        "cron",
        "current_lock",
        "current_tick",
        "interval",
        "schedules_of",
        "signals",
        "timeout",
    ]
    for name in celery_lockbeat.__all__:
        assert getattr(celery_lockbeat, name)


def test_completion_shows_what_is_documented_and_nothing_else():
    shown = set(dir(celery_lockbeat)) - {"__doc__"}
    modules = shown - set(celery_lockbeat.__all__)
    assert modules <= {"contrib", "events", "exceptions", "scheduler", "schedules", "testing"}
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


def test_a_cell_of_tox_has_the_tools_that_ci_has_for_other_pythons():
    (tools,) = re.findall(r'^their_tools="(.*)"$', (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini")
    of_all = [each for each in tox["testenv"]["deps"].split("\n") if each and ": " not in each]
    assert of_all == tools.split()


def test_ci_calls_the_readmes_own_command():
    command = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]' && .venv/bin/python -m pytest\n"
    assert command in (ROOT / "README.md").read_text()
    assert command in (ROOT / ".ci" / "run").read_text()

"""The pytest plugin: its page is run as it stands there, and a suite that does not use it is left alone."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from celery import Celery
from servers import wait_until

from celery_lockbeat import ConfigurationError, Lock, LockedTask, current_lock, stores
from celery_lockbeat.clock import monotonic
from celery_lockbeat.testing import own_store
from docs import DOCS

pytest_plugins = ["pytester"]

ROOT = DOCS.parent
PAGE = (DOCS / "how-to" / "testing.md").read_text("utf-8")
PLUGIN = ["-p", "celery_lockbeat_pytest", "-p", "no:cacheprovider", "-p", "no:ddtrace"]


@pytest.fixture
def suite(pytester, monkeypatch):
    """A project's suite, run by a pytest of its own, where the locks of this host are elsewhere."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{pytester.path}")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)

    def run(*arguments):
        return pytester.runpytest_subprocess(*PLUGIN, "-q", *arguments, timeout=100)

    run.make = pytester.makepyfile
    return run


def files_of_the_page():
    blocks = re.findall(r"^```python\n# (\w+)\.py\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == len(re.findall("^```python$", PAGE, re.MULTILINE))
    return dict(blocks)


def test_the_pages_suite_passes_as_it_stands_there(suite):
    files = files_of_the_page()
    suite.make(**files)
    tests = sum(len(re.findall("^def test_", text, re.MULTILINE)) for text in files.values())
    suite("-n", "2", "--dist", "each", "-p", "xdist").assert_outcomes(passed=2 * tests)


SAME_TASK = """
    import time
    import pytest
    from celery import Celery
    from celery_lockbeat import LockedTask

    app = Celery("same", broker="memory://", set_as_current=False)
    app.conf.lockbeat_memory_path = {path!r}

    @app.task(base=LockedTask)
    def slow():
        time.sleep(0.5)

    @pytest.mark.parametrize("number", range(6))
    def test_it_runs(number{fixture}):
        for _ in range(2):
            assert slow.apply().state == "SUCCESS"
"""


def test_tests_that_run_at_once_do_not_skip_each_others_tasks(suite, tmp_path):
    """The control shows that without the fixture they do, for they share the store of this host."""
    path = str(tmp_path / "host")
    suite.make(test_it=SAME_TASK.format(path=path, fixture=", lockbeat_store"))
    suite("-n", "3").assert_outcomes(passed=6)
    assert not Path(path).exists(), "nor is that store touched"
    suite.make(test_it=SAME_TASK.format(path=path, fixture=""))
    assert suite("-n", "3").parseoutcomes().get("failed", 0) > 0


def test_a_suite_that_does_not_use_it_pays_for_nothing_and_is_changed_in_nothing(suite):
    script = (
        "import sys, celery_lockbeat_pytest; print(sorted({'celery', 'celery_lockbeat', 'redis'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    suite.make(
        test_it="""
        import sys

        def test_nothing_is_there():
            assert not {"celery", "celery_lockbeat", "redis"} & sys.modules.keys()
        """
    )
    suite("-p", "no:celery", "-p", "no:cov").assert_outcomes(passed=1)
    assert stores._elsewhere is None


def test_the_plugin_is_installed_as_one():
    declared = configparser.ConfigParser()  # that of a source distribution is written anew
    declared.read(ROOT / "setup.cfg", "utf-8")
    assert declared["options.entry_points"]["pytest11"].strip() == "celery_lockbeat_pytest = celery_lockbeat_pytest"
    assert declared["options"]["py_modules"] == "celery_lockbeat_pytest"


# -- what the store of a test is ---------------------------------------------------------------------------------------


@pytest.fixture
def an_app():
    app = Celery("testing", broker="redis://redis.invalid:6379/0", set_as_current=False)
    app.conf.lockbeat_connections = {"other": "redis://other.invalid/0"}
    yield app
    app.close()


def test_no_server_is_asked_and_connections_do_not_meet(an_app, tmp_path):
    with own_store(tmp_path / "one") as store:
        for driver, connection in (("redis", "default"), ("auto", "other"), ("memory", "default")):
            lock = Lock("key", app=an_app, driver=driver, connection=connection)
            assert lock.acquire() is True
        assert len(store.locks()) == 3
        with pytest.raises(ConfigurationError, match="lock_connection is 'none'"):
            Lock("key", app=an_app, connection="none")


def test_a_block_ends_with_what_was_before_it(an_app, tmp_path):
    with own_store(tmp_path / "one"):
        with Lock("key", app=an_app) as outer:
            with own_store(tmp_path / "two"), Lock("key", app=an_app) as inner:
                assert outer.held
                assert inner.held
            assert Lock("key", app=an_app).acquire() is False
    assert stores._elsewhere is None


@pytest.mark.parametrize("tool", ["freezegun", "time_machine", "none"])
def test_a_lease_is_renewed_whatever_a_tool_does_to_the_time(an_app, tmp_path, tool):
    """Neither lost nor kept for ever, and nobody waits for a moment that does not come."""

    @an_app.task(base=LockedTask, lock_ttl=0.6)
    def body():
        token = current_lock().token
        ends = monotonic() + 1.5
        while monotonic() < ends:
            time.sleep(0.01)
        assert current_lock().held
        return token

    with own_store(tmp_path / "one"):
        if tool == "freezegun":
            with pytest.importorskip("freezegun").freeze_time("2001-01-01"):
                tokens = [body(), body()]
        elif tool == "time_machine":
            with pytest.importorskip("time_machine").travel(0, tick=False):
                tokens = [body(), body()]
        else:
            tokens = [body(), body()]
        assert tokens[0] < tokens[1]
        with Lock("dead", app=an_app, ttl=0.2, auto_extend=False, on_lost="warn") as lock:
            deadline = monotonic() + 10
            while lock.held and monotonic() < deadline:
                time.sleep(0.01)
            # its holder ceases to trust it a moment before the store does
            wait_until(Lock("dead", app=an_app).acquire, 10)

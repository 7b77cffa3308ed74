"""What type checkers say of a user's module: they know the parameters of a decorated function, and flag what does not fit."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: Each use that is marked is to be flagged, and no other.
MODULE = """\
from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from celery import Celery

from celery_lockbeat import LockedTask, cron, interval, timeout
from celery_lockbeat.schedules import Cron, Every, Once

if TYPE_CHECKING:
    from typing_extensions import assert_type


@cron("0 * * * *", name="report", lock_key="report:{customer}", queue="reports")
def report(customer: int, day: str = "mon") -> str:
    return f"{customer}:{day}"


@interval(timedelta(minutes=1), lock_ttl=60, options={"expires": 30})
def sweep() -> None:
    pass


@timeout(5, bind=True, max_retries=3)
def warm_up(self: LockedTask, shop: str) -> int:
    return len(shop)


@cron("H H * * *", jitter=60, start=datetime(2026, 1, 1, tzinfo=timezone.utc), max_runs=3, pause_after_failures=5, lock_ttl=60)
def spread(day: str) -> int:
    return len(day)


@interval(10, start_within=timedelta(seconds=5), run_at_start=True)
async def fetch(url: str) -> bytes:
    return url.encode()


def use() -> None:
    if TYPE_CHECKING:
        assert_type(report(7), str)
        assert_type(report.run(7, day="tue"), str)
        assert_type(warm_up("x"), int)
        assert_type(sweep(), None)
    report.delay(7)
    report.delay(customer=7, day="tue")
    report.apply_async((7,), {"day": "tue"}, countdown=5, queue="reports")
    report.apply_async(args=[7], priority=3)
    (report.s() | sweep.si()).apply_async()
    report.s(7)
    report.si(7, "tue")
    report.apply((7,))
    warm_up.delay("x")
    sweep.delay()
    spread.delay("mon")
    app = Celery("typed")
    app.conf.beat_schedule = {"e": {"task": "t", "schedule": Every(60, jitter=5)}, "o": {"task": "t", "schedule": Once(after=5)}}
    print(report.name, report.lock_ttl)


async def use_a_coroutine() -> bytes:
    return await fetch("x")


@interval("10")  # wrong
def sweep_again() -> None:
    pass


@interval(10, timezone=3, name=5)  # wrong
def clean() -> None:
    pass


@cron("0 * * * *", catchup="some")  # wrong
def often() -> None:
    pass


@timeout(5, jitter="a little")  # wrong
def once() -> None:
    pass


def misuse() -> int:
    Cron("0 * * * *", timezone=5)  # wrong
    Every(60, catchup="some")  # wrong
    Once(after=5, max_runs=3)  # wrong
    spread.delay(5)  # wrong
    report()  # wrong
    report("seven")  # wrong
    report.delay("seven")  # wrong
    report.delay(7, hour=3)  # wrong
    report.delay(7, "tue", 3)  # wrong
    report.run(day="tue")  # wrong
    report.si("seven")  # wrong
    report.apply_async(7)  # wrong
    report.apply_async((7,), countdown="soon")  # wrong
    warm_up.delay(7)  # wrong
    warm_up.delay(None, "x")  # wrong
    warm_up()  # wrong
    report.delay(7)
    return report(7)  # wrong
"""


def flagged_by_mypy(file: Path) -> set[int]:
    config = file.with_name("mypy.ini")
    # Celery has no types; with celery-types installed a user needs not say this
    config.write_text("[mypy]\nstrict = true\n[mypy-celery.*,kombu.*]\nignore_missing_imports = true\n")
    command = [sys.executable, "-m", "mypy", "--config-file", config.name, "--no-incremental", file.name]
    done = subprocess.run(
        command, cwd=file.parent, env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert not re.findall(r"^celery_lockbeat.*error", done.stdout, re.MULTILINE), done.stdout
    return {int(line) for line in re.findall(rf"^{file.name}:(\d+): error:", done.stdout, re.MULTILINE)}


def flagged_by_pyright(file: Path) -> set[int]:
    config = {"typeCheckingMode": "standard", "extraPaths": [str(ROOT)], "pythonVersion": "3.10"}
    file.with_name("pyrightconfig.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable, file.name]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, check=False)
    diagnostics = json.loads(done.stdout)["generalDiagnostics"]
    errors = [each for each in diagnostics if each["severity"] == "error"]
    assert {Path(each["file"]).name for each in errors} <= {file.name}, errors
    return {each["range"]["start"]["line"] + 1 for each in errors}


@pytest.mark.parametrize("checker", ["mypy", "basedpyright"])
def test_a_users_module_is_flagged_where_it_is_wrong_and_nowhere_else(tmp_path, checker):
    if importlib.util.find_spec(checker) is None and not os.environ.get("CI"):
        pytest.skip(f"{checker} is missing")
    file = tmp_path / "tasks.py"
    file.write_text(MODULE)
    expected = {number for number, line in enumerate(MODULE.split("\n"), 1) if line.endswith("# wrong")}
    assert len(expected) == 21
    flagged = {"mypy": flagged_by_mypy, "basedpyright": flagged_by_pyright}[checker](file)
    assert flagged == expected

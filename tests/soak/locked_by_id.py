"""A pytest plugin for Celery's own suite: its tasks are locked ones, each run on a key of its own, and outcomes are noted.

It is what is asked for by the environment: ``LOCKBEAT_SOAK_LOCKED`` ("1": locked; else as Celery is), and
``LOCKBEAT_SOAK_OUTCOMES``, the file that gets one JSON line per outcome.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_lockbeat import LockedTask, signals

LOCKED = os.environ["LOCKBEAT_SOAK_LOCKED"] == "1"
OUTCOMES = Path(os.environ["LOCKBEAT_SOAK_OUTCOMES"])


class LockedById(LockedTask):
    abstract = True

    def lock_key(self, *_: object, **__: object) -> str:
        return self.request.id or str(uuid.uuid4())


@pytest.fixture(scope="session")
def celery_parameters() -> dict[str, object]:
    return {"task_cls": LockedById} if LOCKED else {}


def note(**what: object) -> None:
    with OUTCOMES.open("a") as file:
        file.write(json.dumps(what) + "\n")


@pytest.fixture(scope="session", autouse=True)
def runs_are_noted() -> Iterator[None]:
    """That runs have locks at all, by the first one of each process: the worker's children tell it in the same file."""
    told: set[int] = set()

    def receiver(pid: int, lock_key: str | None = None, **_: object) -> None:
        if lock_key and pid not in told:
            told.add(pid)
            note(run=lock_key)

    signals.task_started.connect(receiver)
    yield
    signals.task_started.disconnect(receiver)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    context = getattr(report, "context", None)
    subtest = f" [{context.msg} {context.kwargs}]" if context is not None else ""
    if report.when == "call" or subtest or report.outcome != "passed":
        outcome = report.outcome if not hasattr(report, "wasxfail") else f"x{report.outcome}"
        note(test=report.nodeid + subtest, when=report.when, outcome=outcome, why=report.longreprtext[-3000:])

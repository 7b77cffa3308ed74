"""What a run costs beside its body: a worker's child that has slept before each run pays for each function that it calls."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from contextvars import Context
from pathlib import Path

import pytest
from billiard.pool import soft_timeout_sighandler
from celery import signals
from celery.app.trace import build_tracer
from celery.utils import uuid

import celery_lockbeat
from celery_lockbeat import Lock, LockedTask
from celery_lockbeat.locks import child
from celery_lockbeat.locks.page import Page
from celery_lockbeat.tasks import limits, overdue, run
from celery_lockbeat.tasks.copies import NONCE

PACKAGE = str(Path(celery_lockbeat.__file__).parent)

#: Calls of our own functions in one run, by whether its key is free. Before there were a journal, limits that spare the end of a
#: run, and a parent that renews in its place, a run had 121; then it had 200, and they took a child half as much time again.
#: Who needs one more call looks first for one that can go.
CALLS_AT_MOST = {"runs": 121, "is skipped": 106}


@pytest.fixture
def as_in_a_pools_child(monkeypatch):
    """It has a page of its parent's, and billiard's handler of soft time limits; what other tests have connected is not there."""
    monkeypatch.setattr(child, "_page", Page())
    monkeypatch.setattr(run, "soft_limits", limits.SoftLimits())
    monkeypatch.setattr(overdue, "_watcher", overdue._Watcher())
    for signal_ in (signals.task_prerun, signals.task_postrun):
        monkeypatch.setattr(signal_, "receivers", [])
    before = signal.signal(limits.SIGNAL, soft_timeout_sighandler)
    yield
    signal.signal(limits.SIGNAL, before)


def calls_in(function) -> Counter[str]:
    """Call it, where nothing else runs, and count the calls of our functions."""
    counted: Counter[str] = Counter()

    def look(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            counted[f"{Path(code.co_filename).relative_to(PACKAGE)}:{code.co_name}"] += 1

    sys.setprofile(look)
    try:
        Context().run(function)
    finally:
        sys.setprofile(None)
    return counted


@pytest.mark.usefixtures("as_in_a_pools_child")
@pytest.mark.parametrize("how", CALLS_AT_MOST)
def test_a_run_calls_no_more_functions_than_it_ever_did(make_app, how):
    app = make_app(lockbeat_driver="redis", task_ignore_result=True, worker_hijack_root_logger=False)

    @app.task(base=LockedTask, lock_key="k")
    def body():
        pass

    trace = build_tracer(body.name, body, app=app)

    def deliver() -> None:
        id_, ours = uuid(), {NONCE: "n"}
        request = {"id": id_, "task": body.name, "hostname": "celery@w", "headers": ours, "delivery_info": {}, **ours}
        trace(id_, (), {}, request)

    holder = Lock("k", app=app)
    if how == "is skipped":
        holder.acquire()
    # the first opens a connection and begins threads, and works out what later ones share
    counted = min((calls_in(deliver) for _ in range(6)), key=Counter.total)
    holder.abandon()
    assert counted["stores/redis/node.py:talk"] == (2 if how == "runs" else 1)
    assert counted.total() <= CALLS_AT_MOST[how], sorted(counted.items())

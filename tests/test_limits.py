"""A soft time limit, or whatever else is raised from outside, at any moment of a run: one story, no lock, one answer."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from billiard.pool import soft_timeout_sighandler
from celery.app.trace import build_tracer
from celery.exceptions import Ignore
from celery.utils import uuid
from held import is_free
from servers import wait_until

import celery_lockbeat
from celery_lockbeat import Lock, LockedTask, signals
from celery_lockbeat.tasks import limits, run

#: Where our code is. Its name is in that of a source distribution's directory, too, and so in those of the tests.
PACKAGE = str(Path(celery_lockbeat.__file__).parent)

OF_A_RUN = ("task_started", "task_succeeded", "task_failed", "task_retried", "task_skipped", "task_finished")


def becomes_free(app, key) -> None:
    # what has struck the acquire lets it be freed by another thread
    wait_until(lambda: is_free(app, key), 10, message=key)


@pytest.fixture(autouse=True)
def billiards_handler(monkeypatch):
    """As in a prefork child, of which no run has been struck in its very last lines and is kept by a traceback of a test's."""
    monkeypatch.setattr(run, "soft_limits", limits.SoftLimits())
    before = signal.signal(limits.SIGNAL, soft_timeout_sighandler)
    yield
    signal.signal(limits.SIGNAL, before)


@pytest.fixture
def told():
    """What the events' logger, and what the Signals were given; of tasks only, and by whom."""
    lines, sent, handler = [], [], logging.Handler()
    handler.emit = lambda record: lines.append(json.loads(record.getMessage())["event"])
    logger = logging.getLogger("celery_lockbeat.events")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)

    def receiver(event, **_):
        sent.append(event)

    for name in OF_A_RUN:
        getattr(signals, name).connect(receiver)
    yield SimpleNamespace(lines=lines, sent=sent)
    for name in OF_A_RUN:
        getattr(signals, name).disconnect(receiver)
    logger.removeHandler(handler)
    logger.setLevel(level)


class Moments:
    """Do something at a moment of our code, the so many-th at which Python looks for signals (CPython): at a call, or a return."""

    def __init__(self, at: int, strike, *, armed: bool, spare_handlers: bool = False) -> None:
        self._spare_handlers = spare_handlers
        self._left, self._strike, self.armed = at, strike, armed
        self.struck: str | None = None

    def _look(self, frame, event, _) -> None:
        if event == "c_call" or not self.armed or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        if self._spare_handlers and frame.f_code.co_name in ("__str__", "__mod__"):
            return  # a log handler calls these: what strikes there has struck the handler
        self._left -= 1
        if self._left == 0:
            self.struck = f"{event} {frame.f_code.co_name}"
            self._strike()

    def __enter__(self):
        sys.setprofile(self._look)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)


BODIES = {
    "returns": ("SUCCESS", "task_succeeded"),
    "raises": ("FAILURE", "task_failed"),
    "is refused": ("REVOKED", "task_skipped"),
}


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Python swallows what strikes a generator that is closed
@pytest.mark.parametrize("how", BODIES)
def test_a_soft_time_limit_at_any_moment_of_a_run_leaves_one_story_that_celery_agrees_with_and_no_lock(
    make_app, driver, told, how, caplog
):
    caplog.set_level(logging.CRITICAL, "celery")
    app = make_app(lockbeat_driver=driver, result_backend="cache+memory://")
    outcomes = set()

    @app.task(base=LockedTask, lock_key="{key}", lock_ttl=300)
    def body(key):
        if how == "raises":
            raise ZeroDivisionError

    trace = build_tracer(body.name, body, app=app)

    def run(at: int) -> bool:
        id_, key = uuid(), str(at)
        told.lines.clear()
        told.sent.clear()
        with Moments(at, lambda: signal.raise_signal(limits.SIGNAL), armed=True) as moment:
            trace(id_, (key,), {}, {"id": id_, "task": body.name, "delivery_info": {}})
        state = app.backend.get_state(id_)
        seen = [event for event in told.lines if event in OF_A_RUN]
        assert seen == told.sent, moment.struck
        if seen:
            started, outcome, finished = seen
            assert (started, finished) == ("task_started", "task_finished"), moment.struck
        else:  # it had not even begun
            outcome = "task_failed"
        assert (state, outcome) in {("FAILURE", "task_failed"), BODIES[how]}, moment.struck
        if how == "is refused":
            assert not is_free(app, key), moment.struck
        else:
            becomes_free(app, key)
        outcomes.add(state)
        return moment.struck is not None

    def held() -> Lock:
        lock = Lock(str(at), app=app, ttl=300, logging=False)
        lock.acquire()
        return lock

    at = 1
    others = [held()] if how == "is refused" else []
    while run(at):
        at += 1
        if others:
            others.append(held())
    assert at > 100
    assert outcomes == {BODIES[how][0], "FAILURE"}
    for lock in others:
        lock.release()


class Struck(Exception):  # noqa: N818
    pass


class Ended(BaseException):
    pass


@pytest.mark.parametrize("struck_by", [Struck, Ended])
@pytest.mark.parametrize("how", ["returns", "raises", "Ignore"])
def test_an_exception_from_outside_at_any_moment_after_the_body_leaves_one_story_and_no_lock(
    app, told, how, struck_by, caplog
):
    """Of a user's signal handler, say. Until an outcome is told it is what the run ends with."""
    caplog.set_level(logging.CRITICAL, "celery_lockbeat")
    moments: list[Moments] = []

    @app.task(base=LockedTask, lock_key="{key}", lock_ttl=300)
    def body(key):
        moments[-1].armed = True
        if how != "returns":
            raise {"raises": ZeroDivisionError, "Ignore": Ignore}[how]

    def strike():
        raise struck_by

    at, after, outcomes = 0, {}, set()
    while not moments or moments[-1].struck:
        at += 1
        told.lines.clear()
        told.sent.clear()
        moments.append(Moments(at, strike, armed=False, spare_handlers=True))
        raised = None
        with moments[-1] as moment:
            try:
                body(str(at))
            except (Struck, Ended, ZeroDivisionError, Ignore) as exc:
                raised = type(exc)
        seen = [event for event in told.lines if event in OF_A_RUN]
        assert seen == told.sent, moment.struck
        assert len(seen) == 3, (moment.struck, seen)
        assert (seen[0], seen[2]) == ("task_started", "task_finished"), moment.struck
        good = {"returns": None, "raises": ZeroDivisionError, "Ignore": Ignore}[how]
        expected = "task_failed" if how == "raises" else "task_succeeded"
        if raised is good:
            assert seen[1] == expected, moment.struck
        else:
            assert raised is struck_by
            if seen[1] != "task_failed":
                after[moment.struck] = seen[1]
        outcomes.add(seen[1])
        becomes_free(app, str(at))
    assert at > 30
    assert outcomes == {"task_failed", expected}
    if struck_by is Struck:
        # it was over: these are the frames around it
        assert {name.split()[1] for name in after} <= {"carry_out", "_leave", "over", "abandon", "_run_locked", "run"}


# -- whose limit it is -------------------------------------------------------------------------------------------------


def test_a_limit_that_comes_while_a_nested_run_ends_strikes_the_body_around_it(app, told):
    ends, seen = [], []

    @app.task(base=LockedTask, name="inner")
    def inner():
        ends.append(True)

    def receiver(**_):
        signal.raise_signal(limits.SIGNAL)
        seen.append("not struck here")

    signals.task_succeeded.connect(receiver, sender=inner)
    try:
        with pytest.raises(SoftTimeLimitExceeded):
            inner()
    finally:
        signals.task_succeeded.disconnect(receiver, sender=inner)
    assert seen == ["not struck here"]
    assert told.lines == ["task_started", "task_succeeded", "task_finished"]
    assert is_free(app, "inner")
    # and the next one is struck as ever
    with pytest.raises(SoftTimeLimitExceeded):
        signal.raise_signal(limits.SIGNAL)


def test_a_limit_strikes_what_runs_after_a_message_whose_run_is_over(make_app, driver):
    app = make_app(lockbeat_driver=driver, result_backend="cache+memory://")

    @app.task(base=LockedTask)
    def locked():
        pass

    @app.task
    def plain():
        signal.raise_signal(limits.SIGNAL)

    for task in (locked, plain, locked):
        id_ = uuid()
        build_tracer(task.name, task, app=app)(id_, (), {}, {"id": id_, "task": task.name, "delivery_info": {}})
        assert app.backend.get_state(id_) == ("FAILURE" if task is plain else "SUCCESS")


def test_handlers_of_others_are_left_alone(app):
    def own(*_):
        pass

    signal.signal(limits.SIGNAL, own)

    @app.task(base=LockedTask)
    def body():
        pass

    body()
    assert signal.getsignal(limits.SIGNAL) is own


def test_a_run_in_another_thread_keeps_no_limit_from_the_main_one(app):
    reached, done = threading.Event(), threading.Event()

    @app.task(base=LockedTask)
    def body():
        pass

    def receiver(**_):
        reached.set()
        done.wait(20)

    signals.task_finished.connect(receiver)
    thread = threading.Thread(target=body)
    thread.start()
    try:
        assert reached.wait(20)
        with pytest.raises(SoftTimeLimitExceeded):
            signal.raise_signal(limits.SIGNAL)
    finally:
        done.set()
        thread.join()
        signals.task_finished.disconnect(receiver)

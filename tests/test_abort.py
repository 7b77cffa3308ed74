"""``lock_on_lost="abort"``: LockLost is raised in the body at once, and never after it."""

from __future__ import annotations

import json
import logging
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from celery_lockbeat import Lock, LockedTask, LockLost, current_lock
from celery_lockbeat.locks.abort import Abort

#: What is raised in another thread hits whatever runs there, and coverage's own locks do not survive it.
untraced = pytest.mark.no_cover


def lose() -> None:
    """Take the lock of this body away: its renewer will find out."""
    lock = current_lock()
    assert lock._store.locks.release(lock.lease)


def socket_receives() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.recv(1)


BLOCKING = {
    "time.sleep": lambda: time.sleep(30),
    "a lock": lambda: threading.Semaphore(0).acquire(timeout=30),
    "a socket": socket_receives,
    "a process": lambda: subprocess.run(["sleep", "30"]),
    "a loop": lambda: all(True for _ in iter(int, 1)),
}


@pytest.mark.parametrize("what", BLOCKING)
def test_a_body_in_the_main_thread_is_interrupted_at_once_whatever_it_waits_for(app, what, caplog):
    caplog.set_level(logging.INFO, "celery_lockbeat.events")

    @app.task(base=LockedTask, lock_ttl=1, lock_on_lost="abort")
    def body():
        lose()
        BLOCKING[what]()

    began = time.monotonic()
    with pytest.raises(LockLost, match="was lost"):
        body()
    assert time.monotonic() - began < 3
    events = [json.loads(r.getMessage())["event"] for r in caplog.records if r.name == "celery_lockbeat.events"]
    assert events == [
        "task_started",
        "lock_extend_failed",
        "lock_expired_before_finish",
        "task_failed",
        "task_finished",
    ]


@pytest.mark.parametrize("thread", ["main", pytest.param("other", marks=untraced)])
def test_a_body_can_catch_it_and_clean_up_and_still_ends_as_failed(app, thread):
    cleaned = []

    @app.task(base=LockedTask, lock_ttl=0.5, lock_on_lost="abort")
    def body():
        lose()
        try:
            for _ in range(1000):
                time.sleep(0.01)
        except LockLost:
            time.sleep(0.5)  # it comes once only
            cleaned.append(1)
        return "fine"

    def run():
        with pytest.raises(LockLost, match="before the run ended"):
            body()

    if thread == "main":
        run()
    else:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(run).result(20)
    assert cleaned == [1]


@untraced
def test_a_body_in_another_thread_is_interrupted_with_its_next_line(app):
    @app.task(base=LockedTask, lock_ttl=0.5, lock_on_lost="abort")
    def body():
        lose()
        for _ in range(3000):
            time.sleep(0.01)

    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        with pytest.raises(LockLost, match="was lost, which ended the run"):
            pool.submit(body).result(20)
        assert time.monotonic() - began < 3


def test_a_block_is_interrupted_too(app):
    with pytest.raises(LockLost), Lock("k", app=app, ttl=0.5, on_lost="abort"):
        lose()
        time.sleep(30)
    assert current_lock() is None


def test_of_two_bodies_inside_one_another_the_outer_ones_loss_ends_both(app):
    @app.task(base=LockedTask, lock_on_lost="abort")
    def inner():
        time.sleep(30)

    @app.task(base=LockedTask, lock_ttl=0.5, lock_on_lost="abort")
    def outer():
        lose()
        inner()

    with pytest.raises(LockLost, match="outer"):
        outer()
    with Lock(inner.name, app=app):
        pass


def test_without_a_loss_nothing_is_raised_and_the_signal_keeps_its_handler(app):
    seen = []
    before = signal.signal(signal.SIGURG, lambda *_: seen.append(1))
    try:
        with Lock("k", app=app, on_lost="abort"):
            signal.raise_signal(signal.SIGURG)
        signal.raise_signal(signal.SIGURG)
    finally:
        signal.signal(signal.SIGURG, before)
    assert seen == [1, 1]


@pytest.mark.parametrize("caught", ["in the body", "at its end"])
def test_what_traces_works_after_an_abort_in_another_thread(caught):
    """Called off, it is looked for in each loop for ever, and Python 3.11 hangs in the next traced line."""
    script = f"""if True:
        import sys, threading
        from celery_lockbeat.locks.abort import Abort

        def body():
            abort = Abort(ValueError())
            abort.arm()
            go = threading.Event()
            fires = threading.Thread(target=lambda: (go.wait(), abort.fire()))
            fires.start()
            try:
                go.set()
                while {caught == "in the body"}:
                    pass
                abort.disarm()
            except ValueError:
                abort.disarm()
            fires.join()

        sys.setswitchinterval(1e-5)
        for _ in range(50):
            thread = threading.Thread(target=body)
            thread.start()
            thread.join()
        lines = []

        def traced():
            return 1

        sys.settrace(lambda *_: lines.append(1))
        traced()
        sys.settrace(None)
        assert lines
    """
    subprocess.run([sys.executable, "-c", script], check=True, timeout=20)


@untraced
@pytest.mark.parametrize("thread", ["main", "other"])
def test_what_is_raised_is_raised_in_the_body_and_never_after_it(thread):
    """A body and its end, a loss at any moment around it: the lines after the end are never hit."""

    def bodies() -> int:
        hit = 0
        for _ in range(1500):
            abort = Abort(LockLost("lost"))
            delay = random.uniform(0, 0.0004)
            firing = threading.Thread(target=lambda: (time.sleep(delay), abort.fire()))  # noqa: B023
            firing.start()
            try:
                abort.arm()
                try:
                    for _ in range(random.randrange(3000)):
                        pass
                    time.sleep(random.choice([0, 0.0002]))
                finally:
                    abort.disarm()
            except LockLost:
                hit += 1
            # after the end
            for _ in range(50):
                sum(range(40))
            firing.join()
            sum(range(40))
        return hit

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        if thread == "main":
            hit = bodies()
        else:
            with ThreadPoolExecutor(1) as pool:
                hit = pool.submit(bodies).result(60)
    finally:
        sys.setswitchinterval(interval)
    print(hit)
    assert 0 < hit < 1500

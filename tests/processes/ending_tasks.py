"""Tasks that end badly, for workers that ``include`` this module."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import time

from apps import LONGEST, app, hold, holding, seen, witness
from celery.exceptions import SoftTimeLimitExceeded

from celery_lockbeat import LockedTask, LockLost, current_lock

# The leases outlast every wait of the tests: who comes in has found the lock freed, not run out.
holding("hold_long", lock_ttl=300)
holding(
    "hold_in_memory_when_free",
    lock_driver="memory",
    lock_retry_attempts=1200,
    lock_retry_delay=0.05,
    lock_retry_jitter=0,
)


def beat(key: str, seconds: float = LONGEST) -> None:
    """Tell all the time that the body is still there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        witness.set(f"beat:{key}", repr(time.time()))
        time.sleep(0.002)


def die(task, key: str, how: str = "") -> str:
    """Die in the way that is asked for, after a moment in which others see the key held; or wait for death."""
    with seen(task, key) as tell:
        if how == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            beat(key, 0.3 if how in ("segfault", "exit", "abort") else LONGEST)
        except (SoftTimeLimitExceeded, SystemExit) as exc:
            tell("cleaning")
            beat(key, 0.7)
            tell("clean", error=type(exc).__name__, held=current_lock().held)
            raise
        if how == "segfault":
            ctypes.string_at(0)
        if how == "exit":
            os._exit(3)
        if how == "abort":
            os.abort()
    return "alive"


for name, driver in (("die", "auto"), ("die_in_memory", "memory")):
    app.task(bind=True, base=LockedTask, name=name, lock_key="{key}", lock_ttl=300, lock_driver=driver)(die)


@app.task(bind=True, base=LockedTask, name="die_at_first", lock_key="{key}", lock_ttl=300, acks_late=True)
def die_at_first(task, key: str) -> str:
    """Stay until death, and come back from it at once."""
    with seen(task, key):
        if witness.incr(f"tries:{task.request.id}") == 1:
            beat(key)
    return "at last"


@app.task(bind=True, base=LockedTask, name="breed", lock_key="{key}", lock_ttl=1.5)
def breed(task, key: str, how: str) -> None:
    """Fork, let the child look at the lock of this run and try to free it, and stay for some leases."""
    lock = current_lock()
    ours, theirs = multiprocessing.Pipe()

    def look() -> None:
        found = {"held": lock.held, "lost": lock.lost, "released": lock.release()}
        theirs.send({**found, "connections": sum(len(node._idle) for node in lock._store.client.servers.nodes())})
        time.sleep(LONGEST)

    with seen(task, key) as tell:
        if how == "subprocess":
            child = subprocess.Popen(["sleep", str(LONGEST)], start_new_session=True).pid
        elif how == "multiprocessing":
            # Celery's children are daemons, which multiprocessing would not let have children
            multiprocessing.current_process()._config["daemon"] = False
            process = multiprocessing.get_context("fork").Process(target=look)
            process.start()
            child = process.pid
        else:
            child = os.fork()
            if child == 0:
                look()
                os._exit(0)
        found = ours.recv() if how != "subprocess" else None
        time.sleep(2)  # longer than the ttl
        tell("bred", child=found, grandchild=child, held=lock.held)
        time.sleep(LONGEST)


@app.task(bind=True, base=LockedTask, name="eat", lock_key="{key}", lock_ttl=300)
def eat(task, key: str) -> str:
    """Make the child too large for ``max_memory_per_child``, and stay a while."""
    food = b"x" * 80_000_000
    hold(task, key, 0.2)
    return f"ate {len(food)}"


@app.task(bind=True, base=LockedTask, name="orphan", lock_key="{key}", lock_ttl=2)
def orphan(task, key: str) -> str:
    """Outlive the worker, which Linux would not allow: Celery asks it to kill the children with their parent."""
    ctypes.CDLL(None).prctl(1, 0)  # PR_SET_PDEATHSIG: none
    return hold(task, key)


@app.task(bind=True, base=LockedTask, name="sleep", lock_key="{key}", lock_ttl=1.5, lock_on_lost="abort")
def sleep(task, key: str, at_a_time: float) -> str:
    """Sleep until the lock is lost."""
    with seen(task, key) as tell:
        try:
            for _ in range(int(LONGEST / at_a_time)):
                time.sleep(at_a_time)
        except LockLost as exc:
            tell("aborted", error=str(exc))
            time.sleep(0.3)
            tell("cleaned")
            raise
    return "slept"


def work(task, key: str, seconds: float) -> str:
    with seen(task, key) as tell:
        time.sleep(seconds)
        tell("end")
    return key


for name, late in (("work_late", True), ("work_early", False)):
    app.task(
        bind=True,
        base=LockedTask,
        name=name,
        lock_key="{key}",
        lock_ttl=300,
        acks_late=late,
        reject_on_worker_lost=late,
    )(work)


@app.task(bind=True, base=LockedTask, name="lose", lock_key="{key}", lock_ttl=1)
def lose(task, key: str) -> str:
    """Lose the lock, and return all the same."""
    with seen(task, key):
        lock = current_lock()
        lock._store.locks.release(lock.lease)
        while not lock.lost:
            time.sleep(0.01)
    return "a result of nobody"


class Told(LockedTask):
    """Tell which of Celery's hooks is called."""

    def on_success(self, retval, task_id, args, kwargs):
        witness.rpush(f"hooks:{task_id}", "on_success")

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        witness.rpush(f"hooks:{task_id}", f"on_failure {type(exc).__name__}")


app.task(base=Told, name="lose_and_tell", bind=True, lock_key="{key}", lock_ttl=1)(lose.run.__func__)


def block(task, key: str, seconds: float) -> str:
    """Never yield to a loop."""
    with seen(task, key):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pass
    return key


for driver in ("redis", "memory"):
    name = f"block_with_{driver}"
    app.task(bind=True, base=LockedTask, name=name, lock_key="{key}", lock_ttl=1, lock_driver=driver)(block)


@app.task(bind=True, base=LockedTask, name="fail_at_first", lock_key="{key}", lock_ttl=300, acks_late=True)
def fail_at_first(task, key: str) -> str:
    """Fail the first time, when the test lets it go; and end well from then on."""
    with seen(task, key):
        if witness.incr(f"tries:{task.request.id}") == 1:
            deadline = time.monotonic() + LONGEST
            while time.monotonic() < deadline and not witness.exists(f"go:{task.request.id}"):
                time.sleep(0.02)
            raise ZeroDivisionError
    return "in the end"


@app.task(bind=True, base=LockedTask, name="end_just_in_time", lock_key="{key}", lock_ttl=300)
def end_just_in_time(task, key: str) -> str:
    """End when the test lets it: its store hangs then until the soft time limit has struck."""
    return hold(task, key)

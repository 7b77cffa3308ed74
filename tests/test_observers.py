"""No observer of a lock costs anybody a lock, whatever it does; and no thread is left where nothing is held any more."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import logging
import multiprocessing
import subprocess
import sys
import textwrap
import threading
import time
import types
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from celery.signals import worker_shutdown
from servers import wait_until

from celery_lockbeat import Lock, LockedTask, LockLost, current_lock, signals, threads
from celery_lockbeat.locks import children as lifecycle
from celery_lockbeat.locks.renewal import Renewer
from celery_lockbeat.observe import observers as telling
from celery_lockbeat.observe.events import Story
from celery_lockbeat.stores import stores_of

TTL = 1.2


@pytest.fixture
def app(app: Celery) -> Celery:
    """An app whose store is made: on a slow disk that takes most of a short lease, which nobody is to be blamed for."""
    stores_of(app).choose(app.conf.lockbeat_driver, "default")[0].locks.held()
    return app


@contextlib.contextmanager
def receiving(event: str, receiver) -> Iterator[None]:
    signal = getattr(signals, event)
    signal.connect(receiver)
    try:
        yield
    finally:
        signal.disconnect(receiver)
        telling.finish()


class Slow(logging.Handler):
    """A handler that writes nothing unless it may."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.may_go_on = threading.Event(), threading.Event()
        self.may_go_on.set()
        self.records: list[logging.LogRecord] = []

    def block(self) -> None:
        self.called.clear()
        self.may_go_on.clear()

    def emit(self, record: logging.LogRecord) -> None:
        self.called.set()
        self.may_go_on.wait(20)
        self.records.append(record)


@contextlib.contextmanager
def slow_handler(name: str) -> Iterator[Slow]:
    handler, logger = Slow(), logging.getLogger(name)
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        handler.may_go_on.set()
        telling.finish()
        logger.removeHandler(handler)
        logger.setLevel(level)


def keeps(lock: Lock, leases: float = 1.5) -> bool:
    """Whether it is still held after so many of its leases."""
    until = time.monotonic() + leases * lock.ttl
    while time.monotonic() < until:
        time.sleep(0.02)
        if not lock.held:
            return False
    return True


def test_a_receiver_that_takes_longer_than_the_ttl_costs_no_lock_of_the_process(app):
    called, may_go_on = threading.Event(), threading.Event()

    def receiver(**_):
        called.set()
        may_go_on.wait(20)

    with Lock("one", app=app, ttl=TTL) as one, Lock("other", app=app, ttl=TTL) as other:
        with receiving("lock_extended", receiver):
            assert called.wait(5)
            assert keeps(one)
            assert other.held
            may_go_on.set()


def test_a_log_handler_that_takes_longer_than_the_ttl_costs_no_lock_of_the_process(app):
    with (
        slow_handler("celery_lockbeat.events") as handler,
        Lock("k", app=app, ttl=TTL, logging="verbose") as lock,
    ):
        handler.block()  # from here on: what its owner tells, he waits for
        assert handler.called.wait(5)
        assert keeps(lock)
        handler.may_go_on.set()


def test_what_a_renewing_thread_logs_costs_nobody_a_lock(app, monkeypatch):
    locks = stores_of(app).choose(app.conf.lockbeat_driver, "default")[0].locks
    extend, failed = type(locks).extend, []

    def fail_once(*args, **kwargs):
        if not failed:
            failed.append(True)
            raise ZeroDivisionError("once")
        return extend(*args, **kwargs)

    monkeypatch.setattr(type(locks), "extend", fail_once)
    with slow_handler("celery_lockbeat") as handler, Lock("k", app=app, ttl=TTL, logging=False) as lock:
        handler.block()
        assert handler.called.wait(5)
        assert keeps(lock)
        handler.may_go_on.set()
        wait_until(lambda: handler.records, 5)
    record = handler.records[0]
    assert record.threadName == "lockbeat-renewer"
    assert "once" in logging.Formatter().format(record)


def test_a_receiver_that_raises_system_exit_ends_no_renewal_and_hides_no_later_event(app):
    told = []

    def receiver(**_):
        told.append(True)
        raise SystemExit

    with receiving("lock_extended", receiver), Lock("k", app=app, ttl=TTL) as lock:
        assert keeps(lock)
        wait_until(lambda: len(told) > 2, 5)


@pytest.mark.no_cover  # what strikes at any moment is not traced
def test_a_renewing_thread_into_which_system_exit_is_thrown_goes_on(app):
    before = threading.enumerate()
    with Lock("k", app=app, ttl=TTL) as lock:
        (thread,) = new_threads(before)
        for _ in range(3):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
            assert keeps(lock, leases=1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_renewing_thread_that_died_all_the_same_is_started_again(app, monkeypatch):
    goes_on, died = Renewer._goes_on, []

    def die_once(renewer):
        if not died:
            died.append(True)
            raise SystemExit
        return goes_on(renewer)

    before = threading.enumerate()
    with Lock("first", app=app, ttl=TTL) as first:
        monkeypatch.setattr(Renewer, "_goes_on", die_once)
        wait_until(lambda: died, 5)
        assert keeps(first)
        assert [thread.name for thread in new_threads(before)].count("lockbeat-renewer") == 1


@pytest.mark.parametrize("takes", [0.2, telling.PATIENCE + 0.3])
def test_a_lost_run_reads_in_order_however_slow_an_observer_is(make_app, driver, takes):
    app, told = make_app(lockbeat_driver=driver), []

    def slow(event, **_):
        time.sleep(takes)
        told.append(event)

    def receiver(event, **_):
        told.append(event)

    @app.task(base=LockedTask, lock_ttl=TTL)
    def lost():
        # as its renewal does
        thread = threading.Thread(target=current_lock()._own.lose, args=("so says the test",))
        thread.start()
        thread.join()

    with (
        receiving("lock_extend_failed", slow),
        receiving("lock_expired_before_finish", receiver),
        receiving("task_failed", receiver),
        receiving("task_finished", receiver),
    ):
        with pytest.raises(LockLost):
            lost()
        telling.finish()
    assert told == ["lock_extend_failed", "lock_expired_before_finish", "task_failed", "task_finished"]


def test_who_ends_a_story_does_not_wait_for_the_observers_of_another(app):
    may_go_on = threading.Event()

    def receiver(lock_key, **_):
        if lock_key == "slow":
            may_go_on.wait(20)

    slow, quick = Lock("slow", app=app), Lock("quick", app=app)
    with receiving("lock_expired_before_finish", receiver):
        slow.acquire()
        quick.acquire()
        slow._own.lose("so says the test")
        quick._own.lose("so says the test")
        began = time.monotonic()
        assert quick.release() is False
        assert time.monotonic() - began < telling.PATIENCE / 2
        may_go_on.set()
        assert slow.release() is False


def test_of_what_waits_for_an_observer_no_more_is_kept_than_a_bound_and_the_rest_is_counted(monkeypatch, caplog):
    monkeypatch.setattr(telling, "AT_MOST", 5)
    may_go_on, told = threading.Event(), []

    def receiver(number, **_):
        may_go_on.wait(20)
        told.append(number)

    story = Story(None, False)
    with receiving("lock_extended", receiver):
        story.later("lock_extended", number=0)
        wait_until(lambda: not story.pending._events, 5)
        for number in range(1, 21):
            story.later("lock_extended", number=number)
        assert len(story.pending._events) == 5
        may_go_on.set()
        telling.finish()
    assert told == list(range(6))
    assert "15 events were not told" in caplog.text


def test_a_forked_child_tells_its_own_and_nothing_of_its_parents(app):
    # without lines in the log: Python's buffered files are not to be used by two threads of which one forks
    may_go_on, told = threading.Event(), multiprocessing.get_context("fork").SimpleQueue()

    def receiver(lock_key, **_):
        if lock_key == "parents":
            may_go_on.wait(20)
        told.put(lock_key)

    def child() -> None:
        lock = Lock("childs", app=app, logging=False)
        lock.acquire()
        lock._own.lose("so says the test")
        lock.release()

    with receiving("lock_expired_before_finish", receiver):
        lock = Lock("parents", app=app, logging=False)
        lock.acquire()
        lock._own.lose("so says the test")
        forked = multiprocessing.get_context("fork").Process(target=child)
        forked.start()
        forked.join(30)
        assert forked.exitcode == 0
        assert told.get() == "childs"
        assert told.empty()
        may_go_on.set()
        lock.release()


def test_a_child_that_is_forked_while_its_parent_sends_a_signal_can_send_it_too(app):
    def child() -> None:
        lock = Lock("k", app=app, logging=False)
        lock.acquire()
        lock._own.lose("so says the test")
        lock.release()

    received = multiprocessing.get_context("fork").Event()
    signal = signals.lock_expired_before_finish
    forked = multiprocessing.get_context("fork").Process(target=child)
    # its lock, as send() holds it for a moment
    with receiving("lock_expired_before_finish", lambda **_: received.set()), signal.lock:
        forked.start()
    try:
        assert received.wait(20)
        forked.join(20)
        assert forked.exitcode == 0
    finally:
        forked.kill()


EXIT = """
import logging, sys, time
from celery import Celery
from celery_lockbeat import Lock
from celery_lockbeat.observe.events import log_json_lines

class Slow(logging.StreamHandler):
    def emit(self, record):
        time.sleep(0.3)
        super().emit(record)

logging.getLogger("celery_lockbeat.events").addHandler(Slow(sys.stdout))
app = Celery("app", broker="memory://")
app.conf.update(lockbeat_driver="memory", lockbeat_memory_path=sys.argv[1])
lock = Lock("k", app=app)
lock.acquire()
lock._own.lose("so says the test")
"""


def test_a_process_that_ends_tells_what_is_untold(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", EXIT, str(tmp_path / "memory")], capture_output=True, text=True, timeout=60
    )
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == [
        "lock_extend_failed",
        "lock_expired_before_finish",
    ], done.stderr


# -- threads -----------------------------------------------------------------------------------------------------------


def new_threads(before: list[threading.Thread]) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread not in before]


def test_no_thread_is_left_when_nothing_is_held_and_the_app_is_closed_and_it_begins_again_when_needed(make_app, driver):
    before, told = threading.enumerate(), []
    app = make_app(lockbeat_driver=driver)
    with receiving("lock_extended", lambda **_: told.append(True)):
        for _ in range(2):
            with Lock("k", app=app, ttl=TTL) as lock:
                assert keeps(lock, leases=1)
    # who watched its last round has just gone
    wait_until(lambda: len(new_threads(before)) == 1, 5)
    app.close()
    assert not new_threads(before)
    with Lock("k", app=app, ttl=TTL) as lock:
        assert keeps(lock)
    wait_until(lambda: not new_threads(before), 5)


def test_a_lock_that_is_held_when_its_app_is_closed_is_kept_until_it_is_released(make_app, driver):
    before = threading.enumerate()
    app = make_app(lockbeat_driver=driver)
    with Lock("k", app=app, ttl=TTL) as lock:
        app.close()
        assert keeps(lock)
    wait_until(lambda: not new_threads(before), 5)


def test_an_app_that_is_gone_leaves_no_thread_and_no_store(make_app, driver, tmp_path):
    before = threading.enumerate()
    app = Celery("gone", broker=make_app().conf.broker_url, set_as_current=False)
    app.conf.update(lockbeat_driver=driver, lockbeat_memory_path=str(tmp_path / "memory"))
    with Lock("k", app=app, ttl=TTL):
        pass
    store = weakref.ref(stores_of(app).choose(driver, "default")[0])
    assert len(new_threads(before)) == 1
    del app
    gc.collect()
    assert store() is None
    wait_until(lambda: not new_threads(before), 5)


def test_who_watches_the_children_of_a_pool_ends_with_the_last_of_them_once_the_worker_is_shut_down(
    make_app, monkeypatch
):
    monkeypatch.setattr(lifecycle, "_parent", None)
    before = threading.enumerate()
    lifecycle._begin(sender=types.SimpleNamespace(app=make_app()))
    may_end = multiprocessing.get_context("fork").Event()
    child = multiprocessing.get_context("fork").Process(target=may_end.wait)
    child.start()
    assert [thread.name for thread in new_threads(before)] == ["lockbeat-parent"]
    worker_shutdown.send(sender=None)
    assert new_threads(before)
    may_end.set()
    wait_until(lambda: not new_threads(before), 5)
    child.join()
    later = multiprocessing.get_context("fork").Process(target=int)
    later.start()
    later.join()
    assert not new_threads(before)


def test_runs_start_no_thread_of_their_own(app, monkeypatch):
    @app.task(base=LockedTask)
    def body():
        pass

    body()
    monkeypatch.setattr(threads, "start", lambda *_: pytest.fail("a run has started a thread"))
    for _ in range(20):
        body()


USERS_TESTS = """
import threading, time
import pytest
from celery_lockbeat import Lock, LockedTask, signals

told = []

@signals.lock_extended.connect
def receiver(**_):
    told.append(True)

@pytest.fixture(scope="session")
def celery_config():
    return {{"broker_transport_options": {{"polling_interval": 0.05}}, "lockbeat_driver": {driver!r}, "lockbeat_redis_url": {url!r}, "lockbeat_memory_path": {path!r}, "lockbeat_ttl": 0.3}}

@pytest.fixture(autouse=True)
def threads_not_lingering():  # as in Celery's own suite, t/unit/conftest.py
    before = threading.enumerate()
    yield
    assert threading.enumerate() == before

def test_a_lock(celery_app):
    with Lock("k", app=celery_app):
        time.sleep(0.5)
    assert told

def test_a_task(celery_app):
    @celery_app.task(base=LockedTask)
    def body():
        time.sleep(0.5)
    body()

def test_a_worker(celery_app):
    from celery.contrib.testing.worker import start_worker
    @celery_app.task(base=LockedTask)
    def body():
        time.sleep(0.5)
        return 7
    with start_worker(celery_app, pool="solo", perform_ping_check=False):
        assert body.delay().get(timeout=10) == 7
"""


def run_pytest(module: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "celery.contrib.pytest", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, "-p", "no:ddtrace", "-c", "/dev/null", f"--rootdir={module.parent}", str(module)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def test_celerys_fixtures_and_its_look_for_lingering_threads_see_none_of_ours(server, driver, tmp_path):
    module = tmp_path / "test_users.py"
    module.write_text(textwrap.dedent(USERS_TESTS).format(driver=driver, url=server.url, path=str(tmp_path / "memory")))
    done = run_pytest(module)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


A_PROJECTS_TESTS = """
import threading, time
import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery_lockbeat import LockedTask, signals

app = Celery("project", broker={url!r}, backend={url!r})  # of the whole process: nobody ever closes it
app.conf.update(task_default_queue={driver!r}, lockbeat_driver={driver!r}, lockbeat_memory_path={path!r}, lockbeat_ttl=1.0)

@app.task(base=LockedTask, name="body")
def body(seconds):
    time.sleep(seconds)
    return 7

@signals.lock_extended.connect
def receiver(**_):
    time.sleep(0.05)

def ours():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lockbeat-")]

@pytest.mark.parametrize(("pool", "seconds"), [("solo", 0.5), ("threads", 0.5), ("prefork", 0.5), ("prefork", 0)])
def test_a_worker(pool, seconds):
    for _ in range(2):
        with start_worker(app, pool=pool, perform_ping_check=False):
            assert body.delay(seconds).get(timeout=20) == 7
            assert ours()
        assert ours() == []
"""


def test_a_worker_that_ends_in_a_test_leaves_no_thread_of_ours_though_its_app_is_never_closed(server, driver, tmp_path):
    module = tmp_path / "test_project.py"
    text = textwrap.dedent(A_PROJECTS_TESTS)
    module.write_text(text.format(driver=driver, url=server.url, path=str(tmp_path / "memory")))
    done = run_pytest(module)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_who_closes_an_app_waits_until_what_its_locks_told_is_written(make_app, driver):
    before = threading.enumerate()
    app, told = make_app(lockbeat_driver=driver), []

    def receiver(**_):
        time.sleep(0.1)
        told.append(True)

    signals.lock_extended.connect(receiver)
    try:
        lock = Lock("k", app=app, ttl=TTL)
        assert lock.acquire()
        wait_until(lambda: "lockbeat-observers" in [thread.name for thread in new_threads(before)], 5)
        lock._story.later("lock_extended")
        lock._acquisition.renewer.discard(lock._own)
        app.close()
        assert len(told) >= 2
        assert not new_threads(before)
    finally:
        signals.lock_extended.disconnect(receiver)
        lock.release()


def test_an_observer_may_close_the_app(make_app, driver):
    app, closed = make_app(lockbeat_driver=driver), threading.Event()

    def receiver(**_):
        app.close()
        closed.set()

    with receiving("lock_extended", receiver), Lock("k", app=app, ttl=TTL) as lock:
        assert closed.wait(10)
        assert lock.held


def test_a_renewer_that_rests_between_two_workers_stays_until_the_next_ends(make_app, driver):
    before = threading.enumerate()
    app = make_app(lockbeat_driver=driver)
    with Lock("k", app=app):
        pass
    (first,) = new_threads(before)
    worker_shutdown.send(sender=None)
    assert not new_threads(before)
    for _ in range(3):
        with Lock("k", app=app):
            pass
        threads_now = new_threads(before)
        assert len(threads_now) == 1
    assert threads_now != [first]

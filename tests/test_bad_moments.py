"""The store is gone just when a run begins or ends: what then stands, and what is not left behind."""

from __future__ import annotations

import json
import logging
import threading
import time

import pytest
from held import is_free
from proxy import Proxy
from servers import wait_until

from celery_lockbeat import Lock, LockedTask, StoreUnavailable
from celery_lockbeat.stores import stores_of

PATIENCE = {"lockbeat_redis_options": {"socket_timeout": 0.2, "socket_connect_timeout": 0.2}}


@pytest.fixture
def proxy(spare_server):
    with Proxy(spare_server.port) as proxy:
        yield proxy


@pytest.fixture
def app(make_app, proxy):
    return make_app(lockbeat_redis_url=proxy.url, lockbeat_driver="redis", lockbeat_ttl=300, **PATIENCE)


@pytest.fixture
def direct(make_app, spare_server):
    """The same store on another way."""
    return make_app(lockbeat_redis_url=spare_server.url, lockbeat_driver="redis")


def events(caplog) -> list[str]:
    return [json.loads(r.getMessage())["event"] for r in caplog.records if r.name == "celery_lockbeat.events"]


def test_a_store_that_dies_before_the_release_changes_no_outcome_and_a_warning_says_so(app, proxy, direct, caplog):
    caplog.set_level(logging.INFO, "celery_lockbeat.events")

    @app.task(base=LockedTask, lock_key="k", lock_logging="verbose")
    def body():
        proxy.black_hole()
        return "done"

    assert body() == "done"
    assert events(caplog) == ["task_started", "lock_acquired", "task_succeeded", "task_finished"]
    [warning] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning.startswith("lock 'k' ends by its ttl of 300 s, unless the store comes back before")
    proxy.restore()
    # it is told what it has missed: nobody has to wait for the ttl
    wait_until(lambda: is_free(direct, "k"), 10)
    assert "lock_released" not in events(caplog)


def test_an_acquire_whose_answer_was_lost_leaves_no_lock_behind(app, proxy, direct, caplog):
    caplog.set_level(logging.INFO, "celery_lockbeat.events")
    ran = []

    @app.task(base=LockedTask, lock_key="k")
    def body():
        ran.append(1)

    with Lock("other", app=app):
        proxy.swallow_answers()
        with pytest.raises(StoreUnavailable):
            body()
        assert not ran
        assert not is_free(direct, "k")  # it was carried out
        proxy.restore()
        wait_until(lambda: is_free(direct, "k"), 10)
        assert body() is None
    assert len(ran) == 1


def test_a_block_that_never_heard_that_it_has_the_lock_leaves_none_behind(app, proxy, direct):
    with Lock("other", app=app):
        proxy.swallow_answers()
        with pytest.raises(StoreUnavailable), Lock("k", app=app):
            raise AssertionError
        assert not is_free(direct, "k")  # it was carried out
        proxy.restore()
        wait_until(lambda: is_free(direct, "k"), 10)


def test_the_same_run_that_asks_again_gets_its_own_lock_back(make_app, proxy):
    patient = {"lockbeat_redis_options": {"socket_timeout": 1, "socket_connect_timeout": 1}}
    app = make_app(lockbeat_redis_url=proxy.url, lockbeat_driver="redis", **patient)
    with Lock("other", app=app):  # there is a connection
        pass
    proxy.swallow_answers()
    timer = threading.Timer(1.5, proxy.restore)  # the first answer is lost, the second is not
    timer.start()
    with Lock("k", app=app) as lock:
        assert lock.held
    timer.join()


def test_a_fallback_to_memory_leaves_no_lock_behind_in_redis(make_app, proxy, direct):
    app = make_app(lockbeat_redis_url=proxy.url, lockbeat_ttl=300, **PATIENCE)
    proxy.swallow_answers()
    with Lock("k", app=app) as lock:
        assert lock._store.driver == "memory"
        proxy.restore()
        wait_until(lambda: is_free(direct, "k"), 10)


@pytest.mark.no_cover  # coverage's own locks do not survive this
@pytest.mark.parametrize("delay", [0.0, 0.0005, 0.001, 0.002])
def test_an_exception_from_outside_during_the_acquire_leaves_no_lock_behind(app, direct, proxy, delay):
    """A soft time limit may come at any moment."""
    import signal

    class LimitError(Exception):
        pass

    def limit(*_):
        raise LimitError

    @app.task(base=LockedTask, lock_key="k")
    def body():
        time.sleep(1)

    before = signal.signal(signal.SIGALRM, limit)
    proxy.delay(0.01)
    try:
        struck = False
        while not struck:  # Python swallows what strikes in a destructor, such as that of another test's connections
            signal.setitimer(signal.ITIMER_REAL, 0.02 + delay)
            try:
                body()
            except LimitError:
                struck = True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        proxy.restore()
    wait_until(lambda: is_free(direct, "k"), 10)


def test_a_store_that_hangs_in_a_renewal_does_not_delay_the_news_of_the_loss(make_app, proxy, monkeypatch):
    app = make_app(lockbeat_redis_url=proxy.url, lockbeat_driver="redis")
    locks = type(stores_of(app).choose("redis", "default")[0].locks)
    extend, told = locks.extend, []
    # as if it did not keep to the time that an attempt has
    monkeypatch.setattr(locks, "extend", lambda self, leases, **_: extend(self, leases))

    def receiver(event, **_):
        told.append((event, time.monotonic()))

    from celery_lockbeat import signals

    signals.lock_expired_before_finish.connect(receiver)
    try:
        with Lock("k", app=app, ttl=1, on_lost="warn"):
            began = time.monotonic()
            proxy.black_hole()
            wait_until(lambda: told, 4)
            assert told[0][1] - began < 2
    finally:
        signals.lock_expired_before_finish.disconnect(receiver)


def test_a_renewal_whose_answer_was_lost_keeps_the_key_of_a_lost_lock_from_nobody(make_app, proxy, direct):
    app = make_app(lockbeat_redis_url=proxy.url, lockbeat_driver="redis")
    with Lock("k", app=app, ttl=1, auto_extend=False, on_lost="warn") as lock:
        proxy.black_hole()
        # as a server would that hung and then carried out what it had been sent
        assert stores_of(direct).choose("redis", "default")[0].locks.extend([(lock.lease, 300)]) == [True]
        wait_until(lambda: lock.lost, 4)
    proxy.restore()
    wait_until(lambda: is_free(direct, "k"), 10)

"""What a Redis refuses, forgets and cannot do; how long anybody waits for it; and what is said of it at start-up."""

from __future__ import annotations

import logging
import time

import pytest
from fake_redis import fake_redis, hello, of_version, tried
from servers import Server, free_port, wait_until
from topologies import frozen

from celery_lockbeat import ConfigurationError, Lock, LockedTask
from celery_lockbeat.exceptions import StoreUnavailable
from celery_lockbeat.options import LockOptions
from celery_lockbeat.stores.base import Lease
from celery_lockbeat.stores.redis.servers import Servers
from celery_lockbeat.stores.redis.store import RedisStore

#: A half and a half second: what an operation may take.
SHORT = {"socket_timeout": 0.5, "socket_connect_timeout": 0.5, "protocol": 2}

SLACK = 2.0

FOR_NOW = [
    "READONLY You can't write against a read only replica.",
    "LOADING Redis is loading the dataset in memory",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "CLUSTERDOWN The cluster is down",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "NOREPLICAS Not enough good replicas to write.",
    "NOSCRIPT No matching script.",
]


def granted(words):
    """A token, and the number of the request where it is one of several tries."""
    token, number = b":7000000000\r\n", words[-1]
    return b"*2\r\n$%d\r\n%b\r\n%b" % (len(number), number, token) if number.startswith(b"-") else token


def operations(store):
    lease = Lease("key", "a", None, 1)
    return [
        lambda: store.locks.acquire("key", holder="a", ttl=30),
        lambda: store.locks.extend([(lease, 30), (lease, 30)]),
        lambda: store.locks.release(lease),
    ]


@pytest.mark.parametrize("refusal", FOR_NOW, ids=lambda text: text.split()[0])
def test_what_is_refused_for_now_is_asked_again_until_it_is_answered(refusal):
    asked = []

    def answer(words):
        asked.append(words)
        return f"-{refusal}\r\n".encode() if len(asked) <= (1 if "NOSCRIPT" in refusal else 3) else granted(words)

    with fake_redis(answer) as server:
        store = RedisStore(server.url, options=SHORT)
        assert store.locks.acquire("key", holder="a", ttl=30).token == 7_000_000_000
        store.close()
    assert len(asked) >= 2


@pytest.mark.parametrize("more", [b":7000000001\r\n", b"\r\n", b":70"])
def test_a_grant_with_more_behind_it_is_none_and_is_asked_for_anew(more):
    asked = []

    def answer(words):
        asked.append(words)
        return b":7000000002\r\n" + more if len(asked) == 1 else granted(words)

    with fake_redis(answer) as server:
        store = RedisStore(server.url, options=SHORT)
        assert store.locks.acquire("key", holder="a", ttl=30).token == 7_000_000_000
        assert store.locks.acquire("other", holder="a", ttl=30).token == 7_000_000_000
        store.close()
    assert len(asked) == 3


@pytest.mark.parametrize("refusal", FOR_NOW, ids=lambda text: text.split()[0])
def test_what_is_refused_all_the_time_is_given_up_in_time_and_named(refusal):
    with fake_redis(lambda _: f"-{refusal}\r\n".encode()) as server:
        store = RedisStore(server.url, options=SHORT)
        for operation in operations(store):
            started = time.monotonic()
            with pytest.raises(StoreUnavailable, match=refusal.split(maxsplit=2)[2][:20]):
                operation()
            took = time.monotonic() - started
            assert took < 1 + SLACK
            assert took > 0.8 or "NOSCRIPT" in refusal, "it was tried for all of the time"
        store.close()


def test_why_it_is_refused_is_told_though_the_last_of_the_tries_was_not_answered(monkeypatch):
    asked, reached = [], []
    monkeypatch.setattr(Servers, "_reach_another", lambda _: bool(reached.append(True)))

    def answer(_):
        asked.append(time.monotonic())
        # so late that there is no whole time-out left for it
        return b"-BUSY Redis is busy\r\n" if asked[-1] - asked[0] < 0.6 else b""

    with fake_redis(answer) as server:
        store = RedisStore(server.url, options=SHORT)
        with pytest.raises(StoreUnavailable, match="BUSY"):
            store.locks.acquire("key", holder="a", ttl=30)
        store.close()
    assert asked[-1] - asked[0] >= 0.6
    assert reached, "one that does not answer may have been replaced, whatever it said before"


def test_a_replica_refuses_and_nothing_is_locked(server):
    with Server("--replicaof", "127.0.0.1", str(server.port), "--repl-diskless-sync-delay", "0") as replica:
        store = RedisStore(replica.url, options=SHORT)
        with pytest.raises(StoreUnavailable, match=r"(?i)readonly|read only"):
            store.locks.acquire("key", holder="a", ttl=30)
        store.close()
    with server.client() as client:
        assert not client.keys("lockbeat:*")


def test_a_replica_that_lost_its_primary_and_will_not_answer_says_so():
    with Server("--replica-serve-stale-data", "no") as replica, replica.client() as admin:
        admin.replicaof("127.0.0.1", free_port())
        store = RedisStore(replica.url, options=SHORT)
        with pytest.raises(StoreUnavailable, match=r"MasterDownError: Link with MASTER is down"):
            store.locks.acquire("key", holder="a", ttl=30)
        store.close()


def test_a_server_that_is_busy_with_anothers_script_is_waited_for_and_then_given_up(spare_server):
    with spare_server.client() as admin, spare_server.client() as client:
        admin.config_set("busy-reply-threshold", 10)
        # while it is busy it hears its clients now and then only, beside other tests not within half a second
        store = RedisStore(spare_server.url, options={**SHORT, "socket_timeout": 2})
        busy = client.client()
        busy.connection.send_command("EVAL", "while true do end", 0)
        wait_until(lambda: "BUSY" in _refusal_of(admin), message="it is busy")
        with pytest.raises(StoreUnavailable, match="BUSY"):
            store.locks.acquire("key", holder="a", ttl=30)
        admin.execute_command("SCRIPT", "KILL")
        assert isinstance(store.locks.acquire("key", holder="a", ttl=30), Lease)
        store.close()
        busy.connection.disconnect()


def _refusal_of(client):
    try:
        client.get("x")
    except Exception as exc:
        return str(exc)
    return ""


def test_a_full_server_is_unavailable_and_nothing_runs(spare_server, make_app):
    app = make_app(lockbeat_redis_url=spare_server.url)
    runs = []

    @app.task(base=LockedTask, lock_driver="redis")
    def body():
        runs.append(1)

    with spare_server.client() as client:
        client.config_set("maxmemory", 1)
        with pytest.raises(StoreUnavailable, match="full .maxmemory"):
            body()
        client.config_set("maxmemory", 0)
    body()
    assert runs == [1]


# -- how long anybody waits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ttl", [0.6, 3, 30, 300])
def test_three_attempts_to_extend_fit_into_a_lease(ttl):
    for interval in (None, ttl / 10, ttl / 2, ttl * 0.9):
        options = LockOptions(ttl=ttl, extend_interval=interval)
        spent = options.extends_every + 3 * options.attempt + 2 * options.retries_every
        assert spent <= ttl * 0.99 + 1e-9


def test_no_operation_outlasts_its_time_or_the_lease_it_is_about(spare_server):
    store = RedisStore(spare_server.url, options={"socket_timeout": 1, "socket_connect_timeout": 0.5})
    lease = store.locks.acquire("key", holder="a", ttl=600)

    def took(operation):
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            operation()
        return time.monotonic() - started

    with frozen(spare_server):
        assert 1.4 < took(lambda: store.locks.release(lease)) < 1.5 + SLACK
        assert 0.2 < took(lambda: store.locks.extend([(lease, 600)], within=0.3)) < 1
        assert 0.4 < took(lambda: store.locks.acquire("other", holder="a", ttl=0.5)) < 1.2
    store.close()


def test_a_run_is_renewed_in_spite_of_a_server_that_hangs_for_a_third_of_its_lease(spare_server, make_app):
    app = make_app(lockbeat_redis_url=spare_server.url)
    with Lock("key", app=app, driver="redis", ttl=3) as lock:
        for _ in range(2):
            with frozen(spare_server):
                time.sleep(1)
            until = time.monotonic() + 1.5
            wait_until(lambda until=until: lock.remaining > 2 or time.monotonic() > until)
            assert lock.held


@pytest.mark.parametrize("name", ["socket_timeout", "socket_connect_timeout"])
def test_time_outs_of_which_three_do_not_fit_into_a_lease_are_refused_with_all_numbers(make_app, name):
    app = make_app(lockbeat_redis_url="redis://h", lockbeat_redis_options={name: 3})
    expected = (
        f"{name} of the Redis connection 'default' is 3; allowed: at most .*, for 3 attempts .* of .*, 10, .* of 3.3"
    )
    with pytest.raises(ConfigurationError, match=expected):
        Lock("key", app=app, driver="redis", ttl=10)

    @app.task(base=LockedTask, lock_ttl=10)
    def body():
        pass

    with pytest.raises(ConfigurationError, match=expected):
        app.finalize()
    Lock("key", app=app, driver="redis", ttl=30)
    Lock("key", app=app, driver="redis", ttl=10, auto_extend=False)
    Lock("key", app=app, driver="memory", ttl=10)


# -- what is said at start-up ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["5.0.14", "6.0.16", "6.1.0"])
def test_a_server_that_is_too_old_is_refused_with_its_version(version):
    with fake_redis(of_version(version)) as server:
        store = RedisStore(server.url, options=SHORT)
        with pytest.raises(ConfigurationError, match=rf"version {version}; allowed: from 6\.2 on"):
            store.check()
        store.close()


@pytest.mark.parametrize("version", ["6.2.0", "7.2.4", "9.1.2", "10.0.1"])
def test_a_server_that_is_new_enough_is_not(version):
    with fake_redis(of_version(version)) as server:
        store = RedisStore(server.url, options=SHORT)
        store.check()
        store.close()


def test_a_server_that_may_not_tell_its_memory_is_not_refused():
    def answer(words):
        if words[0] == b"EVALSHA":
            return tried(words)
        return hello("7.0.0") if words[0] == b"HELLO" else b"-NOPERM this user has no permissions to run 'info'\r\n"

    with fake_redis(answer) as server:
        store = RedisStore(server.url, options=SHORT)
        store.check()
        store.close()


@pytest.mark.parametrize(("policy", "warned"), [("allkeys-lru", 1), ("volatile-ttl", 1), ("noeviction", 0)])
def test_a_server_that_may_evict_locks_is_warned_of_once(spare_server, caplog, policy, warned):
    with spare_server.client() as client:
        client.config_set("maxmemory-policy", policy)
        store = RedisStore(spare_server.url)
        store.check()
        assert not caplog.records, "it has no limit"
        client.config_set("maxmemory", "100mb")
        store = RedisStore(spare_server.url)
        for _ in range(2):
            store.check()
        store.close()
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len([each for each in told if policy in each and "100 MiB" in each]) == warned == len(told)

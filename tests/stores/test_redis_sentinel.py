"""Locks behind Sentinels: a primary, two replicas, three Sentinels, and real failovers."""

from __future__ import annotations

import itertools
import re

import pytest
from servers import wait_until
from topologies import NAME, Trio

from celery_lockbeat import ConfigurationError, Lock, LockedTask
from celery_lockbeat.exceptions import StoreUnavailable
from celery_lockbeat.options import AppOptions
from celery_lockbeat.stores.base import Claim, EntryState, Finished, Held, Lease
from celery_lockbeat.stores.redis.store import RedisStore

_keys = itertools.count()


@pytest.fixture
def trio(tmp_path):
    with Trio(tmp_path) as trio:
        yield trio


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Servers with a password, which no test of the module harms."""
    with Trio(tmp_path_factory.mktemp("trio"), password="s:e/c@r et") as trio:
        yield trio


@pytest.fixture
def open_store(request):
    def open_it(trio, **options):
        min_replicas = options.pop("min_replicas", 0)
        store = RedisStore(trio.url, options={"master_name": NAME, **options}, min_replicas=min_replicas)
        request.addfinalizer(store.close)
        return store

    return open_it


def once(operation):
    """Ask until the store answers."""
    answers = []

    def asked():
        try:
            answers.append(operation())
        except StoreUnavailable:
            return False
        return True

    wait_until(asked, 30)
    return answers[-1]


def test_a_lock_that_a_replica_had_is_kept_through_a_failover_and_its_run_is_remembered(trio, open_store):
    store = open_store(trio, min_replicas=1)
    held = store.locks.acquire("held", holder="a", ttl=600, run="r1")
    over = store.locks.acquire("over", holder="a", ttl=600, run="r2")
    assert store.locks.release(over, remember_for=600)
    trio.fail_over()
    assert once(lambda: store.locks.extend([(held, 600)])) == [True]
    assert isinstance(store.locks.acquire("held", holder="b", ttl=600, run="r3"), Held)
    assert isinstance(store.locks.acquire("over", holder="b", ttl=600, run="r2"), Finished)


def test_a_primary_that_is_frozen_and_comes_back_is_not_asked_any_more(trio, open_store):
    store = open_store(trio, min_replicas=1, socket_timeout=0.5)
    lease = store.locks.acquire("key", holder="a", ttl=600)
    old = trio.primary()
    new = trio.fail_over(lambda server: server.pause())
    assert once(lambda: store.locks.extend([(lease, 600)])) == [True]
    old.resume()
    wait_until(lambda: old.role() == "slave", 30, "the Sentinels make it a replica")
    assert store.locks.release(lease)
    later = once(lambda: store.locks.acquire("key", holder="b", ttl=600))
    assert later.token > lease.token
    with new.client() as client:
        assert str(later.token) in client.get("lockbeat:lock:{key}")


@pytest.mark.parametrize(
    "refuses", [[], ["--min-replicas-to-write", "1"]], ids=["replicas fail to confirm", "it refuses"]
)
def test_a_primary_that_was_replaced_unnoticed_is_left_before_the_sentinels_make_it_a_replica(
    tmp_path, open_store, refuses
):
    """It answers, on a connection that was idle meanwhile, and takes itself for the primary for ten seconds more."""
    with Trio(tmp_path, *refuses) as trio:
        store = open_store(trio, min_replicas=1)
        store.locks.acquire("before", holder="a", ttl=600)
        old = trio.primary()
        new = trio.fail_over(lambda server: server.pause())
        wait_until(
            lambda: new.info().get("slave0", {}).get("state") == "online", message="the other replica follows it"
        )
        wait_until(lambda: trio.all_name(new), message="the leader of the election names it to redis-py, too")
        old.resume()
        if refuses:
            wait_until(lambda: old.info()["min_slaves_good_slaves"] == 0, message="it notices that no replica is left")
            lease = store.locks.acquire("key", holder="a", ttl=600)
        else:
            with pytest.raises(StoreUnavailable, match="only 0 of"):
                store.locks.acquire("key", holder="a", ttl=600)
            lease = store.locks.acquire("key", holder="a", ttl=600)
        assert old.role() == "master", "too late to tell"
        with new.client() as client:
            assert str(lease.token) in client.get("lockbeat:lock:{key}")


def test_without_min_replicas_a_failover_can_lose_a_lock_and_only_its_token_tells(trio, open_store):
    """What an asynchronous failover can break: the primary dies with what no replica has received."""
    store = open_store(trio)
    first = store.locks.acquire("before", holder="a", ttl=600)
    trio.cut_replicas()
    lost = store.locks.acquire("key", holder="a", ttl=600)
    assert isinstance(lost, Lease)
    trio.fail_over()
    second = once(lambda: store.locks.acquire("key", holder="b", ttl=600))
    assert isinstance(second, Lease), "two holders at once"
    assert second.token > lost.token, "which a write that is fenced can tell"
    assert store.locks.extend([(first, 600), (lost, 600)]) == [True, False], (
        "and the first learns it at its next renewal"
    )


def test_with_min_replicas_nothing_is_granted_that_a_failover_could_lose(trio, open_store):
    store = open_store(trio, min_replicas=1)
    known = store.locks.acquire("known", holder="a", ttl=600)
    trio.cut_replicas()
    with pytest.raises(StoreUnavailable, match="only 0 of lockbeat_redis_min_replicas=1 replicas"):
        store.locks.acquire("key", holder="a", ttl=600)
    with pytest.raises(StoreUnavailable, match="only 0 of lockbeat_redis_min_replicas=1 replicas"):
        store.locks.extend([(known, 600)])
    with pytest.raises(StoreUnavailable, match="only 0 of lockbeat_redis_min_replicas=1 replicas"):
        store.beats.claim("app", "replica", [Claim("id", "entry", EntryState(1, "now"), {})], ttl=5)
    trio.fail_over()
    assert isinstance(once(lambda: store.locks.acquire("key", holder="b", ttl=600)), Lease)


def test_while_no_primary_is_known_nothing_runs_unlocked(trio, open_store):
    store = open_store(trio, socket_timeout=0.5, socket_connect_timeout=0.5)
    trio.freeze_sentinels()
    trio.primary_at_first.kill()
    with pytest.raises(StoreUnavailable, match="No master found for 'locks'"):
        store.locks.acquire("key", holder="a", ttl=600)


def test_celerys_own_settings_of_a_sentinel_broker_are_enough(undisturbed, make_app):
    """``broker_url`` with its password, and kombu's ``master_name``; the database is the first one's that names one."""
    urls = undisturbed.url.replace("//", "//:s%3Ae%2Fc%40r%20et@").replace(";", "/3;")
    app = make_app(broker_url=urls, broker_transport_options={"master_name": NAME}, result_backend=None)
    runs = []

    @app.task(base=LockedTask, lock_driver="redis", lock_key="sentinel")
    def body():
        with undisturbed.primary().client() as client:
            client.select(3)
            runs.append(client.keys("lockbeat:lock:*"))

    body()
    assert runs == [["lockbeat:lock:{sentinel}"]]


def test_the_name_of_the_primary_may_be_ours_too_and_the_sentinels_may_need_arguments_of_their_own(
    undisturbed, make_app
):
    app = make_app(
        broker_url="memory://",
        lockbeat_redis_url=undisturbed.url,
        lockbeat_redis_options={
            "master_name": NAME,
            "password": undisturbed.password,
            "sentinel_kwargs": {"socket_timeout": 1, "client_name": "asks"},
            "min_other_sentinels": 2,
        },
    )
    with Lock("mine", app=app, driver="redis") as lock:
        assert lock.held


def test_a_sentinel_that_is_dead_is_passed_over(undisturbed):
    store = RedisStore(
        "sentinel://127.0.0.1:1;" + undisturbed.url, options={"master_name": NAME, "password": undisturbed.password}
    )
    assert isinstance(store.locks.acquire(f"key{next(_keys)}", holder="a", ttl=60), Lease)
    store.close()


def test_the_name_of_the_primary_is_asked_for_at_start_up(make_app):
    app = make_app(broker_url="sentinel://h:1;sentinel://h:2")
    with pytest.raises(ConfigurationError, match=re.escape("master_name of lockbeat_redis_options is None; allowed: ")):
        AppOptions.read(app.conf).connection("auto", "default")


def test_a_primary_that_the_sentinels_do_not_know_is_told_by_its_name(undisturbed):
    store = RedisStore(undisturbed.url, options={"master_name": "other", "password": "s:e/c@r et"})
    with pytest.raises(StoreUnavailable, match="No master found for 'other'") as error:
        store.locks.acquire("key", holder="a", ttl=1)
    assert "s:e/c@r et" not in str(error.value)

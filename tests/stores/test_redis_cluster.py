"""Locks in a Cluster of three primaries: renewals over all nodes, resharding, and primaries that are lost. The contract of
a store is tested there too (conftest.py)."""

from __future__ import annotations

import pytest
from servers import free_port, wait_until
from topologies import Nodes, frozen

from celery_lockbeat import ConfigurationError
from celery_lockbeat.exceptions import StoreUnavailable
from celery_lockbeat.options import AppOptions
from celery_lockbeat.stores.base import Held, Lease
from celery_lockbeat.stores.redis.node import Node
from celery_lockbeat.stores.redis.store import RedisStore


@pytest.fixture
def open_store(request):
    def open_it(url, *, min_replicas=0, **options):
        store = RedisStore(url, options={"cluster": True, **options}, min_replicas=min_replicas)
        request.addfinalizer(store.close)
        return store

    return open_it


@pytest.fixture
def spare_nodes():
    with Nodes() as nodes:
        yield nodes


def acquire_many(store, count=60):
    return [(store.locks.acquire(f"many{number}", holder="a", ttl=600), 600) for number in range(count)]


def test_locks_of_all_slots_are_renewed_with_one_round_trip_to_each_node(nodes, open_store, monkeypatch):
    store = open_store(nodes.url)
    leases = acquire_many(store)
    assert len({nodes.has_lock(lease.key).port for lease, _ in leases}) == 3
    store.locks.extend(leases)  # which lets each node learn the script
    asked, converse = [], Node.converse
    monkeypatch.setattr(Node, "converse", lambda *args: asked.append(1) or converse(*args))
    assert store.locks.extend(leases) == [True] * 60
    assert len(asked) == 3


def test_a_lock_is_kept_and_never_doubled_while_its_slot_moves(nodes, open_store):
    ours, theirs = open_store(nodes.url), open_store(nodes.url, socket_timeout=0.1, socket_connect_timeout=0.1)
    key = nodes.key_on(nodes.primaries[0])
    lease = ours.locks.acquire(key, holder="a", ttl=600, run="r1")

    def half():
        assert ours.locks.extend([(lease, 600)]) == [True]
        try:
            told = theirs.locks.acquire(key, holder="b", ttl=600, run="r2")
        except StoreUnavailable as exc:
            told = str(exc)
        # one key of the two is on its way: a command of both is refused for now
        assert isinstance(told, Held) or "TryAgainError" in told or "AskError" in told

    nodes.move(key, nodes.primaries[1], half)
    half()
    assert ours.locks.release(lease, remember_for=600)
    with nodes.primaries[1].client() as client:
        assert client.exists(f"lockbeat:lock:{{{key}}}")


def test_a_move_that_goes_on_meanwhile_is_waited_for(nodes, open_store):
    store = open_store(nodes.url)
    key = nodes.key_on(nodes.primaries[2], "waits")
    store.locks.release(store.locks.acquire(key, holder="a", ttl=600, run="r1"))
    store.locks.free(key, holder="a")
    for target in (nodes.primaries[0], nodes.primaries[1]):
        nodes.move(key, target)
        lease = store.locks.acquire(key, holder="b", ttl=600, run="r2")
        assert isinstance(lease, Lease)
        assert store.locks.release(lease)


def test_a_primary_that_is_lost_costs_no_lock_that_another_has(open_store):
    # else all nodes refuse all keys while nobody has those of one (Redis's default)
    with Nodes("--cluster-require-full-coverage", "no", replicas=True) as nodes:
        leases = acquire_many(open_store(nodes.url, min_replicas=1))
        store = open_store(nodes.urls)  # for what is promoted has no replica yet
        nodes.primaries[0].kill()
        there = [nodes.primaries[0] is not nodes.has_lock(lease.key) for lease, _ in leases]
        answers = []

        def all_are_extended():
            answers[:] = store.locks.extend(leases)
            assert [answer for answer, known in zip(answers, there, strict=True) if known] == [True] * sum(there)
            return answers == [True] * 60

        # by the replica that takes the place of its primary, and has what it had
        wait_until(all_are_extended, 30)
        assert isinstance(store.locks.acquire("many0", holder="b", ttl=600), Held)


def test_while_a_node_hangs_its_locks_alone_are_not_extended(spare_nodes, open_store):
    store = open_store(spare_nodes.urls, socket_timeout=0.5, socket_connect_timeout=0.5)
    leases = acquire_many(store)
    dead = spare_nodes.primaries[2]
    theirs = [spare_nodes.has_lock(lease.key) is dead for lease, _ in leases]
    with frozen(dead):
        for _ in range(2):
            answers = store.locks.extend(leases, within=1)
            assert [isinstance(answer, StoreUnavailable) for answer in answers] == theirs
            assert all(answer is True for answer, dead in zip(answers, theirs, strict=True) if not dead)
        with pytest.raises(StoreUnavailable):
            store.locks.acquire(
                next(lease.key for (lease, _), dead in zip(leases, theirs, strict=True) if dead), holder="b", ttl=9
            )
    wait_until(lambda: store.locks.extend(leases) == [True] * 60)


def test_a_cluster_that_is_down_says_so(spare_nodes, open_store):
    store = open_store(spare_nodes.urls)
    key = spare_nodes.key_on(spare_nodes.primaries[1])
    spare_nodes.primaries[0].kill()

    def is_down():
        try:
            store.locks.acquire(key, holder="a", ttl=0.2)
        except StoreUnavailable as exc:
            return "ClusterDownError" in str(exc)
        return False

    wait_until(is_down, 30)


def test_any_node_is_enough_to_find_the_others(nodes, open_store):
    store = open_store(f"redis://127.0.0.1:{free_port()};{nodes.primaries[2].url}")
    leases = acquire_many(store)
    assert store.locks.extend(leases) == [True] * 60


def test_addresses_can_be_mapped_for_those_who_are_elsewhere(nodes, open_store):
    seen = []
    store = open_store(nodes.url, address_remap=lambda address: seen.append(address) or ("localhost", address[1]))
    acquire_many(store, 20)
    assert {port for _, port in seen} == {node.port for node in nodes.primaries}
    assert {host for host, _ in store.client.servers._slots.values()} == {"localhost"}


def test_a_node_asked_as_if_it_were_alone_tells_which_option_is_missing(nodes):
    store = RedisStore(nodes.primaries[0].url)
    with pytest.raises(StoreUnavailable, match="'cluster': True"):
        store.locks.acquire(nodes.key_on(nodes.primaries[1]), holder="a", ttl=1)


def test_several_urls_or_a_database_are_refused_where_they_make_no_sense(make_app):
    with pytest.raises(ConfigurationError, match="lockbeat_redis_url is .* one URL"):
        AppOptions.read(make_app(lockbeat_redis_url="redis://a;redis://b").conf).connection("auto", "default")
    with pytest.raises(ConfigurationError, match="database 0 only"):
        RedisStore("redis://a/3", options={"cluster": True})

"""What only the Redis store promises: how it meets a server that forgets its scripts, is stopped, or is not there."""

from __future__ import annotations

import re
import socket
import time

import pytest
import redis
from servers import Server, free_port, wait_until

from celery_lockbeat import LockedTask
from celery_lockbeat.exceptions import StoreUnavailable
from celery_lockbeat.stores.base import TOKEN_MEMORY, Claim, EntryState, Finished, Held, Lease
from celery_lockbeat.stores.redis.store import RedisStore

IMPATIENT = {"socket_timeout": 0.3, "socket_connect_timeout": 0.3}


def every_operation(store):
    lease = Lease("key", "a", "r", 1)
    return [
        lambda: store.locks.acquire("key", holder="a", ttl=30, run="r"),
        lambda: store.locks.extend([(lease, 30), (lease, 30)]),
        lambda: store.locks.release(lease, remember_for=30),
    ]


def assert_unavailable(store, within):
    for operation in every_operation(store):
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            operation()
        assert time.monotonic() - started < within


def test_every_operation_survives_a_server_that_forgot_the_scripts(server: Server):
    store, client = RedisStore(server.url), server.client()
    client.script_flush()
    lease = store.locks.acquire("key", holder="a", ttl=30, run="r")
    client.script_flush()
    assert store.locks.extend([(lease, 30), (lease, 30)]) == [True, True]
    client.script_flush()
    assert store.locks.release(lease, remember_for=30) is True
    store.close()


def test_a_stopped_server_is_unavailable_in_bounded_time_and_comes_back(spare_server: Server):
    store = RedisStore(spare_server.url, options=IMPATIENT)
    lease = store.locks.acquire("key", holder="a", ttl=600)
    spare_server.pause()
    assert_unavailable(store, within=5)
    spare_server.resume()
    wait_until(lambda: store.locks.extend([(lease, 600)]) == [True])
    store.close()


def test_what_was_asked_of_a_server_that_hung_is_not_granted_when_it_wakes_up_and_nobody_waits(spare_server: Server):
    store, other = RedisStore(spare_server.url, options=IMPATIENT), RedisStore(spare_server.url)
    calls = lambda: spare_server.client().info("commandstats")["cmdstat_evalsha"]["calls"]  # noqa: E731
    store.locks.release(store.locks.acquire("another", holder="a", ttl=600))  # the server's time is known from then on
    before = calls()
    spare_server.pause()
    with pytest.raises(StoreUnavailable):
        store.locks.acquire("key", holder="a", ttl=600)
    time.sleep(IMPATIENT["socket_timeout"])  # now nobody waits, by the server's clock either
    spare_server.resume()
    wait_until(lambda: calls() > before)  # it has read what it was asked
    assert isinstance(other.locks.acquire("key", holder="b", ttl=600), Lease)
    store.close()
    other.close()


def test_a_server_that_is_not_there_is_unavailable_at_once():
    store = RedisStore(f"redis://127.0.0.1:{free_port()}/0", options=IMPATIENT)
    assert_unavailable(store, within=5)


def test_by_default_no_operation_waits_for_ever(spare_server: Server):
    store = RedisStore(spare_server.url)
    store.locks.acquire("key", holder="a", ttl=600)
    spare_server.pause()
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        store.locks.acquire("key", holder="a", ttl=600)
    assert time.monotonic() - started < 15
    spare_server.resume()


def test_a_server_that_was_started_anew_is_used_again_and_tokens_grow(spare_server: Server):
    store = RedisStore(spare_server.url, options=IMPATIENT)
    first = store.locks.acquire("key", holder="a", ttl=600)
    spare_server.kill()
    assert_unavailable(store, within=5)
    spare_server.start()
    assert store.locks.extend([(first, 600)]) == [False]
    assert store.locks.acquire("key", holder="b", ttl=600).token > first.token
    store.close()


def test_connections_that_the_server_closed_meanwhile_are_opened_anew(spare_server: Server):
    store = RedisStore(spare_server.url)
    lease = store.locks.acquire("key", holder="a", ttl=600)
    with spare_server.client() as client:
        for operation in every_operation(store):
            client.client_kill_filter(_type="normal", skipme=True)
            operation()
    assert store.locks.extend([(lease, 600)]) == [True]
    store.close()


def test_one_connection_serves_every_operation_of_one_thread(server: Server):
    store = RedisStore(server.url, options={"max_connections": 1})
    lease = store.locks.acquire("key", holder="a", ttl=600)
    assert store.locks.extend([(lease, 600)]) == [True]
    assert store.locks.release(lease) is True
    store.locks.acquire("key", holder="b", ttl=600)
    store.close()


@pytest.mark.parametrize("replicas", [0, 1])
def test_a_call_that_was_broken_off_leaves_no_answer_for_the_next(server: Server, monkeypatch, replicas):
    class Stop(BaseException):
        pass

    def stop(*args, **options):
        raise Stop

    store = RedisStore(server.url)
    lease = store.locks.acquire("key", holder="a", ttl=600)
    with monkeypatch.context() as broken:
        broken.setattr(store.client, "min_replicas", replicas)
        # as a soft time limit does it: the command is sent, its answer is not read
        broken.setattr(redis.Connection, "read_response", stop)
        with pytest.raises(Stop):
            store.locks.acquire("key", holder="b", ttl=600)
    assert store.locks.extend([(lease, 600)]) == [True]
    assert store.locks.release(lease) is True
    assert store.locks.acquire("key", holder="c", ttl=600).token > lease.token
    store.close()


class Around:
    """A socket whose ``recv`` and ``recv_into`` a test has in its hands."""

    def __init__(self, sock, recv):
        self._sock = sock
        self._recv = recv

    def __getattr__(self, name):
        return getattr(self._sock, name)

    def recv(self, size, flags=0):
        # with flags redis-py only looks whether there is something
        return self._sock.recv(size, flags) if flags else self._recv(self._sock, size)

    def recv_into(self, buffer):
        read = self.recv(len(buffer))
        buffer[: len(read)] = read
        return len(read)


@pytest.fixture
def reading(monkeypatch):
    """Give the sockets to come a ``recv``."""
    connect = redis.Connection._connect

    def reading(recv):
        monkeypatch.setattr(redis.Connection, "_connect", lambda self: Around(connect(self), recv))

    return reading


def test_a_grant_that_was_broken_off_leaves_no_answer_for_the_next(server: Server, reading):
    class Stop(BaseException):
        pass

    stops = False

    def recv(sock, size):
        if stops:
            raise Stop
        return sock.recv(size)

    reading(recv)
    store = RedisStore(server.url)
    first = store.locks.acquire("first", holder="a", ttl=600)
    stops = True
    with pytest.raises(Stop):
        store.locks.acquire("second", holder="b", ttl=600)
    stops = False
    third = store.locks.acquire("third", holder="c", ttl=600)
    assert store.locks.acquire("second", holder="b", ttl=600).token < third.token, (
        "it was granted, and is told when asked for"
    )
    assert store.locks.release(first)
    assert store.locks.release(third)
    store.close()


def test_an_answer_counts_though_the_server_has_closed_the_connection_behind_it(server: Server, reading):
    closes = False

    def recv(sock, size):
        read = sock.recv(size)
        if closes:
            sock.shutdown(socket.SHUT_RD)  # from now on it reads as one that the other side has closed
        return read

    reading(recv)
    store = RedisStore(server.url)
    store.locks.acquire("key", holder="a", ttl=600)
    closes = True
    assert isinstance(store.locks.acquire("key", holder="b", ttl=600), Held)
    closes = False
    assert isinstance(store.locks.acquire("key", holder="b", ttl=600), Held), "over another connection"
    store.close()


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("size", [1, 3, 12])
def test_answers_that_come_in_pieces_are_put_together(server: Server, reading, size, protocol):
    reading(lambda sock, wanted: sock.recv(min(wanted, size)))
    store = RedisStore(server.url, options={"protocol": protocol})
    lease = store.locks.acquire("key", holder="a", ttl=600, run="r", description="who")
    assert isinstance(lease, Lease)
    held = store.locks.acquire("key", holder="b", ttl=600)
    assert isinstance(held, Held)
    assert held.description == "who"
    assert store.locks.extend([(lease, 600), (lease, 600)]) == [True, True]
    assert store.locks.release(lease, remember_for=60)
    assert store.locks.acquire("key", holder="b", ttl=600, run="r") == Finished()
    store.close()


def test_what_a_persistent_server_acknowledged_survives_its_death():
    with Server(persistent=True) as server:
        store = RedisStore(server.url, options=IMPATIENT)
        store.locks.acquire("key", holder="a", ttl=600)
        server.restart()
        assert isinstance(store.locks.acquire("key", holder="b", ttl=600), Held)
        store.close()


def test_without_the_replicas_that_were_asked_for_no_lock_is_granted(server: Server):
    store = RedisStore(server.url, options=IMPATIENT, min_replicas=1)
    with pytest.raises(StoreUnavailable, match="min_replicas"):
        store.locks.acquire("key", holder="a", ttl=600)
    store.close()


def test_a_lock_is_granted_once_a_replica_has_it_and_nothing_runs_while_none_answers(make_app):
    with (
        Server("--repl-diskless-sync-delay", "0") as primary,
        Server("--replicaof", "127.0.0.1", str(primary.port)) as replica,
        replica.client() as copy,
    ):
        wait_until(lambda: copy.info("replication")["master_link_status"] == "up", message="the replica is in sync")
        app = make_app(
            lockbeat_driver="redis",
            lockbeat_redis_url=primary.url,
            lockbeat_redis_options=IMPATIENT,
            lockbeat_redis_min_replicas=1,
        )
        runs = []

        @app.task(base=LockedTask)
        def body():
            runs.append(copy.keys())

        store = RedisStore(primary.url, options=IMPATIENT, min_replicas=1)
        lease = store.locks.acquire("key", holder="a", ttl=600)
        body()
        assert "lockbeat:lock:{key}" in runs[0]
        assert len(runs[0]) == 2
        replica.pause()
        with pytest.raises(StoreUnavailable, match="min_replicas"):
            body()
        with pytest.raises(StoreUnavailable, match="min_replicas"):
            store.locks.extend([(lease, 600)])
        assert len(runs) == 1
        replica.resume()
        wait_until(lambda: answers(lambda: store.locks.extend([(lease, 600)])) == [True])
        store.close()


def answers(operation):
    try:
        return operation()
    except StoreUnavailable:
        return None


def test_tokens_grow_when_the_servers_clock_was_set_back(server: Server):
    store, client = RedisStore(server.url), server.client()
    store.locks.release(store.locks.acquire("key", holder="a", ttl=30))
    (lock,) = client.keys("*")
    # as if granted an hour in the future
    ahead = int(client.get(lock)[:16]) + 3_600_000_000
    client.setrange(lock, 0, f"{ahead:016d}")
    # the clock's text has as many digits as a token then
    wait_until(lambda: 0.15 < time.time() % 1 < 0.9)
    for number in (1, 2):
        lease = store.locks.acquire("key", holder="b", ttl=30)
        assert lease.token == ahead + number
        assert store.locks.extend([(lease, 30)]) == [True]
        assert store.locks.release(lease)
    store.close()


def test_tokens_of_several_holders_grow_when_the_servers_clock_was_set_back(server: Server):
    store, client = RedisStore(server.url), server.client()
    store.locks.acquire("key", holder="a", ttl=30, limit=9)
    ahead = int(client.get("lockbeat:lock:{key}")[:16]) + 3_600_000_000
    client.setrange("lockbeat:lock:{key}", 0, f"{ahead:016d}")
    leases = [store.locks.acquire("key", holder=f"b{number}", ttl=30, limit=9) for number in range(3)]
    assert [lease.token for lease in leases] == [ahead + 1, ahead + 2, ahead + 3]
    assert store.locks.extend([(lease, 30) for lease in leases]) == [True] * 3
    assert all(store.locks.release(lease) for lease in leases)
    assert store.locks.acquire("key", holder="last", ttl=30, limit=9).token == ahead + 4
    store.close()


def test_an_earlier_release_finds_a_key_held_until_the_last_of_several_has_ended(server: Server):
    store, client = RedisStore(server.url), server.client()
    leases = [store.locks.acquire("key", holder=f"h{ttl}", ttl=ttl, limit=3) for ttl in (60, 20, 30)]

    def held_for() -> float:
        # as acquire.lua of release 0.1.0 reads it
        value = client.get("lockbeat:lock:{key}")
        token, until = int(value[:16]), int(value[16:29])
        assert token == leases[-1].token
        assert re.match(r"[^ ]+ [^ ]* ", value[29:])
        return until / 1000 - time.time()

    assert 55 < held_for() <= 61
    store.locks.extend([(leases[1], 90)])
    assert 85 < held_for() <= 91
    store.locks.release(leases[1])
    assert 55 < held_for() <= 61
    store.locks.free("key", holder="h60")
    assert 25 < held_for() <= 31
    store.locks.release(leases[2])
    assert held_for() < 1
    assert 3000 < client.ttl("lockbeat:wide:{key}") <= 3600
    store.close()


@pytest.mark.parametrize("early", [True, False], ids=["early in a second", "later"])
def test_a_lock_is_written_in_one_form_whatever_the_time(server: Server, early):
    store, client = RedisStore(server.url), server.client()

    lease = None

    def granted() -> bool:
        nonlocal lease
        if lease is not None:
            store.locks.release(lease)
        lease = store.locks.acquire("key", holder="a", ttl=30, run="r", description="who it is")
        return (lease.token % 1_000_000 < 100_000) == early

    wait_until(granted)
    (lock,) = client.keys("*")
    until = lease.token // 1000 + 30_000
    assert client.get(lock) == f"{lease.token:016d}{until:013d}a r who it is"
    assert abs(client.pttl(lock) - 1000 * (30 + TOKEN_MEMORY)) < 10_000
    assert store.locks.release(lease)
    assert abs(client.pttl(lock) - 1000 * TOKEN_MEMORY) < 10_000
    store.close()


def test_a_finished_run_is_remembered_though_its_lock_is_forgotten(server: Server):
    store, client = RedisStore(server.url), server.client()
    store.locks.release(store.locks.acquire("key", holder="a", ttl=30, run="r"), remember_for=30)
    (lock,) = client.keys("lockbeat:lock:*")
    client.delete(lock)
    assert store.locks.acquire("key", holder="b", ttl=30, run="r") == Finished()
    store.close()


def test_every_key_in_the_server_has_the_prefix_and_an_end(server: Server):
    store, client = RedisStore(server.url, key_prefix="mine:"), server.client()
    store.locks.release(store.locks.acquire("a{b}c", holder="a", ttl=30, run="r{}"), hold_for=5, remember_for=30)
    store.locks.acquire("other", holder="a", ttl=30)
    keys = client.keys("*")
    assert len(keys) == 3
    for key in keys:
        assert key.startswith("mine:")
        assert key.count("{") == key.count("}") == 1, "one Cluster hash tag"
        assert client.ttl(key) > 0
    store.close()


def test_no_key_of_the_beats_is_kept_for_ever(server):
    store = RedisStore(server.url)
    store.beats.join("app", "a")
    store.beats.list_entries("app", "a", [("e", EntryState(0, "then"))], complete=True)
    assert store.beats.claim("app", "a", [Claim("id", "e", EntryState(1, "now"), {})], ttl=60).refusals == [None]
    with server.client() as client:
        assert {key: client.ttl(key) for key in client.scan_iter() if client.ttl(key) < 0} == {}
    store.close()

"""What a finished run leaves in Redis: little, and readable for workers of the release before, in a rolling update."""

from __future__ import annotations

from pathlib import Path

import pytest

from celery_lockbeat.stores.base import TOKEN_MEMORY, Finished, Held, Lease
from celery_lockbeat.stores.redis.scripts import _FRAME, Script
from celery_lockbeat.stores.redis.store import RedisStore

RUN, WHOLE = (
    "8f14e45f-ceea-467f-a0e6-3f1b2c4d5e6f:0:0~Zm9vYmFyYmF6cXV4",
    "8f14e45f-ceea-467f-a0e6-3f1b2c4d5e6f::0~Zm9vYmFyYmF6cXV4",
)
OLD_RUN, OLD_WHOLE = RUN.partition("~")[0], WHOLE.partition("~")[0]


class OldStore(RedisStore):
    """The store with the scripts of release 0.1.0, which knows no nonce."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        here = Path(__file__).with_name("release_0_1_0")
        head = (here / "lock.lua").read_text()
        for name in ("acquire", "release", "extend", "free"):
            setattr(self.locks, f"_{name}", Script(_FRAME % (head + (here / f"{name}.lua").read_text())))


@pytest.fixture
def store(server):
    store = RedisStore(server.url)
    yield store
    store.close()


@pytest.fixture
def old(server):
    store = OldStore(server.url)
    yield store
    store.close()


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


def take(store, key="key", holder="a", **more) -> Lease:
    lease = store.locks.acquire(key, holder=holder, ttl=30, description="w@host pid 1234 app.tasks.report[id]", **more)
    assert isinstance(lease, Lease), lease
    return lease


def finish(store, key="key", holder="a", *, run=RUN, whole=WHOLE, hold_for=0, remember_for=TOKEN_MEMORY) -> Lease:
    lease = take(store, key, holder, run=run, task=whole)
    assert store.locks.release(lease, hold_for=hold_for, remember_for=remember_for, task=True)
    return lease


def test_a_finished_run_on_a_key_of_its_own_leaves_one_key_of_44_bytes(store, client):
    lease = finish(store)
    (key,) = client.keys("*")
    value = client.get(key)
    assert (len(value), value[:16]) == (44, f"{lease.token:016d}")
    assert abs(client.pttl(key) - TOKEN_MEMORY * 1000) < 5000
    assert store.locks.held() == []


@pytest.mark.parametrize("remember_for", [0.5, 600, 2 * TOKEN_MEMORY])
def test_the_key_lives_as_long_as_the_run_or_the_token_is_remembered(store, client, remember_for):
    finish(store, remember_for=remember_for)
    (key,) = client.keys("*")
    assert abs(client.pttl(key) - 1000 * max(remember_for, TOKEN_MEMORY)) < 5000
    take(store, holder="b", run="x:0:0~n", task="x::0~n")
    (mark,) = client.keys("lockbeat:done:*")
    assert abs(client.pttl(mark) - 1000 * remember_for) < 5000


def test_a_run_on_a_key_that_is_used_again_leaves_one_short_key(store, client):
    first = finish(store)
    for number in range(9):
        finish(store, holder=f"h{number}", run=f"{number}:0:0~n", whole=f"{number}::0~n")
    marks = client.keys("lockbeat:done:*")
    assert len(marks) == 10
    assert {len(mark) for mark in marks} == {len("lockbeat:done:{key}:") + 12}
    assert f"{first.token:016d}" in client.mget(marks)


@pytest.mark.parametrize("debian", [False, True], ids=["valkey", "redis 7"])
def test_what_finished_runs_leave_takes_little_memory(request, debian):
    server = request.getfixturevalue("debian_server" if debian else "server")
    store, runs = RedisStore(server.url), 2000
    with server.client() as client:

        def used() -> int:
            told = client.info("memory")
            # the server is one for all tests of this process, and has buffers for each of its clients
            return int(told["used_memory"] - told["mem_clients_normal"])

        def grown(key_of) -> float:
            client.execute_command("FLUSHALL", "SYNC")
            before = used()
            for number in range(runs):
                name = f"8f14e45f-ceea-467f-a0e6-{number:012d}"
                finish(store, key_of(number), run=f"{name}:0:0~Zm9vYmFyYmF6cXV4", whole=f"{name}::0~Zm9vYmFyYmF6cXV4")
            return (used() - before) / runs

        finish(store)  # the scripts and connections are there
        # what else a server does meanwhile, to its tables or for an earlier test's connections, it does once
        own = min(grown(lambda number: f"report:{number}") for _ in range(2))
        shared = min(grown(lambda number: "report") for _ in range(2))
    store.close()
    # the tables of Redis 7, and of any server that has just doubled them, are larger
    allowed = 200 if debian else 160
    assert own < allowed
    assert shared < allowed


# -- beside release 0.1.0 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hold_for", [0, 30])
def test_what_a_run_leaves_is_no_riddle_to_workers_of_0_1_0(store, old, hold_for):
    lease = finish(store, hold_for=hold_for)
    assert old.locks.extend([(lease, 30)]) == [False]
    assert old.locks.free("key", holder="a") is False
    assert old.locks.release(lease), "again, after a lost answer"
    theirs = old.locks.acquire("key", holder="b", ttl=30, run="x:0:0", task="x::0")
    if hold_for:
        assert isinstance(theirs, Held)
        assert theirs.run.startswith("8f14e45f-ceea-467f-a0e6-3f1b2c4d5e6f:")
        assert not theirs.same_run
        assert "app.tasks.report" in theirs.description
    else:
        assert theirs.token > lease.token
        assert old.locks.release(theirs, remember_for=30)


def test_what_workers_of_0_1_0_leave_is_no_riddle_to_us(store, old):
    lease = take(old, run=OLD_RUN, task=OLD_WHOLE)
    held = store.locks.acquire("key", holder="b", ttl=30, run=OLD_RUN, task=OLD_WHOLE)
    assert (held.same_run, held.run) == (True, OLD_RUN)
    assert old.locks.release(lease, remember_for=30, task=True)
    assert store.locks.release(lease, remember_for=30, task=True)
    assert store.locks.acquire("key", holder="b", ttl=30, run=OLD_RUN, task=OLD_WHOLE) == Finished(task=True)
    assert finish(store, holder="b").token > lease.token


def test_a_tick_and_a_message_without_a_nonce_that_we_have_finished_are_known_to_workers_of_0_1_0(store, old):
    finish(store, run=OLD_RUN, whole=OLD_WHOLE)
    for number in range(2):
        assert old.locks.acquire("key", holder="b", ttl=30, run=OLD_RUN, task=OLD_WHOLE) == Finished(task=True)
        # also when another run has followed
        finish(store, holder=f"c{number}", run=f"{number}:0:0~n", whole=f"{number}::0~n")
    assert store.locks.acquire("key", holder="b", ttl=30, run=OLD_RUN, task=OLD_WHOLE) == Finished(task=True)


def test_of_workers_of_both_releases_one_has_the_key(store, old):
    ours, theirs = take(store, run=RUN), take(old, "another", run=OLD_RUN)
    assert isinstance(old.locks.acquire("key", holder="b", ttl=30), Held)
    assert isinstance(store.locks.acquire("another", holder="b", ttl=30), Held)
    assert old.locks.release(ours)
    assert store.locks.release(theirs)

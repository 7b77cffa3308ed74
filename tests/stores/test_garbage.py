"""Whatever is planted in the keys that we read: an error that names the key, and nothing else stops.

``LOCKBEAT_FUZZ`` multiplies the number of cases.
"""

from __future__ import annotations

import json
import logging
import os

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import Server
from test_beat_contract import Beat, tick

from celery_lockbeat import LockedTask
from celery_lockbeat.exceptions import StoreUnavailable, UnreadableKey
from celery_lockbeat.stores.base import Finished, Held, Lease
from celery_lockbeat.stores.redis.store import RedisStore

#: So many values are planted in each example: what is around them costs more than they do.
AT_ONCE = 25

LOCK, DONE = "lockbeat:lock:{k}", "lockbeat:done:{k}:r"
BEAT = "lockbeat:{beat:shop}:"

#: What a bug, an operator or an enemy may leave behind; each is cut out of one of these or made of pieces of them.
PIECES = st.sampled_from(
    [
        *(
            b"",
            b" ",
            b"  ",
            b"\n",
            b"\0",
            b"{}",
            b"[]",
            b"null",
            b"NaN",
            b'{"due":NaN}',
            b"1e999",
            b"-1",
            b"0x10",
            b"inf",
            b"nan",
        ),
        *(
            b"1",
            b"0",
            b"8",
            b"9",
            b"999",
            b"9" * 15,
            b"9" * 16,
            b"9" * 29,
            b"9" * 5000,
            b"-" * 16,
            b"1.5",
            b"\xff\xfe",
            b"\xed\xa0\x80",
        ),
        *(
            b"a",
            b"a ",
            b"other",
            b"other ",
            b"healthy",
            b"2026-11-25T00:00:00+00:00",
            b"9999-12-31T23:59:59",
            b"0001-01-01",
        ),
        *(
            b"[" * 5000,
            b'{"a":' * 5000,
            b"x" * 70_000,
            b"\x1b[2J",
            b"{beat:shop}",
            b"%",
            b"%~",
            b"bad",
            b"3 bad{}",
            b"3 bad",
        ),
    ]
)
VALUES = st.one_of(
    st.binary(max_size=40),
    PIECES,
    st.lists(PIECES, max_size=6).map(b"".join),
    st.lists(PIECES, max_size=5).map(b" ".join),
)
SCORES = st.one_of(st.floats(allow_nan=False), st.sampled_from([0.0, -1.0, 1e15, 2e12, float("inf"), float("-inf")]))


def fuzz(cases, **arguments):
    def decorate(test):
        examples = cases * int(os.environ.get("LOCKBEAT_FUZZ", "1")) // AT_ONCE
        quiet = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        return quiet(given(**arguments)(test))

    return decorate


def many(values):
    return st.lists(values, min_size=AT_ONCE, max_size=AT_ONCE)


def plant(client, key, kind, value, score=0.0):
    """Let ``key`` hold another type, or a value of this type."""
    client.delete(key)
    if kind == "string":
        client.set(key, value)
    elif kind == "list":
        client.rpush(key, value)
    elif kind == "set":
        client.sadd(key, value)
    elif kind == "zset":
        client.zadd(key, {value: score})
    elif kind == "hash":
        client.hset(key, value, value)
    elif kind == "stream":
        client.xadd(key, {"a": value or b"-"})


KINDS = st.sampled_from(["string", "string", "string", "list", "set", "zset", "hash", "stream"])


@pytest.fixture
def client(server: Server):
    with redis.Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
def shop(server: Server):
    store = RedisStore(server.url)
    yield store
    store.close()


@pytest.fixture(autouse=True)
def quiet():
    # hypothesis would show the last case's thousands
    logging.getLogger("celery_lockbeat").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("celery_lockbeat").setLevel(logging.NOTSET)


# -- locks -------------------------------------------------------------------------------------------------------------


def looks_like_a_lock(value):
    _, *rest = value[29:].split(b" ", 2)
    return (
        len(rest) == 2 and len(value[:29]) == 29 and value[:29].isdigit() and value[:1] != b"9" and len(value) <= 4096
    )


@pytest.mark.timeout(300)
def test_a_planted_lock_is_refused_by_name_and_never_run_under_and_other_locks_go_on(shop, client):
    healthy = shop.locks.acquire("healthy", holder="h", ttl=600)

    @fuzz(4000, planted=many(st.tuples(KINDS, VALUES)))
    def plants(planted):
        for kind, value in planted:
            client.delete(LOCK, DONE)
            mine = shop.locks.acquire("k", holder="a", ttl=600, run="r")
            plant(client, LOCK, kind, value)
            if kind == "string" and looks_like_a_lock(value):
                continue
            # who held it has lost it, and is told so in one round with those who have not
            assert shop.locks.extend([(mine, 600), (healthy, 600)]) == [False, True]
            assert shop.locks.release(mine, remember_for=600) is False
            assert shop.locks.free("k", holder="a") is False
            for holder in ("a", "b"):
                with pytest.raises(UnreadableKey, match="lock:{k}"):
                    shop.locks.acquire("k", holder=holder, ttl=600, run="r")
            assert isinstance(shop.locks.acquire("healthy", holder="b", ttl=600), Held)
            client.delete(LOCK)
            assert shop.locks.acquire("k", holder="b", ttl=600).token > mine.token

    plants()


@pytest.mark.timeout(300)
def test_a_planted_mark_of_a_finished_run_is_no_reason_to_run_again(shop, client):
    @fuzz(1000, planted=many(st.tuples(KINDS, VALUES)))
    def plants(planted):
        for kind, value in planted:
            client.delete(LOCK, DONE)
            plant(client, DONE, kind, value)
            if kind == "string" and len(value) == 16 and value.isdigit():
                assert shop.locks.acquire("k", holder="a", ttl=600, run="r") == Finished()
                continue
            with pytest.raises(UnreadableKey, match="done:{k}:r"):
                shop.locks.acquire("k", holder="a", ttl=600, run="r")
            other = shop.locks.acquire("k", holder="a", ttl=600, run="another")
            assert isinstance(other, Lease)
            assert shop.locks.release(other)

    plants()


def test_no_task_runs_under_a_planted_lock_nor_under_one_of_memory_in_its_place(make_app, server, client):
    app = make_app(lockbeat_redis_url=server.url, lockbeat_driver="auto")
    runs = []

    @app.task(base=LockedTask, lock_key="k")
    def body():
        runs.append(1)

    client.lpush(LOCK, "x")
    with pytest.raises(StoreUnavailable, match="lock:{k}"):
        body()
    assert not runs
    client.delete(LOCK)
    body()
    assert runs


# -- beats -------------------------------------------------------------------------------------------------------------


class Rounds:
    """Two replicas and a healthy entry, of which each tick must be claimed, settled or taken over, once."""

    def __init__(self, store):
        self.a, self.b = Beat(store, "a"), Beat(store, "b")
        self.run = 0

    def go_on(self):
        for beat in (self.a, self.b):
            if not beat.asks().listed:
                beat.join(cold_start=1.0)
                beat.lists("healthy", "bad", count=self.run)
        self.run += 1
        assert self.a.claims("healthy", self.run, f"a{self.run}") is None
        refusal = self.b.claims("healthy", self.run, f"b{self.run}")
        assert refusal is not None
        assert refusal.total_run_count == self.run
        assert self.a.settles((f"a{self.run}", "healthy")) == [True]


@pytest.mark.timeout(300)
def test_a_planted_state_counts_as_lost_and_other_entries_go_on(shop, client):
    rounds = Rounds(shop)
    rounds.go_on()

    @fuzz(1500, planted=many(VALUES))
    def plants(planted):
        for number, value in enumerate(planted):
            client.hset(f"{BEAT}entries", "bad", value)
            if number % 2:
                (state,) = rounds.a.lists("bad", count=3)
            else:
                state = rounds.a.claims("bad", 3, "bad-3")
                rounds.a.settles(("bad-3", "bad"))
            assert state is None or 0 <= state.total_run_count < 10**15
            count, pending, _ = client.hget(f"{BEAT}entries", "bad").split(b" ", 2)
            assert int(count) + int(pending) < 10**16, "it can be read again"
        rounds.go_on()

    plants()


@pytest.mark.timeout(300)
def test_planted_claims_are_dropped_and_others_are_taken_over(shop, client):
    rounds = Rounds(shop)
    rounds.go_on()
    healthy = 0

    @fuzz(2000, planted=many(st.tuples(VALUES, VALUES, SCORES)))
    def plants(planted):
        nonlocal healthy
        healthy += 1
        client.delete(f"{BEAT}claims", f"{BEAT}pending")
        assert rounds.a.claims("other", healthy, f"left-{healthy}", ttl=0) is None
        for task_id, value, score in planted:
            client.hset(f"{BEAT}claims", task_id, value)
            client.zadd(f"{BEAT}pending", {task_id: score})
        for _ in range(3):
            told = rounds.b.asks()
        left = {each.task_id for each in told.overdue}
        assert f"left-{healthy}" in left
        for each in told.overdue:
            json.dumps(each.details)
        # each one that is told can be taken over: else it would be asked for again and again
        assert rounds.b.takes_over(*left) == [True] * len(left)
        assert rounds.b.settles((f"left-{healthy}", "other")) == [True]
        client.delete(f"{BEAT}claims", f"{BEAT}pending")
        rounds.go_on()

    plants()


@pytest.mark.timeout(300)
def test_keys_of_a_beat_that_hold_another_type_are_set_aside_and_it_goes_on(shop, client):
    rounds = Rounds(shop)
    rounds.go_on()
    names = st.sampled_from(
        [
            "entries",
            "claims",
            "pending",
            "replicas",
            "listing",
            "unlisted",
            "names:a",
            "names:b",
            "names:gone",
            "announced:member",
            "until:member",
        ]
    )

    @fuzz(1500, planted=many(st.tuples(names, KINDS, VALUES, SCORES)))
    def plants(planted):
        for name, kind, value, score in planted:
            if name == "names:gone":
                client.zadd(f"{BEAT}replicas", {"gone": 1})
            plant(client, BEAT + name, kind, value, score)
            rounds.go_on()
            rounds.a.lists("bad", removed=["another"], count=3)
            rounds.a.store.beats.leave("shop", "c")
            rounds.a.store.announcements.announce("shop", "member", {"a": "{}"}, ttl=60)
            assert [each.told for each in shop.announcements.announced("shop", "member", ["a"])] == ["{}"]

    plants()


@pytest.mark.parametrize("end", [1e308, float("inf")])
def test_a_planted_end_that_no_server_can_keep_stops_no_announcement(shop, client, end):
    client.zadd(f"{BEAT}until:member", {"planted": end})
    shop.announcements.announce("shop", "member", {"a": "{}"}, ttl=60)
    assert [each.told for each in shop.announcements.announced("shop", "member")] == ["{}"]


@pytest.mark.timeout(300)
def test_a_planted_cold_start_keeps_a_new_beat_out_only_while_others_work(shop, client):
    a = Beat(shop, "a")

    @fuzz(500, planted=many(st.tuples(KINDS, VALUES)))
    def plants(planted):
        for kind, value in planted:
            client.delete(f"{BEAT}replicas")
            began = a.join().cold_start
            plant(client, f"{BEAT}cold_start", kind, value)
            if kind == "string" and (value == b"" or (value.isdigit() and len(value) <= 15)):
                continue
            with pytest.raises(UnreadableKey, match="cold_start"):
                Beat(shop, "new").join()
            assert a.join(cold_start=began).cold_start == pytest.approx(began, abs=0.001)
            assert Beat(shop, "new").join().cold_start == pytest.approx(began, abs=0.001)
            plant(client, f"{BEAT}cold_start", kind, value)
            client.delete(f"{BEAT}replicas")
            assert Beat(shop, "new").join().cold_start > 1e9

    plants()


def test_what_is_planted_is_logged_once_with_the_name_of_its_key(shop, client, caplog):
    logging.getLogger("celery_lockbeat").setLevel(logging.NOTSET)
    rounds = Rounds(shop)
    rounds.go_on()
    client.hset(f"{BEAT}entries", "bad", "rubbish")
    client.hset(f"{BEAT}claims", "some", "rubbish")
    client.zadd(f"{BEAT}pending", {"some": 1000 * client.time()[0]})
    for run in (3, 4):
        rounds.a.claims("bad", run)
        rounds.go_on()
        client.set(f"{BEAT}unlisted", "rubbish", nx=True)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(told) == 3, told
    for key, begins in (("entries", "rubbish"), ("claims", "rubbish"), ("unlisted", "")):
        assert len([text for text in told if BEAT + key in text and begins in text]) == 1, told
    assert client.get(f"{BEAT}unlisted:unreadable") == b"rubbish"


def test_a_claim_of_another_replica_is_refused_though_the_state_of_its_entry_is_lost(store, kind):
    a, b = Beat(store, "a"), Beat(store, "b")
    assert a.asks(tick("e", 5, "id")).refusals == [None]
    if kind.name == "redis":
        with redis.Redis.from_url(kind.target) as client:
            client.delete(f"{BEAT}entries")
        (refusal,) = b.asks(tick("e", 5, "id")).refusals
        assert refusal.total_run_count == 5

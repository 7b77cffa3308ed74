"""``locks`` and ``beats``, what operators are told, on every store; and what a Redis server tells about itself."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest
from test_contract import HOSTILE

import celery_lockbeat
import docs
from celery_lockbeat import StoreUnavailable
from celery_lockbeat.stores.base import Claim, EntryState, StoredEntry
from celery_lockbeat.stores.redis.scripts import Script
from celery_lockbeat.stores.redis.store import RedisStore
from celery_lockbeat.stores.sqlite import store as memory

LONG = 600


def keys(locks):
    return sorted(lock.key for lock in locks)


def tick(entry, run=1):
    return Claim(f"{entry}-{run}", entry, EntryState(run, "t1"), {})


# -- locks -------------------------------------------------------------------------------------------------------------


def test_a_lock_that_is_held_is_told_with_its_holder_and_its_rest(store):
    lease = store.locks.acquire("key", holder="h", ttl=LONG, run="r:0:0", description="w1 pid 7")
    for (lock,) in (store.locks.held(), store.locks.held("key")):
        assert (lock.key, lock.holder, lock.run, lock.description) == ("key", "h", "r:0:0", "w1 pid 7")
        assert lock.token == lease.token
        assert LONG - 20 < lock.remaining <= LONG


def test_what_is_released_freed_or_over_is_not_told(store, kind):
    store.locks.release(store.locks.acquire("released", holder="h", ttl=LONG), remember_for=LONG)
    store.locks.acquire("freed", holder="h", ttl=LONG)
    store.locks.free("freed", holder="h")
    store.locks.acquire("over", holder="h", ttl=0.3)
    store.locks.acquire("held", holder="h", ttl=LONG)
    kind.later(0.3)
    assert keys(store.locks.held()) == ["held"]
    for key in ("released", "freed", "over", "never"):
        assert store.locks.held(key) == []


def test_a_key_that_is_kept_held_after_its_release_is_told_without_a_holder_and_can_be_freed(store):
    store.locks.release(store.locks.acquire("key", holder="h", ttl=LONG), hold_for=LONG)
    (lock,) = store.locks.held()
    assert lock.holder == ""
    assert store.locks.free("key", holder=lock.holder)
    assert store.locks.held() == []


def test_keys_and_holders_of_any_text_are_told_as_they_were_given(store):
    short = [key for key in HOSTILE if len(key) < 20]
    for key in short:
        store.locks.acquire(key, holder=key, ttl=LONG, run=key)
    assert keys(store.locks.held()) == sorted(short)
    for key in HOSTILE:
        store.locks.acquire(key, holder="h" if key not in short else key, ttl=LONG)
        (lock,) = store.locks.held(key)
        assert store.locks.free(key, holder=lock.holder)
    assert store.locks.held() == []


def test_more_locks_than_one_round_trip_tells_are_all_told_once_or_as_many_as_asked_for(store):
    names = [f"key{i}" for i in range(2500)]
    for name in names:
        store.locks.acquire(name, holder="h", ttl=LONG)
    assert keys(store.locks.held()) == sorted(names)
    assert len(store.locks.held(limit=10)) == 10


@pytest.mark.parametrize("prefix", ["one:", "o*:", "[one]:", "o?e:", "one\\:", "^"])
def test_only_the_locks_of_ones_own_prefix_are_told(kind, prefix):
    own, other = kind.open(prefix), kind.open("one:x:" if prefix == "one:" else "one:")
    own.locks.acquire("mine", holder="h", ttl=LONG)
    other.locks.acquire("theirs", holder="h", ttl=LONG)
    assert keys(own.locks.held()) == ["mine"]
    assert own.locks.held("theirs") == []


# -- beats -------------------------------------------------------------------------------------------------------------


def test_each_replica_is_told_with_what_it_lists_and_how_long_it_is_silent(store, kind):
    store.beats.join("shop", "a")
    store.beats.list_entries("shop", "a", [("x", EntryState(0, "t0")), ("y", EntryState(0, "t0"))], complete=True)
    store.beats.join("shop", "b")
    store.beats.join("shop", "c")
    store.beats.leave("shop", "c")
    kind.later(0.3)
    store.beats.claim("shop", "b", [], ttl=LONG)
    a, b, c = sorted(store.beats.status("shop").replicas, key=lambda replica: replica.name)
    assert (a.name, a.entries, a.complete) == ("a", {"x", "y"}, True)
    assert (b.name, b.entries, b.complete) == ("b", frozenset(), False)
    assert 0.3 <= a.silent_for < 20
    assert b.silent_for < a.silent_for
    assert c.silent_for == math.inf


def test_each_entry_is_told_with_its_state_and_what_waits_to_be_published(store, kind):
    store.beats.join("shop", "a")
    store.beats.list_entries("shop", "a", [("x", EntryState(0, "t0")), ("y", EntryState(4, "t0"))], complete=True)
    store.beats.claim("shop", "a", [tick("x")], ttl=0.3)
    store.beats.claim("shop", "a", [tick("x", 2)], ttl=LONG)
    kind.later(0.3)
    beats = store.beats.status("shop")
    assert sorted(beats.entries, key=lambda entry: entry.name) == [
        StoredEntry("x", EntryState(2, "t1"), 2),
        StoredEntry("y", EntryState(4, "t0"), 0),
    ]
    assert beats.overdue == 1
    store.beats.settle("shop", "a", [("x-1", "x"), ("x-2", "x")])
    beats = store.beats.status("shop")
    assert [entry.pending for entry in beats.entries] == [0, 0]
    assert beats.overdue == 0


def test_an_app_sees_its_own_beats_only(store):
    store.beats.join("shop", "a")
    assert store.beats.status("blog") == store.beats.status("") == type(store.beats.status(""))([], [], 0)


def test_entries_of_any_name_are_told_as_they_were_given(store, kind):
    # an index of PostgreSQL takes no name of any length: it is told cut
    hostile = [name for name in HOSTILE if kind.name != "postgresql" or len(name) < 500]
    store.beats.join("\ud800{", "a")
    states = [(name, EntryState(0, name)) for name in hostile]
    store.beats.list_entries("\ud800{", "a", states, complete=True)
    beats = store.beats.status("\ud800{")
    assert sorted(entry.name for entry in beats.entries) == sorted(hostile)
    assert {entry.name for entry in beats.entries if entry.state.last_run_at != entry.name} == set()
    assert beats.replicas[0].entries == set(hostile)


def test_more_entries_than_one_round_trip_tells_are_all_told_or_as_many_as_asked_for(store):
    names = [f"entry{i}" for i in range(2500)]
    store.beats.list_entries("shop", "a", [(name, EntryState(0, "t")) for name in names], complete=True)
    beats = store.beats.status("shop")
    assert sorted(entry.name for entry in beats.entries) == sorted(beats.replicas[0].entries) == sorted(names)
    beats = store.beats.status("shop", limit=7)
    assert len(beats.entries) == len(beats.replicas[0].entries) == 7


def test_looking_changes_nothing(store):
    store.beats.join("shop", "a")
    store.beats.list_entries("shop", "a", [("x", EntryState(0, "t"))], complete=True)
    store.locks.acquire("key", holder="h", ttl=LONG)
    before = store.beats.status("shop").entries, keys(store.locks.held())
    for _ in range(3):
        assert (store.beats.status("shop").entries, keys(store.locks.held())) == before


def test_a_memory_store_does_not_tell_the_lock_of_a_dead_process(tmp_path):
    store = memory.MemoryStore(tmp_path / "memory")
    store.locks.acquire("key", holder="h", ttl=LONG)
    with store.database._opened() as connection:
        connection.execute("UPDATE lockbeat_lock SET process = 12345")
    assert store.locks.held() == store.locks.held("key") == []


# -- a Redis server about itself ---------------------------------------------------------------------------------------


def test_a_server_tells_its_facts_and_keeps_no_trace(server):
    facts = RedisStore(server.url, min_replicas=1).facts("shop")[0]
    assert facts.info["role"] == "master"
    assert facts.info["maxmemory"] == 0
    assert facts.save == ""
    assert abs(facts.clock_ahead) < 1
    assert all(0 < seconds < 2 for seconds in facts.round_trips)
    assert facts.refused == facts.failing == {}
    with server.client() as client:
        assert client.keys() == []


def test_a_server_with_a_limit_tells_what_finished_runs_take_of_it(server):
    store, runs = RedisStore(server.url), 3000
    with server.client() as client:
        store.locks.release(store.locks.acquire("first", holder="h", ttl=LONG))
        before = client.info("memory")["used_memory"]
        for number in range(runs):
            lease = store.locks.acquire(
                f"own:{number}", holder=f"h{number}", ttl=LONG, run=f"{number}:0:0~n", task=f"{number}::0~n"
            )
            store.locks.release(lease, remember_for=LONG, task=True)
        for number in range(runs):
            lease = store.locks.acquire(
                "shared", holder=f"h{number}", ttl=LONG, run=f"s{number}:0:0~n", task=f"s{number}::0~n"
            )
            store.locks.release(lease, remember_for=LONG, task=True)
        used = client.info("memory")["used_memory"] - before
        # neither what is held now nor what is another's counts
        for number in range(runs):
            store.locks.acquire(f"held:{number}", holder="h", ttl=LONG, description="x" * 100)
            client.set(f"another's:{number}", "x" * 100)
        assert store.facts("shop")[0].remembered is None
        client.config_set("maxmemory", "1gb")
        try:
            told = store.facts("shop")[0].remembered
        finally:
            client.config_set("maxmemory", 0)
    store.close()
    assert 0.6 * used < told < 1.4 * used


def test_the_trial_tries_what_the_other_scripts_use():
    sources = {
        path.stem: path.read_text() for path in (Path(celery_lockbeat.__file__).parent / "stores/redis/lua").glob("*")
    }
    tried = set(re.findall(r"try\('(\w+)'", sources.pop("probe")))
    assert tried == {command for text in sources.values() for command in re.findall(r"redis\.p?call\('(\w+)'", text)}


@pytest.fixture
def limited(server):
    """Open the store as a user who may do all but something."""
    numbers = itertools.count()

    def open_as(*rules: str, prefix: str = "lockbeat:", **options) -> RedisStore:
        name = f"user{next(numbers)}"
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", name, "reset", "on", ">pw", *rules)
        return RedisStore(server.url.replace("//", f"//{name}:pw@"), key_prefix=prefix, **options)

    yield open_as
    with server.client() as client:
        client.execute_command("ACL", "DELUSER", *(f"user{number}" for number in range(next(numbers))))


@pytest.mark.parametrize(
    "command", [*sorted(set(re.findall(r"try\('(\w+)'", Script.of("probe").source))), "EVALSHA", "WAIT"]
)
def test_each_command_that_is_not_permitted_is_told_and_keeps_no_trace(server, limited, command):
    facts = limited("~lockbeat:*", "+@all", f"-{command}", min_replicas=1).facts("shop")[0]
    assert set(facts.refused) == {command}
    assert facts.failing == {}
    assert re.search(f"(?i){command}|permission", facts.refused[command])
    with server.client() as client:
        ending = [client.pttl(key) for key in client.scan_iter()]
    # without DEL it is over within a second
    assert all(command == "DEL" and 0 < left <= 1000 for left in ending)


@pytest.mark.parametrize("pattern", ["~lockbeat:lock:*", "~lockbeat:{beat:*", "~other:*"])
def test_keys_that_are_not_permitted_are_told(limited, pattern):
    facts = limited(pattern, "+@all").facts("shop")[0]
    assert facts.refused
    assert all("key" in words for words in facts.refused.values())


def test_who_may_not_ask_the_server_about_itself_is_told_the_rest(limited):
    facts = limited("~lockbeat:*", "+@all", "-info", "-config").facts("shop")[0]
    assert (facts.info, facts.save, facts.refused) == ({}, None, {})


def test_a_full_server_fails_the_trial(spare_server):
    with spare_server.client() as client:
        client.config_set("maxmemory", 1)
        facts = RedisStore(spare_server.url).facts("shop")[0]
        client.config_set("maxmemory", 0)
        assert client.keys() == []
    assert "OOM" in facts.failing["SET"]
    assert facts.refused == {}


def test_facts_and_locks_of_a_server_that_is_away_are_store_unavailable(spare_server):
    store = RedisStore(spare_server.url)
    spare_server.kill()
    for ask in (lambda: store.facts("shop"), store.locks.held, lambda: store.beats.status("shop")):
        with pytest.raises(StoreUnavailable):
            ask()


def test_who_may_not_list_is_told_which_command(limited):
    store = limited("~lockbeat:*", "+@all", "-scan", "-hscan")
    with pytest.raises(StoreUnavailable, match="'scan'"):
        store.locks.held()
    with pytest.raises(StoreUnavailable, match="'hscan'"):
        store.beats.status("shop")
    store.locks.acquire("key", holder="h", ttl=LONG)
    assert store.locks.held("key")


def test_the_permissions_on_the_page_are_enough_and_all_needed(limited, server):
    scripts = re.findall(r"try\('(\w+)'", Script.of("probe").source)
    workers = [f"+{command.lower()}" for command in {*scripts, "EVAL", "EVALSHA"}]
    (more,) = re.findall(r"^\+info .*$", (docs.DOCS / "how-to" / "doctor.md").read_text(), re.MULTILINE)

    def told(*rules: str) -> list[object]:
        """What can be told with these permissions, each None if it cannot."""
        store = limited("~lockbeat:*", *workers, *rules)
        store.locks.acquire("key", holder="h", ttl=LONG)
        facts = store.facts("shop")[0]
        assert facts.refused == facts.failing == {}
        answers: list[object] = [facts.info or None, facts.save]
        for ask in (store.locks.held, lambda: store.beats.status("shop")):
            try:
                answers.append(ask())
            except StoreUnavailable:
                answers.append(None)
        return answers

    assert None not in told(*more.split())
    for rule in set(more.split()) - {"+dbsize"}:
        assert told(*(set(more.split()) - {rule})).count(None) == 1
    with server.client() as client:
        client.config_set("maxmemory", "1gb")
        try:
            for rules in (more, more.replace("+dbsize", "")):
                store = limited("~lockbeat:*", *workers, *rules.split())
                assert (store.facts("shop")[0].remembered is None) is (rules != more)
        finally:
            client.config_set("maxmemory", 0)


@pytest.mark.parametrize("planted", ["text", "9" * 29 + "\xff %ff d", "", "9" * 29])
def test_what_is_planted_among_locks_hides_none_and_stops_nobody(server, planted):
    store = RedisStore(server.url)
    store.locks.acquire("key", holder="h", ttl=LONG)
    with server.client() as client:
        client.set("lockbeat:lock:{planted}", planted.encode("latin-1"))
        client.rpush("lockbeat:lock:{list}", planted)
        client.set("lockbeat:lock:", planted)
        client.set("lockbeat:lock:{%ff}", planted.encode("latin-1"))
    assert "key" in keys(store.locks.held())


def test_what_is_planted_among_beats_is_named(server):
    store = RedisStore(server.url)
    store.beats.join("shop", "a")
    with server.client() as client:
        client.hset("lockbeat:{beat:shop}:entries", "e", "planted")
    with pytest.raises(StoreUnavailable, match=r"lockbeat:\{beat:shop\}:entries"):
        store.beats.status("shop")

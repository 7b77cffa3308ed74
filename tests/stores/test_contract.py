"""One test per promise of ``stores/base/locks.py``, the same on every store."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fighter import fight
from kinds import ONE_OF_EACH, first_on
from servers import Server, wait_until

from celery_lockbeat.stores.base import TOKEN_MEMORY, Finished, Held, Lease

HOSTILE = [
    "{",
    "}",
    "{}",
    "}{",
    "a}b",
    "a%7Db",
    "%",
    "%25",
    "%7D",
    "%7d",
    "a:b",
    "a b",
    "a\nb",
    "a\r\nb",
    "a\0b",
    "\t",
    "x" * 10_000,
    "x" * 9_999 + "y",
    "{" * 300,
    "🔒",
    "ключ",
    "\ud800",
    "\ud801",
    "?",
    "done:{a}:b",
    "lock:{a}",
    "lockbeat:lock:{a}",
    "done:{a}",
    ":",
    " ",
    "a  b",
    "\n",
    "\0",
    "\\ud800",
    "é",
    "e\u0301",
    "*",
    "'; DROP TABLE lock; --",
]


def take(store, key="key", holder="a", ttl=30.0, **more) -> Lease:
    lease = store.locks.acquire(key, holder=holder, ttl=ttl, **more)
    assert isinstance(lease, Lease), lease
    return lease


# -- exclusion ---------------------------------------------------------------------------------------------------------


def test_a_free_key_is_granted_to_who_asks(store):
    lease = take(store, "key", "a", run="r")
    assert (lease.key, lease.holder, lease.run) == ("key", "a", "r")


def test_a_held_key_is_refused_with_who_holds_it_and_for_how_long(store):
    take(store, ttl=30, run="r1", description="w1 pid 7")
    refusal = store.locks.acquire("key", holder="b", ttl=30, run="r2")
    assert isinstance(refusal, Held)
    assert refusal.description == "w1 pid 7"
    assert 25 < refusal.remaining <= 30
    assert refusal.same_run is False


def test_another_opening_of_the_store_sees_the_same_locks(store, kind):
    take(store)
    other = kind.open()
    assert isinstance(other.locks.acquire("key", holder="b", ttl=30), Held)
    other.close()


def test_a_refusal_names_the_run_that_goes_on(store):
    take(store, run="8f14:0:0")
    assert store.locks.acquire("key", holder="b", ttl=30, run="8f14:1:0").run == "8f14:0:0"


def test_a_copy_of_the_running_run_is_told_so(store):
    take(store, run="r")
    assert store.locks.acquire("key", holder="b", ttl=30, run="r").same_run is True


def test_holds_without_a_run_are_never_the_same_run(store):
    take(store)
    assert store.locks.acquire("key", holder="b", ttl=30).same_run is False


def test_the_same_holder_asking_again_gets_its_own_lease_and_a_fresh_ttl(store):
    first = take(store, ttl=1.0, run="r")
    assert take(store, ttl=30, run="r") == first
    assert store.locks.acquire("key", holder="b", ttl=1).remaining > 25


def test_the_same_holder_asking_after_its_lease_ran_out_gets_a_new_one(store, kind):
    first = take(store, ttl=0.1)
    kind.later(0.1)
    second = take(store, ttl=30)
    assert second.token > first.token
    assert store.locks.extend([(first, 30)]) == [False]
    assert store.locks.extend([(second, 30)]) == [True]


def test_a_lease_ends_by_the_stores_own_clock(store, kind):
    take(store, ttl=0.1)
    kind.later(0.1)
    take(store, holder="b")


def test_a_refusal_counts_down(store, kind):
    take(store, ttl=30)
    before = store.locks.acquire("key", holder="b", ttl=30).remaining
    kind.later(0.1)
    assert store.locks.acquire("key", holder="b", ttl=30).remaining <= before - 0.1


def test_a_released_key_is_free_at_once(store):
    assert store.locks.release(take(store)) is True
    take(store, holder="b")


def test_a_hostile_key_is_a_key_like_any_other(store):
    for key in HOSTILE:
        lease = take(store, key, description=key)
        assert isinstance(store.locks.acquire(key, holder="b", ttl=30), Held), key
        assert store.locks.extend([(lease, 30)]) == [True], key
        assert store.locks.release(lease), key
        take(store, key, "b")


def test_hostile_keys_are_all_different_locks(store):
    for number, key in enumerate(HOSTILE):
        take(store, key, f"holder {number}")


def test_hostile_holders_and_runs_are_told_apart(store):
    for text in HOSTILE:
        lease = take(store, "key", f"h{text}", run=f"r{text}")
        assert isinstance(store.locks.acquire("key", holder="h", ttl=30), Held)
        assert store.locks.release(lease, remember_for=30)
        assert isinstance(store.locks.acquire("key", holder="b", ttl=30, run=f"r{text}"), Finished)
    take(store, "key", "z", run="r")


def test_two_prefixes_never_meet(kind):
    pairs = [("a:", "b"), ("a:b", "x"), ("a", ":b"), ("a:lock:", "b"), ("a:l", "ock:b"), ("b:", "b")]
    stores = [kind.open(prefix) for prefix, _ in pairs]
    for number, (store, (_, key)) in enumerate(zip(stores, pairs, strict=True)):
        # each finds its key free, and no run of the others finished
        lease = take(store, key, f"holder {number}", run="r")
        assert store.locks.release(lease, remember_for=30)
        take(store, key, f"holder {number}")
    for store, (_, key) in zip(stores, pairs, strict=True):
        assert isinstance(store.locks.acquire(key, holder="other", ttl=30), Held)
        store.close()


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_tokens_grow_from_holder_to_holder(store):
    tokens = []
    for number in range(20):
        lease = take(store, holder=str(number))
        tokens.append(lease.token)
        store.locks.release(lease)
    assert tokens == sorted(set(tokens))


def test_tokens_grow_after_an_expiry(store, kind):
    first = take(store, ttl=0.1)
    kind.later(0.1)
    assert take(store, holder="b").token > first.token


def test_tokens_grow_after_the_store_has_forgotten_everything(store, kind):
    first = take(store)
    kind.forget_all()
    assert take(store, holder="b").token > first.token


def test_tokens_grow_while_a_key_is_kept_after_its_release(store, kind):
    first = take(store)
    store.locks.release(first, hold_for=0.1)
    kind.later(0.1)
    assert take(store, holder="b").token > first.token


def test_a_token_is_no_less_than_the_clock_in_microseconds(store):
    before = time.time() * 1e6
    assert before - 5e6 < take(store).token < before + 60e6


# -- extend and release belong to the token's owner ---------------------------------------------------------------------


def test_an_extension_lets_the_lease_end_that_much_later(store):
    lease = take(store, ttl=1)
    assert store.locks.extend([(lease, 30)]) == [True]
    assert store.locks.acquire("key", holder="b", ttl=1).remaining > 25


def test_an_extension_can_shorten_a_lease(store, kind):
    lease = take(store, ttl=30)
    assert store.locks.extend([(lease, 0.1)]) == [True]
    kind.later(0.1)
    take(store, holder="b")


def test_a_round_of_extensions_answers_for_each(store):
    kept, gone = take(store, "kept"), take(store, "gone")
    store.locks.release(gone)
    never = Lease("never", "a", None, 1)
    assert store.locks.extend([(kept, 30), (gone, 30), (never, 30), (kept, 30)]) == [True, False, False, True]


def test_no_extensions_are_no_work(store):
    assert store.locks.extend([]) == []


def test_an_earlier_holder_neither_extends_nor_frees_the_next_ones_lock(store, kind):
    stale = take(store, holder="a", ttl=0.1)
    kind.later(0.1)
    take(store, holder="b")
    assert store.locks.extend([(stale, 30)]) == [False]
    assert store.locks.release(stale) is False
    assert isinstance(store.locks.acquire("key", holder="c", ttl=1), Held)


def test_another_with_the_same_token_is_not_the_owner(store):
    lease = take(store, holder="a")
    thief = Lease(lease.key, "thief", lease.run, lease.token)
    assert store.locks.extend([(thief, 30)]) == [False]
    assert store.locks.release(thief) is False
    assert isinstance(store.locks.acquire("key", holder="c", ttl=1), Held)


def test_a_later_hold_of_the_same_holder_is_not_its_earlier_one(store):
    first = take(store, holder="a")
    store.locks.release(first)
    take(store, holder="a")
    assert store.locks.extend([(first, 30)]) == [False]
    assert store.locks.release(first) is False
    assert isinstance(store.locks.acquire("key", holder="c", ttl=1), Held)


def test_an_expired_lease_is_lost_even_if_nobody_took_the_key(store, kind):
    lease = take(store, ttl=0.1, run="r")
    kind.later(0.1)
    assert store.locks.extend([(lease, 30)]) == [False]
    assert store.locks.release(lease, remember_for=30) is False
    take(store, holder="b", run="r")


def test_a_release_can_be_repeated(store):
    lease = take(store)
    assert store.locks.release(lease) is True
    assert store.locks.release(lease) is True


def test_a_release_can_be_repeated_after_another_came_as_long_as_the_run_is_remembered(store):
    lease = take(store, run="r")
    assert store.locks.release(lease, remember_for=30) is True
    take(store, holder="b", run="other")
    assert store.locks.release(lease, remember_for=30) is True
    assert isinstance(store.locks.acquire("key", holder="c", ttl=1), Held)


def test_a_key_can_be_kept_after_its_release(store, kind):
    lease = take(store, description="me")
    assert store.locks.release(lease, hold_for=1) is True
    refusal = store.locks.acquire("key", holder="b", ttl=30)
    assert isinstance(refusal, Held)
    assert refusal.description == "me"
    assert isinstance(store.locks.acquire("key", holder="a", ttl=30), Held)
    assert store.locks.extend([(lease, 30)]) == [False]
    kind.later(1)
    take(store, holder="b")


# -- finished runs -----------------------------------------------------------------------------------------------------


def test_a_finished_run_is_not_granted_again(store):
    store.locks.release(take(store, run="r"), remember_for=30)
    assert isinstance(store.locks.acquire("key", holder="b", ttl=30, run="r"), Finished)
    assert isinstance(store.locks.acquire("key", holder="a", ttl=30, run="r"), Finished)
    take(store, holder="b", run="r2")


def test_what_is_finished_as_a_whole_has_none_of_its_tries_granted_earlier_or_later(store):
    store.locks.release(take(store, run="r:1", task="r"), remember_for=30)
    assert store.locks.acquire("key", holder="b", ttl=30, run="r:1", task="r") == Finished()
    last = take(store, holder="b", run="r:2", task="r")
    assert store.locks.release(last, remember_for=30, task=True)
    assert store.locks.release(last, remember_for=30, task=True)
    for number in range(4):
        assert store.locks.acquire("key", holder="c", ttl=30, run=f"r:{number}", task="r") == Finished(task=True)
    take(store, holder="c", run="q:0", task="q")


def test_finished_counts_more_than_held(store):
    store.locks.release(take(store, run="r"), remember_for=30)
    take(store, holder="b", run="r2")
    assert isinstance(store.locks.acquire("key", holder="c", ttl=30, run="r"), Finished)


def test_a_finished_run_is_remembered_for_its_time_only(store, kind):
    store.locks.release(take(store, run="r"), remember_for=0.1)
    kind.later(0.1)
    take(store, holder="b", run="r")


def test_a_run_that_was_lost_is_not_finished(store, kind):
    lost = take(store, holder="a", ttl=0.1, run="r")
    kind.later(0.1)
    other = take(store, holder="b", run="r")
    assert store.locks.release(lost, remember_for=30) is False
    assert store.locks.release(other)
    take(store, holder="c", run="r")


def test_a_hold_without_a_run_leaves_nothing_to_remember(store):
    assert store.locks.release(take(store), remember_for=30) is True
    take(store, holder="b")
    assert store.locks.acquire("key", holder="c", ttl=30).same_run is False


def test_nothing_is_remembered_unless_asked(store):
    store.locks.release(take(store, run="r"))
    take(store, holder="b", run="r")


def test_a_run_is_finished_under_its_own_key_only(store):
    store.locks.release(take(store, "one", run="r"), remember_for=30)
    take(store, "two", run="r")


#: The names of a run, its next try, their whole, and another run: as they are of messages with a nonce, and without.
NAMES = {
    "with a nonce": ("id:0:0~n", "id:1:0~n", "id::0~n", "id:0:0~m"),
    "without": ("id:0:0", "id:1:0", "id::0", "other:0:0"),
}
named = pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)


@named
@pytest.mark.parametrize("remember_for", [30, 2 * TOKEN_MEMORY])
def test_each_run_of_a_key_is_remembered_however_many_follow_it(store, names, remember_for):
    *_, run = names
    runs = [run.replace("0:0", f"{number}:0") for number in range(5)]
    leases = []
    for number, each in enumerate(runs):
        leases.append(take(store, holder=f"h{number}", run=each))
        assert store.locks.release(leases[-1], remember_for=remember_for)
        for again in runs[: number + 1]:
            assert store.locks.acquire("key", holder="copy", ttl=30, run=again) == Finished()
    take(store, holder="last")
    for each, lease in zip(runs, leases, strict=True):
        assert store.locks.acquire("key", holder="copy", ttl=30, run=each) == Finished()
        assert store.locks.release(lease, remember_for=remember_for), "a release that is repeated"


@named
def test_a_whole_is_told_from_a_try_wherever_it_is_remembered(store, names):
    run, later, whole, other = names
    assert store.locks.release(take(store, run=run, task=whole), remember_for=30)
    assert store.locks.acquire("key", holder="b", ttl=30, run=run, task=whole) == Finished()
    assert store.locks.release(take(store, holder="b", run=later, task=whole), remember_for=30, task=True)
    for _ in range(2):
        assert store.locks.acquire("key", holder="c", ttl=30, run=run, task=whole).task
        assert store.locks.acquire("key", holder="c", ttl=30, run=later, task=whole) == Finished(task=True)
        store.locks.release(take(store, holder="another", run=other))


@named
def test_a_run_is_remembered_for_its_time_only_also_when_another_has_followed(store, kind, names):
    run, *_, other = names
    assert store.locks.release(take(store, run=run), remember_for=0.5)
    second = take(store, holder="b", run=other)
    assert store.locks.acquire("key", holder="c", ttl=30, run=run) == Finished()
    kind.later(0.5)
    assert isinstance(store.locks.acquire("key", holder="c", ttl=30, run=run), Held)
    assert store.locks.release(second, remember_for=0.1)
    kind.later(0.1)
    take(store, holder="c", run=other)


@named
def test_a_run_is_forgotten_when_its_time_is_over_though_nobody_came_since(store, kind, names):
    run, *_ = names
    assert store.locks.release(take(store, run=run), remember_for=0.8)
    assert store.locks.acquire("key", holder="b", ttl=30, run=run) == Finished()
    kind.later(0.8)
    take(store, holder="b", run=run)


@named
def test_a_key_that_is_kept_is_held_and_its_run_remembered(store, kind, names):
    run, _, whole, other = names
    lease = take(store, run=run, task=whole, description="me")
    for _ in range(2):
        assert store.locks.release(lease, hold_for=1, remember_for=30, task=True)
        assert store.locks.acquire("key", holder="b", ttl=30, run=run, task=whole) == Finished(task=True)
        refusal = store.locks.acquire("key", holder="b", ttl=30, run=other)
        assert isinstance(refusal, Held)
        assert (refusal.description, refusal.same_run) == ("me", False)
    kind.later(1)
    last = take(store, holder="b", run=other)
    assert last.token > lease.token
    assert store.locks.acquire("key", holder="c", ttl=30, run=run, task=whole) == Finished(task=True)


# -- many at once ------------------------------------------------------------------------------------------------------


def assert_no_overlap(witness: Server, times: int) -> None:
    with witness.client() as client:
        seen = [entry.split() for entry in client.lrange("seen", 0, -1)]
    assert len(seen) == times
    assert {inside for inside, _ in seen} == {"1"}
    tokens = [int(token) for _, token in seen]
    assert tokens == sorted(set(tokens))


def with_each_client(test):
    """Many at once. Debian's Redis has the client of Valkey; and coverage makes it take thrice as long, for what others run too."""
    kinds = ["redis", "memory", "cluster", "sqlite", "postgresql"]
    return pytest.mark.no_cover(pytest.mark.parametrize("kind", kinds, indirect=True)(test))


@pytest.mark.no_cover
@first_on("redis", "memory")
def test_64_threads_never_overlap(store, spare_server: Server):
    with ThreadPoolExecutor(64) as pool:
        for done in [pool.submit(fight, store, spare_server.url, f"thread {number}", 3) for number in range(64)]:
            done.result()
    assert_no_overlap(spare_server, 192)


@first_on(*ONE_OF_EACH)
def test_8_processes_never_overlap(kind, spare_server: Server):
    script = Path(__file__).with_name("fighter.py")
    command = [sys.executable, script, kind.name, kind.target, spare_server.url, "8", "25"]
    assert subprocess.run(command, timeout=100).returncode == 0
    assert_no_overlap(spare_server, 200)


@with_each_client
def test_8_forked_children_never_overlap(store, spare_server: Server):
    take(store, "before the fork")
    children = [fork(fight, store, spare_server.url, f"child {number}", 10) for number in range(8)]
    for child in children:
        child.join(100)
    assert [child.exitcode for child in children] == [0] * 8
    assert_no_overlap(spare_server, 80)


# -- forks and deaths --------------------------------------------------------------------------------------------------


def fork(body, *args):
    child = multiprocessing.get_context("fork").Process(target=body, args=args, daemon=True)
    child.start()
    return child


def in_a_fork(body, timeout: float = 60) -> None:
    child = fork(body)
    child.join(timeout)
    hung = child.exitcode is None
    if hung:
        child.kill()
        child.join()
    assert not hung, "the child hangs"
    assert child.exitcode == 0


def test_a_forked_child_uses_the_store_on_connections_of_its_own(store):
    lease = take(store)

    def use() -> None:
        assert isinstance(store.locks.acquire("key", holder="child", ttl=30), Held)
        store.locks.release(take(store, "another", "child"))

    in_a_fork(use)
    assert store.locks.extend([(lease, 30)]) == [True]
    assert store.locks.release(lease)


def test_a_forked_child_that_closes_the_store_takes_nothing_from_its_parent(store, kind):
    lease = take(store)
    in_a_fork(store.close)
    other = kind.open()
    assert isinstance(other.locks.acquire("key", holder="b", ttl=30), Held)
    other.close()
    assert store.locks.release(lease)


@with_each_client
def test_a_fork_while_another_thread_uses_the_store_does_not_hang_the_child(store):
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            store.locks.release(take(store, "busy", "thread"))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(10):
            in_a_fork(lambda: store.locks.release(take(store, "child's", "child")), timeout=20)
    finally:
        stop.set()
        thread.join()


def test_a_killed_holders_key_is_free_when_its_lease_ends(store):
    held = multiprocessing.get_context("fork").Event()

    def hold() -> None:
        take(store, "key", "dead", ttl=2)
        held.set()
        signal.pause()

    child = fork(hold)
    assert held.wait(30)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    wait_until(lambda: isinstance(store.locks.acquire("key", holder="b", ttl=1), Lease), 10)


def test_a_closed_store_opens_again(store):
    lease = take(store)
    store.close()
    store.close()
    assert store.locks.extend([(lease, 30)]) == [True]

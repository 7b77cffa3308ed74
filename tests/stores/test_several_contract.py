"""Several keys at once, all or none: one test per promise of ``acquire_all`` and ``release_all``, the same on every store."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from kinds import first_on
from test_contract import HOSTILE, take
from test_line_contract import again

from celery_lockbeat.stores.base import Finished, Held, Lease, Place, Reservation, Waiting, Wanted


def ask(store, *keys, holder="a", ttl=30, **more):
    """As a lock does: sorted, each with a holder of its own."""
    named = [(key, f"{holder}.{number}") for number, key in enumerate(sorted(keys))]
    return store.locks.acquire_all(named, Wanted(ttl, **more))


def take_all(store, *keys, **more) -> list[Lease]:
    leases = ask(store, *keys, **more)
    assert isinstance(leases, list), leases
    return leases


def refused(store, *keys, **more) -> Held:
    refusal = ask(store, *keys, **more)
    assert isinstance(refusal, Held), refusal
    return refusal


def held(store) -> set[str]:
    return {lock.key for lock in store.locks.held()}


def test_all_are_had_each_by_a_lease_of_its_own(store):
    leases = take_all(store, "b", "a", "c", run="r", task="t", description="w1 pid 7")
    assert [(each.key, each.holder, each.run, each.task) for each in leases] == [
        ("a", "a.0", "r", "t"),
        ("b", "a.1", "r", "t"),
        ("c", "a.2", "r", "t"),
    ]
    assert {(lock.key, lock.holder, lock.token, lock.description) for lock in store.locks.held()} == {
        (each.key, each.holder, each.token, "w1 pid 7") for each in leases
    }
    assert store.locks.extend([(each, 60) for each in leases]) == [True] * 3
    assert store.locks.release_all(leases)
    assert held(store) == set()


@pytest.mark.parametrize("taken", ["a", "b", "c"])
def test_one_that_is_held_refuses_all_and_nothing_is_left_of_the_others(store, taken):
    take(store, key=taken, holder="x", run="rx", description="w1 pid 7")
    refusal = refused(store, "a", "b", "c", run="r")
    assert (refusal.key, refusal.description, refusal.run, refusal.same_run) == (taken, "w1 pid 7", "rx", False)
    assert 25 < refusal.remaining <= 30
    assert held(store) == {taken}
    for key in {"a", "b", "c"} - {taken}:
        take(store, key=key, holder="y")


def test_of_several_that_are_held_the_first_in_order_is_told(store):
    for key in "cb":
        take(store, key=key, holder="x")
    assert refused(store, "c", "a", "b").key == "b"


def test_tokens_grow_for_each_key_whoever_had_it_and_whoever_was_refused(store):
    last = dict.fromkeys("abc", 0)
    for number, keys in enumerate(("ab", "bc", "a", "abc", "ca")):
        leases = take_all(store, *keys, holder=f"h{number}")
        refused(store, *"abc", holder=f"late{number}")
        for lease in leases:
            assert lease.token > last[lease.key]
            last[lease.key] = lease.token
        assert store.locks.release_all(leases)


def test_who_asks_again_after_a_lost_answer_gets_its_own_leases_and_a_fresh_ttl(store):
    first = take_all(store, "a", "b", ttl=1, run="r")
    assert take_all(store, "a", "b", run="r") == first
    assert refused(store, "b", holder="x").remaining > 25


def test_who_asks_again_and_has_lost_one_meanwhile_gives_the_others_back(store):
    leases = take_all(store, "a", "b")
    assert store.locks.free("b", holder="a.1")
    take(store, key="b", holder="x")
    assert refused(store, "a", "b").key == "b"
    assert held(store) == {"b"}
    assert store.locks.extend([(each, 30) for each in leases]) == [False, False]


def test_a_copy_of_the_running_run_is_told_so(store):
    take_all(store, "a", "b", run="r")
    assert refused(store, "a", "b", holder="copy", run="r").same_run


def test_what_has_run_out_is_free(store, kind):
    leases = take_all(store, "a", "b", ttl=0.3)
    kind.later(0.3)
    take_all(store, "b", "a", holder="x")
    assert store.locks.release_all(leases) is False


def test_a_finished_run_is_known_whichever_of_its_keys_is_asked_for(store):
    for number, task in enumerate((False, True)):
        names = {"run": f"id{number}:0:0~n", "task": f"id{number}::0~n"}
        leases = take_all(store, "a", "b", **names)
        for _ in range(2):
            assert store.locks.release_all(leases, remember_for=30, task=task)
        for keys in ("ab", "a", "b", "bc"):
            assert ask(store, *keys, holder="copy", **names) == Finished(task=task)
        assert held(store) == set()


def test_who_has_lost_one_has_not_released_all_and_the_others_are_free(store):
    leases = take_all(store, "a", "b", "c")
    assert store.locks.free("b", holder="a.1")
    take(store, key="b", holder="x")
    assert store.locks.extend([(each, 30) for each in leases]) == [True, False, True]
    assert store.locks.release_all(leases) is False
    assert held(store) == {"b"}


def test_all_can_be_kept_after_their_release(store, kind):
    assert store.locks.release_all(take_all(store, "a", "b"), hold_for=0.5)
    for key in "ab":
        refused(store, key, holder="x")
    kind.later(0.5)
    take_all(store, "a", "b", holder="x")


def test_each_key_may_have_so_many_holders(store):
    take_all(store, "a", "b", holder="h1", limit=2)
    take_all(store, "b", "c", holder="h2", limit=2)
    assert refused(store, "a", "b", holder="h3", limit=2).key == "b"
    assert sorted(lock.key for lock in store.locks.held()) == ["a", "b", "b", "c"]
    take_all(store, "a", "c", holder="h4", limit=2)


def test_what_their_message_has_reserved_is_over_with_the_last_of_them_and_not_before(store):
    reservation = Reservation("a", 'it ["b"]', "id", "t")
    assert store.locks.reserve(reservation, ttl=30) is None
    take(store, key="b", holder="x")
    refused(store, "a", "b", reservation=reservation)
    assert store.locks.reserve(reservation._replace(token="u"), ttl=30) == reservation
    assert store.locks.free("b", holder="x")
    take_all(store, "a", "b", reservation=reservation)
    assert store.locks.unreserve(reservation) is False


def test_hostile_keys_are_told_apart(store):
    for number in range(0, len(HOSTILE) - 1, 2):
        pair = HOSTILE[number : number + 2]
        leases = take_all(store, *pair, holder=f"h {number} {{}}", run="r:{}\n", description="w\n{}")
        assert refused(store, *pair, holder="x").key == min(pair)
        assert store.locks.release_all(leases)


# -- in line -----------------------------------------------------------------------------------------------------------


def place(name, **more) -> Place:
    return Place(f"{name}::0~n", wait_for=60, **{"text": f"come, {name}", **more})


def names_of(name):
    return {"holder": f"h-{name}", "run": f"{name}:0:0~n", "task": f"{name}::0~n", "description": f"by {name}"}


@pytest.fixture
def told(store) -> list[str]:
    told: list[str] = []
    store.locks.called = lambda key, texts: told.extend(texts)
    return told


def test_who_waits_has_a_place_in_the_line_of_the_key_that_is_held_and_no_other(store, told):
    first = take(store, key="b", holder="x", description="w1")
    answer = ask(store, "a", "b", place=place("n"), **names_of("n"))
    assert isinstance(answer, Waiting), answer
    assert (answer.key, answer.copy, answer.before, answer.description) == ("b", 1, 0, "w1")
    assert [len(store.locks.line(key)) for key in "ab"] == [0, 1]
    assert held(store) == {"b"}
    assert store.locks.release(first)
    assert told == ["come, n"]
    assert isinstance(ask(store, "b", holder="late"), Held), "it is kept for who was called"
    take_all(store, "a", "b", place=place("n", **again(answer)), **names_of("n"))
    assert store.locks.line("b") == []


def test_who_is_called_and_finds_another_key_held_waits_there_by_its_arrival_and_keeps_nothing(store, told):
    first = take(store, key="b", holder="x")
    answer = ask(store, "a", "b", "c", place=place("n"), **names_of("n"))
    second = take(store, key="c", holder="y")
    later = ask(store, "c", place=place("m"), **names_of("m"))
    assert isinstance(later, Waiting)
    assert store.locks.release(first)
    moved = ask(store, "a", "b", "c", place=place("n", **again(answer)), **names_of("n"))
    assert isinstance(moved, Waiting), moved
    assert (moved.key, moved.since, moved.before) == ("c", answer.since, 0)
    assert moved.copy == 2, "another copy comes by itself, for the new line knows of none"
    assert held(store) == {"c"}
    take(store, key="b", holder="z")
    told.clear()
    assert store.locks.release(second)
    assert told == ["come, n"], "it came first, though it has waited elsewhere"


def test_what_is_given_back_goes_to_who_waits_for_it(store, told):
    first = take(store, key="a", holder="x")
    waits = ask(store, "a", place=place("m"), **names_of("m"))
    assert isinstance(waits, Waiting)
    # it is called for a, and has not come yet; who is before it takes it, and gives it back
    assert store.locks.release(first)
    take(store, key="b", holder="y")
    earlier = place("n", since=waits.since - 1)
    answer = ask(store, "a", "b", place=earlier, **names_of("n"))
    assert isinstance(answer, Waiting)
    assert answer.key == "b"
    assert told == ["come, m", "come, m"]
    assert isinstance(store.locks.acquire("a", ttl=30, place=place("m", **again(waits)), **names_of("m")), Lease)


# -- many at once ------------------------------------------------------------------------------------------------------


@pytest.mark.no_cover
@first_on("redis", "cluster", "memory", "postgresql")
def test_of_many_that_want_some_of_the_same_keys_no_two_have_one_and_each_has_its_turn(store):
    """All pairs of four keys, by threads that ask without an end."""
    pairs = [(first, second) for first in "abcd" for second in "abcd" if first != second]
    beside: list[str] = []
    inside: dict[str, threading.Lock] = {key: threading.Lock() for key in "abcd"}

    def fight(number: int) -> None:
        keys = pairs[number % len(pairs)]
        deadline = time.monotonic() + 60
        for turn in range(3):
            while not isinstance(leases := ask(store, *keys, holder=f"{number}:{turn}", ttl=60), list):
                assert time.monotonic() < deadline, "starved"
                time.sleep(random.uniform(0, 0.03))
            mine = [key for key in keys if inside[key].acquire(blocking=False)]
            beside.extend(set(keys) - set(mine))
            time.sleep(0.001)
            for key in mine:
                inside[key].release()
            assert store.locks.release_all(leases)

    with ThreadPoolExecutor(len(pairs)) as pool:
        for done in [pool.submit(fight, number) for number in range(len(pairs))]:
            done.result()
    assert beside == []
    assert held(store) == set()


@pytest.mark.no_cover
@first_on("redis", "cluster", "memory", "postgresql")
def test_of_two_that_ask_at_once_for_the_same_two_keys_one_has_them(store):
    """Whoever loses: not both, as where each takes one and is refused the other."""
    for turn in range(30):
        gate = threading.Barrier(2)

        def once(holder: str, keys: str, gate: threading.Barrier = gate) -> object:
            gate.wait(30)
            return ask(store, *keys, holder=holder)

        with ThreadPoolExecutor(2) as pool:
            tries = [pool.submit(once, f"{turn} {keys}", keys) for keys in ("ab", "ba")]
            answers = [each.result() for each in tries]
        won = [each for each in answers if isinstance(each, list)]
        assert len(won) == 1, answers
        assert store.locks.release_all(won[0])

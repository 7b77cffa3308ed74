"""One test per promise of ``reserve``, ``unreserve`` and ``acquire(reservation=)`` in ``stores/base/locks.py``, the same on every store."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_contract import HOSTILE, take

from celery_lockbeat.stores.base import Finished, Held, Reservation

OURS = Reservation("key", "proj.report", "id-1", "token-1")
OTHERS = Reservation("key", "proj.report", "id-2", "token-2")

#: What a run says of itself, and what it is known by.
DESCRIPTION = "w1@host pid 7 proj.report[id-1]"
RUN_BY = " proj.report["


def reserve(store, reservation=OURS, ttl=30.0, unless_run_by=None):
    return store.locks.reserve(reservation, ttl=ttl, unless_run_by=unless_run_by)


# -- one at a time -----------------------------------------------------------------------------------------------------


def test_a_message_reserves_a_key_and_the_next_is_told_which_is_there(store):
    assert reserve(store) is None
    assert reserve(store, OTHERS) == OURS


def test_what_is_reserved_does_not_hold_the_key(store):
    assert reserve(store) is None
    assert store.locks.held() == []
    take(store)
    assert reserve(store, OTHERS) == OURS, "whoever holds the key, the message is still there"


def test_another_opening_of_the_store_sees_the_same_reservation(store, kind):
    assert reserve(store) is None
    other = kind.open()
    assert reserve(other, OTHERS) == OURS
    other.close()


@pytest.mark.parametrize(
    "other", [OTHERS._replace(key="key2"), OTHERS._replace(name="proj.other")], ids=["key", "task"]
)
def test_another_key_and_another_task_are_another_place(store, other):
    assert reserve(store) is None
    assert reserve(store, other) is None
    assert store.locks.unreserve(other) is True
    assert reserve(store, OTHERS) == OURS


def test_the_same_message_asking_again_has_its_place_for_a_fresh_ttl(store, kind):
    assert reserve(store, ttl=0.2) is None
    assert reserve(store, ttl=30) is None
    kind.later(0.2)
    assert reserve(store, OTHERS) == OURS


def test_a_second_message_under_one_task_id_is_another(store):
    assert reserve(store) is None
    assert reserve(store, OURS._replace(token="token-2")) == OURS


def test_what_is_reserved_ends_with_its_time(store, kind):
    assert reserve(store, ttl=0.1) is None
    kind.later(0.1)
    assert reserve(store, OTHERS) is None
    assert store.locks.unreserve(OURS) is False
    assert reserve(store) == OTHERS


def test_of_many_that_ask_at_once_one_gets_the_place(kind):
    stores = [kind.open() for _ in range(4)]
    begin = threading.Barrier(len(stores))

    def ask(number: int) -> list[bool]:
        begin.wait(20)
        mine = Reservation("", "proj.report", f"id-{number}", f"token-{number}")
        return [reserve(stores[number], mine._replace(key=f"key {round_}")) is None for round_ in range(20)]

    with ThreadPoolExecutor(len(stores)) as pool:
        answers = list(pool.map(ask, range(len(stores))))
    assert [sum(got) for got in zip(*answers, strict=True)] == [1] * 20
    for store in stores:
        store.close()


# -- its end -----------------------------------------------------------------------------------------------------------


def test_only_its_own_message_ends_a_reservation(store):
    assert reserve(store) is None
    assert store.locks.unreserve(OTHERS) is False
    assert store.locks.unreserve(OURS._replace(token="token-2")) is False
    assert store.locks.unreserve(OURS._replace(task_id="id-2")) is False
    assert reserve(store, OTHERS) == OURS
    assert store.locks.unreserve(OURS) is True
    assert store.locks.unreserve(OURS) is False
    assert reserve(store, OTHERS) is None


def test_who_takes_the_lock_gives_up_its_reservation(store):
    assert reserve(store) is None
    take(store, reservation=OURS)
    assert reserve(store, OTHERS) is None


def test_who_takes_the_lock_again_gives_up_what_it_has_reserved_meanwhile(store):
    take(store, reservation=OURS)
    assert reserve(store) is None
    take(store, reservation=OURS)
    assert reserve(store, OTHERS) is None


def test_a_run_without_a_reservation_of_its_own_ends_no_other(store):
    assert reserve(store) is None
    take(store, reservation=OTHERS)
    assert reserve(store, OTHERS) == OURS


def test_who_is_refused_keeps_its_reservation(store):
    assert reserve(store) is None
    lease = take(store, holder="a", run="r")
    assert isinstance(store.locks.acquire("key", holder="b", ttl=30, reservation=OURS), Held)
    assert store.locks.release(lease, remember_for=30)
    again = store.locks.acquire("key", holder="b", ttl=30, run="r", reservation=OURS)
    assert isinstance(again, Finished)
    assert reserve(store, OTHERS) == OURS


def test_a_lock_is_taken_with_a_run_and_a_task_and_a_reservation_at_once(store):
    assert reserve(store) is None
    lease = take(store, run="r", task="t", reservation=OURS)
    assert store.locks.release(lease, remember_for=30, task=True)
    assert store.locks.acquire("key", holder="b", ttl=30, run="r2", task="t", reservation=OURS) == Finished(task=True)


# -- runs that are there -----------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_is_there_and_nothing_is_reserved_beside_it(store):
    lease = take(store, ttl=30, run="id-1:0:0", description=DESCRIPTION)
    there = reserve(store, OTHERS, unless_run_by=RUN_BY)
    assert isinstance(there, Held)
    assert (there.run, there.description) == ("id-1:0:0", DESCRIPTION)
    assert 25 < there.remaining <= 30
    assert store.locks.release(lease)
    assert reserve(store, OURS, unless_run_by=RUN_BY) is None


def test_a_run_that_goes_on_among_others_is_there(store):
    take(store, holder="a", run="id-0:0:0", description="w1@host pid 7 proj.other[id-0]", limit=3)
    lease = take(store, holder="b", run="id-1:0:0", description=DESCRIPTION, limit=3)
    there = reserve(store, OTHERS, unless_run_by=RUN_BY)
    assert isinstance(there, Held)
    assert (there.run, there.description) == ("id-1:0:0", DESCRIPTION)
    assert store.locks.release(lease, hold_for=30)
    assert reserve(store, OURS, unless_run_by=RUN_BY) is None
    take(store, holder="c", limit=3, reservation=OURS)
    assert reserve(store, OTHERS) is None


def test_a_run_that_goes_on_does_not_count_where_it_is_not_asked_for(store):
    take(store, run="id-1:0:0", description=DESCRIPTION)
    assert reserve(store, OTHERS) is None


@pytest.mark.parametrize(
    ("run", "description"),
    [("id-1:0:0", "w1@host pid 7 proj.other[id-1]"), (None, DESCRIPTION)],
    ids=["another task's run", "what is no run"],
)
def test_other_holders_of_the_key_are_no_runs_of_the_task(store, run, description):
    take(store, run=run, description=description)
    assert reserve(store, OTHERS, unless_run_by=RUN_BY) is None


def test_a_run_whose_lease_is_over_is_not_there(store, kind):
    take(store, ttl=0.1, run="id-1:0:0", description=DESCRIPTION)
    kind.later(0.1)
    assert reserve(store, OTHERS, unless_run_by=RUN_BY) is None


@pytest.mark.parametrize("hold_for", [0, 30])
def test_a_run_that_has_ended_is_not_there_though_its_key_may_be_kept(store, hold_for):
    lease = take(store, run="id-1:0:0", task="id-1::0", description=DESCRIPTION)
    assert store.locks.release(lease, hold_for=hold_for, remember_for=30, task=True)
    assert reserve(store, OTHERS, unless_run_by=RUN_BY) is None


def test_a_freed_run_is_not_there(store):
    take(store, holder="a", run="id-1:0:0", description=DESCRIPTION)
    assert store.locks.free("key", holder="a")
    assert reserve(store, OTHERS, unless_run_by=RUN_BY) is None


def test_what_is_reserved_already_is_so_whoever_runs(store):
    """As the next attempt of a run that goes on, whose message is sent once more."""
    assert reserve(store) is None
    take(store, run="id-0:0:0", description=DESCRIPTION)
    assert reserve(store, unless_run_by=RUN_BY) is None


def test_there_is_no_moment_between_a_message_and_its_run(kind):
    """Who reserves a place although a message was in it, or its run, all the time, has seen one of neither."""
    runner, asker = kind.open(), kind.open()
    #: odd while something is there
    epoch, over, between = [0], threading.Event(), []

    def ask() -> None:
        while not over.is_set():
            before = epoch[0]
            if reserve(asker, OTHERS, unless_run_by=RUN_BY) is None:
                if before % 2 and epoch[0] == before:
                    between.append(before)
                asker.locks.unreserve(OTHERS)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for number in range(40):
            while reserve(runner, unless_run_by=RUN_BY) is not None:
                pass
            epoch[0] += 1
            lease = take(runner, holder=str(number), run="id-1:0:0", description=DESCRIPTION, reservation=OURS)
            epoch[0] += 1
            assert runner.locks.release(lease)
    finally:
        over.set()
        thread.join()
    assert not between
    runner.close()
    asker.close()


# -- names -------------------------------------------------------------------------------------------------------------


def test_hostile_names_are_told_apart_and_come_back_as_they_were(store):
    for text in HOSTILE:
        ours = Reservation(f"k{text}", f"n{text}", f"i{text}", "t")
        assert reserve(store, ours) is None
        assert reserve(store, ours._replace(token="u")) == ours
    for text in HOSTILE:
        ours = Reservation(f"k{text}", f"n{text}", f"i{text}", "t")
        take(store, ours.key, reservation=ours)
        assert store.locks.unreserve(ours) is False


def test_a_run_is_found_by_a_hostile_description(store):
    for text in (text for text in HOSTILE if len(text) < 100):
        lease = take(store, "key", run="r", description=f"w1 {text}[id]")
        assert isinstance(reserve(store, OTHERS, unless_run_by=f" {text}["), Held), ascii(text)
        store.locks.release(lease)


def test_two_prefixes_never_meet(kind):
    a, b = kind.open("a:"), kind.open("b:")
    assert reserve(a) is None
    assert reserve(b, OTHERS) is None
    assert b.locks.unreserve(OURS) is False
    assert reserve(a, OTHERS) == OURS
    a.close()
    b.close()


@pytest.mark.parametrize("kind", ["postgresql"], indirect=True)
def test_what_is_over_leaves_no_rows_behind_for_long(kind, store):
    """Redis ends them by itself, and SQLite purges them as it does locks."""
    for number in range(20):
        assert reserve(store, OURS._replace(key=f"key {number}"), ttl=0.05) is None
    kind.later(0.05)
    for number in range(10):
        assert reserve(store, OURS._replace(key=f"later {number}")) is None
    assert kind.cluster.query("SELECT count(*) FROM lockbeat_reserved") == [(10,)]

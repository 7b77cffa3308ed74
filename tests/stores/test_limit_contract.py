"""A key that several may hold: one test per promise of ``acquire(..., limit=N)``, the same on every store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from fighter import fight
from servers import Server
from test_contract import fork, take

from celery_lockbeat.stores.base import Finished, Held, Lease


def refused(store, holder="late", *, limit, **more) -> Held:
    refusal = store.locks.acquire("key", holder=holder, ttl=30, limit=limit, **more)
    assert isinstance(refusal, Held), refusal
    return refusal


def test_so_many_hold_a_key_and_the_next_is_told_of_the_one_that_ends_first(store):
    for number, ttl in enumerate((60, 20, 40)):
        take(store, holder=f"h{number}", ttl=ttl, limit=3, run=f"r{number}", description=f"w{number}")
    refusal = refused(store, limit=3, run="r9")
    assert (refusal.description, refusal.run, refusal.same_run) == ("w1", "r1", False)
    assert 15 < refusal.remaining <= 20


def test_tokens_grow_over_all_holders(store):
    tokens, leases = [], []
    for number in range(12):
        leases.append(take(store, holder=f"h{number}", limit=3))
        tokens.append(leases[-1].token)
        if number >= 2:
            assert store.locks.release(leases[number - 2])
    assert tokens == sorted(set(tokens))


def test_each_holder_extends_and_releases_its_own_lease_alone(store, kind):
    kept, brief, other = (take(store, holder=name, ttl=1, limit=3) for name in ("kept", "brief", "other"))
    thief = other._replace(holder="thief")
    assert store.locks.extend([(kept, 30), (thief, 30), (other, 30)]) == [True, False, True]
    assert store.locks.release(other._replace(token=kept.token)) is False
    kind.later(1)
    assert store.locks.extend([(brief, 30), (kept, 30)]) == [False, True]
    assert store.locks.release(brief) is False
    assert store.locks.release(kept)
    take(store, holder="x", limit=3)
    take(store, holder="y", limit=3)
    refused(store, limit=3)


def test_a_larger_limit_counts_at_once_for_who_comes_with_it(store):
    first = take(store, holder="h0", run="r0", description="w0")
    second = take(store, holder="h1", limit=2)
    assert second.token > first.token
    refused(store, limit=2)
    assert refused(store, limit=1).description in ("w0", "")
    # who has had it alone has it among others now, and knows nothing of that
    assert store.locks.extend([(first, 30), (second, 30)]) == [True, True]
    assert store.locks.release(first, remember_for=30)
    assert store.locks.acquire("key", holder="copy", ttl=30, limit=2, run="r0") == Finished()
    take(store, holder="h2", limit=2)


def test_a_smaller_limit_counts_as_soon_as_so_many_have_ended(store):
    leases = [take(store, holder=f"h{number}", limit=3) for number in range(3)]
    refused(store, limit=2)
    assert store.locks.release(leases[0])
    refused(store, limit=2)
    refused(store, limit=1)
    assert store.locks.release(leases[1])
    newer = take(store, holder="newer", limit=2)
    assert store.locks.release(newer)
    refused(store, limit=1)
    assert store.locks.release(leases[2])
    last = take(store, holder="last")
    assert last.token > newer.token
    refused(store, limit=1)
    assert store.locks.extend([(leases[2], 30), (last, 30)]) == [False, True]
    assert store.locks.release(leases[2]) is False


def test_a_copy_of_a_run_that_goes_on_finds_it_though_there_is_room(store):
    take(store, holder="h0", run="r0", description="w0", limit=3)
    take(store, holder="h1", run="r1", limit=3)
    refusal = refused(store, run="r0", limit=3)
    assert (refusal.same_run, refusal.description) == (True, "w0")
    for limit in (1, 2):
        assert refused(store, run="r0", limit=limit).same_run
    take(store, holder="h2", limit=3)


def test_a_copy_of_who_has_had_the_key_alone_finds_it_too(store):
    take(store, holder="h0", run="r0")
    assert refused(store, run="r0", limit=3).same_run


def test_each_finished_run_is_remembered(store):
    leases = [take(store, holder=f"h{n}", run=f"id{n}:0:0~n", task=f"id{n}::0~n", limit=3) for n in range(3)]
    for lease in leases:
        assert store.locks.release(lease, remember_for=30, task=lease is leases[0])
    for number, lease in enumerate(leases):
        for limit in (1, 3):
            again = store.locks.acquire("key", holder="copy", ttl=30, run=lease.run, task=lease.task, limit=limit)
            assert again == Finished(task=number == 0)


def test_what_a_lock_remembers_itself_is_remembered_when_several_hold_it(store):
    run = "id:0:0~n"
    assert store.locks.release(take(store, run=run), remember_for=30)
    take(store, holder="h1", limit=2)
    assert store.locks.acquire("key", holder="copy", ttl=30, run=run, limit=2) == Finished()
    take(store, holder="h2", limit=2)
    assert store.locks.acquire("key", holder="copy", ttl=30, run=run, limit=2) == Finished()


def test_a_release_can_be_repeated_beside_others(store):
    first, second = (take(store, holder=name, limit=2) for name in "ab")
    for lease in (first, second):
        assert [store.locks.release(lease) for _ in range(2)] == [True, True]
    assert store.locks.release(first) is True


def test_a_place_can_be_kept_after_its_release(store, kind):
    first, _ = take(store, holder="a", limit=2, description="me"), take(store, holder="b", limit=2)
    for _ in range(2):
        assert store.locks.release(first, hold_for=1)
    refused(store, "a", limit=2)
    assert store.locks.extend([(first, 30)]) == [False]
    kind.later(1)
    take(store, holder="c", limit=2)


def test_a_key_that_is_kept_after_its_release_is_one_of_its_places(store, kind):
    run = "id:0:0~n"
    assert store.locks.release(take(store, run=run), hold_for=1, remember_for=30)
    take(store, holder="b", limit=2)
    refused(store, limit=2)
    assert store.locks.acquire("key", holder="copy", ttl=30, run=run, limit=2) == Finished()
    kind.later(1)
    take(store, holder="c", limit=2)


def test_who_asks_again_gets_its_own_lease_with_any_limit(store):
    first = take(store, holder="a", ttl=1, run="r")
    assert take(store, holder="a", run="r", limit=2) == first
    take(store, holder="b", limit=2)
    assert take(store, holder="a", run="r") == first
    refused(store, limit=2)
    assert store.locks.release(first)


def test_what_has_run_out_makes_room(store, kind):
    gone = [take(store, holder=f"h{number}", ttl=0.5, limit=2) for number in range(2)]
    refused(store, limit=2)
    kind.later(0.5)
    lasting = take(store, holder="x", limit=2)
    assert store.locks.extend([(lease, 30) for lease in (*gone, lasting)]) == [False, False, True]
    take(store, holder="y", limit=2)
    refused(store, limit=2)


def test_a_holder_is_freed_by_its_name(store):
    freed, other = (take(store, holder=name, limit=2) for name in "ab")
    assert store.locks.free("key", holder="c") is False
    assert store.locks.free("key", holder="a") is True
    assert store.locks.free("key", holder="a") is False
    assert store.locks.extend([(freed, 30), (other, 30)]) == [False, True]
    take(store, holder="c", limit=2)
    refused(store, limit=2)


def test_each_holder_is_listed(store):
    leases = {name: take(store, holder=name, limit=2, run=f"run {name}", description=f"by {name}") for name in "ab"}
    take(store, key="another")
    for listed in (store.locks.held("key"), [lock for lock in store.locks.held() if lock.key == "key"]):
        told = {lock.holder: (lock.token, lock.run, lock.description) for lock in listed}
        assert told == {name: (lease.token, f"run {name}", f"by {name}") for name, lease in leases.items()}
        assert all(25 < lock.remaining <= 30 for lock in listed)
    for lease in leases.values():
        store.locks.release(lease)
    assert store.locks.held("key") == []


@pytest.mark.parametrize("limit", [1, 2])
def test_who_knows_of_one_holder_alone_finds_the_key_held_until_the_last_has_ended(store, limit):
    leases = [take(store, holder=name, limit=3) for name in "ab"]
    assert store.locks.release(leases[0])
    assert isinstance(store.locks.acquire("key", holder="c", ttl=30), Held)
    assert store.locks.release(leases[1])
    take(store, holder="c", limit=limit)


@pytest.mark.no_cover
@pytest.mark.parametrize("kind", ["redis", "memory", "cluster", "sqlite", "postgresql"], indirect=True)
def test_24_threads_of_which_some_know_an_earlier_limit_are_never_more_than_the_larger(store, spare_server: Server):
    with ThreadPoolExecutor(24) as pool:
        doing = [
            pool.submit(fight, store, spare_server.url, f"thread {number}", 4, limit=3 - number % 2)
            for number in range(24)
        ]
        for done in doing:
            done.result()
    with spare_server.client() as client:
        seen = [entry.split() for entry in client.lrange("seen", 0, -1)]
    assert len(seen) == 96
    # that there may be two at all, the tests above show; here a slow database may let them in one by one
    assert max(int(inside) for inside, _ in seen) <= 3
    assert len({token for _, token in seen}) == 96


def test_a_dead_childs_place_is_free_as_its_key_would_be(store, kind):
    take(store, holder="parent", limit=2)
    child = fork(lambda: take(store, holder="child", ttl=0.5, limit=2))
    child.join(30)
    assert child.exitcode == 0
    if kind.name != "memory":  # where the kernel tells
        kind.later(0.5)
    assert isinstance(store.locks.acquire("key", holder="next", ttl=30, limit=2), Lease)
    refused(store, limit=2)

"""``free``, the end of a lease whose token nobody knows, on every store."""

from __future__ import annotations

from celery_lockbeat.stores.base import Held, Lease


def test_a_freed_key_can_be_taken_at_once_and_the_old_lease_is_lost(store):
    old = store.locks.acquire("k", holder="dead", ttl=60, run="r", description="d")
    assert store.locks.free("k", holder="dead")
    assert store.locks.extend([(old, 60)]) == [False]
    new = store.locks.acquire("k", holder="next", ttl=60)
    assert isinstance(new, Lease)
    assert new.token > old.token
    assert not store.locks.release(old, remember_for=60)


def test_only_the_holders_own_live_lease_is_freed(store, kind):
    assert not store.locks.free("k", holder="a")
    store.locks.acquire("k", holder="a", ttl=60)
    assert not store.locks.free("k", holder="b")
    assert not store.locks.free("k", holder="")
    assert not store.locks.free("k", holder="a ")
    assert not store.locks.free("j", holder="a")
    assert isinstance(store.locks.acquire("k", holder="b", ttl=60), Held)
    short = store.locks.acquire("short", holder="a", ttl=0.05)
    kind.later(0.06)
    assert not store.locks.free("short", holder="a")
    assert store.locks.acquire("short", holder="b", ttl=60).token > short.token
    assert not store.locks.free("short", holder="a")


def test_a_lease_is_freed_once_and_what_is_freed_is_not_remembered_as_finished(store):
    store.locks.acquire("k", holder="a", ttl=60, run="r")
    assert store.locks.free("k", holder="a")
    assert not store.locks.free("k", holder="a")
    assert isinstance(store.locks.acquire("k", holder="b", ttl=60, run="r"), Lease)


def test_what_was_released_but_is_held_for_longer_stays_held(store):
    lease = store.locks.acquire("k", holder="a", ttl=60)
    store.locks.release(lease, hold_for=60)
    assert not store.locks.free("k", holder="a")
    assert isinstance(store.locks.acquire("k", holder="b", ttl=60), Held)


def test_holders_of_any_text_can_be_freed(store):
    for holder in ("a b", "ü", "%20", "x" * 500, "{", "\ud800"):
        store.locks.acquire(holder, holder=holder, ttl=60)
        assert store.locks.free(holder, holder=holder), holder

"""``free``, the end of a lease whose token nobody knows, on every store."""

from __future__ import annotations

from celery_lockbeat.stores.base import Held, Lease


def test_a_freed_key_can_be_taken_at_once_and_the_old_lease_is_lost(store):
    old = store.acquire("k", holder="dead", ttl=60, run="r", description="d")
    assert store.free("k", holder="dead")
    assert store.extend([(old, 60)]) == [False]
    new = store.acquire("k", holder="next", ttl=60)
    assert isinstance(new, Lease)
    assert new.token > old.token
    assert not store.release(old, remember_for=60)


def test_only_the_holders_own_live_lease_is_freed(store, kind):
    assert not store.free("k", holder="a")
    store.acquire("k", holder="a", ttl=60)
    assert not store.free("k", holder="b")
    assert not store.free("k", holder="")
    assert not store.free("k", holder="a ")
    assert not store.free("j", holder="a")
    assert isinstance(store.acquire("k", holder="b", ttl=60), Held)
    short = store.acquire("short", holder="a", ttl=0.05)
    kind.later(0.06)
    assert not store.free("short", holder="a")
    assert store.acquire("short", holder="b", ttl=60).token > short.token
    assert not store.free("short", holder="a")


def test_a_lease_is_freed_once_and_what_is_freed_is_not_remembered_as_finished(store):
    store.acquire("k", holder="a", ttl=60, run="r")
    assert store.free("k", holder="a")
    assert not store.free("k", holder="a")
    assert isinstance(store.acquire("k", holder="b", ttl=60, run="r"), Lease)


def test_what_was_released_but_is_held_for_longer_stays_held(store):
    lease = store.acquire("k", holder="a", ttl=60)
    store.release(lease, hold_for=60)
    assert not store.free("k", holder="a")
    assert isinstance(store.acquire("k", holder="b", ttl=60), Held)


def test_holders_of_any_text_can_be_freed(store):
    for holder in ("a b", "ü", "%20", "x" * 500, "{", "\ud800"):
        store.acquire(holder, holder=holder, ttl=60)
        assert store.free(holder, holder=holder), holder

"""One test per promise of ``stores/base/announcements.py`` to members of an app that announce what they are, the same on every store."""

from __future__ import annotations

from test_contract import HOSTILE

from celery_lockbeat.stores.base import ANNOUNCED, ANNOUNCED_AT_ONCE

APP = "shop"


def told(store, kind="member", names=None, app=APP, **options):
    return {each.name: each.told for each in store.announcements.announced(app, kind, names, **options)}


def first(store, name):
    (known,) = store.announcements.announced(APP, "definition", [name])
    return known.first


def test_what_is_announced_is_known_until_its_ttl_is_over(kind):
    store = kind.open()
    assert told(store) == {}
    store.announcements.announce(APP, "member", {"a": "1", "b": "2"}, ttl=600)
    store.announcements.announce(APP, "member", {"c": "3"}, ttl=0.2)
    assert told(store) == {"a": "1", "b": "2", "c": "3"}
    kind.later(0.2)
    assert told(store) == {"a": "1", "b": "2"}
    assert told(store, names=["a", "c", "nobody"]) == {"a": "1"}
    assert told(store, names=[]) == {}
    assert len(told(store, limit=1)) == 1
    store.close()


def test_a_later_announcement_takes_the_place_of_an_earlier_one_and_a_ttl_of_0_takes_it_back(store):
    store.announcements.announce(APP, "member", {"a": "1"}, ttl=600)
    store.announcements.announce(APP, "member", {"a": "2", "b": "3"}, ttl=600)
    store.announcements.announce(APP, "member", {"b": "3"}, ttl=0)
    assert told(store) == {"a": "2"}


def test_it_tells_since_when_nobody_has_announced_it(kind):
    store = kind.open()
    store.announcements.announce(APP, "member", {"a": "1"}, ttl=600)
    kind.later(0.3)
    (known,) = store.announcements.announced(APP, "member")
    assert 0.3 <= known.silent_for < 30
    store.announcements.announce(APP, "member", {"a": "1"}, ttl=600)
    (known,) = store.announcements.announced(APP, "member")
    assert known.silent_for < 0.3
    store.close()


def test_when_it_was_first_announced_is_kept_until_it_is_forgotten(kind):
    store = kind.open()
    store.announcements.announce(APP, "definition", {"a": ""}, ttl=0.5)
    since = first(store, "a")
    kind.later(0.05)
    store.announcements.announce(APP, "definition", {"a": "", "b": ""}, ttl=0.5)
    assert first(store, "a") == since
    assert first(store, "b") >= since
    kind.later(0.5)
    assert told(store, "definition") == {}
    store.announcements.announce(APP, "definition", {"a": ""}, ttl=600)
    assert first(store, "a") >= since
    store.announcements.announce(APP, "definition", {"a": ""}, ttl=0)
    assert told(store, "definition") == {}
    store.close()


def test_kinds_apps_and_prefixes_do_not_hear_of_each_other(kind):
    store, other = kind.open(), kind.open("other:")
    for each in ANNOUNCED:
        store.announcements.announce(APP, each, {"a": each}, ttl=600)
    assert [told(store, each) for each in ANNOUNCED] == [{"a": each} for each in ANNOUNCED]
    assert told(store, app="mail") == {}
    assert told(other) == {}
    store.close()
    other.close()


def test_any_name_is_one_of_its_own(store):
    for number, name in enumerate(HOSTILE):
        store.announcements.announce(APP, "definition", {name: str(number), name + "x": "other"}, ttl=600)
    assert told(store, "definition", HOSTILE) == {name: str(number) for number, name in enumerate(HOSTILE)}


def test_as_many_as_a_large_schedule_has_are_told(store):
    names = [f"entry {number}" for number in range(3 * ANNOUNCED_AT_ONCE)]
    for start in range(0, len(names), ANNOUNCED_AT_ONCE):
        store.announcements.announce(
            APP, "definition", dict.fromkeys(names[start : start + ANNOUNCED_AT_ONCE], "x" * 50), ttl=600
        )
    assert told(store, "definition").keys() == set(names)
    assert told(store, "definition", names[:1200]).keys() == set(names[:1200])

"""One test per promise of ``stores/base/journal.py`` to who writes and who reads the journal, the same on every store."""

from __future__ import annotations

import threading

from test_contract import HOSTILE

from celery_lockbeat.stores.base import JOURNALED_AT_ONCE

APP = "shop"


def texts(records):
    return [record.text for record in records]


def write(store, *written, batch=None, app=APP, keep=1000, **options):
    write.count += 1
    return store.journal.append(app, batch or f"batch {write.count}", written, keep=keep, **options)


write.count = 0


def test_what_is_written_is_read_in_its_order_from_either_end(store):
    assert store.journal.records(APP) == []
    assert write(store, "1", "2")
    assert write(store, "3")
    assert texts(store.journal.records(APP)) == ["1", "2", "3"]
    assert texts(store.journal.records(APP, newest_first=True)) == ["3", "2", "1"]
    assert texts(store.journal.records(APP, limit=2)) == ["1", "2"]
    assert texts(store.journal.records(APP, newest_first=True, limit=1)) == ["3"]


def test_positions_lead_from_page_to_page_in_both_directions(store):
    write(store, *map(str, range(10)))
    first = store.journal.records(APP, limit=4)
    second = store.journal.records(APP, after=first[-1].position, limit=4)
    assert texts(second) == ["4", "5", "6", "7"]
    back = store.journal.records(APP, before=second[-1].position, newest_first=True, limit=3)
    assert texts(back) == ["6", "5", "4"]
    between = store.journal.records(APP, after=first[0].position, before=second[0].position)
    assert texts(between) == ["1", "2", "3"]
    last = store.journal.records(APP, newest_first=True, limit=1)[0].position
    assert store.journal.records(APP, after=last) == []
    write(store, "new")
    assert texts(store.journal.records(APP, after=last)) == ["new"]


def test_a_batch_that_is_written_again_is_not(kind):
    store = kind.open()
    assert write(store, "1", "2", batch="a", remember_for=0.5)
    assert not write(store, "1", "2", batch="a", remember_for=0.5)
    assert write(store, "3", batch="b", remember_for=600)
    assert not write(store, "3", batch="b", remember_for=600)
    kind.later(0.5)
    assert write(store, "4", batch="a", remember_for=0.5)
    assert not write(store, "3", batch="b", remember_for=600)
    assert texts(store.journal.records(APP)) == ["1", "2", "3", "4"]
    store.close()


def test_a_batch_without_texts_is_one(store):
    assert write(store, batch="case")
    assert not write(store, batch="case")
    assert not write(store, "1", batch="case")
    assert store.journal.records(APP) == []


def test_a_batch_that_is_to_be_forgotten_is(store):
    assert write(store, "1", batch="a")
    assert write(store, "2", batch="b", forget="a")
    assert not write(store, "2", batch="b", forget="a")
    assert write(store, "3", batch="a")
    assert texts(store.journal.records(APP)) == ["1", "2", "3"]


def test_of_many_who_write_one_batch_one_does(store):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(write(store, "1", batch="case"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(answers) == [False] * 7 + [True]
    assert texts(store.journal.records(APP)) == ["1"]


def test_the_oldest_are_dropped_and_what_is_to_be_kept_is_kept(store):
    numbers = iter(range(10**6))
    for _ in range(20):
        write(store, *(str(next(numbers)) for _ in range(100)), keep=300)
    kept = []
    while found := store.journal.records(APP, after=kept[-1].position if kept else None):
        kept += found
    assert 300 <= len(kept) <= 300 * 1.1 + 300
    assert texts(kept) == [str(number) for number in range(2000 - len(kept), 2000)]


def test_a_position_that_was_dropped_is_still_a_place_in_the_order(store):
    write(store, "oldest")
    (oldest,) = store.journal.records(APP)
    for number in range(20):
        write(store, *["x"] * 100, f"{number}", keep=100)
    assert store.journal.records(APP, before=oldest.position) == []
    found = store.journal.records(APP, after=oldest.position)
    assert found == store.journal.records(APP)
    assert "oldest" not in texts(found)


def test_what_no_store_has_returned_is_no_position(store):
    write(store, "1")
    for position in ("", "x", "-", "+", "1; DROP", "1-1-1", "\N{SUPERSCRIPT TWO}", "9" * 30, "9" * 9999):
        assert store.journal.records(APP, after=position) == []
        assert store.journal.records(APP, before=position) == []


def test_it_tells_when_it_was_written_and_what_was_written_since(store):
    write(store, "1")
    write(store, "2")
    first, second = store.journal.records(APP)
    assert first.written <= second.written <= first.written + 60
    assert texts(store.journal.records(APP, since=first.written - 60)) == ["1", "2"]
    assert store.journal.records(APP, since=second.written + 60) == []
    assert store.journal.records(APP, since=second.written + 60, after=first.position) == []
    assert texts(store.journal.records(APP, since=first.written - 60, after=first.position)) == ["2"]


def test_no_more_are_read_than_in_one_round_trip(store):
    for _ in range(3):
        write(store, *["x" * 200] * JOURNALED_AT_ONCE, keep=10_000)
    assert len(store.journal.records(APP, limit=10_000)) == JOURNALED_AT_ONCE


def test_apps_and_prefixes_do_not_see_each_others(kind):
    store, other = kind.open(), kind.open("other:")
    write(store, "ours", batch="a")
    assert write(store, "mail's", batch="a", app="mail")
    assert write(other, "other's", batch="a")
    assert texts(store.journal.records(APP)) == ["ours"]
    assert texts(store.journal.records("mail")) == ["mail's"]
    assert texts(other.journal.records(APP)) == ["other's"]
    store.close()
    other.close()


def test_an_app_of_any_name_has_a_journal_of_its_own(store):
    for number, name in enumerate(HOSTILE):
        write(store, str(number), app=name)
    for number, name in enumerate(HOSTILE):
        assert texts(store.journal.records(name)) == [str(number)]


def test_a_store_that_has_forgotten_all_goes_on(kind):
    store = kind.open()
    write(store, "1", batch="a")
    kind.forget_all()
    assert store.journal.records(APP) == []
    assert write(store, "2", batch="a")
    assert texts(store.journal.records(APP)) == ["2"]
    store.close()

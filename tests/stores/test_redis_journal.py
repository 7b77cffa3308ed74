"""The journal's stream in Redis: what others have written into it, clocks that jump, and how much there may be."""

from __future__ import annotations

import time

import pytest
from celery import Celery
from opening import open_at

from celery_lockbeat import journal
from celery_lockbeat.stores.base import JOURNAL_MEMORY

APP = "shop"
STREAM, BATCHES = (f"lockbeat:{{beat:{APP}}}:{name}" for name in ("journal", "batches"))


@pytest.fixture
def store(server):
    store = open_at("redis", server.url)
    yield store
    store.close()


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture
def app(server):
    app = Celery(APP, broker=server.url, set_as_current=False)
    yield app
    app.close()


def write(store, *texts, batch):
    return store.journal.append(APP, batch, texts, keep=1000)


def test_where_the_clock_was_set_back_records_go_on_in_their_order_with_the_time_as_it_is_now(store, client):
    """As after an hour in which the server's clock was a day ahead: ids of a stream never go back."""
    ahead = int((time.time() + 86400) * 1000)
    client.xadd(STREAM, {"r": "of tomorrow"}, id=f"{ahead}-0")
    write(store, "1", "2", batch="a")
    write(store, "3", batch="b")
    records = store.journal.records(APP)
    assert [record.text for record in records] == ["of tomorrow", "1", "2", "3"]
    assert all(abs(record.written - time.time()) < 60 for record in records[1:])
    assert [record.text for record in store.journal.records(APP, after=records[1].position)] == ["2", "3"]


def test_what_others_have_written_into_the_stream_is_passed_over_with_a_word(store, client, app):
    for fields in ({"x": "y"}, {"r": b"\xff\xfe"}, {"r": "[]"}, {"r": '{"e":"task_failed","ago":0}', "t": "soon"}):
        client.xadd(STREAM, fields)
    write(store, '{"e":"task_succeeded","ago":0}', batch="a")
    events = [record.event for record in journal.read(app)]
    assert events == ["unreadable", "unreadable", "unreadable", "task_failed", "task_succeeded"]


@pytest.mark.parametrize("key", [STREAM, BATCHES])
def test_a_key_of_another_type_is_renamed_said_and_nothing_that_comes_then_is_lost(store, client, caplog, key):
    client.set(key, "of somebody else")
    assert write(store, "1", "2", batch="a")
    assert not write(store, "1", "2", batch="a")
    assert [record.text for record in store.journal.records(APP)] == ["1", "2"]
    assert client.get(f"{key}:unreadable") in ("of somebody else", b"of somebody else")
    assert f"key {key!r} in Redis is a string, which no beat of 'shop' has written" in caplog.text


def test_nothing_of_it_lasts_for_ever(store, client):
    write(store, "1", batch="a")
    assert 0 < client.pttl(STREAM) <= JOURNAL_MEMORY * 1000
    assert 0 < client.pttl(BATCHES) <= 3600 * 1000
    client.zadd(BATCHES, {"of a store that lies": 1e300})
    write(store, "2", batch="b")
    assert client.pttl(BATCHES) > 0


def test_of_those_who_write_each_has_one_batch_remembered(store, client):
    last = None
    for number in range(50):
        store.journal.append(APP, f"w:{number}", ["x"], keep=10, forget=last)
        last = f"w:{number}"
    assert client.zcard(BATCHES) == 1


def test_a_long_journal_is_read_from_its_end_in_no_time(store, client, app):
    with client.pipeline(transaction=False) as pipe:
        for _ in range(100_000):
            pipe.xadd(STREAM, {"r": '{"e":"task_succeeded","task":"t","ago":0}'})
        pipe.execute()
    began = time.process_time()
    assert len(journal.read(app, limit=500)) == 500
    follower = journal.follow(app, wait=lambda _seconds: None)
    assert next(follower) is None
    assert time.process_time() - began < 1
    assert write(store, '{"e":"task_failed","ago":0}', batch="a")
    assert next(follower).event == "task_failed"
    # Redis cuts off ten thousand at once, and so holds up nobody
    assert write(store, *["x"] * 20, batch="b")
    assert client.xlen(STREAM) < 1500

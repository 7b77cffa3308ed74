"""Names of runs and the nonces of messages: what tells one run from another."""

from __future__ import annotations

import contextlib

import pytest
from celery import Celery, _state
from celery.app.task import Context
from celery.signals import after_task_publish
from hypothesis import given
from hypothesis import strategies as st

from celery_lockbeat.stores.redis.names import mark
from celery_lockbeat.tasks import copies as runs
from celery_lockbeat.tasks.copies import NONCE, POSTPONED, name_of, name_of_all_tries, task_of


def request(id_="id", *, retries=0, nesting=0, headers=None, **more):
    request = Context({**(headers or {}), "id": id_, "retries": retries, "replaced_task_nesting": nesting, **more})
    request.called_directly = False
    return request


ids = st.one_of(st.text(min_size=1), st.from_regex(r"[a:~0-1]{1,9}", fullmatch=True))
nonces = st.one_of(st.none(), st.from_regex(r"[a0_-]{1,3}", fullmatch=True))
messages = st.tuples(ids, st.integers(0, 11), st.integers(0, 11), nonces)


def asked(message):
    id_, retries, nesting, nonce = message
    return request(id_, retries=retries, nesting=nesting, headers={NONCE: nonce} if nonce else {})


@given(messages, messages)
def test_two_runs_have_two_names_whatever_their_ids_are_made_of(one, other):
    names = {name_of(asked(one)), name_of(asked(other)), name_of_all_tries(asked(one))}
    # a nonce that is the id itself tells nothing
    same = [(id_, *numbers, nonce if nonce != id_ else None) for id_, *numbers, nonce in (one, other)]
    assert len(names) == 2 + (same[0] != same[1])
    assert {task_of(name) for name in names} == {one[0], other[0]}


def test_what_is_no_name_is_of_no_task():
    assert [task_of(text) for text in ("", "id", "id:x:0", "id:0:", ":", "id:0:0~")] == [None] * 6


def test_a_message_without_a_nonce_and_a_beats_tick_are_named_as_by_release_0_1_0():
    for headers in ({}, {NONCE: "id"}, {NONCE: 7}, {NONCE: ["x"]}, {NONCE: "no nonce: it has blanks"}, {NONCE: ""}):
        of_it = request(headers=headers, retries=2, nesting=1)
        assert (name_of(of_it), name_of_all_tries(of_it)) == ("id:2:1", "id::1")
        assert mark(name_of(of_it)) == (name_of(of_it), "")
    assert mark(name_of(request(headers={NONCE: "n"})))[1]


def test_calls_that_no_message_stands_for_have_no_name():
    assert name_of(None) is None
    assert name_of_all_tries(request(is_eager=True)) is None


@pytest.mark.parametrize("strange", [["x"], "x", 7, True])
def test_headers_that_are_no_mapping_are_none_and_a_nonce_beside_them_counts(strange):
    of_it = request(headers={"headers": strange, NONCE: "n"})
    assert runs.headers_of(of_it) == {}
    assert name_of(of_it) == "id:0:0~n"


# -- sending -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def published():
    """The nonces of what is published, by task id, in order."""
    nonces: dict[str, list[str | None]] = {}

    def note(headers, body, **_):
        sent = headers if "id" in headers else body
        nonces.setdefault(sent["id"], []).append(headers.get(NONCE))

    after_task_publish.connect(note)
    yield nonces
    after_task_publish.disconnect(note)


@pytest.fixture(params=[1, 2])
def app(request):
    app = Celery("nonces", broker="memory://", set_as_current=False)
    app.conf.task_protocol = request.param
    yield app
    app.close()


@contextlib.contextmanager
def within(app, request):
    """As in a worker: within the run of this request."""
    task = app.tasks["celery.accumulate"]
    _state._task_stack.push(task)
    task.request_stack.push(request)
    yield
    task.request_stack.pop()
    _state._task_stack.pop()


def test_each_sending_has_a_nonce_of_its_own_also_of_one_frozen_signature(app, published):
    frozen = app.signature("by name")
    frozen.freeze("frozen")
    for _ in range(2):
        frozen.apply_async()
        app.send_task("by name", task_id="sent")
    for nonces in published.values():
        assert len(set(nonces)) == 2
        assert None not in nonces
    assert "headers" not in frozen.options


def test_a_nonce_that_is_there_is_kept(app, published):
    app.send_task("by name", task_id="id", headers={NONCE: "mine"})
    assert published == {"id": ["mine"]}


def test_a_retry_keeps_the_nonce_of_its_message_and_has_none_if_that_has_none(app, published):
    for nonce, headers in (("n", {NONCE: "n"}), (None, {})):
        with within(app, request(nonce or "id", headers=headers, retries=1)):
            for given_ in ({}, {"x": 1}, headers):
                app.send_task("by name", task_id=nonce or "id", retries=2, headers=given_)
    assert published == {"n": ["n"] * 3, "id": [None] * 3}


def test_a_postponed_copy_keeps_the_nonce_of_its_message(app, published):
    for before in ({}, {POSTPONED: 1}):
        with within(app, request(headers={NONCE: "n", **before})):
            app.send_task("by name", task_id="id", headers={NONCE: "n", POSTPONED: before.get(POSTPONED, 0) + 1})
    assert published == {"id": ["n", "n"]}


def test_a_body_that_passes_its_own_headers_on_gives_its_nonce_to_nobody(app, published):
    headers = {NONCE: "n"}
    with within(app, request(headers=headers)):
        for _ in range(2):
            app.send_task("by name", task_id="another", headers=headers)
            app.send_task("by name", task_id="id", headers=headers)  # itself, anew
    sent = published["another"] + published["id"]
    assert len(set(sent)) == 4
    assert "n" not in sent


def test_what_a_run_sends_has_the_same_nonces_when_it_is_carried_out_again_and_others_when_it_is_another(
    app, published
):
    def carry_out(**of_it):
        with within(app, request(**of_it)):
            for _ in range(2):
                app.send_task("by name", task_id="next")
        two, published["next"] = published["next"], []
        assert len(set(two)) == 2
        return two

    first = carry_out(headers={NONCE: "n"})
    assert carry_out(headers={NONCE: "n"}) == first
    others = [{"headers": {NONCE: "m"}}, {"headers": {NONCE: "n"}, "retries": 1}, {"headers": {NONCE: "n"}, "id_": "x"}]
    for other in others:
        assert not set(carry_out(**other)) & set(first)


def test_a_run_that_sends_very_much_counts_no_more_of_it(app, published, monkeypatch):
    monkeypatch.setattr(runs, "COUNTED_AT_MOST", 3)
    of_it = request(headers={NONCE: "n"})
    with within(app, of_it):
        for number in range(9):
            for _ in range(2):
                app.send_task("by name", task_id=f"id {number}")
    assert len({nonce for nonces in published.values() for nonce in nonces}) == 18
    assert len(runs._sent[of_it]) == 3

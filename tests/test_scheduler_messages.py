"""What a tick's message is: what Celery's own beat would send, under the claim's task id and with its header."""

from __future__ import annotations

import base64
import copy
import json

import pytest
from celery import signals
from celery.beat import BeatLazyFunc
from celery.schedules import BaseSchedule, crontab, schedstate
from servers import Server
from simulation import every

from celery_lockbeat.schedules.when import Timeout


@pytest.fixture
def driver() -> str:
    """The store has no part in this."""
    return "memory"


@pytest.fixture(params=["one by one", "batch"])
def fire(request, simulation, server: Server):
    """Let a beat run, and return the messages of a queue, oldest first: (headers, properties, args, kwargs)."""

    def run(schedule, *, seconds=1.5, queue="celery", tasks=None, **settings):
        app = simulation.app(schedule, **settings)
        if request.param == "batch":
            app.conf.broker_url = app.conf.broker_write_url = server.url
        if tasks is not None:
            tasks(app)
        beat = simulation.beat(app)
        simulation.world.run(beat, seconds=seconds)
        beat.close()
        if request.param == "one by one":
            return [
                (each.headers, each.properties, each.args, each.kwargs)
                for each in simulation.messages
                if each.queue == queue
            ]
        with server.client() as client:
            # by priority, as kombu's Redis transport keeps them
            kept = [client.lrange(key, 0, -1) for key in (queue, *(f"{queue}\x06\x16{step}" for step in (3, 6, 9)))]
        messages = []
        for raw in (each for one in kept for each in reversed(one)):
            message = json.loads(raw)
            body = message["body"]
            if message["properties"].get("body_encoding") == "base64":
                body = base64.b64decode(body)
            args, kwargs, _ = json.loads(body)
            messages.append((message["headers"], message["properties"], args, kwargs))
        return messages

    return run


def test_a_message_has_the_tick_in_its_header_and_the_id_of_its_claim(fire):
    messages = fire({"an entry": every(1, "a.task")}, seconds=2.5)
    told = [headers["lockbeat"] for headers, *_ in messages]
    assert told == [
        {"entry": "an entry", "run": 1, "due": "2026-06-01T00:00:01.000+00:00", "kind": "interval"},
        {"entry": "an entry", "run": 2, "due": "2026-06-01T00:00:02.000+00:00", "kind": "interval"},
    ]
    assert len({headers["id"] for headers, *_ in messages}) == 2
    for headers, properties, *_ in messages:
        assert headers["task"] == "a.task"
        assert properties["correlation_id"] == headers["id"]
        assert headers["celery_beat_task"] is True


class Own(BaseSchedule):
    def is_due(self, last_run_at):
        rest = 60 - (self.now() - last_run_at).total_seconds()
        return schedstate(is_due=rest <= 0, next=max(rest, 0) or 60)


def test_the_header_tells_which_kind_of_schedule_it_was(fire):
    schedules = {"cron": crontab(), "interval": 60, "timeout": Timeout(60), "own": Own()}
    messages = fire({name: every(when, name) for name, when in schedules.items()}, seconds=61)
    kinds = {headers["task"]: headers["lockbeat"].get("kind") for headers, *_ in messages}
    assert kinds == {"cron": "cron", "interval": "interval", "timeout": "timeout", "own": None}


def test_options_go_with_the_message_as_with_celerys_beat_and_stay_as_the_user_wrote_them(fire):
    options = {
        "queue": "urgent",
        "expires": 30,
        "priority": 6,
        "headers": {"trace": "abc", "nested": {"a": 1}},
        "time_limit": 40,
        "shadow": "nickname",
        "countdown": 5,
        "ignore_result": True,
    }
    entry = every(1, "t", args=[1, "zwei"], kwargs={"x": {"y": None}}, options=options)
    written = copy.deepcopy(entry)
    messages = fire({"e": entry}, seconds=2.5, queue="urgent")
    assert entry == written
    assert len(messages) == 2
    for second, (headers, properties, args, kwargs) in enumerate(messages, 1):
        assert (args, kwargs) == ([1, "zwei"], {"x": {"y": None}})
        assert headers["trace"] == "abc"
        assert headers["nested"] == {"a": 1}
        assert headers["timelimit"] == [40, None]
        assert headers["shadow"] == "nickname"
        assert headers["ignore_result"] is True
        assert headers["lockbeat"]["run"] == second
        assert properties["priority"] == 6
        assert headers["expires"] > headers["eta"]


def test_the_options_of_a_registered_task_count_and_those_of_the_entry_win(fire):
    def tasks(app):
        @app.task(shared=False, name="t", time_limit=50, expires=60)
        def t(x):
            raise AssertionError

    entries = {
        "plain": every(1, "t", args=["plain"]),
        "own": every(1, "t", args=["own"], options={"time_limit": 70}),
    }
    messages = fire(entries, tasks=tasks)
    assert {args[0]: headers["timelimit"][0] for headers, _, args, _ in messages} == {"plain": 50, "own": 70}
    assert all(headers["expires"] for headers, *_ in messages)


def test_routes_and_annotations_count(fire):
    def tasks(app):
        @app.task(shared=False, name="t")
        def t():
            raise AssertionError

    settings = {"task_routes": {"t": {"queue": "routed"}}, "task_annotations": {"t": {"time_limit": 7}}}
    ((headers, *_),) = fire({"e": every(1)}, tasks=tasks, queue="routed", **settings)
    assert headers["timelimit"][0] == 7


def test_lazy_arguments_are_made_at_each_publish_and_one_that_raises_stops_no_other(fire, caplog):
    numbers = iter(range(100))
    messages = fire(
        {
            "lazy": every(1, "lazy", args=(BeatLazyFunc(lambda: next(numbers)), 5), kwargs={"k": BeatLazyFunc(str, 7)}),
            "broken": every(1, "broken", args=(BeatLazyFunc(lambda: 1 / 0),)),
            "broken too": every(1, "broken", kwargs={"k": BeatLazyFunc(lambda: 1 / 0)}),
            "plain": every(1, "plain"),
        },
        seconds=3.5,
    )
    assert [(args, kwargs) for headers, _, args, kwargs in messages if headers["task"] == "lazy"] == [
        ([number, 5], {"k": "7"}) for number in range(3)
    ]
    assert [headers["task"] for headers, *_ in messages].count("plain") == 3
    assert "broken" not in [headers["task"] for headers, *_ in messages]
    assert "of entry 'broken' is lost" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_an_entry_whose_message_cannot_be_made_stops_no_other_and_is_told_at_each_tick(fire, caplog):
    def tasks(app):
        @app.task(shared=False, name="needs two")
        def needs_two(a, b):
            raise AssertionError

    messages = fire(
        {
            "unserialisable": every(1, "a", args=[object()]),
            "too few": every(1, "needs two", args=[1]),
            "no such queue": every(1, "c", options={"queue": "missing"}),
            "no such serializer": every(1, "d", options={"serializer": "morse"}),
            "wrong expires": every(1, "e", options={"expires": "soon"}),
            "not a mapping": every(1, "f", options={"headers": 5}),
            "fine": every(1, "fine"),
        },
        seconds=3.5,
        tasks=tasks,
        task_create_missing_queues=False,
        task_default_queue="celery",
        task_queues={"celery": {}},
    )
    assert [headers["task"] for headers, *_ in messages] == ["fine"] * 3
    assert [headers["lockbeat"]["run"] for headers, *_ in messages] == [1, 2, 3]
    for entry in ("unserialisable", "too few", "no such queue", "no such serializer", "wrong expires", "not a mapping"):
        assert caplog.text.count(f"of entry {entry!r} is lost") == 3, entry
    assert "cannot publish" not in caplog.text


def test_celerys_publish_signals_are_sent_and_a_receiver_can_change_the_headers(fire):
    seen = []

    def before(sender, headers, **_):
        seen.append(("before", sender, headers["lockbeat"]["run"]))
        headers["added"] = "by a receiver"

    def after(sender, headers, **_):
        seen.append(("after", sender, headers["lockbeat"]["run"]))

    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)
    try:
        messages = fire({"e": every(1)}, seconds=2.5)
    finally:
        signals.before_task_publish.disconnect(before)
        signals.after_task_publish.disconnect(after)
    assert seen == [("before", "t", 1), ("after", "t", 1), ("before", "t", 2), ("after", "t", 2)]
    assert [headers["added"] for headers, *_ in messages] == ["by a receiver"] * 2


def test_a_receiver_that_raises_stops_nothing(fire):
    def raises(**_):
        raise ZeroDivisionError

    signals.before_task_publish.connect(raises)
    try:
        assert len(fire({"e": every(1), "f": every(1)}, seconds=2.5)) == 4
    finally:
        signals.before_task_publish.disconnect(raises)


def test_a_task_in_an_eager_app_runs_in_the_beat_as_with_celerys(fire):
    ran = []

    def tasks(app):
        @app.task(shared=False, name="t", bind=True)
        def t(self):
            ran.append(self.request.id)

    assert fire({"e": every(1)}, seconds=2.5, tasks=tasks, task_always_eager=True) == []
    assert len(set(ran)) == 2

from __future__ import annotations

import contextlib
import math
from datetime import timedelta
from types import SimpleNamespace

import pytest
from beat_parts import START, Parts

from celery_lockbeat.beat.agenda import Item
from celery_lockbeat.beat.ledger import Ledger, Tick
from celery_lockbeat.beat.publisher import REFUSALS_IN_A_ROW, Publisher, limited

FRESH_FOR = 5.0


class Broker:
    """What a scheduler has of a broker. ``refused``: the task ids that it does not take; ``down``: it lets nobody in."""

    connection = SimpleNamespace(connection_errors=(), channel_errors=())

    def __init__(self, *, batches: bool) -> None:
        self.supports_batch_publish = batches
        self.refused: set[str] = set()
        self.down = False
        self.messages: list[str] = []
        self.waiting: list[str] | None = None

    @property
    def channel(self) -> None:
        if self.down:
            raise ConnectionRefusedError

    @contextlib.contextmanager
    def batch(self):
        self.waiting = []
        try:
            yield
            self.messages += self.waiting
        finally:
            self.waiting = None

    def take(self, message: str) -> None:
        if self.down or message in self.refused:
            raise ConnectionResetError
        (self.messages if self.waiting is None else self.waiting).append(message)


class One(Parts):
    def __init__(self, *, batches: bool) -> None:
        super().__init__()
        self.broker = Broker(batches=batches)
        self.scheduler.producer, self.scheduler.connection = self.broker, self.broker.connection
        self.scheduler.apply_entry = lambda _entry, producer: producer.take(self.publisher.sending.tick.task_id)
        self.ledger = Ledger()
        self.disconnected = 0
        self.publisher = Publisher(
            self.scheduler,
            self.disconnect,
            self.planner,
            self.ledger,
            self.recorder,
            self.complaints,
            self.backoff,
            self.clock,
            self.clocks.store_time,
        )

    def disconnect(self) -> None:
        self.disconnected += 1

    def publish(self, *task_ids: str, sure_for: float = FRESH_FOR) -> None:
        now = self.clock()
        items = {task_id: Item(task_id, self.scheduler.entry(task_id)) for task_id in task_ids}
        ticks = [Tick(item, 1, id_, {}, now + FRESH_FOR, now + sure_for) for id_, item in items.items()]
        self.publisher.publish([self.ledger.take(tick) for tick in ticks])

    def settled(self) -> tuple[list[str], list[str]]:
        """What is sent, and what is handed over."""
        self.ledger.settle(self.store, "app", "replica", self.scheduler.record_runs)
        _, sent, handed_over = self.store.calls[-1] if self.store.calls else ("", [], [])
        return [task_id for task_id, _ in sent], handed_over


@pytest.fixture(params=[False, True], ids=["one by one", "batch"])
def one(request) -> One:
    return One(batches=request.param)


def test_what_is_published_is_settled(one):
    one.publish("a", "b")
    assert one.broker.messages == ["a", "b"]
    assert one.settled() == (["a", "b"], [])
    assert one.publisher.pause() is None


def test_one_message_that_the_broker_refuses_holds_up_no_other_and_is_kept_until_its_claim_has_run_out(one):
    one.broker.refused = {"b"}
    one.publish("a", "b", "c")
    assert one.broker.messages == ["a", "c"]
    assert one.settled() == (["a", "c"], [])
    assert not one.ledger.unsent


def test_a_broker_that_refuses_all_is_in_trouble_and_the_rest_is_handed_over(one):
    ids = [f"id{number}" for number in range(REFUSALS_IN_A_ROW + 2)]
    one.broker.refused = set(ids)
    one.publish(*ids)
    assert one.settled() == ([], ids[REFUSALS_IN_A_ROW - 1 :])
    assert one.publisher.troubled


def test_a_broker_that_is_down_is_tried_again_after_pauses_and_told_of_once_each_way(one, caplog):
    caplog.set_level("INFO")
    one.broker.down = True
    one.publish("a")
    assert one.settled() == ([], ["a"])
    pauses = []
    while len(pauses) < 5:
        pauses.append(one.publisher.pause())
        one.clock.elapsed += pauses[-1] + 0.001
    assert pauses == sorted(pauses)
    one.broker.down = False
    assert one.publisher.pause() is None
    one.publish("a")
    assert not one.publisher.troubled
    assert caplog.text.count("beat cannot publish, and keeps what is due") == 1
    assert caplog.text.count("beat reaches the broker again") == 1
    assert one.disconnected >= 5


def test_a_tick_that_grew_too_old_while_its_batch_was_made_is_not_sent():
    one = One(batches=True)
    take = one.broker.take

    def freeze(message):
        one.clock.elapsed += FRESH_FOR
        take(message)

    one.broker.take = freeze
    one.publish("a")
    assert one.broker.messages == []
    assert one.settled() == ([], [])


def test_a_tick_whose_entry_is_not_sure_any_more_is_sent_if_it_is_still_there(one):
    entry = one.scheduler.entry("kept")
    one.scheduler.found = {"kept": ("kept", entry)}
    one.publish("kept", "deleted", sure_for=0.0)
    assert one.broker.messages == ["kept"]
    # or others would take it over
    assert sorted(one.settled()[0]) == ["deleted", "kept"]


def test_a_tick_that_no_worker_may_begin_any_more_is_missed_and_settled(one):
    item = Item("late", one.scheduler.entry("late"))
    times = {"due": START.isoformat(), "begin_by": (START + timedelta(seconds=2)).isoformat()}
    for task_id in ("early", "late"):
        one.publisher.publish([one.ledger.take(Tick(item, 1, task_id, times, math.inf, math.inf))])
        one.clock.elapsed += 3
    assert one.broker.messages == ["early"]
    assert sorted(one.settled()[0]) == ["early", "late"]
    (missed,) = (fields for event, fields in one.journal.written if event == "tick_missed")
    assert "start_within" in missed["reason"]


def test_what_users_set_of_the_broker_counts_more_than_what_a_beat_needs():
    connection = SimpleNamespace(transport=SimpleNamespace(driver_type="redis"), transport_options={"a": 1})
    assert limited(connection, 0.5).transport_options == {"socket_timeout": 1.0, "a": 1}
    connection.transport_options = {"socket_timeout": 30}
    assert limited(connection, 0.5).transport_options == {"socket_timeout": 30}

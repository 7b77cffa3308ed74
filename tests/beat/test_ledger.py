from __future__ import annotations

import math

import pytest
from beat_parts import Parts

from celery_lockbeat import StoreUnavailable
from celery_lockbeat.beat.agenda import Item
from celery_lockbeat.beat.ledger import Ledger, Tick


class Hands(Parts):
    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()

    def take(self, task_id: str) -> Tick:
        item = Item("key", self.scheduler.entry("e"))
        return self.ledger.take(Tick(item, 1, task_id, {}, math.inf, math.inf))

    def settle(self) -> None:
        self.ledger.settle(self.store, "app", "replica", self.scheduler.record_runs)


@pytest.fixture
def hands() -> Hands:
    return Hands()


def test_what_the_store_does_not_hear_it_is_told_again(hands):
    hands.ledger.sent(hands.take("one"))
    hands.take("two")
    hands.ledger.hand_over_unsent()
    hands.store.down = {"settle"}
    with pytest.raises(StoreUnavailable):
        hands.settle()
    hands.store.down = set()
    hands.settle()
    hands.settle()
    assert hands.store.calls == [("settle", [("one", "key")], ["two"])] * 2
    assert hands.scheduler.calls == [("record_runs", ["key"])] * 2


def test_a_tick_that_is_sent_twice_is_settled_once_and_one_that_is_dropped_not_at_all(hands):
    sent, dropped = hands.take("sent"), hands.take("dropped")
    hands.ledger.sent(sent)
    hands.ledger.sent(sent)
    hands.ledger.drop(dropped)
    hands.ledger.hand_over_all()
    hands.settle()
    assert hands.store.calls == [("settle", [("sent", "key")], [])]


def test_a_beat_that_ends_hands_over_what_may_be_its_own_for_all_it_knows(hands):
    hands.ledger.ask(["answered", "unanswered"])
    hands.ledger.answered(["answered"])
    hands.take("unsent")
    hands.ledger.hand_over_all()
    hands.settle()
    assert hands.store.calls == [("settle", [], ["unsent", "unanswered"])]


def test_a_tick_that_another_beat_has_taken_over_meanwhile_is_told_of(hands, caplog):
    hands.ledger.sent(hands.take("one"))
    hands.store.not_ours = {"one"}
    hands.settle()
    assert "task one of entry 'key' may have been sent twice: another beat took it over" in caplog.text

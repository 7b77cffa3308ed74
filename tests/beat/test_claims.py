from __future__ import annotations

import pytest
from beat_parts import START, Parts

from celery_lockbeat import StoreUnavailable
from celery_lockbeat.beat.agenda import Item
from celery_lockbeat.beat.claims import Claimer
from celery_lockbeat.beat.ledger import Ledger
from celery_lockbeat.beat.replicas import Replica
from celery_lockbeat.stores.base import OVERDUE_AT_ONCE, EntryState, Overdue

TTL = 5.0


class One(Parts):
    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.left: set[str] = set()
        self.replica = Replica("app", self.scheduler, dict, self.agenda, self.planner, self.clocks)
        self.claimer = Claimer(
            self.scheduler,
            lambda _key: None,
            self.left.__contains__,
            self.agenda,
            self.planner,
            self.clocks,
            self.replica,
            self.ledger,
            self.recorder,
            TTL,
        )

    def add(self, key: str) -> Item:
        item = Item(key, self.scheduler.entry(key, last_run_at=START))
        self.agenda.add(item)
        self.planner.plan(item)
        return item

    def claim(self) -> list[tuple[str, int]]:
        return [(tick.item.key, tick.run) for tick in self.claimer.claim(self.store)]

    def asked(self, name: str = "claim") -> list:
        return [call[1] for call in self.store.calls if call[0] == name]


@pytest.fixture
def one() -> One:
    one = One()
    one.add("e")
    one.clock.elapsed = 10.0
    return one


def test_a_tick_keeps_its_task_id_where_the_answer_is_lost_and_the_next_one_has_another(one):
    one.store.down = {"claim"}
    with pytest.raises(StoreUnavailable):
        one.claim()
    one.store.down = set()
    assert one.claim() == [("e", 1)]
    one.clock.elapsed += 10.0
    assert one.claim() == [("e", 2)]
    ids = [task_id for claims in one.asked() for _, task_id in claims]
    assert ids[0] == ids[1] != ids[2]
    assert [*one.ledger.unsent] == ids[1:]


def test_a_claim_is_trusted_for_less_than_its_ttl_from_before_it_was_asked_for(one):
    ask = one.store.claim

    def slowly(*args, **options):
        one.clock.elapsed += 3.0
        return ask(*args, **options)

    one.store.claim = slowly
    asked = one.clock()
    (tick,) = one.claimer.claim(one.store)
    assert asked + TTL * 0.9 < tick.fresh_until < asked + TTL


def test_what_another_replica_has_claimed_is_planned_by_its_state(one):
    item = one.agenda.get("e")
    one.store.refusals = {"e": EntryState(7, one.clock.now().isoformat())}
    assert one.claim() == []
    assert (item.entry.total_run_count, item.entry.last_run_at) == (7, one.clock.now())
    assert one.agenda.until_next() == pytest.approx(10.0)


def test_an_entry_that_is_left_to_others_is_neither_claimed_nor_taken_over(one):
    one.left.add("e")
    one.store.overdue = [Overdue("theirs", "e", 1, {})]
    assert one.claim() == []
    assert one.asked() == [[]]
    assert one.asked("take_over") == []


def test_what_only_another_release_knows_does_not_hide_what_comes_after_it(one):
    one.store.overdue = [Overdue(f"id{number}", "unknown", 1, {}) for number in range(OVERDUE_AT_ONCE)]
    one.claim()
    one.store.overdue = [Overdue("left", "e", 1, {})]
    one.clock.elapsed += TTL
    assert one.claim() == [("e", 1)]
    assert [call[2] for call in one.store.calls if call[0] == "claim"] == [0, OVERDUE_AT_ONCE]
    assert one.asked("take_over") == [["left"]]


def test_what_cannot_be_taken_over_holds_up_no_claims_of_our_own_and_is_handed_over(one):
    one.store.overdue = [Overdue("left", "e", 1, {})]
    one.store.down = {"take_over"}
    assert one.claim() == [("e", 1)]
    assert one.ledger.handed_over == ["left"]
    with pytest.raises(StoreUnavailable):
        one.claimer.check()
    one.claimer.check()

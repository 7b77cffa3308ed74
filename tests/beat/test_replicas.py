from __future__ import annotations

import pytest
from beat_parts import Parts

from celery_lockbeat.beat.replicas import LIST_AT_ONCE, LOOK_EVERY, Replica
from celery_lockbeat.schedules.when import Timeout


class One(Parts):
    def __init__(self) -> None:
        super().__init__()
        entries = lambda: dict(self.scheduler.entries)  # noqa: E731
        self.replica = Replica("app", self.scheduler, entries, self.agenda, self.planner, self.clocks)

    def look(self) -> None:
        self.clock.elapsed += LOOK_EVERY + 0.1
        self.replica.look_for_changes()

    def listed(self) -> list:
        return [call[1:] for call in self.store.calls if call[0] == "list"]


@pytest.fixture
def one() -> One:
    one = One()
    one.replica.join(one.store)
    return one


def test_many_entries_are_listed_a_part_at_a_time_and_the_list_is_complete_with_the_last_of_them(one):
    for number in range(LIST_AT_ONCE + 1):
        one.scheduler.entry(f"e{number}")
    one.look()
    one.replica.list_entries(one.store)
    assert not one.replica.has_listed
    one.replica.list_entries(one.store)
    assert one.replica.has_listed
    one.replica.list_entries(one.store)
    assert [(len(keys), complete) for keys, _, complete in one.listed()] == [(LIST_AT_ONCE, False), (1, True)]
    assert len(one.agenda) == LIST_AT_ONCE + 1


def test_an_entry_that_is_removed_is_taken_off_the_list_and_is_due_no_more(one):
    one.scheduler.entry("e", seconds=5.0)
    one.look()
    one.replica.list_entries(one.store)
    del one.scheduler.entries["e"]
    one.look()
    one.replica.list_entries(one.store)
    assert one.listed()[-1] == ([], ["e"], True)
    one.clock.elapsed += 60
    assert one.agenda.due() is None


def test_a_store_that_has_forgotten_this_beat_hears_of_all_again_under_the_same_name_and_cold_start(one):
    one.scheduler.entry("e")
    one.look()
    one.replica.list_entries(one.store)
    name, cold_start = one.replica.name, one.store.time() - one.clock.elapsed
    one.replica.join(one.store)
    one.replica.list_entries(one.store)
    assert one.replica.name == name
    assert [call for call in one.store.calls if call[0] == "join"] == [("join", None), ("join", cold_start)]
    assert one.listed() == [(["e"], [], True)] * 2


def test_a_timeout_is_another_entry_at_each_cold_start(one):
    entry = one.scheduler.entry("e")
    assert one.replica.key_of("e", entry) == "e"
    entry.schedule = Timeout(5)
    assert one.replica.key_of("e", entry) == f"e@{one.store.time() * 1000:.0f}"

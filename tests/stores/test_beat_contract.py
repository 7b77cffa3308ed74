"""One test per promise of ``stores/base/beats.py`` to beats, the same on every store."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from kinds import ONE_OF_EACH, first_on
from test_contract import HOSTILE

from celery_lockbeat.stores import base
from celery_lockbeat.stores.base import Claim, EntryState

APP = "shop"
LONG = 600


@pytest.fixture
def beat(store):
    return Beat(store, "a")


class Beat:
    """One replica, as terse as the tests want it."""

    def __init__(self, store, replica, app=APP):
        self.store, self.replica, self.app = store, replica, app

    def join(self, **options):
        return self.store.beats.join(self.app, self.replica, **options)

    def lists(self, *names, at="t0", count=0, **options):
        options.setdefault("complete", True)
        return self.store.beats.list_entries(
            self.app, self.replica, [(name, EntryState(count, at)) for name in names], **options
        )

    def asks(self, *claims, ttl=LONG, **options):
        return self.store.beats.claim(self.app, self.replica, claims, ttl=ttl, **options)

    def claims(self, entry, run=1, task_id=None, ttl=LONG, at="t1"):
        """Claim one tick; None, or the state that refused it."""
        (refusal,) = self.asks(tick(entry, run, task_id, at), ttl=ttl).refusals
        return refusal

    def claims_flagged(self, entry, run=1, task_id=None, ttl=LONG, at="t1", flag=None, **details):
        """The same, of an entry that has a flag, by default one of its own name."""
        claim = replace(tick(entry, run, task_id, at, **details), flag=entry if flag is None else flag)
        (refusal,) = self.asks(claim, ttl=ttl).refusals
        return refusal

    def claims_after(self, entry, run=1, after="t0", at="t1", **options):
        """Claim one tick, if the entry ran last at ``after``."""
        claim = Claim(options.pop("task_id", f"{entry}-{run}"), entry, EntryState(run, at), {}, after, **options)
        return self.asks(claim).refusals[0]

    def moves_on(self, entry, run=0, after="t0", at="t1"):
        """Publish nothing."""
        return self.claims_after(entry, run, after, at, task_id="")

    def overdue(self, **options):
        return [each.task_id for each in self.asks(**options).overdue]

    def settles(self, *pairs, **options):
        return self.store.beats.settle(self.app, self.replica, pairs, **options)

    def takes_over(self, *ids, ttl=LONG, flags=()):
        return self.store.beats.take_over(self.app, self.replica, ids, ttl=ttl, flags=flags)

    def leave(self):
        self.store.beats.leave(self.app, self.replica)


def tick(entry, run=1, task_id=None, at="t1", **details):
    return Claim(task_id or f"{entry}-{run}", entry, EntryState(run, at), details)


def set_in_all_stores(monkeypatch, name, value):
    for module in (
        "celery_lockbeat.stores.sqlite.beats",
        "celery_lockbeat.stores.redis.beats",
        "celery_lockbeat.contrib.django.postgresql.beats",
        "celery_lockbeat.stores.sqlite.controls",
        "celery_lockbeat.stores.redis.controls",
        "celery_lockbeat.contrib.django.postgresql.controls",
    ):
        if module in sys.modules and hasattr(sys.modules[module], name):
            monkeypatch.setattr(f"{module}.{name}", value)


@pytest.fixture
def short_lived(monkeypatch):
    """Replicas are gone after a short silence, and their entries' states soon after."""
    set_in_all_stores(monkeypatch, "ALIVE", 0.3)
    return 0.3


# -- claims ------------------------------------------------------------------------------------------------------------


def test_of_all_replicas_that_claim_a_tick_one_gets_it_and_the_others_get_the_state(store):
    a, b = Beat(store, "a"), Beat(store, "b")
    assert a.claims("e", at="when a claimed") is None
    assert b.claims("e", task_id="other") == EntryState(1, "when a claimed")
    assert b.claims("e", 2) is None
    assert a.claims("e", 2, "other") == EntryState(2, "t1")


def test_a_batch_is_answered_claim_by_claim(store):
    a, b = Beat(store, "a"), Beat(store, "b")
    a.claims("y")
    answer = b.asks(tick("x"), tick("y", task_id="late"), tick("z"))
    assert answer.refusals == [None, EntryState(1, "t1"), None]


def test_two_apps_do_not_see_each_others_entries(store):
    assert Beat(store, "a", "shop").claims("e") is None
    assert Beat(store, "a", "blog").claims("e", task_id="another") is None
    assert Beat(store, "a", "").claims("e", task_id="a third") is None


def test_two_prefixes_do_not_see_each_others_entries(kind):
    assert Beat(kind.open("one:"), "a").claims("e") is None
    assert Beat(kind.open("two:"), "a").claims("e", task_id="another") is None


def test_a_claim_whose_answer_was_lost_is_granted_again_to_the_same_replica_only(store):
    a, b = Beat(store, "a"), Beat(store, "b")
    assert a.claims("e", task_id="once") is None
    assert a.claims("e", task_id="once") is None
    assert b.claims("e", task_id="once") == EntryState(1, "t1")


def test_a_claim_that_is_granted_again_lives_for_a_fresh_ttl(kind):
    beat = Beat(kind.open(), "a")
    beat.claims("e", task_id="once", ttl=0.2)
    kind.later(0.25)
    assert beat.overdue() == ["once"]
    beat.claims("e", task_id="once")
    assert beat.overdue() == []


def test_a_state_that_was_lost_is_given_back_by_whoever_claims_next(kind):
    a, b = Beat(kind.open(), "a"), Beat(kind.open(), "b")
    for run in (1, 2, 3):
        a.claims("e", run)
    kind.forget_all()
    assert a.claims("e", 4) is None
    assert b.claims("e", 4, "another") == EntryState(4, "t1")


def test_a_replica_that_knows_more_than_the_store_is_granted(store):
    # a failover lost the newest claims
    a, b = Beat(store, "a"), Beat(store, "b")
    a.claims("e", 1)
    assert b.claims("e", 5) is None
    assert a.claims("e", 2, "another") == EntryState(5, "t1")


def test_an_entry_with_too_many_pending_claims_gets_no_more_until_one_is_settled(beat):
    for run in range(1, base.BACKLOG + 1):
        assert beat.claims("e", run) is None
    assert beat.claims("e", base.BACKLOG + 1).total_run_count == base.BACKLOG
    assert beat.claims("other") is None
    assert beat.settles(("e-1", "e")) == [True]
    assert beat.claims("e", base.BACKLOG + 1) is None


def test_a_claim_that_is_to_come_after_a_time_is_refused_once_the_entry_has_another(store):
    a, b = Beat(store, "a"), Beat(store, "b")
    a.lists("e", at="t0")
    assert a.claims_after("e", after="t-1") == EntryState(0, "t0")
    assert a.moves_on("e", at="t1") is None
    assert b.claims_after("e", after="t0", at="t2", task_id="late") == EntryState(0, "t1")
    assert b.claims_after("e", after="t1", at="t2") is None
    assert a.claims_after("e", 2, after="t1", at="t3", task_id="stale") == EntryState(1, "t2")


def test_to_move_an_entry_on_publishes_nothing_and_is_no_run(store):
    a, b = Beat(store, "a"), Beat(store, "b")
    a.lists("e", at="t0")
    assert a.claims("e", at="t1") is None
    assert a.moves_on("e", 1, after="t1", at="t2") is None
    a.settles(handed_over=["e-1"])
    assert b.overdue() == ["e-1"]
    (stored,) = store.beats.status(APP).entries
    assert (stored.state, stored.pending) == (EntryState(1, "t2"), 1)


def test_of_replicas_that_move_an_entry_on_to_the_same_time_each_is_granted_and_to_another_only_the_first(store):
    a, b = Beat(store, "a"), Beat(store, "b")
    a.lists("e", at="t0")
    assert a.moves_on("e", at="t1") is None
    assert a.moves_on("e", at="t1") is None
    assert b.moves_on("e", at="t2") == EntryState(0, "t1")
    assert b.claims("e") is None
    assert a.moves_on("e", at="t3", after="t1") == EntryState(1, "t1")


def test_an_entry_whose_state_was_lost_is_moved_on_and_claimed_after_any_time(kind):
    store = kind.open()
    a = Beat(store, "a")
    assert a.moves_on("e", 4, after="t8", at="t9") is None
    assert a.claims_after("e", 5, after="t9", at="t10") is None
    assert a.claims_after("e", 9, after="whenever", at="t11") is None
    assert a.claims_after("new", 3, after="whenever", at="t1") is None
    # a beat that knows of more runs than the store, which has lost them
    assert a.moves_on("e", 12, after="whenever", at="t12") is None
    assert a.claims_after("e", 13, after="t12", at="t13") is None


def test_a_claim_that_is_to_be_alone_waits_until_no_other_of_its_entry_is_pending(store):
    a, b = Beat(store, "a"), Beat(store, "b")
    a.lists("e", "f", at="t0")
    assert a.claims_after("e", alone=True) is None
    assert b.claims_after("e", 2, after="t1", at="t2", alone=True) == EntryState(1, "t1")
    assert b.claims_after("f", alone=True) is None
    assert a.settles(("e-1", "e")) == [True]
    assert b.claims_after("e", 2, after="t1", at="t2", alone=True) is None
    assert a.claims_after("e", 3, after="t2", at="t3") is None


def test_a_claim_after_a_time_whose_answer_was_lost_is_granted_again(store):
    a, b = Beat(store, "a"), Beat(store, "b")
    a.lists("e", at="t0")
    for _ in range(2):
        assert a.claims_after("e", task_id="once", alone=True) is None
    assert b.claims_after("e", task_id="once") == EntryState(1, "t1")


def test_the_store_tells_its_time(kind):
    beat = Beat(kind.open(), "a")
    before = beat.asks().server_time
    kind.later(0.05)
    assert before < beat.asks().server_time or kind.name in ("memory", "sqlite")


def test_any_name_of_an_entry_and_of_an_app_is_one_of_its_own(store):
    for name in HOSTILE:
        beat = Beat(store, "a", name)
        beat.join()
        assert beat.lists(name, at=name) == [EntryState(0, name)]
        assert beat.asks(tick(name, at=name, task_id="id", what=["é", 1, None])).refusals == [None], name
        assert beat.settles(handed_over=["id"]) == [], name
        (overdue,) = beat.asks().overdue
        assert (overdue.entry, overdue.run, overdue.details) == (name, 1, {"what": ["é", 1, None]})
        assert beat.takes_over("id") == [True], name
        assert beat.settles(("id", name)) == [True], name
        assert beat.lists(name) == [EntryState(1, name)]
        assert Beat(store, "a", name + "'").lists(name) == [EntryState(0, "t0")], name


# -- settle, take over -------------------------------------------------------------------------------------------------


def test_a_settled_claim_is_never_overdue(kind):
    beat = Beat(kind.open(), "a")
    beat.claims("e", ttl=0.1)
    assert beat.settles(("e-1", "e")) == [True]
    kind.later(0.2)
    assert beat.overdue() == []
    assert beat.asks().next_overdue is None


def test_settling_again_says_that_there_is_nothing_left(beat):
    beat.claims("e")
    assert beat.settles(("e-1", "e"), ("never", "e")) == [True, False]
    assert beat.settles(("e-1", "e")) == [False]


def test_a_claim_is_overdue_when_its_ttl_has_run_out_and_not_before(kind):
    a, b = Beat(kind.open(), "a"), Beat(kind.open(), "b")
    a.asks(tick("e", due="noon"), ttl=0.4)
    answer = b.asks()
    assert answer.overdue == []
    assert 0 < answer.next_overdue <= 0.4
    assert b.takes_over("e-1") == [False]
    kind.later(answer.next_overdue)
    (overdue,) = b.asks().overdue
    assert (overdue.task_id, overdue.entry, overdue.run, overdue.details) == ("e-1", "e", 1, {"due": "noon"})


def test_an_overdue_claim_is_taken_over_once(kind):
    a, b, c = (Beat(kind.open(), name) for name in "abc")
    a.claims("e", ttl=0.05)
    kind.later(0.1)
    assert b.takes_over("e-1", "unknown") == [True, False]
    assert c.takes_over("e-1") == [False]
    assert c.overdue() == []


def test_who_lost_a_claim_cannot_settle_or_hand_it_over(kind):
    a, b = Beat(kind.open(), "a"), Beat(kind.open(), "b")
    a.claims("e", ttl=0.05)
    kind.later(0.1)
    b.takes_over("e-1")
    assert a.settles(("e-1", "e"), handed_over=["e-1"]) == [False]
    assert a.overdue() == []
    assert b.settles(("e-1", "e")) == [True]


def test_what_is_handed_over_can_be_taken_over_at_once(store):
    a, b = Beat(store, "a"), Beat(store, "b")
    a.claims("e")
    a.settles(handed_over=["e-1", "never"])
    assert b.overdue() == ["e-1"]
    assert b.takes_over("e-1") == [True]


def test_overdue_claims_are_told_oldest_first_in_pages(kind, monkeypatch):
    set_in_all_stores(monkeypatch, "OVERDUE_AT_ONCE", 2)
    beat = Beat(kind.open(), "a")
    for run in (1, 2, 3):
        beat.claims("e", run)
        beat.settles(handed_over=[f"e-{run}"])
        kind.later(0.005)
    assert beat.overdue() == ["e-1", "e-2"]
    assert beat.overdue(skip=2) == ["e-3"]


@first_on(*ONE_OF_EACH)
def test_replicas_that_fight_over_ticks_get_each_of_them_once(kind, tmp_path):
    script = Path(__file__).with_name("claimer.py")
    command = [sys.executable, str(script), kind.name, kind.target, "4"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=script.parent, timeout=60)
    assert done.returncode == 0, done.stderr
    published = [json.loads(line) for line in done.stdout.splitlines()]
    got = Counter(tuple(each) for of_one in published for each in of_one)
    # claims made, settled, handed over and taken over at random: what was published was published once
    assert len(got) == 5 * 60
    assert set(got.values()) == {1}


def test_threads_share_a_store(store):
    granted = []

    def claim(n):
        beat = Beat(store, f"r{n}")
        for run in range(1, 40):
            if beat.claims("e", run, f"{n}-{run}") is None:
                granted.append(run)
                beat.settles((f"{n}-{run}", "e"))

    threads = [threading.Thread(target=claim, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # the others' runs are greater than expected at times, which is granted too: but no run twice
    assert len(set(granted)) == len(granted)


# -- lists -------------------------------------------------------------------------------------------------------------


def test_the_first_who_lists_an_entry_gives_its_state_to_all(store):
    a, b = Beat(store, "a"), Beat(store, "b")
    a.join(), b.join()
    assert a.lists("e", at="first", count=3) == [EntryState(3, "first")]
    assert b.lists("e", "f", at="second") == [EntryState(3, "first"), EntryState(0, "second")]


def test_a_claim_moves_the_state_that_the_next_one_finds(store):
    a, b = Beat(store, "a"), Beat(store, "b")
    a.join()
    a.lists("e")
    a.claims("e", at="later")
    b.join()
    assert b.lists("e") == [EntryState(1, "later")]


def test_the_past_of_an_entry_lasts_while_no_replica_is_there(store):
    a, b = Beat(store, "a"), Beat(store, "b")
    a.join()
    a.lists("e", at="long ago")
    a.leave()
    b.join()
    assert b.lists("e", at="now") == [EntryState(0, "long ago")]


def test_an_entry_that_was_removed_and_comes_again_has_no_past(store):
    a, b, c = (Beat(store, name) for name in "abc")
    a.join()
    a.lists("e", "f", at="long ago", count=7)
    a.leave()
    b.join()
    b.lists("f")
    b.asks()
    c.join()
    assert c.lists("e", "f", at="now") == [EntryState(7, "now"), EntryState(7, "long ago")]


def test_an_entry_that_one_replica_removes_is_forgotten_when_all_have(store):
    a, b = Beat(store, "a"), Beat(store, "b")
    a.join(), b.join()
    a.lists("e", at="long ago")
    b.lists("e")
    b.lists(removed=["e"])
    a.leave()
    b.asks()
    assert b.lists("e", at="now") == [EntryState(0, "now")]


def test_an_entry_that_is_removed_at_run_time_and_comes_again_has_no_past(store):
    a, b = Beat(store, "a"), Beat(store, "b")
    for each in (a, b):
        each.join()
        each.lists("e", "f", at="long ago", count=2)
    a.lists(removed=["e", "f"])
    assert a.lists("f", at="now") == [EntryState(2, "long ago")]
    b.lists(removed=["e"])
    assert a.lists("e", "f", at="now") == [EntryState(2, "now"), EntryState(2, "long ago")]


def test_an_entry_of_a_release_that_still_runs_is_not_forgotten(store):
    old, older, new = Beat(store, "old"), Beat(store, "older"), Beat(store, "new")
    for each in (old, older):
        each.join()
        each.lists("e", at="long ago")
    new.join()
    new.lists("f")
    older.leave()
    new.asks()
    assert old.lists("e", at="now") == [EntryState(0, "long ago")]


def test_nothing_is_forgotten_while_somebody_has_not_listed_all(store):
    a, b, c = (Beat(store, name) for name in "abc")
    a.join()
    a.lists("e", at="long ago")
    a.leave()
    c.join()
    b.join()
    b.lists("f")
    b.asks()
    assert c.lists("e", at="now") == [EntryState(0, "long ago")]


def test_a_replica_that_is_not_heard_of_is_gone(kind, short_lived):
    a, b, c = (Beat(kind.open(), name) for name in "abc")
    a.join()
    a.lists("e", at="long ago")
    kind.later(short_lived)
    b.join()
    b.lists("f")
    b.asks()
    assert not a.asks().listed
    c.join()
    assert c.lists("e", at="now") == [EntryState(0, "now")]


def test_a_claim_says_whether_its_replica_is_known(kind):
    beat = Beat(kind.open(), "a")
    assert not beat.asks().listed
    beat.join()
    assert beat.asks().listed
    kind.forget_all()
    assert not beat.asks().listed


def test_the_state_of_what_nobody_lists_is_dropped_after_a_while(kind, monkeypatch):
    set_in_all_stores(monkeypatch, "STATE_MEMORY", 0.5)
    a, b = Beat(kind.open(), "a"), Beat(kind.open(), "b")
    a.join()
    a.lists("e", at="long ago", count=7)
    a.claims("e", 8)
    a.settles(handed_over=["e-8"])
    a.leave()
    b.join()
    b.lists("f")
    b.asks()
    assert b.overdue() == ["e-8"]
    for _ in range(3):
        kind.later(0.3)
        b.lists()
        b.asks()
    assert b.asks().overdue == []
    assert b.lists("e", at="now") == [EntryState(0, "now")]


# -- cold starts -------------------------------------------------------------------------------------------------------


def test_who_comes_first_starts_cold_and_the_others_join_it(kind):
    a, b = Beat(kind.open(), "a"), Beat(kind.open(), "b")
    first = a.join()
    assert first.cold_start == first.server_time
    kind.later(0.01)
    assert b.join().cold_start == first.cold_start


def test_a_start_after_all_have_left_is_cold(store):
    a, b = Beat(store, "a"), Beat(store, "b")
    a.join()
    a.leave()
    again = b.join()
    assert again.cold_start == again.server_time


def test_a_start_after_all_have_died_is_cold(kind, short_lived):
    a, b = Beat(kind.open(), "a"), Beat(kind.open(), "b")
    a.join()
    kind.later(short_lived)
    again = b.join()
    assert again.cold_start == again.server_time


def test_who_comes_back_does_not_start_cold(kind, short_lived):
    beat = Beat(kind.open(), "a")
    first = beat.join()
    kind.later(short_lived)
    assert beat.join(cold_start=first.cold_start).cold_start == first.cold_start
    kind.forget_all()
    assert beat.join(cold_start=first.cold_start).cold_start == first.cold_start

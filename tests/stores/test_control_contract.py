"""One test per promise of ``stores/base/controls.py`` to operators, the same on every store."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace

import pytest
from servers import wait_until
from test_beat_contract import APP, Beat, set_in_all_stores, tick
from test_contract import HOSTILE

from celery_lockbeat.stores.base import Asked, EntryState, Flag, Passed, request_key

#: What a store's wall clock never reaches here.
NEVER = 4e9


class Operator:
    """Who steers the beats of an app, as terse as the tests want it."""

    def __init__(self, store, app=APP):
        self.store, self.app = store.controls, app

    def __getattr__(self, name):
        return lambda *args, **options: getattr(self.store, name)(self.app, *args, **options)

    def flag(self, name="e"):
        (flag,) = self.flags([name]) or [None]
        return flag


@pytest.fixture
def operator(store):
    return Operator(store)


@pytest.fixture
def beat(store):
    return Beat(store, "a")


# -- a pause -----------------------------------------------------------------------------------------------------------


def test_a_paused_tick_is_passed_over_by_one_replica_and_the_entry_goes_on(store, operator):
    a, b = Beat(store, "a"), Beat(store, "b")
    operator.pause(["e"], "by ann")
    assert a.claims_flagged("e", at="noon") == Passed("paused", "by ann")
    assert b.claims_flagged("e", task_id="late") == EntryState(1, "noon")
    assert b.claims_flagged("e", 2) == Passed("paused", "by ann")
    operator.resume(["e"])
    assert a.claims_flagged("e", 3) is None


def test_nothing_is_left_of_what_was_passed_over(store, operator, beat):
    operator.pause(["e"], "")
    beat.claims_flagged("e", ttl=0.001)
    answer = beat.asks()
    assert (answer.overdue, answer.next_overdue) == ([], None)
    assert beat.settles(("e-1", "e")) == [False]


def test_a_claim_that_names_no_flag_or_another_is_granted(operator, beat):
    operator.pause(["e"], "")
    assert beat.claims("e") is None
    assert beat.claims_flagged("e", 2, flag="f") is None


def test_two_apps_do_not_obey_each_others_flags(store, operator):
    operator.pause(["e"], "")
    assert Beat(store, "a", "blog").claims_flagged("e") is None
    assert Operator(store, "blog").flags() == []


def test_a_batch_is_passed_over_claim_by_claim(store, operator, beat):
    operator.pause(["y"], "by ann")
    claims = [replace(tick(name), flag=name) for name in "xyz"]
    assert beat.asks(*claims).refusals == [None, Passed("paused", "by ann"), None]


def test_a_pause_counts_what_it_passes_over_and_knows_the_first_and_the_last(operator, beat):
    operator.pause(["e"], "by ann")
    for run in (1, 2, 3):
        beat.claims_flagged("e", run, due=f"noon {run}")
    flag = operator.flag()
    assert (flag.passed, json.loads(flag.first), json.loads(flag.last)) == (3, {"due": "noon 1"}, {"due": "noon 3"})
    # another word on the same pause
    operator.pause(["e"], "by bob", until=NEVER)
    again = operator.flag()
    assert (again.told, again.until, again.passed, again.first) == ("by bob", NEVER, 3, flag.first)


def test_a_pause_that_was_lost_in_an_answer_is_told_again_to_the_same_replica_only(store, operator, beat):
    operator.pause(["e"], "by ann")
    beat.claims_flagged("e", task_id="once")
    assert beat.claims_flagged("e", task_id="once") == Passed("paused", "by ann")
    assert Beat(store, "b").claims_flagged("e", task_id="once") == EntryState(1, "t1")
    assert operator.flag().passed == 1


def test_what_was_granted_before_the_pause_and_not_heard_of_is_passed_over(operator, beat):
    beat.claims_flagged("e", 1)
    beat.claims_flagged("e", 2, task_id="once")
    operator.pause(["e"], "by ann")
    assert beat.claims_flagged("e", 2, task_id="once") == Passed("paused", "by ann")
    assert beat.settles(("once", "e"), ("e-1", "e")) == [False, True]
    assert beat.asks().next_overdue is None
    operator.resume(["e"])
    assert beat.claims_flagged("e", 2, task_id="other").total_run_count == 2


def test_what_waits_to_be_published_keeps_nobody_from_passing_over(operator, beat, monkeypatch):
    set_in_all_stores(monkeypatch, "BACKLOG", 1)
    beat.claims_flagged("e", 1)
    operator.pause(["e"], "")
    assert isinstance(beat.claims_flagged("e", 2), Passed)


def test_an_overdue_claim_of_what_is_paused_is_forgotten_by_whoever_would_take_it_over(store, operator):
    a, b, c = (Beat(store, name) for name in "abc")
    a.claims_flagged("e", due="noon")
    a.claims_flagged("f")
    a.settles(handed_over=["e-1", "f-1"])
    operator.pause(["e"], "by ann")
    assert b.takes_over("e-1", "f-1", flags=["e", "f"]) == [Passed("paused", "by ann"), True]
    assert c.takes_over("e-1", flags=["e"]) == [False]
    assert b.takes_over("e-1", flags=["e"]) == [Passed("paused", "by ann")]
    assert a.settles(("e-1", "e")) == [False]
    assert operator.flag().passed == 1
    assert [each.pending for each in store.beats.status(APP).entries if each.name == "e"] == [0]


def test_what_is_not_overdue_is_nobodys_to_pass_over(store, operator):
    a, b = Beat(store, "a"), Beat(store, "b")
    a.claims_flagged("e")
    operator.pause(["e"], "")
    assert b.takes_over("e-1", "never", flags=["e", "e"]) == [False, False]
    assert operator.flag().passed == 0
    assert a.settles(("e-1", "e")) == [True]


def test_an_overdue_claim_of_what_is_to_be_skipped_is_taken_over(store, operator):
    a, b = Beat(store, "a"), Beat(store, "b")
    a.claims_flagged("e")
    a.settles(handed_over=["e-1"])
    operator.skip(["e"], 1, "")
    assert b.takes_over("e-1", flags=["e"]) == [True]


def test_a_pause_is_over_at_its_time(operator, beat):
    beat.asks()  # it connects
    # the wall clock of these stores is the host's own
    operator.pause(["e"], "by ann", until=time.time() + 1.0)
    assert isinstance(beat.claims_flagged("e"), Passed)
    assert operator.asked().lapsed == []
    wait_until(lambda: operator.asked().lapsed == ["e"], 5, "its time is over")
    assert beat.claims_flagged("e", 2) is None


def test_what_is_over_by_its_time_is_ended_by_one_and_what_is_not_by_none(operator, beat):
    operator.pause(["old"], "by ann", until=1.0)
    operator.pause(["new"], "", until=NEVER)
    operator.pause(["ever"], "")
    names = ["old", "new", "ever", "none"]
    assert operator.asked().lapsed == ["old"]
    assert operator.resume(names, lapsed=True) == [Flag("old", True, 1.0, told="by ann"), None, None, None]
    assert operator.resume(names, lapsed=True) == [None] * 4
    assert operator.asked().lapsed == []
    assert {flag.name for flag in operator.flags()} == {"new", "ever"}


# -- resumed -----------------------------------------------------------------------------------------------------------


def test_who_resumes_gets_the_flag_as_it_was_and_the_next_gets_none(operator, beat):
    operator.pause(["e"], "by ann")
    beat.claims_flagged("e", due="noon")
    (flag,) = operator.resume(["e"])
    assert (flag.paused, flag.told, flag.passed, json.loads(flag.last)) == (True, "by ann", 1, {"due": "noon"})
    assert operator.resume(["e", "never"]) == [None, None]
    assert operator.flags() == []
    assert operator.asked().asked == []


def test_what_was_passed_over_is_in_a_request_and_what_was_not_in_none(operator, beat):
    operator.pause(["e", "idle"], "")
    beat.claims_flagged("e", 1, due="noon")
    beat.claims_flagged("e", 2, due="one")
    operator.resume(["idle", "e"], request="r", text="latest")
    (asked,) = operator.asked().asked
    assert asked == Asked("r-2", "e", "latest", 2, asked.first, asked.last, False, None, 0)
    assert (json.loads(asked.first), json.loads(asked.last)) == ({"due": "noon"}, {"due": "one"})
    operator.pause(["e"], "")
    assert operator.flag().passed == 0


def test_each_tick_beside_resumes_is_granted_or_in_one_request(kind):
    store = kind.open()
    operator, granted, passed = Operator(store), [], []
    ends = threading.Event()

    def tick():
        beat, run = Beat(store, "a"), 0
        while not ends.is_set():
            run += 1
            answer = beat.claims_flagged("e", run, n=run)
            (granted if answer is None else passed).append(run)
            beat.settles((f"e-{run}", "e"))

    thread = threading.Thread(target=tick)
    thread.start()
    for n in range(40):
        operator.pause(["e"], "")
        time.sleep(0.002)
        operator.resume(["e"], request=f"r{n}", text="all")
    ends.set()
    thread.join()
    asked = operator.asked().asked
    assert sum(each.passed for each in asked) == len(passed) > 0
    assert not set(granted) & set(passed)
    store.close()


# -- to be skipped -----------------------------------------------------------------------------------------------------


def test_so_many_ticks_are_skipped_and_no_more(operator, beat):
    operator.skip(["e"], 2, "by ann")
    assert operator.flag() == Flag("e", skip=2, skip_told="by ann")
    answers = [beat.claims_flagged("e", run) for run in (1, 2, 3)]
    assert answers == [Passed("skipped", "by ann")] * 2 + [None]
    assert operator.flags() == []


def test_what_is_paused_is_not_skipped_meanwhile(operator, beat):
    operator.skip(["e"], 1, "skip")
    operator.pause(["e"], "pause")
    assert beat.claims_flagged("e", 1) == Passed("paused", "pause")
    operator.resume(["e"])
    assert beat.claims_flagged("e", 2) == Passed("skipped", "skip")
    assert beat.claims_flagged("e", 3) is None


def test_to_skip_none_takes_it_back(operator, beat):
    operator.skip(["e"], 5, "")
    operator.skip(["e"], 0, "")
    assert operator.flags() == []
    assert beat.claims_flagged("e") is None


# -- failures in a row -------------------------------------------------------------------------------------------------


def test_so_many_failures_in_a_row_are_a_pause_and_fewer_are_none(operator, beat):
    assert [operator.failed("e", f"run-{n}", f"told {n}", limit=3) for n in (1, 2)] == [False, False]
    assert operator.flags() == []
    assert beat.claims_flagged("e", 1) is None
    assert operator.failed("e", "run-3", "told 3", limit=3)
    assert operator.flag() == Flag("e", True, told="told 3")
    assert beat.claims_flagged("e", 2) == Passed("paused", "told 3")
    assert beat.claims_flagged("other", 1) is None


def test_after_a_success_and_after_a_resume_failures_are_counted_anew(operator):
    for ends in (lambda: operator.succeeded("e"), lambda: operator.resume(["other", "e"])):
        assert not operator.failed("e", "a", "", limit=2)
        ends()
        assert not operator.failed("e", "b", "", limit=2)
        assert operator.failed("e", "c", "", limit=2)
        operator.resume(["e"])
    operator.succeeded("never")


def test_a_run_is_counted_once_and_what_it_has_caused_is_told_again(operator):
    assert [operator.failed("e", "same", "told", limit=2) for _ in range(3)] == [False] * 3
    assert [operator.failed("e", "last", "told at 5", limit=2) for _ in range(2)] == [True, True]
    assert not operator.failed("e", "last", "told at 6", limit=2)
    assert operator.flag().told == "told at 5"


def test_while_it_is_paused_nothing_is_counted_and_who_has_paused_it_stays(operator, beat):
    operator.failed("e", "a", "", limit=2)
    operator.pause(["e"], "by ann", until=NEVER)
    beat.claims_flagged("e", 1)
    assert [operator.failed("e", name, "failures", limit=2) for name in "bcd"] == [False] * 3
    assert (operator.flag().told, operator.flag().until, operator.flag().passed) == ("by ann", NEVER, 1)
    operator.resume(["e"])
    assert not operator.failed("e", "e", "failures", limit=2)


def test_what_is_no_longer_paused_by_its_time_is_paused_by_failures_without_an_end(operator, beat):
    operator.pause(["e"], "by ann", until=1.0)
    assert operator.failed("e", "a", "failures", limit=1)
    assert operator.flag() == Flag("e", True, told="failures")
    assert operator.asked().lapsed == []
    assert beat.claims_flagged("e", 1) == Passed("paused", "failures")


def test_another_limit_counts_from_the_next_failure_on(operator):
    assert [operator.failed("e", str(n), "", limit=100) for n in range(99)] == [False] * 99
    assert operator.failed("e", "last", "", limit=3)


def test_failures_leave_alone_what_is_to_be_skipped_and_other_apps(store, operator):
    operator.skip(["e"], 2, "by ann")
    assert operator.failed("e", "a", "failures", limit=1)
    assert operator.flag() == Flag("e", True, skip=2, told="failures", skip_told="by ann")
    assert Operator(store, "blog").flags() == []


def test_of_many_that_fail_at_once_one_is_the_last_straw(kind):
    store = kind.open()
    operator, paused = Operator(store), []

    def fail(worker):
        for number in range(10):
            run = f"{worker}:{number}"
            if operator.failed("e", run, run, limit=25):
                paused.append(run)

    threads = [threading.Thread(target=fail, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [operator.flag().told] == paused
    store.close()


def test_failures_of_any_name_are_its_own(store):
    for name in HOSTILE:
        operator = Operator(store, name)
        assert not operator.failed(name, name, "told", limit=2)
        assert not operator.failed(name + "'", "other", "told", limit=2)
        assert operator.failed(name, name + "'", "told", limit=2), name
        assert [flag.name for flag in operator.flags()] == [name]


def test_a_count_that_beats_keep_is_kept_and_another_is_dropped_after_a_while(kind, monkeypatch):
    set_in_all_stores(monkeypatch, "STATE_MEMORY", 0.4)
    store = kind.open()
    operator = Operator(store)
    for name in ("kept", "gone"):
        operator.failed(name, "a", "", limit=2)
    # of a flag that says nothing any more nothing is left but the count
    operator.skip(["kept"], 1, "")
    operator.skip(["kept"], 0, "")
    for _ in range(3):
        kind.later(0.2)
        operator.keep(["kept"])
    assert operator.failed("kept", "b", "", limit=2)
    assert not operator.failed("gone", "b", "", limit=2)
    store.close()


# -- flags -------------------------------------------------------------------------------------------------------------


def test_any_name_is_one_of_its_own(store):
    for name in HOSTILE:
        operator, beat = Operator(store, name), Beat(store, "a", name)
        operator.pause([name], "told")
        assert [flag.name for flag in operator.flags()] == [name]
        assert beat.claims_flagged(name, task_id="id", due="noon") == Passed("paused", "told"), name
        assert beat.claims_flagged(name + "'", task_id="other") is None, name
        assert operator.flag(name).passed == 1
        (flag,) = operator.resume([name], request="r", text="t")
        assert flag.name == name
        (asked,) = operator.asked().asked
        assert (asked.flag, asked.text) == (name, "t")


def test_flags_are_told_of_all_or_of_some(operator):
    operator.pause(["a", "b"], "p")
    operator.skip(["b", "c"], 1, "s")
    told = {flag.name: flag for flag in operator.flags()}
    assert told == {
        "a": Flag("a", True, told="p"),
        "b": Flag("b", True, skip=1, told="p", skip_told="s"),
        "c": Flag("c", skip=1, skip_told="s"),
    }
    assert operator.flags(["b", "never"]) == [told["b"]]
    assert operator.flags([]) == []
    assert len(operator.flags(limit=2)) == 2


def test_many_are_paused_in_one_call(operator, beat):
    names = [f"entry-{n}" for n in range(500)]
    operator.pause(names, "p")
    assert {flag.name for flag in operator.flags()} == set(names)
    assert len([flag for flag in operator.resume(names) if flag is not None]) == 500
    assert operator.flags() == []


def test_a_flag_that_beats_keep_is_kept_and_another_is_dropped_after_a_while(kind, monkeypatch):
    set_in_all_stores(monkeypatch, "STATE_MEMORY", 0.4)
    store = kind.open()
    operator = Operator(store)
    operator.pause(["kept", "gone"], "p", until=NEVER)
    operator.skip(["skipped"], 3, "s")
    for _ in range(3):
        kind.later(0.2)
        operator.keep(["kept", "skipped"])
    assert sorted(flag.name for flag in operator.flags()) == ["kept", "skipped"]
    assert isinstance(Beat(store, "a").claims_flagged("kept"), Passed)
    assert Beat(store, "a").claims_flagged("gone") is None
    store.close()


def test_a_flag_is_kept_while_no_beat_is_there(kind, monkeypatch):
    set_in_all_stores(monkeypatch, "STATE_MEMORY", 0.2)
    store = kind.open()
    Operator(store).pause(["e"], "p")
    kind.later(0.5)
    assert isinstance(Beat(store, "a").claims_flagged("e"), Passed)
    store.close()


def test_to_keep_what_is_not_flagged_flags_nothing(operator):
    operator.keep(["e"])
    operator.pause(["f"], "")
    operator.keep(["e", "f"])
    assert [flag.name for flag in operator.flags()] == ["f"]


# -- requests ----------------------------------------------------------------------------------------------------------


def test_requests_are_told_in_their_order_with_what_was_claimed_of_them(operator, beat):
    for name in ("r2", "r1"):
        operator.ask(name, "e", f"text of {name}")
        time.sleep(0.002)
    assert beat.claims(request_key("r1"), 1, "r1:1", at="first") is None
    assert beat.claims(request_key("r1"), 2, "r1:2", at="second") is None
    beat.settles(("r1:1", request_key("r1")))
    second, first = operator.asked().asked
    assert second == Asked("r2", "e", "text of r2", 0, "", "", False, None, 0)
    assert first == Asked("r1", "e", "text of r1", 0, "", "", False, EntryState(2, "second"), 1)
    assert operator.asked(skip=1).asked == [first]


def test_to_ask_again_changes_nothing(operator):
    operator.ask("r", "e", "text")
    operator.cancel(["r"])
    operator.ask("r", "e", "other")
    (asked,) = operator.asked().asked
    assert (asked.text, asked.cancelled) == ("text", True)


def test_who_cancels_is_told_whether_there_was_such_a_request(operator):
    operator.ask("r", "e", "text")
    assert operator.cancel(["never", "r"]) == [False, True]
    assert operator.cancel(["r"]) == [True]
    assert [each.cancelled for each in operator.asked().asked] == [True]


def test_who_asks_late_for_a_tick_of_what_is_over_gets_none(store, operator, beat):
    operator.ask("r", "e", "text")
    key = request_key("r")
    assert beat.claims(key, 1, "r:1") is None
    beat.settles(("r:1", key))
    operator.over(["r"])
    assert operator.asked().asked == []
    assert Beat(store, "b").claims(key, 1, "r:1") == EntryState(1, "t1")


def test_requests_are_no_entries_to_whoever_looks_at_the_beats(store, operator, beat):
    operator.ask("r", "e", "text")
    beat.claims(request_key("r"), 1, "r:1")
    beat.claims("e")
    assert [each.name for each in store.beats.status(APP).entries] == ["e"]


def test_what_was_claimed_of_what_is_over_is_dropped_after_a_while(kind, monkeypatch):
    set_in_all_stores(monkeypatch, "STATE_MEMORY", 0.3)
    store = kind.open()
    operator, beat = Operator(store), Beat(store, "a")
    beat.join()
    operator.ask("r", "e", "text")
    key = request_key("r")
    beat.claims(key, 1, "r:1")
    beat.settles(("r:1", key))
    operator.over(["r"])
    for _ in range(3):
        kind.later(0.2)
        beat.lists("other")
        beat.asks()
    assert beat.lists(key, at="new") == [EntryState(0, "new")]
    store.close()

"""What a pool's parent renews in place of its children: by whose word, when, and when not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
from scripted import DOWN, ScriptedStore, Time
from servers import wait_until

from celery_lockbeat import Lock, StoreUnavailable
from celery_lockbeat.locks import acquisition, child, lease, page
from celery_lockbeat.locks.keeping import Keeper, can_run
from celery_lockbeat.locks.lease import OwnLease
from celery_lockbeat.locks.page import ROOM, Hold, Page
from celery_lockbeat.options import MARGIN

TTL = 30.0
LASTS = TTL * (1 - MARGIN)
HOLD = Hold("key", "scripted", "default", TTL, token=7, since=0.0, patience=15.0)


class Parent:
    """A parent with one child, which holds one key since 0, and looks twice a second."""

    def __init__(self, script: list[object] = ()) -> None:
        self.time = Time()
        self.store = ScriptedStore(self.time, list(script))
        self.running = True
        self.page = Page()
        self.page.pid = 1234
        self.page.put("holder", HOLD)
        self.keeper = Keeper(lambda driver, connection: self.store, clock=self.time, runs=lambda pid: self.running)

    def look_until(self, end: float) -> None:
        while self.time.now < end:
            self.time.now += 0.5
            self.keeper.look([self.page])

    @property
    def asked(self) -> list[float]:
        return [when for when, _ in self.store.extensions]

    @property
    def kept(self) -> float | None:
        return self.page.kept_since("holder", "scripted", 7)


def test_a_child_that_has_held_its_lock_for_as_long_as_it_may_is_renewed_no_more():
    parent = Parent()
    parent.page.put("holder", HOLD._replace(until=40.0))
    parent.look_until(200)
    assert parent.asked == [15, 30]


def test_of_a_child_that_renews_in_time_nothing_is_asked():
    parent = Parent()
    for since in range(0, 100, 10):
        parent.page.put("holder", HOLD._replace(since=float(since)))
        parent.look_until(since + 10)
    assert parent.asked == []
    assert parent.kept is None


def test_a_child_that_is_late_is_renewed_in_its_place_as_often_as_it_is_and_told_so():
    parent = Parent()
    parent.look_until(50)
    assert parent.asked == [15, 30, 45]
    assert parent.kept == 45


def test_a_child_that_comes_to_itself_goes_on_by_itself():
    parent = Parent()
    parent.look_until(20)
    parent.page.put("holder", HOLD._replace(since=20.0))
    parent.look_until(34)
    assert parent.asked == [15]


def test_a_child_that_is_stopped_is_not_renewed_and_not_later_either():
    parent = Parent()
    parent.running = False
    parent.look_until(29.5)
    parent.running = True
    parent.time.now = LASTS
    parent.look_until(60)
    assert parent.asked == []


def test_a_child_that_goes_on_in_time_is_renewed_again():
    parent = Parent()
    parent.running = False
    parent.look_until(20)
    parent.running = True
    parent.look_until(21)
    assert parent.asked == [20.5]


@pytest.mark.parametrize(
    "tell",
    [
        pytest.param(lambda page: page.put("holder", HOLD._replace(token=0)), id="by the child"),
        pytest.param(lambda page: page.drop("holder", "scripted"), id="for it is released"),
    ],
)
def test_what_is_over_is_not_renewed(tell):
    parent = Parent()
    parent.look_until(20)
    tell(parent.page)
    parent.look_until(60)
    assert parent.asked == [15]


def test_what_the_store_says_is_lost_is_not_asked_for_again_and_what_was_kept_before_counts_no_more():
    parent = Parent([True, False])
    parent.look_until(100)
    assert parent.asked == [15, 30]
    assert parent.kept is None


def test_a_store_that_does_not_answer_is_asked_again_while_the_lease_lasts():
    parent = Parent([DOWN] * 100)
    parent.look_until(60)
    assert parent.asked == [15 + n for n in range(15)]
    assert parent.kept is None


def test_one_look_asks_a_store_once_and_another_store_apart():
    parent = Parent()
    other = Page()
    other.pid = 1235
    other.put("one", HOLD._replace(key="one"))
    other.put("two", HOLD._replace(key="two", driver="other"))
    parent.time.now = 16.0
    parent.keeper.look([parent.page, other])
    assert parent.store.extensions == [(16, {"key", "one"}), (16, {"two"})]
    assert other.kept_since("two", "other", 7) == 16
    assert parent.page.kept_since("two", "other", 7) is None


def test_who_looks_is_told_when_the_next_child_is_late():
    parent = Parent()
    assert parent.keeper.look([parent.page]) == 15
    parent.time.now = 15.0
    assert parent.keeper.look([parent.page]) == 30
    parent.page.drop("holder", "scripted")
    assert parent.keeper.look([parent.page]) == float("inf")


# -- the child ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def childs_page(monkeypatch) -> Page:
    """This process is a pool's child."""
    made = Page()
    monkeypatch.setattr(child, "_page", made)
    return made


def only(held: dict[tuple[str, str], Hold]) -> Hold:
    ((_, hold),) = held.items()
    return hold


@pytest.fixture
def clock(monkeypatch) -> Time:
    time = Time()
    time.now = 100.0
    monkeypatch.setattr(acquisition, "monotonic", time)
    monkeypatch.setattr(lease, "monotonic", time)
    return time


class Asleep:
    """The renewer of a process whose GIL is held."""

    def add(self, lock) -> None:
        pass

    discard = add

    def errand(self, tell, **_) -> None:
        pass


@pytest.fixture
def held(app, childs_page, clock, monkeypatch):
    monkeypatch.setattr(acquisition, "renewer_of", lambda _: Asleep())
    made = Lock("k", app=app, ttl=TTL, on_lost="warn")
    assert made.acquire()
    yield made
    made.end()


def kept(page: Page, lock: Lock, since: float) -> None:
    page.keep({(lock._story.execution_id, lock._store.driver, lock.token): since})


def test_a_child_notes_each_lease_and_when_it_is_late_with_the_next(held, childs_page, clock):
    assert only(childs_page.held())[4:7] == (held.token, 100.0, pytest.approx(10 + (LASTS - 10) / 4))
    clock.now = 110.0
    held._own.extended(clock.now, held.ttl)
    assert only(childs_page.held()).since == 110.0
    assert held.release()
    assert childs_page.held() == {}


def test_a_child_whose_lease_ran_out_while_its_parent_renewed_it_holds_it_still(held, childs_page, clock):
    kept(childs_page, held, 115.0)
    clock.now = 100 + LASTS + 1
    held._own.expire()
    assert held.held
    assert not held.lost
    assert held.remaining == pytest.approx(115 + LASTS - clock.now)
    clock.now = 115 + LASTS
    assert not held.held


@pytest.mark.parametrize(("since", "remaining"), [({"k": 115.0}, 0), ({"l": 115.0}, 0), ({"k": 115.0, "l": 120.0}, 15)])
def test_of_several_keys_each_is_noted_and_the_parent_must_have_renewed_all(
    app, childs_page, clock, monkeypatch, since, remaining
):
    monkeypatch.setattr(acquisition, "renewer_of", lambda _: Asleep())
    made = Lock(["k", "l"], app=app, ttl=TTL, on_lost="warn")
    assert made.acquire()
    holds = childs_page.held()
    assert {hold.key: hold.token for hold in holds.values()} == made.tokens
    childs_page.keep({(*who, hold.token): since[hold.key] for who, hold in holds.items() if hold.key in since})
    clock.now = 100 + LASTS
    assert made.remaining == pytest.approx(remaining)
    made.end()
    if remaining:
        assert childs_page.held() == {}


def test_a_lease_that_ran_out_unrenewed_stays_so_whatever_the_parent_hears_later(held, childs_page, clock):
    clock.now = 100 + LASTS
    assert not held.held
    kept(childs_page, held, clock.now - 1)
    assert not held.held


def test_an_earlier_extension_that_is_heard_of_late_takes_nothing_away(held, childs_page, clock):
    kept(childs_page, held, 125.0)
    clock.now = 131.0
    assert held.held
    held._own.extended(110.0, held.ttl)
    assert held.remaining == pytest.approx(125 + LASTS - clock.now)


def test_what_the_parent_kept_by_an_earlier_ttl_is_trusted_for_no_more(held, childs_page, clock):
    held._own.ask(held._options.with_ttl(10 * TTL, owner="it"))
    kept(childs_page, held, 115.0)
    clock.now = 101 + LASTS
    assert held.remaining == pytest.approx(115 + LASTS - clock.now)
    assert only(childs_page.held()).ttl in (TTL, 10 * TTL)


def test_what_was_kept_of_another_lease_counts_for_nothing(held, childs_page, clock):
    childs_page.keep({(held._story.execution_id, held._store.driver, held.token - 1): 115.0})
    clock.now = 100 + LASTS
    assert not held.held


def test_a_loss_is_on_the_page_before_it_is_told(held, driver, childs_page, monkeypatch):
    noted = []
    monkeypatch.setattr(
        OwnLease, "report_loss", lambda *_: noted.append([hold.token for hold in childs_page.held().values()])
    )
    held._own.lose("so says the test")
    monkeypatch.undo()
    held._own._loss_is_reported = True
    # the memory store needs no parent to free what is left
    assert noted == ([[0]] if driver == "redis" else [[]])


def test_a_child_whose_store_does_not_answer_tries_by_itself(held, childs_page, clock):
    clock.now = 114.0
    held._own.extend_failed(113.0, StoreUnavailable("down"), 1.0)
    hold = only(childs_page.held())
    assert held._own.next_action < hold.since + hold.patience < hold.since + LASTS
    assert hold.since == pytest.approx(100.0)


def test_without_renewal_nothing_is_renewed_by_the_parent_either(app, childs_page):
    with Lock("k", app=app, ttl=TTL, auto_extend=False):
        assert not any(hold.token for hold in childs_page.held().values())


# -- processes ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody can tell")
def test_a_process_that_is_stopped_or_dead_cannot_run():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert can_run(child.pid)
        os.kill(child.pid, signal.SIGSTOP)
        wait_until(lambda: not can_run(child.pid), 5)
        os.kill(child.pid, signal.SIGCONT)
        wait_until(lambda: can_run(child.pid), 5)
        child.kill()
        wait_until(lambda: not can_run(child.pid), 5)  # a zombie
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
    assert not can_run(child.pid)


def test_where_there_is_no_proc_no_process_can_be_told_to_run(monkeypatch):
    monkeypatch.setattr(
        "celery_lockbeat.locks.keeping.Path", lambda path: __import__("pathlib").Path("/nowhere" + path)
    )
    assert not can_run(os.getpid())


# -- the page ----------------------------------------------------------------------------------------------------------


def test_a_page_tells_what_was_noted_last_and_what_is_too_long_leaves_the_rest_alone():
    made = Page()
    a, b = Hold("k", "redis", "default", 30, 5, 1.5, 2.5), Hold("\ud800 {}", "redis", "default", 30)
    made.put("a", a)
    made.put("b", b)
    made.put("c", Hold("x" * ROOM, "redis", "default", 30))
    assert made.held() == {("a", "redis"): a, ("b", "redis"): b}
    made.drop("a", "redis")
    made.drop("c", "redis")
    made.drop("b", "memory")
    assert made.held() == {("b", "redis"): b}
    made.drop("b", "redis")
    assert made.held() == {}


def test_who_reads_while_it_is_written_reads_a_whole_value_or_none():
    memory, over = Page(), threading.Event()

    def write() -> None:
        for number in range(20000):
            memory.put("holder", Hold("k" * (number % 97), "redis", "default", 30, number))
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = -1
    try:
        while not over.is_set():
            try:
                found = memory.held()
            except ValueError:
                continue
            for hold in found.values():
                assert len(hold.key) == hold.token % 97
                assert hold.token >= seen
                seen = hold.token
    finally:
        writer.join()
    assert seen > 0


def test_a_value_that_was_written_over_is_told_from_one_that_is_whole():
    made = Page()
    made.put("holder", HOLD)
    start = 16 + (made._memory[0] - 1) * page.ROOM
    made._memory[start + 12] ^= 1
    with pytest.raises(ValueError, match="written over"):
        made.held()

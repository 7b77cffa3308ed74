"""Those who wait for a key: one test per promise of ``acquire(..., place=...)``, the same on every store."""

from __future__ import annotations

import pytest
import redis
from test_contract import take

from celery_lockbeat.stores.base import Finished, Held, Lease, Place, Reservation, Stop, Waiting


class Line:
    """Those who ask for a key, and what was told to them."""

    def __init__(self, store, **place):
        self.store, self.place = store, place
        self.told: list[str] = []
        store.locks.called = lambda key, texts: self.told.extend(texts)

    def ask(self, name, *, ttl=30, limit=1, holder=None, reservation=None, **place):
        """As the task ``name`` does, whose run is its first."""
        made = Place(f"{name}::0~n", **{"wait_for": 60, "text": f"come, {name}", **self.place, **place})
        return self.store.locks.acquire(
            "key",
            holder=holder or f"h-{name}",
            ttl=ttl,
            run=f"{name}:0:0~n",
            task=f"{name}::0~n",
            description=f"by {name}",
            limit=limit,
            reservation=reservation,
            place=made,
        )

    def waits(self, name, **more) -> Waiting:
        answer = self.ask(name, **more)
        assert isinstance(answer, Waiting), answer
        return answer

    def comes(self, name, **more) -> Lease:
        answer = self.ask(name, **more)
        assert isinstance(answer, Lease), answer
        return answer

    def names(self) -> list[str]:
        return [waiter.description.removeprefix("by ") for waiter in self.store.locks.line("key")]


@pytest.fixture
def line(store) -> Line:
    return Line(store)


def again(answer: Waiting, **more):
    """What a copy of a waiting message says of itself."""
    return {"since": answer.since, "began": answer.began, "copy": answer.copy, **more}


def test_who_waits_for_nothing_has_a_lock_as_any_other(store, line):
    lease = line.comes("a")
    assert store.locks.extend([(lease, 30)]) == [True]
    assert store.locks.release(lease, remember_for=30, task=True)
    assert line.ask("a") == Finished(task=True)
    assert store.locks.line("key") == []
    take(store, holder="b")
    assert line.told == []


def test_who_finds_a_key_held_has_a_place_in_line_by_the_order_of_arrival(store, line):
    first = take(store, holder="x", run="rx", description="w pid 7")
    answers = [line.waits(name) for name in "abc"]
    assert [answer.before for answer in answers] == [0, 1, 2]
    assert [answer.copy for answer in answers] == [1, 1, 1]
    assert [answer.since for answer in answers] == sorted({answer.since for answer in answers})
    assert (answers[1].description, answers[1].run) == ("w pid 7", "rx")
    assert 25 < answers[1].remaining <= 30
    assert line.names() == ["a", "b", "c"]
    assert [waiter.called for waiter in store.locks.line("key")] == [False] * 3
    assert [lock.waiting for lock in store.locks.held("key")] == [3]
    assert store.locks.extend([(first, 30)]) == [True], "who has had it alone knows nothing of that"


def test_whatever_frees_a_key_calls_the_first_and_keeps_it_for_that_one(store, line):
    held = take(store, holder="x", run="rx")
    for name in "abc":
        line.waits(name)
    assert store.locks.release(held, remember_for=30)
    assert line.told == ["come, a"]
    assert [waiter.called for waiter in store.locks.line("key")] == [True, False, False]
    # it is nobody else's
    assert isinstance(store.locks.acquire("key", holder="thief", ttl=30), Held)
    assert line.waits("d").before == 2
    lease = line.comes("a")
    assert line.names() == ["b", "c", "d"]
    assert lease.token > held.token
    assert store.locks.free("key", holder="h-a")
    assert line.told == ["come, a", "come, b"]
    assert store.locks.release(line.comes("b"))
    assert store.locks.release(line.comes("c"))
    assert line.told == ["come, a", "come, b", "come, c", "come, d"]
    assert store.locks.release(line.comes("d"))
    assert store.locks.line("key") == []
    take(store, holder="thief")


def test_a_copy_of_who_waits_keeps_its_place(store, line):
    held = take(store)
    first = line.waits("a")
    line.waits("b")
    second = line.waits("a", **again(first))
    assert (second.since, second.began, second.before, second.copy) == (first.since, first.began, 0, 2)
    assert line.names() == ["a", "b"]
    store.locks.release(held)
    assert line.told == ["come, a"]


def test_of_the_copies_of_who_waits_one_goes_on(store, line):
    take(store)
    first = line.waits("a")
    second = line.waits("a", **again(first))
    assert second.copy == 2
    assert line.waits("a", **again(first)).copy == 0, "another is on its way"
    assert line.waits("a").copy == 0
    assert line.waits("a", **again(second)).copy == 3
    # what is delivered again may have been the one that was to send the next
    assert line.waits("a", **again(second), again=True).copy in (2, 3)


def test_a_copy_that_was_to_send_the_next_and_died_sends_it_when_it_is_delivered_again(store, line):
    take(store)
    line.waits("a")
    assert line.waits("a", copy=0, again=True).copy == 1


def test_who_does_not_come_is_passed_over_and_is_before_all_that_came_later_when_it_comes(store, kind):
    line = Line(store, grace=0.5)
    held = take(store)
    first = line.waits("a")
    line.waits("b", grace=30)
    store.locks.release(held)
    assert line.told == ["come, a"]
    kind.later(0.5)
    assert store.locks.serve("key").waiting == 0
    assert line.told == ["come, a", "come, b"]
    # it is here, and b is not yet
    lease = line.comes("a", **again(first))
    assert line.names() == ["b"]
    assert store.locks.release(lease)
    assert line.told == ["come, a", "come, b", "come, b"]
    line.comes("b")


def test_who_comes_too_late_waits_again_where_it_was(store, kind):
    line = Line(store, grace=0.5)
    held = take(store)
    first = line.waits("a")
    line.waits("b")
    store.locks.release(held)
    kind.later(0.5)
    second = line.comes("b")
    assert line.waits("a", **again(first)).before == 0
    line.waits("c")
    assert line.names() == ["a", "c"]
    store.locks.release(second)
    assert line.told[-1] == "come, a"
    line.comes("a")


def test_a_lease_that_runs_out_is_given_to_the_first_by_whoever_looks(store, kind):
    line = Line(store)
    take(store, holder="dead", ttl=0.5)
    line.waits("a")
    line.waits("b")
    served = store.locks.serve("key")
    assert served.waiting == 2
    assert 0 < served.look_in <= 0.5
    kind.later(0.5)
    assert isinstance(store.locks.acquire("key", holder="thief", ttl=30), Held)
    assert line.told == ["come, a"]
    served = store.locks.serve("key")
    assert (served.waiting, line.told) == (1, ["come, a"])
    assert 25 < served.look_in <= 30


def test_there_is_nothing_to_look_after_where_nobody_waits(store):
    assert store.locks.serve("key").waiting == 0
    assert store.locks.serve("key").look_in is None
    take(store)
    assert store.locks.serve("key").look_in is None
    assert store.locks.line("key") == []


def test_who_waits_for_too_long_is_told_so_and_called_no_more(store, kind):
    line = Line(store, wait_for=0.5)
    held = take(store)
    first = line.waits("a")
    line.waits("b", wait_for=60)
    kind.later(0.5)
    answer = line.ask("a", **again(first))
    assert isinstance(answer, Held)
    assert (answer.why, answer.who) == ("waited", "")
    store.locks.release(held)
    assert line.told == ["come, b"]


def test_one_whose_time_is_over_is_not_called(store, kind):
    line = Line(store, wait_for=0.5)
    held = take(store)
    line.waits("a")
    line.waits("b", wait_for=60)
    kind.later(0.5)
    store.locks.release(held)
    assert line.told == ["come, b"]


def test_where_one_may_wait_a_later_one_is_refused(store):
    line = Line(store, kind="one")
    held = take(store, description="x")
    first = line.waits("a")
    refusal = line.ask("b")
    assert isinstance(refusal, Held)
    assert (refusal.why, refusal.who, refusal.description) == ("queued", "by a", "x")
    assert line.waits("a", **again(first)).before == 0, "the one that waits is not another"
    store.locks.release(held)
    refusal = line.ask("c")
    assert (refusal.why, refusal.who) == ("queued", "by a"), "it is called, and not yet there"
    lease = line.comes("a")
    line.waits("c")
    store.locks.release(lease)
    assert line.told == ["come, a", "come, c"]


def test_the_newest_supersedes_the_one_that_waited(store):
    line = Line(store, kind="latest")
    held = take(store)
    first = line.waits("a")
    assert line.waits("b").before == 0
    assert line.told == ["come, a"]
    assert line.ask("a", **again(first)) == Finished(task=True, why="superseded", who="by b")
    assert line.names() == ["b"]
    store.locks.release(held)
    assert line.told == ["come, a", "come, b"]
    line.comes("b")
    # who it was is told for as long as that it was superseded
    assert line.ask("a", **again(first)) == Finished(task=True, why="superseded", who="by b")


def test_an_older_one_does_not_supersede_a_newer(store, kind):
    line = Line(store, kind="latest", grace=0.5)
    held = take(store)
    first = line.waits("a")
    store.locks.release(held)
    kind.later(0.5)
    # a was called, and did not come
    held = take(store, holder="y")
    line.waits("b", grace=30)
    answer = line.ask("a", **again(first))
    assert isinstance(answer, Held)
    assert (answer.why, answer.who) == ("superseded", "by b")
    assert line.ask("a", **again(first)) == Finished(task=True, why="superseded", who="by b")
    assert line.names() == ["b"]


def test_a_line_has_room_for_so_many(store):
    line = Line(store, room=2)
    take(store)
    first = line.waits("a")
    line.waits("b")
    refusal = line.ask("c")
    assert isinstance(refusal, Held)
    assert (refusal.why, refusal.who) == ("full", "")
    line.waits("a", **again(first))


def test_a_line_can_be_sent_away(store, line):
    held = take(store)
    for name in "ab":
        line.waits(name)
    assert store.locks.clear_line("key") == 2
    assert sorted(line.told) == ["come, a", "come, b"]
    assert line.ask("a") == Finished(task=True, why="cleared")
    assert store.locks.line("key") == []
    assert store.locks.clear_line("key") == 0
    assert store.locks.release(held)
    take(store, holder="next")


def test_who_gives_up_is_called_no_more_and_what_is_kept_for_it_is_given_to_the_next(store, line):
    held = take(store)
    for name in "abc":
        line.waits(name)
    assert store.locks.give_up("key", "b::0~n")
    assert line.names() == ["a", "c"]
    assert store.locks.release(held)
    assert line.told == ["come, a"]
    assert store.locks.give_up("key", "a::0~n")
    assert line.told == ["come, a", "come, c"]
    assert store.locks.give_up("key", "c::0~n")
    assert line.names() == []
    take(store, holder="thief")
    assert not store.locks.give_up("key", "a::0~n")
    assert not store.locks.give_up("another", "a::0~n")


def test_as_many_are_called_as_may_hold_the_key(store, line):
    held = [take(store, holder=f"h{number}", limit=2) for number in range(2)]
    for name in "abc":
        line.waits(name, limit=2)
    assert store.locks.release(held[0])
    assert store.locks.release(held[1])
    assert line.told == ["come, a", "come, b"]
    assert isinstance(store.locks.acquire("key", holder="thief", ttl=30, limit=2), Held)
    line.comes("b", limit=2)
    line.comes("a", limit=2)
    # with a larger limit there is room at once, and the first in line has it
    line.waits("d", limit=3)
    assert line.told == ["come, a", "come, b", "come, c"]


def test_a_copy_of_a_run_that_goes_on_does_not_wait(store, line):
    line.comes("a")
    answer = line.ask("a", holder="copy")
    assert isinstance(answer, Held)
    assert answer.same_run
    assert store.locks.line("key") == []
    line.waits("b")
    assert line.ask("a", holder="copy").same_run


def test_an_answer_that_was_lost_can_be_asked_for_again(store, line):
    held = take(store)
    first = line.waits("a")
    assert line.waits("a").since == first.since
    store.locks.release(held)
    assert store.locks.release(held)
    lease = line.comes("a")
    assert line.comes("a") == lease
    assert store.locks.release(lease)


def test_tokens_grow_through_a_line(store, line):
    tokens = [take(store, holder="x").token]
    store.locks.free("key", holder="missing")
    for name in "abc":
        line.waits(name)
    store.locks.free("key", holder="x")
    for name in "abc":
        lease = line.comes(name)
        tokens.append(lease.token)
        assert store.locks.release(lease)
    tokens.append(take(store, holder="y").token)
    assert tokens == sorted(set(tokens))


def test_who_is_called_is_told_since_when_it_waits(store, line):
    held = take(store)
    first = line.waits("a", text='come, ["@since"]')
    store.locks.release(held)
    assert line.told == [f"come, [{first.since}]"]


def test_a_hundred_who_wait_are_served_in_their_order(store, line):
    lease, names = take(store), [f"n{number}" for number in range(100)]
    for name in names:
        line.waits(name)
    for number, name in enumerate(names):
        assert store.locks.release(lease)
        assert line.told[number:] == [f"come, {name}"]
        lease = line.comes(name)


def test_who_is_to_be_replaced_is_told_when_it_is_extended_and_keeps_its_key(store):
    line = Line(store, kind="replace")
    held = take(store, holder="x", run="rx")
    assert store.locks.extend([(held, 30)]) == [True]
    answer = line.waits("a")
    assert answer.before == 0
    assert line.told == [], "nothing is free"
    assert store.locks.extend([(held, 30)]) == [Stop("by a")]
    # what does not stop keeps it: it has been extended, and goes on to be
    assert store.locks.extend([(held, 30), (held._replace(token=1), 30)]) == [Stop("by a"), False]
    assert isinstance(store.locks.acquire("key", holder="thief", ttl=30), Held)
    assert line.waits("a", **again(answer)).before == 0
    assert store.locks.release(held, remember_for=30)
    assert line.told == ["come, a"]
    lease = line.comes("a")
    assert store.locks.extend([(lease, 30)]) == [True]
    assert store.locks.release(lease)
    assert store.locks.extend([(take(store, holder="y"), 30)]) == [True]


def test_who_waits_to_replace_is_replaced_by_a_later_one_and_leaves_others_in_line(store):
    line = Line(store, kind="replace")
    held = take(store, holder="x", run="rx")
    line.waits("w", kind="all")
    line.waits("l", kind="latest")
    line.waits("a")
    answer = line.waits("b")
    assert line.names() == ["w", "l", "b"]
    assert line.told == ["come, a"]
    assert line.ask("a") == Finished(task=True, why="superseded", who="by b")
    assert answer.before == 2
    assert store.locks.extend([(held, 30)]) == [Stop("by b")]


def test_who_no_longer_waits_to_replace_stops_nobody(store, kind):
    line = Line(store, kind="replace", wait_for=0.5)
    held = take(store, holder="x", run="rx", ttl=300)
    line.waits("a")
    kind.later(0.5)
    assert store.locks.extend([(held, 300)]) == [True]
    line.waits("b", wait_for=60)
    assert store.locks.extend([(held, 300)]) == [Stop("by b")]
    assert store.locks.clear_line("key") >= 1
    assert store.locks.extend([(held, 300)]) == [True]
    line.waits("c", wait_for=60)
    assert store.locks.release(held)
    # c is called, and not yet here: whoever may hold the key beside it is not in its way
    beside = take(store, holder="y", limit=2)
    assert store.locks.extend([(beside, 30)]) == [True]


def test_of_several_holders_the_one_that_has_the_key_longest_is_told(store):
    line = Line(store, kind="replace")
    first, second = (take(store, holder=holder, limit=2) for holder in ("x", "y"))
    line.waits("a", limit=2)
    assert store.locks.extend([(second, 30), (first, 30)]) == [True, Stop("by a")]
    assert store.locks.release(second)
    assert store.locks.extend([(first, 30)]) == [True]
    line.comes("a", limit=2)


def test_a_ticket_like_the_end_of_a_lease_does_not_keep_a_key(store, kind):
    """It stands beside the holders, of which the last one's end is looked for, for when all of them may be forgotten."""
    line = Line(store, kind="replace")
    held = take(store, holder="x", run="rx")
    line.waits("9" * 60)
    assert store.locks.extend([(held, 30)]) == [Stop("by " + "9" * 60)]
    if kind.name in ("redis", "redis7"):
        with redis.Redis.from_url(kind.target) as client:
            assert 0 < client.pttl("lockbeat:lock:{key}") <= 2 * 3_600_000


RESERVED = Reservation("key", "proj.report", "a", "token-1")
ANOTHER = RESERVED._replace(task_id="b", token="token-2")


def test_who_waits_keeps_what_it_has_reserved_until_it_comes(store, line):
    assert store.locks.reserve(RESERVED, ttl=30) is None
    lease = take(store, holder="x")
    line.waits("a", reservation=RESERVED)
    assert store.locks.reserve(ANOTHER, ttl=30) == RESERVED
    assert store.locks.release(lease)
    assert line.told == ["come, a"]
    assert store.locks.reserve(ANOTHER, ttl=30) == RESERVED, "it is called, and not yet here"
    line.comes("a", reservation=RESERVED)
    assert store.locks.reserve(ANOTHER, ttl=30) is None


def test_who_waits_or_is_called_is_no_run_that_goes_on(store, line):
    lease = take(store, holder="x", run="rx", description="w pid 7 proj.report[x]")
    line.waits("a")
    there = store.locks.reserve(RESERVED, ttl=30, unless_run_by=" proj.report[")
    assert isinstance(there, Held)
    assert there.run == "rx"
    assert store.locks.reserve(RESERVED, ttl=30, unless_run_by="by a") is None, "it waits"
    assert store.locks.unreserve(RESERVED)
    assert store.locks.release(lease)
    assert line.told == ["come, a"]
    assert store.locks.reserve(RESERVED, ttl=30, unless_run_by="by a") is None


def test_who_listens_hears_that_it_is_called_and_not_before(store, line):
    held = take(store)
    line.waits("a", text="")
    line.waits("b", text="")
    assert store.locks.listen("key", "a::0~n", 0.05) is False
    store.locks.release(held)
    assert store.locks.listen("key", "b::0~n", 0.05) is False
    assert store.locks.listen("key", "a::0~n", 30) is True
    assert line.told == [], "it is there, and need not be told"
    assert store.locks.release(line.comes("a", text=""))
    assert store.locks.listen("key", "b::0~n", 30) is True
    line.comes("b", text="")

"""Replicas of the beat that are killed, frozen and cut off, with nobody but a reader of the broker's queue to tell of it.

Each run is numbered and has one task id, so what is lost and what is doubled shows in the queue. Where bodies count, the
messages are passed on to a worker, and its tasks tell the witness.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest
from fleet import Fleet, Process
from proxy import Proxy, Trap
from scripts import sha_of
from servers import Server, wait_until
from ticks import Arrival, Book, Pending, Reader
from wallclocks import WallClock

#: What two noisy cores, on which beats start all the time, may add to any deadline.
SLACK = 1.5

JOINED = "has joined the replicas"


def every(seconds: float | str, task: str = "nobody", **more: object) -> dict[str, object]:
    return {"task": task, "schedule": seconds, **more}


class Beats:
    """Replicas of one schedule, the store they share, and the reader of their queue."""

    def __init__(self, fleet: Fleet, reader: Reader, book: Book, schedule: dict[str, dict[str, object]]) -> None:
        self.fleet, self.reader, self.book, self.schedule = fleet, reader, book, schedule
        self.alive: dict[str, Process] = {}
        self.held: list[tuple[float, Pending]] = []  # what the killed ones had claimed, and when they were killed
        self.kills = 0

    def start(self, *names: str, **settings: Any) -> list[Process]:
        """Start replicas that are not running; return them at once."""
        schedule = settings.pop("schedule", self.schedule)
        for name in names:
            self.alive[name] = self.fleet.beat(name, schedule, **settings)
        return [self.alive[name] for name in names]

    def joined(self) -> list[str]:
        return [name for name, beat in self.alive.items() if JOINED in beat.log()[beat.log_before :]]

    def kill(self, name: str) -> None:
        beat = self.alive.pop(name)
        beat.kill()
        self.kills += 1
        self.held += [(time.monotonic(), each) for each in self.book.pending(beat.pid)]

    def stop(self) -> None:
        """End all replicas, when they have published what is claimed; each settles or hands over what comes meanwhile."""
        wait_until(lambda: len(self.joined()) == len(self.alive), 30, "all have started")
        claimed = {each.task_id for each in self.book.pending()}
        wait_until(lambda: not claimed & {each.task_id for each in self.book.pending()}, message="all is settled")
        for beat in self.alive.values():
            beat.process.terminate()
        for beat in self.alive.values():
            assert beat.process.wait(20) == 0
        self.alive.clear()

    def assert_each_run_once(self) -> None:
        waiting = {(each.entry, each.run) for each in self.book.pending()}
        self.reader.assert_each_run_once({name: n for name, n in self.book.claimed().items() if n}, waiting)


@pytest.fixture
def make_beats(make_fleet, broker: Server, locks: Server) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:

        def make(schedule: dict[str, dict[str, object]], *, driver: str = "redis", **settings: object) -> Beats:
            fleet = make_fleet(lockbeat_driver=driver, lockbeat_redis_url=locks.url, **settings)
            fleet.settings["lockbeat_key_prefix"] = prefix = f"{fleet.queue}:"
            reader = stack.enter_context(contextlib.closing(Reader(broker, fleet.queue)))
            where = {"server": locks, "prefix": prefix} if driver == "redis" else {"path": fleet.directory / "memory"}
            book = stack.enter_context(contextlib.closing(Book(**where)))
            return Beats(fleet, reader, book, schedule)

        yield make


# -- replicas that die -------------------------------------------------------------------------------------------------

SOAK = float(os.environ.get("LOCKBEAT_TEST_SOAK_SECONDS", "1200"))


@pytest.mark.parametrize(
    ("driver", "seconds"),
    [
        pytest.param("redis", 15.0, id="redis"),
        pytest.param("memory", 7.0, id="memory", marks=pytest.mark.soak),
        pytest.param("redis", SOAK, id="soak-redis", marks=[pytest.mark.soak, pytest.mark.timeout(SOAK + 300)]),
        pytest.param("memory", SOAK, id="soak-memory", marks=[pytest.mark.soak, pytest.mark.timeout(SOAK + 300)]),
    ],
)
def test_no_tick_is_lost_or_doubled_or_late_however_many_beats_are_killed(make_beats, driver, seconds):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    claim_ttl = 2.0
    seconds_entries = [f"second-{i}" for i in range(5)]
    schedule = {name: every(1.0) for name in seconds_entries}
    schedule |= {"half": every(0.5), "third": every(0.3), "fast": every(0.1)}
    beats = make_beats(schedule, driver=driver, lockbeat_claim_ttl=claim_ttl)
    reader = beats.reader
    names = ["a", "b", "c"]
    beats.start(*names)
    reader.wait_for_more("second-0")
    started = time.monotonic()
    massacred = False
    while time.monotonic() < started + seconds:
        # the moments are what is random here: there is nothing to wait for
        time.sleep(chance.uniform(0.05, 1.0))
        joined = beats.joined()
        if len(joined) == len(names) and (not massacred or chance.random() < 0.2):
            victims, massacred = chance.sample(joined, len(joined) - 1), True
        else:
            victims = chance.sample(joined, 1) if len(joined) > 1 and chance.random() < 0.6 else []
        for victim in victims:
            beats.kill(victim)
        missing = [name for name in names if name not in beats.alive]
        if missing and chance.random() < 0.7:
            beats.start(chance.choice(missing))
    reader.wait_for_more(*seconds_entries)
    beats.stop()

    beats.assert_each_run_once()
    assert massacred
    assert sum(len(reader.firsts(entry)) for entry in seconds_entries) >= 5 * (seconds - 4)
    for entry in seconds_entries:
        for before, after in reader.gaps(entry):
            gap = after.at - before.at
            in_dead_hands = [
                at for at, claim in beats.held if claim.entry == entry and before.at < at + SLACK and at < after.at
            ]
            allowed = 1.0 + claim_ttl + SLACK if in_dead_hands else 1.5
            assert gap <= allowed, f"{entry}: {gap:.2f} s between {before} and {after}; held: {beats.held}"
    gaps = sorted(
        (after.at - before.at for entry in seconds_entries for before, after in reader.gaps(entry)), reverse=True
    )
    print(
        f"{beats.kills} kills, {len(reader.arrivals())} messages, {len(beats.held)} claims held, longest gaps {gaps[:5]}"
    )


# -- replicas that die or freeze at a chosen point ---------------------------------------------------------------------
#
#         store proxy              broker proxy             store proxy
#   claim ----------> answer ... publish ----------> ... settle ----------> answer
#                 |                 |                       |
#       the answer is held   the message is held     the request is held

CLAIM, SETTLE = sha_of("claim"), sha_of("settle")

CLAIM_TTL = 1.5


def claims(entry: str) -> Any:
    return lambda request: CLAIM in request and entry.encode() in request


def settles(entry: str) -> Any:
    return lambda request: SETTLE in request and entry.encode() in request


def publishes(entry: str) -> Any:
    return lambda request: b"LPUSH" in request and b'"entry": "%b"' % entry.encode() in request


def shared(pending: list[Pending]) -> list[Pending]:
    """Those that the other release may take over."""
    return [each for each in pending if each.entry != "old"]


class Couple(Beats):
    """Two replicas, ``a`` and ``b``, each with a way of its own to the broker and to the store, and a worker.

    A rolling update goes on all the time: only ``a`` knows the entry "old", and only ``b`` knows "new".
    """

    def __init__(self, fleet: Fleet, reader: Reader, book: Book, broker: Server, store: Server) -> None:
        super().__init__(fleet, reader, book, {})
        self.broker = {name: Proxy(broker.port) for name in "ab"}
        self.store = {name: Proxy(store.port) for name in "ab"}

    def start(self, *names: str, **settings: Any) -> list[Process]:
        for name in names:
            entries = {"one": 1.0, "third": 0.3, {"a": "old", "b": "new"}[name]: 1.0}
            self.alive[name] = self.fleet.beat(
                name,
                {
                    entry: every(seconds, "tick", args=[f"{self.fleet.queue}-{entry}"])
                    for entry, seconds in entries.items()
                },
                broker_url=self.broker[name].url,
                lockbeat_redis_url=self.store[name].url,
            )
        return [self.alive[name] for name in names]

    def make_whole(self) -> None:
        """Undo whatever was done to the replicas, until both are at work."""
        for way in (*self.broker.values(), *self.store.values()):
            way.restore()
        for beat in self.alive.values():
            beat.thaw()
        self.start(*(name for name in "ab" if name not in self.alive))
        wait_until(lambda: len(self.joined()) == 2, 30, "both replicas have joined")
        at = time.monotonic()
        wait_until(lambda: {"old", "new"} <= {each.entry for each in self.reader.arrivals(since=at)}, 20, "both beat")

    def catch(self, trap: Trap) -> list[Pending]:
        """Wait until ``a`` is held there; return what it has claimed. Meanwhile ``b`` is a little slower than it is."""
        self.store["b"].delay(0.02)
        wait_until(lambda: trap.caught, 20, "a is in the trap")
        self.store["b"].restore()
        pending = self.book.pending(self.alive["a"].pid)
        assert pending
        return pending

    def taken_over(self, pending: Pending, timeout: float = CLAIM_TTL + SLACK) -> Arrival:
        """What ``b`` publishes in place of ``a``."""

        def by_b() -> list[Arrival]:
            return [each for each in self.reader.of(pending.entry, pending.run) if each.pid == self.alive["b"].pid]

        wait_until(by_b, timeout, f"b takes {pending} over")
        assert {each.task_id for each in self.reader.of(pending.entry, pending.run)} == {pending.task_id}
        return by_b()[0]

    def assert_bodies_entered_once(self, witness: Any) -> None:
        """P2, as the tasks themselves tell it."""
        for entry in ("one", "third", "old", "new"):
            key = f"{self.fleet.queue}-{entry}"
            runs = {each.run for each in self.reader.arrivals(entry)}
            wait_until(lambda: {line["run"] for line in witness.lines(key, "tick")} >= runs, 20, f"{entry} has run")  # noqa: B023
            run = [line["run"] for line in witness.lines(key, "tick")]
            assert len(run) == len(set(run)), entry

    def close(self) -> None:
        for proxy in (*self.broker.values(), *self.store.values()):
            proxy.close()


@pytest.fixture(scope="module")
def everlasting_couple(broker: Server, locks: Server, witness_server: Server, tmp_path_factory) -> Iterator[Couple]:
    with contextlib.ExitStack() as stack:
        directory = tmp_path_factory.mktemp("couple")
        fleet = stack.enter_context(contextlib.closing(Fleet(broker, witness_server, directory)))
        fleet.settings |= {
            "lockbeat_driver": "redis",
            "lockbeat_redis_url": locks.url,
            "lockbeat_claim_ttl": CLAIM_TTL,
            "lockbeat_key_prefix": f"{fleet.queue}:",
        }
        reader = Reader(broker, fleet.queue, pass_on_to=fleet.queue_of("worker"))
        stack.enter_context(contextlib.closing(reader))
        book = stack.enter_context(contextlib.closing(Book(server=locks, prefix=f"{fleet.queue}:")))
        couple = stack.enter_context(contextlib.closing(Couple(fleet, reader, book, broker, locks)))
        couple.start("a", "b")
        # it takes its messages from the reader, not from the beats
        fleet.workers("worker", pool="solo", concurrency=1, shared=False)
        couple.make_whole()
        yield couple


@pytest.fixture
def couple(everlasting_couple: Couple, witness) -> Iterator[Couple]:
    """Two replicas at work; whatever a test does to them, each run is there once in the end."""
    yield everlasting_couple
    everlasting_couple.make_whole()
    everlasting_couple.assert_bodies_entered_once(witness)


def test_a_beat_killed_between_claim_and_publish_delays_its_claims_by_the_ttl_and_nothing_else(couple):
    trap = couple.store["a"].trap(claims("one"), answer=True)
    pending = couple.catch(trap)
    at = time.monotonic()
    couple.kill("a")
    trap.drop()
    for each in shared(pending):
        arrival = couple.taken_over(each)
        assert len(couple.reader.of(each.entry, each.run)) == 1
        assert arrival.at - at > CLAIM_TTL - 0.5
        print(f"{each.entry} taken over {arrival.at - at:.2f} s after the death")
    couple.reader.wait_for_more("new")
    # those do not wait that were not in dead hands
    assert couple.reader.longest_gap("new", since=at - 1) <= 1.5
    assert "third" in {each.entry for each in pending} or couple.reader.longest_gap("third", since=at) <= 0.8


def test_a_beat_killed_between_publish_and_settle_is_repeated_under_the_same_task_id(couple):
    trap = couple.store["a"].trap(settles("one"))
    pending = couple.catch(trap)
    for each in pending:
        wait_until(lambda: couple.reader.of(each.entry, each.run), 5, "it had been published")  # noqa: B023
    at = time.monotonic()
    couple.kill("a")
    trap.drop()
    for each in shared(pending):
        arrival = couple.taken_over(each)
        assert len(couple.reader.of(each.entry, each.run)) == 2
        print(f"{each.entry} repeated {arrival.at - at:.2f} s after the death")


def test_a_claim_of_an_entry_that_only_the_other_release_knows_is_left_to_it(couple):
    trap = couple.broker["a"].trap(publishes("old"))
    pending = [each for each in couple.catch(trap) if each.entry == "old"]
    assert len(pending) == 1
    at = time.monotonic()
    couple.kill("a")
    trap.drop()
    # it is overdue, told to the other release again and again, and in nobody's way
    wait_until(lambda: time.monotonic() > at + CLAIM_TTL + 0.5)
    couple.reader.wait_for_more("one")
    assert couple.reader.of("old", pending[0].run) == []
    assert couple.reader.longest_gap("new", since=at) <= 1.5
    (again,) = couple.start("a")
    wait_until(lambda: couple.reader.of("old", pending[0].run), message="the old release publishes it")
    (arrival,) = couple.reader.of("old", pending[0].run)
    assert (arrival.task_id, arrival.pid) == (pending[0].task_id, again.pid)


def test_a_beat_that_ends_while_it_publishes_hands_over_at_once(couple):
    a = couple.alive["a"]
    trap = couple.broker["a"].trap(publishes("one"))
    pending = couple.catch(trap)
    at = time.monotonic()
    couple.alive.pop("a")
    assert a.terminate() == 0
    ended = time.monotonic()
    trap.drop()
    for each in shared(pending):
        arrival = couple.taken_over(each)
        print(f"ended in {ended - at:.2f} s, {each.entry} published {arrival.at - ended:.2f} s after the end")
        assert arrival.at - ended < CLAIM_TTL / 2


def test_a_beat_that_ends_while_it_waits_to_hear_of_its_claims_hands_them_over_at_once(couple):
    a = couple.alive["a"]
    trap = couple.store["a"].trap(claims("one"), answer=True)
    pending = couple.catch(trap)
    couple.alive.pop("a")
    assert a.terminate() == 0
    ended = time.monotonic()
    for each in shared(pending):
        arrival = couple.taken_over(each)
        print(f"{each.entry} published {arrival.at - ended:.2f} s after the end")
        assert arrival.at - ended < CLAIM_TTL / 2


def test_a_beat_frozen_between_claim_and_publish_publishes_nothing_of_it(couple):
    a = couple.alive["a"]
    trap = couple.store["a"].trap(claims("one"), answer=True)
    pending = couple.catch(trap)
    at = time.monotonic()
    a.freeze()
    trap.release()  # the answer waits for it in the kernel
    pending = shared(pending)
    for each in pending:
        couple.taken_over(each)
    wait_until(lambda: time.monotonic() > at + 2 * CLAIM_TTL)
    a.thaw()
    thawed = time.monotonic()
    wait_until(
        lambda: any(each.pid == a.pid for each in couple.reader.arrivals(since=thawed)), message="it beats again"
    )
    couple.reader.wait_for_more("old", count=2)
    for each in pending:
        assert len(couple.reader.of(each.entry, each.run)) == 1


def test_a_beat_frozen_between_publish_and_settle_is_repeated_once_under_the_same_task_id(couple):
    a = couple.alive["a"]
    trap = couple.store["a"].trap(settles("one"))
    pending = couple.catch(trap)
    at = time.monotonic()
    a.freeze()
    pending = shared(pending)
    for each in pending:
        couple.taken_over(each)
    trap.release()  # so the store hears of it late
    wait_until(lambda: time.monotonic() > at + 2 * CLAIM_TTL)
    a.thaw()
    couple.reader.wait_for_more("old", count=2)
    for each in pending:
        assert len(couple.reader.of(each.entry, each.run)) == 2
        assert f"task {each.task_id} of entry '{each.entry}' may have been sent twice" in a.log()


def test_a_message_that_was_on_its_way_when_its_beat_froze_is_a_copy(couple):
    a = couple.alive["a"]
    trap = couple.broker["a"].trap(publishes("one"))
    pending = shared(couple.catch(trap))
    a.freeze()
    for each in pending:
        couple.taken_over(each)
    a.thaw()
    trap.release()
    couple.reader.wait_for_more("old", count=2)
    for each in pending:
        (by_b, by_a) = couple.reader.of(each.entry, each.run)
        assert (by_a.pid, by_a.task_id) == (a.pid, by_b.task_id)


DISTURBANCES = (
    lambda way: way.cut(),
    lambda way: way.delay(0.2),
    lambda way: way.answer_late(0.5),
    lambda way: way.black_hole(),
    lambda way: way.trap(lambda request: SETTLE in request or b"LPUSH" in request),
    lambda way: way.trap(lambda request: SETTLE in request or b"LPUSH" in request, answer=True),
)


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(5.0, id="short"),
        pytest.param(SOAK, id="soak", marks=[pytest.mark.soak, pytest.mark.timeout(SOAK + 300)]),
    ],
)
def test_ways_that_are_cut_slow_and_late_lose_and_double_no_tick(couple, seconds):
    chance = random.Random()
    ways = [*couple.broker.values(), *couple.store.values()]
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        way = chance.choice(ways)
        chance.choice(DISTURBANCES)(way)
        time.sleep(chance.uniform(0.1, 0.6))
        if chance.random() < 0.5:
            way.cut()
        way.restore()
    couple.reader.wait_for_more("old", "new")  # both are at work again
    assert all(beat.process.poll() is None for beat in couple.alive.values())
    if seconds == SOAK:  # else see below, once for all of these tests
        couple.stop()
        couple.assert_each_run_once()


def test_the_couple_has_lost_and_doubled_nothing_in_all_of_this(everlasting_couple, witness):
    everlasting_couple.stop()
    everlasting_couple.assert_each_run_once()
    everlasting_couple.assert_bodies_entered_once(witness)


# -- a broker and a store that are gone for a while --------------------------------------------------------------------

#: How long they are gone. The beats try again after 2 s at most.
GONE = 2.5
TRIES_AGAIN = 2.0


class Sheltered(Beats):
    """Two replicas with a broker and a store of their own, whose disks outlive them."""

    def __init__(self, fleet: Fleet, reader: Reader, book: Book, broker: Server, store: Server) -> None:
        schedule = {"one": every(1.0), "fast": every(0.25)}
        super().__init__(fleet, reader, book, schedule)
        self.broker, self.store = broker, store

    @contextlib.contextmanager
    def idle(self) -> Iterator[None]:
        """They neither end nor spin, in their work or in what they tell."""
        beats = list(self.alive.values())
        cpu = sum(beat.cpu_seconds() for beat in beats)
        lines = self.told("\n")
        yield
        assert all(beat.process.poll() is None for beat in beats)
        cpu = sum(beat.cpu_seconds() for beat in beats) - cpu
        lines = self.told("\n") - lines
        print(f"in {GONE} s without: {cpu:.2f} s of CPU, {lines} log lines")
        assert cpu < 1.0
        assert lines <= 20 * GONE  # "Sending due task" at each try

    def told(self, text: str) -> int:
        return sum(beat.log().count(text) for beat in self.alive.values())


@pytest.fixture(scope="module")
def sheltered(witness_server: Server, tmp_path_factory) -> Iterator[Sheltered]:
    with contextlib.ExitStack() as stack:
        broker, store = (stack.enter_context(Server(persistent=True)) for _ in range(2))
        directory = tmp_path_factory.mktemp("sheltered")
        fleet = stack.enter_context(contextlib.closing(Fleet(broker, witness_server, directory)))
        fleet.settings |= {
            "lockbeat_driver": "redis",
            "lockbeat_redis_url": store.url,
            "lockbeat_redis_options": {"socket_timeout": 0.3, "socket_connect_timeout": 0.3},
            "lockbeat_claim_ttl": CLAIM_TTL,
        }
        reader = stack.enter_context(contextlib.closing(Reader(broker, fleet.queue)))
        book = stack.enter_context(contextlib.closing(Book(server=store)))
        beats = Sheltered(fleet, reader, book, broker, store)
        beats.start("a", "b")
        wait_until(lambda: len(beats.joined()) == 2, 30, "both replicas have joined")
        reader.wait_for_more("fast")
        yield beats


def test_what_is_due_while_the_broker_is_dead_is_published_once_when_it_is_back(sheltered):
    reader, book = sheltered.reader, sheltered.book
    before = book.claimed()
    gone = time.monotonic()
    sheltered.broker.kill()
    with sheltered.idle():
        wait_until(lambda: time.monotonic() > gone + GONE)
    claimed = book.claimed()
    sheltered.broker.restart()
    back = time.monotonic()
    wait_until(lambda: reader.arrivals(since=back), TRIES_AGAIN + SLACK, "they publish again")
    print(f"published {reader.arrivals(since=back)[0].at - back:.2f} s after the broker was back; {before} {claimed}")
    reader.wait_for_more("one", count=2)
    # what became due meanwhile is one run, beside those that had been claimed before anybody knew
    assert claimed["fast"] - before["fast"] <= 3
    for entry in ("one", "fast"):
        runs = [each.run for each in reader.firsts(entry)]
        assert runs == sorted(runs), f"{entry} out of order: {runs}"
    assert sheltered.told("beat cannot publish") <= 2


def test_a_broker_that_hangs_gets_every_tick_in_the_end(sheltered):
    gone = time.monotonic()
    sheltered.broker.pause()
    with sheltered.idle():
        wait_until(lambda: time.monotonic() > gone + GONE)
    sheltered.broker.resume()
    sheltered.reader.wait_for_more("one", count=2, timeout=TRIES_AGAIN + SLACK + 2)


def test_a_broker_that_refuses_gets_every_tick_in_the_end_and_is_told_of_once(sheltered):
    told = sheltered.told("beat cannot publish")
    with sheltered.broker.client() as client:
        gone = time.monotonic()
        client.config_set("maxmemory", 1)
        try:
            with sheltered.idle():
                wait_until(lambda: time.monotonic() > gone + GONE)
        finally:
            client.config_set("maxmemory", 0)
    sheltered.reader.wait_for_more("one", count=2, timeout=TRIES_AGAIN + SLACK + 2)
    assert sheltered.told("beat cannot publish") - told <= 2


@pytest.mark.parametrize("how", ["dead", "hangs"])
def test_beats_whose_store_is_gone_wait_and_say_so_once(sheltered, how):
    sheltered.reader.wait_for_more("fast")  # it is there before it is gone
    said = sheltered.told("beat waits for the store")
    gone = time.monotonic()
    (sheltered.store.kill if how == "dead" else sheltered.store.pause)()
    with sheltered.idle():
        wait_until(lambda: time.monotonic() > gone + GONE)
    # not later: on a busy host a store that is back may miss the time-out of 0.3 s, which is another outage
    assert sheltered.told("beat waits for the store") - said == 2
    (sheltered.store.restart if how == "dead" else sheltered.store.resume)()
    back = time.monotonic()
    sheltered.reader.wait_for_more("fast", timeout=TRIES_AGAIN + SLACK)
    print(f"published {sheltered.reader.arrivals(since=back)[0].at - back:.2f} s after the store was back")
    sheltered.reader.wait_for_more("one", count=2)


def test_the_sheltered_have_lost_and_doubled_nothing_in_all_of_this(sheltered):
    sheltered.stop()
    sheltered.assert_each_run_once()


# -- deploys -----------------------------------------------------------------------------------------------------------


def test_a_rolling_update_delays_no_tick_and_an_entry_that_comes_back_has_no_past(make_beats):
    old = {"common": every(1.0), "old": every(1.0), "faster": every(30.0)}
    new = {"common": every(1.0), "new": every(1.0), "faster": every(0.5)}
    beats = make_beats(old, lockbeat_claim_ttl=20)
    reader = beats.reader
    beats.start("a", "b")
    wait_until(lambda: len(beats.joined()) == 2, 30, "the old release is there")
    reader.wait_for_more("common", "old")
    since = time.monotonic()
    for goes, comes in ("a", "c"), ("b", "d"):
        beats.start(comes, schedule=new)
        wait_until(lambda: comes in beats.joined(), 30, f"{comes} has joined")  # noqa: B023
        assert beats.alive.pop(goes).terminate() == 0
    updated = time.monotonic()
    reader.wait_for_more("common", "new", "faster")
    wait_until(lambda: time.monotonic() > updated + 1.5)
    assert reader.arrivals("old", since=updated + 0.5) == []
    beats.start("back")
    wait_until(lambda: "back" in beats.joined(), 30, "the old release is back")
    joined = time.monotonic()
    reader.wait_for_more("old")
    print(f"{reader.firsts('old')[-1].at - joined:.2f} s after it came back")
    assert reader.firsts("old")[-1].at - joined > 0.5
    assert reader.longest_gap("common", since=since) <= 1.5
    beats.stop()
    beats.assert_each_run_once()


# -- clocks ------------------------------------------------------------------------------------------------------------


def test_replicas_whose_clocks_differ_fire_each_mark_of_the_clock_once(make_beats, tmp_path):
    marks = {"mark": every("marks 2"), "second": every(1.0)}
    beats = make_beats(marks, lockbeat_claim_ttl=CLAIM_TTL)
    reader = beats.reader
    beats.start("fast", environment=WallClock(tmp_path / "fast.clock").set(3).environment)
    beats.start("slow", environment=WallClock(tmp_path / "slow.clock").set(-3).environment)
    wait_until(lambda: len(beats.joined()) == 2, 30, "both have joined")
    since, joining = time.monotonic(), len(reader.firsts("mark"))
    reader.wait_for_more("mark", count=3)

    def assert_each_mark_once() -> None:
        due = [datetime.fromisoformat(each.due).timestamp() for each in reader.firsts("mark")]
        assert all(abs(each - 2 * round(each / 2)) < 0.5 for each in due), due
        apart = [round(b - a) for a, b in pairwise(due)]
        assert min(apart) >= 2, apart
        # whoever comes may find some marks overdue by its clock, and has one run for them
        assert all(each == 2 for each in apart[joining + 1 :]), apart

    assert_each_mark_once()
    assert reader.longest_gap("second", since=since) <= 1.5
    # its ticks are behind it: the others fire none of them again, and come to the next in their own time
    beats.kill("fast")
    reader.wait_for_more("mark", count=2)
    assert {each.pid for each in reader.firsts("mark")[-2:]} == {beats.alive["slow"].pid}
    assert_each_mark_once()
    for name, size in ("fast", "+"), ("slow", "-"):
        log = next(each for each in beats.fleet.processes if each.name == name).log()
        (told,) = re.findall("the clock of this host differs from the store's by ([+-][0-9.]+) s", log)
        assert told[0] == size
        assert abs(abs(float(told)) - 3) <= 0.2
    beats.stop()
    beats.assert_each_run_once()


# -- many entries ------------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_a_hundred_thousand_entries_start_in_seconds_and_hold_up_none_of_the_short_ones(make_beats):
    more = 100_000
    first = {"first": every(0.5)}
    # entries are listed in the order in which they are made, and these are the last
    beats = make_beats({"last": every(0.5)})
    (beat,) = beats.start("a", test_first_entries=first, test_more_entries=[more])
    wait_until(lambda: beats.reader.arrivals("first"), 40, "the first tick")
    ticking = time.monotonic() - beat.started_at
    wait_until(lambda: beats.reader.arrivals("last"), 40, "all entries are listed")
    all_listed = time.monotonic()
    beats.reader.wait_for_more("last", count=2)
    gap, steady = beats.reader.longest_gap("first"), beats.reader.longest_gap("last", since=all_listed)
    print(
        f"ticks after {ticking:.1f} s, all after {all_listed - beat.started_at:.1f} s; gaps {gap:.2f} s, then {steady:.2f} s"
    )
    cpu = beat.cpu_seconds()
    print(f"{cpu:.1f} s of CPU")
    assert cpu < 15
    assert ticking < all_listed - beat.started_at - 1, "it did not tick before it had listed all"
    assert max(gap, steady) <= 2.0
    assert beats.book.listed_by(beat.pid) == more + 2


@pytest.mark.soak
def test_replicas_share_the_work_of_many_entries(make_beats):
    beats = make_beats({}, lockbeat_claim_ttl=30)
    a, b = beats.start("a", "b", test_more_entries=[2000, 1.0])
    wait_until(lambda: {a.pid, b.pid} <= {each.pid for each in beats.reader.arrivals()}, 30, "both publish")
    since = time.monotonic()
    wait_until(lambda: len(beats.reader.arrivals(since=since)) >= 3000, 20, "3,000 ticks")
    took = time.monotonic() - since
    counts = Counter(each.pid for each in beats.reader.arrivals(since=since))
    print(f"{sum(counts.values()) / took:.0f}/s: {counts[a.pid]} and {counts[b.pid]}")
    assert min(counts[a.pid], counts[b.pid]) >= sum(counts.values()) / 4
    beats.stop()
    beats.assert_each_run_once()


# -- beats within workers ----------------------------------------------------------------------------------------------


def test_the_beats_of_two_workers_on_one_host_fire_each_tick_once_and_take_over(make_fleet, broker, witness, key):
    fleet = make_fleet(lockbeat_driver="memory", lockbeat_claim_ttl=CLAIM_TTL)
    schedule = {"one": every(1.0, "tick", args=[key]), "fast": every(0.25, "tick", args=[f"{key}-fast"])}
    book = Book(path=fleet.directory / "memory")

    def ticks(key: str) -> list[dict[str, Any]]:
        return witness.lines(key, "tick")

    with Proxy(broker.port) as way, Proxy(broker.port) as other_way:
        embedded = {"concurrency": 1, "more": ["-B", "--scheduler", "celery_lockbeat:LockedScheduler"]}
        embedded["beat_schedule"] = schedule
        # the doomed one takes no messages: those that die with a worker are another matter
        (doomed,) = fleet.workers("doomed", shared=False, broker_url=way.url, **embedded)
        (other,) = fleet.workers("other", broker_url=other_way.url, **embedded)
        wait_until(lambda: len({line["origin"] for line in ticks(f"{key}-fast")}) == 2, message="both beats fire")
        trap = way.trap(publishes("one"))
        wait_until(lambda: trap.caught, message="the doomed one publishes")
        (pending,) = [each for each in book.pending() if each.entry == "one"]
        at = time.monotonic()
        doomed.kill()
        trap.drop()
        wait_until(
            lambda: any(line["run"] == pending.run for line in ticks(key)), message="the tick of the dead is taken over"
        )
        print(f"taken over {time.monotonic() - at:.2f} s after the death")
        wait_until(lambda: max(line["run"] for line in ticks(key)) > pending.run + 1, message="the other goes on")

        trap = other_way.trap(publishes("one"))
        wait_until(lambda: trap.caught, message="the other publishes")
        at = time.monotonic()
        (left_behind,) = [each for each in book.pending() if each.entry == "one"]
        other.terminate()
        print(f"ended in {time.monotonic() - at:.2f} s")
        trap.drop()
        # what it could not publish is for whoever comes, at once
        assert all(each.overdue for each in book.pending())
        assert book.has_left(left_behind.pid)

    for each, entry in (key, "one"), (f"{key}-fast", "fast"):
        runs = [line["run"] for line in ticks(each)]
        assert len(runs) == len(set(runs)), entry
        assert set(runs) >= set(range(1, max(runs))), entry
    assert [line["id"] for line in ticks(key) if line["run"] == pending.run] == [pending.task_id]

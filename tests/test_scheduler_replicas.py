"""Several beats over one store, in simulated time: clocks that differ, deaths, freezes, a store and a broker that fail."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections import defaultdict

import pytest
from celery import signals
from celery.schedules import crontab
from kombu import Producer
from simulation import every

from celery_lockbeat.beat.publisher import Publisher
from celery_lockbeat.schedules.when import Timeout
from celery_lockbeat.stores.base import BACKLOG

HOUR = 3600.0
TTL = 5.0


def gaps(times):
    return [after - before for before, after in itertools.pairwise(times)]


def ids_of(messages):
    """The task ids of each run of each entry."""
    ids = defaultdict(set)
    for message in messages:
        ids[message.entry, message.run].add(message.id)
    return ids


def assert_each_once(simulation, entry="e"):
    runs = simulation.world.broker.runs(entry)
    assert runs == list(range(1, len(runs) + 1))


@pytest.fixture
def before_publish():
    """Call something before each publish, from within."""
    receivers = []

    def connect(receiver):
        receivers.append(receiver)
        signals.before_task_publish.connect(receiver)

    yield connect
    for receiver in receivers:
        signals.before_task_publish.disconnect(receiver)


@pytest.fixture
def in_batches(monkeypatch):
    """Publish in batches over the simulated transport, as kombu 5.7 does over those that can."""

    @contextlib.contextmanager
    def batch(producer):
        channel, waiting = producer.channel, []
        put = channel._put
        channel._put = lambda *message, **_: waiting.append(message)
        try:
            yield
        finally:
            channel._put = put
        for message in waiting:
            put(*message)

    def publish_in_batches():
        monkeypatch.setattr(Publisher, "_can_batch", lambda _self: True)
        monkeypatch.setattr(Producer, "batch", batch, raising=False)

    return publish_in_batches


# -- together ----------------------------------------------------------------------------------------------------------


def test_of_many_replicas_one_publishes_each_tick(simulation):
    schedule = {"e": every(1, "e"), "cron": every(crontab(), "cron")}
    simulation.world.run(*(simulation.beat(schedule) for _ in range(4)), seconds=121)
    assert_each_once(simulation)
    assert simulation.times()["cron"] == pytest.approx([60, 120], abs=0.01)
    assert len(simulation.times()["e"]) == 120
    assert gaps(simulation.times()["e"]) == pytest.approx([1.0] * 119, abs=0.01)


def test_the_death_of_all_replicas_but_one_delays_no_tick(simulation):
    beats = [simulation.beat({"e": every(1)}) for _ in range(3)]
    for alive in (3, 2, 1):
        simulation.world.run(*beats[:alive], seconds=20.5)
    assert_each_once(simulation)
    assert max(gaps(simulation.times()["t"])) < 1.05


def test_a_replica_that_joins_repeats_nothing(simulation):
    beats = []
    for _ in range(4):
        beats.append(simulation.beat({"e": every(10), "cron": every(crontab(), "cron")}))
        simulation.world.run(*beats, seconds=33)
    assert_each_once(simulation)
    assert simulation.times()["t"] == pytest.approx(range(10, 132, 10), abs=0.1)
    assert simulation.times()["cron"] == pytest.approx([60, 120], abs=0.1)


# -- clocks ------------------------------------------------------------------------------------------------------------


def some_of(*skews, soaked):
    return pytest.mark.parametrize("skews", [*skews, *(pytest.param(each, marks=pytest.mark.soak) for each in soaked)])


@some_of((3, -3), (-3, 0, 3), soaked=[(-3, 3), (0, 3, -3)])
def test_replicas_whose_clocks_differ_by_seconds_fire_each_tick_once(simulation, skews):
    simulation.restart("2026-06-01T00:00:20+00:00")
    schedule = {"cron": every(crontab(), "cron"), "ten": every(10, "ten"), "two": every(2, "two")}
    beats = [simulation.beat(schedule, skew=skew) for skew in skews]
    simulation.world.run(*beats, seconds=125.5)
    assert simulation.times()["cron"] == pytest.approx([40, 100], abs=3.1)
    for entry, seconds in (("ten", 10), ("two", 2)):
        assert_each_once(simulation, entry)
        # the first and the last may be as much off as the clocks are
        assert abs(len(simulation.times()[entry]) - int(125 / seconds)) <= 1 + 6 / seconds
        assert min(gaps(simulation.times()[entry])) > seconds * 0.99
        assert max(gaps(simulation.times()[entry])) < seconds + 0.1


@some_of((3, -3), (0, -3), soaked=[(-3, 3), (3, 0)])
def test_a_crontab_fires_once_when_one_with_another_clock_goes_on_alone(simulation, skews):
    simulation.restart("2026-06-01T00:00:20+00:00")
    beats = [simulation.beat({"cron": every(crontab(), "cron")}, skew=skew) for skew in skews]
    simulation.world.run(*beats, seconds=38)  # the fast one has fired, the slow one is yet to see it
    beats[0].close()
    simulation.world.run(beats[1], seconds=66)
    assert simulation.times()["cron"] == pytest.approx([40, 100], abs=3.1)


@some_of((3, -3), (-3, 0), soaked=[(-3, 3), (0, 3)])
def test_intervals_keep_their_pace_when_one_with_another_clock_goes_on_alone_or_joins(simulation, skews):
    beats = [simulation.beat({"e": every(10)}, skew=skew) for skew in skews]
    simulation.world.run(*beats, seconds=55)
    beats.pop(0).close()
    simulation.world.run(*beats, seconds=60)
    beats.append(simulation.beat({"e": every(10)}, skew=skews[0]))
    simulation.world.run(*beats, seconds=60)
    beats.pop(0).close()
    simulation.world.run(*beats, seconds=30)
    assert_each_once(simulation)
    assert gaps(simulation.times()["t"]) == pytest.approx([10] * 19, abs=0.1)


@pytest.mark.parametrize("skew", [3.0, -3.0])
def test_a_clock_that_differs_from_the_stores_is_told_once_with_its_size(simulation, caplog, skew):
    beat = simulation.beat({"e": every(1)}, skew=skew)
    simulation.world.run(beat, simulation.beat({"e": every(1)}, skew=0.5), seconds=200)
    told = [record.getMessage() for record in caplog.records if "differs" in record.getMessage()]
    assert len(told) == 1
    assert f"{skew:+.1f} s" in told[0]


def test_a_wall_clock_that_is_set_is_followed(simulation):
    beat = simulation.beat({"cron": every(crontab(minute=0))}, beat_max_loop_interval=5)
    simulation.world.run(beat, seconds=60)
    beat.skew = 1800
    simulation.world.run(beat, seconds=1800)
    assert simulation.times()["t"] == pytest.approx([1800], abs=1)


# -- deaths and freezes ------------------------------------------------------------------------------------------------


class Death(BaseException):
    """In place of a SIGKILL."""


def die(**_):
    raise Death


def test_what_a_replica_has_claimed_when_it_dies_is_taken_over_under_the_same_task_id(simulation):
    first, second = simulation.beat({"e": every(60)}), simulation.beat({"e": every(60)})
    simulation.world.run(first, second, seconds=30)
    published = []
    first.scheduler._publisher.publish = published.extend  # it gets so far
    simulation.world.run(first, seconds=30.5)
    (tick,) = published
    assert simulation.messages == []
    simulation.world.run(second, seconds=65)
    assert [message.run for message in simulation.messages] == [1, 2]
    assert simulation.messages[0].id == tick.task_id
    assert simulation.messages[0].headers["lockbeat"]["due"] == tick.details["due"] == "2026-06-01T00:01:00.000+00:00"
    assert 60 + TTL <= simulation.messages[0].at <= 60 + TTL + 0.1
    assert simulation.messages[1].at == pytest.approx(120, abs=0.1)


@pytest.mark.parametrize("moment", ["before", "within", "within a batch"])
def test_a_replica_that_was_frozen_for_longer_than_its_claims_last_publishes_none_of_them(
    simulation, before_publish, in_batches, moment
):
    entries = {f"e{number}": every(60) for number in range(5)}
    frozen, other = simulation.beat(entries), simulation.beat(entries)
    simulation.world.run(frozen, other, seconds=30)
    world, freezing = simulation.world, []

    def freeze(**_):
        if not freezing:
            freezing.append(True)
            world.run(other, seconds=2 * TTL)

    if moment == "within a batch":
        in_batches()
    if moment != "before":
        before_publish(freeze)
    else:
        claim = simulation.store.store.beats.claim

        def claim_and_freeze(*args, **options):
            answer = claim(*args, **options)
            if args[2]:
                freeze()
            return answer

        simulation.store.beats.claim = claim_and_freeze
    other.wakes = 60.2
    simulation.world.run(frozen, seconds=31)
    simulation.world.run(frozen, other, seconds=20)
    runs = defaultdict(list)
    for message in simulation.messages:
        runs[message.entry].append((message.run, message.id))
    assert runs.keys() == entries.keys()
    # the one in whose publish it froze may come twice, under one id; no other does
    assert sorted(len(each) for each in runs.values()) in ([1] * 5, [1] * 4 + [2] * (moment == "within"))
    assert all(len(set(each)) == 1 for each in runs.values())


def test_a_beat_that_is_closed_hands_over_what_it_has_claimed_at_once(simulation):
    first, second = simulation.beat({"e": every(60)}), simulation.beat({"e": every(60)})
    simulation.world.run(first, second, seconds=30)
    first.scheduler._publisher.publish = lambda _ticks: None
    simulation.world.run(first, seconds=30.5)
    assert simulation.messages == []
    first.close()
    first.close()
    simulation.world.run(second, seconds=2)
    (message,) = simulation.messages
    assert message.run == 1
    assert message.at < 62


def test_a_beat_that_is_closed_in_the_middle_of_a_tick_by_a_signal_settles_when_it_is_unwound(
    simulation, before_publish
):
    first, second = simulation.beat({"e": every(60), "f": every(60)}), simulation.beat({"e": every(60), "f": every(60)})
    simulation.world.run(first, second, seconds=30)
    signalled = []

    # what celery/apps/beat.py does at SIGTERM
    put = simulation.world.broker.put

    def put_once(*args):
        put(*args)
        if not signalled:
            signalled.append(True)
            first.scheduler.close()
            raise SystemExit

    simulation.world.broker.put = put_once
    with pytest.raises(SystemExit):
        simulation.world.run(first, seconds=31)
    first.close()
    simulation.world.run(second, seconds=3)
    assert {message.entry for message in simulation.messages} == {"e", "f"}
    assert all(len(ids) == 1 for ids in ids_of(simulation.messages).values())
    assert simulation.messages[-1].at < 64


def test_a_beat_can_be_started_again_after_its_close(simulation):
    beat = simulation.beat({"e": every(10)})
    simulation.world.run(beat, seconds=25)
    beat.close()
    simulation.world.run(beat, seconds=25)
    assert_each_once(simulation)
    assert simulation.times()["t"] == pytest.approx([10, 20, 30, 40], abs=0.1)


def test_a_beat_that_never_ticked_is_closed_without_a_word_to_the_store(simulation):
    simulation.beat({"e": every(10)}).close()
    assert not simulation.store.calls


def test_a_timeout_fires_once_per_cold_start_and_not_for_one_that_joins(simulation):
    schedule = {"once": every(Timeout(5), "once"), "e": every(1)}
    first = simulation.beat(schedule)
    simulation.world.run(first, seconds=3)
    second = simulation.beat(schedule)
    simulation.world.run(first, second, seconds=20)
    assert simulation.times()["once"] == pytest.approx([5], abs=0.1)
    third = simulation.beat(schedule)
    first.close()
    simulation.world.run(second, third, seconds=20)
    second.close()
    simulation.world.run(third, seconds=20)
    assert len(simulation.times()["once"]) == 1
    third.close()
    simulation.world.run(simulation.beat(schedule), seconds=20)
    assert simulation.times()["once"] == pytest.approx([5, 68], abs=0.1)


def test_a_timeout_whose_beat_died_before_it_came_fires_at_its_time_by_one_that_has_joined(simulation):
    schedule = {"once": every(Timeout(30), "once")}
    first = simulation.beat(schedule)
    simulation.world.run(first, seconds=3)
    second = simulation.beat(schedule)
    simulation.world.run(first, second, seconds=10)
    simulation.world.run(second, seconds=40)
    assert simulation.times()["once"] == pytest.approx([30], abs=0.1)


# -- the store fails ---------------------------------------------------------------------------------------------------

OPERATIONS = ["join", "list_entries", "claim", "take_over", "settle"]


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_store_that_fails_now_and_then_costs_no_tick_and_doubles_none(simulation, operation, how):
    beats = [simulation.beat({"e": every(1), "f": every(3)}) for _ in range(2)]
    chance = random.Random(5)
    simulation.store.fails = lambda name: how if name == operation and chance.random() < 0.5 else None
    simulation.world.run(*beats, seconds=60)
    simulation.store.fails = lambda _name: None
    simulation.world.run(*beats, seconds=20)
    ids = ids_of(simulation.messages)
    assert all(len(each) == 1 for each in ids.values())
    runs = sorted(run for entry, run in ids if entry == "e")
    assert runs == list(range(1, len(runs) + 1))
    assert len(runs) > 40
    # a publish whose settling fails for long is repeated by another, under the same id
    if operation != "settle":
        assert len(simulation.messages) == len(ids)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_store_that_fails_for_minutes_is_waited_for_and_told_about_once_a_minute(simulation, caplog, operation):
    beat = simulation.beat({"e": every(10), "cron": every(crontab(), "cron")})
    if operation != "join":
        simulation.world.run(beat, seconds=15)
    if operation == "take_over":
        dead = simulation.beat({"e": every(10)})
        simulation.world.run(dead, seconds=2)
        dead.scheduler._publisher.publish = lambda _ticks: None
        simulation.world.run(dead, seconds=5)
    simulation.store.fails = lambda name: "before" if name == operation else None
    before, ticks = simulation.world.elapsed, beat.ticks
    simulation.world.run(beat, seconds=185)
    assert beat.ticks - ticks < 185 * 3
    complaints = [record for record in caplog.records if "waits for the store" in record.getMessage()]
    if operation != "list_entries":
        assert 3 <= len(complaints) <= 5
        assert "not carried out" in complaints[0].getMessage()
    simulation.store.fails = lambda _name: None
    simulation.world.run(beat, seconds=30)
    times = [at for at in simulation.times()["t"] if at > before + 185]
    assert 3 <= len(times) <= 5
    assert times[0] < before + 185 + 2.5
    runs = sorted(simulation.world.broker.runs("e"))
    assert runs == list(range(1, len(runs) + 1))


def test_ticks_that_were_due_while_the_store_was_away_are_one_when_it_is_back(simulation):
    beat = simulation.beat({"e": every(10), "cron": every(crontab(), "cron")})
    simulation.world.run(beat, seconds=15)
    simulation.store.fails = lambda _name: "before"
    simulation.world.run(beat, seconds=300)
    assert len(simulation.messages) == 1
    simulation.store.fails = lambda _name: None
    simulation.world.run(beat, seconds=3)
    assert sorted(message.task for message in simulation.messages[1:]) == ["cron", "t"]


def test_a_tick_whose_claims_answer_was_lost_keeps_its_task_id(simulation):
    beat = simulation.beat({"e": every(10)})
    simulation.world.run(beat, seconds=5)
    claimed = []
    claim = simulation.store.store.beats.claim

    def lose_the_answer(app, replica, claims, **options):
        claimed.extend(each.task_id for each in claims)
        return claim(app, replica, claims, **options)

    simulation.store.store.beats.claim = lose_the_answer
    simulation.store.fails = lambda name: "after" if name == "claim" else None
    simulation.world.run(beat, seconds=7)
    simulation.store.fails = lambda _name: None
    simulation.world.run(beat, seconds=3)
    (message,) = simulation.messages
    assert len(claimed) >= 2
    assert set(claimed) == {message.id}
    assert message.headers["lockbeat"]["due"] == "2026-06-01T00:00:10.000+00:00"


def test_a_claim_whose_answer_was_lost_for_long_is_published_by_another_and_not_again(simulation):
    cut_off, other = simulation.beat({"e": every(60)}), simulation.beat({"e": every(60)})
    simulation.world.run(cut_off, other, seconds=30)
    simulation.world.run(cut_off, seconds=29.9)
    simulation.store.fails = lambda _name: "after"
    simulation.world.run(cut_off, seconds=0.3)
    simulation.store.fails = lambda _name: None
    cut_off.wakes = simulation.world.elapsed + 4 * TTL
    simulation.world.run(cut_off, other, seconds=70)
    assert_each_once(simulation)
    assert [round(message.at) for message in simulation.messages] == [65, 120]


def test_a_store_that_has_lost_everything_gets_its_state_back_and_nothing_is_repeated(simulation, server, driver):
    if driver != "redis":
        pytest.skip("a server that is flushed")
    beats = [simulation.beat({"e": every(10), "once": every(Timeout(5), "once")}) for _ in range(2)]
    simulation.world.run(*beats, seconds=35)
    with server.client() as client:
        client.flushall()
    simulation.world.run(*beats, seconds=30)
    assert_each_once(simulation)
    assert simulation.times()["t"] == pytest.approx(range(10, 61, 10), abs=0.2)
    assert len(simulation.times()["once"]) == 1


# -- the broker fails --------------------------------------------------------------------------------------------------


def test_what_is_due_while_the_broker_is_down_is_published_in_order_when_it_is_back(simulation, caplog):
    beat = simulation.beat({"e": every(10), "f": every(25)})
    simulation.world.run(beat, seconds=15)
    simulation.world.broker.down = True
    ticks = beat.ticks
    simulation.world.run(beat, seconds=185)
    assert len(simulation.messages) == 1
    assert beat.ticks - ticks < 185 * 3
    complaints = [record for record in caplog.records if "cannot publish" in record.getMessage()]
    assert 3 <= len(complaints) <= 4
    simulation.world.broker.down = False
    simulation.world.run(beat, seconds=20)
    assert_each_once(simulation, "e")
    assert_each_once(simulation, "f")
    # those in hand, and then one each for all that were due
    assert (
        2 <= len([message for message in simulation.messages if message.entry == "e" and 200 < message.at < 203]) <= 3
    )


def test_with_many_replicas_too_what_the_broker_refused_is_published_once_and_in_order(simulation):
    beats = [simulation.beat({"e": every(1), "f": every(2.5)}) for _ in range(3)]
    for _ in range(3):
        simulation.world.run(*beats, seconds=5)
        simulation.world.broker.down = True
        simulation.world.run(*beats, seconds=12)
        simulation.world.broker.down = False
    simulation.world.run(*beats, seconds=12)
    assert_each_once(simulation, "e")
    assert_each_once(simulation, "f")


def test_a_broker_that_refuses_one_entry_alone_keeps_no_other_from_being_published(simulation):
    beat = simulation.beat({"bad": every(1, "bad"), "good": every(1, "good")})
    simulation.world.broker.refuses = lambda message: ConnectionResetError() if message.task == "bad" else None
    simulation.world.run(beat, seconds=60)
    good = simulation.times()["good"]
    assert "bad" not in simulation.times()
    assert len(good) > 25
    assert simulation.world.broker.runs("good") == list(range(1, len(good) + 1))
    assert beat.ticks < 60 * 10
    simulation.world.broker.refuses = lambda _message: None
    simulation.world.run(beat, seconds=20)
    bad = simulation.world.broker.runs("bad")
    assert sorted(bad) == list(range(1, len(bad) + 1))


def test_an_entry_that_cannot_be_sent_piles_up_no_more_claims_than_the_backlog(simulation, driver):
    beat = simulation.beat({"bad": every(1, "bad")}, lockbeat_claim_ttl=600)
    beat.scheduler._publisher.publish = lambda _ticks: None
    simulation.world.run(beat, seconds=60)
    answer = simulation.store.store.beats.claim(beat.app.main, "another", [], ttl=5)
    assert len(beat.scheduler._ledger.unsent) == BACKLOG
    assert answer.next_overdue is not None
    assert beat.ticks < 60 * 3


# -- all at once -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in (1, 2))])
def test_whatever_happens_each_tick_is_published_under_one_id_and_none_is_lost(simulation, seed):
    chance = random.Random(seed)
    world = simulation.world
    schedule = {f"every {n}": every(n, f"every {n}") for n in (1, 2.5, 7)} | {"cron": every(crontab(), "cron")}
    settings = {"lockbeat_claim_ttl": 2}
    beats = [simulation.beat(schedule, skew=chance.choice([0, 0, 0.5, -2]), **settings) for _ in range(3)]
    for _ in range(40):
        event = chance.choice(["kill", "close", "freeze", "store", "broker", "refuse", "nothing", "nothing"])
        some = chance.choice(beats)
        if event in ("kill", "close"):
            if event == "close":
                some.close()
            elif chance.random() < 0.7:
                # it dies with claims in its hands
                some.scheduler._publisher.publish = lambda _ticks: None
                world.run(*beats, seconds=chance.random() * 2)
            beats.remove(some)
            beats.append(simulation.beat(schedule, skew=chance.choice([0, 0, 0.5, -2]), **settings))
        elif event == "freeze":
            some.wakes = world.elapsed + chance.random() * 6
        elif event == "store":
            rate, how = chance.random(), chance.choice(["before", "after"])
            simulation.store.fails = lambda _name, rate=rate, how=how: how if chance.random() < rate else None
        elif event == "broker":
            world.broker.down = True
        elif event == "refuse":
            rate = chance.random()
            world.broker.refuses = lambda _m, rate=rate: ConnectionResetError() if chance.random() < rate else None
        world.run(*beats, seconds=chance.random() * 5)
        simulation.store.fails, world.broker.refuses, world.broker.down = lambda _n: None, lambda _m: None, False
    world.run(*beats, seconds=60)
    ids = ids_of(simulation.messages)
    assert all(len(each) == 1 for each in ids.values())
    for entry in schedule:
        runs = sorted(run for name, run in ids if name == entry)
        assert runs == list(range(1, len(runs) + 1)), entry
    elapsed = world.elapsed
    assert len([1 for name, _ in ids if name == "every 7"]) > elapsed / 7 * 0.6
    assert not any(beat.scheduler._ledger.unsent or beat.scheduler._ledger.handed_over for beat in beats)
    answer = simulation.store.store.beats.claim("simulated", "another", [], ttl=5)
    assert answer.overdue == []

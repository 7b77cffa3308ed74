"""The life of one hold against the clock: what is trusted, for how long, and how its loss is told."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from celery import Celery
from scripted import DOWN, ScriptedStore, Time, renewer
from servers import wait_until

import docs
from celery_lockbeat import ConfigurationError, Lock, LockLost, LockNotAcquired, StoreUnavailable, current_lock
from celery_lockbeat.locks import acquisition, lease
from celery_lockbeat.observe import observers as telling
from celery_lockbeat.options import LOCK_NAMES, LockKeywords
from celery_lockbeat.stores import Stores, stores_of
from celery_lockbeat.stores.base import Finished, Held

#: a lease of 30 s is trusted for 1 % less
TTL, TRUST = 30.0, 29.7


class Stage:
    """A Lock of 30 s, renewed every 10 s, whose time and whose store are scripted."""

    def __init__(self, monkeypatch, caplog, script, **options) -> None:
        self.time = Time()
        self.store = ScriptedStore(self.time, script)
        self.renewer, self.run_until = renewer(self.store, self.time)
        monkeypatch.setattr(acquisition, "monotonic", self.time)
        monkeypatch.setattr(lease, "monotonic", self.time)
        monkeypatch.setattr(acquisition, "renewer_of", lambda _: self.renewer)
        monkeypatch.setattr(Stores, "choose", lambda *_: (self.store, None))
        caplog.set_level(logging.INFO, "celery_lockbeat.events")
        self._records = caplog.records
        self.lock = Lock("key", app=Celery(set_as_current=False), ttl=TTL, **options)

    def told(self) -> list[str]:
        telling.finish()  # what a renewal finds out is told by another thread
        return [json.loads(r.getMessage())["event"] for r in self._records if r.name == "celery_lockbeat.events"]

    def asked(self) -> list[float]:
        return [when for when, _ in self.store.extensions]


@pytest.fixture
def stage(monkeypatch, caplog):
    return lambda *script, **options: Stage(monkeypatch, caplog, list(script), **options)


EVERY_SECOND = [float(second) for second in range(10, 30)]
LOST = ["lock_extend_failed", "lock_expired_before_finish"]


@pytest.mark.parametrize(
    ("answers", "until", "asked", "told", "remaining"),
    [
        pytest.param([], 35, [10, 20, 30], [], 30 + TRUST - 35, id="a renewal is asked for every interval"),
        pytest.param(
            [DOWN, DOWN],
            15,
            [10, 11, 12],
            ["lock_extend_failed"],
            12 + TRUST - 15,
            id="a failed renewal is tried again while the lease lasts, and told once",
        ),
        pytest.param(
            [DOWN, True, DOWN],
            23,
            [10, 11, 21, 22],
            ["lock_extend_failed", "lock_extend_failed"],
            22 + TRUST - 23,
            id="a failure after a success is told anew",
        ),
        pytest.param([DOWN] * 20, 29.6, EVERY_SECOND, LOST[:1], 0.1, id="until the lease has run out it is ours"),
        pytest.param([DOWN] * 20, TRUST, EVERY_SECOND, LOST, 0, id="a silent store loses it with the end of its trust"),
        pytest.param([True, False], 40, [10, 20], LOST, 0, id="a refused renewal loses it at once"),
        pytest.param(
            [ZeroDivisionError()], 12, [10, 11], LOST[:1], 11 + TRUST - 12, id="an error of the store's is a failure"
        ),
        pytest.param([5.0], 15, [10], [], 10 + TRUST - 15, id="a slow answer is trusted from when it was asked for"),
        pytest.param([TTL], 40, [10], LOST, 0, id="an answer that comes after its own lease grants nothing"),
    ],
)
def test_a_holds_timeline(stage, answers, until, asked, told, remaining):
    stage = stage(True, *answers)
    stage.lock.acquire()
    stage.run_until(until)
    assert stage.asked() == asked
    assert stage.told() == told
    assert stage.lock.remaining == pytest.approx(remaining)
    assert stage.lock.lost is (remaining == 0)


def test_a_lost_lock_is_neither_renewed_nor_released_and_ends_its_block_with_lock_lost(stage):
    stage = stage(True, False)
    with pytest.raises(LockLost), stage.lock:
        stage.run_until(15)
        with pytest.raises(LockLost):
            stage.lock.check()
        stage.run_until(100)
    assert stage.asked() == [10]
    assert stage.store.releases == []
    assert stage.told() == LOST


def test_the_key_of_a_lost_lock_is_freed_for_a_renewal_may_be_carried_out_late(stage):
    stage = stage(True, *[DOWN] * 22, True)
    stage.lock.acquire()
    stage.run_until(TRUST)
    assert stage.lock.release() is False
    stage.run_until(40)
    # the store is asked until it answers
    holder = stage.lock._story.execution_id
    assert stage.store.freed == [(TRUST + second, "key", holder) for second in (0, 1, 2)]


def test_a_loss_that_nobody_noticed_is_told_at_the_release(stage):
    stage = stage(auto_extend=False)
    stage.lock.acquire()
    stage.time.now = TRUST
    assert stage.lock.release() is False
    assert stage.told() == ["lock_expired_before_finish"]
    assert stage.store.releases == []


def test_a_release_that_the_store_refuses_is_a_loss(stage):
    stage = stage(True, False)
    stage.lock.acquire()
    assert stage.lock.release() is False
    assert stage.told() == LOST


def test_a_store_that_does_not_answer_the_release_changes_nothing(stage):
    stage = stage(True, DOWN)
    stage.lock.acquire()
    assert stage.lock.release() is True
    assert not stage.lock.lost
    stage.run_until(60)
    assert stage.asked() == []


def test_trust_begins_when_the_lock_was_asked_for(stage):
    stage = stage(5.0)
    stage.lock.acquire()
    assert stage.lock.remaining == pytest.approx(TRUST - 5)


def test_a_lease_that_ran_out_on_its_way_is_asked_for_again(stage):
    stage = stage(TTL)
    stage.lock.acquire()
    assert stage.store.acquisitions == [0, TTL]
    assert stage.lock.remaining == pytest.approx(TRUST)


def test_a_store_slower_than_the_ttl_is_unavailable(stage):
    stage = stage(TTL, TTL, TTL)
    with pytest.raises(StoreUnavailable):
        stage.lock.acquire()
    assert not stage.lock.held


@pytest.mark.parametrize(
    ("answers", "tries"),
    [
        ([Held("other", 9, same_run=False)] * 9, 3),
        ([Held("other", 9, same_run=False)], 2),
        ([Held("other", 9, same_run=True)] * 9, 1),
        ([Finished()] * 9, 1),
    ],
    ids=["held throughout", "free at the second try", "a copy of the same run", "a finished run"],
)
def test_a_held_lock_is_tried_as_often_as_asked_but_for_a_copy(stage, monkeypatch, answers, tries):
    stage = stage(*answers, retry_attempts=2, retry_delay=1, retry_jitter=0)

    class Waiting:
        def is_set(self) -> bool:
            return False

        def wait(self, timeout: float) -> None:
            stage.time.now += timeout

    monkeypatch.setattr(acquisition, "stopping", Waiting())
    assert stage.lock.acquire() is (len(answers) < tries)
    assert stage.lock.refusal == (answers[-1] if len(answers) >= tries else None)
    assert stage.store.acquisitions == list(range(tries))


@pytest.mark.parametrize(("held_for", "kept"), [(0, 12), (5, 7), (20, 0)])
def test_a_key_is_kept_for_what_is_left_of_hold_at_least(stage, held_for, kept):
    stage = stage(hold_at_least=12)
    stage.lock.acquire()
    stage.time.now += held_for
    assert stage.lock.release() is True
    assert stage.store.releases[0]["hold_for"] == pytest.approx(kept)


@pytest.mark.parametrize(
    ("longest", "asked"),
    [
        pytest.param(25, [], id="a first lease that lasts as long is never renewed"),
        pytest.param(45, [10, 20], id="nor is one that was renewed, once it lasts as long"),
        pytest.param(29.65, [], id="the end of the lease may be as near"),
    ],
)
def test_what_is_held_for_longer_than_hold_at_most_is_lost_and_renewed_no_more(stage, caplog, longest, asked):
    stage = stage(hold_at_most=longest)
    with pytest.raises(
        LockLost, match=f"'key' was lost before the block ended: it has been held for {longest:g} s, its"
    ):
        with stage.lock:
            stage.run_until(longest - 0.1)
            assert stage.lock.remaining == pytest.approx(min(0.1, TRUST), abs=0.01)
            assert not stage.lock.lost
            stage.run_until(longest)
            assert stage.lock.lost
            stage.run_until(200)
    assert stage.asked() == asked
    assert stage.told() == ["lock_expired_before_finish"], "no renewal has failed"
    (told,) = [json.loads(r.getMessage()) for r in caplog.records if r.name == "celery_lockbeat.events"]
    assert told["error_message"] == f"it has been held for {longest:g} s, its hold_at_most, and is renewed no more"
    assert stage.lock.why_lost == told["error_message"]
    assert stage.store.releases == []
    stage.run_until(201)
    assert len(stage.store.freed) == 1, "what is left of the lease holds up nobody"


def test_what_ends_within_hold_at_most_is_not_lost(stage):
    stage = stage(hold_at_most=45)
    with stage.lock:
        stage.run_until(44)
    assert stage.told() == []
    assert len(stage.store.releases) == 1


def test_a_block_that_only_warns_of_a_loss_goes_on_after_hold_at_most(stage):
    stage = stage(hold_at_most=5, on_lost="warn")
    with stage.lock:
        stage.run_until(6)
    assert stage.told() == ["lock_expired_before_finish"]


def test_a_lock_cannot_be_kept_for_longer_than_it_may_be_held(stage):
    with pytest.raises(
        ConfigurationError, match=r"hold_at_most of Lock\('key'\) is 5; allowed: 0 \(no bound\), or a time from"
    ):
        stage(hold_at_least=6, hold_at_most=5)
    stage(hold_at_least=6, hold_at_most=0)


def test_an_acquire_that_is_refused_is_false_and_the_refusal_tells_why_until_it_is_granted(stage):
    stage = stage(Held("w1 pid 7", 9, same_run=False), True)
    assert stage.lock.refusal is None
    assert stage.lock.acquire() is False
    assert stage.lock.refusal.description == "w1 pid 7"
    assert stage.lock.refusal.remaining == 9
    assert stage.lock.acquire() is True
    assert stage.lock.refusal is None
    assert stage.lock.release() is True


def test_releasing_what_is_not_held_is_an_error_that_says_so(stage):
    stage = stage(Held("w1 pid 7", 9, same_run=False), True)
    with pytest.raises(RuntimeError, match="'key' was never held"):
        stage.lock.release()
    assert stage.lock.acquire() is False
    with pytest.raises(RuntimeError, match="'key' was never held"):
        stage.lock.release()
    assert stage.lock.acquire() is True
    assert stage.lock.release() is True
    with pytest.raises(RuntimeError, match="'key' has been released already"):
        stage.lock.release()
    assert len(stage.store.releases) == 1


def test_a_block_may_release_its_lock_itself(stage):
    stage = stage()
    with stage.lock as held:
        assert current_lock() is held
        assert held.release() is True
        assert current_lock() is None
    assert len(stage.store.releases) == 1
    assert stage.told() == []


def test_a_refusal_names_the_holder(stage):
    stage = stage(Held("w1 pid 7", 9, same_run=False))
    with pytest.raises(LockNotAcquired, match="w1 pid 7"), stage.lock:
        pass


USES_EACH_KEYWORD = """
from typing import assert_type
from celery import Celery
from celery_lockbeat import Lock, current_lock
app = Celery()
with Lock(
    "k", app=app, driver="redis", connection="default", ttl=2.5, auto_extend=True, extend_interval=None, retry_attempts=3,
    retry_delay=1, retry_jitter=0.5, limit=2, hold_at_least=10, hold_at_most=60, on_lost="abort", logging=False,
) as lock:
    assert_type(lock, Lock)
    assert_type(current_lock(), Lock | None)
assert_type(Lock("k").acquire(), bool)
"""
MISUSES = {
    'Lock("k", tll=3)': "tll",
    'Lock("k", ttl="3")': "str",
    'Lock("k", on_lost="die")': "die",
    'Lock("k", skip_if_locked=True)': "skip_if_locked",
}


def test_the_keywords_of_a_lock_are_known_to_type_checkers_and_are_those_that_it_takes(tmp_path):
    pytest.importorskip("mypy")
    assert LockKeywords.__annotations__.keys() == set(LOCK_NAMES) - {
        "enabled",
        "key",
        "if_held",
        "wait_at_most",
        "line_limit",
        "skip_if_locked",
        "dedupe_ttl",
        "unique",
        "unique_ttl",
        "expected_within",
    }
    module = tmp_path / "users_module.py"
    module.write_text(USES_EACH_KEYWORD + "\n".join(MISUSES) + "\n")
    first = USES_EACH_KEYWORD.count("\n") + 1
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--python-version",
        "3.11",
        "--cache-dir",
        str(tmp_path),
        module,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False)
    told = re.findall(r"users_module.py:(\d+): error: (.*)", done.stdout)
    assert [int(line) for line, _ in told] == [first + n for n in range(len(MISUSES))], done.stdout + done.stderr
    for (_, error), word in zip(told, MISUSES.values(), strict=True):
        assert word in error


def test_the_page_on_locks_does_what_it_says(server, capsys):
    page = docs.run("reference/lock.md", url=server.url)
    page["nightly"]()
    assert page["try_once"]() == "done"
    with Lock("nightly", app=page["app"]):
        page["nightly"]()
        assert re.fullmatch(r"nightly is held by \S+ \d+\n", capsys.readouterr().out)
        assert re.fullmatch(r"held by \S+ \d+", page["try_once"]())
    page["app"].close()


def test_the_page_on_locks_has_each_keyword():
    page = (docs.DOCS / "reference" / "lock.md").read_text()
    for keyword in LockKeywords.__annotations__:
        assert f"`{keyword}`" in page


def test_a_forked_child_does_not_hold_its_parents_lock(stage):
    stage = stage()
    stage.lock.acquire()

    def child() -> None:
        assert not stage.lock.held
        assert stage.lock.remaining == 0
        assert stage.lock.lost
        assert stage.lock.release() is False
        stage.run_until(5)
        assert stage.store.releases == []

    forked = multiprocessing.get_context("fork").Process(target=child)
    forked.start()
    forked.join(30)
    assert forked.exitcode == 0
    assert stage.lock.held


# -- several holders, and what is asked of a key --------------------------------------------------------------------------


def test_a_key_has_as_many_holders_as_its_limit(app):
    first, second, third = (Lock("k", app=app, limit=2) for _ in range(3))
    assert first.acquire()
    with second:
        assert not third.acquire()
        assert second.token > first.token
        assert first.release()
        assert Lock("k", app=app, limit=2).acquire()


def test_who_holds_a_key_is_told_to_anybody(app):
    assert (Lock.locked("k", app=app), Lock.holder_of("k", app=app)) == (False, None)
    with Lock("k", app=app) as lock:
        assert Lock.locked("k", app=app)
        assert re.fullmatch(r"\S+ \d+", Lock.holder_of("k", app=app))
        assert not lock.lost
    assert not Lock.locked("k", app=app)
    with pytest.raises(ConfigurationError, match="the key of Lock.holder_of"):
        Lock.locked("", app=app)


# -- extend ------------------------------------------------------------------------------------------------------------


def test_a_lock_that_is_not_renewed_by_itself_can_be_extended_by_hand(app):
    with Lock("k", app=app, ttl=5, auto_extend=False) as lock:
        assert lock.extend(60)
        assert 58 < lock.remaining <= 60
        assert lock.ttl == 60
        assert Lock("k", app=app).acquire() is False
        assert lock.extend()
        assert lock.extend(2)
        assert lock.remaining <= 2


def test_an_extension_by_hand_counts_for_those_that_come_by_themselves(app):
    with Lock("k", app=app, ttl=60) as lock:
        assert lock.extend(0.6)
        (held,) = lock._store.locks.held("k")
        assert held.remaining <= 0.6
        # renewed twice, and not by a minute
        until = lock._own._trusted_until
        wait_until(lambda: lock._own._trusted_until > until + 0.3)
        assert lock.remaining <= 0.6
        assert not lock.lost


def test_an_extension_of_what_is_lost_says_so(app):
    with Lock("k", app=app, on_lost="warn") as lock:
        (held,) = lock._store.locks.held("k")
        assert lock._store.locks.free("k", holder=held.holder)
        assert lock.extend(30) is False
        assert lock.lost
        assert lock.extend() is False


def test_an_extension_that_the_store_does_not_answer_is_no_loss(stage):
    stage = stage(True, DOWN, auto_extend=False)
    stage.lock.acquire()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(stage.lock.extend, 60)
        wait_until(lambda: stage.lock._own._asked)
        stage.run_until(1)
        with pytest.raises(StoreUnavailable):
            asked.result()
    assert 28 < stage.lock.remaining <= TRUST
    # and there is no other try, for nobody has asked for one
    stage.run_until(20)
    assert len(stage.asked()) == 1


def test_an_extension_that_was_under_way_is_not_the_one_that_is_asked_for(stage):
    stage = stage(auto_extend=False)
    stage.lock.acquire()
    own = stage.lock._own
    asked = own.ask(stage.lock._options.with_ttl(120, owner="it"))
    own.extended(1.0, TTL)
    assert asked.answer is None
    assert stage.lock.remaining <= 1 + TRUST
    stage.run_until(2)
    assert asked.answer is True
    assert 110 < stage.lock.remaining <= 120


def test_there_is_nothing_to_extend_without_a_hold(app):
    lock = Lock("k", app=app)
    with pytest.raises(RuntimeError, match="never held"):
        lock.extend()
    with lock, pytest.raises(ConfigurationError, match=r"the ttl of Lock\('k'\).extend is 0"):
        lock.extend(0)
    with pytest.raises(RuntimeError, match="released already"):
        lock.extend(10)


def test_an_extension_of_a_lock_with_an_interval_of_its_own_must_be_longer(app):
    with Lock("k", app=app, ttl=30, extend_interval=10) as lock, pytest.raises(ConfigurationError, match="is 10"):
        lock.extend(5)


# -- async with --------------------------------------------------------------------------------------------------------


class Slow:
    """A store whose answers take their time, in whichever thread asks."""

    def __init__(self, monkeypatch, app):
        self.locks = stores_of(app).choose(app.conf.lockbeat_driver, "default")[0].locks
        for name in ("acquire", "release"):
            asked = getattr(self.locks, name)
            monkeypatch.setattr(
                self.locks, name, lambda *args, asked=asked, **more: self.wait() or asked(*args, **more)
            )

    def wait(self):
        time.sleep(0.2)


def test_an_async_with_keeps_no_event_loop_waiting(app, monkeypatch):
    Slow(monkeypatch, app)

    async def hold():
        async with Lock("k", app=app) as lock:
            assert current_lock() is lock
            assert lock.held
        assert lock.released
        assert current_lock() is None

    async def both():
        holding, longest, before = asyncio.ensure_future(hold()), 0.0, time.monotonic()
        while not holding.done():
            await asyncio.sleep(0.005)
            longest, before = max(longest, time.monotonic() - before), time.monotonic()
        await holding
        assert longest < 0.15

    asyncio.run(both())


def test_an_async_with_is_refused_as_any_other(app):
    async def hold():
        async with Lock("k", app=app):
            with pytest.raises(LockNotAcquired) as raised:
                async with Lock("k", app=app):
                    pytest.fail("it is held")
            assert raised.value.key == "k"
            with pytest.raises(ZeroDivisionError):
                async with Lock("other", app=app):
                    raise ZeroDivisionError
        assert not Lock.locked("k", app=app)
        assert not Lock.locked("other", app=app)

    asyncio.run(hold())


def test_whoever_is_cancelled_while_it_enters_holds_nothing(app, monkeypatch):
    Slow(monkeypatch, app)

    async def hold():
        async with Lock("k", app=app):
            pytest.fail("it was cancelled before")

    async def cancel():
        holding = asyncio.ensure_future(hold())
        await asyncio.sleep(0.05)
        holding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await holding
        assert not Lock.locked("k", app=app)

    asyncio.run(cancel())


@pytest.mark.parametrize("on_lost", ["fail", "abort"])
def test_a_coroutine_is_told_that_its_lock_is_lost_as_a_body_is(app, on_lost):
    async def hold():
        with pytest.raises(LockLost):
            async with Lock("k", app=app, ttl=0.6, on_lost=on_lost) as lock:
                (held,) = lock._store.locks.held("k")
                assert lock._store.locks.free("k", holder=held.holder)
                await asyncio.wait_for(asyncio.sleep(30 if on_lost == "abort" else 1.0), 10)
        # it was not cancelled, and goes on
        await asyncio.sleep(0)

    asyncio.run(hold())

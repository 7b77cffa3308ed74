"""Each thing that can happen to each message of each store call: what is told is true, then and in all calls that follow."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from servers import Server
from stepproxy import FAULTS, StepProxy
from test_beat_contract import tick

from celery_lockbeat.exceptions import StoreUnavailable
from celery_lockbeat.stores.base import Finished, Held, Lease
from celery_lockbeat.stores.redis.scripts import Script
from celery_lockbeat.stores.redis.store import RedisStore

# what it runs of the package is covered elsewhere, and this takes much longer when it is traced
pytestmark = pytest.mark.no_cover

TIMEOUT, LATE = 0.3, 0.7
LONG = 600
#: So many cases at once, for most of them wait.
AT_ONCE = 8

_numbers = itertools.count()


class Case:
    """One call through the proxy, between what was before and what is true after. ``n`` names keys of its own."""

    def __init__(self, direct, proxied):
        self.direct, self.proxied = direct, proxied
        self.n = next(_numbers)
        self.key, self.app = f"key{self.n}", f"app{self.n}"

    def take(self, holder="a", key=None, **more) -> Lease:
        lease = self.direct.locks.acquire(key or self.key, holder=holder, ttl=LONG, **more)
        assert isinstance(lease, Lease), lease
        return lease

    def lost(self, key=None) -> Lease:
        lease = self.take(key=key, run="r")
        self.direct.locks.free(lease.key, holder="a")
        self.take("thief", lease.key)
        return lease

    def pending(self, replica="b", *, overdue=True):
        assert self.direct.beats.claim(self.app, replica, [tick("e", task_id="id")], ttl=LONG).refusals == [None]
        if overdue:
            self.direct.beats.settle(self.app, replica, [], handed_over=["id"])

    def count_pending(self):
        self.direct.beats.settle(self.app, "a", [], handed_over=["id"])
        self.direct.beats.settle(self.app, "b", [], handed_over=["id"])
        return len(self.direct.beats.claim(self.app, "c", [], ttl=LONG).overdue)

    def before(self):
        """Nothing."""

    def nobody_runs(self):
        """The call has failed: as :class:`Lock` does then."""
        self.direct.locks.free(self.key, holder="a")
        assert isinstance(self.direct.locks.acquire(self.key, holder="next", ttl=LONG), Lease)


class Acquire(Case):
    def call(self):
        return self.proxied.locks.acquire(self.key, holder="a", ttl=LONG, run="r")

    def true(self, told):
        assert isinstance(told, Lease)
        assert self.direct.locks.extend([(told, LONG)]) == [True]
        assert isinstance(self.direct.locks.acquire(self.key, holder="b", ttl=LONG), Held)

    failed = Case.nobody_runs


class AcquireWhatIsHeld(Acquire):
    def before(self):
        self.other = self.take("other", description="other")

    def true(self, told):
        assert isinstance(told, Held)
        assert told.description == "other"
        self.failed()

    def failed(self):
        assert self.direct.locks.extend([(self.other, LONG)]) == [True]


class AcquireWhatIsFinished(Acquire):
    def before(self):
        self.direct.locks.release(self.take(run="r"), remember_for=LONG)

    def true(self, told):
        assert told == Finished()

    def failed(self):
        self.true(self.direct.locks.acquire(self.key, holder="b", ttl=LONG, run="r"))


class Extend(Case):
    def before(self):
        self.lease = self.take()

    def call(self):
        return self.proxied.locks.extend([(self.lease, LONG), (Lease("never", "a", None, 1), LONG)])

    def true(self, told):
        assert told == [True, False]
        self.failed()

    def failed(self):
        assert self.direct.locks.extend([(self.lease, LONG)]) == [True]


class ExtendWhatIsLost(Extend):
    def before(self):
        self.lease = self.lost()

    def true(self, told):
        assert told == [False, False]

    def failed(self):
        assert self.direct.locks.extend([(self.lease, LONG)]) == [False]


class Release(Case):
    def before(self):
        self.lease = self.take(run="r")

    def call(self):
        return self.proxied.locks.release(self.lease, remember_for=LONG)

    def true(self, told):
        assert told is True
        assert self.direct.locks.acquire(self.key, holder="b", ttl=LONG, run="r") == Finished()
        self.take("b")

    def failed(self):
        # told again later, as an errand
        self.true(self.direct.locks.release(self.lease, remember_for=LONG))


class ReleaseWhatIsLost(Release):
    def before(self):
        self.lease = self.lost()

    def true(self, told):
        assert told is False
        assert isinstance(self.direct.locks.acquire(self.key, holder="b", ttl=LONG, run="r"), Held)


class Free(Case):
    def before(self):
        self.take()

    def call(self):
        return self.proxied.locks.free(self.key, holder="a")

    def true(self, told):
        # asked twice, it may be told that there is nothing left
        self.take("b")

    failed = Case.nobody_runs


class Join(Case):
    def before(self):
        self.cold = self.direct.beats.join(self.app, "b").cold_start

    def call(self):
        return self.proxied.beats.join(self.app, "a")

    def true(self, told):
        assert told.cold_start == self.cold

    def failed(self):
        self.true(self.direct.beats.join(self.app, "a"))


class ListEntries(Case):
    def before(self):
        self.direct.beats.join(self.app, "a")
        self.direct.beats.claim(self.app, "b", [tick("e", 7)], ttl=LONG)

    def call(self):
        return self.proxied.beats.list_entries(
            self.app, "a", [("e", tick("e", 0).state), ("new", tick("new", 3).state)]
        )

    def true(self, told):
        assert [state.total_run_count for state in told] == [7, 3]

    def failed(self):
        self.true(
            self.direct.beats.list_entries(self.app, "a", [("e", tick("e", 0).state), ("new", tick("new", 3).state)])
        )


class ClaimIt(Case):
    """What is granted is published; what is not known to be is overdue once, under the same id."""

    def call(self):
        return self.proxied.beats.claim(self.app, "a", [tick("e", task_id="id")], ttl=LONG).refusals

    def true(self, told):
        assert told == [None]
        assert self.direct.beats.claim(self.app, "b", [tick("e", task_id="another")], ttl=LONG).refusals != [None]
        assert self.count_pending() == 1

    def failed(self):
        there = self.count_pending()
        again = self.direct.beats.claim(self.app, "a", [tick("e", task_id="id")], ttl=LONG).refusals
        assert there in (0, 1)
        self.true(again)


class ClaimWhatIsAnothers(ClaimIt):
    def before(self):
        self.pending(overdue=False)

    def call(self):
        return self.proxied.beats.claim(self.app, "a", [tick("e", task_id="mine")], ttl=LONG).refusals

    def true(self, told):
        assert [state.total_run_count for state in told] == [1]
        self.failed()

    def failed(self):
        assert self.count_pending() == 1


class TakeOver(Case):
    def before(self):
        self.pending()

    def call(self):
        return self.proxied.beats.take_over(self.app, "a", ["id"], ttl=LONG)

    def true(self, told):
        assert told == [True]
        assert self.direct.beats.take_over(self.app, "c", ["id"], ttl=LONG) == [False]
        assert self.direct.beats.settle(self.app, "a", [("id", "e")]) == [True]

    def failed(self):
        assert self.count_pending() == 1
        assert self.direct.beats.take_over(self.app, "c", ["id"], ttl=LONG) == [True]


class TakeOverWhatIsAnothers(TakeOver):
    def before(self):
        self.pending(overdue=False)

    def true(self, told):
        assert told == [False]
        self.failed()

    def failed(self):
        assert self.direct.beats.settle(self.app, "b", [("id", "e")]) == [True]


class Settle(Case):
    def before(self):
        self.pending("a", overdue=False)

    def call(self):
        return self.proxied.beats.settle(self.app, "a", [("id", "e")])

    def true(self, told):
        # asked twice, it may be told that there is nothing left
        assert self.count_pending() == 0
        assert self.direct.beats.claim(self.app, "b", [tick("e", 2)], ttl=LONG).refusals == [None]

    def failed(self):
        self.true(self.direct.beats.settle(self.app, "a", [("id", "e")]))


class SettleWhatIsAnothers(Settle):
    def before(self):
        self.pending("b", overdue=False)

    def true(self, told):
        assert told == [False]
        self.failed()

    def failed(self):
        assert self.count_pending() == 1


class Leave(Case):
    def before(self):
        self.direct.beats.join(self.app, "a")

    def call(self):
        return self.proxied.beats.leave(self.app, "a")

    def true(self, told):
        before = self.direct.beats.join(self.app, "a").cold_start
        assert before > 0

    def failed(self):
        self.direct.beats.leave(self.app, "a")


CALLS = [
    case for case in list(globals().values()) if isinstance(case, type) and issubclass(case, Case) and case is not Case
]


def sure(call):
    for _ in range(3):
        try:
            return call()
        except StoreUnavailable:
            pass
    return call()


def assert_no_answer_is_taken_for_another(case):
    """All that is asked on the same connections from now on."""
    store, held, free = case.proxied, f"held{case.n}", f"free{case.n}"
    case.take("x", held)
    lost = case.lost(f"lost{case.n}")
    for _ in range(2):
        assert isinstance(sure(lambda: store.locks.acquire(held, holder="y", ttl=LONG)), Held)
        assert sure(lambda: store.locks.release(lost)) is False
        lease = sure(lambda: store.locks.acquire(free, holder="y", ttl=LONG))
        assert case.direct.locks.extend([(lease, LONG)]) == [True]
        assert sure(lambda: store.locks.extend([(lost, LONG)])) == [False]
        assert sure(partial(store.locks.release, lease)) is True
    app = f"next{case.n}"
    case.direct.beats.claim(app, "b", [tick("e")], ttl=LONG)
    assert sure(lambda: store.beats.claim(app, "a", [tick("e", task_id="i")], ttl=LONG)).refusals != [None]


class Way:
    """A store behind a proxy, and one beside it."""

    def __init__(self, server: Server):
        self.direct, self.proxy = RedisStore(server.url), StepProxy(server.port, LATE)

    def go(self, make, warm, step=-1, fault=""):
        """Carry out one call; returns its messages."""
        store = RedisStore(self.proxy.url, options={"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT})
        if not warm:
            unknown_to_the_server(store)
        case = make(self.direct, store)
        try:
            case.before()
            if warm:
                self.proxy.arm()
                twin = make(self.direct, store)
                twin.before()
                sure(twin.call)
            self.proxy.arm(step, fault)
            try:
                told = case.call()
            except StoreUnavailable:
                self.proxy.disarm()
                case.failed()
            else:
                self.proxy.disarm()
                case.true(told)
            messages = self.proxy.messages
            assert_no_answer_is_taken_for_another(case)
        finally:
            self.proxy.disarm()
            store.close()
        return messages

    def close(self):
        self.direct.close()
        self.proxy.close()


def unknown_to_the_server(store):
    """Let the store have scripts that the server has never seen."""
    for part in (store.locks, store.beats, store.announcements):
        for name, script in list(vars(part).items()):
            if isinstance(script, Script):
                setattr(part, name, Script(f"{script.source}-- {next(_numbers)}"))


@pytest.fixture(scope="module")
def ways(session_server):
    ways = [Way(session_server) for _ in range(AT_ONCE)]
    yield ways
    for way in ways:
        way.close()


#: At first use there are ten times as many messages, most of them the same for all calls.
AT_FIRST = (Acquire,)


@pytest.mark.parametrize(
    ("make", "warm"),
    [
        *((make, True) for make in CALLS),
        *(pytest.param(make, False, marks=() if make in AT_FIRST else pytest.mark.soak) for make in CALLS),
    ],
    ids=lambda value: {True: "again", False: "at first"}.get(value) or value.__name__,
)
def test_whatever_happens_to_any_message_what_is_told_is_true(ways, make, warm):
    clean = ways[0].go(make, warm)
    assert len(clean) >= (2 if warm else 4), clean
    wrong = []
    idle = list(ways)

    def one(step, fault):
        way = idle.pop()
        try:
            way.go(make, warm, step, fault)
        except Exception as exc:
            wrong.append(f"{fault} of message {step}, {clean[step]}: {type(exc).__name__} {exc}")
        finally:
            idle.append(way)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for done in [pool.submit(one, step, fault) for step in range(len(clean)) for fault in FAULTS]:
            done.result()
    assert not wrong, "\n".join(wrong)

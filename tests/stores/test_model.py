"""Each store against a model of ten lines: whatever the order of operations, the answers are the same."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from servers import Server, need_django

from celery_lockbeat.clock import monotonic
from celery_lockbeat.stores.base import Finished, Held, Lease
from celery_lockbeat.stores.redis.store import RedisStore
from celery_lockbeat.stores.sqlite.store import MemoryStore

#: Longer than a run of the machine takes, and so short that thirty of them do not reach TOKEN_MEMORY.
LONG = 100.0
KEYS = st.sampled_from(["k", "{k}", "k:{k}", "\ud800"])
#: A holder is an execution of one run; two of them may execute the same run.
HOLDERS = st.sampled_from([("h1", "r1"), ("h2", "r1"), ("h3", "r2"), ("h4", None)])


#: How many an asker agrees to; what is asked with others before and after.
LIMITS = st.sampled_from([1, 1, 2, 3])


class Model:
    """Who holds what, what is kept after its release, what is finished, and the last token of each key."""

    def __init__(self):
        self.held, self.kept, self.finished, self.last = {}, {}, {}, {}

    def acquire(self, key, holder, run, limit):
        held, kept = self.held.setdefault(key, {}), self.kept.get(key, [])
        if (key, run) in self.finished:
            return "finished"
        if holder in held:
            return held[holder]
        runs = [lease.run for lease in held.values()] + kept
        return "held" if len(runs) >= limit or (run is not None and run in runs) else "new"

    def release(self, lease, hold, remember):
        if self.held.get(lease.key, {}).get(lease.holder) != lease:
            return False
        del self.held[lease.key][lease.holder]
        if hold:
            self.kept.setdefault(lease.key, []).append(lease.run)
        if remember and lease.run:
            self.finished[lease.key, lease.run] = lease.token
        return True

    def live(self):
        return [lease for held in self.held.values() for lease in held.values()]

    def expire(self):
        self.held, self.finished, self.kept = {}, {}, {}


class StoreMachine(RuleBasedStateMachine):
    advance = None  # where the clock can be moved

    def __init__(self):
        super().__init__()
        self.store = self.open()
        self.model = Model()
        self.leases: list[Lease] = []
        self.released: dict[Lease, bool] = {}

    @rule(key=KEYS, who=HOLDERS, limit=LIMITS)
    def acquire(self, key, who, limit):
        holder, run = who
        expected = self.model.acquire(key, holder, run, limit)
        answer = self.store.locks.acquire(key, holder=holder, ttl=LONG, run=run, description=holder, limit=limit)
        if expected == "finished":
            assert answer == Finished()
        elif expected == "held":
            assert isinstance(answer, Held)
            held, kept = self.model.held[key], self.model.kept.get(key, [])
            if held and not kept:
                assert answer.description in held
                assert answer.same_run == (run is not None and run in [lease.run for lease in held.values()])
        elif expected == "new":
            assert isinstance(answer, Lease)
            assert answer.token > self.model.last.get(key, 0)
            self.model.held[key][holder], self.model.last[key] = answer, answer.token
            self.leases.append(answer)
        else:
            assert answer == expected

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def extend(self, data):
        batch = data.draw(st.lists(st.sampled_from(self.leases), max_size=4))
        expected = [lease in self.model.live() for lease in batch]
        assert self.store.locks.extend([(lease, LONG) for lease in batch]) == expected

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), hold=st.booleans(), remember=st.booleans())
    def release(self, data, hold, remember):
        lease = data.draw(st.sampled_from(self.leases))
        earlier = self.released.get(lease)
        # again: the first answer, as long as nobody else has taken the key, or the run is remembered
        known = self.model.last[lease.key] == lease.token or (
            lease.run is not None and self.model.finished.get((lease.key, lease.run)) == lease.token
        )
        expected = self.model.release(lease, hold, remember) if earlier is None else earlier
        answer = self.store.locks.release(lease, hold_for=LONG * hold, remember_for=LONG * remember)
        assert answer == expected or (earlier is True and not known)
        self.released.setdefault(lease, answer)

    @precondition(lambda self: self.advance)
    @rule()
    def everything_runs_out(self):
        self.advance(LONG + 1)
        self.model.expire()

    @rule()
    def close(self):
        self.store.close()

    @invariant()
    def those_are_live_that_have_been_granted_and_no_others(self):
        live = self.store.locks.extend([(lease, LONG) for lease in self.leases])
        assert [lease for lease, is_live in zip(self.leases, live, strict=True) if is_live] == [
            lease for lease in self.leases if lease in self.model.live()
        ]

    def teardown(self):
        self.store.close()


def run(machine, examples):
    machine.__qualname__ = machine.__name__
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(300)
def test_the_redis_store_answers_as_the_model(server: Server):
    class Machine(StoreMachine):
        def open(self):
            with server.client() as client:
                client.flushall()
            return RedisStore(server.url)

    run(Machine, 60)


def test_the_memory_store_answers_as_the_model(tmp_path):
    class Machine(StoreMachine):
        def open(self):
            self.ahead = 0.0
            return MemoryStore(tempfile.mkdtemp(dir=tmp_path), clock=lambda: monotonic() + self.ahead)

        def advance(self, seconds):
            self.ahead += seconds

    run(Machine, 60)


def test_the_database_store_in_a_file_answers_as_the_model(tmp_path):
    need_django()
    import djangos

    djangos.configure()
    from celery_lockbeat.contrib.django.store import SQLiteStore

    class Machine(StoreMachine):
        def open(self):
            self.ahead = 0.0
            alias = djangos.use(djangos.make_sqlite(Path(tempfile.mkdtemp(dir=tmp_path), "db.sqlite3")))
            return SQLiteStore(alias, clock=lambda: monotonic() + self.ahead)

        def advance(self, seconds):
            self.ahead += seconds

    run(Machine, 30)


@pytest.mark.timeout(300)
def test_the_database_store_in_postgresql_answers_as_the_model(cluster):
    import djangos

    alias = djangos.use(cluster.database)
    from celery_lockbeat.contrib.django.store import PostgresStore

    class Machine(StoreMachine):
        def open(self):
            cluster.query("TRUNCATE lockbeat_lock, lockbeat_wide, lockbeat_line, lockbeat_done")
            return PostgresStore(alias)

    run(Machine, 60)

"""The protocol of the locks as a model: acquire, extend, release, free, deliver again. See docs/protocol.md.

Three workers of one pool child each, and three runs of one key: keys have nothing to do with each other, for each
operation is about one. Each worker has its own word on how many may hold the key, as in two releases. All workers acknowledge
late and put back what a dead child has had. A process that is frozen or slow just takes no step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple


class Lock(NamedTuple):
    """One lease of the key that lives."""

    holder: int  # a worker
    run: int
    left: int  # until it is over, on the store's clock
    of: str  # what the worker's child is doing: RUNNING, or what the holder came to: DEAD, GONE
    limit: int = 1  # what its holder had said


RUNNING, DEAD, GONE = "running", "dead", "gone"


class Run(NamedTuple):
    """One message, and what became of it."""

    copies: int = 1  # in the broker
    finished: int = 0  # the store remembers it
    ended: int = 0  # so often its body was brought to an end, under the lock
    answered: int = 0  # it was skipped, or failed


class Worker(NamedTuple):
    run: int = -1  # what its child runs
    fresh: int = 0  # for so long the child trusts its lock, on its own clock
    lost: int = 0  # it has known, at some time, that the lock of this run was lost
    parent: int = 1  # whether the parent lives
    debt: int = 0  # a dead child's lock is to be freed, or one whose answer was lost


State = tuple[tuple[Lock, ...], tuple[Run, ...], tuple[Worker, ...], str]


@dataclass(frozen=True)
class Locks:
    workers: int = 3
    runs: int = 3
    ttl: int = 2
    #: so many copies of one message may wait in the broker
    copies: int = 2
    #: how many may hold the key, by each worker's word; those beyond have the last one's
    limits: tuple[int, ...] = (1,)
    #: the store stays away from the end of a run until its lease is over, and so never hears of that end
    deaf_to_ends: bool = False
    #: mutations: what the protocol is made without
    without: frozenset[str] = frozenset()

    # -- states --------------------------------------------------------------------------------------------------------

    def initial(self) -> State:
        return (), (Run(),) * self.runs, (Worker(),) * self.workers, ""

    def limit(self, w: int) -> int:
        return self.limits[min(w, len(self.limits) - 1)]

    def key(self, state: State) -> object:
        locks, runs, workers, wrong = state
        if self.limits != (1,):
            # names mean nothing, but who has what does: the least of all that it may be called
            return min(self.renamed(state, order) for order in permutations(range(self.runs)))
        lock = locks[0] if locks else None
        of_run: list[list[object]] = [[] for _ in range(self.runs + 1)]  # the last is for those that run nothing
        for w, worker in enumerate(workers):
            of_run[worker.run].append((*worker[1:], lock[2:] if lock and lock.holder == w else ()))
        # A worker runs one run at most, and the lock has one holder: so this says all, but for the names.
        sights = [(tuple(run), lock and lock.run == r, *sorted(of_run[r])) for r, run in enumerate(runs)]
        return tuple(sorted(sights)), tuple(sorted(of_run[-1])), wrong

    def renamed(self, state: State, order: tuple[int, ...]) -> tuple[object, ...]:
        locks, runs, workers, wrong = state
        name = {-1: -1, **{r: n for n, r in enumerate(order)}}
        theirs: list[list[tuple[object, ...]]] = [[] for _ in workers]
        for lock in locks:
            theirs[lock.holder].append((name[lock.run], *lock[2:]))
        seen = [
            (self.limit(w), name[worker.run], *worker[1:], tuple(sorted(theirs[w]))) for w, worker in enumerate(workers)
        ]
        return tuple(tuple(runs[r]) for r in order), tuple(sorted(seen)), wrong

    # -- steps ---------------------------------------------------------------------------------------------------------

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        _, runs, workers, _ = state
        if (later := self.pass_time(state)) != state:
            yield "time passes", later
        for r, run in enumerate(runs):
            if run.copies < self.copies:
                yield f"there is another copy of run {r + 1}", self.copy(state, r)
        for w, worker in enumerate(workers):
            who = f"worker {'ABC'[w]}"
            if worker.parent and worker.run < 0:
                for r, run in enumerate(runs):
                    if run.copies:
                        yield from self.deliver(state, w, r, who)
            if worker.run >= 0:
                yield from self.renew(state, w, who)
                yield from self.end(state, w, who)
                yield from self.kill_child(state, w, who)
            if worker.parent:
                yield f"the parent of {who} dies", self.kill_parent(state, w)
                if worker.debt:
                    yield f"{who} frees what its dead child held", self.free(state, w)
                if "waiting for the death" in self.without and worker.run >= 0:
                    yield f"{who} frees what its child holds, which is about to be killed", self.free(state, w)

    def pass_time(self, state: State) -> State:
        locks, runs, workers, wrong = state
        locks = tuple(lock._replace(left=lock.left - 1) for lock in locks if lock.left > 1)
        aged = [
            worker._replace(fresh=worker.fresh - 1, lost=int(worker.fresh == 1)) if worker.fresh else worker
            for worker in workers
        ]
        return locks, runs, tuple(aged), wrong

    # -- acquire.lua, and what LockedTask makes of its answer ----------------------------------------------------------

    def deliver(self, state: State, w: int, r: int, who: str) -> Iterator[tuple[str, State]]:
        locks, run, worker, limit = state[0], state[1][r], state[2][w], self.limit(w)
        got = f"{who} gets run {r + 1}"
        taken = run._replace(copies=run.copies - 1)
        same = any(lock.run == r for lock in locks)
        if "a look at those who are there" in self.without:
            same = same and len(locks) >= limit
        counted = [lock for lock in locks if "who had it alone" not in self.without or (lock.limit > 1) == (limit > 1)]
        if run.finished and "dedupe" not in self.without:
            yield f"{got}, a duplicate", self.put(state, r=r, run=taken)
        elif same:
            # a safety copy comes again later: it stays
            if "safety copies" in self.without:
                yield f"{got}, which goes on elsewhere, and acknowledges it", self.put(state, r=r, run=taken)
        elif len(counted) >= limit:
            yield f"{got}, and skips it", self.put(state, r=r, run=taken._replace(answered=1))
        else:
            running = worker._replace(run=r, fresh=self.ttl, lost=0)
            granted = Lock(w, r, self.ttl, RUNNING, limit)
            yield f"{got}, and its lock", self.put(state, r=r, run=taken, w=w, worker=running, locks=(*locks, granted))
            if not worker.debt:
                unheard = (*locks, granted._replace(of=DEAD))
                failed, owes = taken._replace(answered=1), worker._replace(debt=1)
                after = self.put(state, r=r, run=failed, w=w, worker=owes, locks=unheard)
                yield f"{got}, and never hears that it has the lock", after

    # -- extend.lua and renewal.py -------------------------------------------------------------------------------------

    def renew(self, state: State, w: int, who: str) -> Iterator[tuple[str, State]]:
        locks, worker = state[0], state[2][w]
        if not worker.fresh and "an end of a loss" not in self.without:
            return
        orphan = not worker.parent
        if orphan and "a look for the parent" not in self.without:
            yield f"the child of {who} finds its parent dead", self.put(state, w=w, worker=self.loser(worker))
            return
        own = self.own(locks, w)
        if own is None and locks and "token" in self.without:
            own = locks[0]
        if own is not None:
            extended = self.put(state, locks=self.instead(locks, own, own._replace(left=self.ttl)))
            if orphan:
                extended = (*extended[:3], f"P6: the child of {who}, whose parent is dead, renews its lock")
            yield f"{who} renews", self.put(extended, w=w, worker=worker._replace(fresh=self.ttl))
            yield f"{who} renews, and does not hear it", extended
        else:
            yield f"{who} is told that its lock is lost", self.put(state, w=w, worker=self.loser(worker))

    def own(self, locks: tuple[Lock, ...], w: int) -> Lock | None:
        return next((lock for lock in locks if lock.holder == w and lock.of == RUNNING), None)

    def instead(self, locks: tuple[Lock, ...], old: Lock | None, *new: Lock) -> tuple[Lock, ...]:
        return (*(lock for lock in locks if lock is not old), *new)

    def loser(self, worker: Worker) -> Worker:
        return worker._replace(fresh=0, lost=1)

    # -- release.lua ---------------------------------------------------------------------------------------------------

    def end(self, state: State, w: int, who: str) -> Iterator[tuple[str, State]]:
        locks, worker = state[0], state[2][w]
        r, run = worker.run, state[1][worker.run]
        idle, own = worker._replace(run=-1, fresh=0, lost=0), self.own(locks, w)
        left = locks if own is None else self.instead(locks, own, own._replace(of=GONE))
        if worker.fresh and own is not None:
            ended = run._replace(ended=run.ended + 1)
            free = self.instead(locks, own)
            after = self.put(state, r=r, run=ended._replace(finished=1), w=w, worker=idle, locks=free)
            if worker.lost:
                after = (*after[:3], f"P5: run {r + 1} was lost, and ends as a success")
            yield f"{who} ends run {r + 1} and releases", after
            if self.deaf_to_ends:
                deaf = self.put(state, r=r, run=ended, w=w, worker=idle, locks=left)
                yield f"{who} ends run {r + 1}, which the store never hears", deaf
        else:
            # it failed with LockLost, which is an answer; what the store may hold for it ends by its ttl
            failed = run._replace(answered=1)
            yield f"{who} ends run {r + 1}, lost", self.put(state, r=r, run=failed, w=w, worker=idle, locks=left)

    # -- free.lua and orphans.py -------------------------------------------------------------------------------------

    def kill_child(self, state: State, w: int, who: str) -> Iterator[tuple[str, State]]:
        locks, worker = state[0], state[2][w]
        if worker.parent and worker.debt:
            return  # one at a time: a parent has a list of them, each with its own holder
        r = worker.run
        dead = worker._replace(run=-1, fresh=0, lost=0, debt=worker.parent)
        own = self.own(locks, w)
        if own is not None:
            locks = self.instead(locks, own, own._replace(of=DEAD))
        after = self.put(state, w=w, worker=dead, locks=locks)
        # its message goes back to the queue; that of an orphan is there already
        yield f"the child of {who} is killed", self.copy(after, r) if worker.parent else after

    def kill_parent(self, state: State, w: int) -> State:
        worker = state[2][w]
        after = self.put(state, w=w, worker=worker._replace(parent=0, debt=0))
        return self.copy(after, worker.run) if worker.run >= 0 else after

    def copy(self, state: State, r: int) -> State:
        run = state[1][r]
        return self.put(state, r=r, run=run._replace(copies=min(run.copies + 1, self.copies)))

    def free(self, state: State, w: int) -> State:
        of = (DEAD, RUNNING) if "waiting for the death" in self.without else (DEAD,)
        left = tuple(lock for lock in state[0] if lock.holder != w or lock.of not in of)
        return self.put(state, w=w, worker=state[2][w]._replace(debt=0), locks=() if "holder" in self.without else left)

    # -- invariants ----------------------------------------------------------------------------------------------------

    def broken(self, state: State) -> str | None:
        locks, runs, workers, wrong = state
        if wrong:
            return wrong
        sure = [w for w, worker in enumerate(workers) if worker.fresh]
        if len(sure) > max(self.limits):
            return f"P1: {('two', 'three')[len(sure) - 2]} bodies run, and each trusts that it has the lock"
        if len({workers[w].run for w in sure}) < len(sure):
            return "P1: two bodies of one run, and each trusts that it has the lock"
        for w in sure:
            own = self.own(locks, w)
            if own is None or own.left < workers[w].fresh:
                return "P1: a body trusts a lock that the store does not hold for it"
        for r, run in enumerate(runs):
            if run.ended > 1:
                return f"P2: run {r + 1} is brought to its end twice"
            if not (run.ended or run.answered or run.copies or any(worker.run == r for worker in workers)):
                return f"P2: run {r + 1} is nowhere any more, and nobody has been told"
        for lock in locks:
            if lock.of == DEAD and workers[lock.holder].parent and not workers[lock.holder].debt:
                return "P6: a dead child's lock is not going to be freed by its parent"
        return None

    # -- changing a tuple ----------------------------------------------------------------------------------------------

    def put(
        self,
        state: State,
        *,
        r: int = 0,
        run: Run | None = None,
        w: int = 0,
        worker: Worker | None = None,
        locks: tuple[Lock, ...] | None = None,
    ) -> State:
        old, runs, workers, wrong = state
        if run is not None:
            runs = (*runs[:r], run, *runs[r + 1 :])
        if worker is not None:
            workers = (*workers[:w], worker, *workers[w + 1 :])
        return old if locks is None else tuple(sorted(locks)), runs, workers, wrong

"""The protocol of runs that have several keys as a model: all of them or none, and who finds one held waits in its line. See docs/protocol.md.

Runs that share keys, and workers of one pool child each. The keys are taken in one call, or, as in a Cluster, each in one of its own, and
are always released, and freed, one by one. What becomes of the copies of a message is in ``lines.py``: here one that waits is in the
broker, and comes at any time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

#: What a worker is doing with the keys of its run: it goes on with the next of them at each step.
TAKES, RUNS, GIVES_BACK, FORGETS, RELEASES = range(5)


class Hold(NamedTuple):
    """One lease of one key that lives."""

    key: int
    run: int
    worker: int  # -1: its holder is dead
    left: int  # until it is over, on the store's clock


class Run(NamedTuple):
    """What the broker and the store have of one run, and what became of it."""

    messages: int = 1
    finished: tuple[int, ...] = ()  # the keys that remember it
    ended: int = 0  # so often its body was brought to an end, under its lock
    answered: int = 0  # it failed


class Worker(NamedTuple):
    run: int = -1
    does: int = TAKES
    count: int = 0  # so many of its keys it has
    fresh: int = 0  # for so long it trusts its lock, on its own clock


class State(NamedTuple):
    holds: tuple[Hold, ...]
    lines: tuple[tuple[int, ...], ...]  # of each key: those who wait, in their order
    called: tuple[tuple[int, int, int], ...]  # key, for whom it is kept, and for how long
    arrived: tuple[int, ...]  # all that have asked, in the order of their first asking
    runs: tuple[Run, ...]
    workers: tuple[Worker, ...]
    deaths: int  # so many processes may still die


@dataclass(frozen=True)
class Several:
    #: the keys of each run, sorted
    keys: tuple[tuple[int, ...], ...] = ((0, 1), (1, 2), (0, 2))
    workers: int = 2
    #: each key is taken in a call of its own
    parted: bool = False
    ttl: int = 1
    grace: int = 1
    deaths: int = 1
    #: so many messages of a run are in the broker at most: a bound of the search alone
    copies: int = 2
    #: mutations: what the protocol is made without
    without: frozenset[str] = frozenset()

    def initial(self) -> State:
        count = 1 + max(key for keys in self.keys for key in keys)
        return State((), ((),) * count, (), (), (Run(),) * len(self.keys), (Worker(),) * self.workers, self.deaths)

    def key(self, state: State) -> object:
        # a worker is as any other: they are sorted by what they do, and leases go with them
        order = sorted(range(self.workers), key=lambda w: (state.workers[w], [h for h in state.holds if h.worker == w]))
        names = {-1: -1, **{w: n for n, w in enumerate(order)}}
        holds = tuple(sorted(tuple(hold._replace(worker=names[hold.worker])) for hold in state.holds))
        workers = tuple(tuple(state.workers[w]) for w in order)
        rest = state.lines, tuple(sorted(state.called)), state.arrived, tuple(map(tuple, state.runs)), state.deaths
        return (holds, workers, *rest)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        if (later := self.pass_time(state)) != state:
            yield "time passes", later
        for key in range(len(state.lines)):
            yield from self.send(f"somebody looks after the line of key {key}", *self.serve(state, key))
        for hold in state.holds:
            if hold.worker < 0:
                yield from self.send(f"a parent frees key {hold.key} of its dead child", *self.free(state, hold))
        for w, worker in enumerate(state.workers):
            who = f"worker {'ABC'[w]}"
            if worker.run < 0:
                for r, run in enumerate(state.runs):
                    # what comes of one that has failed is no matter here
                    if run.messages and not run.answered:
                        yield from self.deliver(state, w, r, f"{who} gets run {r + 1}")
            else:
                yield from self.go_on(state, w, who)
                if state.deaths:
                    yield f"the child of {who} is killed", self.kill(self.less(state), w)

    def pass_time(self, state: State) -> State:
        return state._replace(
            holds=tuple(hold._replace(left=hold.left - 1) for hold in state.holds if hold.left > 1),
            called=tuple((key, r, left - 1) for key, r, left in state.called if left > 1),
            workers=tuple(
                worker._replace(fresh=worker.fresh - 1) if worker.fresh else worker for worker in state.workers
            ),
        )

    # -- line.lua ------------------------------------------------------------------------------------------------------

    def serve(self, state: State, key: int) -> tuple[State, list[int]]:
        """Give a key that is free to who is first in its line."""
        if not state.lines[key] or self.others(state, key):
            return state, []
        first, *rest = state.lines[key]
        called = (*state.called, (key, first, self.grace))
        return self.line(state, key, rest)._replace(called=called), [first]

    def free(self, state: State, hold: Hold) -> tuple[State, list[int]]:
        return self.serve(state._replace(holds=tuple(each for each in state.holds if each != hold)), hold.key)

    def send(self, did: str, state: State, calls: list[int]) -> Iterator[tuple[str, State]]:
        """Who has freed a key sends the messages of those that are called, or dies before it does."""
        if calls and state.deaths:
            yield f"{did}, and dies before it tells who is called", self.less(state)
        yield did, self.put(state, calls)

    # -- all.lua, among.lua, and LockStore.acquire_all -----------------------------------------------------------------

    def deliver(self, state: State, w: int, r: int, got: str) -> Iterator[tuple[str, State]]:
        run = state.runs[r]
        if r not in state.arrived:
            state = state._replace(arrived=(*state.arrived, r))
        state = self.run(state, r, run._replace(messages=run.messages - 1))
        state = self.worker(state, w, Worker(r, TAKES, 0, self.ttl))
        if self.parted:
            yield got, state
            return
        calls: list[int] = []
        while state.workers[w].does == TAKES:
            state, more = self.take(state, w)
            calls += more
        # what it has is given back in the same call
        while state.workers[w].does in (GIVES_BACK, FORGETS):
            state, more = self.give_back(state, w)
            calls += more
        yield from self.send(got, state, calls)

    def go_on(self, state: State, w: int, who: str) -> Iterator[tuple[str, State]]:
        worker = state.workers[w]
        did = f"{who} {('asks for the next key', 'ends', 'gives a key back', 'gives a key back', 'releases a key')[worker.does]}"
        did += f" of run {worker.run + 1}"
        if worker.does == TAKES:
            yield from self.send(did, *self.take(state, w))
        elif worker.does == RUNS:
            yield from self.send(did, *self.end(state, w))
        elif worker.does == RELEASES:
            yield from self.send(did, *self.release(state, w))
        else:
            yield from self.send(did, *self.give_back(state, w))

    def take(self, state: State, w: int) -> tuple[State, list[int]]:
        """Ask for the next key, or begin, where it has them all."""
        worker = state.workers[w]
        r, keys = worker.run, self.keys[worker.run]
        if worker.count == len(keys):
            does = RUNS if worker.fresh else GIVES_BACK  # the answer has come too late
            return self.worker(state, w, worker._replace(does=does)), []
        key = keys[worker.count]
        if key in state.runs[r].finished:
            return self.worker(state, w, worker._replace(does=FORGETS)), []
        if any(hold.key == key and hold.run == r for hold in state.holds):
            # it goes on elsewhere: this one comes again
            return self.worker(state, w, worker._replace(does=GIVES_BACK)), []
        state, granted, calls = self.turn(state, key, r)
        if granted:
            fresh = self.ttl if "trust since the first of them was asked for" in self.without else worker.fresh
            state = state._replace(holds=(*state.holds, Hold(key, r, w, self.ttl)))
            return self.worker(state, w, worker._replace(count=worker.count + 1, fresh=fresh)), calls
        waiting = state.lines[key] if r in state.lines[key] else (*state.lines[key], r)
        state = self.line(state, key, sorted(waiting, key=state.arrived.index))
        return self.worker(state, w, worker._replace(does=GIVES_BACK)), calls

    def turn(self, state: State, key: int, r: int) -> tuple[State, bool, list[int]]:
        """Whether it is the turn of a run; who is before it is called."""
        came = state.arrived.index
        if "one's own place" not in self.without:
            state = state._replace(called=tuple(each for each in state.called if each[:2] != (key, r)))
        kept = [each for each in state.called if each[0] == key]
        if kept and came(r) < came(kept[0][1]):
            # it is not here yet, and waits on in its place
            state = state._replace(called=tuple(each for each in state.called if each != kept[0]))
            state = self.line(state, key, sorted((*state.lines[key], kept[0][1]), key=came))
        if self.others(state, key):
            return state, False, []
        if not state.lines[key] or came(state.lines[key][0]) >= came(r):
            return self.line(state, key, [each for each in state.lines[key] if each != r]), True, []
        state, calls = self.serve(state, key)
        return state, False, calls

    def give_back(self, state: State, w: int) -> tuple[State, list[int]]:
        """Free the last key that it has; with none left its message goes back, or is forgotten."""
        worker = state.workers[w]
        if worker.count == 0 or "what was taken is given back" in self.without:
            calls = [worker.run] if worker.does == GIVES_BACK else []
            return self.put(self.worker(state, w, Worker()), calls), []
        key = self.keys[worker.run][worker.count - 1]
        state = self.worker(state, w, worker._replace(count=worker.count - 1))
        own = next((hold for hold in state.holds if (hold.key, hold.worker) == (key, w)), None)
        return (state, []) if own is None else self.free(state, own)

    # -- release.lua, and the death of a child -------------------------------------------------------------------------

    def end(self, state: State, w: int) -> tuple[State, list[int]]:
        """Release the first key, which is the end; or fail, and free what is left."""
        worker = state.workers[w]
        run = state.runs[worker.run]
        if worker.fresh:
            state = self.run(state, worker.run, run._replace(ended=run.ended + 1))
            return self.release(self.worker(state, w, worker._replace(does=RELEASES, count=0)), w)
        state = self.run(state, worker.run, run._replace(answered=1))
        return self.worker(state, w, worker._replace(does=FORGETS)), []

    def release(self, state: State, w: int) -> tuple[State, list[int]]:
        """Release the next key, which remembers the run; where its lease is over, another may have it."""
        worker = state.workers[w]
        keys, run = self.keys[worker.run], state.runs[worker.run]
        if worker.count == len(keys):
            return self.worker(state, w, Worker()), []
        key = keys[worker.count]
        state = self.worker(state, w, worker._replace(count=worker.count + 1))
        own = next((hold for hold in state.holds if (hold.key, hold.worker) == (key, w)), None)
        if own is None:
            return state, []
        if "memory of who has ended" not in self.without:
            state = self.run(state, worker.run, run._replace(finished=tuple(sorted({*run.finished, key}))))
        return self.free(state, own)

    def kill(self, state: State, w: int) -> State:
        run = state.workers[w].run
        holds = tuple(hold._replace(worker=-1) if hold.worker == w else hold for hold in state.holds)
        return self.put(self.worker(state._replace(holds=holds), w, Worker()), [run])

    # -- invariants ----------------------------------------------------------------------------------------------------

    def broken(self, state: State) -> str | None:
        sure = [worker.run for worker in state.workers if worker.does == RUNS and worker.fresh]
        for key in range(len(state.lines)):
            if sum(key in self.keys[run] for run in sure) > 1:
                return "P1: two bodies that share a key, and each trusts that it has it"
            if sum(hold.key == key for hold in state.holds) > 1:
                return "P1: two leases of one key live"
        for hold in state.holds:
            if hold.worker >= 0 and state.workers[hold.worker].run != hold.run:
                return f"all or none: run {hold.run + 1} waits, and has a key"
        for w, worker in enumerate(state.workers):
            have = {hold.key for hold in state.holds if hold.worker == w}
            if worker.does == RUNS and worker.fresh and have != set(self.keys[worker.run]):
                return f"all or none: run {worker.run + 1} runs, and has not all of its keys"
        for r, run in enumerate(state.runs):
            if run.ended > 1:
                return f"P2: run {r + 1} is brought to its end twice"
            if not (run.ended or run.answered or run.messages or any(worker.run == r for worker in state.workers)):
                return f"P2: run {r + 1} is nowhere any more, and nobody has been told"
        return self.stuck(state)

    def stuck(self, state: State) -> str | None:
        """Whether nobody comes to an end any more though all goes well from here on, and whoever may do something does it."""
        undone = [r for r, run in enumerate(state.runs) if not (run.ended or run.answered)]
        if not undone:
            return None
        done = sum(run.ended + run.answered for run in state.runs)
        state = state._replace(deaths=0)
        for _ in range(2 * len(self.keys) + self.ttl + self.grace):
            for w in range(self.workers):
                state = self.finish(state, w)
            for r in sorted(undone, key=lambda r: state.arrived.index(r) if r in state.arrived else len(self.keys)):
                if state.runs[r].messages:
                    state = self.finish(next(after for _, after in self.deliver(state, 0, r, "")), 0)
            if sum(run.ended + run.answered for run in state.runs) > done:
                return None
            state = self.pass_time(state)
            for key in range(len(state.lines)):
                state, calls = self.serve(state, key)
                state = self.put(state, calls)
        return "deadlock: those that wait do so for ever"

    def finish(self, state: State, w: int) -> State:
        while state.workers[w].run >= 0:
            state = next(after for _, after in self.go_on(state, w, ""))
        return state

    # -- changing a tuple ----------------------------------------------------------------------------------------------

    def others(self, state: State, key: int) -> bool:
        """Whether a key is somebody's, or kept for somebody."""
        return any(hold.key == key for hold in state.holds) or any(each[0] == key for each in state.called)

    def put(self, state: State, calls: list[int]) -> State:
        """Put messages into the broker."""
        for r in calls:
            messages = min(self.copies, state.runs[r].messages + 1)
            state = self.run(state, r, state.runs[r]._replace(messages=messages))
        return state

    def less(self, state: State) -> State:
        return state._replace(deaths=state.deaths - 1)

    def run(self, state: State, r: int, run: Run) -> State:
        return state._replace(runs=(*state.runs[:r], run, *state.runs[r + 1 :]))

    def worker(self, state: State, w: int, worker: Worker) -> State:
        if worker.does not in (TAKES, RUNS):
            worker = worker._replace(fresh=0)  # it trusts nothing any more
        return state._replace(workers=(*state.workers[:w], worker, *state.workers[w + 1 :]))

    def line(self, state: State, key: int, waiting: list[int]) -> State:
        return state._replace(lines=(*state.lines[:key], tuple(waiting), *state.lines[key + 1 :]))

"""The protocol of a line as a model: who finds a key held waits for it, and is called. See docs/protocol.md.

Some runs of one key, and workers of one pool child each. All acknowledge late. Each message has the number of its copy, and whether
the broker has delivered it before. A process that is frozen or slow just takes no step, and nobody need look after a line at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

Message = tuple[int, int]  # the number of the copy, and whether it has been delivered before


class Hold(NamedTuple):
    """One lease of the key that lives."""

    run: int
    left: int  # until it is over, on the store's clock
    dead: int = 0  # its holder is


class Run(NamedTuple):
    """What the broker and the store have of one run, and what became of it."""

    messages: tuple[Message, ...] = ((0, 0),)
    known: int = 0  # the number of the copy that is to come next, as the store knows it; 0: it does not wait
    finished: int = 0  # the store remembers it
    ended: int = 0  # so often its body was brought to an end, under the lock
    answered: int = 0  # it failed


class Worker(NamedTuple):
    run: int = -1  # what its child runs
    message: Message = (0, 0)  # which the broker keeps until it is acknowledged
    fresh: int = 0  # for so long the child trusts its lock, on its own clock


class State(NamedTuple):
    holds: tuple[Hold, ...]
    line: tuple[int, ...]  # those who wait, in their order
    called: tuple[tuple[int, int], ...]  # for whom a place is kept, and for how long
    arrived: tuple[int, ...]  # all that have asked, in the order of their first asking
    runs: tuple[Run, ...]
    workers: tuple[Worker, ...]
    deaths: int  # so many processes may still die
    wrong: str = ""


@dataclass(frozen=True)
class Lines:
    workers: int = 2
    runs: int = 3
    limit: int = 1
    ttl: int = 1
    grace: int = 1
    #: so often one message is put off, and so many copies of it are in the broker at most: a bound of the search alone
    copies: int = 2
    #: so many processes die at most: another such bound
    deaths: int = 2
    #: mutations: what the protocol is made without
    without: frozenset[str] = frozenset()

    def initial(self) -> State:
        return State((), (), (), (), (Run(),) * self.runs, (Worker(),) * self.workers, self.deaths)

    def key(self, state: State) -> object:
        # those that have arrived are told apart by their order, the others are alike but for what is there of them
        others = sorted((each for each in range(self.runs) if each not in state.arrived), key=lambda r: state.runs[r])
        name = {-1: -1, **{r: n for n, r in enumerate((*state.arrived, *others))}}
        return (
            tuple(sorted((name[hold.run], *hold[1:]) for hold in state.holds)),
            tuple(name[r] for r in state.line),
            tuple(sorted((name[r], left) for r, left in state.called)),
            len(state.arrived),
            tuple(tuple(state.runs[r]) for r in (*state.arrived, *others)),
            tuple(sorted((name[worker.run], worker.message, worker.fresh) for worker in state.workers)),
            state.deaths,
            state.wrong,
        )

    # -- steps ---------------------------------------------------------------------------------------------------------

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        if (later := self.pass_time(state)) != state:
            yield "time passes", later
        yield from self.serve("somebody looks after the line", state)
        if any(hold.dead for hold in state.holds):
            free = state._replace(holds=tuple(hold for hold in state.holds if not hold.dead))
            yield from self.serve("a parent frees what its dead child held", free)
        for w, worker in enumerate(state.workers):
            who = f"worker {'ABC'[w]}"
            if worker.run < 0:
                for r, run in enumerate(state.runs):
                    for message in sorted(set(run.messages)):
                        yield from self.deliver(state, w, r, message, f"{who} gets run {r + 1}")
            else:
                yield from self.renew(state, w, who)
                yield from self.end(state, w, who)
                if state.deaths:
                    yield f"the child of {who} is killed", self.kill(self.less(state), w)

    def pass_time(self, state: State) -> State:
        return state._replace(
            holds=tuple(hold._replace(left=hold.left - 1) for hold in state.holds if hold.left > 1),
            called=tuple((r, left - 1) for r, left in state.called if left > 1),
            workers=tuple(
                worker._replace(fresh=worker.fresh - 1) if worker.fresh else worker for worker in state.workers
            ),
        )

    # -- line.lua ------------------------------------------------------------------------------------------------------

    def serve(self, did: str, state: State) -> Iterator[tuple[str, State]]:
        """Give what is free to those who are first."""
        calls = []
        while state.line and len(state.holds) + len(state.called) < self.limit:
            first, *rest = state.line
            calls.append(first)
            state = state._replace(line=tuple(rest), called=(*state.called, (first, self.grace)))
        yield from self.send(did, state, calls)

    def send(self, did: str, state: State, calls: list[int]) -> Iterator[tuple[str, State]]:
        """Who has freed the key sends the messages of those that are called, or dies before it does."""
        if calls and state.deaths:
            yield f"{did}, and dies before it tells who is called", self.less(state)
        for r in calls:
            state = self.put(state, r, (state.runs[r].known, 0))
        yield did, state

    # -- among.lua, and tasks/waiting.py -------------------------------------------------------------------------------

    def deliver(self, state: State, w: int, r: int, message: Message, got: str) -> Iterator[tuple[str, State]]:
        back = state
        state = self.take(state, r, message)
        if state.runs[r].finished and "memory of who has waited" not in self.without:
            yield f"{got}, a copy of what has ended", state
            return
        if any(hold.run == r for hold in state.holds):
            # one that was sent to wait is superfluous; a safety copy comes again
            yield f"{got}, which goes on elsewhere", state if message[0] and not message[1] else back
            return
        if r not in state.arrived:
            state = state._replace(arrived=(*state.arrived, r))
        state, granted, calls = self.turn(state, r)
        if granted:
            yield from self.send(f"{got}, and its lock", self.grant(state, w, r, message), calls)
        else:
            yield from self.wait(f"{got}, which waits", state, r, message, calls)

    def turn(self, state: State, r: int) -> tuple[State, bool, list[int]]:
        """Whether it is the turn of a run; who is before it is called."""
        came = state.arrived.index
        called = tuple(each for each in state.called if each[0] != r)
        line, calls = state.line, []
        counted = len(state.holds) + (0 if "the place that is kept" in self.without else len(called))
        if counted >= self.limit and called:
            latest = max(called, key=lambda each: came(each[0]))
            if came(r) < came(latest[0]):
                # it is not here yet, and waits on in its place
                called = tuple(each for each in called if each is not latest)
                line = tuple(sorted((*line, latest[0]), key=came))
                counted -= 1
        while counted < self.limit:
            first = line[0] if line else r
            if came(first) >= came(r) or "a look at who came before" in self.without:
                return state._replace(line=line, called=called), True, calls
            line, called, counted = line[1:], (*called, (first, self.grace)), counted + 1
            calls.append(first)
        return state._replace(line=line, called=called), False, calls

    def grant(self, state: State, w: int, r: int, message: Message) -> State:
        came = state.arrived.index
        wrong = state.wrong
        if any(came(other) < came(r) for other in state.line if other != r):
            wrong = f"order: run {r + 1} begins before one that came first, and waits"
        earlier = any(came(other) < came(r) for other, _ in state.called)
        if earlier and len(state.holds) + len(state.called) >= self.limit:
            wrong = f"order: run {r + 1} begins in the place that is kept for one that came first"
        return state._replace(
            holds=(*state.holds, Hold(r, self.ttl)),
            line=tuple(other for other in state.line if other != r),
            runs=self.instead(state.runs, r, state.runs[r]._replace(known=0)),
            workers=self.instead(state.workers, w, Worker(r, message, self.ttl)),
            wrong=wrong,
        )

    def wait(self, did: str, state: State, r: int, message: Message, calls: list[int]) -> Iterator[tuple[str, State]]:
        came, run = state.arrived.index, state.runs[r]
        number, again = message
        if r not in state.line:
            state = state._replace(line=tuple(sorted((*state.line, r), key=came)))
        if "a copy of its own" in self.without:
            yield from self.send(did, state, calls)
            return
        delivered_again = 0 if "a look at what was delivered before" in self.without else again
        if run.known and number < run.known - delivered_again:
            yield from self.send(f"{did}: another copy is on its way", state, calls)
            return
        copy = max(number + 1, run.known)
        if copy > self.copies:
            return  # it goes on like that for ever
        known = state._replace(runs=self.instead(state.runs, r, run._replace(known=copy)))
        yield from self.send(did, self.put(known, r, (copy, 0)), calls)
        if state.deaths:
            # before it has sent the copy, or before it has acknowledged this one
            known = self.less(known)
            yield f"{did}, and the worker dies at once", self.put(known, r, (number, 1))
            yield f"{did}, and the worker dies then", self.put(self.put(known, r, (copy, 0)), r, (number, 1))

    # -- extend.lua, release.lua, and the death of a child -------------------------------------------------------------

    def renew(self, state: State, w: int, who: str) -> Iterator[tuple[str, State]]:
        worker = state.workers[w]
        if worker.fresh and worker.fresh < self.ttl:
            holds = tuple(
                hold._replace(left=self.ttl) if hold.run == worker.run and not hold.dead else hold
                for hold in state.holds
            )
            fresh = self.instead(state.workers, w, worker._replace(fresh=self.ttl))
            yield f"{who} renews", state._replace(holds=holds, workers=fresh)

    def end(self, state: State, w: int, who: str) -> Iterator[tuple[str, State]]:
        worker = state.workers[w]
        r, run = worker.run, state.runs[worker.run]
        idle = state._replace(workers=self.instead(state.workers, w, Worker()))
        if worker.fresh:
            ended = run._replace(ended=run.ended + 1, finished=1)
            holds = tuple(hold for hold in state.holds if hold.run != r or hold.dead)
            free = idle._replace(holds=holds, runs=self.instead(state.runs, r, ended))
            yield from self.serve(f"{who} ends run {r + 1}, and releases", free)
        else:
            failed = run._replace(answered=1)
            yield f"{who} ends run {r + 1}, lost", idle._replace(runs=self.instead(state.runs, r, failed))

    def kill(self, state: State, w: int) -> State:
        worker = state.workers[w]
        holds = tuple(
            hold._replace(dead=1) if worker.fresh and hold.run == worker.run else hold for hold in state.holds
        )
        dead = state._replace(holds=holds, workers=self.instead(state.workers, w, Worker()))
        return self.put(dead, worker.run, (worker.message[0], 1))

    # -- invariants ----------------------------------------------------------------------------------------------------

    def broken(self, state: State) -> str | None:
        if state.wrong:
            return state.wrong
        sure = [worker.run for worker in state.workers if worker.fresh]
        if len(sure) > self.limit:
            return "P1: more bodies run than may, and each trusts that it has the lock"
        if len(set(sure)) < len(sure):
            return "P1: two bodies of one run, and each trusts that it has the lock"
        if len(state.holds) > self.limit:
            return "P1: more leases live than may"
        for r, run in enumerate(state.runs):
            if run.ended > 1:
                return f"P2: run {r + 1} is brought to its end twice"
            there = run.messages or any(worker.run == r for worker in state.workers)
            if not (run.ended or run.answered or there):
                return f"P2: run {r + 1} is nowhere any more, and nobody has been told"
        return None

    def less(self, state: State) -> State:
        return state._replace(deaths=state.deaths - 1)

    # -- changing a tuple ----------------------------------------------------------------------------------------------

    def take(self, state: State, r: int, message: Message) -> State:
        left = list(state.runs[r].messages)
        left.remove(message)
        return state._replace(runs=self.instead(state.runs, r, state.runs[r]._replace(messages=tuple(left))))

    def put(self, state: State, r: int, message: Message) -> State:
        """Put a message into the broker; of those that are alike one is enough."""
        messages = tuple(sorted({*state.runs[r].messages, message}))
        return state._replace(runs=self.instead(state.runs, r, state.runs[r]._replace(messages=messages)))

    @staticmethod
    def instead(all_: tuple, number: int, one: object) -> tuple:
        return (*all_[:number], one, *all_[number + 1 :])

"""The protocol of the beats as a model: claim, publish, settle, take over, hand over, pause. See docs/protocol.md.

What is not in a state needs no step. A beat that is killed, frozen or slow just takes none. What a beat knows of an
entry is left out: it may ask for any run at any time, the store decides, and what the store refuses changes nothing.
A beat that starts late, or anew, is one that has taken no step yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import NamedTuple


class Tick(NamedTuple):
    """One run of one entry, and its claim."""

    owner: int = -2  # the beat that has claimed it; SETTLED, UNCLAIMED, PASSED_OVER
    left: int = 0  # for so long nobody else may take the claim over; 0: it is overdue
    task_id: int = 0  # ids are numbered per tick, in the order in which they were chosen
    published: int = 0  # a bit for each id under which a message has been published
    stolen: int = 0  # it was published by a beat that did not own the claim any more
    pause: int = 0  # of the entry, in its first tick: for so long whoever pauses it waits, plus one; ACKNOWLEDGED
    late: int = 0  # it was published after its entry's pause was acknowledged


UNCLAIMED, SETTLED, PASSED_OVER = -2, -1, -3
ACKNOWLEDGED = -1


class Hold(NamedTuple):
    """What a beat has in its hands of one tick: ``_unsent`` and ``_sent`` of the scheduler."""

    fresh: int = -1  # for so long it may be published; SENT: it waits to be settled; NOTHING; PASSED the freeze check
    task_id: int = 0
    late: str = ""  # what the store has been asked, and has not carried out


NOTHING, SENT, PASSED = -1, 0, 99
EMPTY = Hold()

State = tuple[tuple[Tick, ...], tuple[tuple[Hold, ...], ...]]


@dataclass(frozen=True)
class Beats:
    beats: int = 3
    entries: int = 2
    ticks: int = 3
    ttl: int = 1
    #: so many claims of one entry may be pending (8 in the product)
    backlog: int = 2
    #: a beat can be frozen between its freeze check and the publish
    frozen_in_publish: bool = False
    #: what was asked may be carried out after the beat has given it up: a server that hung reads it when it wakes up
    late_requests: bool = False
    #: somebody pauses an entry, once; what a frozen beat publishes then is let out
    pauses: bool = False
    #: mutations: what the protocol is made without
    without: frozenset[str] = frozenset()

    # -- states --------------------------------------------------------------------------------------------------------

    def initial(self) -> State:
        n = self.entries * self.ticks
        return (Tick(),) * n, ((EMPTY,) * n,) * self.beats

    def key(self, state: State) -> object:
        ticks, beats = state
        facts = [(min(tick.owner, 0), *tick[2:]) for tick in ticks]
        sights = [
            [(tick.left if tick.owner == beat else -1, *hold) for tick, hold in zip(ticks, holds, strict=True)]
            for beat, holds in enumerate(beats)
        ]
        keys = []
        for first in range(self.entries):  # any entry may be called the first
            cut = first * self.ticks
            turned = sorted(tuple(sight[cut:] + sight[:cut]) for sight in sights)
            keys.append((tuple(facts[cut:] + facts[:cut]), tuple(turned)))
        return min(keys)

    def name(self, j: int) -> str:
        entry, tick = divmod(j, self.ticks)
        return f"{'xyz'[entry]}{tick + 1}"

    # -- steps ---------------------------------------------------------------------------------------------------------

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        if (later := self.pass_time(state)) != state:
            yield "time passes", later
        for beat in range(self.beats):
            yield from self.steps_of(state, beat)
        for entry in range(self.entries if self.pauses else 0):
            yield from self.pausing(state, entry)

    def pausing(self, state: State, entry: int) -> Iterator[tuple[str, State]]:
        j, first = entry * self.ticks, state[0][entry * self.ticks]
        if not first.pause:
            yield f"{'xyz'[entry]} is paused", self.change(state, j, first._replace(pause=self.ttl + 1))
        pending = any(tick.owner >= 0 for tick in state[0][j : j + self.ticks])
        if first.pause == 1 or (first.pause > 0 and (not pending or "waiting" in self.without)):
            yield (
                f"the pause of {'xyz'[entry]} is acknowledged",
                self.change(state, j, first._replace(pause=ACKNOWLEDGED)),
            )

    def is_paused(self, state: State, j: int) -> int:
        return state[0][j - j % self.ticks].pause

    def steps_of(self, state: State, beat: int) -> Iterator[tuple[str, State]]:
        ticks, holds = state[0], state[1][beat]
        who = "beat " + "ABC"[beat]
        in_hand = [j for j, hold in enumerate(holds) if hold.fresh != NOTHING]
        sent = [j for j in in_hand if holds[j].fresh == SENT]
        unsent = [j for j in in_hand if holds[j].fresh != SENT]
        if sent and not unsent:
            # the same if the answer is lost: it is told again, and that changes nothing
            yield f"{who} settles {self.names(sent)}", self.settle(state, beat, sent)
            yield from self.late(state, beat, sent, f"{who} settles", "settle")
        if "publish before settle" in self.without and unsent and any(ticks[j].owner == beat for j in unsent):
            yield f"{who} settles {self.names(unsent)}, unsent", self.settle(state, beat, unsent, keep=True)
        for j in unsent[:1]:
            if self.frozen_in_publish and holds[j].fresh != PASSED:
                yield f"{who} finds {self.name(j)} fresh", self.hold(state, beat, j, PASSED, holds[j].task_id)
                continue
            published = self.publish(state, beat, j)
            yield f"{who} publishes {self.name(j)}", self.hold(published, beat, j, SENT, holds[j].task_id)
            # the broker fails, before or after it has the message, and the beat gives up what it has
            yield f"{who} cannot publish {self.name(j)}", self.give_up(state, beat, unsent)
            yield f"{who} does not hear that {self.name(j)} arrived", self.give_up(published, beat, unsent)
        if not in_hand:
            for asked in product(*(self.grantable(state, beat, entry) for entry in range(self.entries))):
                claims = [j for j in asked if j is not None]
                if claims:
                    yield f"{who} claims {self.names(claims)}", self.claim(state, beat, claims, heard=True)
                    lost = self.claim(state, beat, claims, heard=False)
                    yield f"{who} claims {self.names(claims)}, and does not hear it", lost
                    yield from self.late(state, beat, claims, f"{who} claims", "claim")
        if not sent and not any(holds[j].fresh == PASSED for j in unsent):
            overdue = self.overdue(state)
            if overdue:
                yield f"{who} takes over {self.names(overdue)}", self.take_over(state, beat, overdue, heard=True)
                lost = self.take_over(state, beat, overdue, heard=False)
                yield f"{who} takes over {self.names(overdue)}, and does not hear it", lost
                yield from self.late(state, beat, overdue, f"{who} takes over", "take over")
        for j, tick in enumerate(ticks):
            if tick.owner == beat and tick.left and holds[j].fresh == NOTHING:
                yield f"{who} hands over {self.name(j)}", self.hand_over(state, beat, j)
                yield from self.late(state, beat, [j], f"{who} hands over", "hand over")
            if holds[j].late:
                yield f"the store carries out what {who} asked of {self.name(j)}", self.carry_out(state, beat, j)

    def late(self, state: State, beat: int, js: list[int], does: str, what: str) -> Iterator[tuple[str, State]]:
        if self.late_requests and not any(hold.late for hold in state[1][beat]):
            after = state
            for j in js:
                after = self.ask(after, beat, j, what)
            yield f"{does} {self.names(js)}, and the store does not answer", after

    def carry_out(self, state: State, beat: int, j: int) -> State:
        hold = state[1][beat][j]
        state = self.ask(state, beat, j, "")
        if hold.late == "claim" and j in self.grantable(state, beat, j // self.ticks):
            return self.claim(state, beat, [j], heard=False)
        if hold.late == "take over" and j in self.overdue(state):
            return self.take_over(state, beat, [j], heard=False)
        if hold.late == "settle":
            return self.settle(state, beat, [j], keep=True)
        return self.hand_over(state, beat, j) if hold.late == "hand over" else state

    def names(self, js: list[int]) -> str:
        return " and ".join(map(self.name, js))

    def pass_time(self, state: State) -> State:
        """One unit of time, by all clocks: claims come nearer to be overdue, and holds to be stale."""
        ticks, beats = state
        aged = tuple(
            tick._replace(left=max(0, tick.left - 1), pause=tick.pause - 1 if tick.pause > 1 else tick.pause)
            for tick in ticks
        )
        if "freeze check" in self.without:
            return aged, beats
        return aged, tuple(tuple(_older(hold) for hold in holds) for holds in beats)

    # -- claim.lua -----------------------------------------------------------------------------------------------------

    def grantable(self, state: State, beat: int, entry: int) -> list[int | None]:
        """Of an entry, the ticks that the store would grant to this beat, and none."""
        ticks, first = state[0], entry * self.ticks
        of_entry = range(first, first + self.ticks)
        grantable: list[int | None] = [None]
        pending = sum(ticks[j].owner >= 0 for j in of_entry)
        for j in of_entry:
            tick = ticks[j]
            if tick.owner == UNCLAIMED:
                if pending < self.backlog:
                    grantable.append(j)
                break
            if tick.owner == beat:
                grantable.append(j)  # it is told again what it may not have heard
            elif "compare-and-set" in self.without and tick.task_id == 0:
                grantable.append(j)
        return grantable

    def claim(self, state: State, beat: int, claims: list[int], *, heard: bool) -> State:
        for j in claims:
            tick = state[0][j]
            if self.is_paused(state, j) and "flag in the claim" not in self.without:
                # it is nobody's, also if it was granted before and nobody has heard of that
                state = self.change(state, j, tick._replace(owner=PASSED_OVER, left=0))
                continue
            again = tick.owner == beat or tick.owner == UNCLAIMED
            tick = tick._replace(owner=beat, left=self.ttl, task_id=tick.task_id if again else tick.task_id + 1)
            state = self.change(state, j, tick)
            if heard:
                state = self.hold(state, beat, j, self.ttl, tick.task_id)
        return state

    # -- take_over.lua -------------------------------------------------------------------------------------------------

    def overdue(self, state: State) -> list[int]:
        if "take over" in self.without:
            return []
        return [j for j, tick in enumerate(state[0]) if tick.owner >= 0 and not tick.left]

    def take_over(self, state: State, beat: int, overdue: list[int], *, heard: bool) -> State:
        for j in overdue:
            tick = state[0][j]
            if state[1][tick.owner][j].fresh == SENT:
                # what it would settle is not its own any more: that changes nothing, so it is forgotten here
                state = self.hold(state, tick.owner, j, NOTHING)
            if self.is_paused(state, j) and "flag of what is taken over" not in self.without:
                state = self.change(state, j, tick._replace(owner=PASSED_OVER, left=0))
                continue
            tick = tick._replace(owner=beat, left=self.ttl)
            if "task id with the claim" in self.without:
                tick = tick._replace(task_id=min(tick.task_id + 1, 2))
            state = self.change(state, j, tick)
            if heard:
                state = self.hold(state, beat, j, self.ttl, tick.task_id)
        return state

    # -- the broker ----------------------------------------------------------------------------------------------------

    def publish(self, state: State, beat: int, j: int) -> State:
        tick = state[0][j]
        stolen = int(tick.owner != beat and not (self.frozen_in_publish or self.late_requests))
        published = tick.published | 1 << state[1][beat][j].task_id
        late = int(self.is_paused(state, j) == ACKNOWLEDGED and not self.frozen_in_publish)
        after = tick._replace(published=published, stolen=tick.stolen | stolen, late=tick.late | late)
        return self.change(state, j, after)

    # -- settle.lua, which hands over, too ----------------------------------------------------------------------------------------------------

    def settle(self, state: State, beat: int, sent: list[int], *, keep: bool = False) -> State:
        for j in sent:
            tick = state[0][j]
            if tick.owner == beat:
                state = self.change(state, j, tick._replace(owner=SETTLED, left=0))
            if not keep:
                state = self.hold(state, beat, j, NOTHING)
        return state

    def hand_over(self, state: State, beat: int, j: int) -> State:
        tick = state[0][j]
        return self.change(state, j, tick._replace(left=0)) if tick.owner == beat else state

    def give_up(self, state: State, beat: int, unsent: list[int]) -> State:
        """What is handed over, in a call of its own, is just not in the beat's hands until then."""
        for j in unsent:
            state = self.hold(state, beat, j, NOTHING)
        return state

    # -- invariants ----------------------------------------------------------------------------------------------------

    def broken(self, state: State) -> str | None:
        for j, tick in enumerate(state[0]):
            if tick.published & (tick.published - 1):
                return f"P2: tick {self.name(j)} is published under two task ids"
            if tick.owner == SETTLED and not tick.published:
                return f"P2: tick {self.name(j)} is settled, and was never published"
            if tick.stolen:
                return f"freeze check: tick {self.name(j)} is published by a beat that does not own its claim any more"
            if tick.late:
                return f"pause: tick {self.name(j)} is published after the pause of its entry was acknowledged"
        # A beat with empty hands: they are all alike, and what empties a beat's hands are steps, too.
        if any(all(hold.fresh == NOTHING for hold in holds) for holds in state[1]):
            late = self.unpublished(state[0])
            if late:
                return f"P3: a beat that is alone does not publish {self.names(late)} within the ttl of a claim"
        return None

    @cache  # noqa: B019  there are few models
    def unpublished(self, ticks: tuple[Tick, ...]) -> list[int]:
        """What is not published and settled when the ttl of a claim is over, though one beat did all that it could.

        All others are dead from this state on. What waits for a claim of its entry to be settled, with as many of them
        pending as may, waits no longer than that, too.
        """
        state, waited = (ticks, self.initial()[1]), 0
        while True:
            step = self.own_step(state, 0)
            if step is not None:
                state = step
            elif waited < self.ttl:
                state, waited = self.pass_time(state), waited + 1
            else:
                return [j for j, tick in enumerate(state[0]) if tick.owner not in (SETTLED, PASSED_OVER)]

    def own_step(self, state: State, beat: int) -> State | None:
        """What a beat does next that nothing keeps from it."""
        holds = state[1][beat]
        for j, hold in enumerate(holds):
            if hold.fresh not in (NOTHING, SENT):
                return self.hold(self.publish(state, beat, j), beat, j, SENT, hold.task_id)
        if sent := [j for j, hold in enumerate(holds) if hold.fresh == SENT]:
            return self.settle(state, beat, sent)
        if overdue := self.overdue(state):
            return self.take_over(state, beat, overdue, heard=True)
        for entry in range(self.entries):
            for j in self.grantable(state, beat, entry)[1:]:
                if j is not None and state[0][j].owner == UNCLAIMED:
                    return self.claim(state, beat, [j], heard=True)
        return None

    # -- changing a tuple ----------------------------------------------------------------------------------------------

    def change(self, state: State, j: int, tick: Tick) -> State:
        ticks, beats = state
        return (*ticks[:j], tick, *ticks[j + 1 :]), beats

    def hold(self, state: State, beat: int, j: int, fresh: int, task_id: int = 0) -> State:
        return self._put(state, beat, j, Hold(fresh, task_id, state[1][beat][j].late))

    def ask(self, state: State, beat: int, j: int, what: str) -> State:
        return self._put(state, beat, j, state[1][beat][j]._replace(late=what))

    def _put(self, state: State, beat: int, j: int, hold: Hold) -> State:
        ticks, beats = state
        holds = beats[beat]
        return ticks, (*beats[:beat], (*holds[:j], hold, *holds[j + 1 :]), *beats[beat + 1 :])


def _older(hold: Hold) -> Hold:
    if hold.fresh in (NOTHING, SENT, PASSED):
        return hold
    # a beat that finds it too old drops it
    return hold._replace(fresh=hold.fresh - 1) if hold.fresh > 1 else Hold(late=hold.late)

"""What was reported of each tick, and what follows from it for each thing that the demo is there to show."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

from celery_lockbeat.demo import JOBS, TTL
from celery_lockbeat.demo.processes import BEATS, KILLED

__all__ = ["FASTEST", "Check", "Tally", "Tick"]

FASTEST: Final = min(JOBS, key=lambda name: JOBS[name].every)

#: So many beats are killed.
KILLS: Final = 2

#: What a busy machine may add to a pause, in seconds.
SLACK: Final = 1.0

#: An event as it was logged, with who logged it (``by``) and ``at``, in seconds since the demo began.
_Event = dict[str, Any]


@dataclass
class Tick:
    """One due moment of an entry, and what beats and workers said of it."""

    job: str
    number: int
    due: float
    published: list[_Event] = field(default_factory=list)
    at_worker: list[_Event] = field(default_factory=list)

    def all(self, *names: str) -> list[_Event]:
        """The events of these names at its worker."""
        return [event for event in self.at_worker if event["event"] in names]

    def renewals(self) -> int:
        """How often its lock was renewed."""
        return len(self.all("lock_extended"))

    def skips(self) -> int:
        """How often it was skipped, for another run of its task went on."""
        return sum(event["reason"] == "locked" for event in self.all("task_skipped"))

    def ends(self) -> int:
        """How often it came to its end, which is to be once."""
        return len(self.all("body_left")) + self.skips()

    def seconds(self) -> float:
        """How long its worker has been heard of with it."""
        return self.at_worker[-1]["at"] - self.at_worker[0]["at"] if self.at_worker else 0.0

    def taken_over_after(self) -> float:
        """Seconds by which it was late, if another beat had to take it over; else 0."""
        late = max((event["at"] for event in self.published), default=0.0) - self.due
        return late if late > 0.9 * TTL else 0.0


class Check(NamedTuple):
    """One thing that the demo is there to show, and what was seen of it."""

    good: bool
    seen: str


class Tally:
    """All that was reported."""

    def __init__(self) -> None:
        #: When, of whom, and what, a line each.
        self.timeline: list[tuple[float, str, str]] = []
        self.kills: list[_Event] = []
        self._began = time.monotonic()
        self._began_at = time.time()
        self._ticks: dict[tuple[str, int], Tick] = {}
        self._by_id: dict[str, Tick] = {}

    def age(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._began

    def ticks(self, jobs: Collection[str] = JOBS) -> list[Tick]:
        """The ticks of these tasks."""
        return [tick for tick in self._ticks.values() if tick.job in jobs]

    def counts(self, jobs: Collection[str] = JOBS) -> dict[str, int]:
        """Count the ticks of tasks. They are numbered: those that have no end up to the last are lost, or on their way."""
        ticks = self.ticks(jobs)
        due = sum(max((tick.number for tick in self.ticks([job])), default=0) for job in jobs)
        return {
            "due": due,
            "published": sum(bool(tick.published) for tick in ticks),
            "run": sum(len(tick.all("body_left")) for tick in ticks),
            "skipped": sum(tick.skips() for tick in ticks),
            "lost": due - sum(bool(tick.ends()) for tick in ticks),
            "doubled": sum(_is_doubled(tick) for tick in ticks),
            "renewals": sum(tick.renewals() for tick in ticks),
        }

    def is_at_rest(self) -> bool:
        """Whether all that was published has come to its end."""
        return all(tick.ends() for tick in self.ticks() if tick.published)

    def count(self, events: list[_Event]) -> None:
        """Take in events."""
        for event in sorted(events, key=lambda event: str(event["timestamp"])):
            event["at"] = self._age_at(event["timestamp"])
            if event["event"] == KILLED:
                self.kills.append(event)
                who, what = event["by"], "killed (SIGKILL)"
            elif event["by"] in BEATS:
                who, what = event["by"], _note_of_beat(event, self._tick_of(event))
            else:
                tick = self._tick_of(event)
                who, what = tick.job, _note_of_worker(event, tick)
            if what:
                self.timeline.append((event["at"], who, what))

    def _age_at(self, timestamp: str) -> float:
        return datetime.fromisoformat(timestamp).timestamp() - self._began_at

    def _tick_of(self, event: _Event) -> Tick:
        if "number" in event:
            job, number = event["task_name"], event["number"]
            tick = self._ticks.setdefault((job, number), Tick(job, number, self._age_at(event["due"])))
            self._by_id[event["task_id"]] = tick
        return self._by_id[event["task_id"]]

    def checks(self) -> list[Check]:
        """All that the demo is there to show, as far as it was seen."""
        return [*self.sights(), *self._promises()]

    def sights(self) -> list[Check]:
        """What takes its time to be seen."""
        ran = [tick for tick in self.ticks() if tick.all("task_succeeded")]
        never = [job for job in JOBS if job not in {tick.job for tick in ran}]
        skipped = self.counts()["skipped"]
        longest = max((tick.seconds() for tick in ran if tick.renewals() > 1), default=0.0)
        late = [seconds for tick in self.ticks() if (seconds := tick.taken_over_after())]
        how_late = f", {max(late):.1f} s late" if late else ""
        every, pauses = JOBS[FASTEST].every, [self._pause_at(kill["at"]) for kill in self.kills]
        how_long = " and ".join(f"{pause:.1f} s" for pause in pauses)
        return [
            Check(not never, f"runs: {len(ran)}" + f", but none of {' and '.join(never)}" * bool(never)),
            Check(skipped > 0, f"ticks skipped, for the run before them went on: {skipped}"),
            Check(longest > 2 * TTL, f"the longest run that was renewed, with a ttl of {TTL:g} s: {longest:.1f} s"),
            Check(len(pauses) == KILLS, f"beats killed: {len(pauses)} of {len(BEATS)}"),
            # the tick that the dead one had claimed may be as late as its claim lives
            Check(
                max(pauses, default=0.0) <= every + TTL + SLACK,
                f"the longest pauses of {FASTEST} (every {every:g} s) at the kills: {how_long}",
            ),
            Check(bool(late), f"ticks taken over from a killed beat: {len(late)}{how_late}"),
        ]

    def _pause_at(self, kill: float) -> float:
        """Measure at the workers, from a kill until all that the dead beat had claimed must have been taken over."""
        over = kill + TTL + SLACK
        arrived = sorted(tick.at_worker[0]["at"] for tick in self.ticks([FASTEST]) if tick.at_worker)
        pauses = [after - before for before, after in itertools.pairwise(arrived) if after > kill and before < over]
        return max(pauses) if arrived and arrived[-1] > over else math.inf

    def _promises(self) -> list[Check]:
        """What must not be seen."""
        counts, overlaps = self.counts(), sum(map(self._overlaps, JOBS))
        ran, failed = (sum(bool(tick.all(end)) for tick in self.ticks()) for end in ("task_succeeded", "task_failed"))
        return [
            Check(not counts["lost"], f"ticks lost, of {counts['due']}: {counts['lost']}"),
            Check(not counts["doubled"], f"ticks doubled: {counts['doubled']}"),
            # every run was in its body: what the witness has not heard it cannot deny
            Check(not overlaps and counts["run"] >= ran, f"runs beside another of the same task: {overlaps}"),
            Check(not failed, f"runs failed: {failed}"),
        ]

    def _overlaps(self, job: str) -> int:
        """How many bodies were entered before the one before them was left."""
        bodies = sorted((body["entered"], body["left"]) for tick in self.ticks([job]) for body in tick.all("body_left"))
        return sum(after[0] < before[1] for before, after in itertools.pairwise(bodies))


def _is_doubled(tick: Tick) -> bool:
    return tick.ends() > 1 or len({event["task_id"] for event in (*tick.published, *tick.at_worker)}) > 1


def _note_of_beat(event: _Event, tick: Tick) -> str:
    if event["event"] == "tick_in_hand":
        return f"is about to publish {tick.job} #{tick.number}"
    tick.published.append(event)
    late = tick.taken_over_after()
    return f"takes over {tick.job} #{tick.number}, published {late:.1f} s late" if late else ""


def _note_of_worker(event: _Event, tick: Tick) -> str:
    before = tick.seconds()
    tick.at_worker.append(event)
    note, worker, renewals = "", event["by"], tick.renewals()
    renewed = f", {renewals} renewal{'s' * (renewals > 1)}" * bool(renewals)
    if event["event"] == "lock_extended" and before <= TTL < tick.seconds():
        note = f"outlives its ttl on {worker}{renewed}"
    elif event["event"] == "task_skipped":
        why = f", for {event['holder'].partition('@')[0]} runs it" if "holder" in event else f": {event['reason']}"
        note = f"skipped on {worker}{why}"
    elif event["event"] == "task_succeeded":
        note = f"ran for {tick.seconds():.1f} s on {worker}{renewed}"
    elif "error_message" in event:
        note = f"{event['event']} on {worker}: {event['error_message']}"
    beat = tick.published[-1]["by"] if tick.published else "a beat"
    return note and f"#{tick.number} of {beat} {note}"

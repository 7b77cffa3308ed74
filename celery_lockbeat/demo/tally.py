"""What was reported of each tick, counted, and what follows for each thing that the demo is there to show."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

from celery_lockbeat.demo import CLAIM_TTL, JOBS, TTL
from celery_lockbeat.demo.processes import BEATS

__all__ = ["FASTEST", "Check", "Tally", "Tick"]

FASTEST: Final = min(JOBS, key=lambda name: JOBS[name].every)

#: So many beats are killed.
KILLS: Final = 2

#: What a run must not meet; each is a line with its error.
FAILURES: Final = ("task_failed", "lock_extend_failed", "lock_expired_before_finish")

#: What a busy machine may add to a pause, in seconds.
SLACK: Final = 1.0


@dataclass
class Tick:
    """One due moment of an entry, and what became of it."""

    job: str
    number: int
    due: float
    ids: set[str] = field(default_factory=set)  # of the tasks under which it was seen
    published: list[tuple[float, str]] = field(default_factory=list)  # when, and by which beat
    arrived: float | None = None
    worker: str = ""
    status: str | None = None  # "running" under its lock, then "success", "failed" or "skipped"
    seconds: float = 0.0
    renewals: int = 0
    bodies: list[tuple[float, float]] = field(default_factory=list)  # when they were entered and left
    skips: int = 0

    def ends(self) -> int:
        """How often it came to its end, which is to be once."""
        return len(self.bodies) + self.skips

    def renewed(self) -> str:
        """Say how often its lock was renewed, if it was."""
        return f", {self.renewals} renewal{'s' * (self.renewals > 1)}" * bool(self.renewals)

    def taken_over_after(self) -> float:
        """Seconds by which it was late, if another beat had to take it over; else 0."""
        late = max((at for at, _ in self.published), default=0.0) - self.due
        return late if late > 0.9 * CLAIM_TTL else 0.0


class Check(NamedTuple):
    """One thing that the demo is there to show, and what was seen of it."""

    good: bool
    seen: str


class Tally:
    """All that was reported, counted."""

    def __init__(self) -> None:
        self.timeline: list[tuple[float, str, str]] = []
        self.kills: list[tuple[float, str]] = []
        self._began = time.monotonic()
        self._began_at = time.time()
        self._ticks: dict[tuple[str, int], Tick] = {}
        self._by_id: dict[str, Tick] = {}

    def age(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._began

    def ticks(self, job: str | None = None, status: str | None = None) -> list[Tick]:
        """The ticks of one task, or of one status, or both."""
        return [tick for tick in self._ticks.values() if job in (None, tick.job) and status in (None, tick.status)]

    def counts(self, job: str) -> dict[str, int]:
        """Count the ticks of one task. They are numbered: those that have no end up to the last are lost, or on their way."""
        ticks = self.ticks(job)
        due = max((tick.number for tick in ticks), default=0)
        return {
            "due": due,
            "published": sum(bool(tick.published) for tick in ticks),
            "run": sum(len(tick.bodies) for tick in ticks),
            "skipped": sum(tick.skips for tick in ticks),
            "lost": due - sum(bool(tick.ends()) for tick in ticks),
            "doubled": sum(len(tick.ids) > 1 or tick.ends() > 1 for tick in ticks),
            "renewals": sum(tick.renewals for tick in ticks),
        }

    def is_at_rest(self) -> bool:
        """Whether all that was published has come to its end."""
        return all(tick.ends() for tick in self.ticks() if tick.published)

    def note_kills(self, beats: list[str]) -> None:
        """Take in who has been killed."""
        for beat in beats:
            self.kills.append((self.age(), beat))
            self.timeline.append((self.age(), beat, "killed (SIGKILL)"))

    def count(self, events: list[dict[str, Any]]) -> None:
        """Take in events."""
        for event in sorted(events, key=lambda event: str(event["timestamp"])):
            at, tick, by = self._age_at(event["timestamp"]), self._tick_of(event), event["by"]
            of_beat = by.startswith("beat")
            note = _count_publishing(event, at, tick) if of_beat else _count_run(event, at, tick)
            if note is not None:
                self.timeline.append((at, by if of_beat else tick.job, note))

    def _age_at(self, timestamp: str) -> float:
        return datetime.fromisoformat(timestamp).timestamp() - self._began_at

    def _tick_of(self, event: dict[str, Any]) -> Tick:
        if "number" not in event:
            return self._by_id[event["task_id"]]
        job, number, task_id = event["task_name"], event["number"], event["task_id"]
        tick = self._ticks.setdefault((job, number), Tick(job, number, self._age_at(event["due"])))
        tick.ids.add(task_id)
        self._by_id[task_id] = tick
        return tick

    def checks(self) -> list[Check]:
        """All that the demo is there to show, as far as it was seen."""
        return [*self.sights(), *self._promises()]

    def sights(self) -> list[Check]:
        """What takes its time to be seen."""
        ran = self.ticks(status="success")
        never = [job for job in JOBS if not self.ticks(job, "success")]
        skipped = len(self.ticks(status="skipped"))
        longest = max((run.seconds for run in ran if run.renewals > 1), default=0.0)
        late = [seconds for tick in self.ticks() if (seconds := tick.taken_over_after())]
        how_late = f", {max(late):.1f} s late" if late else ""
        every, pauses = JOBS[FASTEST].every, [self._pause_at(at) for at, _ in self.kills]
        how_long = " and ".join(f"{pause:.1f} s" for pause in pauses)
        return [
            Check(not never, f"runs: {len(ran)}" + f", but none of {' and '.join(never)}" * bool(never)),
            Check(skipped > 0, f"ticks skipped, for the run before them went on: {skipped}"),
            Check(longest > 2 * TTL, f"the longest run that was renewed, with a ttl of {TTL:g} s: {longest:.1f} s"),
            Check(len(self.kills) == KILLS, f"beats killed: {len(self.kills)} of {len(BEATS)}"),
            # the tick that the dead one had claimed may be as late as its claim lives
            Check(
                max(pauses, default=0.0) <= every + CLAIM_TTL + SLACK,
                f"the longest pauses of {FASTEST} (every {every:g} s) at the kills: {how_long}",
            ),
            Check(bool(late), f"ticks taken over from a killed beat: {len(late)}{how_late}"),
        ]

    def _pause_at(self, kill: float) -> float:
        """Measure at the workers, from a kill until all that the dead beat had claimed must have been taken over."""
        over = kill + CLAIM_TTL + SLACK
        arrived = sorted(tick.arrived for tick in self.ticks(FASTEST) if tick.arrived is not None)
        pauses = [after - before for before, after in itertools.pairwise(arrived) if after > kill and before < over]
        return max(pauses) if arrived and arrived[-1] > over else math.inf

    def _promises(self) -> list[Check]:
        """What must not be seen."""
        ran, failed = len(self.ticks(status="success")), len(self.ticks(status="failed"))
        due, lost, doubled, bodies = (
            sum(self.counts(job)[name] for job in JOBS) for name in ("due", "lost", "doubled", "run")
        )
        overlaps = sum(map(self._overlaps, JOBS))
        return [
            Check(not lost, f"ticks lost, of {due}: {lost}"),
            Check(not doubled, f"ticks doubled: {doubled}"),
            # every run was in its body: what the witness has not heard it cannot deny
            Check(not overlaps and bodies >= ran, f"runs beside another of the same task: {overlaps}"),
            Check(not failed, f"runs failed: {failed}"),
        ]

    def _overlaps(self, job: str) -> int:
        """How many bodies were entered before the one before them was left."""
        bodies = sorted(body for tick in self.ticks(job) for body in tick.bodies)
        return sum(after[0] < before[1] for before, after in itertools.pairwise(bodies))


def _count_publishing(event: dict[str, Any], at: float, tick: Tick) -> str | None:
    if event["event"] == "tick_in_hand":
        return f"is about to publish {tick.job} #{tick.number}"
    tick.published.append((at, event["by"]))
    late = tick.taken_over_after()
    return f"takes over {tick.job} #{tick.number}, published {late:.1f} s late" if late else None


def _count_run(event: dict[str, Any], at: float, tick: Tick) -> str | None:
    if tick.arrived is None:
        tick.worker, tick.arrived = event["by"], at
    before, tick.seconds = tick.seconds, at - tick.arrived
    note = None
    match event["event"]:
        case "body_left":
            tick.bodies.append((event["entered"], event["left"]))
        case "lock_acquired":
            tick.status = "running"
        case "lock_extended":
            tick.renewals += 1
            note = f"outlives its ttl on {tick.worker}{tick.renewed()}" if before <= TTL < tick.seconds else None
        case "task_skipped":
            note = f"skipped on {tick.worker}: {event['reason']}"
            if event["reason"] == "locked":
                tick.status, tick.skips = "skipped", tick.skips + 1
            if "holder" in event:
                note = f"skipped on {tick.worker}, for {event['holder'].partition('@')[0]} runs it"
        case "task_succeeded" | "task_failed" | "task_retried":
            tick.status = event["status"]
            note = (
                f"ran for {tick.seconds:.1f} s on {tick.worker}{tick.renewed()}" if tick.status == "success" else None
            )
    if event["event"] in FAILURES:
        note = f"{event['event']} on {tick.worker}: {event['error_message']}"
    beat = tick.published[-1][1] if tick.published else "a beat"
    return note and f"#{tick.number} of {beat} {note}"

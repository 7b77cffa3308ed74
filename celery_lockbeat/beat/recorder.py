"""What a beat writes into the journal of its ticks: each that it has published, and each that nobody will publish.

Promises: all that is due and is not published is recorded, with why; ticks that are late, or missed, are events, too, up to a
hundred a minute. Nothing of this costs a round trip, or time of a tick beyond some microseconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from celery.schedules import crontab

from celery_lockbeat.beat.agenda import Item
from celery_lockbeat.beat.ledger import Tick
from celery_lockbeat.beat.rules import Missed, Publish
from celery_lockbeat.clock import monotonic
from celery_lockbeat.journal.records import Said, encode, encode_published
from celery_lockbeat.journal.writer import Journal
from celery_lockbeat.observe.events import Story
from celery_lockbeat.schedules.dues import dues_between
from celery_lockbeat.stores.base import Claim, Passed, is_request

__all__ = ["Recorder"]

#: Seconds by which a tick must be late before others may have been due meanwhile.
WORTH_COUNTING: Final = 1.0

#: By so much the time of a tick may differ from that of its schedule.
INEXACT: Final = timedelta(seconds=1)


#: As many are said in a minute. After an outage each of ten thousand entries may have missed some.
SAID_AT_MOST: Final = 100

#: As many late ticks of this beat's are under way.
LATE_AT_MOST: Final = 10_000

logger: Final = logging.getLogger("celery_lockbeat.beat")


class _Published(NamedTuple):
    """A tick that was published ``at`` a moment of the monotonic clock, ``wall`` of the host's."""

    tick: Tick
    at: float
    wall: float
    replica: str
    event: str = "tick_published"
    execution_id: None = None

    @property
    def due(self) -> float:
        """When it was due, by the wall clock."""
        try:
            return datetime.fromisoformat(self.tick.details["due"]).timestamp()
        except (LookupError, TypeError, ValueError, OverflowError, OSError):  # another release has claimed it
            return self.wall

    def text(self, ago: float) -> str:
        """Return its record."""
        tick, due = self.tick, self.due
        entry = tick.item.entry
        if is_request(tick.item.key):
            # beside those of the schedule, which alone have numbers, and it cannot be late
            fields = {"schedule": entry.name, "task_name": entry.task, "tick": tick.details.get("due")}
            fields |= {"task_id": tick.task_id, "hostname": self.replica, "taken_over": tick.taken_over or None}
            return encode(self.event, {**fields, "kind": tick.details.get("origin")}, ago)
        return encode_published(
            entry=str(entry.name),
            task=str(entry.task),
            due=due,
            run=tick.run,
            task_id=tick.task_id,
            late=self.wall - due,
            hostname=self.replica,
            taken_over=tick.taken_over,
            ago=ago,
        )


class _Missed(NamedTuple):
    """What was due within so many seconds after the tick of a claim, which stands for it."""

    schedule: Any
    claim: Claim
    late: float
    entry: Mapping[str, Any]
    at: float
    event: str = "tick_missed"
    execution_id: None = None

    def fields(self) -> dict[str, Any] | None:
        """Return the fields of its record; None: nothing was due, or nobody can tell."""
        due: Any = self.claim.details.get("due")
        try:
            first = datetime.fromisoformat(due)
            # the tick of 03:00 may be called that of 02:59:59.999
            after = first + INEXACT if isinstance(self.schedule, crontab) else first
            missed = dues_between(self.schedule, after, first + timedelta(seconds=self.late))
        except (TypeError, ValueError, OverflowError):  # a schedule of somebody's own
            return None
        if missed is None:
            return None
        reason = f"nobody published them in time: the run of {due} stands for them"
        return {**self.entry, "count": missed.ticks, "last_due": missed.last.isoformat(), "reason": reason}

    def text(self, ago: float) -> str | None:
        """Return its record, if there is one."""
        fields = self.fields()
        return None if fields is None else encode(self.event, fields, ago)


class Recorder:
    """Records for one beat. A tick is late after so many seconds; None: never.

    ``replica()`` is the beat's name, once it has joined, and ``wall`` its host's clock.
    """

    def __init__(
        self,
        sender: Any,
        journal: Journal,
        replica: Callable[[], str],
        wall: Callable[[], float],
        late_after: float | None,
    ) -> None:
        self._sender = sender
        self._journal = journal
        self._replica = replica
        self._wall = wall
        self._late_after = late_after
        self._worth_a_look = min(WORTH_COUNTING, late_after or WORTH_COUNTING)
        #: the task ids of ticks that were late when they were claimed
        self._late: set[str] = set()
        self._said_since, self._said = monotonic(), 0

    def published(self, ticks: Sequence[Tick]) -> None:
        """Record that these have been published."""
        now, wall = monotonic(), self._wall()
        replica = self._replica()
        published = [_Published(tick, now, wall, replica) for tick in ticks]
        self._journal.put_all(published)
        for each in published:
            if each.tick.taken_over or each.tick.task_id in self._late:
                self._late.discard(each.tick.task_id)
                self._look_whether_late(each)

    def _look_whether_late(self, published: _Published) -> None:
        late, tick = published.wall - published.due, published.tick
        if self._late_after is None or late <= self._late_after or is_request(tick.item.key):
            return
        fields = {**self._fields(tick.item, tick.details.get("due")), "task_id": tick.task_id, "run": tick.run}
        fields |= {"late": round(late, 3), "taken_over": tick.taken_over or None}
        fields["reason"] = "another beat had left it" if tick.taken_over else "no beat could publish it before"
        if tick.taken_over:
            # whoever had claimed it may have published it, too
            story = self._story(fields)
            self._journal.case(f"late:{tick.task_id}", "tick_late", fields, lambda: story.later("tick_late"))
        else:
            self._say("tick_late", fields)

    def not_published(self, tick: Tick, reason: str) -> None:
        """Record that a tick, which is ours, will not be published."""
        fields = {**self._fields(tick.item, tick.details.get("due")), "run": tick.run, "count": 1, "reason": reason}
        self._say("tick_missed", fields)

    def paused(self, item: Item, run: int, details: Mapping[str, Any], passed: Passed) -> None:
        """Record that a tick, which is ours, is not published, for operators want it so."""
        said = Said.read(passed.told)
        what = "it is paused" if passed.why == "paused" else "it was to be skipped"
        fields = {**self._fields(item, details.get("due")), "run": run, "who": said.who}
        self._journal.put("tick_paused", {**fields, "reason": f"{what}: {said.note}" if said.note else what})

    def claimed(self, item: Item, claim: Claim, late: float) -> None:
        """Record which ticks are missed as this one, the first that was due, stands for them, too: it is ``late`` seconds late."""
        if late < self._worth_a_look:
            return
        if len(self._late) < LATE_AT_MOST:  # some are published by others
            self._late.add(claim.task_id)
        missed = _Missed(item.schedule, claim, late, self._fields(item, None), monotonic())
        if self._said > SAID_AT_MOST and not self._is_next_minute():
            # a beat that does not keep up has no time to count them
            self._journal.put_all((missed,))
        elif (fields := missed.fields()) is not None:
            self._say("tick_missed", fields)

    def claimed_by_rule(self, item: Item, claim: Claim, verdict: Publish) -> None:
        """Record which ticks are missed as one is published by a rule."""
        if verdict.caught_up and len(self._late) < LATE_AT_MOST:
            self._late.add(claim.task_id)
        if verdict.missed is not None:
            self._say("tick_missed", self._missed_fields(item, verdict.missed))

    def passed(self, item: Item, missed: Missed) -> None:
        """Record that these are missed: whoever has asked for the same, for it got no answer, says it, too."""
        fields = self._missed_fields(item, missed)
        story = self._story(fields)
        name = f"missed:{item.key}:{missed.last.timestamp()}"
        self._journal.case(name, "tick_missed", fields, lambda: story.later("tick_missed"))

    def _missed_fields(self, item: Item, missed: Missed) -> dict[str, Any]:
        last = missed.last.isoformat(timespec="milliseconds")
        return {**self._fields(item, None), "count": missed.ticks, "last_due": last, "reason": missed.why}

    def _fields(self, item: Item, due: Any) -> dict[str, Any]:
        entry = item.entry
        return {"schedule": entry.name, "task_name": entry.task, "tick": due, "hostname": self._replica()}

    def _say(self, event: str, fields: Mapping[str, Any]) -> None:
        """Write it down, and say it. A claim is one beat's, so no other says the same."""
        self._journal.put(event, fields)
        if self._may_say():
            self._story(fields).later(event)

    def _story(self, fields: Mapping[str, Any]) -> Story:
        return Story(self._sender, "default", None, **fields)

    def _is_next_minute(self) -> bool:
        return monotonic() - self._said_since > 60  # noqa: PLR2004  seconds

    def _may_say(self) -> bool:
        if self._is_next_minute():
            self._said_since, self._said = monotonic(), 0
        self._said += 1
        if self._said == SAID_AT_MOST + 1:
            text = "more than %d ticks a minute are late or missed; of the others only the journal is told"
            logger.warning(text, SAID_AT_MOST)
        return self._said <= SAID_AT_MOST

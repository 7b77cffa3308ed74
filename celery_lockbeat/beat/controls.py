"""What operators want of the beats: pauses that are over by their time, and ticks that are asked for beside those of the schedule.

Promises: what is asked for is seen within a second. Each tick of a request is claimed once, in its order, by whichever beat is
first, under a task id that is made of the request's name and the tick's number; at most so many of a backfill run or wait at
once, as far as the journal tells when they end; a request starves no entry. A pause is obeyed without any of this: by the
claim itself.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import count
from typing import Any, Final, NamedTuple
from uuid import NAMESPACE_OID, uuid4, uuid5

from celery.schedules import schedule

from celery_lockbeat.beat.agenda import Agenda, Item
from celery_lockbeat.beat.claims import Claimer, of_request
from celery_lockbeat.beat.ledger import Tick
from celery_lockbeat.beat.replicas import KEEP_EVERY, Replica
from celery_lockbeat.beat.trouble import Complaints
from celery_lockbeat.exceptions import StoreRefused, StoreUnavailable
from celery_lockbeat.journal.records import read_record
from celery_lockbeat.journal.writer import Journal
from celery_lockbeat.locks.streaks import PAUSE_AFTER
from celery_lockbeat.schedules.dues import iter_dues, previous_due
from celery_lockbeat.schedules.when import bound, policy_of
from celery_lockbeat.stores.base import (
    FLAGGED_AT_ONCE,
    JOURNALED_AT_ONCE,
    Asked,
    Claim,
    EntryState,
    Requests,
    Store,
    request_key,
)
from celery_lockbeat.tasks.task import LockedTask

__all__ = ["CATCHUPS", "DUES_AT_MOST", "Controls", "Wanted", "dues_in"]

logger: Final = logging.getLogger("celery_lockbeat.beat")

#: Seconds between two looks at what is asked for.
LOOKS_EVERY: Final = 0.75

#: As many ticks that are asked for are claimed in one round.
AT_A_TIME: Final = 20

#: As many ticks may be asked for at once.
DUES_AT_MOST: Final = 100_000

#: Seconds after which a tick of which nobody has heard any more keeps no other from being published.
STUCK: Final = 3600.0

#: What may become of the ticks that a pause has passed over.
CATCHUPS: Final = ("latest", "all", "none")


class Wanted(NamedTuple):
    """The text of a request: a backfill ``since`` and ``until`` a time, or (kind "catchup") what a pause has passed over."""

    kind: str
    who: str
    at: str
    #: of a backfill
    since: str = ""
    until: str = ""
    at_once: int = 0
    reverse: bool = False
    total: int = 0
    #: of a pause: one of CATCHUPS, or "": what the entry itself says
    catchup: str = ""

    def text(self) -> str:
        """Write it, as :meth:`read` reads it."""
        return json.dumps({name: value for name, value in self._asdict().items() if value})

    @classmethod
    def read(cls, text: str) -> Wanted:
        """Read it; what a later release has written is left out. Raises ValueError and the like for what is none."""
        told = json.loads(text)
        return cls(**{"kind": "", "who": "", "at": "", **{name: told[name] for name in cls._fields if name in told}})


def dues_in(when: Any, since: datetime, until: datetime, limit: int = DUES_AT_MOST) -> list[datetime] | None:
    """Return the ticks of a schedule from one aware moment to another, both included; None: nobody can tell, or too many."""
    found: list[datetime] = []
    for due in _dues_from(when, since):
        if due > until:
            return found
        if len(found) == limit:
            return None
        found.append(due)
    return found or None


def _dues_from(when: Any, since: datetime) -> Iterator[datetime]:
    if isinstance(when, schedule) and when.run_every <= timedelta(0):
        return
    if isinstance(when, schedule) and policy_of(when).start is None:
        # whatever it was counted from
        yield from (since + number * when.run_every for number in count())
    else:
        yield from iter_dues(when, since - timedelta(microseconds=1))


class Controls:
    """What is asked of one beat. ``leaves(key)``: whether the ticks of an entry are left to others."""

    def __init__(
        self,
        app: Any,
        journal: Journal,
        agenda: Agenda,
        claimer: Claimer,
        replica: Replica,
        leaves: Callable[[str], bool],
        complaints: Complaints,
        clock: Callable[[], float],
    ) -> None:
        self._app = app
        self._journal = journal
        self._agenda = agenda
        self._claimer = claimer
        self._replica = replica
        self._leaves = leaves
        self._complaints = complaints
        self._clock = clock
        self._next = 0.0
        self._skip = 0  # so many requests, which none but another release knows
        self._kept_at: float | None = None
        self._asked: list[Asked] = []
        self._runs: dict[str, _Runs] = {}
        #: the dues of requests by their names
        self._known: dict[str, Sequence[datetime]] = {}
        #: whether there is more to claim at once
        self.unfinished = False

    # -- look ----------------------------------------------------------------------------------------------------------

    def until_look(self) -> float:
        """Seconds until it is time to look what is asked for."""
        return self._next - self._clock()

    def look(self, store: Store) -> None:
        """Look what is asked for, if it is time to. Raises StoreUnavailable."""
        now = self._clock()
        if now < self._next and not self.unfinished:
            return
        self._next = now + LOOKS_EVERY
        self.unfinished = False
        try:
            self._look(store, now)
        except StoreRefused as exc:
            # the rest goes on without it: what a store refuses may be these commands alone
            self._asked = []
            self._complaints.make("controls", "beat cannot be paused or asked for anything, and goes on: %s", exc)

    def _look(self, store: Store, now: float) -> None:
        found = store.controls.asked(self._replica.app, skip=self._skip)
        self._asked = found.asked
        if found.lapsed:
            self._resume(store, found.lapsed)
        if self._replica.has_listed and (self._kept_at is None or now - self._kept_at > KEEP_EVERY):
            self._keep(store)
            self._kept_at = now
        self._pass_by(found)

    def _pass_by(self, found: Requests) -> None:
        """Let what only another release knows not hide what comes after it."""
        if not found.asked and not self._skip:
            self._runs.clear()
            self._known.clear()
        known = [each for each in found.asked if each.cancelled or self._agenda.flagged(each.flag) is not None]
        self._skip = self._skip + len(found.asked) if found.asked and not known else 0

    def _resume(self, store: Store, names: Sequence[str]) -> None:
        """End pauses that are over by their time."""
        text = Wanted(kind="catchup", who="lockbeat", at="").text()
        flags = store.controls.resume(self._replica.app, names, request=uuid4().hex, text=text, lapsed=True)
        for flag in flags:
            if flag is not None:
                fields = {"schedule": self._name_of(flag.name), "who": "lockbeat", "hostname": self._replica.name}
                self._journal.put(
                    "entry_resumed", {**fields, "reason": "it was paused until now", "count": flag.passed}
                )

    def _keep(self, store: Store) -> None:
        names = sorted({item.flag for item in self._agenda})
        for start in range(0, max(1, len(names)), FLAGGED_AT_ONCE):
            store.controls.keep(self._replica.app, names[start : start + FLAGGED_AT_ONCE])

    def _name_of(self, flag: str) -> str:
        item = self._agenda.flagged(flag)
        return flag if item is None else str(item.entry.name)

    # -- ticks ---------------------------------------------------------------------------------------------------------

    def ticks(self, store: Store) -> list[Tick]:
        """Claim some of what is asked for, as seen by the last look; return what is ours to publish."""
        ticks: list[Tick] = []
        asked, self._asked = self._asked, []
        for each in asked:
            if len(ticks) >= AT_A_TIME:
                self.unfinished = True
                break
            try:
                self._fulfil(store, each, ticks)
            except StoreUnavailable as exc:
                # what is claimed is to be published all the same; the next look tells who waits
                logger.debug("nothing more is claimed of what is asked for: %s", exc)
                break
        return ticks

    def _fulfil(self, store: Store, asked: Asked, ticks: list[Tick]) -> None:
        """Claim the next ticks of one request, or end it. Raises StoreUnavailable."""
        item = self._agenda.flagged(asked.flag)
        try:
            wanted = Wanted.read(asked.text)
            dues = [] if asked.cancelled or item is None else self._dues(item, asked, wanted)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as exc:
            logger.error("request %s of %r cannot be read, and is left out: %s", asked.name, asked.flag, exc)  # noqa: TRY400
            store.controls.over(self._replica.app, [asked.name])
            return
        done = 0 if asked.state is None else asked.state.total_run_count
        if asked.cancelled or (item is not None and done >= len(dues)):
            if not asked.pending:
                self._end(store, asked, wanted, done)
            return
        if item is None or self._leaves(item.key):
            return
        limit = room = len(dues) - done
        if wanted.at_once:
            runs = self._runs.setdefault(asked.name, _Runs(asked.name, wanted, self._clock))
            limit = room = min(room, runs.room(store, self._replica.app, done, tells=self._tells(item)))
        limit = min(limit, AT_A_TIME - len(ticks))
        claimed = 0
        for number in range(done + 1, done + limit + 1):
            tick = self._claim(store, item, asked, wanted, number, dues)
            if tick is None:  # another was faster, or as many as may wait to be settled
                break
            ticks.append(tick)
            claimed += 1
        self.unfinished = self.unfinished or 0 < claimed < room

    def _claim(
        self, store: Store, item: Item, asked: Asked, wanted: Wanted, number: int, dues: Sequence[datetime]
    ) -> Tick | None:
        """Claim one tick; None: another was faster."""
        due = dues[number - 1]
        at = due.isoformat(timespec="milliseconds")
        details: dict[str, Any] = {"due": at, "origin": wanted.kind, "flag": asked.flag}
        before = dues[number - 2 : number - 1] if not wanted.reverse else dues[number : number + 1]
        previous = before[0] if before else previous_due(bound(item.schedule, item.entry.name), due)
        if previous is not None:
            details["previous_due"] = previous.isoformat(timespec="milliseconds")
        limit = None if item.rule is None else item.rule.policy.pause_after_failures
        if limit is not None and wanted.kind == "catchup":
            details[PAUSE_AFTER] = [limit, asked.flag]
        key = request_key(asked.name)
        claim = Claim(_task_id(asked.name, number), key, EntryState(number, at), details)
        return self._claimer.claim_asked(store.beats, of_request(key, item), claim)

    def _dues(self, item: Item, asked: Asked, wanted: Wanted) -> Sequence[datetime]:
        # what has been made once is made of the schedule as it was then: how far it is counts by numbers
        dues = self._known.get(asked.name)
        if dues is None:
            of = _caught_up(item, asked, wanted) if wanted.kind == "catchup" else _dues_of(item, wanted)
            dues = self._known[asked.name] = of
        return dues

    def _tells(self, item: Item) -> bool:
        return isinstance(self._app.tasks.get(item.entry.task), LockedTask)

    def _end(self, store: Store, asked: Asked, wanted: Wanted, done: int) -> None:
        store.controls.over(self._replica.app, [asked.name])
        self._runs.pop(asked.name, None)
        self._known.pop(asked.name, None)
        if wanted.kind == "backfill":
            reason = "cancelled" if asked.cancelled else "all of it is published"
            fields = {"schedule": self._name_of(asked.flag), "who": wanted.who, "count": done, "reason": reason}
            self._journal.case(f"over:{asked.name}", "entry_backfilled", fields, lambda: None)


def _task_id(name: str, number: int) -> str:
    """Name a tick of a request, the same for all beats."""
    return str(uuid5(NAMESPACE_OID, f"{name}:{number}"))


def _caught_up(item: Item, asked: Asked, wanted: Wanted) -> Sequence[datetime]:
    """The ticks that a pause has passed over, as far as they are to run now."""
    policy = policy_of(item.schedule) if item.rule is None else item.rule.policy
    catchup = wanted.catchup or policy.catchup
    if catchup == "none" or not asked.passed:
        return []
    first, last = (datetime.fromisoformat(json.loads(text)["due"]) for text in (asked.first, asked.last))
    if catchup == "latest":
        return [last]
    # the tick of 03:00 may be called that of 02:59:59.999
    found = dues_in(bound(item.schedule, item.entry.name), first, last + timedelta(seconds=1)) or [last]
    return found[-policy.catchup_limit :]


def _dues_of(item: Item, wanted: Wanted) -> Sequence[datetime]:
    when = bound(item.schedule, item.entry.name)
    dues = dues_in(when, datetime.fromisoformat(wanted.since), datetime.fromisoformat(wanted.until)) or []
    return dues[::-1] if wanted.reverse else dues


class _Runs:
    """The runs of a backfill that have not ended yet, as one beat knows of them."""

    def __init__(self, name: str, wanted: Wanted, clock: Callable[[], float]) -> None:
        self._name = name
        self._at_once = wanted.at_once
        self._clock = clock
        self._known = 0  # so many have been claimed
        self._since = datetime.fromisoformat(wanted.at).timestamp() if wanted.at else 0.0
        self._position: str | None = None
        #: when this beat has first heard of those that have not ended, by their task ids
        self._open: dict[str, float] = {}
        #: of a task that tells nothing: since when what is published is counted, and how much was published then
        self._window = -LOOKS_EVERY, 0

    def room(self, store: Store, app: str, done: int, *, tells: bool) -> int:
        """Return how many may be published now. Raises StoreUnavailable."""
        now = self._clock()
        if not tells:
            # nobody can know when they end: so many at each look
            if now - self._window[0] >= LOOKS_EVERY:
                self._window = now, done
            return max(0, self._at_once - (done - self._window[1]))
        for number in range(self._known + 1, done + 1):
            self._open[_task_id(self._name, number)] = now
        self._known = max(self._known, done)
        self._read(store, app)
        for task_id in [task_id for task_id, since in self._open.items() if now - since > STUCK]:
            del self._open[task_id]
        return max(0, self._at_once - len(self._open))

    def _read(self, store: Store, app: str) -> None:
        while self._open:
            since = self._since if self._position is None else None
            page = store.journal.records(app, after=self._position, since=since)
            for stored in page:
                self._position = stored.position
                record = read_record(stored)
                if record.status not in (None, "running", "retry") and record.task_id is not None:
                    self._open.pop(record.task_id, None)
            if len(page) < JOURNALED_AT_ONCE:
                return

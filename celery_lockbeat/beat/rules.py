"""What becomes of the ticks of an entry by its policy: which is published now, which are missed, and when to look again.

Promises: the answer comes of the schedule, the policy, the entry's shared state and the store's time alone: each replica, and one
that has just begun, gives the same. Each due moment is in one answer: published by itself, or missed, with why. A tick that is
put off by its jitter keeps its due. Nothing here asks a store.

The last run of such an entry, in the store and in its entry, is the due time of its last tick, published or missed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from datetime import MINYEAR, datetime, timedelta, timezone
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple

from celery.schedules import crontab, schedule, solar

from celery_lockbeat.beat.agenda import Item
from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.options import refusal, written
from celery_lockbeat.schedules.dues import bounded, check_policy, dues_between, next_due, previous_due
from celery_lockbeat.schedules.policy import Policy
from celery_lockbeat.schedules.when import Once, OwnSchedule, Timeout, bound

__all__ = ["Missed", "Over", "Pass", "Publish", "Rule", "Rules", "Wait"]

logger: Final = logging.getLogger("celery_lockbeat.beat")

#: A tick that no beat has published so many seconds after it was due was not fired in time, unless `lockbeat_late_after` says else.
IN_TIME: Final = 30.0

#: What jitter spreads goes out together within so many seconds: each batch of a beat costs it two round trips, and of thousands
#: of entries one would be due every millisecond. It is spread over so many moments at least.
TOGETHER: Final = 0.1
MOMENTS: Final = 20

#: Seconds between two counts of what an entry that catches up may leave out.
COUNT_EVERY: Final = 1.0

_INSTANT: Final = timedelta(microseconds=1)


class Missed(NamedTuple):
    """So many ticks that nobody will publish, the first and the last of them, and why."""

    ticks: int
    first: datetime
    last: datetime
    why: str


class Wait(NamedTuple):
    """Nothing is due; look again in so many seconds."""

    seconds: float


class Over(NamedTuple):
    """Nothing will be due any more."""

    why: str


class Pass(NamedTuple):
    """Publish nothing, and let the entry go on after these."""

    missed: Missed

    @property
    def due(self) -> datetime:
        """When the last of them was due."""
        return self.missed.last


class Publish(NamedTuple):
    """Publish the tick that was due then; ``previous`` was due before it, None: none was.

    ``missed`` are those that it stands for, or that were given up before it. ``caught_up``: it was not fired in time, or stands
    for others that were not. ``alone``: not before the one before it.
    """

    due: datetime
    previous: datetime | None
    missed: Missed | None
    caught_up: bool
    alone: bool


class _Next(NamedTuple):
    """A tick to come, and the moment to which its jitter puts it off."""

    due: datetime
    fires: datetime


class Rule:
    """The policy of one entry, over its schedule. ``in_time``: seconds after which a tick counts as not fired in time."""

    def __init__(self, name: str, when: Any, policy: Policy, in_time: float) -> None:
        self._name = name
        self._when = when
        self.dues = bounded(when, policy)
        self.policy = policy
        self._in_time = timedelta(seconds=in_time)
        #: the oldest that may still be published is not older than this
        window = [each for each in (policy.catchup_window, policy.start_within) if each is not None]
        self._window = timedelta(seconds=min(window)) if window else None
        # what comes after the last one or two that were asked for: it is asked for again at the next tick
        self._following: dict[datetime, _Next | None] = {}
        self._counted_at: datetime | None = None
        self.is_said_to_be_over = False

    @property
    def zone(self) -> Any:
        """The zone of its schedule: tasks are told the dates that its users have in mind."""
        return getattr(self._when, "tz", timezone.utc)

    def before_the_first(self, now: datetime) -> datetime | None:
        """Return what counts as the last due time of an entry that is new; None: now, for its past is not replayed.

        What comes once may come while those who first list it are on their way: in time, or within its ``catchup_window``.
        """
        if self.policy.run_at_start:
            began: datetime = now - self._when.run_every
            return began
        if not isinstance(self._when, Once):
            return None
        late, window = now - self._when.at, self.policy.catchup_window
        allowed = self._in_time if window is None else timedelta(seconds=window)
        return self._when.at - _INSTANT if timedelta(0) <= late <= allowed else None

    def decide(self, last: datetime, runs: int, now: datetime) -> Wait | Over | Pass | Publish:
        """Tell what to do at the moment ``now``; the entry had so many runs, and its last tick was due at ``last``."""
        policy = self.policy
        if policy.max_runs is not None and runs >= policy.max_runs:
            return Over(f"it has had its {policy.max_runs} {'run' if policy.max_runs == 1 else 'runs'}")
        if last.year == MINYEAR:  # as Django's has it for what is to run at once when its time to start has come
            last = now - getattr(self._when, "run_every", _INSTANT)
        first = self._next(last)
        if first is None:
            return Over("there is no further time in its schedule" if policy.end is None else f"it ended {policy.end}")
        if first.fires > now:
            return Wait((first.fires - now).total_seconds())
        following = self._next(first.due)
        previous = last if runs else None
        if following is None or following.fires > now:
            return self._of_one(first.due, previous, now)
        return self._catch_up(last, first.due, previous, now)

    def until_next(self, due: datetime, now: datetime) -> float:
        """Seconds until the tick after one is due, at 0 or less it is; inf: there is none."""
        following = self._next(due)
        return math.inf if following is None else (following.fires - now).total_seconds()

    # -- one -----------------------------------------------------------------------------------------------------------

    def _of_one(self, due: datetime, previous: datetime | None, now: datetime) -> Pass | Publish:
        late = now - due > self._in_time
        why = self._too_old(due, now)
        if why is None and late and self.policy.catchup == "none":
            why = self._not_in_time()
        if why is not None:
            return Pass(Missed(1, due, due, why))
        return Publish(due, previous, None, caught_up=late, alone=late and self.policy.catchup == "all")

    def _too_old(self, due: datetime, now: datetime) -> str | None:
        if self._window is None or now - due <= self._window:
            return None
        policy = self.policy
        if policy.start_within is not None and (policy.catchup_window or math.inf) >= policy.start_within:
            return f"no worker could begin it within {written(policy.start_within)} s (start_within)"
        return f"older than {written(policy.catchup_window or 0)} s (catchup_window)"

    def _not_in_time(self) -> str:
        return f"no beat published it within {written(self._in_time.total_seconds())} s, and its catchup is 'none'"

    # -- many ----------------------------------------------------------------------------------------------------------

    def _catch_up(
        self, last: datetime, first: datetime, previous: datetime | None, now: datetime
    ) -> Wait | Over | Pass | Publish:
        if self.policy.catchup == "all":
            return self._all(last, first, previous, now)
        count, newest = self._ripe_until(last, now)
        if self.policy.catchup == "none":
            others = self._not_in_time()
        else:
            others = f"nobody published them in time: the run of {newest.astimezone(self.zone).isoformat()} stands for them (catchup is 'latest')"
        verdict = self._of_one(newest, previous, now)
        if isinstance(verdict, Pass):
            return Pass(Missed(count, first, newest, verdict.missed.why))
        if count == 1:  # the newest is put off still
            return verdict
        caught_up = verdict.caught_up or self.policy.catchup == "latest"
        return verdict._replace(missed=Missed(count - 1, first, self._before(newest), others), caught_up=caught_up)

    def _all(self, last: datetime, first: datetime, previous: datetime | None, now: datetime) -> Pass | Publish:
        passed = self._too_many(last, first, now)
        if passed is not None:
            return passed
        return Publish(first, previous, None, caught_up=True, alone=True)

    def _too_many(self, last: datetime, first: datetime, now: datetime) -> Pass | None:
        """Leave out those that are too old, or more than may be caught up with."""
        why = self._too_old(first, now)
        if why is not None and self._window is not None:
            old = dues_between(self.dues, max(last, first - _INSTANT), now - self._window - _INSTANT)
            count, newest = (1, first) if old is None else old
            return Pass(Missed(count, first, newest, why))
        if self._counted_at is not None and timedelta(0) <= now - self._counted_at < timedelta(seconds=COUNT_EVERY):
            return None
        self._counted_at = now
        count, newest = self._ripe_until(last, now)
        limit = self.policy.catchup_limit
        if count <= limit:
            return None
        self._counted_at = None
        for _ in range(limit):
            newest = self._before(newest)
        why = f"more than {limit} were due and not published (catchup_limit)"
        return Pass(Missed(count - limit, first, newest, why))

    # -- dues ----------------------------------------------------------------------------------------------------------

    def _next(self, after: datetime) -> _Next | None:
        try:
            return self._following[after]
        except KeyError:
            pass
        if len(self._following) > 2:  # noqa: PLR2004  the last, and the next
            self._following.clear()
        due = next_due(self.dues, after)
        self._following[after] = found = None if due is None else _Next(due, self._fires(due))
        return found

    def _fires(self, due: datetime) -> datetime:
        jitter = self.policy.jitter
        if not jitter:
            return due
        offset = self.policy.offset(self._name, due)
        together = min(TOGETHER, jitter / MOMENTS)
        return due + timedelta(seconds=max(0.0, offset - (due.timestamp() + offset) % together))

    def _ripe_until(self, last: datetime, now: datetime) -> tuple[int, datetime]:
        """Count what is due since the last one, of which there are two at least; the newest may be put off still."""
        dues = dues_between(self.dues, last, now)
        assert dues is not None  # two are due  # noqa: S101
        if self._fires(dues.last) > now:
            return dues.ticks - 1, self._before(dues.last)
        return dues.ticks, dues.last

    def _before(self, due: datetime) -> datetime:
        before = previous_due(self.dues, due)
        assert before is not None  # one is  # noqa: S101
        return before


class Rules:
    """The rules of all entries of an app: by the policies of their schedules, of their rows, and of `lockbeat_entries`."""

    def __init__(self, settings: Mapping[str, Mapping[str, Any]], late_after: float) -> None:
        """Raises ConfigurationError."""
        for pattern, keywords in settings.items():
            Policy.read(keywords, owner=f"lockbeat_entries[{pattern!r}]")
        self._settings = settings
        self._in_time = late_after or IN_TIME

    def of(self, item: Item) -> Rule | None:
        """Return the rule of an entry; None: it goes by its schedule alone."""
        policy = getattr(item.entry, "lockbeat_policy", None)
        if item.ruled_by[0] is not item.schedule or item.ruled_by[1] is not policy:
            item.ruled_by = item.schedule, policy
            try:
                item.rule = self.made(item.entry.name, item.schedule, policy)
            except ConfigurationError as exc:
                item.rule = None
                logger.error("entry %r goes on without its policy: %s", item.entry.name, exc)  # noqa: TRY400  it says it all
        rule: Rule | None = item.rule
        return rule

    def policy_of(self, name: str, when: Any, policy: Policy | None = None) -> tuple[Policy | None, str]:
        """Return the policy of an entry, None: it has none; and who has said so last. Raises ConfigurationError."""
        rule: Policy | None = when.policy if isinstance(when, OwnSchedule) else policy
        owner = f"entry {name!r}"
        for pattern in self._patterns(name):
            owner = f"lockbeat_entries[{pattern!r}], for entry {name!r},"
            rule = (rule or Policy()).over(self._settings[pattern], owner=owner)
        return rule, owner

    def _patterns(self, name: str) -> Iterator[str]:
        return (pattern for pattern in self._settings if fnmatchcase(name, pattern))

    def concern(self, entry: Any) -> bool:
        """Whether an entry of others' has a policy."""
        return getattr(entry, "lockbeat_policy", None) is not None or any(self._patterns(entry.name))

    def made(self, name: str, when: Any, policy: Policy | None = None) -> Rule | None:
        """Make the rule of an entry of this name, as :meth:`of`. Raises ConfigurationError."""
        if isinstance(when, Timeout):
            return None
        rule, owner = self.policy_of(name, when, policy)
        if rule is None:
            return None
        if not isinstance(when, (OwnSchedule, crontab, schedule, solar)):
            raise refusal(
                f"schedule of {owner}", when, "with a policy, a Cron, Every, Once, crontab, schedule or solar"
            )
        check_policy(when, rule, owner=owner)
        return Rule(name, bound(when, name), rule, self._in_time)

"""When entries are due: ``Cron``, ``Every`` and ``Once``, in one vocabulary, with the policy of their ticks.

Promises: what is wrong with a schedule is a ConfigurationError when it is made; each is one of Celery's schedules, which any beat
scheduler understands, is compared by value, and is pickled by what it was made of. In a beat of ours ``last_run_at`` of their
entries is the due time of the last tick, in others the time when it was sent: ``is_due`` is right for both.

Not promised: what a schedule alone cannot do. In a beat that is not ours ``max_runs``, ``run_at_start``, ``start_within`` and what
is said of catching up change nothing: what was missed runs once, as Celery's own schedules do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from celery.schedules import BaseSchedule, crontab, schedstate, schedule

from celery_lockbeat.options import refusal, unit, written
from celery_lockbeat.schedules.expression import Expression
from celery_lockbeat.schedules.policy import LONGEST_TIME, OnceKeywords, Policy, PolicyKeywords, moment
from celery_lockbeat.schedules.zoned import Zoned

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["Cron", "Dues", "Every", "Once", "OwnSchedule", "Timeout", "bound", "policy_of", "seconds_of"]

UTC: Final = timezone.utc

#: Seconds until what is not due any more is looked at again by a beat that is not ours.
NEVER: Final = 10 * 365 * 86400.0


#: Known before anything was found.
_NOTHING: Final = (math.inf, -math.inf, None)


class Dues(NamedTuple):
    """So many ticks, of which this was the last."""

    ticks: int
    last: datetime


def policy_of(when: Any) -> Policy:
    """Return the policy of a schedule: that of Celery's own is the default."""
    return when.policy if isinstance(when, OwnSchedule) else _DEFAULT


def bound(when: Any, name: str) -> Any:
    """Return a schedule as it is for the entry of this name, which decides ``H`` and the jitter."""
    return when.bound_to(name) if isinstance(when, OwnSchedule) else when


class OwnSchedule(BaseSchedule):  # type: ignore[misc]
    """What ``Cron``, ``Every`` and ``Once`` have in common."""

    #: what the events and messages of their ticks are of
    kind: ClassVar[str]
    #: the keywords of a policy that make no sense here
    without: ClassVar[frozenset[str]] = frozenset()

    policy: Policy
    #: the entry's, if it is bound to one
    name: str | None

    def __init__(self, owner: str, policy: Mapping[str, Any], nowfun: Any, app: Any) -> None:
        BaseSchedule.__init__(self, nowfun=nowfun, app=app)
        self.name = None
        self.policy = Policy.read(policy, owner=owner, without=self.without)
        self.policy.check(self.shortest_gap, owner=owner, is_interval=isinstance(self, Every))

    # -- what each of them tells -----------------------------------------------------------------------------------------

    def next_due(self, after: datetime) -> datetime | None:
        """Return when it is due next after an aware moment; None: never, or nobody can tell."""
        raise NotImplementedError

    def previous_due(self, before: datetime) -> datetime | None:
        """Return when it was due last before an aware moment; None: never, or nobody can tell."""
        raise NotImplementedError

    def dues_between(self, after: datetime, until: datetime) -> Dues | None:
        """Count the ticks that were due after one aware moment and until another; None: none, or nobody can tell."""
        raise NotImplementedError

    def shortest_gap(self) -> float | None:
        """Return the seconds between two ticks at least; None: there are no two."""
        raise NotImplementedError

    def _made_of(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments and keywords that it was made of, without the policy."""
        raise NotImplementedError

    # -- what all of them do ---------------------------------------------------------------------------------------------

    def bound_to(self, name: str) -> Any:
        """Return it as it is for the entry of this name: the name decides ``H`` and the jitter, where it has them."""
        return self._remade(self.policy, name) if self._needs_name() and name != self.name else self

    def with_policy(self, policy: Policy) -> Any:
        """Return it with another policy, which was checked."""
        return self._remade(policy, self.name) if policy != self.policy else self

    def is_due(self, last_run_at: datetime) -> Any:
        """Tell (is due, seconds until the next look)."""
        now = self._now()
        fires = self._fires_after(last_run_at if last_run_at.tzinfo is not None else last_run_at.replace(tzinfo=UTC))
        if fires is None:
            return schedstate(is_due=False, next=NEVER)
        left = fires - now.timestamp()
        if left > 0:
            return schedstate(is_due=False, next=min(left, NEVER))
        following = self._fires_after(now)
        rest = NEVER if following is None else min(following - now.timestamp(), NEVER)
        return schedstate(is_due=not self._is_too_late(now), next=rest)

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """Return the time until it fires, negative when it should have."""
        after = last_run_at if last_run_at.tzinfo is not None else last_run_at.replace(tzinfo=UTC)
        fires = self._fires_after(after)
        left = NEVER if fires is None else min(fires - self._now().timestamp(), NEVER)
        return timedelta(seconds=left)

    @property
    def definition(self) -> tuple[str, ...]:
        """What it is, in texts that are the same in all processes."""
        return repr(self), str(self.name)

    def _needs_name(self) -> bool:
        return bool(self.policy.jitter)

    def _now(self) -> datetime:
        now: datetime = self.now()
        return now if now.tzinfo is not None else now.replace(tzinfo=UTC)

    def _fires_after(self, after: datetime) -> float | None:
        """When the next tick after a moment is fired, which may be later than it is due; None: never."""
        due = self.next_due(after)
        return None if due is None else due.timestamp() + self._offset(due)

    def _offset(self, due: datetime) -> float:
        return self.policy.offset(self._seed() if self.name is None else self.name, due) if self.policy.jitter else 0.0

    def _seed(self) -> str:
        return repr(self)

    def _is_too_late(self, _now: datetime) -> bool:
        return False

    def _remade(self, policy: Policy, name: str | None) -> Any:
        args, keywords = self._made_of()
        other = _remade(self._maker(), args, {**keywords, **policy.as_keywords()}, name)
        other.nowfun, other._app = self.nowfun, self._app
        return other

    def _bind(self, name: str) -> None:
        self.name = name

    def _maker(self) -> type:
        return type(self)

    def __reduce__(self) -> tuple[Any, ...]:
        args, keywords = self._made_of()
        return _remade, (self._maker(), args, {**keywords, **self.policy.as_keywords()}, self.name)

    def _value(self) -> tuple[Any, ...]:
        args, keywords = self._made_of()
        return self.kind, args, tuple(keywords.items()), self.policy, self.name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OwnSchedule) and other._value() == self._value()

    def __hash__(self) -> int:
        return hash(self._value())

    def __repr__(self) -> str:
        args, keywords = self._made_of()
        given = {**keywords, **self.policy.as_keywords()}
        said = [*map(_said, args), *(f"{name}={_said(value)}" for name, value in given.items())]
        return f"{self._maker().__name__}({', '.join(said)})"


def _remade(maker: Any, args: tuple[Any, ...], keywords: dict[str, Any], name: str | None) -> Any:
    made = maker(*args, **keywords)
    if name is not None:
        made._bind(name)
    return made


def _said(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    return written(value) if isinstance(value, float) else repr(value)


# -- Cron --------------------------------------------------------------------------------------------------------------


class Cron(OwnSchedule):
    """Due at the times of a cron expression.

    >>> from celery_lockbeat.schedules import Cron
    >>> Cron("30 6 * * mon-fri", timezone="Europe/Berlin", jitter=60)
    Cron('30 6 * * mon-fri', timezone='Europe/Berlin', jitter=60)

    ``timezone`` is that of the expression, by default the app's. The other keywords are those of a policy. One that Celery can
    say, too, is also a ``crontab`` of Celery's, for those who know no other: RedBeat, django-celery-beat, Sentry.
    """

    kind = "cron"

    def __new__(cls, expression: Any = None, **keywords: Any) -> Self:
        """Choose between what Celery can say, and what it cannot."""
        chosen: Any = cls
        bounds = keywords.get("start") is not None or keywords.get("end") is not None
        if cls is Cron and not bounds and _read(expression, keywords.get("owner", "Cron")).celerys is not None:
            chosen = _CelerysCron
        made: Self = object.__new__(chosen)
        return made

    def __init__(
        self,
        expression: str,
        *,
        timezone: str | tzinfo | None = None,
        nowfun: Any = None,
        app: Any = None,
        owner: str = "Cron",
        **policy: Unpack[PolicyKeywords],
    ) -> None:
        self._owner: Final = owner
        self._expression = _read(expression, owner)
        #: the zone of its own, by its name; None: it is the app's
        self.timezone: Final = None if timezone is None else _zone_name(timezone, owner)
        self._zoned: Zoned | None = None
        #: from one moment on, and before another, this is when it is fired next
        self._known: tuple[float, float, float | None] = _NOTHING
        super().__init__(owner, policy, nowfun, app)

    @property
    def expression(self) -> str:
        """The expression, as it was given."""
        return self._expression.text

    @property
    def is_hashed(self) -> bool:
        """Whether the name of its entry decides a part of it: H."""
        return self._expression.is_hashed

    @property
    def tz(self) -> tzinfo:
        """The zone of the expression."""
        zone: tzinfo = self.app.timezone if self.timezone is None else ZoneInfo(self.timezone)
        return zone

    def next_due(self, after: datetime) -> datetime | None:
        """Return when it is due next after an aware moment; None: never."""
        due = self._in_zone().after(self._begins_after(after))
        end = self.policy.end
        return None if due is None or (end is not None and due >= end.timestamp()) else datetime.fromtimestamp(due, UTC)

    def previous_due(self, before: datetime) -> datetime | None:
        """Return when it was due last before an aware moment; None: never."""
        start, end = self.policy.start, self.policy.end
        at = math.ceil((before if end is None else min(before, end)).timestamp())
        due = self._in_zone().before(at) if at > 0 else None
        return None if due is None or (start and due < start.timestamp()) else datetime.fromtimestamp(due, UTC)

    def dues_between(self, after: datetime, until: datetime) -> Dues | None:
        """Count the ticks that were due after one aware moment and until another; None: none."""
        end = self.policy.end
        first, last = self._begins_after(after), math.floor(until.timestamp())
        last = last if end is None else min(last, math.ceil(end.timestamp()) - 1)
        ticks = self._in_zone().count(first, last) if first < last else 0
        newest = self._in_zone().before(last + 1) if ticks else None
        return None if newest is None else Dues(ticks, datetime.fromtimestamp(newest, UTC))

    def shortest_gap(self) -> float | None:
        """Return the seconds between two ticks at least, where no clock is changed; None: there are no two."""
        return self._expression.times.shortest_gap()

    @property
    def definition(self) -> tuple[str, ...]:
        """What it is, in texts that are the same in all processes."""
        return (*super().definition, str(self.tz))

    def _begins_after(self, after: datetime) -> int:
        start = self.policy.start
        # Celery and Django have the year 1 for "never"
        at = max(0, math.floor(after.timestamp()))
        return at if start is None else max(at, math.ceil(start.timestamp()) - 1)

    def _fires_after(self, after: datetime) -> float | None:
        # between two of its moments the answer stays the same
        at = after.timestamp()
        since, until, fires = self._known
        if not since <= at < until:
            due = self.next_due(after)
            until, fires = (math.inf, None) if due is None else (due.timestamp(), due.timestamp() + self._offset(due))
            self._known = at, until, fires
        return fires

    def _is_too_late(self, now: datetime) -> bool:
        """Whether its last tick is older than ``beat_cron_starting_deadline`` allows, as for Celery's crontab."""
        deadline = self.app.conf.beat_cron_starting_deadline
        if deadline is None:
            return False
        last = self.previous_due(now + timedelta(microseconds=1))
        if last is not None and last.timestamp() + self._offset(last) > now.timestamp():
            last = self.previous_due(last)  # it is yet to be fired
        return last is not None and last.timestamp() + self._offset(last) < now.timestamp() - deadline

    def _in_zone(self) -> Zoned:
        zone = self.tz
        if self._zoned is None or self._zoned.zone is not zone:
            self._zoned = Zoned(self._expression.times, zone, passes=self._expression.passes)
        return self._zoned

    def _forget(self) -> None:
        """Forget what was found for another zone, or another name."""
        self._zoned, self._known = None, _NOTHING

    @property
    def app(self) -> Any:
        """The app, which may have the zone."""
        return BaseSchedule.app.fget(self)

    @app.setter
    def app(self, app: Any) -> None:
        # Celery sets it at each tick (celery 5.4, beat.py: ScheduleEntry)
        if app is not self._app:
            self._app: Any = app
            self._forget()

    def _needs_name(self) -> bool:
        return self.is_hashed or super()._needs_name()

    def _bind(self, name: str) -> None:
        super()._bind(name)
        if self.is_hashed:
            self._expression = _read(self._expression.text, self._owner, name)
            self._forget()

    def _seed(self) -> str:
        return self._expression.text

    def _made_of(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.expression,), {} if self.timezone is None else {"timezone": self.timezone}

    def _value(self) -> tuple[Any, ...]:
        # the same times may be written in several ways
        return self.kind, self._expression.value, self.timezone, self.policy, self.name


class _CelerysCron(Cron, crontab):  # type: ignore[misc]
    """A Cron that is a crontab of Celery's, too."""

    def __init__(self, expression: str, **keywords: Any) -> None:
        super().__init__(expression, **keywords)
        self._be_celerys()

    def _be_celerys(self) -> None:
        same = self._expression.celerys
        for name in ("minute", "hour", "day_of_week", "day_of_month", "month_of_year"):
            setattr(self, name, getattr(same, name))
            setattr(self, f"_orig_{name}", getattr(same, f"_orig_{name}"))
        self._orig_kwargs: dict[str, Any] = {}

    def _bind(self, name: str) -> None:
        super()._bind(name)
        self._be_celerys()

    def _maker(self) -> type:
        return Cron


def _read(text: Any, owner: str, name: str | None = None) -> Expression:
    return _known(text, owner, name) if isinstance(text, str) else Expression(text, owner=owner, name=name)


@lru_cache(maxsize=1024)
def _known(text: str, owner: str, name: str | None) -> Expression:
    """The same expression is read once, however many entries have it, and to choose a class for it."""
    return Expression(text, owner=owner, name=name)


def _zone_name(zone: Any, owner: str) -> str:
    name = "UTC" if zone is UTC else getattr(zone, "key", zone)
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError) as exc:
        raise refusal(f"timezone of {owner}", zone, f"a name such as 'Europe/Berlin' ({exc})") from exc
    return str(name)


# -- Every -------------------------------------------------------------------------------------------------------------


class Every(OwnSchedule, schedule):  # type: ignore[misc]
    """Due so many seconds after it was due last; with a ``start``, at that moment and each so many seconds after it.

    >>> from celery_lockbeat.schedules import Every
    >>> Every(90, catchup="all", run_at_start=True)
    Every(90, catchup='all', run_at_start=True)
    """

    kind = "interval"
    relative = False

    def __init__(
        self,
        seconds: float | timedelta,
        *,
        nowfun: Any = None,
        app: Any = None,
        owner: str = "Every",
        **policy: Unpack[PolicyKeywords],
    ) -> None:
        self.run_every: Final = timedelta(seconds=seconds_of(owner, seconds, low=0.001))
        super().__init__(owner, policy, nowfun, app)

    def next_due(self, after: datetime) -> datetime | None:
        """Return when it is due next after an aware moment, which is when it was due last; None: never."""
        start, end = self.policy.start, self.policy.end
        after = after.astimezone(UTC)
        if start is None:
            due = after + self.run_every
        else:
            start = start.astimezone(UTC)
            due = start + max(0, (after - start) // self.run_every + 1) * self.run_every
        return None if end is not None and due >= end else due

    def previous_due(self, before: datetime) -> datetime | None:
        """Return when it was due last before an aware moment, at which it was due, too; None: never."""
        start, end = self.policy.start, self.policy.end
        before = before.astimezone(UTC)
        if start is None:
            due = before - self.run_every
            return due if end is None or due < end else None
        start = start.astimezone(UTC)
        before = before if end is None else min(before, end)
        number = -((start - before) // self.run_every) - 1
        return start + number * self.run_every if number >= 0 else None

    def dues_between(self, after: datetime, until: datetime) -> Dues | None:
        """Count the ticks that were due after one aware moment, at which it was due, and until another; None: none."""
        first, end = self.next_due(after), self.policy.end
        if first is None or first > until:
            return None
        last = until.astimezone(UTC)
        number = (last - first) // self.run_every
        if end is not None and first + number * self.run_every >= end:
            number = -((first - end.astimezone(UTC)) // self.run_every) - 1
        return Dues(number + 1, first + number * self.run_every)

    def shortest_gap(self) -> float | None:
        """Return the seconds between two ticks."""
        return float(self.run_every.total_seconds())

    def _made_of(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.run_every.total_seconds(),), {}


# -- Once --------------------------------------------------------------------------------------------------------------


class Once(OwnSchedule):
    """Due once: ``at`` an aware moment, or so many seconds ``after`` a cold start of the beats, while no other replica is there.

    >>> from celery_lockbeat.schedules import Once
    >>> Once(after=5)
    Once(after=5)

    In a beat that is not ours, ``after`` counts from each of its starts.
    """

    kind = "timeout"
    without = frozenset({"start", "end", "max_runs", "catchup_limit", "run_at_start", "pause_after_failures"})

    def __new__(cls, *_args: Any, after: float | timedelta | None = None, **_keywords: Any) -> Self:
        """Choose between the two."""
        chosen: Any = Timeout if cls is Once and after is not None else cls
        made: Self = object.__new__(chosen)
        return made

    def __init__(
        self,
        *,
        at: datetime | None = None,
        after: float | timedelta | None = None,
        nowfun: Any = None,
        app: Any = None,
        owner: str = "Once",
        **policy: Unpack[OnceKeywords],
    ) -> None:
        if at is None or after is not None:
            raise refusal(f"the time of {owner}", at, "after=seconds, or at=datetime")
        self.at: Final = moment(f"at of {owner}", at)
        super().__init__(owner, policy, nowfun, app)

    def next_due(self, after: datetime) -> datetime | None:
        """Return when it is due, if that is after an aware moment."""
        return self.at.astimezone(UTC) if self.at > after else None

    def previous_due(self, before: datetime) -> datetime | None:
        """Return when it was due, if that was before an aware moment."""
        return self.at.astimezone(UTC) if self.at < before else None

    def dues_between(self, after: datetime, until: datetime) -> Dues | None:
        """Tell whether it was due after one aware moment and until another."""
        return Dues(1, self.at.astimezone(UTC)) if after < self.at <= until else None

    def shortest_gap(self) -> float | None:
        """There are no two."""
        return None

    def _made_of(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {"at": self.at}


class Timeout(Once):
    """Due once, ``seconds`` after the start of the beat."""

    def __init__(
        self,
        seconds: float | timedelta | None = None,
        nowfun: Any = None,
        app: Any = None,
        *,
        after: float | timedelta | None = None,
        at: datetime | None = None,
        owner: str = "Once",
        **policy: Unpack[OnceKeywords],
    ) -> None:
        if at is not None:
            raise refusal(f"at of {owner}", at, "either after=seconds, or at=datetime")
        self.seconds: Final = seconds_of(owner, after if seconds is None else seconds, low=0.0)
        #: for a beat that is not ours: when it asked for the first time. Not pickled: the next start is another one.
        self._start: datetime | None = None
        OwnSchedule.__init__(self, owner, policy, nowfun, app)

    def next_due(self, after: datetime) -> datetime | None:  # noqa: ARG002
        """Nobody can tell: it depends on the start."""
        return None

    def previous_due(self, before: datetime) -> datetime | None:  # noqa: ARG002
        """Nobody can tell: it depends on the start."""
        return None

    def dues_between(self, after: datetime, until: datetime) -> Dues | None:  # noqa: ARG002
        """Nobody can tell: it depends on the start."""
        return None

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:  # noqa: ARG002  Celery's signature
        """Return the time until it is due, negative when it was due."""
        now = self._now()
        if self._start is None:
            self._start = now
        due = self._start + timedelta(seconds=self.seconds)
        return due + timedelta(seconds=self._offset(due)) - now

    def is_due(self, last_run_at: datetime) -> Any:
        """Tell (is due, seconds until the next look)."""
        remaining = self.remaining_estimate(last_run_at)
        if self.maybe_make_aware(last_run_at) >= self._now() + remaining:
            return schedstate(is_due=False, next=NEVER)
        seconds = remaining.total_seconds()
        return schedstate(is_due=True, next=NEVER) if seconds <= 0 else schedstate(is_due=False, next=seconds)

    def _made_of(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {"after": self.seconds}

    def _maker(self) -> type:
        return Once


def seconds_of(owner: str, value: Any, *, low: float) -> float:
    """Read the seconds that ``owner`` was given, as a number or a timedelta. Raises ConfigurationError."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not number or not math.isfinite(seconds) or not low <= seconds <= LONGEST_TIME:
        hint = f" (write {owner}(10))" if callable(value) else unit(value, LONGEST_TIME)
        allowed = f"seconds, a number from {written(low)} to {written(LONGEST_TIME)}, or a timedelta{hint}"
        raise refusal(f"the time of {owner}", value, allowed)
    return float(seconds)


_DEFAULT: Final = Policy()

"""What is said of an entry's ticks, beyond when they are due: how they are spread, from when to when, and what becomes of missed ones.

Promises: a policy is right as a whole once it is made, else it is a ConfigurationError that names the keyword, the value and what
is allowed. By how much a tick is put off is the same in all replicas, Pythons and releases. These are data: a beat acts on them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Final, Literal, TypedDict

from celery_lockbeat.options import LONGEST, refusal, written
from celery_lockbeat.options.refusals import refuse_unknown
from celery_lockbeat.options.rules import flag, one_of, seconds
from celery_lockbeat.stores.base import FAILURES_AT_MOST

__all__ = ["LONGEST_TIME", "POLICY_NAMES", "OnceKeywords", "Policy", "PolicyKeywords", "moment"]

#: Seconds: a year or so. More is a mistake in the unit.
LONGEST_TIME: Final = 12 * LONGEST


class OnceKeywords(TypedDict, total=False):
    """The keywords of a policy for what comes once."""

    jitter: float | timedelta | None
    catchup: Literal["latest", "all", "none"] | None
    catchup_window: float | timedelta | None
    start_within: float | timedelta | None


class PolicyKeywords(OnceKeywords, total=False):
    """The keywords of a policy, each of which may be None: the default. Durations are seconds."""

    start: datetime | None
    end: datetime | None
    max_runs: int | None
    catchup_limit: int | None
    run_at_start: bool | None
    pause_after_failures: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """The keywords of ``Cron``, ``Every``, ``Once``, of the decorators and of ``lockbeat_entries``. Durations are seconds."""

    jitter: float = 0.0
    start: datetime | None = None
    end: datetime | None = None
    max_runs: int | None = None
    catchup: str = "latest"
    catchup_limit: int = 100
    catchup_window: float | None = None
    start_within: float | None = None
    run_at_start: bool = False
    pause_after_failures: int | None = None

    @classmethod
    def read(cls, keywords: Mapping[str, Any], *, owner: str, without: frozenset[str] = frozenset()) -> Policy:
        """Read keywords of ``owner``; None stands for the default. ``without``: those that make no sense for this owner.

        Raises ConfigurationError.
        """
        return cls()._with(keywords, owner, without)

    def over(self, keywords: Mapping[str, Any], *, owner: str, without: frozenset[str] = frozenset()) -> Policy:
        """Return a policy in which these keywords count instead. Raises ConfigurationError."""
        return self._with(keywords, owner, without)

    def _with(self, keywords: Mapping[str, Any], owner: str, without: frozenset[str]) -> Policy:
        refuse_unknown(keywords, [name for name in POLICY_NAMES if name not in without], owner=owner)
        read = {
            name: _RULES[name](f"{name} of {owner}", value) if value is not None else _DEFAULTS[name]
            for name, value in keywords.items()
        }
        policy = Policy(**{**{name: getattr(self, name) for name in POLICY_NAMES}, **read})
        if policy.start is not None and policy.end is not None and policy.end <= policy.start:
            raise refusal(f"end of {owner}", policy.end.isoformat(), f"a time after start, {policy.start.isoformat()}")
        return policy

    def as_keywords(self) -> dict[str, Any]:
        """Return what differs from the defaults, as :meth:`read` takes it."""
        given = {name: getattr(self, name) for name in POLICY_NAMES}
        return {name: value for name, value in given.items() if value != _DEFAULTS[name]}

    def check(self, shortest_gap: Callable[[], float | None], *, owner: str, is_interval: bool) -> None:
        """Refuse what does not fit a schedule of such ticks. Raises ConfigurationError."""
        if self.run_at_start and not is_interval:
            raise refusal(
                f"run_at_start of {owner}", True, "False, but for an interval: the others have times of their own"
            )
        gap = shortest_gap() if self.jitter or self.catchup == "all" else None
        if gap is None:
            return
        if self.jitter > gap:
            allowed = f"at most {written(gap)} seconds, for two of its ticks are no longer apart"
            raise refusal(f"jitter of {owner}", self.jitter, allowed)
        if self.catchup == "all" and gap < 1:
            allowed = "'latest' or 'none', for two of its ticks are less than a second apart"
            raise refusal(f"catchup of {owner}", self.catchup, allowed)

    def allows(self, due: datetime) -> bool:
        """Whether there may be a tick at this moment."""
        return (self.start is None or due >= self.start) and (self.end is None or due < self.end)

    def offset(self, name: str, due: datetime) -> float:
        """Return by how many seconds the tick of an entry is put off, from 0 to less than ``jitter``."""
        if not self.jitter:
            return 0.0
        # to the millisecond, which is what stores and messages have of a due time
        text = f"{name}\0{round(due.timestamp() * 1000)}"
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).digest()
        return int.from_bytes(digest, "big") / 2**32 * self.jitter


def _duration(low: float) -> Callable[[str, Any], float]:
    rule = seconds(low, high=LONGEST_TIME)

    def read(setting: str, value: Any) -> float:
        return float(rule(setting, value.total_seconds() if isinstance(value, timedelta) else value))

    return read


def _number(setting: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise refusal(setting, value, "a whole number from 1")
    return value


def _failures(setting: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= FAILURES_AT_MOST:
        raise refusal(setting, value, f"a whole number from 1 to {FAILURES_AT_MOST}")
    return value


def moment(setting: str, value: Any) -> datetime:
    """Read an aware datetime. Raises ConfigurationError."""
    if not isinstance(value, datetime):
        raise refusal(setting, value, "a datetime with a timezone")
    if value.utcoffset() is None:
        raise refusal(
            setting,
            value.isoformat(),
            "a datetime with a timezone, such as datetime(..., tzinfo=ZoneInfo('Europe/Berlin'))",
        )
    return value


_RULES: Final[dict[str, Callable[[str, Any], Any]]] = {
    "jitter": _duration(0),
    "start": moment,
    "end": moment,
    "max_runs": _number,
    "catchup": one_of("latest", "all", "none"),
    "catchup_limit": _number,
    "catchup_window": _duration(0.001),
    "start_within": _duration(0.001),
    "run_at_start": flag,
    "pause_after_failures": _failures,
}

#: The keywords of a policy.
POLICY_NAMES: Final = tuple(field.name for field in fields(Policy))

_DEFAULTS: Final = {field.name: field.default for field in fields(Policy)}

"""The options of a lock: ``lock_*`` of a task, or the keywords of a :class:`~celery_lockbeat.Lock`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from string import Formatter
from typing import Any, Final, Literal, TypedDict

from celery_lockbeat.options.refusals import SETTING_PREFIX, refusal, refuse_unknown, spelled_for, written
from celery_lockbeat.options.rules import LONGEST, Rule, count, flag, one_of, seconds, text

__all__ = [
    "ATTEMPTS",
    "DELIVERS_AGAIN",
    "LOCK_NAMES",
    "MARGIN",
    "RETRY_EVERY",
    "TASK_PREFIX",
    "LockKeywords",
    "LockOptions",
    "check_key",
    "check_keys",
    "check_options",
    "check_unprefixed",
    "check_wait",
    "shown_keys",
]

TASK_PREFIX: Final = "lock_"

#: What a lease, or a claim, may end earlier by the local clock, as a part of it: 1 % is far beyond what NTP lets a clock do.
MARGIN: Final = 0.01

#: Seconds between two attempts to extend, after one that failed, or less where the lease is short.
RETRY_EVERY: Final = 1.0

#: So many attempts to extend fit into a lease.
ATTEMPTS: Final = 3

#: Seconds after which a broker delivers a message again that is not acknowledged, unless it is told otherwise: kombu's
#: visibility_timeout, and RabbitMQ's consumer_timeout.
DELIVERS_AGAIN: Final = {
    "redis": 3600.0,
    "rediss": 3600.0,
    "sentinel": 3600.0,
    "sqs": 1800.0,
    "amqp": 1800.0,
    "amqps": 1800.0,
    "pyamqp": 1800.0,
}

#: As many keys one run may have: each costs the store as much as a run of one key.
KEYS_AT_MOST: Final = 100

#: What has a run wait whose key is held, and who waits then, for the store.
WAITS: Final = {"wait": "all", "wait_one": "one", "wait_latest": "latest", "replace": "replace"}

#: Seconds for which a finished run is remembered, unless copies of its message may come later.
REMEMBERED: Final = 3600.0

#: Seconds that such a copy may take beyond that until a worker has it: until somebody looks for it (kombu: ten), and in its
#: queue. The time until the run's end is on our side: a message is delivered before it runs, and remembered from its end on.
ON_ITS_WAY: Final = 600.0


@dataclass(frozen=True, kw_only=True)
class LockOptions:
    """How one task, or one :class:`~celery_lockbeat.Lock`, takes its lock. Durations are seconds.

    What follows from them is worked out once, not at each run.
    """

    enabled: bool = True
    key: str | tuple[str, ...] | Callable[..., str | Iterable[str]] | None = None
    driver: str = "auto"
    connection: str = "default"
    ttl: float = 30.0
    auto_extend: bool = True
    extend_interval: float | None = None
    retry_attempts: int = 0
    retry_delay: float = 0.2
    retry_jitter: float = 0.05
    if_held: str = "skip"
    skip_if_locked: bool = True
    wait_at_most: float = 3600.0
    line_limit: int = 1000
    limit: int = 1
    hold_at_least: float = 0.0
    hold_at_most: float = 0.0
    on_lost: str = "fail"
    dedupe_ttl: float = REMEMBERED
    unique: str | bool = False
    unique_ttl: float = 3600.0
    expected_within: float | None = None
    logging: str | bool = "auto"

    @cached_property
    def waits(self) -> str | None:
        """Which of those who find the key held wait for it; None: nobody does."""
        return WAITS.get(self.if_held)

    @cached_property
    def on_replaced(self) -> str:
        """What becomes of a body when another run wants its place: as when its lock is lost, or at once where its own kind does so."""
        return "abort" if self.if_held == "replace" else self.on_lost

    @cached_property
    def aborts(self) -> bool:
        """Whether a body may have to be ended from outside."""
        return "abort" in (self.on_lost, self.on_replaced)

    @cached_property
    def extends_every(self) -> float:
        """Seconds between two renewals: a third of the ttl leaves two more tries while the lease lasts."""
        return self.ttl / 3 if self.extend_interval is None else self.extend_interval

    @cached_property
    def retries_every(self) -> float:
        """Seconds between two attempts to extend, after one that failed."""
        return min(RETRY_EVERY, self.extends_every / 4, (self.ttl - self.extends_every) / 8)

    @cached_property
    def attempt(self) -> float:
        """Seconds that an attempt to extend may take: ``interval + 3 attempts + 2 pauses = ttl`` without its margin."""
        left = self.ttl * (1 - MARGIN) - self.extends_every - (ATTEMPTS - 1) * self.retries_every
        return max(0.01, left / ATTEMPTS)

    @cached_property
    def patience(self) -> float:
        """Seconds of a lease after which whoever is to renew it is late, so that another does."""
        every = self.extends_every
        return every + (self.ttl * (1 - MARGIN) - every) / 4

    @classmethod
    def read(
        cls,
        conf: Mapping[str, Any],
        own: Mapping[str, Any],
        *,
        owner: str,
        prefix: str = "",
        without: frozenset[str] = frozenset(),
    ) -> LockOptions:
        """Merge default, ``lockbeat_*`` of the app and the ``own`` values, given as ``prefix`` + name by ``owner``.

        ``without``: the options that make no sense for this owner. Raises ConfigurationError.
        """
        with spelled_for(conf):
            return cls._read(conf, own, owner, prefix, without)

    @classmethod
    def _read(
        cls, conf: Mapping[str, Any], own: Mapping[str, Any], owner: str, prefix: str, without: frozenset[str]
    ) -> LockOptions:
        refuse_unknown(own, [prefix + name for name in LOCK_NAMES if name not in without], owner=owner)
        values: dict[str, Any] = {}
        named: dict[str, str] = {}
        for name in LOCK_NAMES:
            if own.get(prefix + name) is not None:
                named[name], values[name] = f"{prefix}{name} of {owner}", own[prefix + name]
            elif conf.get(SETTING_PREFIX + name) is not None:
                named[name], values[name] = SETTING_PREFIX + name, conf[SETTING_PREFIX + name]
            else:
                continue
            values[name] = _LOCK_RULES[name](named[name], values[name])
        _settle_if_held(values, named, own, prefix)
        values.setdefault("dedupe_ttl", _remembers(conf))
        options = cls(**values)
        options._check_interval(named.get("extend_interval", "extend_interval"), named.get("ttl", "the default ttl"))
        if 0 < options.hold_at_most < options.hold_at_least:
            least = f"{named['hold_at_least']}, which is {written(options.hold_at_least)}"
            raise refusal(named["hold_at_most"], options.hold_at_most, f"0 (no bound), or a time from {least}, on")
        return options

    def with_ttl(self, ttl: float, *, owner: str) -> LockOptions:
        """Return the same with another ttl, said by ``owner``. Raises ConfigurationError."""
        options = replace(self, ttl=_LOCK_RULES["ttl"](f"the ttl of {owner}", ttl))
        options._check_interval("extend_interval", f"the ttl of {owner}")
        return options

    def _check_interval(self, interval: str, ttl: str) -> None:
        if self.extends_every >= self.ttl:
            raise refusal(interval, self.extend_interval, f"a time below {ttl}, which is {written(self.ttl)}")


def _settle_if_held(values: dict[str, Any], named: Mapping[str, str], own: Mapping[str, Any], prefix: str) -> None:
    """Let ``if_held`` and ``skip_if_locked``, its older form, say the same: what is nearer counts. Raises ConfigurationError."""
    older, newer = "skip_if_locked", "if_held"
    nearer = [name for name in (newer, older) if own.get(prefix + name) is not None]
    given = nearer or [name for name in (newer, older) if name in values]
    if len(given) > 1:
        raise refusal(named[older], values[older], f"one of it and {named[newer]}, which is {values[newer]!r}")
    if given == [older]:
        values[newer] = "skip" if values[older] else "fail"
    values[older] = values.get(newer, "skip") == "skip"


def _remembers(conf: Mapping[str, Any]) -> float:
    """Return the seconds for which a run is remembered by default: for longer than copies of its message come."""
    url = getattr(conf, "broker_read_url", None) or getattr(conf, "broker_url", None)
    url = url[0] if isinstance(url, (list, tuple)) and url else url
    again = DELIVERS_AGAIN.get(str(url or "").partition(":")[0].lower(), 0.0)
    given = (getattr(conf, "broker_transport_options", None) or {}).get("visibility_timeout")
    # as text it may come from the environment
    with contextlib.suppress(TypeError, ValueError):
        again = again if given is None else float(given)
    return min(max(REMEMBERED, again + ON_ITS_WAY), LONGEST) if again > 0 else REMEMBERED


class LockKeywords(TypedDict, total=False):
    """The keywords of :class:`~celery_lockbeat.Lock`, each of which may be None: as the app's settings say. Durations are seconds."""

    driver: Literal["auto", "redis", "memory", "database"] | None
    connection: str | None
    ttl: float | None
    auto_extend: bool | None
    extend_interval: float | None
    retry_attempts: int | None
    retry_delay: float | None
    retry_jitter: float | None
    limit: int | None
    hold_at_least: float | None
    hold_at_most: float | None
    on_lost: Literal["fail", "abort", "warn"] | None
    logging: Literal["auto", "brief", "default", "verbose", False] | None


def check_options(own: Mapping[str, Any], *, owner: str, prefix: str) -> None:
    """Check options of a lock one by one, for whoever has no app yet to merge them with. Raises ConfigurationError."""
    refuse_unknown(own, [prefix + name for name in LOCK_NAMES], owner=owner)
    for name in LOCK_NAMES:
        if own.get(prefix + name) is not None:
            _LOCK_RULES[name](f"{prefix}{name} of {owner}", own[prefix + name])


def check_unprefixed(given: Mapping[str, Any], base: type, *, owner: str) -> None:
    """Refuse a lock's option without its ``lock_``, unless it is Celery's, or its base's, own. Raises ConfigurationError."""
    for name, value in given.items():
        if name in LOCK_NAMES and name not in _CELERYS and not hasattr(base, name):
            raise refusal(f"{name} of {owner}", value, f"{TASK_PREFIX}{name}={value!r}, an option of the task's lock")


def check_key(setting: str, key: Any) -> str:
    """Return a key that can be locked. Raises ConfigurationError."""
    if not isinstance(key, str) or not key:
        raise refusal(setting, key, "a non-empty string")
    return key


def check_keys(setting: str, keys: Any) -> tuple[str, ...]:
    """Return keys that can be locked, sorted and each once, of one key or of several. Raises ConfigurationError."""
    if isinstance(keys, str):
        return (check_key(setting, keys),)
    found = set(keys) if isinstance(keys, (list, tuple, set, frozenset)) and all(map(_is_text, keys)) else set()
    if not 0 < len(found) <= KEYS_AT_MOST:
        raise refusal(setting, keys, f"a non-empty string, or a list of 1 to {KEYS_AT_MOST} of them")
    return tuple(sorted(found))


def shown_keys(keys: Sequence[str]) -> str:
    """Write the keys of one hold in one text."""
    return ", ".join(keys)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def check_wait(setting: str, wait: Any) -> float:
    """Return the seconds for which a key is waited for; None is 0. Raises ConfigurationError."""
    return 0.0 if wait is None else float(seconds(0)(setting, wait))


def _key(setting: str, value: Any) -> Any:
    if callable(value):
        return value
    if isinstance(value, (list, tuple)) and 0 < len(value) <= KEYS_AT_MOST and all(map(_is_text, value)):
        return tuple(_template(setting, each) for each in value)
    if not _is_text(value):
        several = f"a list of 1 to {KEYS_AT_MOST} of them"
        raise refusal(setting, value, f"a non-empty string, {several}, or a callable of the task's arguments")
    return _template(setting, value)


def _template(setting: str, value: str) -> str:
    try:
        list(Formatter().parse(value))
    except ValueError as exc:
        raise refusal(setting, value, f"a str.format template ({exc}; a brace is written {{{{ or }}}})") from exc
    return value


def _limit(setting: str, value: Any) -> int:
    if count(setting, value) < 1:
        raise refusal(setting, value, "a whole number from 1")
    return int(value)


_LOCK_RULES: Final[dict[str, Rule]] = {
    "enabled": flag,
    "key": _key,
    "driver": one_of("auto", "redis", "memory", "database"),
    "connection": text,
    "ttl": seconds(0.1),
    "auto_extend": flag,
    "extend_interval": seconds(0.01),
    "retry_attempts": count,
    "retry_delay": seconds(0),
    "retry_jitter": seconds(0),
    "if_held": one_of("skip", "fail", *WAITS),
    "skip_if_locked": flag,
    "wait_at_most": seconds(0.1),
    "line_limit": _limit,
    "limit": _limit,
    "hold_at_least": seconds(0),
    "hold_at_most": seconds(0),
    "on_lost": one_of("fail", "abort", "warn"),
    "dedupe_ttl": seconds(0),
    "unique": one_of(False, "until_started", "until_finished"),
    "unique_ttl": seconds(0.1),
    "expected_within": seconds(0.1),
    "logging": one_of("auto", "brief", "default", "verbose", False),
}

#: What is an option of Celery's, too: of autoretry_for.
_CELERYS: Final = frozenset({"retry_jitter"})

LOCK_NAMES: Final = tuple(field.name for field in fields(LockOptions))

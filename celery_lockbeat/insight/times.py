"""Times as people give them, and as they are shown: in the app's timezone."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.journal.sentences import in_zone, nearest_second

__all__ = ["any_moment_of", "coming_of", "date_of", "moment_of", "now", "since_of", "time_of", "to_the_second"]

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_AGO: Final = re.compile(r"(\d+(?:\.\d+)?) ?([smhd])(?: ago)?")
_CLOCK: Final = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?")

#: Days that a time may be ago.
LONGEST: Final = 3660.0


def now() -> datetime:
    """Return the time."""
    return datetime.now(timezone.utc)


def since_of(text: str, app: Any) -> datetime:
    """Read the value of ``--since``. Raises ConfigurationError."""
    allowed = "90s, 10m, 24h, 7d, or a time in ISO 8601 such as 2026-03-01T03:00, that is past"
    return _past(_ago(text) or time_of(text, app), "--since", text, allowed)


def moment_of(text: str, app: Any, option: str = "--at") -> datetime:
    """Read a moment: ISO 8601, a time of the clock (the last such), how long ago, or now. Raises ConfigurationError."""
    allowed = "a time in ISO 8601 such as 2026-03-01T03:00, 03:00 (the last one), or 10m ago, that is past"
    found = now() if text.strip() == "now" else _ago(text) or _of_the_clock(text, app) or time_of(text, app)
    return _past(found, option, text, allowed)


def coming_of(text: str, app: Any, option: str) -> datetime:
    """Read a moment that is to come: how long from now, a time of the clock (the next such), or ISO 8601. Raises ConfigurationError."""
    match, last = _AGO.fullmatch(text.strip()), _of_the_clock(text, app)
    found = time_of(text, app)
    if match is not None and not text.strip().endswith("ago") and float(match[1]) * _UNITS[match[2]] <= LONGEST * 86400:
        found = now() + timedelta(seconds=float(match[1]) * _UNITS[match[2]])
    elif last is not None:
        found = last + timedelta(days=1)
    if found is None or found <= now():
        allowed = "2h, 30m or 1d from now, 18:00 (the next one), or a time in ISO 8601 such as 2026-03-01T18:00, that is to come"
        raise ConfigurationError(f"{option} is {text!r}; allowed: {allowed}")
    return found


def any_moment_of(text: str, app: Any) -> datetime:
    """Read a moment, past or to come: now, from now or ago, a time of today's clock, or ISO 8601. Raises ConfigurationError."""
    text = text.strip()
    match = _AGO.fullmatch(text)
    if text == "now":
        return now()
    if match is not None and not text.endswith("ago"):
        seconds = float(match[1]) * _UNITS[match[2]]
        found = now() + timedelta(seconds=seconds) if seconds <= LONGEST * 86400 else None
    else:
        found = _ago(text) or _today(text, app) or time_of(text, app)
    if found is None:
        allowed = "now, 2h (from now), 10m ago, 03:00 (today's), or a time in ISO 8601 such as 2026-03-01T03:00"
        raise ConfigurationError(f"--at is {text!r}; allowed: {allowed}")
    return found


def _past(found: datetime | None, option: str, text: str, allowed: str) -> datetime:
    if found is None or found > now():
        raise ConfigurationError(f"{option} is {text!r}; allowed: {allowed}")
    return found


def _ago(text: str) -> datetime | None:
    match = _AGO.fullmatch(text.strip())
    seconds = float(match[1]) * _UNITS[match[2]] if match else None
    return None if seconds is None or seconds > LONGEST * 86400 else now() - timedelta(seconds=seconds)


def _of_the_clock(text: str, app: Any) -> datetime | None:
    at = _today(text, app)
    return at if at is None or at <= now() else at - timedelta(days=1)


def _today(text: str, app: Any) -> datetime | None:
    match = _CLOCK.fullmatch(text.strip())
    if match is None:
        return None
    hour, minute, second = (int(each or 0) for each in match.groups())
    return now().astimezone(app.timezone).replace(hour=hour, minute=minute, second=second, microsecond=0)


def time_of(text: str, app: Any) -> datetime | None:
    """Return a time in ISO 8601, as users write it and stores have it of a run: in the app's timezone where it names none."""
    try:
        # Python 3.10 knows no Z
        found = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text.strip()))
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=app.timezone)


def date_of(at: datetime, app: Any) -> str:
    """Write a time as a table does, without the year."""
    return in_zone(nearest_second(at), app.timezone).strftime("%m-%d %H:%M:%S")


def to_the_second(at: datetime, app: Any) -> str:
    """Write a time with its zone."""
    return in_zone(nearest_second(at), app.timezone).strftime("%Y-%m-%d %H:%M:%S %Z")

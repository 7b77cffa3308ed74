"""What the page says in words: when an entry is due, how long something lasts, and texts of others, cut to what fits."""

from __future__ import annotations

import re
from datetime import datetime, tzinfo
from functools import lru_cache
from typing import Any, Final

from celery.schedules import crontab, schedule, solar
from cron_descriptor import Options, get_description

from celery_lockbeat.insight.plain import every, printable
from celery_lockbeat.journal.sentences import in_zone, nearest_second
from celery_lockbeat.observe.vocabulary import took
from celery_lockbeat.schedules.when import Once, Timeout

__all__ = ["clock", "cut", "expression_of", "full", "is_interval", "same_but_for_numbers", "seconds", "words_of"]

#: Characters that are shown of a text of somebody else's.
LONGEST: Final = 300

_NUMBER: Final = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d+", re.IGNORECASE)


def cut(text: object, longest: int = LONGEST) -> str:
    """Return a text on one line, of so many characters at most, that nothing in it turns around."""
    # nobody needs all of 10 kB to be looked through
    plain = printable(str(text)[: longest + 1])
    return plain if len(plain) <= longest else f"{plain[: longest - 1]}…"


def expression_of(when: Any) -> str:
    """Write a schedule as its user did, as far as it is known."""
    own = getattr(when, "expression", None)
    if isinstance(own, str):
        return own
    if isinstance(when, crontab):
        fields = (when._orig_minute, when._orig_hour, when._orig_day_of_month)
        return " ".join(str(each) for each in (*fields, when._orig_month_of_year, when._orig_day_of_week))
    if isinstance(when, Once):
        return _once(when)
    if isinstance(when, solar):
        return f"{when.event} at {when.lat}, {when.lon}"
    return str(when).strip("<>") if when is not None else ""


def _once(when: Once) -> str:
    if isinstance(when, Timeout):
        return f"once, {took(when.seconds)} after a cold start of the beats"
    return f"once, at {when.at.isoformat(' ', 'seconds')}"


def is_interval(when: Any) -> bool:
    """Whether a schedule is due so long after the last time."""
    return isinstance(when, schedule) and not isinstance(when, (crontab, solar))


def words_of(when: Any) -> str:
    """Say when an entry is due."""
    if is_interval(when):
        return every(when.run_every.total_seconds())
    expression = expression_of(when)
    if isinstance(when, crontab) or isinstance(getattr(when, "expression", None), str):
        return _crontab(expression)
    return cut(expression)


@lru_cache(maxsize=2000)
def _crontab(expression: str) -> str:
    options = Options()
    options.use_24hour_time_format = True
    try:
        said = str(get_description(expression, options))
    except Exception:  # noqa: BLE001  whatever it does not know; then the expression itself has to do
        return expression
    return said[:1].lower() + said[1:]


# -- times -------------------------------------------------------------------------------------------------------------


def full(at: datetime, zone: tzinfo) -> str:
    """Write a time with its date and zone."""
    return in_zone(nearest_second(at), zone).strftime("%Y-%m-%d %H:%M:%S %Z")


def clock(at: datetime, now: datetime, zone: tzinfo) -> str:
    """Write a time, with its date where it is not today's."""
    local = in_zone(nearest_second(at), zone)
    same_day = local.date() == in_zone(now, zone).date()
    return local.strftime("%H:%M:%S" if same_day else "%m-%d %H:%M:%S")


def seconds(value: float | None) -> str:
    """Write a duration in few characters; nothing where there is none."""
    if value is None:
        return ""
    value = max(0.0, value)
    if value < 0.1:  # noqa: PLR2004  what would be 0.0
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 59.95 else took(value)  # noqa: PLR2004  what would be 60.0


def same_but_for_numbers(text: str) -> str:
    """Return a text in which numbers and ids are all alike, so that errors of one kind can be counted."""
    return _NUMBER.sub("#", text)

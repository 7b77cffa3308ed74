"""What a request asks for: its parameters, read strictly and bounded, and where in a day they point."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request

__all__ = ["SPANS", "Span", "choice_of", "count_of", "name_of_entry", "span_of", "text_of", "time_in"]

#: Spans that are offered, in seconds, and what they are called.
SPANS: Final = {900: "15 min", 3600: "1 h", 21600: "6 h", 86400: "24 h", 604800: "7 d", 2592000: "30 d"}

#: Characters that may be searched for.
LONGEST: Final = 200

#: No time is earlier, nor a span longer.
EARLIEST: Final = datetime(2000, 1, 1, tzinfo=timezone.utc)
LONGEST_SPAN: Final = timedelta(days=366)


def text_of(request: Request, name: str) -> str:
    """Return a text that is searched for."""
    text = request.query_params.get(name, "").strip()
    if len(text) > LONGEST:
        raise HTTPException(400, f"{name} is longer than {LONGEST} characters")
    return text


def choice_of(request: Request, name: str, allowed: Collection[str], default: str) -> str:
    """Return one of what is allowed."""
    text = request.query_params.get(name) or default
    if text not in allowed:
        raise HTTPException(400, f"{name} is none of {', '.join(each for each in allowed if each)}")
    return text


def count_of(request: Request, name: str, default: int, high: int) -> int:
    """Return a whole number from 0, or from 1 where that is the default, on."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 16 and min(default, 1) <= int(text) <= high):  # noqa: PLR2004
        raise HTTPException(400, f"{name} is no whole number up to {high}")
    return int(text)


def name_of_entry(request: Request) -> str:
    """Return the name of the entry that is asked for."""
    name = request.query_params.get("name")
    if not name:
        raise HTTPException(400, "name is missing: which entry?")
    return name


@dataclass(frozen=True, slots=True)
class Span:
    """A time that is looked at. ``live``: it ends now, and goes on."""

    begin: datetime
    end: datetime
    live: bool

    @property
    def length(self) -> timedelta:
        """How long it is."""
        return self.end - self.begin

    def query(self) -> dict[str, str]:
        """Return the parameters that ask for it."""
        if self.live:
            return {"span": f"{self.length.total_seconds():.0f}"}
        return {"from": f"{self.begin.timestamp():.3f}", "to": f"{self.end.timestamp():.3f}"}

    def moved(self, by: float, now: datetime) -> Span:
        """Return the span that is so many times its length later, or earlier."""
        begin, end = self.begin + self.length * by, self.end + self.length * by
        return Span(now - self.length, now, live=True) if end >= now else Span(begin, end, live=False)

    def zoomed(self, factor: float, now: datetime) -> Span:
        """Return one that is so many times as long; one that ends now still does."""
        length = min(max(self.length * factor, timedelta(seconds=10)), LONGEST_SPAN)
        if self.live:
            return Span(now - length, now, live=True)
        middle = self.begin + self.length / 2
        end = middle + length / 2
        return Span(now - length, now, live=True) if end >= now else Span(end - length, end, live=False)


def span_of(request: Request, now: datetime, default: float) -> Span:
    """Return the time that is asked for: the last ``span`` seconds, or ``from`` a time ``to`` another."""
    asked = request.query_params
    if "from" in asked or "to" in asked:
        begin, end = (_time_of(asked.get(name), name) for name in ("from", "to"))
        if not EARLIEST <= begin < end or end - begin > LONGEST_SPAN:
            raise HTTPException(400, "from is not before to, or more than a year")
        return Span(begin, end, live=False)
    seconds = _number_of(asked["span"], "span") if "span" in asked else default
    if not 1 <= seconds <= LONGEST_SPAN.total_seconds():
        raise HTTPException(400, "span is no number of seconds from 1 to a year")
    return Span(now - timedelta(seconds=seconds), now, live=True)


def time_in(request: Request, name: str) -> datetime | None:
    """Return a time that is asked for, in seconds since 1970; None: none is."""
    return _time_of(request.query_params[name], name) if name in request.query_params else None


def _time_of(text: str | None, name: str) -> datetime:
    try:
        return datetime.fromtimestamp(_number_of(text or "", name), timezone.utc)
    except (OverflowError, ValueError, OSError) as exc:
        raise HTTPException(400, f"{name} is no time in seconds since 1970") from exc


def _number_of(text: str, name: str) -> float:
    try:
        number = float(text) if len(text) < 32 else math.nan  # noqa: PLR2004  nobody writes more digits
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise HTTPException(400, f"{name} is no number of seconds")
    return number

"""What became of a tick, in one sentence, and who decided so."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Final

from celery_lockbeat.journal.ticks import Attempt, Tick

__all__ = ["Writing", "holder_since", "in_zone", "nearest_second", "sentence_of"]

_TASK_ID: Final = re.compile(r"\[([^\]]+)\]$")
_ISO: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:[+-]\d\d:\d\d|Z)?")


class Writing:
    """Writes times in a zone, and durations as ``took`` does: the date is said once, and the zone with it."""

    def __init__(self, zone: tzinfo, took: Callable[[float], str]) -> None:
        self._zone = zone
        self.took = took

    def full(self, at: datetime) -> str:
        """A time with its date and zone."""
        return self._local(nearest_second(at)).strftime("%Y-%m-%d %H:%M:%S %Z")

    def clock(self, at: datetime, beside: datetime | None) -> str:
        """A time, to the tenth of a second; with its date where that is not the one of another time."""
        local = self._local(at)
        tenth = f".{local.microsecond // 100_000}"
        if beside is not None and self._local(beside).date() == local.date():
            return local.strftime("%H:%M:%S") + tenth
        return local.strftime("%Y-%m-%d %H:%M:%S") + tenth

    def text(self, text: str) -> str:
        """A text in which times stand as in Python."""
        return _ISO.sub(lambda found: self._read(found[0]), text)

    def _read(self, text: str) -> str:
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            return text
        return text if at.tzinfo is None else self.full(at)

    def _local(self, at: datetime) -> datetime:
        return in_zone(at, self._zone)


def in_zone(at: datetime, zone: tzinfo) -> datetime:
    """Return a time as it is in a zone; garbage may be of a year in which there is none."""
    try:
        return at.astimezone(zone)
    except (OverflowError, ValueError):
        return at


def nearest_second(at: datetime) -> datetime:
    """Return the second that a time is nearest to: a beat may call the tick of 03:00:00 that of 02:59:59.999."""
    try:
        return (at + timedelta(milliseconds=500)).replace(microsecond=0)
    except OverflowError:
        return at


def sentence_of(tick: Tick, others: Iterable[Tick], write: Writing) -> str:
    """Say what became of a tick; ``others``, in the order of time, tell since when its lock was held."""
    if tick.is_missed:
        return _missed(tick, write)
    lost = tick.last is not None and tick.last.lost_at
    more = f" It had lost its lock at {write.clock(lost, tick.due)}." if lost else ""
    return f"The tick of {tick.entry!r} at {write.full(tick.at)} {_fate(tick, others, write)}.{more}"


def _fate(tick: Tick, others: Iterable[Tick], write: Writing) -> str:
    last, waits = tick.last, tick.waits
    if waits is not None:
        key = f" for its lock {waits.lock_key!r}" if waits.lock_key else ""
        return f"{_published(tick, write)}, and waits in line{key}{_since(waits.since, tick.due, write)}: for {waits.behind()}"
    if last is None and tick.tells:
        return f"{_published(tick, write)}, and no worker has begun to run it"
    if last is None:
        return (
            f"{_published(tick, write)}; what its run did is not in the journal, for {tick.task_name} is no LockedTask"
        )
    if last.status == "skipped":
        return _skipped(last, tick.due, others, write)
    return f"{_published(tick, write)}, and {_ran(last, tick, write)}"


#: Why it did not wait on, beside who has its lock, by its reason, or by what was wrong with the line.
_IN_LINE: Final = {
    "waited": ": it had waited in line for as long as it may",
    "queued": ": {who} waited in line already",
    "full": ": the line was full",
}


def _skipped(last: Attempt, due: datetime | None, others: Iterable[Tick], write: Writing) -> str:
    said = f"was skipped{_at(last.ended, due, write)} by {last.worker or 'a worker'}"
    if last.is_copy:
        return f"{said}: a copy of its message had been run to its end"
    if last.reason == "unique":
        return f"{said}: its task was queued already, or running, as {last.holder or 'another message'}"
    if last.reason == "superseded":
        return f"{said}: {last.who or 'a later one'} had taken its place in line for its lock {last.lock_key!r}"
    if last.line == "cleared":
        return f"{said}: the line in which it waited for its lock {last.lock_key!r} had been cleared"
    if last.reason not in ("locked", *_IN_LINE):
        return f"{said}: {last.reason or 'nobody has recorded why'}"
    said += _IN_LINE.get(str(last.line or last.reason), "").format(who=last.who or "another")
    since = holder_since(last, others)
    held = f", since {write.clock(since, due)}" if since is not None else ""
    return f"{said}: its lock {last.held_key or last.lock_key!r} was held by {last.holder or 'another run'}{held}"


def _ran(last: Attempt, tick: Tick, write: Writing) -> str:
    attempts = len([each for each in tick.attempts if not each.is_copy])
    which = f"its attempt {attempts} " if attempts > 1 else ""
    where, due = f" on {last.worker or 'a worker'}", tick.due
    began = f", begun{_at(last.started, due, write)}" if last.started is not None else ""
    took = f" in {write.took(last.took)}" if last.took is not None else ""
    why = f": {tick.reason}" if tick.reason else ""
    if last.status == "running":
        since = f" since {write.clock(last.started, due)}" if last.started is not None else ""
        return f"{which}runs{where}{since}{f' ({last.overdue})' if last.overdue else ''}"
    if last.status == "success":
        return f"{which}succeeded{where}{_at(last.ended, due, write)}{took}{began}"
    if last.status == "retry":
        error = f": {last.error}" if last.error else ""
        return f"{which}ended{where}{_at(last.ended, due, write)}, to be tried again{error}"
    return f"{which}{last.status}{where}{_at(last.ended, due, write)}{took}{began}{why}"


def _since(at: datetime, beside: datetime | None, write: Writing) -> str:
    return f" since {write.clock(at, beside)}"


def _at(at: datetime | None, beside: datetime | None, write: Writing) -> str:
    return "" if at is None else f" at {write.clock(at, beside)}"


def holder_since(skipped: Attempt, others: Iterable[Tick]) -> datetime | None:
    """Return since when who held the lock of a skipped attempt had it, as far as the journal tells."""
    match = _TASK_ID.search(skipped.holder or "")
    before, found = skipped.ended, None
    for attempt in (attempt for tick in others for attempt in tick.attempts):
        if (
            match is None
            or attempt.task_id != match[1]
            or (skipped.held_key or skipped.lock_key) not in (attempt.lock_keys or (attempt.lock_key,))
            or attempt.token is None
        ):
            continue
        since = _taken_at(attempt)
        if since is not None and (before is None or since <= before):
            found = since
    return found


def _taken_at(attempt: Attempt) -> datetime | None:
    # a token is made of the store's clock, in microseconds
    try:
        return datetime.fromtimestamp((attempt.token or 0) / 1_000_000, timezone.utc)
    except (OverflowError, ValueError, OSError):
        return attempt.started


def _missed(tick: Tick, write: Writing) -> str:
    by = f", as the beat {tick.beats[-1]} recorded" if tick.beats else ""
    when = f" at {write.clock(tick.recorded, tick.due)}" if tick.recorded is not None and by else ""
    why = f": {write.text(tick.why)}" if tick.why else ""
    if tick.is_paused:
        why += f" ({tick.who} wanted it so)" if tick.who else ""
        return f"The tick of {tick.entry!r} at {write.full(tick.at)} was not published{by}{when}{why}."
    if tick.count == 1:
        return f"The tick of {tick.entry!r} at {write.full(tick.at)} was missed{by}{when}{why}."
    since = f" after that of {write.full(tick.due_after)}" if tick.due_after is not None else ""
    return (
        f"{tick.count} ticks of {tick.entry!r}{since}, the last at {write.full(tick.at)}, were missed{by}{when}{why}."
    )


def _published(tick: Tick, write: Writing) -> str:
    if tick.published is None:
        return "was published (by whom is not in the journal)"
    by = f" by the beat {tick.beats[-1]}" if tick.beats else ""
    late = f" {write.took(tick.late)} late" if tick.late is not None and tick.late >= 0.1 else ""  # noqa: PLR2004  it is noise
    over = ", which took it over from another" if tick.taken_over else ""
    why = f" ({tick.why})" if tick.why else ""
    return f"was published{late}{by}{over}{why}"

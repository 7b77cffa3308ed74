"""The rules of what has happened: of the journal itself, and of the ticks, runs and clocks that it tells of."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from statistics import median
from typing import Final

from celery_lockbeat.beat.clocks import SKEW
from celery_lockbeat.insight.doctor.facts import READ_AT_MOST, Facts, JournalFacts
from celery_lockbeat.journal.records import Record
from celery_lockbeat.journal.ticks import OUTCOMES, Attempt, Tick, counted, ticks_of
from celery_lockbeat.membership.members import enumerate_some
from celery_lockbeat.observe.vocabulary import took
from celery_lockbeat.stores.base import ALIVE, Replica

__all__ = [
    "bare",
    "busy_keys",
    "dropped",
    "longer_than_its_interval",
    "silence",
    "span_of",
    "too_short",
    "unreadable",
    "unwritten",
    "what_happened",
    "wrong_clocks",
]

#: The journal should reach back as far: who asks what ran, asks of last night.
REACH: Final = timedelta(days=1)

#: Whoever publishes a tick has written it down after that.
WRITTEN_AFTER: Final = timedelta(minutes=1)

#: What is younger may yet come to its end.
SETTLED: Final = timedelta(minutes=1)

#: An entry is silent after so many ticks in so long a time, too, however few ``lockbeat_silent_after`` would have.
DAYS: Final = timedelta(days=2)
TICKS_IN_DAYS: Final = 2

#: By its last ticks an interval is judged, which may have been another before.
RECENT: Final = 50

#: Of fewer runs or skipped ticks nothing is said.
SEVERAL: Final = 3

#: A lock that was held for a larger part of the time is busy; in a shorter time any is.
BUSY: Final = 0.8
LONG_ENOUGH: Final = timedelta(minutes=10)

#: The clock of a beat is judged by so many of its last ticks: it may have been set since.
LAST_TICKS: Final = 20
FEWEST_TICKS: Final = 5

#: Kind, about what, and what was found.
_Found = Iterator[tuple[str, str, str]]


def what_happened(facts: Facts) -> _Found:
    """Judge the journal, and all that it tells."""
    journal = facts.journal
    if journal is None:
        return
    yield from _itself(facts, journal)
    records = _readable(journal.records)
    if not records:
        return
    ticks = ticks_of(records, _telling(facts, journal).__contains__)
    entries = _by_entry(facts, ticks)
    skipped = {entry: what for entry, own in entries.items() if (what := longer_than_its_interval(own))}
    for entry, own in entries.items():
        what = silence(own, journal)
        if what:
            yield "entry-silent", f"entry {entry}", what
    for entry, what in skipped.items():
        yield "always-skipped", f"entry {entry}", what
    # what is told of an entry already is not told of its key
    for key, what in busy_keys([tick for tick in ticks if tick.entry not in skipped], span_of(records)):
        yield "busy-key", f"key {key}", what
    living = None if facts.beats is None else {beat.name for beat in _living(facts)}
    for beat, what in wrong_clocks(records):
        if living is None or beat in living:
            yield "clock-skew", f"beat {beat}", what


def bare(name: str) -> str:
    """Return the name of an entry without what a scheduler has added to make it a key."""
    return re.sub(r"@[0-9a-f.]+$", "", name)


def _telling(facts: Facts, journal: JournalFacts) -> set[str | None]:
    """Return the tasks whose runs are in the journal, if there are any."""
    ran = {record.task_name for record in journal.records if record.status is not None}
    return ran | {task.name for task in facts.tasks if task.lock is not None}


def _by_entry(facts: Facts, ticks: Sequence[Tick]) -> dict[str, list[Tick]]:
    """Return the ticks of each entry that there is, in the order of time."""
    known = set(map(bare, facts.entries)).union(*(map(bare, beat.entries) for beat in _living(facts)))
    found: dict[str, list[Tick]] = defaultdict(list)
    for tick in ticks:
        if tick.entry is not None and bare(tick.entry) in known:
            found[tick.entry].append(tick)
    return dict(sorted(found.items()))


def _living(facts: Facts) -> list[Replica]:
    return [] if facts.beats is None else [beat for beat in facts.beats.replicas if beat.silent_for < ALIVE]


# -- the journal itself ------------------------------------------------------------------------------------------------


def _itself(facts: Facts, journal: JournalFacts) -> _Found:
    if not journal.keep:
        found = {"journal-off": "lockbeat_journal is 0"}
    elif journal.trouble is not None:
        found = {"journal-unreadable": journal.trouble}
    else:
        found = {
            "journal-not-written": unwritten(journal) if _living(facts) else "",
            "journal-short": too_short(journal),
            "records-dropped": dropped(journal),
            "records-unreadable": unreadable(journal),
        }
    for kind, what in found.items():
        if what:
            yield kind, "the journal", what


def unwritten(journal: JournalFacts) -> str:
    """Tell of ticks that were published after the newest record."""
    last = journal.last_published
    if last is None or journal.now - last < WRITTEN_AFTER:
        return ""
    newest = max((record.at for record in journal.records), default=None)
    if newest is not None and newest > last - WRITTEN_AFTER:
        return ""
    has = "it is empty" if newest is None else f"its newest record is of {_utc(newest)}"
    return f"{has}, and the last tick was published at {_utc(last)}"


def too_short(journal: JournalFacts) -> str:
    """Tell of a journal that is full, and does not reach back to yesterday."""
    count = len(journal.records)
    if count < max(1, min(journal.keep, READ_AT_MOST)):
        return ""
    readable = _readable(journal.records)
    if not readable:
        return ""
    first, last = span_of(readable)
    span = max(last - first, timedelta(seconds=1))
    if span * (journal.keep / count) >= REACH:
        return ""
    kept = f"{journal.keep:,} are kept, and " if journal.keep != count else ""
    return (
        f"{count:,} records are the last {_long(span)} here; {kept}a day has some {_roughly(count * (REACH / span)):,}"
    )


def dropped(journal: JournalFacts) -> str:
    """Tell of records that were dropped while the store was away."""
    found = [record for record in journal.records if record.event == "records_dropped"]
    if not found:
        return ""
    who = _names(record.hostname for record in found)
    return f"{sum(record.count or 1 for record in found):,} records were dropped by {who}, the last at {_utc(found[-1].at)}"


def unreadable(journal: JournalFacts) -> str:
    """Tell of what stands there and is no record."""
    found = [record for record in journal.records if record.event == "unreadable"]
    if not found:
        return ""
    return f"{len(found):,} of {len(journal.records):,} records cannot be read, the last is of {_utc(found[-1].at)}"


# -- entries -----------------------------------------------------------------------------------------------------------


def silence(ticks: Sequence[Tick], journal: JournalFacts) -> str:
    """Tell of an entry that is published without a success: for days, or for ``silent_after`` ticks in a row."""
    ended = [each.ended for tick in ticks for each in tick.attempts if each.status == "success" and each.ended]
    since = max(ended, default=None)
    unlucky = [
        tick
        for tick in ticks
        if tick.outcome not in ("succeeded", "paused") and journal.now - _heard_of(tick) > SETTLED
    ]
    after = [tick for tick in unlucky if since is None or _heard_of(tick) > since]
    if any(tick.outcome == "running" for tick in after):
        # it may yet succeed, and what was skipped for it was so for a reason
        after = [tick for tick in after if tick.outcome != "running" and not _met_a_lock(tick.last)]
    published = [tick for tick in after if not tick.is_missed]
    if not published or not published[-1].tells:
        return ""
    counts, begin = counted(after), since or min(map(_heard_of, ticks))
    count = counts.total()
    in_a_row = journal.silent_after and count >= journal.silent_after
    if not in_a_row and not (count >= TICKS_IN_DAYS and journal.now - begin >= DAYS):
        return ""
    told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
    last, where = published[-1], "" if since else " (the journal knows none before)"
    why = f": {last.reason}" if last.reason else ""
    return f"{count} ticks without a success since {_utc(begin)}{where}, {told}; the last one {last.outcome}{why}"


def _heard_of(tick: Tick) -> datetime:
    """Return when it was published or missed, by the store's clock, as ends are: it is due by that of its beat."""
    return tick.published or tick.recorded or tick.at


def longer_than_its_interval(ticks: Sequence[Tick]) -> str:
    """Tell of an entry that is due again before its run has ended, and skipped then."""
    published = [tick for tick in ticks if not tick.is_missed][-RECENT:]
    skipped = sum(_met_a_lock(tick.last) for tick in published)
    durations = [run.took for tick in published if (run := tick.last) and run.status != "skipped" and run.took]
    dues = sorted({tick.due for tick in published if tick.due is not None})
    if min(skipped, len(durations), len(dues) - 1) < SEVERAL:
        return ""
    interval = median((later - earlier).total_seconds() for earlier, later in pairwise(dues))
    duration = median(durations)
    if duration <= interval:
        return ""
    return (
        f"a run takes {took(duration)}, the median of {len(durations)}, and it is due every {took(interval)}: "
        f"{skipped} of the last {len(published)} ticks were skipped"
    )


def _met_a_lock(attempt: Attempt | None) -> bool:
    return attempt is not None and attempt.status == "skipped" and attempt.reason == "locked"


# -- locks -------------------------------------------------------------------------------------------------------------


def busy_keys(ticks: Sequence[Tick], span: tuple[datetime, datetime]) -> Iterator[tuple[str, str]]:
    """Tell of keys that runs held for most of the time between two moments."""
    users: dict[tuple[str, str], list[Attempt]] = defaultdict(list)
    for attempt in (attempt for tick in ticks for attempt in tick.attempts):
        if attempt.lock_key is not None:
            users[attempt.lock_key, attempt.driver or ""].append(attempt)
    for (key, _), attempts in sorted(users.items()):
        what = _busy(attempts, *span)
        if what:
            yield key, what


def _busy(attempts: Sequence[Attempt], first: datetime, last: datetime) -> str:
    skipped = [each for each in attempts if _met_a_lock(each)]
    runs = [each for each in attempts if each.status != "skipped" and each.started is not None]
    # of a run that has no end it is known only that others have met it
    met = max((each.ended for each in skipped if each.ended is not None), default=None)
    held, until = timedelta(0), first
    for begin, end in sorted((run.started or first, run.ended or met or first) for run in runs):
        held += max(timedelta(0), end - max(begin, until))
        until = max(until, end)
    span = last - first
    if span < LONG_ENOUGH or held <= span * BUSY or not (skipped or len(runs) >= SEVERAL):
        return ""
    lost = (
        f"{_runs(skipped)} {'was' if len(skipped) == 1 else 'were'} skipped for it"
        if skipped
        else "none was skipped for it"
    )
    return f"{held / span:.0%} of the last {_long(span)} it was held, by {_runs(runs)}; {lost}"


def _runs(attempts: Sequence[Attempt]) -> str:
    count = len(attempts)
    return f"{count} {'run' if count == 1 else 'runs'} of {_names(each.task_name for each in attempts)}"


# -- clocks ------------------------------------------------------------------------------------------------------------


def wrong_clocks(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """Tell of beats whose clock is not the store's: a tick has when it was published, by both."""
    ahead: dict[str, list[float]] = defaultdict(list)
    for record in records:
        if record.event != "tick_published" or record.hostname is None:
            continue
        if record.due is not None and record.late is not None:
            ahead[record.hostname].append((record.due - record.at).total_seconds() + record.late)
    for beat, all_of_them in sorted(ahead.items()):
        newest = all_of_them[-LAST_TICKS:]
        seconds = median(newest)
        if len(newest) >= FEWEST_TICKS and abs(seconds) > SKEW:
            than = "ahead of" if seconds > 0 else "behind"
            yield beat, f"its clock is {abs(seconds):.1f} s {than} the store's, by its last {len(newest)} ticks"


# -- what they share ---------------------------------------------------------------------------------------------------


def _readable(records: Sequence[Record]) -> list[Record]:
    # what is garbage may be of any time
    return [record for record in records if record.event != "unreadable"]


def span_of(records: Sequence[Record]) -> tuple[datetime, datetime]:
    """Return the times of the first and the last of some records; what stands between them has any time."""
    return records[0].at, max(records[0].at, records[-1].at)


def _utc(at: datetime) -> str:
    return f"{at.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def _long(span: timedelta) -> str:
    days = span / timedelta(days=1)
    return f"{days:.1f} days" if days >= 2 else took(round(span.total_seconds()))  # noqa: PLR2004


def _roughly(count: float) -> int:
    """Round up, to what is easily read."""
    digits = 10 ** max(0, len(str(int(count))) - 2)
    return int(-(-count // digits) * digits)


def _names(names: Iterable[str | None]) -> str:
    return enumerate_some({name or "somebody" for name in names})

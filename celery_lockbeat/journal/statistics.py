"""How entries have fared: how many of their ticks have run, how late they were and how long they took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from celery_lockbeat.journal.audit import Ledger
from celery_lockbeat.journal.ticks import Tick, counted

__all__ = ["Spread", "Statistics", "spread_of", "statistics_of"]


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds: what half of the values, and 95 of 100, are at most, and the largest."""

    p50: float
    p95: float
    max: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """What has become of the ticks of one entry. ``run``: those whose body was entered, ``failed`` those that failed or died.

    ``overlaps``: runs that were skipped for another that held the lock.
    """

    entry: str
    due: int
    run: int
    failed: int
    skipped: int
    missed: int
    paused: int
    lost: int
    overlaps: int
    late: Spread | None
    took: Spread | None

    def fields(self) -> dict[str, Any]:
        """Return it as JSON can write it."""
        spreads = {
            name: spread and {"p50": spread.p50, "p95": spread.p95, "max": spread.max}
            for name, spread in (("late", self.late), ("took", self.took))
        }
        names = ("entry", "due", "run", "failed", "skipped", "missed", "paused", "lost", "overlaps")
        return {**{name: getattr(self, name) for name in names}, **spreads}


def statistics_of(ticks: Iterable[Tick], ledger: Ledger) -> list[Statistics]:
    """Return those of each entry; what its ticks are lost in are the gaps of the ledger."""
    by_entry: dict[str, list[Tick]] = defaultdict(list)
    for tick in ticks:
        if tick.entry is not None:
            by_entry[tick.entry].append(tick)
    accounts = {account.entry: account for account in ledger.accounts}
    found = []
    for entry in sorted({*by_entry, *accounts}):
        own, account = by_entry.get(entry, []), accounts.get(entry)
        counts = counted(own)
        ran = [last for tick in own if (last := tick.last) is not None and last.status != "skipped"]
        found.append(
            Statistics(
                entry=entry,
                due=account.due if account else counts.total(),
                run=len(ran),
                failed=counts["failed"] + counts["died"],
                skipped=counts["skipped"],
                missed=counts["missed"],
                paused=counts["paused"],
                lost=account.unaccounted if account else 0,
                overlaps=sum(attempt.reason == "locked" for tick in own for attempt in tick.attempts),
                late=spread_of([max(tick.late, 0.0) for tick in own if tick.late is not None and not tick.is_missed]),
                took=spread_of([last.took for last in ran if last.took is not None]),
            )
        )
    return found


def spread_of(values: Sequence[float]) -> Spread | None:
    """Return the spread of some seconds; None: there are none."""
    if not values:
        return None
    ranked = sorted(values)
    p50, p95 = (ranked[-(-len(ranked) * percent // 100) - 1] for percent in (50, 95))
    return Spread(round(p50, 3), round(p95, 3), round(ranked[-1], 3))

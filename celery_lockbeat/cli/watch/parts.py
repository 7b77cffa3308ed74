"""The parts of a frame of ``watch``: each is some lines, of what it is given alone.

Promises: no line is wider than it may be. What users have named is shown, and obeyed by no terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from rich.text import Text

from celery_lockbeat.cli.screen import cell, text_of
from celery_lockbeat.cli.signs import SIGNS, strip_of
from celery_lockbeat.insight.model import Row, Share
from celery_lockbeat.insight.said import event_of, span_of
from celery_lockbeat.journal.records import Record
from celery_lockbeat.journal.ticks import Tick
from celery_lockbeat.stores.base import LiveLock

__all__ = [
    "DIM",
    "HEAD",
    "LATE",
    "TOOK",
    "Columns",
    "beats",
    "columns_of",
    "due_of",
    "events",
    "head",
    "help_of",
    "legend",
    "locks",
    "row_line",
    "seconds_of",
]

#: Widths of columns, and of the terminal from which on there are more of them.
DUE: Final = 10
LATE: Final = 7
TOOK: Final = 7
FAILED: Final = 9
WIDE: Final = 110
LONGEST_NAME: Final = 48

#: Columns of a terminal from which on a key and what it does are in one line.
KEYS_WIDE: Final = 100
KEY: Final = 44

#: So many names are looked at for the width of their column.
MEASURED: Final = 2000

#: Seconds by which a tick is late before it is shown in a colour.
WORTH_A_COLOUR: Final = 1.0

DIM: Final = "dim"
HEAD: Final = "bold underline"

_KEYS: Final = (
    ("q, Ctrl-C", "quit"),
    ("up, down, page up, page down, home, end", "choose an entry (also j and k)"),
    ("Enter", "open it: its last runs, and why each ended so; Esc goes back"),
    ("s, S", "sort by name, next due, lateness, last failure"),
    ("/", "show only what contains a text; Enter keeps it, Esc drops it"),
    ("p, space", "pause the view, and go on"),
    ("?", "these keys"),
)


_STYLES: Final = {
    "task_failed": "red",
    "task_died": "bold red",
    "lock_expired_before_finish": "bold red",
    "tick_missed": "magenta",
    "tick_late": "yellow",
    "task_skipped": "yellow",
    "lock_replaced": "yellow",
    "run_overdue": "yellow",
    "entry_silent": "yellow",
    "records_dropped": "yellow",
    "driver_fallback": "red",
}


class Columns(NamedTuple):
    """How wide the columns are that give way; ``wide``: whether there are those that only a wide terminal has."""

    name: int
    strip: int
    who: int
    wide: bool


def columns_of(rows: Sequence[Row], width: int) -> Columns:
    """Share the width out."""
    wide = width >= WIDE
    rest = width - 1 - DUE - LATE - 8 - ((TOOK + FAILED + 4) if wide else 0)
    longest = max((len(row.name) for row in rows[:MEASURED]), default=0)
    name = max(6, min(max(longest, 12), LONGEST_NAME, rest // 2))
    strip = max(4, (rest - name) * 11 // 20)
    return Columns(name, strip, max(0, rest - name - strip), wide)


# -- entries -----------------------------------------------------------------------------------------------------------


def head(columns: Columns, width: int) -> Text:
    """Name the columns."""
    named = [("entry", columns.name), ("next due", DUE), ("late", LATE), ("took", TOOK)]
    named += [("last runs", columns.strip), ("failed", FAILED), ("who runs it", columns.who)]
    right = {"next due", "late", "took"}
    shown = [each for each in named if columns.wide or each[0] not in ("took", "failed")]
    told = "  ".join(name.rjust(size) if name in right else cell(name, size) for name, size in shown)
    return Text(cell(f" {told}", width), HEAD)


def row_line(row: Row, ticks: Sequence[Tick], columns: Columns, now: datetime, chosen: bool) -> Text:
    """Show an entry, and what became of its last ticks."""
    last = next((tick.last for tick in reversed(ticks) if tick.last is not None), None)
    runs = last is not None and last.status == "running"
    who = (last and last.worker) or "-"
    if runs and last is not None and last.started is not None:
        who = f"{who} for {span_of(max(0.0, (now - last.started).total_seconds()))}"
    overdue = row.overdue(now)
    late = max(row.late or 0.0, overdue) if row.late is not None or overdue else None
    late_style = "bold red" if overdue else "yellow" if (late or 0.0) >= WORTH_A_COLOUR else ""
    due, due_style = due_of(row, now)
    strip = text_of(strip_of(ticks, columns.strip))
    strip.pad_right(columns.strip - len(strip))
    ago = f"{span_of((now - row.troubled).total_seconds())} ago" if row.troubled is not None else "-"
    took = seconds_of(last.took if last is not None else None)
    cells: list[Any] = [
        (cell(row.name, columns.name), "reverse" if chosen else ""),
        (due.rjust(DUE), due_style),
        (seconds_of(late).rjust(LATE), late_style),
        (took.rjust(TOOK), "") if columns.wide else None,
        strip,
        (cell(ago, FAILED), "red" if row.troubled is not None else "") if columns.wide else None,
        (cell(who, columns.who), "bold cyan" if runs else DIM),
    ]
    shown = [part for each in cells if each is not None for part in ("  ", each)]
    return Text.assemble(">" if chosen else " ", *shown[1:])


def due_of(row: Row, now: datetime) -> tuple[str, str]:
    """Say when an entry is due, and in which style."""
    due, overdue = row.next_due, row.overdue(now)
    if due is None:
        return "-", DIM
    left = (due - now).total_seconds()
    if overdue:
        return f"{span_of(overdue)} ago", "bold red"
    if left < 0 and not row.listed:
        return "no beat", "bold red"
    return ("now", "bold") if left < 1 else (f"in {span_of(left)}", "")


def seconds_of(seconds: float | None) -> str:
    """Write a time to the tenth of a second, and a longer one as people do."""
    if seconds is None:
        return "-"
    return f"{max(0.0, seconds):.1f} s" if seconds < 59.95 else span_of(seconds)  # noqa: PLR2004  what would be 60.0


# -- what is below them ------------------------------------------------------------------------------------------------


def locks(held: Sequence[LiveLock], width: int, at_most: int, now: datetime) -> list[Text]:
    """Show the locks that are held, those first that have been so for longest."""
    if not held:
        return [Text(cell("locks: none is held", width), HEAD)]
    shown = sorted(held, key=lambda lock: lock.token)[:at_most]
    more = len(held) - len(shown)
    lines = [Text(cell(f"locks{f' (the oldest; {more} more)' if more else ''}", width), HEAD)]
    size = max(8, min((width - 34) // 2, max(len(lock.key) for lock in shown)))
    for lock in shown:
        since = f"held {span_of(max(0.0, (now - lock.held_since).total_seconds()))}"
        rest = f"{span_of(lock.remaining)} left"
        told = f" {cell(lock.key, size)}  {since.ljust(13)}  {rest.ljust(11)}  by {lock.description or lock.holder}"
        lines.append(Text(cell(told, width)))
    return lines


def beats(shares: Sequence[Share], width: int, at_most: int, is_known: bool) -> list[Text]:
    """Show the beats and their share; ``is_known``: whether it is known that there are no others."""
    more = len(shares) - at_most
    title = f"beats, and their share of the last ticks{f' ({more} more)' if more > 0 else ''}"
    lines = [Text(cell(title, width), HEAD)]
    size = max(10, min(40, width - 54))
    for share in shares[:at_most]:
        alive = share.silent_for is not None
        heard = f"{share.entries} entries, heard of {share.silent_for:.0f} s ago" if alive else "gone"
        part = f"{share.share:>4.0%} {('#' * round(share.share * 10)).ljust(10)}"
        lines.append(Text(cell(f" {cell(share.name, size)}  {part}  {heard}", width), "" if alive else DIM))
    if shares:
        return lines
    return [*lines, Text(cell("no beat runs", width), "bold red") if is_known else Text("?", DIM)]


def events(newest: Sequence[Record], width: int, at_most: int, now: datetime, zone: Any) -> list[Text]:
    """Show what has happened, the newest last, in so many lines."""
    today = now.astimezone(zone).date()
    lines = []
    for record in newest[-at_most:] if at_most > 0 else ():
        at = record.at.astimezone(zone)
        clock = at.strftime("%H:%M:%S" if at.date() == today else "%m-%d %H:%M:%S")
        lines.append(Text(cell(f" {clock}  {event_of(record)}", width), _style_of(record)))
    return [*lines, *[Text("")] * (at_most - len(lines))]


def _style_of(record: Record) -> str:
    return _STYLES.get(record.event, "")


def legend() -> Text:
    """Explain the letters."""
    parts: list[Any] = []
    for outcome, sign in SIGNS.items():
        parts += [sign, (f" {outcome} ", DIM)]
    return Text.assemble(*parts)


def help_of(width: int) -> list[Text]:
    """Explain the keys."""
    lines = [Text("keys of lockbeat watch", "bold"), Text("")]
    for keys, what in _KEYS:
        if width >= KEYS_WIDE:
            lines.append(Text.assemble((f"  {keys}".ljust(KEY), "bold"), what))
        else:
            lines += [Text(f"  {keys}", "bold"), Text(f"      {what}")]
    lines += [Text(""), Text("the letters of the last runs, the newest at the right:", "bold"), legend()]
    return [*lines, Text("any key goes back", DIM)]

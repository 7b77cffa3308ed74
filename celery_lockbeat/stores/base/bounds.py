"""How long a store remembers what, and how many of each it keeps, returns or takes at once."""

from __future__ import annotations

from typing import Final

__all__ = [
    "ALIVE",
    "ANNOUNCED",
    "ANNOUNCED_AT_ONCE",
    "ASKED_AT_ONCE",
    "BACKLOG",
    "CONTROL_MEMORY",
    "FAILURES_AT_MOST",
    "FLAGGED_AT_ONCE",
    "JOURNALED_AT_ONCE",
    "JOURNAL_MEMORY",
    "LISTED_AT_MOST",
    "LOOKS_EVERY",
    "OVERDUE_AT_ONCE",
    "SINCE",
    "STATE_MEMORY",
    "TOKEN_MEMORY",
]

#: Seconds for which a store remembers the last token of a key after its last use. Only a server clock that was set
#: back by more than this could then hand out a smaller token: a new token is never below the clock's microseconds.
TOKEN_MEMORY: Final = 3600.0

#: Seconds for which the state of an entry that no replica lists is kept, and all state of an app without replicas.
STATE_MEMORY: Final = 7 * 86400.0

#: Seconds after which a beat replica that was not heard of counts as gone.
ALIVE: Final = 10.0

#: As many claims of one entry may be pending; then its ticks wait, and are one when their turn has come. Without a
#: bound, each broker outage and each entry that cannot be sent would pile them up.
BACKLOG: Final = 8

#: As many claims that nobody has settled in time are returned at once.
OVERDUE_AT_ONCE: Final = 100

#: The kinds of announcements: that a member is there; the locks of its tasks; all its entries, in one text; each definition of an
#: entry, for when it was first heard of; for those to come, what an entry was like; and, for those with other settings, one's store.
ANNOUNCED: Final = ("member", "tasks", "entries", "definition", "past", "home")

#: As many announcements are made at once.
ANNOUNCED_AT_ONCE: Final = 500

#: Seconds for which a record of the journal is kept at most: longer than any entry should be silent.
JOURNAL_MEMORY: Final = 90 * 86400.0

#: Seconds for which flags and requests are kept where no beat is there.
CONTROL_MEMORY: Final = 90 * 86400.0

#: As many failures in a row are counted.
FAILURES_AT_MOST: Final = 100

#: As many flags are changed at once, and as many requests told of.
FLAGGED_AT_ONCE: Final = 500

ASKED_AT_ONCE: Final = 100

#: As many records are written, or read, in one round trip.
JOURNALED_AT_ONCE: Final = 500

#: Where this stands in quotes in what is to be told to who waits, the store writes since when it does.
SINCE: Final = "@since"

#: Seconds between two looks of one who waits for a key, where the store cannot tell it.
LOOKS_EVERY: Final = 0.02

#: As many locks, entries, or entries of one replica are listed for an operator, unless more are asked for.
LISTED_AT_MOST: Final = 10_000

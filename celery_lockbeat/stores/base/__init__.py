"""What a store promises: stores of locks, of the beats, of what operators ask of these, of announcements, and a journal.

They share a client. Promises, each a test in ``test_contract.py``, ``test_beat_contract.py``, ``test_control_contract.py``,
``test_announcement_contract.py`` or ``test_journal_contract.py`` of ``tests/stores``, on every store:

- each operation is atomic, and at most one lease per key is live at any moment of the store's own clock, or as many as those
  who ask for it agree on (``limit``);
- of several keys that are asked for at once one has all, or none;
- tokens only grow per key: after expiry, after a release, and after the store has forgotten the key;
- only the lease that was granted can be extended or released, and only while it is live;
- of all messages of a task for one key one is reserved, and what is reserved only its own message ends, or its time;
- every operation can be repeated after a lost answer and then gives the same answer;
- who waits for a key gets it in the order of arrival, and is called by whatever frees it; who is to be replaced is told so, and keeps it;
- of all beats that claim one tick one gets it, and a claim that is not settled can be taken over, under its own task id.

Not promised: renewal (``locks/renewal.py``), or who is *alive*, but by the memory store.
"""

from __future__ import annotations

import abc
from typing import ClassVar

from celery_lockbeat.stores.base.announcements import Announcement, AnnouncementStore
from celery_lockbeat.stores.base.beats import (
    Beats,
    BeatStore,
    Claim,
    Claims,
    EntryState,
    Joined,
    Overdue,
    Passed,
    Replica,
    StoredEntry,
)
from celery_lockbeat.stores.base.bounds import (
    ALIVE,
    ANNOUNCED,
    ANNOUNCED_AT_ONCE,
    ASKED_AT_ONCE,
    BACKLOG,
    CONTROL_MEMORY,
    FAILURES_AT_MOST,
    FLAGGED_AT_ONCE,
    JOURNAL_MEMORY,
    JOURNALED_AT_ONCE,
    LISTED_AT_MOST,
    LOOKS_EVERY,
    OVERDUE_AT_ONCE,
    SINCE,
    STATE_MEMORY,
    TOKEN_MEMORY,
)
from celery_lockbeat.stores.base.controls import Asked, ControlStore, Flag, Requests, is_request, request_key
from celery_lockbeat.stores.base.journal import JournalStore, StoredRecord
from celery_lockbeat.stores.base.locks import (
    Finished,
    Held,
    Lease,
    LiveLock,
    LockStore,
    Place,
    Reservation,
    Served,
    Stop,
    Waiter,
    Waiting,
    Wanted,
    look_out,
    of_key,
)

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
    "Announcement",
    "AnnouncementStore",
    "Asked",
    "BeatStore",
    "Beats",
    "Claim",
    "Claims",
    "ControlStore",
    "EntryState",
    "Finished",
    "Flag",
    "Held",
    "Joined",
    "JournalStore",
    "Lease",
    "LiveLock",
    "LockStore",
    "Overdue",
    "Passed",
    "Place",
    "Replica",
    "Requests",
    "Reservation",
    "Served",
    "Stop",
    "Store",
    "StoredEntry",
    "StoredRecord",
    "Waiter",
    "Waiting",
    "Wanted",
    "is_request",
    "look_out",
    "of_key",
    "request_key",
]


class Store(abc.ABC):
    """Its parts, which share a client. A further part is one more attribute.

    Safe for use from many threads, and usable in a child after a fork (which then opens its own connections). Durations are
    seconds, at millisecond resolution. Every method of a part raises :class:`~celery_lockbeat.exceptions.StoreUnavailable`
    when the store does not answer within its time limit; what was asked may or may not have happened then, so ask again.
    """

    #: The name under which users know this kind of store (``lock_driver``).
    driver: ClassVar[str]

    locks: LockStore
    beats: BeatStore
    controls: ControlStore
    announcements: AnnouncementStore
    journal: JournalStore

    def check(self) -> None:  # noqa: B027  most stores have nothing to look after
        """Look at what a beat or a worker should know before it begins, once; a harm that is not certain is logged.

        Raises ConfigurationError for a server that cannot do what is asked of it.
        """

    def twin(self) -> Store:
        """Return a store of the same locks, for a thread that gevent does not know: it can share no socket with others."""
        return self

    @abc.abstractmethod
    def close(self) -> None:
        """Close connections and files; idempotent. The store opens them again when it is used again."""

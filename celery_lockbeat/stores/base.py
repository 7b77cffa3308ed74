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
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, ClassVar, Final, NamedTuple

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import StoreUnavailable

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


class Lease(NamedTuple):
    """A granted lock: what its owner needs to extend or to release it.

    ``holder`` is unique per execution. ``run`` names the attempt that is executed (None: nothing to remember), ``task`` the
    task that it is an attempt of (None: of none). ``token`` is the fencing token, greater than every earlier one of this key.
    """

    key: str
    holder: str
    run: str | None
    token: int
    task: str | None = None


class Reservation(NamedTuple):
    """That a message of the task ``name`` for ``key`` is in a queue: for these two there is one at a time.

    It was sent under ``task_id``; ``token``, of ASCII letters, digits, "-" and "_", tells it from others under that id.
    """

    key: str
    name: str
    task_id: str
    token: str


@dataclass(frozen=True, slots=True)
class Held:
    """A refusal: the key is another holder's for ``remaining`` more seconds, unless that one extends or releases it.

    ``same_run``: the other holder executes the very run that was asked for (a redelivered copy of its message).
    ``description`` is what that holder says of itself, ``run`` what it executes ("" for none, and once released).
    ``why`` there is no place in line either, for who has asked for one: "waited" for as long as it would, "queued" behind
    the one that may wait, "full", or "superseded" by one that came later. ``key``: of several that were asked for, this one.
    ``who`` is what the one says of itself that waits in its place, if one does.
    """

    description: str
    remaining: float
    same_run: bool
    run: str = ""
    why: str = ""
    key: str = ""
    who: str = ""


class Place(NamedTuple):
    """What is asked for where a key is held: a place in line, for ``wait_for`` seconds from the first asking on.

    ``ticket`` is the name of the task that waits (:attr:`Lease.task`), or of another waiter. ``kind``: "all" wait; only "one" does;
    the "latest" does, of its kind; so does who would "replace" a holder, which is told to :class:`Stop`. At most ``room`` wait. Once it is called it has ``grace`` seconds to come. ``text`` is what
    is told then, by whoever calls it: opaque, but for :data:`SINCE`; "" for who listens. ``since`` and ``began`` are those of an earlier answer: who came first
    is first, however often its place was lost. ``copy`` is the number of the message that asks, ``again`` whether it has been
    delivered before.
    """

    ticket: str
    wait_for: float
    kind: str = "all"
    room: int = 1000
    grace: float = 30.0
    text: str = ""
    since: int = 0
    began: float = 0.0
    copy: int = 0
    again: bool = False


class Wanted(NamedTuple):
    """What is asked of each key that somebody wants to have: see :meth:`LockStore.acquire`."""

    ttl: float
    run: str | None = None
    task: str | None = None
    description: str = ""
    limit: int = 1
    reservation: Reservation | None = None
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A place in line, behind ``before`` others; the rest is of the holder whose lease ends first.

    ``copy`` is the number of the message that is to come next, sent by who got this answer; 0: that is on its way already.
    ``key``: of several that were asked for, it waits for this one.
    """

    since: int
    began: float
    copy: int
    before: int
    description: str
    remaining: float
    run: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Stop:
    """A lease is extended, and its holder is to end: one waits that would replace it, and says ``by`` of itself."""

    by: str


@dataclass(frozen=True, slots=True)
class Waiter:
    """One in the line of a key, as an operator sees it. ``called``: it is its turn, and it has not come yet."""

    ticket: str
    since: int
    description: str
    called: bool

    @property
    def waiting_since(self) -> datetime:
        """When it came, by the store's clock."""
        return datetime.fromtimestamp(self.since / 1_000_000, timezone.utc)


@dataclass(frozen=True, slots=True)
class Served:
    """How many wait for a key, and in how many seconds something may have to be done for them; None: nothing."""

    waiting: int
    look_in: float | None


@dataclass(frozen=True, slots=True)
class Finished:
    """A refusal: this attempt, or the ``task`` that it is one of, was released as finished: there is a tombstone of it.

    ``why`` it is over without a run: it waited, and was "superseded", or sent away ("cleared"). ``who``: what the one said of
    itself that has taken its place; "" where that is not known.
    """

    task: bool = False
    why: str = ""
    who: str = ""


@dataclass(frozen=True, slots=True)
class EntryState:
    """What all replicas know of an entry: how often it has been claimed, and when last, in its schedule's own time.

    ``last_run_at`` is opaque to the store: text that the schedulers write and read.
    """

    total_run_count: int
    last_run_at: str


@dataclass(frozen=True, slots=True)
class Claim:
    """One tick of an entry, to be published under ``task_id``.

    ``state`` is what its entry becomes by this claim, so its ``total_run_count`` numbers this run; ``details``, which
    JSON can write, go with the claim to whoever takes it over. ``after``: it counts only while this is the ``last_run_at`` of
    its entry, and, with ``alone``, while no other claim of the entry is pending; None: whatever that is. ``flag``: the name of
    the flag that it obeys; "": of none.

    One without a ``task_id`` publishes nothing: it moves the ``last_run_at`` of its entry on, and nothing else, where ticks
    are not to be published. It is no run: the ``total_run_count`` is the one that the entry has. It needs ``after``, and obeys no
    flag.
    """

    task_id: str
    entry: str
    state: EntryState
    details: Mapping[str, Any]
    after: str | None = None
    alone: bool = False
    flag: str = ""


@dataclass(frozen=True, slots=True)
class Passed:
    """The tick is passed over, for an operator wants it so: it is whoever asked who records that, and nobody publishes it.

    ``why``: "paused" or "skipped"; ``told`` is what was told when that was asked for.
    """

    why: str
    told: str


@dataclass(frozen=True, slots=True)
class Overdue:
    """A claim that was not settled in time: whoever knows its entry may take it over."""

    task_id: str
    entry: str
    run: int
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Claims:
    """The answer to :meth:`BeatStore.claim`.

    ``refusals`` has, for each claim asked for, None where it is granted, :class:`Passed`, or the state of its entry: with a
    greater ``total_run_count``, or another ``last_run_at`` than it was to come ``after``, the tick was another replica's, else
    the entry has too many claims pending. ``overdue`` are
    claims that may be taken over, oldest first, and ``next_overdue`` the seconds until the next may, None where none
    is pending. ``server_time`` is the store's wall clock, seconds since the epoch. ``listed``: whether the store still
    knows what this replica lists.
    """

    refusals: list[EntryState | Passed | None]
    overdue: list[Overdue]
    next_overdue: float | None
    server_time: float
    listed: bool


@dataclass(frozen=True, slots=True)
class Joined:
    """The answer to :meth:`BeatStore.join`: when the replicas started cold, and now, by the store's wall clock."""

    cold_start: float
    server_time: float


@dataclass(frozen=True, slots=True)
class LiveLock:
    """A lock that is held, as an operator sees it; ``holder`` is "" where its lease is over and its key still held.

    The ``key`` is as it was given, or, where the store keeps long ones cut, what it has of it.
    """

    key: str
    holder: str
    description: str
    run: str
    token: int
    remaining: float
    waiting: int = 0

    @property
    def held_since(self) -> datetime:
        """When it was acquired, by the store's clock, of which the token is made: later, if that was set back since."""
        return datetime.fromtimestamp(self.token / 1_000_000, timezone.utc)


@dataclass(frozen=True, slots=True)
class Replica:
    """A beat: the seconds since it was last heard of (inf: it has left), what it lists, and whether that is complete."""

    name: str
    silent_for: float
    entries: frozenset[str]
    complete: bool


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An entry of the beats: its state, and how many of its claims are not yet settled."""

    name: str
    state: EntryState
    pending: int


@dataclass(frozen=True, slots=True)
class Beats:
    """The beats of one app, as an operator sees them; ``overdue`` of the pending claims may be taken over."""

    replicas: list[Replica]
    entries: list[StoredEntry]
    overdue: int


@dataclass(frozen=True, slots=True)
class Flag:
    """What operators want of an entry, or of all entries that share this flag.

    ``paused``: none of its ticks is published, but those that are asked for one by one; ``until`` a time of the store's wall
    clock, or (None) until it is resumed. ``skip``: so many of its next ticks are not. ``told`` and ``skip_told`` are what
    was told with each. ``passed``: so many ticks has this pause passed over, with ``first`` and ``last`` the details of their claims.
    """

    name: str
    paused: bool = False
    until: float | None = None
    skip: int = 0
    told: str = ""
    skip_told: str = ""
    passed: int = 0
    first: str = ""
    last: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for ticks of an entry, whose flag is called ``flag``: whoever fulfils it claims them as those of :func:`request_key`.

    ``text`` says which. ``passed``, ``first`` and ``last`` are of the pause that it makes up for. ``state`` is what has been
    claimed so far (None: nothing), of which ``pending`` are not yet settled.
    """

    name: str
    flag: str
    text: str
    passed: int
    first: str
    last: str
    cancelled: bool
    state: EntryState | None
    pending: int


@dataclass(frozen=True, slots=True)
class Requests:
    """The answer to :meth:`ControlStore.asked`: requests, oldest first, and the names of flags whose pause is over by its time."""

    asked: list[Asked]
    lapsed: list[str]


#: What the keys begin with under which the ticks of requests are claimed, beside those of entries.
_REQUEST: Final = "lockbeat:request:"


def request_key(name: str) -> str:
    """Return the key under which the ticks of a request are claimed."""
    return _REQUEST + name


def is_request(key: str) -> bool:
    """Whether a key is a request's, and not an entry's."""
    return key.startswith(_REQUEST)


@dataclass(frozen=True, slots=True)
class Announcement:
    """What somebody has announced, and lets the others know for as long as it said.

    ``first`` is when it was first announced without being forgotten since, by the store's wall clock; ``silent_for`` are the
    seconds since it was announced last.
    """

    name: str
    told: str
    first: float
    silent_for: float


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record of the journal. ``written`` is when, by the store's wall clock, in seconds since the epoch.

    ``position`` tells it from all others of its app, and is opaque: another may be read ``after`` or ``before`` it.
    """

    position: str
    written: float
    text: str


def of_key(answer: Held | Finished | Waiting, key: str) -> Held | Finished | Waiting:
    """Return a refusal of one of several keys, with that key."""
    return answer if isinstance(answer, Finished) else replace(answer, key=key)


def _untold(_key: str, _texts: Sequence[str]) -> None:
    """Nobody is there who could tell them; they look for themselves."""


class LockStore(abc.ABC):
    """Who holds which key, and who waits for it. Keys, holders, runs, tickets and descriptions are non-empty text of any content and length.

    Whatever an operation frees is given to who is first in line: ``called`` gets the key, and what is to be told to those, which is
    nothing where they listen.
    """

    called: Callable[[str, Sequence[str]], object] = staticmethod(_untold)

    @abc.abstractmethod
    def acquire(
        self,
        key: str,
        *,
        holder: str,
        ttl: float,
        run: str | None = None,
        task: str | None = None,
        description: str = "",
        limit: int = 1,
        reservation: Reservation | None = None,
        place: Place | None = None,
    ) -> Lease | Held | Finished | Waiting:
        """Take ``key`` for ``ttl`` seconds, or say why not. With the lease, ``reservation``, which is of this key, is over.

        First match counts: ``run`` or ``task`` is remembered as finished -> :class:`Finished`; it is held by this very
        ``holder`` -> its lease again, with the same token and a fresh ttl; the key is held live by ``limit`` others, or by one that
        executes this ``run`` -> :class:`Held`, of that one, or of the one whose lease ends first; else a new lease with a new
        token, ``max(last token + 1, the store's clock in microseconds)``, where the last token is that of all holders.

        What becomes free belongs to who waits in line, in the order of arrival: the first is called, and its place kept for it. So
        somebody who asks while others wait is refused; with a ``place`` it waits, too -> :class:`Waiting`.
        """

    def acquire_all(self, keys: Sequence[tuple[str, str]], wanted: Wanted) -> list[Lease] | Held | Finished | Waiting:
        """Take each of these keys, given with its holder, as :meth:`acquire` does, or none: then say why, of the first that is refused.

        They are sorted, and different. What is reserved, which is of the first, is over with the last of the leases.

        Atomic, where the store can do it in one call. Where it cannot, for the keys are on several servers, they are taken one after
        the other in their order, and what was taken is given back when one is refused. So of all that ask at once for some of
        them somebody gets all: who has the last one that anybody has is refused none that comes after it.
        """
        leases: list[Lease] = []
        each_wanted = wanted._replace(reservation=None)._asdict()
        for key, holder in keys:
            answer = self.acquire(key, holder=holder, **each_wanted)
            if not isinstance(answer, Lease):
                for lease in reversed(leases):
                    self.free(lease.key, holder=lease.holder)
                return of_key(answer, key)
            leases.append(answer)
        if wanted.reservation is not None:
            self.unreserve(wanted.reservation)
        return leases

    @abc.abstractmethod
    def extend(
        self, leases: Sequence[tuple[Lease, float]], *, within: float = math.inf
    ) -> list[bool | Stop | StoreUnavailable]:
        """Set each (lease, ttl) to end ``ttl`` seconds from now, in one round trip; False: that lease is lost.

        While somebody waits to replace a holder, of several the one that has the key longest is told to :class:`Stop`.
        A lease that has run out is lost even if nobody else has taken its key since. Nobody waits for an answer for longer
        than ``within`` seconds; where only a part of the store gives none, its leases have StoreUnavailable in its place.
        """

    @abc.abstractmethod
    def release(self, lease: Lease, *, hold_for: float = 0, remember_for: float = 0, task: bool = False) -> bool:
        """End a lease; False: it was lost before.

        ``hold_for``: keep the key held for so much longer (the lease itself is over: it cannot be extended any more).
        ``remember_for``: answer :class:`Finished` for ``lease.run`` during so long, or, if the ``task`` is finished, for every
        attempt of ``lease.task``; ignored where that is None or the lease was lost. Releasing again gives the first release's
        answer, at least as long as the token or the run is remembered and nobody else has taken the key.
        """

    def release_all(
        self, leases: Sequence[Lease], *, hold_for: float = 0, remember_for: float = 0, task: bool = False
    ) -> bool:
        """End leases, each as :meth:`release` does; False: one of them was lost before."""
        # all, whatever became of the first
        released = [self.release(each, hold_for=hold_for, remember_for=remember_for, task=task) for each in leases]
        return all(released)

    @abc.abstractmethod
    def free(self, key: str, *, holder: str) -> bool:
        """End whatever lease ``holder`` has of ``key``, remembering nothing; False: it has none that is live.

        For a holder that is dead, or that asked for ``key`` and never got the answer: nobody knows its token.
        """

    @abc.abstractmethod
    def reserve(
        self, reservation: Reservation, *, ttl: float, unless_run_by: str | None = None
    ) -> Reservation | Held | None:
        """Reserve a key for a message that is about to be sent, for ``ttl`` seconds; None: it is reserved.

        First match counts: this very reservation is there -> it gets a fresh ttl; another of the same task and key is ->
        that one; ``unless_run_by`` is a part of what a live holder of the key that has a run says of itself -> :class:`Held`.
        """

    @abc.abstractmethod
    def unreserve(self, reservation: Reservation) -> bool:
        """End a reservation; False: it is over, and may be another's by now."""

    @abc.abstractmethod
    def held(self, key: str | None = None, *, limit: int = LISTED_AT_MOST) -> list[LiveLock]:
        """Return the locks that are held now, or that of ``key`` alone; in no order.

        For operators: not atomic, and it stops no other operation for long, however many there are.
        """

    @abc.abstractmethod
    def serve(self, key: str) -> Served:
        """Give what has become free by itself, for a lease was over or somebody did not come, to those who wait."""

    @abc.abstractmethod
    def line(self, key: str, *, limit: int = LISTED_AT_MOST) -> list[Waiter]:
        """Return those who wait for ``key``, first those who are called, then in their order. For operators, as :meth:`held`."""

    @abc.abstractmethod
    def clear_line(self, key: str, *, remember_for: float = 3600.0) -> int:
        """Send all away who wait for ``key`` and are not called yet; return how many. Each is told, and finds itself finished."""

    @abc.abstractmethod
    def give_up(self, key: str, ticket: str) -> bool:
        """Let ``ticket`` wait for ``key`` no more: what is kept for it is given to the next; False: it has no place there."""

    @abc.abstractmethod
    def listen(self, key: str, ticket: str, within: float) -> bool:
        """Wait until it may be the turn of ``ticket``, whose place has no text, for so many seconds at most; whether it may be."""


def look_out(may_be_called: Callable[[], bool], within: float, *, every: float = LOOKS_EVERY) -> bool:
    """Ask now and again for so many seconds: for stores that cannot tell who listens."""
    until = monotonic() + within
    while not may_be_called():
        left = until - monotonic()
        if left <= 0:
            return False
        time.sleep(min(left, every))
    return True


class BeatStore(abc.ABC):
    """Which ticks the beats of an app have claimed, and what they know of its entries.

    ``app`` names whose entries they are (two apps in one store do not see each other's), ``replica`` one beat process.
    Names of apps and entries are text of any content and length, those of replicas and task ids are plain ASCII.
    """

    @abc.abstractmethod
    def join(self, app: str, replica: str, *, cold_start: float | None = None) -> Joined:
        """Count ``replica`` among the beats of ``app``; it has no list yet.

        It starts cold when no other replica is there: none that was heard of in the last :data:`ALIVE` seconds and has
        not left. With the ``cold_start`` of its earlier joining it never does; a store that has forgotten that learns it.
        """

    @abc.abstractmethod
    def list_entries(
        self,
        app: str,
        replica: str,
        entries: Sequence[tuple[str, EntryState]],
        *,
        removed: Sequence[str] = (),
        complete: bool = False,
    ) -> list[EntryState]:
        """Add ``entries`` to what this replica lists, take ``removed`` from it; return the state of each one added.

        An entry that is new to the store, or that no replica has listed for a while though there were some, gets the
        state that is given: its past is not replayed. ``complete``: the list is whole now; only then is what no replica
        lists forgotten. Repeated with nothing to add it keeps all that is stored for another :data:`STATE_MEMORY`.
        """

    @abc.abstractmethod
    def claim(self, app: str, replica: str, claims: Sequence[Claim], *, ttl: float, skip: int = 0) -> Claims:
        """Claim ticks, one per entry at most, each only if its run is the next one of its entry.

        An entry whose state was lost, wholly or in part, is granted. What was granted before to this replica under the
        same task id is granted again, for a fresh ``ttl`` seconds; what only moves an entry on, to whoever asks for the same.
        ``skip``: leave out so many of the overdue claims.

        Where its flag says so, a claim that would be granted moves its entry's state all the same, and the answer is
        :class:`Passed`, again too: then there is no such claim, or no longer.
        """

    @abc.abstractmethod
    def take_over(
        self, app: str, replica: str, task_ids: Sequence[str], *, ttl: float, flags: Sequence[str] = ()
    ) -> list[bool | Passed]:
        """Make overdue claims one's own for ``ttl`` seconds; False: another was faster, or it has been settled.

        ``flags``: for each, the name of the flag that it obeys, or "". Where that says paused, the claim is forgotten, and the
        answer is :class:`Passed`.
        """

    @abc.abstractmethod
    def settle(
        self, app: str, replica: str, published: Sequence[tuple[str, str]], *, handed_over: Sequence[str] = ()
    ) -> list[bool]:
        """Forget the claims that are ``published``, (task id, entry) each, and make those ``handed_over`` overdue now.

        False for each published one that is no longer this replica's.
        """

    @abc.abstractmethod
    def leave(self, app: str, replica: str) -> None:
        """Count ``replica`` no more. What only it listed is kept until others, if there are any, have listed theirs."""

    @abc.abstractmethod
    def status(self, app: str, *, limit: int = LISTED_AT_MOST) -> Beats:
        """Return the replicas of ``app``, and its entries in no order; ``limit`` is for each list. As :meth:`LockStore.held`."""


class ControlStore(abc.ABC):
    """What operators want of the entries of an app: flags, which each claim obeys at once, and requests for ticks.

    Names of flags are text of any content and length; names of requests, and all that is told, are ASCII. At most
    :data:`FLAGGED_AT_ONCE` names. Flags that no beat keeps are dropped after :data:`STATE_MEMORY`, as states are.
    """

    @abc.abstractmethod
    def pause(self, app: str, names: Sequence[str], told: str, *, until: float | None = None) -> None:
        """Let no tick be published, ``until`` a time of the store's wall clock; what is paused already goes on to count its ticks."""

    @abc.abstractmethod
    def resume(
        self, app: str, names: Sequence[str], *, request: str = "", text: str = "", lapsed: bool = False
    ) -> list[Flag | None]:
        """End pauses; return each flag as it was, None where nothing is paused (or, with ``lapsed``, not over by its time).

        With ``request``, each pause that has passed over ticks leaves a request of ``text``, named ``<request>-<its number>``.
        """

    @abc.abstractmethod
    def skip(self, app: str, names: Sequence[str], count: int, told: str) -> None:
        """Let the next ``count`` ticks be passed over, while nothing is paused; 0: none."""

    @abc.abstractmethod
    def failed(self, app: str, name: str, run: str, told: str, *, limit: int) -> bool:
        """Count a ``run`` that has failed, once; with the ``limit`` of them in a row, pause. True: what is ``told`` here is of that pause.

        While it is paused nothing is counted. At most :data:`FAILURES_AT_MOST` in a row.
        """

    @abc.abstractmethod
    def succeeded(self, app: str, name: str) -> None:
        """From here on none has failed in a row, as after :meth:`resume`."""

    @abc.abstractmethod
    def flags(self, app: str, names: Sequence[str] | None = None, *, limit: int = LISTED_AT_MOST) -> list[Flag]:
        """Return what is paused or to be skipped, of all or of these names, in no order."""

    @abc.abstractmethod
    def keep(self, app: str, names: Sequence[str]) -> None:
        """Keep the flags of these names for another :data:`STATE_MEMORY`, and drop those that nobody has kept for so long."""

    @abc.abstractmethod
    def ask(self, app: str, name: str, flag: str, text: str) -> None:
        """Ask for ticks of the entry of a flag. Again, nothing is claimed twice."""

    @abc.abstractmethod
    def asked(self, app: str, *, skip: int = 0) -> Requests:
        """Return at most :data:`ASKED_AT_ONCE` requests, but for the oldest ``skip``."""

    @abc.abstractmethod
    def cancel(self, app: str, names: Sequence[str]) -> list[bool]:
        """Have no more ticks claimed for these requests; False: there is no such one."""

    @abc.abstractmethod
    def over(self, app: str, names: Sequence[str]) -> None:
        """Forget these requests. That their ticks have been claimed is known for another :data:`STATE_MEMORY`."""


class AnnouncementStore(abc.ABC):
    """What beats and workers let each other know: nothing that decides about a lock or a claim. ``app`` as above."""

    @abc.abstractmethod
    def announce(self, app: str, kind: str, texts: Mapping[str, str], *, ttl: float) -> None:
        """Let others know ``texts``, one of ASCII by each name, for ``ttl`` seconds from now; 0: not any more.

        ``kind`` is one of :data:`ANNOUNCED`. What is announced again before it is forgotten keeps when it was first.
        At most :data:`ANNOUNCED_AT_ONCE` names.
        """

    @abc.abstractmethod
    def announced(
        self, app: str, kind: str, names: Sequence[str] | None = None, *, limit: int = LISTED_AT_MOST
    ) -> list[Announcement]:
        """Return what is announced now, under all names or these, in no order."""


class JournalStore(abc.ABC):
    """What has happened to the ticks and runs of an app, in the order in which it was written: nothing that decides anything.

    Texts are ASCII. ``app`` as above.
    """

    @abc.abstractmethod
    def append(
        self,
        app: str,
        batch: str,
        texts: Sequence[str],
        *,
        keep: int,
        remember_for: float = 3600.0,
        forget: str | None = None,
        within: float | None = None,
    ) -> bool:
        """Write records, and drop the oldest: at least ``keep`` are kept, a tenth more at most (and some hundreds).

        False: that ``batch``, an ASCII name, was appended in the last ``remember_for`` seconds, and is not again. ``forget`` is
        an earlier batch that nobody will append again. At most :data:`JOURNALED_AT_ONCE` texts; none are a batch too. Nobody
        waits for an answer for longer than ``within`` seconds.
        """

    @abc.abstractmethod
    def records(
        self,
        app: str,
        *,
        after: str | None = None,
        before: str | None = None,
        since: float | None = None,
        newest_first: bool = False,
        limit: int = JOURNALED_AT_ONCE,
    ) -> list[StoredRecord]:
        """Return records: from the oldest on, or from the newest back.

        Only those ``after`` and ``before`` a position, and written ``since`` a time of the store's wall clock; of these the
        first ``limit``, at most :data:`JOURNALED_AT_ONCE`. A position that has been dropped meanwhile is still a place in the
        order; what no store has returned is no position, and nothing is found by it.
        """


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

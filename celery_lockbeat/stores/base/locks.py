"""Who holds which key, who waits for it, and for whom it is reserved."""

from __future__ import annotations

import abc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import NamedTuple

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import StoreUnavailable
from celery_lockbeat.stores.base.bounds import LISTED_AT_MOST, LOOKS_EVERY

__all__ = [
    "Finished",
    "Held",
    "Lease",
    "LiveLock",
    "LockStore",
    "Place",
    "Reservation",
    "Served",
    "Stop",
    "Waiter",
    "Waiting",
    "Wanted",
    "look_out",
    "of_key",
]


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

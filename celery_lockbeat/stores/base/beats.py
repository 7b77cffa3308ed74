"""The beats of an app, the states of its entries, and the claims of ticks."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery_lockbeat.stores.base.bounds import LISTED_AT_MOST

__all__ = [
    "BeatStore",
    "Beats",
    "Claim",
    "Claims",
    "EntryState",
    "Joined",
    "Overdue",
    "Passed",
    "Replica",
    "StoredEntry",
]


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

"""What operators ask of the entries of an app: flags, and requests for ticks."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from celery_lockbeat.stores.base.beats import EntryState
from celery_lockbeat.stores.base.bounds import LISTED_AT_MOST

__all__ = ["Asked", "ControlStore", "Flag", "Requests", "is_request", "request_key"]


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

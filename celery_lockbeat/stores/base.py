"""The contract of a store: the one place that knows who holds which key.

Promises, of every store, each a test in ``tests/stores/test_contract.py``:

- each operation is atomic, and at most one lease per key is live at any moment of the store's own clock;
- tokens only grow per key: after expiry, after a release, and after the store has forgotten the key;
- only the lease that was granted can be extended or released, and only while it is live;
- every operation can be repeated after a lost answer and then gives the same answer.

Not promised: fairness, waiting, renewal (``renewal.py``), or anything about who is *alive*, but for the memory store.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

__all__ = ["TOKEN_MEMORY", "Finished", "Held", "Lease", "Store"]

#: Seconds for which a store remembers the last token of a key after its last use. Only a server clock that was set
#: back by more than this could then hand out a smaller token: a new token is never below the clock's microseconds.
TOKEN_MEMORY: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Lease:
    """A granted lock: what its owner needs to extend or to release it.

    ``holder`` is unique per execution, ``run`` names what is executed (None: nothing to remember), and ``token`` is the
    fencing token, greater than every earlier one of this key.
    """

    key: str
    holder: str
    run: str | None
    token: int


@dataclass(frozen=True, slots=True)
class Held:
    """A refusal: the key is another holder's for ``remaining`` more seconds, unless that one extends or releases it.

    ``same_run``: the other holder executes the very run that was asked for (a redelivered copy of its message).
    ``description`` is what that holder told about itself, ``run`` what it executes ("" for none, and once released).
    """

    description: str
    remaining: float
    same_run: bool
    run: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """A refusal: this run has been released as finished, and is remembered."""


class Store(abc.ABC):
    """Safe for use from many threads, and usable in a child after a fork (which then opens its own connections).

    Keys, holders, runs and descriptions are non-empty text of any content and length. Durations are seconds, at
    millisecond resolution. Every method raises :class:`~celery_lockbeat.exceptions.StoreUnavailable` when the store
    does not answer within its time limit; what was asked may or may not have happened then, so ask again.
    """

    #: The name under which users know this kind of store (``lock_driver``).
    driver: ClassVar[str]

    @abc.abstractmethod
    def acquire(
        self, key: str, *, holder: str, ttl: float, run: str | None = None, description: str = ""
    ) -> Lease | Held | Finished:
        """Take ``key`` for ``ttl`` seconds, or say why not.

        First match counts: ``run`` is remembered as finished -> :class:`Finished`; the key is held live by another
        ``holder`` -> :class:`Held`; it is held by this very ``holder`` -> its lease again, with the same token and a
        fresh ttl; else a new lease with a new token, ``max(last token + 1, the store's clock in microseconds)``.
        """

    @abc.abstractmethod
    def extend(self, leases: Sequence[tuple[Lease, float]]) -> list[bool]:
        """Set each (lease, ttl) to end ``ttl`` seconds from now, in one round trip; False: that lease is lost.

        A lease that has run out is lost even if nobody else has taken its key since.
        """

    @abc.abstractmethod
    def release(self, lease: Lease, *, hold_for: float = 0, remember_for: float = 0) -> bool:
        """End a lease; False: it was lost before.

        ``hold_for``: keep the key held for so much longer (the lease itself is over: it cannot be extended any more).
        ``remember_for``: answer :class:`Finished` for ``lease.run`` during so long; ignored where the run is None or
        the lease was lost. Releasing again gives the first release's answer, at least as long as the token or the
        run is remembered and nobody else has taken the key.
        """

    @abc.abstractmethod
    def free(self, key: str, *, holder: str) -> bool:
        """End whatever lease ``holder`` has of ``key``, remembering nothing; False: it has none that is live.

        For a holder that is dead, or that asked for ``key`` and never got the answer: nobody knows its token.
        """

    def twin(self) -> Store:
        """Return a store of the same locks, for a thread that gevent does not know: it can share no socket with others."""
        return self

    @abc.abstractmethod
    def close(self) -> None:
        """Close connections and files; idempotent. The store opens them again when it is used again."""

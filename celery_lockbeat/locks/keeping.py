"""A pool's parent renews what its living children are late to renew: the GIL of theirs is held, by one long regular expression.

Promises: what a child holds is extended in its place once it is late, by its own lease and token, for as long as it can run;
nothing is asked of a store while no child is late. Not for a child that is stopped or dead, or of which that cannot be known (where
there is no /proc, as on macOS); never once the child has noted the loss, the store has refused, or the lease has run out.

A child that comes to itself looks on its page (``page.py``) before it believes that its lease has run out (``lease.py``), and goes on
by itself.

Not promised: that a store that hangs delays nothing in another. Each attempt may take half of what is left of the leases.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import ConfigurationError, StoreUnavailable
from celery_lockbeat.locks.page import Hold, Page
from celery_lockbeat.options import MARGIN, RETRY_EVERY
from celery_lockbeat.stores.base import Lease, Stop, Store

__all__ = ["Keeper", "can_run"]

logger: Final = logging.getLogger("celery_lockbeat")

#: States of a process (proc(5)) in which it runs, or will when what it waits for is there: not T and t (stopped), Z and X (dead).
CAN_RUN: Final = frozenset("RSDIWKP")


def can_run(pid: int) -> bool:
    """Whether this process is neither stopped nor dead; False, too, where that cannot be known."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return False
    # '<pid> (<name>) <state> ...', and a name may have all but a NUL
    return stat.rpartition(")")[2].strip()[:1] in CAN_RUN


@dataclass
class _Ward:
    """One lease of a child."""

    page: Page
    pid: int
    holder: str
    hold: Hold
    #: when its last lease was asked for in the child's place
    kept_since: float = -math.inf
    again_at: float = -math.inf
    refused: bool = False

    @property
    def since(self) -> float:
        return max(self.hold.since, self.kept_since)

    @property
    def late_at(self) -> float:
        return max(self.since + self.hold.patience, self.again_at)

    @property
    def ends(self) -> float:
        return min(self.since + self.hold.ttl * (1 - MARGIN), self.hold.until)

    @property
    def lease(self) -> Lease:
        return Lease(self.hold.key, self.holder, None, self.hold.token)


class Keeper:
    """What a parent knows of the leases of its children; ``store_of`` gives the store of a driver and a connection."""

    def __init__(
        self,
        store_of: Callable[[str, str], Store],
        *,
        clock: Callable[[], float] = monotonic,
        runs: Callable[[int], bool] = can_run,
    ) -> None:
        self._store_of = store_of
        self._clock = clock
        self._runs = runs
        self._wards: dict[tuple[int, str, str, int], _Ward] = {}

    def look(self, pages: Iterable[Page]) -> float:
        """Extend what the children of these pages are late to; return when the next of them is, on the clock, inf for never."""
        self._wards = {name: ward for page in pages for name, ward in self._wards_of(page)}
        now = self._clock()
        late = defaultdict(list)
        for ward in self._wards.values():
            if not ward.refused and ward.late_at <= now < ward.ends and self._runs(ward.pid):
                late[ward.hold.driver, ward.hold.connection].append(ward)
        for (driver, connection), wards in late.items():
            self._extend(driver, connection, wards)
        return min((ward.late_at for ward in self._wards.values() if ward.late_at > now), default=math.inf)

    def _wards_of(self, page: Page) -> Iterable[tuple[tuple[int, str, str, int], _Ward]]:
        pid = page.pid
        try:
            held = page.held() if pid else {}
        except (ValueError, TypeError, EOFError):
            return  # it is written just now, or broken: what is not known to be held is not renewed
        for (holder, driver), hold in held.items():
            if hold.token:
                name = (pid, holder, driver, hold.token)
                ward = self._wards.get(name) or _Ward(page, pid, holder, hold)
                ward.hold = hold
                yield name, ward

    def _extend(self, driver: str, connection: str, wards: list[_Ward]) -> None:
        started = self._clock()
        within = max(0.01, min(ward.ends - started for ward in wards) / 2)
        answers: list[bool | Stop | StoreUnavailable]
        try:
            store = self._store_of(driver, connection)
            answers = store.locks.extend([(ward.lease, ward.hold.ttl) for ward in wards], within=within)
        except (StoreUnavailable, ConfigurationError) as exc:
            logger.debug("what children of the pool are late to renew could not be renewed: %s", exc)
            answers = [StoreUnavailable(str(exc))] * len(wards)
        for ward, answer in zip(wards, answers, strict=True):
            if isinstance(answer, StoreUnavailable):
                ward.again_at = self._clock() + min(RETRY_EVERY, ward.hold.ttl / 10)
            else:
                # who is to stop hears of it when it is extended in the child
                self._answered(ward, started, extended=bool(answer))
        for page in {id(ward.page): ward.page for ward in wards}.values():
            page.keep(
                {
                    (ward.holder, ward.hold.driver, ward.hold.token): ward.kept_since
                    for ward in self._wards.values()
                    if ward.page is page and ward.kept_since > -math.inf
                }
            )

    def _answered(self, ward: _Ward, started: float, *, extended: bool) -> None:
        """Take over the store's answer to an extension that was asked for at ``started``."""
        if not extended:
            ward.refused, ward.kept_since = True, -math.inf
            return
        if ward.kept_since == -math.inf:
            text = (
                "lock %r is renewed in place of the pool child %d, which is late to: does something hold the GIL there?"
            )
            logger.info(text, ward.hold.key, ward.pid)
        ward.kept_since = started

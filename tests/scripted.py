"""Time that passes only where somebody waits, and a store that answers by a script: locks and renewals without a sleep."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from celery_lockbeat.exceptions import StoreUnavailable
from celery_lockbeat.locks.renewal import Renewer
from celery_lockbeat.stores.base import Finished, Held, Lease, LockStore, Reservation, Store

DOWN = StoreUnavailable("down")


class EndOfTime(BaseException):
    """Thrown at whoever waits beyond the time that a test has."""


class Time:
    """A clock from 0, and the bell that the renewer waits for; waiting lets it go on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.end = 0.0
        self.notified = 0
        #: what happens while somebody waits
        self.meanwhile: Callable[[], object] = int

    def __call__(self) -> float:
        return self.now

    def acquire(self, timeout: float) -> None:
        self.meanwhile()
        if timeout < 0 or self.now + timeout > self.end:
            self.now = self.end
            raise EndOfTime
        self.now += timeout

    def locked(self) -> bool:
        return True

    def release(self) -> None:
        self.notified += 1


class ScriptedStore(Store, LockStore):
    """Answers each call with the next of its script, and with True or a lease beyond it. An exception is raised, a float
    is the seconds that this answer takes, and a list has an answer for each lease that is to be extended. It has locks only."""

    driver = "scripted"

    def __init__(self, time: Time, script: list[Any]) -> None:
        self._time = time
        self._script = script
        #: (when, the keys of the call)
        self.extensions: list[tuple[float, set[str]]] = []
        self.acquisitions: list[float] = []
        self.releases: list[dict[str, float]] = []
        self.freed: list[tuple[float, str, str]] = []
        self.tokens = 0

    @property
    def locks(self) -> LockStore:
        return self

    def _next(self) -> Any:
        answer = self._script.pop(0) if self._script else True
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, float):
            self._time.now += answer
            return True
        return answer

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
        place: Any = None,
    ) -> Lease | Held | Finished:
        self.acquisitions.append(round(self._time.now, 3))
        answer = self._next()
        if answer is not True:
            return answer
        self.tokens += 1
        return Lease(key, holder, run, self.tokens)

    def extend(self, leases: Any, *, within: float = 0.0) -> list[bool]:
        self.extensions.append((round(self._time.now, 3), {lease.key for lease, _ in leases}))
        answer = self._next()
        return answer if isinstance(answer, list) else [answer] * len(leases)

    def release(self, lease: Lease, *, hold_for: float = 0, remember_for: float = 0, task: bool = False) -> bool:
        self.releases.append({"hold_for": hold_for, "remember_for": remember_for})
        return bool(self._next())

    def free(self, key: str, *, holder: str) -> bool:
        self.freed.append((round(self._time.now, 3), key, holder))
        return bool(self._next())

    def reserve(self, reservation: Reservation, *, ttl: float, unless_run_by: str | None = None) -> None:
        raise NotImplementedError

    def unreserve(self, reservation: Reservation) -> bool:
        raise NotImplementedError

    def held(self, key: str | None = None, *, limit: int = 0) -> list[Any]:
        raise NotImplementedError

    serve = line = clear_line = give_up = listen = held

    def close(self) -> None:
        pass


def renewer(store: Store, time: Time) -> tuple[Renewer, Callable[[float], None]]:
    """A renewer whose thread is the test's, and what lets it run until a moment."""
    made = Renewer(store, clock=time)
    made._bell = time
    made._running = True
    made.of = store  # which it does not keep itself

    def run_until(end: float) -> None:
        time.end = end
        with contextlib.suppress(EndOfTime):
            while made._carry_out_a_round():
                pass

    return made, run_until

"""A worker as a member of its app: the thread in which it announces itself and touches its health file.

It is a thread of its own for no other is there in all pools, whatever they run. A beat does the same in its rounds.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Any, Final

from celery import signals

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import ConfigurationError, LockbeatError
from celery_lockbeat.membership.health import TOUCHED_EVERY, HealthFile
from celery_lockbeat.membership.members import HEARD_EVERY, Member
from celery_lockbeat.membership.startup import say_what_is_set
from celery_lockbeat.stores import home_store_of

__all__ = ["Membership"]

logger: Final = logging.getLogger("celery_lockbeat")


@signals.celeryd_after_setup.connect  # type: ignore[untyped-decorator]
def _say_what_is_set(instance: Any, **_: Any) -> None:
    try:
        say_what_is_set(instance.app, "locks")
        HealthFile(instance.app, "worker")
    except ConfigurationError as exc:
        # Celery swallows all but what ends the process
        raise SystemExit(str(exc)) from exc


class Membership:
    """What this process does about its health while it is a worker; the thread starts at once, and stops at :meth:`end`."""

    def __init__(self, app: Any, node: str) -> None:
        self._app = app
        self._pid: Final = os.getpid()
        self._file = HealthFile(app, "worker")
        self._member = Member(app, "worker", node=node)
        self._ends = threading.Event()
        self._next = 0.0
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="lockbeat-member", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                self._look()
            except Exception:  # whatever it was, the next look comes
                if not self._failed:
                    logger.exception("a worker cannot tell that it is well")
                self._failed = True
            else:
                self._failed = False
            if self._ends.wait(TOUCHED_EVERY):
                return

    def _look(self) -> None:
        self._file.touch()
        now = monotonic()
        if now < self._next:
            return
        self._next = now + HEARD_EVERY
        try:
            self._member.announce(home_store_of(self._app))
        except LockbeatError as exc:
            # whoever needs the store for a lock says so louder
            self._member.begin_anew()
            logger.debug("a worker cannot be announced: %s", exc)

    def end(self) -> None:
        """Be a member no more. In a child of the worker that made it, nothing is withdrawn."""
        self._ends.set()
        if os.getpid() != self._pid:
            return
        self._thread.join(timeout=5.0)
        try:
            self._member.withdraw(home_store_of(self._app))
        except LockbeatError as exc:
            logger.debug("a worker leaves without a word: %s", exc)


_worker: Membership | None = None


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def _join(sender: Any, **_: Any) -> None:
    global _worker  # noqa: PLW0603  the one that this process is
    _leave()
    _worker = Membership(sender.app, str(getattr(sender, "hostname", "")))


@signals.worker_shutdown.connect  # type: ignore[untyped-decorator]
def _leave(**_: Any) -> None:
    global _worker
    worker, _worker = _worker, None
    if worker is not None:
        worker.end()


def _forget_the_parents() -> None:
    global _worker  # noqa: PLW0603  as above
    _worker = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents)

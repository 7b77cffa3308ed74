"""What a beat or a worker announces of itself to the other members of its app.

Promises: a member that lives is heard of by the store every few seconds, also when it has nothing to do; one that is stopped,
frozen or dead is not. No round trip is made for a run or a tick. Members that are given different stores or prefixes find each
other in the Redis of their broker, where there is one; that they cannot stops nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from typing import Any, Final

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import LockbeatError
from celery_lockbeat.membership.identity import digest_of, home_of, locks_of_tasks, meeting_store_of, work_of
from celery_lockbeat.process import name_of_its_own
from celery_lockbeat.stores import Store, name_of
from celery_lockbeat.stores.base import Announcement

__all__ = ["HEARD_EVERY", "KEPT", "KEPT_EVERY", "REMEMBERED", "Member", "enumerate_some", "fields_of"]

logger: Final = logging.getLogger("celery_lockbeat")

#: Seconds between two announcements of a member, and for which one that fell silent is remembered.
HEARD_EVERY: Final = 5.0
REMEMBERED: Final = 600.0

#: Seconds after which what members have announced once is announced again, and for which it is kept.
KEPT_EVERY: Final = 3600.0
KEPT: Final = 3 * KEPT_EVERY

#: The same for what is announced to those with other settings.
MET_EVERY: Final = 60.0
MET: Final = 3 * MET_EVERY

#: So many names of a longer list are written out.
NAMES_AT_MOST: Final = 5


def fields_of(announcement: Announcement) -> Mapping[str, Any]:
    """Read the JSON of an announcement; what is no JSON object has no fields."""
    try:
        fields = json.loads(announcement.told)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def enumerate_some(names: Iterable[str]) -> str:
    """Write names in one line, the first of them where there are many."""
    known = sorted(names)
    more = len(known) - NAMES_AT_MOST
    return ", ".join(known[:NAMES_AT_MOST]) + (f" and {more} more" if more > 0 else "")


class Member:
    """One beat or worker, as the others of its app know it.

    ``name`` is its own among all; ``kind`` is "beat" or "worker". What is announced is JSON: ``kind``, ``host``, ``pid``,
    ``version``, ``home`` (the store and its prefix), ``tasks`` (the digest of :func:`locks_of_tasks`), ``work`` (see
    :func:`work_of`), and what is ``more``.
    """

    def __init__(
        self, app: Any, kind: str, name: str | None = None, *, clock: Callable[[], float] = monotonic, **more: Any
    ) -> None:
        self.name = name or name_of_its_own()
        self.more = more
        self._clock = clock
        self._app_name = name_of(app)
        self._tasks = locks_of_tasks(app)
        self._fields = {
            "kind": kind,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": version("celery-lockbeat"),
            "home": home_of(app),
            "tasks": digest_of(self._tasks),
            "work": work_of(app),
        }
        self._kept_at: float | None = None
        self._meeting = meeting_store_of(app)
        self._met_at: float | None = None

    def announce(self, store: Store) -> None:
        """Be heard of. Raises StoreUnavailable."""
        now = self._clock()
        if self._kept_at is None or now - self._kept_at > KEPT_EVERY:
            tasks = {str(self._fields["tasks"]): json.dumps(self._tasks, separators=(",", ":"))}
            store.announcements.announce(self._app_name, "tasks", tasks, ttl=KEPT)
            self._kept_at = now
        announced = {self.name: json.dumps({**self._fields, **self.more}, separators=(",", ":"))}
        store.announcements.announce(self._app_name, "member", announced, ttl=REMEMBERED)
        if self._meeting is not None and (self._met_at is None or now - self._met_at > MET_EVERY):
            self._met_at = now
            try:
                self._meeting.announcements.announce(self._app_name, "home", announced, ttl=MET)
            except LockbeatError as exc:
                # another server, or a user who may not write there: it is but for those with other settings
                logger.debug("a %s cannot be announced to those with other settings: %s", self._fields["kind"], exc)

    def begin_anew(self) -> None:
        """Announce everything again: the store has forgotten it."""
        self._kept_at = None

    def withdraw(self, store: Store) -> None:
        """Be heard of no more: it has not died, it has ended. Raises StoreUnavailable."""
        store.announcements.announce(self._app_name, "member", {self.name: "{}"}, ttl=0)
        if self._meeting is not None:
            with contextlib.suppress(LockbeatError):
                self._meeting.announcements.announce(self._app_name, "home", {self.name: "{}"}, ttl=0)
            self._meeting.close()

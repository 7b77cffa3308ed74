"""What the views ask of: an app, what is known of it, and what has to be asked for."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import cached_property
from typing import Any, Final, NamedTuple

from celery_lockbeat.contrib.definition import Definition
from celery_lockbeat.contrib.schedulers import definition_of
from celery_lockbeat.control.acts import Acts
from celery_lockbeat.control.schedules import Backfill, ScheduledEntry
from celery_lockbeat.exceptions import LockbeatError
from celery_lockbeat.insight.doctor.facts import gather
from celery_lockbeat.insight.doctor.rules import examine
from celery_lockbeat.insight.planned import Plans
from celery_lockbeat.insight.redaction import redactor
from celery_lockbeat.membership.identity import lock_options_of
from celery_lockbeat.options import LockOptions, spelling
from celery_lockbeat.web.history import Histories
from celery_lockbeat.web.hub import Hub
from celery_lockbeat.web.words import cut

__all__ = ["Described", "Health", "Known"]

#: Of so many entries is known what they are, for so many seconds.
DESCRIBED: Final = 500
DESCRIBED_FOR: Final = 2.0


class Health:
    """What the doctor finds: asked for when somebody looks, and at most each half minute; nobody waits for it."""

    #: Seconds for which what was found is shown again, at least, and as a multiple of what it took.
    KEPT: Final = 30.0
    TIMES: Final = 20.0

    def __init__(self, app: Any) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._until = 0.0
        self._asks = False
        #: what was found last, the worst first; when that was, None: not yet
        self.found: Sequence[Mapping[str, str]] = ()
        self.at: datetime | None = None

    def look(self) -> None:
        """Ask anew, if what was found is too old."""
        with self._lock:
            if self._asks or time.monotonic() < self._until:
                return
            self._asks = True
        threading.Thread(target=self._examine, name="lockbeat-doctor", daemon=True).start()

    def _examine(self) -> None:
        began, spell = time.monotonic(), spelling(self._app.conf)
        try:
            self.found = [
                {
                    "kind": kind.name,
                    "level": kind.level,
                    "about": cut(about),
                    "what": cut(what, 1_000),
                    "why": spell(kind.why),
                    "do": spell(kind.do),
                }
                for kind, about, what in examine(gather(self._app))
            ]
            self.at = datetime.now(timezone.utc)
        finally:
            self._until = time.monotonic() + max(self.KEPT, self.TIMES * (time.monotonic() - began))
            self._asks = False


class Described(NamedTuple):
    """What an entry is, None: nobody here can tell; and its backfills that are under way."""

    definition: Definition | None = None
    backfills: Sequence[Backfill] = ()


class Known:
    """What is known of one app."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.hub = Hub(app)
        self.histories = Histories(app, self.hub.tells)
        self.health = Health(app)
        self._clean = redactor(app)
        self._described: dict[str, tuple[Described, float]] = {}

    @cached_property
    def locks(self) -> Mapping[str, LockOptions | None]:
        """The options of the lock of each task that this process knows."""
        return dict(lock_options_of(self.app))

    @cached_property
    def plans(self) -> Plans:
        """When entries are due, by all that is said of them. Raises ConfigurationError."""
        return Plans(self.app)

    def described(self, name: str, flag: str | None) -> Described:
        """Return what an entry is, as whoever keeps it says, and its backfills; it is asked for at most each two seconds."""
        known, until = self._described.get(name, (Described(), 0.0))
        if until > time.monotonic():
            return known
        # where nobody answers what was known before is shown; that is said on each page
        with contextlib.suppress(LockbeatError):
            known = Described(
                definition_of(self.app, name),
                () if flag is None else ScheduledEntry(Acts(self.app), name, flag, None).backfills(),
            )
        if len(self._described) > DESCRIBED:
            self._described.clear()
        self._described[name] = known, time.monotonic() + DESCRIBED_FOR
        return known

    def clean(self, text: object) -> str:
        """Return a text without the passwords of the app's settings."""
        return self._clean(text)

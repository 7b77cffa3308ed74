"""What the views ask of: an app, what is known of it, and what has to be asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import cached_property
from typing import Any, Final

from celery_lockbeat.beat.rules import Rules
from celery_lockbeat.contrib.definition import Definition
from celery_lockbeat.contrib.schedulers import are_kept_elsewhere, definition_of
from celery_lockbeat.exceptions import LockbeatError
from celery_lockbeat.insight.doctor.facts import gather
from celery_lockbeat.insight.doctor.rules import examine
from celery_lockbeat.insight.redaction import redactor
from celery_lockbeat.membership.identity import lock_options_of
from celery_lockbeat.options import AppOptions, LockOptions, spelling
from celery_lockbeat.web.history import Histories
from celery_lockbeat.web.hub import Hub
from celery_lockbeat.web.words import cut

__all__ = ["Health", "Known"]


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


class Known:
    """What is known of one app."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.hub = Hub(app)
        self.histories = Histories(app, self.hub.tells)
        self.health = Health(app)
        self._clean = redactor(app)

    @cached_property
    def locks(self) -> Mapping[str, LockOptions | None]:
        """The options of the lock of each task that this process knows."""
        return dict(lock_options_of(self.app))

    @cached_property
    def rules(self) -> Rules:
        """What settings say of entries. Raises ConfigurationError."""
        options = AppOptions.read(self.app.conf)
        return Rules(options.entries or {}, options.late_after)

    def kept(self, name: str) -> Definition | None:
        """Return what RedBeat or Django have of an entry; None: nothing, or they do not answer."""
        if not are_kept_elsewhere(self.app):
            return None
        try:
            return definition_of(self.app, name)
        except LockbeatError:
            return None

    def clean(self, text: object) -> str:
        """Return a text without the passwords of the app's settings."""
        return self._clean(text)

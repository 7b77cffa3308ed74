"""Failures in a row: how each run of an entry with ``pause_after_failures`` ends is counted, and the last of so many pauses it.

Promises: how a run ends is counted before others may know that it has, so that a kill in between loses nothing: its message comes
again, and a run is counted once. A store that does not answer changes nothing for the run. It costs one round trip per run, and
only where the entry asks for it: the release, which could have taken it along, may be of another store, or of another node.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Final, NamedTuple

from celery_lockbeat.exceptions import LockbeatError
from celery_lockbeat.journal.records import Said
from celery_lockbeat.journal.writer import journal_of
from celery_lockbeat.stores import home_store_of, name_of

__all__ = ["PAUSE_AFTER", "Streak"]

logger: Final = logging.getLogger("celery_lockbeat")

#: What the header of a tick says of an entry that is to be paused: after how many failures, and the name of its flag.
PAUSE_AFTER: Final = "pause_after"

#: So much of an error is told.
LONGEST: Final = 200


class Streak(NamedTuple):
    """The failures in a row of an ``entry``, of which the ``limit`` of them raise its ``flag``; ``run`` may be one."""

    entry: str
    flag: str
    limit: int
    run: str

    @classmethod
    def of(cls, tick: Mapping[str, Any], task_id: Any) -> Streak | None:
        """Return that which a tick may be one of; None: its failures are nobody's matter, or others have written it."""
        told, run = tick.get(PAUSE_AFTER), tick.get("claim", task_id)
        if not (isinstance(told, (list, tuple)) and len(told) == 2):  # noqa: PLR2004  see above
            return None
        limit, flag = told
        if not (isinstance(limit, int) and isinstance(flag, str) and isinstance(run, str)):
            return None
        return cls(str(tick.get("entry", flag)), flag, limit, run)

    def text(self) -> str:
        """Write it for another process."""
        return json.dumps(self)

    @classmethod
    def read(cls, text: str) -> Streak:
        """Read it."""
        return cls(*json.loads(text))

    def failed(self, app: Any, error: str) -> str | None:
        """Count the run among them; return why the entry is paused, if it is for this one."""
        times = f"{self.limit} failures in a row, the last" if self.limit > 1 else "a failure"
        reason = f"{times}: {error}"[:LONGEST]
        said = Said("lockbeat", datetime.now(timezone.utc).isoformat(timespec="milliseconds"), reason)
        try:
            controls = home_store_of(app).controls
            paused = controls.failed(name_of(app), self.flag, self.run, said.text(), limit=self.limit)
        except LockbeatError as exc:
            logger.warning("a failure of entry %r is not counted: %s", self.entry, exc)
            return None
        if not paused:
            return None
        fields = {"schedule": self.entry, "who": said.who, "reason": reason, "count": self.limit}
        journal_of(app).put("entry_paused", {**fields, "hostname": socket.gethostname()})
        return reason

    def succeeded(self, app: Any) -> None:
        """None of them is in a row any more."""
        try:
            home_store_of(app).controls.succeeded(name_of(app), self.flag)
        except LockbeatError as exc:
            logger.warning("entry %r keeps its count of failures, though it has succeeded: %s", self.entry, exc)

"""What is asked of the beats of an app, for one entry or for thousands, and written into its journal with who asked.

Promises: when :meth:`Acts.pause` returns, no tick of what is paused is published any more, but for what is asked for by hand:
what beats had claimed before is published by then, or passed over by whoever finds it. It waits for that as long as a claim
lasts, at most. A beat of an older release obeys nothing of it.
"""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Final
from uuid import uuid4

from celery_lockbeat.beat.agenda import flag_of
from celery_lockbeat.beat.controls import CATCHUPS, Wanted
from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.insight.entries import MOST
from celery_lockbeat.journal.records import Said
from celery_lockbeat.journal.writer import journal_of
from celery_lockbeat.options import AppOptions
from celery_lockbeat.stores import Store, home_store_of, name_of
from celery_lockbeat.stores.base import FLAGGED_AT_ONCE, Flag

__all__ = ["Acts", "somebody"]

#: Of so many entries at most is each written into the journal, which keeps but so many records.
RECORDED_AT_MOST: Final = 100

#: Seconds between two looks whether what was claimed before a pause is published.
LOOKS_EVERY: Final = 0.02


def somebody() -> str:
    """Return who asks, where nobody says so: user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container knows no names
        user = str(os.getuid()) if hasattr(os, "getuid") else "somebody"
    return f"{user}@{socket.gethostname()}"


class Acts:
    """For the beats of one app. ``names`` are those of entries by the names of their flags."""

    def __init__(self, app: Any) -> None:
        self.app: Final = app
        self._name = name_of(app)
        self._journal = journal_of(app)

    @property
    def store(self) -> Store:
        """Where the beats have their ticks."""
        return home_store_of(self.app)

    def pause(
        self,
        names: Mapping[str, str],
        *,
        until: datetime | None = None,
        note: str | None = None,
        who: str | None = None,
    ) -> None:
        """Have no tick of these entries published. Raises StoreUnavailable, and ConfigurationError for a time that is no such."""
        if until is not None:
            _check("until", until)
            if until.timestamp() <= time.time():
                raise ConfigurationError(f"until is {until.isoformat()!r}; allowed: a time that is to come")
        said = Said(who or somebody(), _now(), note)
        over = None if until is None else until.timestamp()
        for some in _some(names):
            self.store.controls.pause(self._name, some, said.text(), until=over)
        why = f"until {until.isoformat(timespec='seconds')}" if until is not None else None
        self.record("entry_paused", names, said, reason=": ".join(each for each in (why, note) if each))
        self._wait_for_claims(names)

    def _wait_for_claims(self, flags: Mapping[str, str]) -> None:
        """Wait until what was claimed before is published, or its time is over: then whoever takes it over obeys."""
        deadline = monotonic() + AppOptions.read(self.app.conf).claim_ttl
        while monotonic() < deadline:
            entries = self.store.beats.status(self._name, limit=MOST).entries
            if not any(entry.pending and flag_of(entry.name) in flags for entry in entries):
                return
            time.sleep(LOOKS_EVERY)

    def resume(
        self, names: Mapping[str, str], *, catchup: str | None = None, who: str | None = None
    ) -> dict[str, Flag]:
        """Have the ticks of these entries published again, and those that were passed over as ``catchup`` says.

        None: as the entry itself says. Returns the flags of those that were paused. Raises StoreUnavailable, ConfigurationError.
        """
        if catchup is not None and catchup not in CATCHUPS:
            raise ConfigurationError(f"catchup is {catchup!r}; allowed: {', '.join(CATCHUPS)}")
        said = Said(who or somebody(), _now())
        text = Wanted("catchup", said.who or "", said.at or "", catchup=catchup or "").text()
        resumed: dict[str, Flag] = {}
        for some in _some(names):
            request = "" if catchup == "none" else uuid4().hex
            flags = self.store.controls.resume(self._name, some, request=request, text=text)
            resumed |= {flag.name: flag for flag in flags if flag is not None}
        done = {flag: names[flag] for flag in resumed}
        passed = sum(flag.passed for flag in resumed.values())
        reason = f"ticks that were passed over: {catchup or 'as the entry says'}" if passed else None
        self.record("entry_resumed", done, said, reason=reason, count=passed or None)
        return resumed

    def skip(self, names: Mapping[str, str], count: int, *, note: str | None = None, who: str | None = None) -> None:
        """Have the next ``count`` ticks of each passed over; 0: none. Raises StoreUnavailable, ConfigurationError."""
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count < 10**9:
            raise ConfigurationError(f"the ticks to skip are {count!r}; allowed: a whole number, 0 for none")
        said = Said(who or somebody(), _now(), note)
        for some in _some(names):
            self.store.controls.skip(self._name, some, count, said.text())
        self.record("entry_skips", names, said, reason=note, count=count)

    def record(self, event: str, names: Mapping[str, str], said: Said, **fields: Any) -> None:
        """Write into the journal what was asked for: of each entry, or of all in one record where they are many."""
        told = {"who": said.who, "hostname": socket.gethostname(), **fields}
        if len(names) <= RECORDED_AT_MOST:
            for name in names.values():
                self._journal.put(event, {**told, "schedule": name})
        else:
            reason = f"{len(names)} entries" + (f": {told['reason']}" if told.get("reason") else "")
            self._journal.put(event, {**told, "reason": reason})


def _some(names: Iterable[str]) -> Iterator[Sequence[str]]:
    flags = list(names)
    for start in range(0, len(flags), FLAGGED_AT_ONCE):
        yield flags[start : start + FLAGGED_AT_ONCE]


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _check(what: str, at: datetime) -> None:
    if not isinstance(at, datetime) or at.tzinfo is None:
        raise ConfigurationError(f"{what} is {at!r}; allowed: an aware datetime, as datetime.now(timezone.utc)")

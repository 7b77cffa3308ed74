"""The runs of entries, written into RedBeat's Redis once their ticks are published: last run, number of runs, and score.

Promises: what cannot be written now is written at the next look. Where somebody else has changed an entry meanwhile, it is read
again first; what was deleted or rescheduled stays so.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from celery_lockbeat.contrib.redbeat.entries import Entries
from celery_lockbeat.contrib.redbeat.hashes import AT_ONCE, Hashes
from celery_lockbeat.contrib.redbeat.stored import KEY, after_run

__all__ = ["Runs"]


class Runs:
    """The runs of one beat that are not written down yet. All methods raise what redis-py does."""

    def __init__(self, entries: Entries, hashes: Hashes) -> None:
        self._entries = entries
        self._hashes = hashes
        self._unwritten: set[str] = set()  # the keys of their hashes

    def note(self, keys: Iterable[str]) -> None:
        """Take notice that the entries with these keys in the store of the ticks have run."""
        known = self._entries.stored
        for key in keys:
            match = KEY.fullmatch(key)
            stored = known.get(match[1]) if match else None
            if match and stored is not None and stored.key == key:
                self._unwritten.add(match[1])

    def write_down(self) -> None:
        """Write what is not written yet; what others change in the meantime is tried once more."""
        for _ in range(2):
            missed: list[str] = []
            rest = iter([key for key in self._unwritten if self._has_run(key)])
            while some := list(islice(rest, AT_ONCE)):
                missed += self._write(some)
            self._unwritten = set(missed)
            if not missed:
                return
            # somebody else has changed these meanwhile
            self._entries.read(missed)

    def _has_run(self, key: str) -> bool:
        stored = self._entries.stored.get(key)
        return stored is not None and stored.entry.total_run_count > stored.run

    def _write(self, keys: list[str]) -> list[str]:
        """Write some; return those that somebody else has changed."""
        known = self._entries.stored
        becoming = {key: after_run(known[key]) for key in keys}
        missed = []
        for done, (key, each) in zip(self._hashes.write(becoming, known), becoming.items(), strict=True):
            if done:
                self._entries.keep(key, each)
            else:
                missed.append(key)
        return missed

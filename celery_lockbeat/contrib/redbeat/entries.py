"""What one beat knows of the entries in RedBeat's Redis, and what becomes of those that are lost there or cannot be read.

Promises: an entry that was added, changed, deleted or rescheduled is taken over as it is now, and its runs are counted on only
where it is still the same. A broken entry is skipped, and complained about. When Redis has lost its data, static entries are
put back as they were last seen, and a log line names the others.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from celery_lockbeat.beat.trouble import Complaints
from celery_lockbeat.contrib.redbeat.hashes import AT_ONCE, Hashes, Look
from celery_lockbeat.contrib.redbeat.statics import Statics
from celery_lockbeat.contrib.redbeat.stored import Stored, loaded

__all__ = ["Entries"]

logger: Final = logging.getLogger("celery_lockbeat.beat")

#: So many entries are named in one line.
NAMED_AT_MOST: Final = 100


class Entries:
    """The entries that are stored; ``make`` is their class. All methods raise what redis-py does."""

    def __init__(self, app: Any, make: Any, hashes: Hashes, statics: Statics, complaints: Complaints) -> None:
        self._app = app
        self._make = make
        self._hashes = hashes
        self._statics = statics
        self._complaints = complaints
        #: by the keys of their hashes
        self.stored: dict[str, Stored] = {}
        self._gone: dict[str, Stored] = {}  # what has gone since the look before the last one

    def keep(self, key: str, stored: Stored) -> None:
        """Keep an entry as it is in Redis now."""
        stored.entry.lockbeat_stored = self.stored[key] = stored

    # -- all of them ---------------------------------------------------------------------------------------------------

    def follow(self, look: Look) -> None:
        """Follow what was added, removed, or made due earlier; all else is seen when it is due."""
        scores, has_statics, _ = look
        gone = self._let_go(scores)
        # without static entries there is no such set; then several that are gone at once must do
        if not has_statics if self._statics.are_named else len(gone) > 1 and not scores:
            scores |= self._make_up_for(gone, scores)
        known = self.stored
        changed = self._hashes.missing(self._statics.keys & scores.keys() & known.keys())
        for key, score in scores.items():
            stored = known.get(key)
            if stored is None or stored.score < 0 <= score or score < stored.score:
                changed.append(key)
            else:
                # it has run, most often: to be read when it is due again
                stored.score = score
        self.read(changed, anew=True)

    def _let_go(self, scores: Mapping[str, float]) -> dict[str, Stored]:
        """Let go of what has no score any more; return it, and what had gone before, since the look before the last one."""
        before, self._gone = self._gone, {key: self.stored.pop(key) for key in self.stored.keys() - scores.keys()}
        return before | self._gone

    def _make_up_for(self, gone: Mapping[str, Stored], scores: Mapping[str, float]) -> dict[str, float]:
        """Put the static entries back into a Redis that has lost its data, as they were; return their scores.

        What has been deleted while Redis has its data stays deleted, as with RedBeat, until the next start of a beat.
        """
        gone = {key: each for key, each in gone.items() if key not in scores}
        static = {key: each for key, each in gone.items() if key in self._statics.keys}
        for key, stored in static.items():
            self._hashes.put_back(key, stored)
        self._statics.store_missing({*scores, *static})
        if static:
            names = _listed(each.entry.name for each in static.values())
            logger.warning("RedBeat's Redis has lost its data: the static entries are put back: %s", names)
        if dynamic := _listed(each.entry.name for key, each in gone.items() if key not in static):
            doubt = "" if self._statics.are_named else ", unless somebody has deleted them all"
            text = "RedBeat's Redis has lost its data%s: these entries are gone, save them again: %s"
            logger.error(text, doubt, dynamic)
        self.stored.update(static)
        self._gone = {}
        return {key: stored.score for key, stored in static.items()}

    # -- some of them --------------------------------------------------------------------------------------------------

    def read(self, keys: Sequence[str], *, anew: bool = False) -> None:
        """Bring these up to date. ``anew``: with new entries, so that each of them is planned anew."""
        rest = iter(keys)
        while some := list(islice(rest, AT_ONCE)):
            scores, found = self._hashes.fetch(some)
            for key, score, fields in zip(some, scores, found, strict=True):
                self._take_in(key, score, fields, anew=anew)

    def _take_in(self, key: str, score: float | None, fields: Any, *, anew: bool) -> None:
        known = self.stored.get(key)
        if known is not None and known.fields == fields and score is not None and not anew:
            known.score = score
            return
        self.stored.pop(key, None)
        if score is None:
            if known is not None:
                # deleted, or lost: the next look shows which
                self._gone[key] = known
        elif not isinstance(fields, Exception) and not fields[0]:
            self._do_without_definition(key, score, known)
        else:
            self._load(key, score, fields, known, anew=anew)

    def _do_without_definition(self, key: str, score: float, known: Stored | None) -> None:
        """Put a static entry back that has lost its hash; take another off the sorted set, unless it may be being written."""
        if known is not None and key in self._statics.keys:
            self.stored[key] = known
            if self._hashes.put_back(key, known):
                logger.warning("static entry %r was gone from Redis, and is put back", known.entry.name)
            return
        if score <= self._app.now().timestamp() and f"entry {key}" in self._complaints:
            # as RedBeat does
            self._hashes.forget(key)
        self._complaints.make(f"entry {key}", "entry %r in Redis has no definition", key)

    def _load(self, key: str, score: float, fields: Any, known: Stored | None, *, anew: bool) -> None:
        try:
            stored = loaded(self._make, self._app, key, score, fields)
        except Exception as exc:  # noqa: BLE001  whatever is in there
            self._complaints.make(
                f"entry {key}", "entry %r in Redis is skipped, for it is broken: %s: %s", key, type(exc).__name__, exc
            )
            return
        entry = stored.entry
        if known is not None and known.key == stored.key:
            if known.fields[0] == fields[0] and not anew:
                # nothing but a run: the agenda keeps its entry
                entry = stored.entry = known.entry
            # the runs that the store of the ticks knows count, not those that are written down here
            entry.last_run_at, entry.total_run_count = known.entry.last_run_at, known.entry.total_run_count
        self.keep(key, stored)


def _listed(names: Iterable[str]) -> str:
    """List names, but not thousands."""
    listed = sorted(names)
    rest = [f"and {len(listed) - NAMED_AT_MOST} more"] if len(listed) > NAMED_AT_MOST else []
    return ", ".join([*map(repr, listed[:NAMED_AT_MOST]), *rest])

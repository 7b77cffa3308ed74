"""An entry as RedBeat's Redis has it, and its key in the store of the ticks: ``<key of its hash>@<life>.<epoch>``.

A life begins where a hash does, or where plain RedBeat has run; an epoch with each meta that is not ours. Both stand in a field
of our own in the hash, the mark: ``<life> <epoch> <digest of the meta that goes with them>``. RedBeat deletes it with the hash.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import MINYEAR, datetime
from typing import Any, Final
from uuid import uuid4

from redbeat.decoder import RedBeatJSONEncoder

from celery_lockbeat.contrib.policies import policy_in

__all__ = ["KEY", "MARK", "Stored", "after_run", "first_mark", "life_of", "loaded"]

#: The name of the mark in a hash.
MARK: Final = "lockbeat"

#: The key of a hash, and the life.
KEY: Final = re.compile(r"(.*)@([0-9a-f]{16})\.[0-9a-f]{16}", re.DOTALL)


@dataclass(slots=True)
class Stored:
    """An entry with what Redis has of it. ``key`` is its name in our store, ``run`` the run that its meta is of.

    ``fields`` are its definition, its meta and its mark.
    """

    entry: Any
    key: str
    fields: tuple[str, str, str]
    score: float
    run: int


def loaded(make: Any, app: Any, key: str, score: float, fields: Any) -> Stored:
    """Make the entry of a hash; ``make`` is the class of entries. Raises whatever is wrong with it."""
    if isinstance(fields, Exception):
        raise fields
    definition, meta, mark = fields
    runs = make.decode_meta(meta)
    life, epoch, digest = mark.split()
    if digest != _digest(meta):
        epoch = _digest(mark + (meta or ""))
        if "total_run_count" in runs:
            # plain RedBeat has run: what we had claimed before, it has seen due too
            life = epoch
    entry = make(app=app, **{**make.decode_definition(definition), **runs})
    if not entry.task or entry.schedule is None:
        raise ValueError("it has no task or no schedule")
    # RedBeat's own idea of the last run of what has never run
    entry.last_run_at = runs["last_run_at"] or datetime(MINYEAR, 1, 2, tzinfo=entry.schedule.tz)
    entry.last_run_at.isoformat()
    entry.lockbeat_policy = policy_in(entry.options, owner=f"entry {entry.name!r}")
    return Stored(entry, f"{key}@{life}.{epoch}", fields, score, int(runs.get("total_run_count") or 0))


def after_run(stored: Stored) -> Stored:
    """Return what Redis should have of an entry that has run."""
    entry = stored.entry
    meta = json.dumps(
        {"last_run_at": entry.last_run_at, "total_run_count": entry.total_run_count}, cls=RedBeatJSONEncoder
    )
    life, _, epoch = stored.key.rpartition("@")[2].partition(".")
    mark = f"{life} {epoch} {_digest(meta)}"
    return Stored(entry, stored.key, (stored.fields[0], meta, mark), float(entry.score), run=entry.total_run_count)


def first_mark(meta: str | None) -> str:
    """Begin a life with this meta."""
    life = uuid4().hex[:16]
    return f"{life} {life} {_digest(meta)}"


def life_of(key: str) -> str:
    """Return the life in a key of our store."""
    return key.rpartition("@")[2].partition(".")[0]


def _digest(text: str | None) -> str:
    return hashlib.sha1((text or "").encode(), usedforsecurity=False).hexdigest()[:16]

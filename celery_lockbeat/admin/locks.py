"""The locks that are held, in the admin: by whom, since when, who waits; whoever may change them can take one away."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from django.contrib import admin

from celery_lockbeat.admin.listed import Act, Listed, Row
from celery_lockbeat.admin.words import at, shown
from celery_lockbeat.contrib.django.models import Lock
from celery_lockbeat.control.locks import free_lock
from celery_lockbeat.exceptions import LockbeatError, StoreUnavailable
from celery_lockbeat.membership.used import stores_in_use
from celery_lockbeat.observe.vocabulary import took
from celery_lockbeat.stores.base import LISTED_AT_MOST, LiveLock

__all__ = ["LockAdmin"]

WARNS: Final = (
    "Each is taken from who holds it. A run that is still going on under it goes on until it ends or is told, at its next renewal, "
    "that its lock is lost; until then another may run beside it."
)


def _value_of(lock: LiveLock) -> str:
    # what is kept held after its run has no holder that it could be taken from
    return json.dumps([lock.key, lock.holder]) if lock.holder else ""


def _key_and_holder(value: str) -> tuple[str, str]:
    try:
        key, holder = json.loads(value)
    except (ValueError, TypeError) as exc:
        raise LockbeatError("What is to be released is no lock of this list: nothing was done.") from exc
    return str(key), str(holder)


def _named(value: str) -> str:
    try:
        return _key_and_holder(value)[0]
    except LockbeatError as exc:
        return str(exc)


def _release(app: Any, values: Sequence[str], _asked: Mapping[str, Any], who: str) -> Iterator[str | LockbeatError]:
    for value in values:
        key, holder = _key_and_holder(value)
        freed = free_lock(app, key, holder=holder, who=who)
        if not freed:
            yield LockbeatError(f"{key!r} is not held by that holder any more: nothing was done.")
        for _, lock in freed:
            yield f"{key!r} is free; it was held by {lock.description}."


@admin.register(Lock)
class LockAdmin(Listed):
    """Those first that are held for longest."""

    columns = ("key", "held by", "since", "lease left", "token", "waiting")
    finds = "a part of a key or of a holder"
    acts = (Act("release", "Release selected locks", "Yes, take them away", WARNS, _release, _named, is_grave=True),)

    def listed(self, app: Any, wanted: str) -> tuple[Sequence[Row], Sequence[str]]:
        """Return the locks of each store of the app."""
        part, said = wanted.casefold(), []
        found: dict[tuple[str, str, str], LiveLock] = {}
        stores = stores_in_use(app)
        for used in stores:
            try:
                held = used.store.locks.held(limit=LISTED_AT_MOST)
                if len(held) >= LISTED_AT_MOST:
                    said.append(f"More than {LISTED_AT_MOST} locks are held in {used.name}: search for a key as it is.")
                    held += used.store.locks.held(wanted) if wanted else []
            except StoreUnavailable as exc:
                said.append(f"{used.name}: {exc}")
                continue
            found |= {(used.name, lock.key, lock.holder): lock for lock in held if _contains(lock, part)}
        # the token is made of the time
        sorted_ = sorted(found.items(), key=lambda each: each[1].token)
        # where there is but one store, nobody needs its name with each
        is_one = len(stores) == 1
        return [_row_of(lock, "" if is_one else store) for (store, _, _), lock in sorted_], said


def _contains(lock: LiveLock, part: str) -> bool:
    return part in lock.key.casefold() or part in lock.description.casefold()


def _row_of(lock: LiveLock, store: str) -> Row:
    holder = lock.description or lock.holder or "nobody: it is kept held after its run"
    waiting = str(lock.waiting) if lock.waiting else ""
    where = f"{holder}, in {store}" if store else holder
    cells = (shown(where), at(lock.held_since), took(max(lock.remaining, 0.0)), str(lock.token), waiting)
    return Row(_value_of(lock), shown(lock.key), cells)

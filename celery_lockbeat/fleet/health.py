"""Whether this host's beat ticks, and whether its worker can lock: for a probe that wants an exit status and one line.

Promises: nothing but one lock's key of this host is written, and no task is imported for it; a beat or worker that is missing,
stopped or frozen is not well, however long ago that was. What is told of both is what the store has heard of them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from celery_lockbeat.beat.announcements import told_by
from celery_lockbeat.fleet.members import home_store_of, place_of
from celery_lockbeat.options import AppOptions, LockOptions
from celery_lockbeat.stores import Lease, Store, stores_of

__all__ = ["Health", "health_of"]

#: Seconds for which the probe's lock is held, should the probe die.
PROBES_FOR: Final = 5.0


@dataclass(frozen=True)
class Health:
    """What is well and what is not, each in a few words."""

    well: Sequence[str]
    ill: Sequence[str]

    def __str__(self) -> str:
        return "; ".join([f"not well: {each}" for each in self.ill] or [f"well: {each}" for each in self.well])


def health_of(app: Any, *, beat: bool, worker: bool, max_silence: float) -> Health:
    """Look at the beat and the worker of this host, as they are asked for, or else at what there is of both.

    Raises StoreUnavailable, ConfigurationError.
    """
    host, store = socket.gethostname(), home_store_of(app)
    silent: dict[str, float] = {}
    for member in store.announced(str(app.main or ""), "member"):
        told = told_by(member)
        if told.get("host") == host:
            kind = str(told.get("kind"))
            silent[kind] = min(silent.get(kind, member.silent_for), member.silent_for)
    asked = [kind for kind, wanted in (("beat", beat), ("worker", worker)) if wanted] or sorted(silent)
    well, ill = [], [] if asked else [f"neither a beat nor a worker of host {host} is heard of"]
    for kind in asked:
        if kind not in silent:
            ill.append(f"no {kind} of host {host} is heard of")
        elif silent[kind] > max_silence:
            ill.append(f"the {kind} of host {host} was heard of {silent[kind]:.0f} s ago")
        else:
            well.append(f"the {kind} of host {host} was heard of {silent[kind]:.1f} s ago")
    if "worker" in asked:
        for place, each in _stores(app):
            _take_and_release(each, f"lockbeat-health:{host}")
            well.append(f"locks are granted in {place}")
    return Health(well, ill)


def _stores(app: Any) -> list[tuple[str, Store]]:
    """Return the stores of locks that the settings name, each once, by what to call them."""
    options, locks = AppOptions.read(app.conf), LockOptions.read(app.conf, {}, owner="the app")
    names = [(locks.driver, locks.connection), *(("redis", name) for name in options.connections or ())]
    found = {stores_of(app).choose(*name)[0]: place_of(options.connection(*name)) for name in names}
    return [(place, store) for store, place in found.items()]


def _take_and_release(store: Store, key: str) -> None:
    """Take a lock and give it back; that another probe has it shows as well that locks are granted. Raises StoreUnavailable."""
    granted = store.acquire(key, holder=f"probe-{os.getpid()}-{os.urandom(4).hex()}", ttl=PROBES_FOR)
    if isinstance(granted, Lease):
        store.release(granted)

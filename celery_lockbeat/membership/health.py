"""Whether a beat or a worker is well, for probes: a file that each process touches, and what the store has heard of this host's.

Promises: a process that lives touches ``lockbeat_health_file`` every second, also when it has nothing to do. :func:`health_of`
writes nothing but one lock's key of this host, and imports no task for it. By both, a beat or worker that is missing, stopped
or frozen is not well, however long ago that was.

Not promised: that its pool works or its broker answers; a probe that ends workers for a broker that is away ends their runs.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.membership.identity import place_of
from celery_lockbeat.membership.members import fields_of
from celery_lockbeat.options import AppOptions, LockOptions
from celery_lockbeat.stores import Lease, Store, home_store_of, name_of, stores_of

__all__ = ["TOUCHED_EVERY", "Health", "HealthFile", "health_of"]

logger: Final = logging.getLogger("celery_lockbeat")

#: Seconds between two touches of the file.
TOUCHED_EVERY: Final = 1.0

#: Seconds for which the probe's lock is held, should the probe die.
PROBES_FOR: Final = 5.0


# -- the file ----------------------------------------------------------------------------------------------------------


class HealthFile:
    """``lockbeat_health_file`` of one process, if it is set: its time of change is when the process was well last.

    Raises ConfigurationError where it cannot be written when it is made; later that is a warning, once.
    """

    def __init__(self, app: Any, kind: str) -> None:
        options = AppOptions.read(app.conf)
        template = options.health_file
        path = template and template.format(kind=kind, host=socket.gethostname(), pid=os.getpid())
        self._path: Final = Path(path) if path else None
        self._setting: Final = options.spell("lockbeat_health_file")
        self._next = 0.0
        self._complained = False
        if self._path is not None:
            try:
                self._touch(self._path)
            except OSError as exc:
                allowed = "the path of a file that can be written, its directory is there"
                raise ConfigurationError(f"{self._setting} is {template!r} ({exc}); allowed: {allowed}") from exc

    def touch(self) -> None:
        """Say that this process is well; at most once a second."""
        if self._path is None or monotonic() < self._next:
            return
        self._next = monotonic() + TOUCHED_EVERY * 0.9
        try:
            self._touch(self._path)
        except OSError as exc:
            if not self._complained:
                logger.warning("%s %s cannot be touched: %s", self._setting, self._path, exc)
            self._complained = True
        else:
            self._complained = False

    @staticmethod
    def _touch(path: Path) -> None:
        try:
            os.utime(path)
        except FileNotFoundError:
            path.touch()


# -- the probe ---------------------------------------------------------------------------------------------------------


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
    host = socket.gethostname()
    silent = _silent_for(app, host)
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


def _silent_for(app: Any, host: str) -> dict[str, float]:
    """Return for each kind of member that this host has the seconds since one was heard of."""
    silent: dict[str, float] = {}
    for announcement in home_store_of(app).announcements.announced(name_of(app), "member"):
        fields = fields_of(announcement)
        if fields.get("host") == host:
            kind = str(fields.get("kind"))
            silent[kind] = min(silent.get(kind, announcement.silent_for), announcement.silent_for)
    return silent


def _stores(app: Any) -> list[tuple[str, Store]]:
    """Return the stores of locks that the settings name, each once, by what to call them."""
    options, locks = AppOptions.read(app.conf), LockOptions.read(app.conf, {}, owner="the app")
    names = [(locks.driver, locks.connection), *(("redis", name) for name in options.connections or ())]
    found = {stores_of(app).choose(*name)[0]: place_of(options.connection(*name)) for name in names}
    return [(place, store) for store, place in found.items()]


def _take_and_release(store: Store, key: str) -> None:
    """Take a lock and give it back; that another probe has it shows as well that locks are granted. Raises StoreUnavailable."""
    granted = store.locks.acquire(key, holder=f"probe-{os.getpid()}-{os.urandom(4).hex()}", ttl=PROBES_FOR)
    if isinstance(granted, Lease):
        store.locks.release(granted)

"""What ``watch`` and the page ask the store, by a thread of its own: so keys are answered while the store is not.

Promises: one question each half second, by turns: what is new in the journal, and how beats and locks stand. A question that costs
much is asked less often. A store that is away is asked again; what was written meanwhile is read then.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from functools import partial
from heapq import nlargest
from typing import Any, Final

from celery_lockbeat.contrib.schedulers import (
    announced_schedulers,
    are_kept_elsewhere,
    entries_of,
    known_schedules,
    names_of,
)
from celery_lockbeat.exceptions import LockbeatError
from celery_lockbeat.insight.model import Model
from celery_lockbeat.insight.redaction import redactor
from celery_lockbeat.insight.times import time_of
from celery_lockbeat.journal import Record, follow, read
from celery_lockbeat.membership.used import UsedStore, stores_in_use
from celery_lockbeat.options import AppOptions
from celery_lockbeat.stores import name_of
from celery_lockbeat.stores.base import Beats

__all__ = ["Feed"]

#: Seconds between two questions, and between two of the same kind about beats or locks; and the part of a core, and of the time,
#: that each of these may take: locks are looked for in all keys of a server.
ASKED_EVERY: Final = 0.5
SNAPSHOT_EVERY: Final = 2.0
SHARE_OF_CORE: Final = 0.01
SHARE_OF_TIME: Final = 0.1

#: Seconds between two looks at the schedules that RedBeat or Django keep.
SCHEDULES_EVERY: Final = 10.0

#: So many records are read at the start, and so many wait for a view that is paused.
READ: Final = 20_000
LOCKS: Final = 1_000

#: Of so many keys, those for which most wait, it is asked who does, and of so many of these.
LINES: Final = 30
WAITERS: Final = 10

_Change = Callable[[Model], object]


class Feed:
    """Tells changes of the model. ``ring`` is called from its thread when there are some.

    While nobody ``looks`` nothing is asked.
    """

    def __init__(self, app: Any, ring: Callable[[], object], looks: Callable[[], bool] = lambda: True) -> None:
        self._app = app
        self._ring = ring
        self._looks = looks
        self._clean = redactor(app)
        self._stores: list[UsedStore] = stores_in_use(app)
        self._keeps_elsewhere: Final = are_kept_elsewhere(app)
        self._writes: Final = bool(AppOptions.read(app.conf).journal)
        self._records: deque[Record] = deque(maxlen=READ)
        self._changes: dict[str, _Change] = {}
        self._is_new = threading.Lock()
        self._position: str | None = None
        self._followed: Iterator[Record | None] | None = None
        self._names: dict[str, str] = {}
        self._away: dict[str, datetime] = {}
        self._ended = threading.Event()

    # -- the view's thread ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to ask."""
        threading.Thread(target=self._run, name="lockbeat-watch", daemon=True).start()

    def end(self) -> None:
        """Ask no more."""
        self._ended.set()

    def bring(self, model: Model) -> bool:
        """Bring a model up to what is known; False: nothing is new."""
        with self._is_new:
            records, self._records = self._records, deque(maxlen=READ)
            changes, self._changes = self._changes, {}
        if records:
            model.take_records(records)
        for change in changes.values():
            change(model)
        return bool(records or changes)

    def ask_all(self) -> None:
        """Ask everything, at once. Raises StoreUnavailable."""
        self._ask_journal()
        self._ask_beats()
        self._ask_schedules()
        for used in self._stores:
            self._ask_locks(used)

    # -- its own -------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        snapshots: dict[str, Callable[[], object]] = {"beats": self._ask_beats}
        if self._keeps_elsewhere:
            snapshots["schedules"] = self._ask_schedules
        for used in self._stores:
            snapshots[f"locks of {used.name}"] = partial(self._ask_locks, used)
        due = dict.fromkeys(snapshots, 0.0)
        asks_journal = True
        while not self._ended.is_set():
            if not self._looks():
                self._ended.wait(ASKED_EVERY)
                continue
            began, cost = time.monotonic(), time.thread_time()
            which = min(due, key=due.__getitem__)
            if asks_journal or due[which] > began:
                self._answered("journal", self._ask_journal)
            else:
                pause = SCHEDULES_EVERY if which == "schedules" else SNAPSHOT_EVERY
                if self._answered(which, snapshots[which]):
                    cost, took = time.thread_time() - cost, time.monotonic() - began
                    pause = max(pause, cost / SHARE_OF_CORE, took / SHARE_OF_TIME)
                due[which] = began + pause
            asks_journal = not asks_journal
            self._ended.wait(ASKED_EVERY)

    def _answered(self, what: str, ask: Callable[[], object]) -> bool:
        began = datetime.now(timezone.utc)
        try:
            ask()
        except Exception as exc:  # noqa: BLE001  whatever it was, the view goes on, and shows it
            text = str(exc) if isinstance(exc, LockbeatError) else f"{type(exc).__name__}: {exc}"
            why, since = self._clean(text), self._away.setdefault(what, began)
            self._tell(f"whether {what}", lambda model: model.away.update({what: (why, since)}))
            return False
        if self._away.pop(what, None) is not None:
            self._tell(f"whether {what}", lambda model: model.away.pop(what, None))
        return True

    def _tell(self, what: str, change: _Change) -> None:
        with self._is_new:
            self._changes[what] = change
        self._ring()

    def _ask_journal(self) -> None:
        if not self._writes:
            return
        if self._position is None:
            records = read(self._app, limit=READ)
            # of an empty journal all that comes is new
            self._position = records[-1].position if records else None
            self._take(records)
            self._tell("read", _set_read)
        if self._followed is None and self._position is not None:
            self._followed = follow(self._app, after=self._position, wait=lambda _: None)
        try:
            self._take(_up_to_now(self._followed)) if self._followed is not None else None
        except LockbeatError:
            self._followed = None  # a generator ends with what it raises: another goes on where it was
            raise

    def _take(self, records: list[Record]) -> None:
        if not records:
            return
        self._position = records[-1].position
        with self._is_new:
            self._records.extend(records)
        self._ring()

    def _ask_beats(self) -> None:
        store, app = self._stores[0].store, self._app
        beats = store.beats.status(name_of(app))
        keys = {entry.name for entry in beats.entries}
        if unknown := keys - self._names.keys():
            self._names |= names_of(app, sorted(unknown), announced_schedulers(app, store))
        names, times = dict(self._names), _times_of(beats, app)
        flags = store.controls.flags(name_of(app))
        self._tell("beats", lambda model: model.take_beats(beats, names, times, flags))
        members = store.announcements.announced(name_of(app), "member")
        self._tell("members", lambda model: model.take_members(members))

    def _ask_schedules(self) -> None:
        if self._keeps_elsewhere:
            tasks, known = entries_of(self._app).tasks, known_schedules(self._app)
            schedules, policies = ({name: each[at] for name, each in known.items()} for at in (0, 1))
            self._tell("schedules", lambda model: model.take_schedules(tasks, schedules, policies))

    def _ask_locks(self, used: UsedStore) -> None:
        at, held = time.monotonic(), used.store.locks.held(limit=LOCKS)
        waiting = {lock.key: lock.waiting for lock in held if lock.waiting}
        longest = nlargest(LINES, waiting, key=waiting.__getitem__)
        lines = {key: used.store.locks.line(key, limit=WAITERS) for key in longest}
        self._tell(f"locks of {used.name}", lambda model: model.take_locks(used.name, held, lines, at))


def _up_to_now(followed: Iterator[Record | None]) -> list[Record]:
    found = []
    for record in followed:
        if record is None:
            break
        found.append(record)
    return found


def _times_of(beats: Beats, app: Any) -> Mapping[str, datetime | None]:
    return {entry.name: time_of(entry.state.last_run_at, app) for entry in beats.entries}


def _set_read(model: Model) -> None:
    model.is_read = True

"""The entries of an app as objects: what each is, when it is due, and what can be asked of it.

>>> entry = schedules_of(app)["report-job"]  # doctest: +SKIP
>>> entry.pause(note="the database moves")  # doctest: +SKIP

Nothing here talks to a beat: what is asked for is written into the store that the beats share, and any of them obeys.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Final
from uuid import uuid4

from celery.utils import uuid

from celery_lockbeat.beat.agenda import flag_of
from celery_lockbeat.beat.controls import DUES_AT_MOST, Wanted, dues_in
from celery_lockbeat.contrib.definition import Definition
from celery_lockbeat.contrib.schedulers import definition_of, static_entries
from celery_lockbeat.control.acts import Acts, somebody
from celery_lockbeat.control.described import described
from celery_lockbeat.control.locks import free_lock
from celery_lockbeat.exceptions import ConfigurationError, LockbeatError, StoreUnavailable
from celery_lockbeat.insight.entries import NamedEntry, named_entries
from celery_lockbeat.insight.planned import Plan, Plans
from celery_lockbeat.insight.times import time_of
from celery_lockbeat.journal.records import Said
from celery_lockbeat.options import AppOptions
from celery_lockbeat.schedules.when import bound
from celery_lockbeat.stores import name_of
from celery_lockbeat.stores.base import Asked, Claim, Flag, LiveLock, Passed
from celery_lockbeat.tasks.task import LockedTask

__all__ = ["Backfill", "ScheduledEntry", "Schedules", "schedules_of"]


def schedules_of(app: Any) -> Schedules:
    """Return the entries of an app, as the beats know them now, by their names. Raises StoreUnavailable, ConfigurationError."""
    app.loader.import_default_modules()
    app.finalize()
    acts = Acts(app)
    known = named_entries(app, acts.store)
    listed = {each.name for each in known if each.beats}
    entries: dict[str, ScheduledEntry] = {}
    for each in known:
        # what it was before it was rescheduled, or before another start of the beats
        if each.beats or each.name not in listed:
            entries[each.name] = ScheduledEntry(acts, each.name, flag_of(each.entry.name), each)
    for name in static_entries(app):
        entries.setdefault(name, ScheduledEntry(acts, name, flag_of(name), None))
    return Schedules(acts, entries)


class Schedules(Mapping[str, "ScheduledEntry"]):
    """Entries by their names, and what can be asked of many of them at once: of all whose names match a pattern."""

    def __init__(self, acts: Acts, entries: Mapping[str, ScheduledEntry]) -> None:
        self._acts = acts
        self._entries = dict(sorted(entries.items()))

    def __getitem__(self, name: str) -> ScheduledEntry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def matching(self, pattern: str = "*") -> Schedules:
        """Return those whose names match a pattern of the shell's, such as ``report-*``."""
        matches = re.compile(fnmatch.translate(pattern)).match
        return Schedules(self._acts, {name: each for name, each in self._entries.items() if matches(name)})

    def only(self, *names: str) -> Schedules:
        """Return some of these. Raises KeyError."""
        return Schedules(self._acts, {name: self._entries[name] for name in names})

    def flags(self) -> dict[str, Flag]:
        """Return what is paused or to be skipped, by the names of entries."""
        flags = {flag.name: flag for flag in self._acts.store.controls.flags(name_of(self._acts.app), limit=10**6)}
        return {name: flags[each.flag] for name, each in self._entries.items() if each.flag in flags}

    def pause(self, *, until: datetime | None = None, note: str | None = None, who: str | None = None) -> None:
        """Have no tick of any of these published; see :meth:`ScheduledEntry.pause`."""
        self._acts.pause(self._names(), until=until, note=note, who=who)

    def resume(self, *, catchup: str | None = None, who: str | None = None) -> list[str]:
        """Resume those of these that are paused, and return their names; see :meth:`ScheduledEntry.resume`."""
        names = self._names()
        return sorted(names[flag] for flag in self._acts.resume(names, catchup=catchup, who=who))

    def skip(self, count: int, *, note: str | None = None, who: str | None = None) -> None:
        """Have the next ticks of each of these passed over; see :meth:`ScheduledEntry.skip`."""
        self._acts.skip(self._names(), count, note=note, who=who)

    def _names(self) -> dict[str, str]:
        return {each.flag: name for name, each in self._entries.items()}


@dataclass(frozen=True)
class Backfill:
    """A backfill that is asked for: of ``total`` ticks, ``published`` so many."""

    name: str
    entry: str
    since: datetime
    until: datetime
    total: int
    published: int
    at_once: int
    reverse: bool
    cancelled: bool
    who: str

    def fields(self) -> dict[str, Any]:
        """Return it as JSON can write it."""
        told = dict(vars(self))
        return told | {"since": self.since.isoformat(), "until": self.until.isoformat()}


class ScheduledEntry:
    """One entry, by the ``name`` that its user gave it. All methods raise StoreUnavailable, and ConfigurationError for a wrong word."""

    def __init__(self, acts: Acts, name: str, flag: str, known: NamedEntry | None) -> None:
        self.name: Final = name
        self.flag: Final = flag
        self._acts = acts
        self._known = known

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    # -- what it is ----------------------------------------------------------------------------------------------------

    @property
    def beats(self) -> int:
        """How many beats that run list it."""
        return 0 if self._known is None else self._known.beats

    @property
    def known(self) -> NamedEntry | None:
        """What the store knows of it; None: no beat has listed it yet."""
        return self._known

    @property
    def task(self) -> str | None:
        """The name of its task; None: nobody here can tell."""
        definition = self.definition()
        return None if definition is None else definition.task

    def definition(self) -> Definition | None:
        """Return what it is, as whoever keeps it says; None: nobody here can tell."""
        return definition_of(self._acts.app, self.name)

    def plan(self) -> Plan | None:
        """Return when it is due, and the policy of its ticks; None: nobody here can tell."""
        definition = self.definition()
        if definition is None:
            return None
        return Plans(self._acts.app).of(self.name, definition.schedule, definition.policy)

    def flag_now(self) -> Flag:
        """Return what is wanted of it now."""
        return next(iter(self._acts.store.controls.flags(self._app_name, [self.flag])), Flag(self.flag))

    def next(self, count: int = 10, *, after: datetime | None = None) -> list[datetime]:
        """Return when it is due next by its schedule and its policy; fewer, where that cannot be told, or there are no more."""
        plan, definition = self.plan(), self.definition()
        if plan is None or definition is None:
            return []
        now = datetime.now(timezone.utc)
        at = after or now
        state = None if self._known is None else self._known.entry.state
        left = plan.runs_left(0 if state is None else state.total_run_count)
        count = count if left is None else min(count, left)
        if after is None and state is not None and hasattr(definition.schedule, "run_every"):
            at = time_of(state.last_run_at, self._acts.app) or at
        found: list[datetime] = []
        while len(found) < count and (due := plan.next(at)) is not None:
            # what is overdue is due now
            at = max(due, now) if after is None and not found else due
            found.append(at)
        return found

    def describe(self, runs: int = 10) -> dict[str, Any]:
        """Return what it is, what is wanted of it, when it is due, and how it has fared, as JSON can write it."""
        return described(self, self._acts.app, runs)

    # -- flags ---------------------------------------------------------------------------------------------------------

    def pause(self, *, until: datetime | None = None, note: str | None = None, who: str | None = None) -> None:
        """Have none of its ticks published, ``until`` an aware time or until it is resumed.

        When this returns none is published any more, but for what is asked for by :meth:`run` and :meth:`backfill`. ``who``: user@host
        by default. To pause again changes what is said, and keeps what was passed over.
        """
        self._acts.pause({self.flag: self.name}, until=until, note=note, who=who)

    def resume(self, *, catchup: str | None = None, who: str | None = None) -> bool:
        """Have its ticks published again; False: it is not paused.

        ``catchup``: what becomes of the ticks that were passed over: ``latest`` (the last one runs), ``all`` (each, oldest
        first, the last 100), ``none``; None: as the entry says, ``latest`` by default.
        """
        return bool(self._acts.resume({self.flag: self.name}, catchup=catchup, who=who))

    def skip(self, count: int, *, note: str | None = None, who: str | None = None) -> None:
        """Have its next ``count`` ticks passed over; 0: none any more."""
        self._acts.skip({self.flag: self.name}, count, note=note, who=who)

    # -- ticks of their own --------------------------------------------------------------------------------------------

    def run(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        note: str | None = None,
        who: str | None = None,
    ) -> Claim:
        """Have a beat publish one tick of it now, though it is paused; when it is due next stays as it is.

        ``args`` and ``kwargs`` in place of its own. The tick is numbered like all others, of the kind "manual", and known by the
        ``task_id`` of what is returned. Raises LockbeatError where no beat that runs lists the entry.
        """
        known = self._listed()
        said = Said(who or somebody(), None, note)
        details: dict[str, Any] = {"origin": "manual", "who": said.who}
        if args is not None:
            details["args"] = list(args)
        if kwargs is not None:
            details["kwargs"] = dict(kwargs)
        try:
            json.dumps(details)
        except (TypeError, ValueError) as exc:
            raise ConfigurationError(
                f"args and kwargs are {args!r} and {kwargs!r}; allowed: what JSON can write"
            ) from exc
        claim = self._claim_for_the_beats(known, details)
        more = {"task_id": claim.task_id, "run": claim.state.total_run_count, "reason": note}
        self._acts.record("entry_run", {self.flag: self.name}, said, **more)
        return claim

    def _listed(self) -> NamedEntry:
        if self._known is None or not self._known.beats:
            raise LockbeatError(f"no beat that runs lists {self.name!r}")
        return self._known

    def _claim_for_the_beats(self, known: NamedEntry, details: Mapping[str, Any]) -> Claim:
        """Claim a tick of now, and hand it over at once: to whichever beat is first, and knows the message to make of it.

        So the run is numbered like all others, and published at least once whatever dies now. Its state keeps the time of the
        last tick: the beats find the next one due when it was.
        """
        beats, replica, state = self._acts.store.beats, f"command-{uuid()}", known.entry.state
        ttl = AppOptions.read(self._acts.app.conf).claim_ttl
        while True:
            due = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            becomes = replace(state, total_run_count=state.total_run_count + 1)
            claim = Claim(uuid(), known.entry.name, becomes, {"due": due, **details})
            (refusal,) = beats.claim(self._app_name, replica, [claim], ttl=ttl).refusals
            if refusal is None:
                break
            # it names no flag, so it is not passed over
            assert not isinstance(refusal, Passed)  # noqa: S101
            if refusal.total_run_count <= state.total_run_count:
                raise LockbeatError(f"too many ticks of {self.name!r} wait to be published")
            state = refusal  # a beat was faster
        with contextlib.suppress(StoreUnavailable):  # then it is overdue when its ttl is over
            beats.settle(self._app_name, replica, [], handed_over=[claim.task_id])
        return claim

    def dues(self, since: datetime, until: datetime) -> list[datetime]:
        """Return when it was due between two aware times, both included, by its schedule as it is now.

        Raises ConfigurationError where that cannot be told, or is too much.
        """
        for what, at in (("since", since), ("until", until)):
            if not isinstance(at, datetime) or at.tzinfo is None:
                raise ConfigurationError(f"{what} is {at!r}; allowed: an aware datetime")
        if until < since:
            raise ConfigurationError(f"until is {until.isoformat()}; allowed: a time after since, {since.isoformat()}")
        definition = self.definition()
        if definition is None:
            raise LockbeatError(f"nobody here knows the schedule of {self.name!r}")
        dues = dues_in(bound(definition.schedule, self.name), since, until)
        if dues is None:
            allowed = f"entries of a crontab, an interval or the sun, at most {DUES_AT_MOST} ticks at once"
            raise ConfigurationError(
                f"the ticks of {self.name!r} from {since.isoformat()} to {until.isoformat()} cannot be told; allowed: {allowed}"
            )
        return dues

    def backfill(
        self,
        since: datetime,
        until: datetime,
        *,
        at_once: int = 1,
        reverse: bool = False,
        who: str | None = None,
        note: str | None = None,
    ) -> Backfill:
        """Have each tick published that was due between two aware times, both included; oldest first, or newest with ``reverse``.

        Each is a tick of the kind "backfill", with its own ``due``, whether there was one at that time or not. At most ``at_once``
        run or wait at a time, as far as the journal tells when they end.
        """
        if isinstance(at_once, bool) or not isinstance(at_once, int) or at_once < 1:
            raise ConfigurationError(f"at_once is {at_once!r}; allowed: a whole number from 1 on")
        if until.timestamp() > datetime.now(timezone.utc).timestamp():
            raise ConfigurationError(f"until is {until.isoformat()}; allowed: a time that is past")
        self._listed()
        dues = self.dues(since, until)
        if not dues:
            raise ConfigurationError(f"{self.name!r} was not due from {since.isoformat()} to {until.isoformat()}")
        said = Said(who or somebody(), datetime.now(timezone.utc).isoformat(), note)
        wanted = Wanted(
            "backfill",
            said.who or "",
            said.at or "",
            since=since.isoformat(),
            until=until.isoformat(),
            at_once=at_once,
            reverse=reverse,
            total=len(dues),
        )
        name = uuid4().hex
        self._acts.store.controls.ask(self._app_name, name, self.flag, wanted.text())
        first_and_last = {"tick": dues[0].isoformat(), "last_due": dues[-1].isoformat()}
        self._acts.record(
            "entry_backfill", {self.flag: self.name}, said, count=len(dues), reason=note, **first_and_last
        )
        return _backfill(self.name, Asked(name, self.flag, wanted.text(), 0, "", "", False, None, 0), wanted)

    def backfills(self) -> list[Backfill]:
        """Return the backfills of it that are under way."""
        found = []
        for asked in self._asked():
            with contextlib.suppress(ValueError, TypeError):
                wanted = Wanted.read(asked.text)
                if wanted.kind == "backfill":
                    found.append(_backfill(self.name, asked, wanted))
        return found

    def cancel_backfills(self, *, who: str | None = None) -> list[Backfill]:
        """Have no more ticks of its backfills published; return those that were under way."""
        found = [each for each in self.backfills() if not each.cancelled]
        if found:
            self._acts.store.controls.cancel(self._app_name, [each.name for each in found])
            said = Said(who or somebody())
            for each in found:
                reason = f"{each.published} of {each.total} were published"
                self._acts.record("entry_backfill_cancelled", {self.flag: self.name}, said, reason=reason)
        return [replace(each, cancelled=True) for each in found]

    def _asked(self) -> Iterator[Asked]:
        skip = 0
        while page := self._acts.store.controls.asked(self._app_name, skip=skip).asked:
            yield from (each for each in page if each.flag == self.flag)
            skip += len(page)

    # -- its lock ------------------------------------------------------------------------------------------------------

    def release(self, *, who: str | None = None) -> list[LiveLock]:
        """Free the lock that its runs take, each key of it, whoever holds it, and return what was freed.

        A run that is still going on under it goes on until it ends or learns that its lock is lost.
        """
        definition = self.definition()
        task = None if definition is None else self._acts.app.tasks.get(definition.task)
        if definition is None or not isinstance(task, LockedTask):
            raise LockbeatError(f"the task of {self.name!r} is no LockedTask that this process knows")
        keys = task._plan().keys_of(task, tuple(definition.args), dict(definition.kwargs))
        return [lock for key in keys for _, lock in free_lock(self._acts.app, key, who=who)]

    @property
    def _app_name(self) -> str:
        return name_of(self._acts.app)


def _backfill(entry: str, asked: Asked, wanted: Wanted) -> Backfill:
    published = 0 if asked.state is None else asked.state.total_run_count - asked.pending
    return Backfill(
        asked.name,
        entry,
        datetime.fromisoformat(wanted.since),
        datetime.fromisoformat(wanted.until),
        wanted.total,
        published,
        wanted.at_once,
        wanted.reverse,
        asked.cancelled,
        wanted.who,
    )

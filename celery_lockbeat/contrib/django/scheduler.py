"""The schedule of django-celery-beat, fired by any number of beats at once.

Promises: entries stay django-celery-beat's, in its tables and its admin, and what "due" means is its own. A beat sees a change
when it looks, about once a second, and rereads the rows of what is due, all in one query, right before it claims it: an entry
that is deleted or disabled has no run any more. Runs are written back together, in one query a batch. No tick makes more
queries with more entries.

When did an entry run last? The store knows of each claimed run, and its row, where ``last_run_at`` and ``total_run_count`` follow
once the tick is published, of each written one. The store counts where it knows of more runs than the row; else the row does,
for it is the user's to reset. An entry that is to run once begins anew with each change of its row, as the row then counts
from 0: its key in the store has the time of that change.

What was due while a row was disabled, or before its crontab was what it is, is not made up for. Beats see such changes, and
announce to those after them how they knew each row; so a change is noticed while none of them was there, too, and what was
missed then by a row that is as it was still runs.

While Django's database is away entries go on as last known, if their ticks are claimed elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import MINYEAR, datetime, timedelta, timezone
from functools import cached_property, reduce
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from operator import or_
from typing import Any, Final, TypeVar

from celery import schedules
from celery.beat import ScheduleEntry
from celery.utils.time import LocalTimezone
from django.conf import settings
from django.db import connections, router
from django.db.models import Case, CharField, F, Q, Value, When
from django.db.models.functions import Cast
from django.db.utils import DatabaseError, InterfaceError
from django.utils import timezone as django_timezone
from django_celery_beat.clockedschedule import clocked
from django_celery_beat.schedulers import SCHEDULE_SYNC_MAX_INTERVAL, DatabaseScheduler, ModelEntry
from django_celery_beat.tzcrontab import TzAwareCrontab
from kombu.utils import json as kombus_json

from celery_lockbeat.beat.replicas import KEEP_EVERY
from celery_lockbeat.beat.scheduler import LockedSchedulerMixin, logger
from celery_lockbeat.exceptions import ConfigurationError, StoreUnavailable
from celery_lockbeat.stores.base import ANNOUNCED_AT_ONCE, STATE_MEMORY

__all__ = ["LockedDatabaseScheduler"]

#: The oldest django-celery-beat that will do.
OLDEST: Final = (2, 8)

#: What a run changes of a row, and what changes with everything else. All other columns are its definition.
RUN: Final = ("last_run_at", "total_run_count")
CHANGED: Final = "date_changed"

#: The schedules that a row may point to.
KINDS: Final = ("interval", "crontab", "solar", "clocked")

#: What Celery knows of an entry in ``beat_schedule``; what else there is are columns.
CELERYS_FIELDS: Final = ("task", "schedule", "args", "kwargs", "options", "relative")

#: Seconds that Django's database may take to answer, or to let us in, until it counts as away.
ANSWERS_WITHIN: Final = 2.0

#: Seconds until a database that is away is asked again, at least.
ASK_AGAIN: Final = 1.0

#: What is told of a row that was disabled or deleted.
OFF: Final = "off"

#: As many rows are remembered from one beat to the next.
MOST_ROWS: Final = 1_000_000

#: So many names are asked for in one query.
NAMED_AT_ONCE: Final = 500

_KEY: Final = re.compile(r"periodictask:(\d+)(?:@.*)?")

#: What SQLite, PostgreSQL, and MySQL or Oracle, say of a table that is not there.
_NO_TABLE: Final = re.compile(
    r"no such table|relation .* does not exist|table .*(?:doesn't|does not) exist", re.IGNORECASE
)

_T = TypeVar("_T")

#: django-celery-beat's own, which has no types.
_json: Any = kombus_json


class _Entry(ModelEntry):  # type: ignore[misc]
    """An entry of a row, whose times have a zone in every project: where the row's have none, that of the admin's clock.

    Without it, django-celery-beat compares times with a zone with others that have none, or takes these for UTC, and runs
    crontabs in another zone than the row's, as ``USE_TZ`` and ``DJANGO_CELERY_BEAT_TZ_AWARE`` have it.
    """

    def __init__(self, model: Any, app: Any = None) -> None:
        model.start_time, model.expires = (each and _by_the_clock(each) for each in (model.start_time, model.expires))
        super().__init__(model, app=app)
        self.schedule = _schedule_of(model, self.app)

    def _default_now(self) -> datetime:
        now: datetime = self.app.now()
        return now


@dataclass(slots=True)
class _Stored:
    """A row: its key in our store, its definition, and its entry; None: it is broken."""

    key: str
    definition: tuple[Any, ...]
    entry: Any = None


class LockedDatabaseScheduler(LockedSchedulerMixin, DatabaseScheduler):  # type: ignore[misc]
    """django-celery-beat's scheduler, on any number of replicas; settings, tables and admin are its own.

    What its tables cannot keep of ``beat_schedule`` (a ``@timeout``, half a second, a schedule of your own) is kept here, as
    :class:`~celery_lockbeat.LockedScheduler` does. Raises ConfigurationError for a django-celery-beat that is too old.
    """

    Entry = _Entry

    trusted_for = 0.5
    gather = 0.2

    def __init__(self, app: Any, **kwargs: Any) -> None:
        _refuse_old()
        self._rows: dict[int, _Stored] = {}  # by primary keys
        self._own: dict[str, Any] = {}  # what the tables cannot keep, by name
        self._to_set_up = self._is_set_up = False
        self._last_change: Any = None
        self._read_all_at: float | None = None  # None: not yet
        self._past: dict[str, str] = {}  # how beats before this one knew the rows, see _told()
        self._untold: dict[str, str] = {}  # how this one knows them, for those after it
        self._told_all_at: float | None = None
        self._away_since: float | None = None  # since when Django's database does not answer, if it does not
        self._ask_again_at = 0.0
        self._reading_took = 0.0
        self._cannot_write = False
        self._unwritten: dict[int, Any] = {}  # entries that have run, by primary keys
        self._expired: set[int] = set()
        super().__init__(app, **kwargs)

    # -- the schedule --------------------------------------------------------------------------------------------------

    def setup_schedule(self) -> None:
        """Leave it to the first tick: a database that does not answer yet is waited for."""
        self._to_set_up = True

    @property
    def schedule(self) -> dict[str, Any]:
        """All entries by their names: those of enabled rows, and those of our own. Raises StoreUnavailable before the first look."""
        if self._read_all_at is None:
            self.refresh_schedule()
        return {**{each.entry.name: each.entry for each in self._rows.values() if each.entry}, **self._own}

    def _entries_by_key(self) -> Mapping[str, Any]:
        stored = {
            each.key: each.entry for each in self._rows.values() if each.entry and each.entry.name not in self._own
        }
        return {**stored, **self._keyed(self._own)}

    def enabled_models_qs(self) -> Any:
        """Return the rows that count: all that are enabled, for here those that are not due soon cost nothing."""
        return self.Model.objects.using(self._database).filter(enabled=True)

    def update_from_dict(self, mapping: Mapping[str, Any]) -> None:
        """Store static entries, as far as the tables can keep them, unless they are there as they are."""
        for name, fields in mapping.items():
            try:
                celerys = {field: value for field, value in fields.items() if field in CELERYS_FIELDS}
                entry = ScheduleEntry(name=name, app=self.app, **celerys)
                if not entry.task or entry.schedule is None:
                    raise ValueError("it needs a task and a schedule")
                entry.schedule = _storable(entry.schedule)
                if not _can_be_stored(entry):
                    self._own[name] = entry
                elif not self._is_stored(entry, fields):
                    self.Entry.from_entry(name, app=self.app, **{**fields, "schedule": entry.schedule})
            except (DatabaseError, InterfaceError):  # noqa: PERF203  a user's few
                raise
            except Exception:  # noqa: BLE001  whatever a user wrote
                logger.exception("static entry %r is skipped, for it is broken: %r", name, fields)

    def _is_stored(self, entry: Any, fields: Mapping[str, Any]) -> bool:
        """Whether it need not be written: each write lets all beats read everything anew."""
        row = self.Model.objects.using(self._database).select_related(*KINDS).filter(name=entry.name).first()
        if row is None or row.scheduler is None or not _equal(_schedule_of(row, self.app), entry.schedule):
            return False
        wanted = {field: value for field, value in fields.items() if field not in CELERYS_FIELDS}
        wanted |= self.Entry._unpack_options(**(fields.get("options") or {}))
        wanted |= {"task": entry.task, "args": _json.dumps(entry.args or []), "kwargs": _json.dumps(entry.kwargs or {})}
        return all(getattr(row, column) == value for column, value in wanted.items())

    def defines(self, entry: Any) -> bool:
        """Whether the entry is one of our own, that the others cannot read from where the rest is."""
        return getattr(entry, "model", None) is None

    def reserve(self, entry: Any) -> Any:
        """Keep the entry; :meth:`record_runs` tells its row of the run."""
        return entry

    def is_due(self, entry: Any) -> tuple[bool, float | None]:
        """Tell (is due, seconds until the next look), as the entry does, but without its queries."""
        model = getattr(entry, "model", None)
        if model is not None:
            if model.one_off and entry.total_run_count > 0:
                return False, None
            if model.expires is not None and entry._default_now() >= model.expires:
                self._expired.add(model.pk)
                return False, None
            if model.start_time is not None and (rest := model.start_time - entry._default_now()) > timedelta(0):
                # the entry itself would sleep beyond a time of its crontab that is its start time, too
                return False, rest.total_seconds()
            _pass_over(entry)
        due: tuple[bool, float | None] = entry.is_due()
        return due

    def adopted(self, entry: Any) -> None:
        """Let the row count, unless the store knows of more runs."""
        model = getattr(entry, "model", None)
        if model is None:
            return
        if entry.total_run_count <= entry.lockbeat_run:
            if self._is_cleared(entry):
                entry.lockbeat_since = self._now_or_earlier(self._last_change, later_than=entry.last_run_at)
                self._untold[str(model.pk)] = _told(entry)
            entry.last_run_at = entry.lockbeat_last_run_at
        _pass_over(entry)
        model.last_run_at, model.total_run_count = entry.last_run_at, entry.total_run_count

    # -- read ----------------------------------------------------------------------------------------------------------

    def refresh_schedule(self) -> None:
        """Follow what was added, changed, removed or reset; while Django's database is away, go on with what is known."""
        started = self._clock()
        if self._away_since is not None and started < self._ask_again_at:
            return
        try:
            self._follow_changes()
        except _DatabaseAway as exc:
            self._go_on_without(exc, started)
        else:
            self._is_back()

    def _follow_changes(self) -> None:
        if self._to_set_up and not self._is_set_up:
            self._query(self._set_up)
            self._is_set_up = True
        if self._read_all_at is None and self._forgets:
            self._past = {
                each.name: each.told
                for each in self._store.announcements.announced(self._name, "past", limit=MOST_ROWS)
            }
        self._remember()
        changed = self._query(self._changes, within=ANSWERS_WITHIN)
        self._try_to_write()
        # before the rows are read: what changes meanwhile is a change next time
        now = self._clock()
        overdue = self._read_all_at is None or now - self._read_all_at >= SCHEDULE_SYNC_MAX_INTERVAL
        if changed == self._last_change and not overdue and self._away_since is None:
            return
        # as long as it likes at first, for there is nothing to go on with
        within = math.inf if self._read_all_at is None else ANSWERS_WITHIN + 10 * self._reading_took
        found = self._query(lambda: self._read(self.enabled_models_qs()), within=within)
        self._last_change, self._read_all_at, self._reading_took = changed, now, self._clock() - now
        for pk in self._rows.keys() - found:
            self._lose(pk)
        self._remember()

    def _set_up(self) -> None:
        self.install_default_entries({})
        self.update_from_dict(self.app.conf.beat_schedule)

    def _changes(self) -> Any:
        return self.Changes.objects.using(self._database).filter(ident=1).values_list("last_update", flat=True).first()

    def reread(self, keys: Sequence[str]) -> Mapping[str, tuple[str, Any]]:
        """Tell what is behind these keys now, straight from the rows."""
        pks = {key: int(match[1]) for key in keys if (match := _KEY.fullmatch(key))}
        if pks and self._away_since is None:
            try:
                self._read_again(set(pks.values()))
            except _DatabaseAway as exc:
                self._go_on_without(exc, self._clock())
        if self._away_since is not None and any(key not in self._agenda for key in keys):
            # what another beat has left, of a row that nobody here knows
            raise StoreUnavailable("Django's database does not answer, and has to tell what is left to be sent")
        told = {}
        for key in keys:
            stored = self._rows.get(pks.get(key, -1))
            if stored is not None and stored.entry is not None:
                told[key] = (stored.key, stored.entry)
            elif key not in pks and (item := self._agenda.get(key)):
                told[key] = (key, item.entry)
        return told

    def _read_again(self, wanted: set[int]) -> None:
        found = self._query(lambda: self._read(self.enabled_models_qs().filter(pk__in=wanted)), within=ANSWERS_WITHIN)
        for pk in (wanted - found) & self._rows.keys():
            self._lose(pk)

    def _stand_in(self, key: str) -> Any:
        if self._away_since is not None or not _KEY.fullmatch(key):
            return None
        # deleted, disabled, or not seen yet
        return ScheduleEntry(name=key, task="", schedule=schedules.schedule(1), total_run_count=-1, app=self.app)

    def _read(self, rows: Any) -> set[int]:
        """Bring ``_rows`` up to date with these rows; return their primary keys."""
        changed: dict[int, tuple[Any, ...]] = {}
        seen = set()
        # as text: what is no timezone would be an error of the whole query
        zone = Cast("crontab__timezone", CharField())
        for pk, last_run_at, run, date_changed, *rest in rows.values_list("pk", *RUN, CHANGED, *self._columns, zone):
            seen.add(pk)
            # an entry that is to run once begins anew with each change
            definition = (*rest, date_changed if rest[self._columns.index("one_off")] else None)
            stored = self._rows.get(pk)
            if stored is None or stored.definition != definition:
                changed[pk] = definition
            elif stored.entry is not None:
                self._take_in_run(stored, last_run_at, run, date_changed)
        if changed:
            self._load(changed)
        return seen

    @cached_property
    def _columns(self) -> list[str]:
        """What a row and its schedules are made of, but for its runs."""
        meta = self.Model._meta
        own = [field.attname for field in meta.concrete_fields if field.attname not in (*RUN, CHANGED)]
        related = [
            f"{kind}__{field.attname}"
            for kind in KINDS
            for field in meta.get_field(kind).related_model._meta.concrete_fields
            if field.attname != "timezone"
        ]
        return own + related

    def _take_in_run(self, stored: _Stored, last_run_at: Any, run: int, date_changed: Any) -> None:
        """Take notice of a run that another beat has written down, or of what a user has reset."""
        entry = stored.entry
        told = None if last_run_at is None else _aware(last_run_at)
        if run < entry.total_run_count or (run, told) == (entry.lockbeat_run, entry.lockbeat_told):
            return
        # another object, which is planned anew
        stored.entry = _copied(entry)
        entry = stored.entry
        entry.model = _copied(entry.model)
        entry.model.total_run_count, entry.model.date_changed = run, date_changed
        self._begin(entry, last_run_at)

    def _load(self, definitions: Mapping[int, tuple[Any, ...]]) -> None:
        """Make the entries of these rows, and tell of those that are broken."""
        latest = self._changes()
        for pk, model in self._fetch(list(definitions)).items():
            definition, known = definitions[pk], self._rows.get(pk)
            try:
                if isinstance(model, Exception):
                    raise model
                self._rows[pk] = stored = self._make(model, definition)
            except Exception as exc:  # noqa: BLE001  whatever is in there
                self._rows[pk] = _Stored("", definition)
                name = definition[self._columns.index("name")]
                self._complaints.make(
                    f"entry {pk}", "entry %r is skipped, for it is broken: %s: %s", name, type(exc).__name__, exc
                )
                continue
            if (
                known is not None
                and known.key == stored.key
                and stored.entry.lockbeat_run < known.entry.total_run_count
            ):
                stored.entry.last_run_at = known.entry.last_run_at
                stored.entry.total_run_count = known.entry.total_run_count
            stored.entry.lockbeat_since = self._since(stored.entry, known, latest)
            _pass_over(stored.entry)
            self._untold[str(pk)] = _told(stored.entry)

    def _fetch(self, pks: list[int]) -> dict[int, Any]:
        """Read these rows; for one with a value that cannot be read, why not."""
        rows = self.Model.objects.using(self._database).select_related(*KINDS).filter(pk__in=pks)
        try:
            return {model.pk: model for model in rows}
        except (DatabaseError, InterfaceError):
            raise
        except Exception as exc:  # noqa: BLE001  whatever is in there
            if len(pks) == 1:
                return {pks[0]: exc}
            half = len(pks) // 2
            return self._fetch(pks[:half]) | self._fetch(pks[half:])

    def _make(self, model: Any, definition: tuple[Any, ...]) -> _Stored:
        """Make the entry of a row. Raises whatever is wrong with it."""
        for column, kind in (("args", list), ("kwargs", dict), ("headers", dict)):
            # the entry would disable the row
            value = _json.loads(getattr(model, column) or ("[]" if kind is list else "{}"))
            if not isinstance(value, kind):
                raise TypeError(f"its {column} are {value!r}; allowed: a JSON {kind.__name__}")
        if not model.task or model.scheduler is None:
            raise ValueError("it has no task or no schedule")
        told = model.last_run_at
        entry = self.Entry(model, app=self.app)
        entry.lockbeat_since = None
        when = entry.schedule
        if type(when) is schedules.schedule and when.run_every <= timedelta(0):
            raise ValueError(f"its interval is {when.run_every}")
        self._begin(entry, told)
        life = f"@{model.date_changed.isoformat()}" if model.one_off and model.date_changed else ""
        return _Stored(f"periodictask:{model.pk}{life}", definition, entry)

    def _begin(self, entry: Any, last_run_at: Any) -> None:
        """Let an entry count on from what its row tells of its last run."""
        model = entry.model
        entry.lockbeat_told = None if last_run_at is None else _aware(last_run_at)
        if last_run_at is None:
            # django-celery-beat's own idea of the last run of what has never run
            last_run_at = model.date_changed and _by_the_clock(model.date_changed)
            begins = model.start_time and (
                not (model.total_run_count and last_run_at) or model.start_time > last_run_at
            )
            if begins and _times_of(entry.schedule) is None:
                # with a time to start at, long ago: so it runs then, and at its interval from then on
                last_run_at = datetime(MINYEAR, 1, 2, tzinfo=timezone.utc)
        last_run_at = last_run_at or entry._default_now()
        entry.last_run_at = entry.lockbeat_last_run_at = model.last_run_at = _aware(last_run_at)
        entry.total_run_count = entry.lockbeat_run = model.total_run_count
        _pass_over(entry)

    # -- since when its ticks count ------------------------------------------------------------------------------------

    @property
    def _forgets(self) -> bool:
        return not self._options.django_run_missed_when_changed

    def _since(self, entry: Any, known: _Stored | None, latest: Any) -> datetime | None:
        """Return since when the ticks of an entry count, though it has not run since; None: since its last run.

        ``known``: how this beat knew its row; ``latest``: when any row was changed last.
        """
        if not self._forgets:
            return None
        times = _times_of(entry.schedule)
        if known is not None and known.entry is not None:
            earlier: datetime | None = known.entry.lockbeat_since
            if times is None or times == _times_of(known.entry.schedule):
                return earlier
        elif self._read_all_at is None:
            past = self._past.get(str(entry.model.pk))
            if past is None:
                return None
            digest, _, since = past.partition(" ")
            if digest != OFF and (times is None or digest == _digest(times)):
                return datetime.fromisoformat(since) if since else None
        # enabled, or its crontab changed, since it was last looked at
        changed = entry.model.date_changed
        if self._last_change is not None and changed is not None and changed > self._last_change:
            return self._now_or_earlier(changed)
        return self._now_or_earlier(None if latest == self._last_change else latest)

    def _now_or_earlier(self, changed: Any, *, later_than: datetime | None = None) -> datetime:
        """Return the time of a change that a row tells of, which may be by another's clock; now, if there is none such."""
        now: datetime = self.app.now()
        then = now if changed is None else min(now, _by_the_clock(changed))
        return now if later_than is not None and then < later_than else then

    def _is_cleared(self, entry: Any) -> bool:
        """Whether the last run of a crontab's row was taken away: to disable it, for one, if only for a moment that nobody saw."""
        changed = entry.model.date_changed
        return (
            self._forgets
            and entry.lockbeat_told is None
            and entry.lockbeat_run > 0
            and _times_of(entry.schedule) is not None
            and changed is not None
            and entry.last_run_at > max(_by_the_clock(changed), entry.lockbeat_since or _by_the_clock(changed))
        )

    def _lose(self, pk: int) -> None:
        """Know a row no more: it was disabled, or deleted."""
        del self._rows[pk]
        self._untold[str(pk)] = OFF

    def _remember(self) -> None:
        """Announce to beats after this one how it knows the rows. Raises StoreUnavailable."""
        if not (self._replica.known and self._forgets):
            return
        now = self._clock()
        if self._told_all_at is None or now - self._told_all_at > KEEP_EVERY:
            known = {str(pk): stored.entry for pk, stored in self._rows.items() if stored.entry is not None}
            self._untold |= {pk: _told(entry) for pk, entry in known.items()}
            self._told_all_at = now
        while self._untold:
            some = dict(islice(self._untold.items(), ANNOUNCED_AT_ONCE))
            self._store.announcements.announce(
                self._name, "past", {pk: told for pk, told in some.items() if told}, ttl=STATE_MEMORY
            )
            for pk in some:
                del self._untold[pk]

    # -- write ---------------------------------------------------------------------------------------------------------

    def record_runs(self, keys: Sequence[str]) -> None:
        """Write down last runs and counts, and disable what was to run once; what cannot be written now is with the next look."""
        for key in keys:
            match = _KEY.fullmatch(key)
            stored = self._rows.get(int(match[1])) if match else None
            if match and stored is not None and stored.entry is not None:
                self._unwritten[int(match[1])] = stored.entry
        if self._away_since is None and not self._cannot_write:
            self._try_to_write()

    def _try_to_write(self) -> None:
        self._cannot_write = False
        try:
            self._write_down()
        except _DatabaseAway as exc:
            # the next look tries again
            self._cannot_write = True
            # the ticks are published: they are settled all the same
            self._complaints.make("django", "beat cannot write down runs, and goes on: %s", exc)

    def _write_down(self) -> None:
        if self._expired:
            self._query(self._disable_expired, within=ANSWERS_WITHIN)
            self._expired.clear()
        if self._unwritten:
            entries = dict(self._unwritten)
            self._query(lambda: self._write(entries), within=ANSWERS_WITHIN)
            for pk, entry in entries.items():
                entry.lockbeat_run, entry.lockbeat_last_run_at = entry.total_run_count, entry.last_run_at
                entry.lockbeat_told = entry.last_run_at
                del self._unwritten[pk]

    def _write(self, entries: Mapping[int, Any]) -> None:
        rows = self.Model.objects.using(self._database)
        often = {pk: entry for pk, entry in entries.items() if not entry.model.one_off}
        if often:
            runs = Case(*(When(pk=pk, then=Value(entry.total_run_count)) for pk, entry in often.items()))
            times = Case(*(When(pk=pk, then=Value(_for_row(entry.last_run_at))) for pk, entry in often.items()))
            # a row that is disabled has no last run; a count that is greater is of a later run
            written = rows.filter(pk__in=list(often), enabled=True).annotate(lockbeat_run=runs)
            written.filter(total_run_count__lt=F("lockbeat_run")).update(last_run_at=times, total_run_count=runs)
        # as they were when they ran: one that was changed since begins anew
        once = [Q(pk=pk, date_changed=entry.model.date_changed) for pk, entry in entries.items() if entry.model.one_off]
        if once:
            # as django-celery-beat does it
            rows.filter(reduce(or_, once)).update(
                enabled=False, last_run_at=None, total_run_count=0, date_changed=django_timezone.now()
            )
            # not by update_changed(), which commits a transaction: _Cut sees statements only
            changes, now = self.Changes.objects.using(self._database), django_timezone.now()
            if not changes.filter(ident=1).update(last_update=now):
                changes.create(ident=1, last_update=now)

    def _disable_expired(self) -> None:
        rows = self.Model.objects.using(self._database).filter(pk__in=self._expired, expires__lte=django_timezone.now())
        rows.update(enabled=False, last_run_at=None, date_changed=django_timezone.now())
        for pk in self._expired & self._rows.keys():
            self._lose(pk)

    def sync(self) -> None:
        """Write down what is not written yet; Celery calls it at the end."""
        if self._unwritten:
            self.record_runs(())

    # -- the database --------------------------------------------------------------------------------------------------

    @property
    def _database(self) -> str:
        # a replica of the database may be late
        return str(router.db_for_write(self.Model))

    def _query(self, ask: Callable[[], _T], *, within: float = math.inf) -> _T:
        """Ask the database; once more on a new connection, for it may have closed the old one. Raises _DatabaseAway.

        ``within``: the seconds that each answer may take. PostgreSQL is cut off then; a driver of another that waits for ever
        has to be told not to.
        """
        connection = _impatient(self._database)
        for again in (True, False):
            was_open, cut = connection.connection is not None, _Cut(connection, within)
            try:
                with connection.execute_wrapper(cut):
                    return ask()
            except (DatabaseError, InterfaceError) as exc:
                connection.close()
                if cut.done or not (again and was_open):
                    why = f"no answer within {within:g} s" if cut.done else f"{type(exc).__name__}: {exc}"
                    if _NO_TABLE.search(why):
                        why = f"{why.splitlines()[0]} (has 'manage.py migrate' been run?)"
                    raise _DatabaseAway(f"Django's database does not answer: {why.strip()}") from exc
        raise AssertionError

    def _go_on_without(self, exc: _DatabaseAway, started: float) -> None:
        """Let entries go on as last known. Raises ``exc`` where nothing is known, or the ticks are in that database, too."""
        if self._read_all_at is None or self._chosen == ("database", self._database):
            raise exc
        now = self._clock()
        if self._away_since is None:
            self._away_since = now
            logger.error("%s: entries go on as they were when it last did, and changes count when it is back", exc)
        # one that hangs must not take more than a few parts of the time
        self._ask_again_at = now + max(ASK_AGAIN, 2 * (now - started))

    def _is_back(self) -> None:
        if self._away_since is not None:
            logger.info(
                "Django's database is back after %.0f s, and its changes count", self._clock() - self._away_since
            )
            self._away_since = None


class _DatabaseAway(StoreUnavailable):
    """Django's database, which may be another than the store of the ticks, does not answer."""


class _Cut:
    """Ends an answer that does not come in time, by the only way there is: the connection's other end is gone then."""

    def __init__(self, connection: Any, within: float) -> None:
        self._connection, self._within = connection, within
        self.done = False

    def __call__(self, execute: Any, sql: Any, params: Any, many: Any, context: Any) -> Any:
        if math.isinf(self._within) or self._connection.vendor != "postgresql":
            return execute(sql, params, many, context)
        with self._connection.wrap_database_errors:
            number = self._connection.connection.fileno()
        with socket.socket(fileno=os.dup(number)) as ours:
            timer = threading.Timer(self._within, self._cut, [ours])
            timer.daemon = True
            timer.start()
            try:
                return execute(sql, params, many, context)
            finally:
                timer.cancel()

    def _cut(self, ours: socket.socket) -> None:
        self.done = True
        # a descriptor of our own: the number may be another connection's by now
        with contextlib.suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)


def _impatient(alias: str) -> Any:
    """Return this thread's connection to a database, which gives up one that does not let it in.

    With settings of its own: they are one for all threads otherwise.
    """
    connection = connections[alias]
    if connection.vendor == "postgresql" and "connect_timeout" not in connection.settings_dict["OPTIONS"]:
        connection.settings_dict = {
            **connection.settings_dict,
            "OPTIONS": {**connection.settings_dict["OPTIONS"], "connect_timeout": math.ceil(ANSWERS_WITHIN)},
        }
    return connection


# -- for those who look at them ----------------------------------------------------------------------------------------


def names_of(_app: Any, keys: Sequence[str]) -> dict[str, str]:
    """Return the names of rows by their keys in our store. Raises Django's errors."""
    pks = {key: int(match[1]) for key in keys if (match := _KEY.fullmatch(key))}
    names: dict[int, str] = {}
    model, wanted = DatabaseScheduler.Model, sorted(set(pks.values()))
    for start in range(0, len(wanted), NAMED_AT_ONCE):
        rows = model.objects.using(router.db_for_write(model)).filter(pk__in=wanted[start : start + NAMED_AT_ONCE])
        names.update(rows.values_list("pk", "name"))
    return {key: names[pk] for key, pk in pks.items() if pk in names}


def stored_entries(_app: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Tell what is in the tables: the tasks of enabled rows, and why others are no entries. Raises StoreUnavailable."""
    model = DatabaseScheduler.Model
    tasks: dict[str, str] = {}
    broken: dict[str, str] = {}
    try:
        rows = model.objects.using(router.db_for_write(model)).filter(enabled=True)
        for name, task, args, kwargs, *schedule in rows.values_list(
            "name", "task", "args", "kwargs", *(f"{kind}_id" for kind in KINDS)
        ):
            try:
                if not task or not any(schedule):
                    raise ValueError("it has no task or no schedule")
                _json.loads(args or "[]"), _json.loads(kwargs or "{}")
            except Exception as exc:  # noqa: BLE001, PERF203  whatever is in there
                broken[name] = f"{type(exc).__name__}: {exc}"
            else:
                tasks[name] = task
    except (DatabaseError, InterfaceError) as exc:
        raise StoreUnavailable(f"Django's database does not answer: {type(exc).__name__}: {exc}") from exc
    return tasks, broken


def _copied(thing: Any) -> Any:
    # copy.copy() does as pickle does, which entries and models make more of
    other = object.__new__(type(thing))
    vars(other).update(vars(thing))
    return other


def _can_be_stored(entry: Any) -> bool:
    """Whether the tables can tell the same entry again."""
    when = entry.schedule
    if type(when) is schedules.schedule:
        seconds = when.run_every.total_seconds()
        if when.relative or seconds < 1 or seconds % 1:
            return False
    elif not isinstance(when, (schedules.crontab, schedules.solar, clocked)):
        return False
    try:
        return bool(
            _json.loads(_json.dumps([entry.args or [], entry.kwargs or {}]))
            == [list(entry.args or []), entry.kwargs or {}]
        )
    except (TypeError, ValueError):
        return False


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, schedules.crontab) and isinstance(other, schedules.crontab):
        # a zone of another library is another object
        return _fields(one) == _fields(other)
    return type(one) is type(other) and bool(one == other)


def _fields(when: Any) -> list[str]:
    names = ("minute", "hour", "day_of_week", "day_of_month", "month_of_year")
    return [*(str(getattr(when, f"_orig_{name}")) for name in names), str(when.tz)]


def _schedule_of(model: Any, app: Any) -> Any:
    """Return the schedule of a row, in the zone that the admin shows."""
    if model.crontab and not model.interval:
        cron = model.crontab
        fields = (cron.minute, cron.hour, cron.day_of_week, cron.day_of_month, cron.month_of_year)
        return TzAwareCrontab(*fields, tz=cron.timezone, app=app)
    if model.clocked and not (model.interval or model.solar):
        return clocked(_by_the_clock(model.clocked.clocked_time), app=app)
    return model.schedule


def _storable(when: Any) -> Any:
    """Return a schedule of the settings with its times as the tables of this project can have them."""
    if isinstance(when, schedules.crontab) and isinstance(when.tz, LocalTimezone):
        # the zone of this process has no name; it is Django who has set it
        fields = (when._orig_minute, when._orig_hour, when._orig_day_of_week, when._orig_day_of_month)
        return TzAwareCrontab(*fields, when._orig_month_of_year, tz=django_timezone.get_default_timezone())
    return when


def _times_of(when: Any) -> list[str] | None:
    """Return what makes up a schedule that is due at times of its own; None: it counts from its last run."""
    if isinstance(when, schedules.crontab):
        return _fields(when)
    return [when.event, str(when.lat), str(when.lon)] if isinstance(when, schedules.solar) else None


def _digest(times: list[str]) -> str:
    return hashlib.sha256(repr(times).encode()).hexdigest()[:16]


def _told(entry: Any) -> str:
    """Tell beats to come of an entry: the digest of its times, and since when its ticks count; "": there is nothing to tell."""
    times, since = _times_of(entry.schedule), entry.lockbeat_since
    if times is None and since is None:
        return ""
    return f"{'-' if times is None else _digest(times)} {since.isoformat() if since else ''}"


def _pass_over(entry: Any) -> None:
    """Let nothing count that was due before the ticks of an entry do, or before its start time, once that has come."""
    since, start = entry.lockbeat_since, entry.model.start_time
    if start and _times_of(entry.schedule) is not None and start <= entry._default_now():
        # a tick at the start time itself counts
        start -= timedelta(microseconds=1)
        since = start if since is None else max(since, start)
    waits_for_its_start = entry.last_run_at.year == MINYEAR and not entry.total_run_count
    if since is not None and entry.last_run_at < since and not waits_for_its_start:
        entry.last_run_at = since


def _zone() -> Any:
    """What the last runs in the tables of a project without timezones are in: django-celery-beat's own choice."""
    aware = getattr(settings, "DJANGO_CELERY_BEAT_TZ_AWARE", True)
    return django_timezone.get_default_timezone() if aware else timezone.utc


def _aware(time_: datetime, zone: Any = None) -> datetime:
    return time_ if time_.tzinfo else time_.replace(tzinfo=zone or _zone())


def _by_the_clock(time_: datetime) -> datetime:
    """Give a time that a row tells the zone of the admin's clock, if it has none."""
    return _aware(time_, django_timezone.get_default_timezone())


def _for_row(time_: datetime) -> datetime:
    return time_ if settings.USE_TZ else time_.astimezone(_zone()).replace(tzinfo=None)


def _refuse_old() -> None:
    try:
        installed = version("django-celery-beat")
    except PackageNotFoundError:
        return  # somebody's own copy
    if tuple(int(part) for part in re.findall(r"\d+", installed)[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ConfigurationError(f"django-celery-beat is {installed}; allowed: {oldest} or newer")

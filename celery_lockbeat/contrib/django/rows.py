"""The rows that count, as one beat knows them: which there are, and the entry of each.

Promises: what was added, changed, removed or reset is seen by the next look; all rows are read only when one has changed, or
once in a while, and those that are due right before they are claimed, each time in one query. A row that is broken stops no
other. What a row says of its runs counts where it is more, or other, than what this beat has written there.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, Final

from celery import schedules
from django.apps import apps
from django.db import connections
from django.db.models import CharField
from django.db.models.functions import Cast
from django.db.utils import DatabaseError, InterfaceError
from django_celery_beat.schedulers import SCHEDULE_SYNC_MAX_INTERVAL
from kombu.utils import json as kombus_json

from celery_lockbeat.beat.trouble import Complaints
from celery_lockbeat.contrib.django.database import ANSWERS_WITHIN, Database
from celery_lockbeat.contrib.django.entry import begin, pass_over
from celery_lockbeat.contrib.django.history import History
from celery_lockbeat.contrib.django.times import of_a_run

__all__ = ["KINDS", "Row", "Rows", "json", "pks_of"]

logger: Final = logging.getLogger("celery_lockbeat.beat")

#: The app in which rows have their policies.
POLICIES: Final = "celery_lockbeat.contrib.django.policies"

#: What a run changes of a row, and what changes with everything else. All other columns are its definition.
RUN: Final = ("last_run_at", "total_run_count")
CHANGED: Final = "date_changed"

#: The schedules that a row may point to.
KINDS: Final = ("interval", "crontab", "solar", "clocked")

#: django-celery-beat's own, which has no types.
json: Any = kombus_json

_KEY: Final = re.compile(r"periodictask:(\d+)(?:@.*)?")


def pks_of(keys: Iterable[str]) -> dict[str, int]:
    """Return the primary keys of rows by their keys in our store; the keys of other entries are left out."""
    return {key: int(match[1]) for key in keys if (match := _KEY.fullmatch(key))}


@dataclass(slots=True)
class Row:
    """A row: its key in our store, its definition, and its entry; None: it is broken."""

    key: str
    definition: tuple[Any, ...]
    entry: Any = None


class Rows:
    """The rows that ``enabled`` returns, by their primary keys; ``make`` makes an entry of one."""

    def __init__(
        self,
        app: Any,
        make: Callable[..., Any],
        enabled: Callable[[], Any],
        database: Database,
        history: History,
        complaints: Complaints,
        clock: Callable[[], float],
    ) -> None:
        self._app = app
        self._make_entry = make
        self._enabled = enabled
        self._database = database
        self._history = history
        self._complaints = complaints
        self._clock = clock
        self._rows: dict[int, Row] = {}
        self._read_all_at: float | None = None  # None: not yet
        self._reading_took = 0.0

    @property
    def known(self) -> bool:
        """Whether all rows have been read once."""
        return self._read_all_at is not None

    def get(self, pk: int) -> Row | None:
        """Return a row that has an entry."""
        row = self._rows.get(pk)
        return row if row is not None and row.entry is not None else None

    def by_name(self) -> dict[str, Any]:
        """Return all entries by their names."""
        return {each.entry.name: each.entry for each in self._rows.values() if each.entry}

    def by_key(self, *, but: Mapping[str, Any]) -> dict[str, Any]:
        """Return all entries by their keys in our store, but those whose names are in ``but``."""
        return {each.key: each.entry for each in self._rows.values() if each.entry and each.entry.name not in but}

    def announce(self) -> None:
        """Announce to beats after this one how it knows the rows. Raises StoreUnavailable."""
        self._history.announce((pk, row.entry) for pk, row in self._rows.items() if row.entry is not None)

    # -- look ----------------------------------------------------------------------------------------------------------

    def follow(self, last_change: Any, *, anew: bool) -> bool:
        """Read all rows, if any has changed since, it is time to, or they are to be read ``anew``. Raises DatabaseAway."""
        # before the rows are read: what changes meanwhile is a change next time
        now = self._clock()
        overdue = self._read_all_at is None or now - self._read_all_at >= SCHEDULE_SYNC_MAX_INTERVAL
        if last_change == self._history.last_change and not overdue and not anew:
            return False
        # as long as it likes at first, for there is nothing to go on with
        within = math.inf if self._read_all_at is None else ANSWERS_WITHIN + 10 * self._reading_took
        found = self._database.query(lambda: self._read(self._enabled()), within=within)
        self._read_all_at, self._reading_took = now, self._clock() - now
        self._history.looked(last_change)
        for pk in self._rows.keys() - found:
            self.lose(pk)
        return True

    def read_again(self, wanted: set[int]) -> None:
        """Read these rows. Raises DatabaseAway."""
        found = self._database.query(lambda: self._read(self._enabled().filter(pk__in=wanted)), within=ANSWERS_WITHIN)
        for pk in (wanted - found) & self._rows.keys():
            self.lose(pk)

    def lose(self, pk: int) -> None:
        """Know a row no more, if it was known: it was disabled, or deleted."""
        row = self._rows.pop(pk, None)
        if row is not None:
            self._history.lose(pk, row.entry)

    # -- read ----------------------------------------------------------------------------------------------------------

    def _read(self, rows: Any) -> set[int]:
        """Bring what is known up to date with these rows; return their primary keys."""
        changed: dict[int, tuple[Any, ...]] = {}
        seen = set()
        one_off = self._columns.index("one_off")
        # as text: what is no timezone would be an error of the whole query
        zone = Cast("crontab__timezone", CharField())
        for pk, last_run_at, run, date_changed, *rest in rows.values_list("pk", *RUN, CHANGED, *self._columns, zone):
            seen.add(pk)
            # an entry that is to run once begins anew with each change
            definition = (*rest, date_changed if rest[one_off] else None)
            known = self._rows.get(pk)
            if known is None or known.definition != definition:
                changed[pk] = definition
            elif known.entry is not None:
                self._take_in_run(known, last_run_at, run, date_changed)
        if changed:
            self._load(changed)
        return seen

    @cached_property
    def _columns(self) -> list[str]:
        """What a row and its schedules are made of, but for its runs."""
        meta = self._database.model._meta
        own = [field.attname for field in meta.concrete_fields if field.attname not in (*RUN, CHANGED)]
        related = [
            f"{kind}__{field.attname}"
            for kind in KINDS
            for field in meta.get_field(kind).related_model._meta.concrete_fields
            if field.attname != "timezone"
        ]
        return own + related + self._policys

    @cached_property
    def _policys(self) -> list[str]:
        """The columns of a row's policy, where the project has that app and its table."""
        if not apps.is_installed(POLICIES):
            return []
        related = self._database.model._meta.get_field("lockbeat_policy").related_model
        if related._meta.db_table not in connections[self._database.alias].introspection.table_names():
            logger.warning("rows have no policies: has 'manage.py migrate lockbeat_policies' been run?")
            return []
        return [f"lockbeat_policy__{field.attname}" for field in related._meta.concrete_fields]

    def _take_in_run(self, row: Row, last_run_at: Any, run: int, date_changed: Any) -> None:
        """Take notice of a run that another beat has written down, or of what a user has reset."""
        entry = row.entry
        stored_at = None if last_run_at is None else of_a_run(last_run_at)
        if run < entry.total_run_count or (run, stored_at) == (entry.lockbeat_run, entry.lockbeat_stored_at):
            return
        # another object, which is planned anew
        row.entry = entry = _copied(entry)
        entry.model = _copied(entry.model)
        entry.model.total_run_count, entry.model.date_changed = run, date_changed
        begin(entry, last_run_at)

    # -- make entries --------------------------------------------------------------------------------------------------

    def _load(self, definitions: Mapping[int, tuple[Any, ...]]) -> None:
        """Make the entries of these rows, and complain of those that are broken."""
        last_change = self._database.last_change()
        for pk, model in self._fetch(list(definitions)).items():
            definition, known = definitions[pk], self._rows.get(pk)
            try:
                self._rows[pk] = row = self._make(model, definition)
            except Exception as exc:  # noqa: BLE001  whatever is in there
                self._rows[pk] = Row("", definition)
                name = definition[self._columns.index("name")]
                text = "entry %r is skipped, for it is broken: %s: %s"
                self._complaints.make(f"entry {pk}", text, name, type(exc).__name__, exc)
                continue
            if known is not None and known.key == row.key and row.entry.lockbeat_run < known.entry.total_run_count:
                row.entry.last_run_at, row.entry.total_run_count = known.entry.last_run_at, known.entry.total_run_count
            self._history.begin(row.entry, known and known.entry, last_change)
            pass_over(row.entry)

    def _fetch(self, pks: list[int]) -> dict[int, Any]:
        """Read these rows; for one with a value that cannot be read, why not."""
        kinds = (*KINDS, "lockbeat_policy") if self._policys else KINDS
        rows = self._database.rows.select_related(*kinds).filter(pk__in=pks)
        try:
            return {model.pk: model for model in rows}
        except (DatabaseError, InterfaceError):
            raise
        except Exception as exc:  # noqa: BLE001  whatever is in there
            if len(pks) == 1:
                return {pks[0]: exc}
            half = len(pks) // 2
            return self._fetch(pks[:half]) | self._fetch(pks[half:])

    def _make(self, model: Any, definition: tuple[Any, ...]) -> Row:
        """Make the entry of a row, which is not yet known to count since anything. Raises whatever is wrong with it."""
        if isinstance(model, Exception):
            raise model
        for column, kind in (("args", list), ("kwargs", dict), ("headers", dict)):
            # the entry would disable the row
            value = json.loads(getattr(model, column) or ("[]" if kind is list else "{}"))
            if not isinstance(value, kind):
                raise TypeError(f"its {column} are {value!r}; allowed: a JSON {kind.__name__}")
        if not model.task or model.scheduler is None:
            raise ValueError("it has no task or no schedule")
        last_run_at = model.last_run_at
        entry = self._make_entry(model, app=self._app)
        entry.lockbeat_since = None
        when = entry.schedule
        if type(when) is schedules.schedule and when.run_every <= timedelta(0):
            raise ValueError(f"its interval is {when.run_every}")
        begin(entry, last_run_at)
        policy = getattr(model, "lockbeat_policy", None) if self._policys else None
        entry.lockbeat_policy = None if policy is None else policy.policy()
        life = f"@{model.date_changed.isoformat()}" if model.one_off and model.date_changed else ""
        return Row(f"periodictask:{model.pk}{life}", definition, entry)


def _copied(thing: Any) -> Any:
    # copy.copy() does as pickle does, which entries and models make more of
    other = object.__new__(type(thing))
    vars(other).update(vars(thing))
    return other

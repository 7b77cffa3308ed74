"""The schedule of django-celery-beat, fired by any number of beats at once.

Promises: entries stay django-celery-beat's, in its tables and its admin, and what "due" means is its own. A beat sees a change
when it looks, about once a second, and rereads the rows of what is due, all in one query, right before it claims it: an entry
that is deleted or disabled has no run any more. No tick makes more queries with more entries.

When did an entry run last? The store knows of each claimed run, and its row, where ``last_run_at`` and ``total_run_count`` follow
once the tick is published, of each written one. The store counts where it knows of more runs than the row; else the row does,
for it is the user's to reset. An entry that is to run once begins anew with each change of its row, as the row then counts
from 0: its key in the store has the time of that change.

While Django's database is away entries go on as last known, if their ticks are claimed elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from celery import schedules
from celery.beat import ScheduleEntry
from django_celery_beat.schedulers import DatabaseScheduler

from celery_lockbeat.beat.scheduler import LockedSchedulerMixin
from celery_lockbeat.contrib.django.database import ANSWERS_WITHIN, Database, DatabaseAway, Outage
from celery_lockbeat.contrib.django.entry import RowEntry, pass_over
from celery_lockbeat.contrib.django.history import History
from celery_lockbeat.contrib.django.rows import Rows, pks_of
from celery_lockbeat.contrib.django.runs import Runs
from celery_lockbeat.contrib.django.statics import Statics
from celery_lockbeat.contrib.versions import refuse_older
from celery_lockbeat.exceptions import ConfigurationError, StoreUnavailable

__all__ = ["LockedDatabaseScheduler"]

#: The oldest django-celery-beat that will do.
OLDEST: Final = (2, 8)


class LockedDatabaseScheduler(LockedSchedulerMixin, DatabaseScheduler):  # type: ignore[misc]
    """django-celery-beat's scheduler, on any number of replicas; settings, tables and admin are its own.

    What its tables cannot keep of ``beat_schedule`` (a ``@timeout``, half a second, a schedule of your own) is kept here, as
    :class:`~celery_lockbeat.LockedScheduler` does. Raises ConfigurationError for a django-celery-beat that is too old.
    """

    Entry = RowEntry

    trusted_for = 0.5
    gather = 0.2

    def __init__(self, app: Any, **kwargs: Any) -> None:
        refuse_older("django-celery-beat", OLDEST)
        self._to_set_up = self._is_set_up = False
        super().__init__(app, **kwargs)

    def _furnish(self, app: Any) -> None:
        super()._furnish(app)
        self._database = Database(self.Model, self.Changes)
        self._outage = Outage(self._clock)
        self._statics = Statics(app, self.Entry, self._database)
        self._history = History(
            app,
            lambda: self._store,
            self._replica,
            self._clock,
            forgets=not self._options.django_run_missed_when_changed,
            makes_up=self._makes_up,
        )
        self._rows = Rows(
            app, self.Entry, self.enabled_models_qs, self._database, self._history, self._complaints, self._clock
        )
        self._runs = Runs(self._database, self._rows, self._complaints)

    def _makes_up(self, entry: Any) -> bool:
        """Whether an entry says that all is made up for that was due; the default, one run for all, says nothing of a row that was off."""
        try:
            policy, _ = self._planner.rules.policy_of(entry.name, entry.schedule, entry.lockbeat_policy)
        except ConfigurationError:  # it goes on without it, and that is said
            return False
        return policy is not None and policy.catchup == "all"

    # -- the schedule --------------------------------------------------------------------------------------------------

    def setup_schedule(self) -> None:
        """Leave it to the first tick: a database that does not answer yet is waited for."""
        self._to_set_up = True

    def _set_up(self) -> None:
        self.install_default_entries({})
        self.update_from_dict(self.app.conf.beat_schedule)

    def update_from_dict(self, mapping: Mapping[str, Any]) -> None:
        """Store static entries, as far as the tables can keep them, unless they are there as they are."""
        self._statics.store(mapping)

    @property
    def schedule(self) -> dict[str, Any]:
        """All entries by their names: those of enabled rows, and those of our own. Raises StoreUnavailable before the first look."""
        if not self._rows.known:
            self.refresh_schedule()
        return {**self._rows.by_name(), **self._statics.own}

    def _entries_by_key(self) -> Mapping[str, Any]:
        own = self._statics.own
        return {**self._rows.by_key(but=own), **self._keyed(own)}

    def enabled_models_qs(self) -> Any:
        """Return the rows that count: all that are enabled, for here those that are not due soon cost nothing."""
        return self._database.rows.filter(enabled=True)

    def defines(self, entry: Any) -> bool:
        """Whether the entry is one of our own, that the others cannot read from where the rest is."""
        return getattr(entry, "model", None) is None

    # -- look ----------------------------------------------------------------------------------------------------------

    def refresh_schedule(self) -> None:
        """Follow what was added, changed, removed or reset; while Django's database is away, go on with what is known."""
        started = self._clock()
        if not self._outage.lets_ask(started):
            return
        try:
            self._follow_changes()
        except DatabaseAway as exc:
            self._go_on_without(exc, started)
        else:
            self._outage.end()

    def _follow_changes(self) -> None:
        if self._to_set_up and not self._is_set_up:
            self._database.query(self._set_up)
            self._is_set_up = True
        self._history.recall()
        self._rows.announce()
        changed = self._database.query(self._database.last_change, within=ANSWERS_WITHIN)
        self._runs.write_down()
        if self._rows.follow(changed, anew=self._outage.lasts):
            self._rows.announce()

    def _go_on_without(self, exc: DatabaseAway, asked: float) -> None:
        """Let entries go on as last known. Raises ``exc`` where nothing is known, or the ticks are in that database, too."""
        if not self._rows.known or self._chosen == ("database", self._database.alias):
            raise exc
        self._outage.go_on(exc, asked)

    # -- due, and run --------------------------------------------------------------------------------------------------

    def reread(self, keys: Sequence[str]) -> Mapping[str, tuple[str, Any]]:
        """Return what is behind these keys now, straight from the rows."""
        pks = pks_of(keys)
        if pks and not self._outage.lasts:
            try:
                self._rows.read_again(set(pks.values()))
            except DatabaseAway as exc:
                self._go_on_without(exc, self._clock())
        if self._outage.lasts and any(key not in self._agenda for key in keys):
            # what another beat has left, of a row that nobody here knows
            raise StoreUnavailable("Django's database does not answer, and has to tell what is left to be sent")
        found = {}
        for key in keys:
            pk = pks.get(key)
            if pk is None:
                if item := self._agenda.get(key):
                    found[key] = (key, item.entry)
            elif row := self._rows.get(pk):
                found[key] = (row.key, row.entry)
        return found

    def is_due(self, entry: Any) -> tuple[bool, float | None]:
        """Return (is due, seconds until the next look), as the entry does, but without its queries."""
        model = getattr(entry, "model", None)
        if model is not None:
            if model.one_off and entry.total_run_count > 0:
                return False, None
            if model.expires is not None and entry._default_now() >= model.expires:
                self._runs.expire(model.pk)
                return False, None
            if model.start_time is not None and (rest := model.start_time - entry._default_now()) > timedelta(0):
                # the entry itself would sleep beyond a time of its crontab that is its start time, too
                return False, rest.total_seconds()
            pass_over(entry)
        due: tuple[bool, float | None] = entry.is_due()
        return due

    def reserve(self, entry: Any) -> Any:
        """Keep the entry; :meth:`record_runs` writes its run into its row."""
        return entry

    def adopted(self, entry: Any) -> None:
        """Let the row count, unless the store knows of more runs."""
        model = getattr(entry, "model", None)
        if model is None:
            return
        if entry.total_run_count <= entry.lockbeat_run:
            if self._history.is_reset(entry):
                self._history.begin_anew(entry)
                entry.last_run_at = entry.lockbeat_last_run_at
            elif not self._store_knows_better(entry):
                entry.last_run_at = entry.lockbeat_last_run_at
        pass_over(entry)
        model.last_run_at, model.total_run_count = entry.last_run_at, entry.total_run_count

    def _store_knows_better(self, entry: Any) -> bool:
        """Whether the store has the last tick of an entry by a policy: one that was passed over, which is no run; or a row that was off has lost it."""
        if not self._planner.rules.concern(entry):
            return False
        is_lost = entry.lockbeat_stored_at is None and entry.lockbeat_run > 0
        return entry.last_run_at > entry.lockbeat_last_run_at or (is_lost and self._makes_up(entry))

    def record_runs(self, keys: Sequence[str]) -> None:
        """Write down last runs and counts, and disable what was to run once; what cannot be written now is with the next look."""
        for pk in pks_of(keys).values():
            if row := self._rows.get(pk):
                self._runs.note(pk, row.entry)
        if not (self._outage.lasts or self._runs.failed):
            self._runs.write_down()

    def sync(self) -> None:
        """Write down what is not written yet; Celery calls it at the end."""
        if self._runs:
            self.record_runs(())

    def _stand_in(self, key: str) -> Any:
        if self._outage.lasts or not pks_of([key]):
            return None
        # deleted, disabled, or not seen yet
        return ScheduleEntry(name=key, task="", schedule=schedules.schedule(1), total_run_count=-1, app=self.app)

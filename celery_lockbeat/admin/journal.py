"""The journal in Django's admin: to be looked at, by whoever has the permission to view it.

Promises: a page makes as many queries with a million records as with ten, of which one counts; whatever stands in a row is shown,
or passed over.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlencode

from celery.exceptions import ImproperlyConfigured
from django.contrib import admin, messages
from django.db.utils import DatabaseError
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import mark_safe
from django.utils.timezone import localtime

from celery_lockbeat.admin.listed import app_of_the_project
from celery_lockbeat.contrib.django.models import JournalRecord
from celery_lockbeat.exceptions import LockbeatError
from celery_lockbeat.journal.records import ENDINGS
from celery_lockbeat.membership.used import stores_in_use
from celery_lockbeat.options import LockOptions

__all__ = ["EVENTS", "JournalRecordAdmin"]

#: The events that are offered to choose from.
EVENTS: Final = (
    "tick_published",
    "tick_late",
    "tick_missed",
    "entry_silent",
    "task_waiting",
    "task_started",
    *ENDINGS,
    "run_overdue",
    "lock_expired_before_finish",
    "lock_replaced",
    "entry_paused",
    "entry_resumed",
    "entry_skips",
    "entry_run",
    "entry_backfill",
    "lock_freed",
    "driver_fallback",
    "records_dropped",
)


class _Filter(admin.SimpleListFilter):  # type: ignore[misc]
    """Records in whose text a field has a value. The texts are searched, for the table knows no fields."""

    #: how the field is called in a text
    written_as = ""
    offered: tuple[str, ...] = ()

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:  # noqa: ARG002
        chosen = self.value()
        others = () if chosen is None or chosen in self.offered else (chosen,)
        return [(each, each) for each in (*self.offered, *others)]

    def queryset(self, request: Any, queryset: Any) -> Any:  # noqa: ARG002
        value = self.value()
        # as the journal writes it: a quote inside of another value would have a backslash before it
        return queryset if value is None else queryset.filter(text__contains=f'"{self.written_as}":{json.dumps(value)}')


class _ByEvent(_Filter):
    title = parameter_name = "event"
    written_as = "e"
    offered = EVENTS


class _ByEntry(_Filter):
    """It offers what was chosen alone: entries are chosen by a click on their names in the list."""

    title = parameter_name = written_as = "entry"


def _of_record(name: str, title: str) -> Callable[[Any, JournalRecord], str]:
    """Return a column of what the record tells."""

    def column(_self: Any, row: JournalRecord) -> str:
        return _shown(getattr(row.record, name))

    column.short_description = title  # type: ignore[attr-defined]
    return column


@admin.register(JournalRecord)
class JournalRecordAdmin(admin.ModelAdmin):  # type: ignore[misc]
    """The newest first, a hundred on a page."""

    list_display = ("time", "event", "entry", "task", "status", "reason", "worker")
    list_display_links = ("time",)
    list_filter = (_ByEvent, _ByEntry)
    ordering = ("-position",)
    search_fields = ("text",)
    search_help_text = "any part of a record: a task's id, a key, a worker, an error"
    list_per_page = 100
    show_full_result_count = False  # the count of what is found is enough
    actions = None
    fields = readonly_fields = (*list_display, "app_name", "told", "text")

    task = _of_record("task_name", "task")
    status = _of_record("status", "status")
    reason = _of_record("reason", "reason")
    worker = _of_record("hostname", "worker")

    @admin.display(ordering="position")  # type: ignore[untyped-decorator]
    def time(self, row: JournalRecord) -> str:
        """When it happened, in the zone of the admin's other times."""
        at = row.record.at
        with contextlib.suppress(OverflowError, ValueError):  # of the first or the last day that there is
            at = localtime(at)
        return f"{at:%Y-%m-%d %H:%M:%S}"

    def event(self, row: JournalRecord) -> str:
        """What happened; a click lists such records alone."""
        return self._link("event", row.record.event)

    def entry(self, row: JournalRecord) -> str:
        """The entry of the schedule; a click lists its records alone."""
        return self._link("entry", row.record.entry)

    def _link(self, parameter: str, value: str | None) -> str:
        if value is None:
            return ""
        place = reverse("admin:lockbeat_journalrecord_changelist", current_app=self.admin_site.name)
        query = urlencode({parameter: value}, errors="replace")
        link: str = format_html('<a href="{}?{}">{}</a>', place, query, _shown(value))
        return link

    @admin.display(description="all that it tells")  # type: ignore[untyped-decorator]
    def told(self, row: JournalRecord) -> str:
        """The fields of the record, by their names in Python."""
        lines = [(_shown(name), _shown(value)) for name, value in row.record.fields().items()]
        told: str = format_html_join(mark_safe("<br>"), "{}: {}", lines)
        return told

    def get_queryset(self, request: Any) -> Any:
        """Return the rows of the database that the store is in."""
        return super().get_queryset(request).using(_database())

    def get_search_results(self, request: Any, queryset: Any, search_term: str) -> Any:
        """Search for it as it is written: in ASCII."""
        written = re.sub(r"[^\x00-\x7f]", lambda found: json.dumps(found[0])[1:-1], search_term)
        return super().get_search_results(request, queryset, written)

    def changelist_view(self, request: Any, extra_context: Any = None) -> HttpResponse:
        """Show a page of the list; a database that has no such table is a message."""
        if (place := _elsewhere()) is not None:
            text = f"The journal of this app is in {place}, and not here. What became of an entry's ticks is on its page, under Entries."
            self.message_user(request, text)
        try:
            return super().changelist_view(request, extra_context)
        except DatabaseError as exc:
            text = f"The journal cannot be read: {exc}; has 'manage.py migrate lockbeat' been run?"
            self.message_user(request, text, messages.ERROR)
            return redirect(f"{self.admin_site.name}:index")

    def has_add_permission(self, request: Any) -> bool:  # noqa: ARG002
        """Nobody: the store writes it."""
        return False

    def has_change_permission(self, request: Any, obj: Any = None) -> bool:  # noqa: ARG002
        """Nobody: what has happened has."""
        return False

    def has_delete_permission(self, request: Any, obj: Any = None) -> bool:  # noqa: ARG002
        """Nobody: the store drops the oldest."""
        return False


def _database() -> str | None:
    """Return the database of the store, as the app of this process has it; None: Django's own choice."""
    try:
        locks = LockOptions.read(app_of_the_project().conf, {}, owner="the app")
    except ImproperlyConfigured:
        return None
    return locks.connection if locks.driver == "database" else None


def _elsewhere() -> str | None:
    """Return where the journal of the app is; None: in a database, or nobody knows."""
    with contextlib.suppress(LockbeatError):
        home, *_ = stores_in_use(app_of_the_project())
        return None if home.store.driver == "database" else home.name
    return None


def _shown(value: Any) -> str:
    """Write what a record tells; half of a character, which JSON can hold and no page, as its number."""
    return "" if value is None else str(value).encode("utf-8", "backslashreplace").decode("utf-8")

"""The entries that the beats know, in the admin: what is wanted of each, and its runs; whoever may change them can pause one."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from itertools import islice
from typing import Any, Final
from urllib.parse import urlencode

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpResponse
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.html import format_html
from django.utils.timezone import get_current_timezone

from celery_lockbeat.admin.listed import Act, Listed, Row, app_of_the_project
from celery_lockbeat.admin.words import at, shown
from celery_lockbeat.contrib.django.models import Entry
from celery_lockbeat.control.schedules import ScheduledEntry, Schedules, schedules_of
from celery_lockbeat.exceptions import ConfigurationError, LockbeatError
from celery_lockbeat.insight.plain import every
from celery_lockbeat.insight.redaction import redactor
from celery_lockbeat.insight.times import coming_of, time_of
from celery_lockbeat.journal import read
from celery_lockbeat.journal.records import Said
from celery_lockbeat.journal.sentences import Writing, sentence_of
from celery_lockbeat.journal.ticks import Tick, ticks_of
from celery_lockbeat.observe.vocabulary import took
from celery_lockbeat.stores.base import Flag
from celery_lockbeat.tasks.task import LockedTask

__all__ = ["EntryAdmin", "link_to_runs"]

#: Runs on the page of an entry, and records that are read for each.
RUNS: Final = 100
RECORDS_OF_A_RUN: Final = 6

#: Next moments that are told, and names of what something was done with.
DUES: Final = 5
TOLD: Final = 5


def link_to_runs(name: str, text: str, site: str = "admin") -> str:
    """Return a link to the page of an entry."""
    place = reverse("admin:lockbeat_entry_runs", current_app=site)
    link: str = format_html('<a href="{}?{}">{}</a>', place, urlencode({"name": name}, errors="replace"), text)
    return link


# -- what is done ------------------------------------------------------------------------------------------------------


class _Noted(forms.Form):  # type: ignore[misc]
    note = forms.CharField(required=False, max_length=200, label="Why", help_text="for whoever wonders")


class _Until(_Noted):
    until = forms.CharField(
        required=False,
        max_length=40,
        help_text="2h, 18:00, or a time in ISO 8601; empty: until it is resumed",
    )
    field_order = ("until", "note")

    def clean_until(self) -> datetime | None:
        """Return the time."""
        text = self.cleaned_data["until"]
        try:
            return coming_of(text, app_of_the_project(), "until") if text else None
        except ConfigurationError as exc:
            raise ValidationError(str(exc)) from exc


class _Catchup(forms.Form):  # type: ignore[misc]
    catchup = forms.ChoiceField(
        required=False,
        label="Ticks that were passed over",
        choices=[
            ("", "as the entry says"),
            ("latest", "the last one runs"),
            ("all", "each runs"),
            ("none", "none runs"),
        ],
    )


class _Count(_Noted):
    count = forms.IntegerField(min_value=0, max_value=999_999, label="How many", help_text="0: none any more")
    field_order = ("count", "note")


def _named(value: str) -> str:
    try:
        name = json.loads(value)
    except ValueError:
        name = None
    return name if isinstance(name, str) else ""


def _chosen(app: Any, values: Sequence[str]) -> Schedules:
    known, names = schedules_of(app), list(map(_named, values))
    if unknown := [name for name in names if name not in known]:
        raise LockbeatError(f"Nothing is known of an entry {unknown[0]!r}: nothing was done.")
    return known.only(*names)


def _pause(app: Any, values: Sequence[str], asked: Mapping[str, Any], who: str) -> Iterator[str | LockbeatError]:
    entries, until = _chosen(app, values), asked["until"]
    entries.pause(until=until, note=asked["note"] or None, who=who)
    over = f"until {at(until)}" if until else "until it is resumed" if len(entries) == 1 else "until they are resumed"
    yield f"Paused {over}: {_told(entries)}"


def _resume(app: Any, values: Sequence[str], asked: Mapping[str, Any], who: str) -> Iterator[str | LockbeatError]:
    entries = _chosen(app, values)
    resumed = entries.resume(catchup=asked["catchup"] or None, who=who)
    if resumed:
        yield f"Resumed: {_told(resumed)}"
    if others := [name for name in entries if name not in resumed]:
        yield LockbeatError(f"Not paused, so nothing was done: {_told(others)}")


def _skip(app: Any, values: Sequence[str], asked: Mapping[str, Any], who: str) -> Iterator[str | LockbeatError]:
    entries, count = _chosen(app, values), asked["count"]
    entries.skip(count, note=asked["note"] or None, who=who)
    yield f"{f'The next {count} ticks are' if count else 'No tick is'} passed over: {_told(entries)}"


def _run(app: Any, values: Sequence[str], asked: Mapping[str, Any], who: str) -> Iterator[str | LockbeatError]:
    for name, entry in _chosen(app, values).items():
        try:
            claim = entry.run(note=asked["note"] or None, who=who)
        except LockbeatError as exc:  # noqa: PERF203  of each by itself
            yield exc
        else:
            yield f"A beat publishes {shown(name)!r}, run {claim.state.total_run_count}, as task {claim.task_id}."


def _told(names: Collection[str]) -> str:
    some = ", ".join(repr(shown(name)[:80]) for name in islice(names, TOLD))
    return f"{len(names)} entries, {some}, ..." if len(names) > TOLD else some


ACTS: Final = (
    Act(
        "pause",
        "Pause selected entries",
        "Pause them",
        "No tick of these is published any more, by any beat.",
        _pause,
        _named,
        _Until,
    ),
    Act(
        "resume",
        "Resume selected entries",
        "Resume them",
        "The ticks of these are published again.",
        _resume,
        _named,
        _Catchup,
    ),
    Act(
        "skip",
        "Skip ticks of selected entries",
        "Skip them",
        "The next ticks of each are passed over.",
        _skip,
        _named,
        _Count,
    ),
    Act(
        "run",
        "Run selected entries now",
        "Run them now",
        "A beat publishes one tick of each now. When they are due next stays as it is.",
        _run,
        _named,
        _Noted,
    ),
)


# -- what is shown -----------------------------------------------------------------------------------------------------


@admin.register(Entry)
class EntryAdmin(Listed):
    """By their names."""

    columns = ("entry", "state", "beats", "published", "last published")
    finds = "a part of a name"
    acts = ACTS

    def get_urls(self) -> list[Any]:
        """Return the addresses: of the list, and of an entry's runs."""
        runs = path("runs/", self.admin_site.admin_view(self.runs_view), name="lockbeat_entry_runs")
        return [*super().get_urls(), runs]

    def listed(self, app: Any, wanted: str) -> tuple[Sequence[Row], Sequence[str]]:
        """Return the entries that the beats of the app know, and those that it has itself."""
        part, entries = wanted.casefold(), schedules_of(app)
        flags = entries.flags()
        found = (each for name, each in entries.items() if part in name.casefold())
        return [self._row_of(entry, flags.get(entry.name)) for entry in found], ()

    def _row_of(self, entry: ScheduledEntry, flag: Flag | None) -> Row:
        known = entry.known
        last = None if known is None else known.last_published_at
        published = "" if known is None else str(known.published)
        link = link_to_runs(entry.name, shown(entry.name), self.admin_site.name)
        return Row(json.dumps(entry.name), link, (_wanted(flag), str(entry.beats), published, _time(last)))

    def runs_view(self, request: Any) -> HttpResponse:
        """Show what an entry is, and its last runs."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        app, name = app_of_the_project(), request.GET.get("name", "")
        clean = redactor(app)
        try:
            facts, runs, why = *_known_of(app, name), ""
        except LockbeatError as exc:
            facts, runs, why = [], [], shown(clean(exc))
        is_known = bool(facts or runs or why)
        context = {
            **self._about(request),
            "title": shown(name) if is_known else "No such entry",
            "name": shown(name),
            "facts": [(what, shown(clean(value))) for what, value in facts],
            "runs": [[shown(clean(cell)) for cell in run] for run in runs],
            "why": why,
            "columns": ("due", "outcome", "took", "worker", "what became of it"),
            "is_known": is_known,
            "list": self._list(),
        }
        return TemplateResponse(request, "admin/lockbeat/runs.html", context, status=200 if is_known else 404)


def _wanted(flag: Flag | None) -> str:
    """Say what is wanted of an entry, by whom and why."""
    if flag is None:
        return ""
    said: list[str] = []
    if flag.paused:
        who = Said.read(flag.told)
        until = f" until {at(datetime.fromtimestamp(flag.until, timezone.utc))}" if flag.until is not None else ""
        said.append(f"paused by {who.who or 'somebody'}{until}{f': {who.note}' if who.note else ''}")
    if flag.skip:
        who = Said.read(flag.skip_told)
        said.append(f"the next {flag.skip} skipped, by {who.who or 'somebody'}{f': {who.note}' if who.note else ''}")
    return shown("; ".join(said))


def _known_of(app: Any, name: str) -> tuple[list[tuple[str, str]], list[Sequence[str]]]:
    """Return what an entry is, and its last runs, newest first; neither where nothing is known of it. Raises LockbeatError."""
    entry = schedules_of(app).get(name)
    runs = _runs_of(app, name)
    return ([] if entry is None else _facts(entry)), runs


def _facts(entry: ScheduledEntry) -> list[tuple[str, str]]:
    definition, known = entry.definition(), entry.known
    told = [
        ("task", "" if definition is None else definition.task),
        ("schedule", "" if definition is None else _schedule(definition.schedule)),
        ("kept in", "" if definition is None else definition.where),
        ("state", _wanted(entry.flag_now())),
        ("beats that list it", str(entry.beats)),
        ("published", "" if known is None else str(known.published)),
        ("next due", ", ".join(map(at, entry.next(DUES)))),
    ]
    told += [
        ("backfill", f"{each.published} of {each.total} published, asked by {each.who}") for each in entry.backfills()
    ]
    return [(what, value) for what, value in told if value]


def _schedule(when: Any) -> str:
    interval = getattr(when, "run_every", None)
    return str(when).strip("<>") if interval is None else every(interval.total_seconds())


def _runs_of(app: Any, name: str) -> list[Sequence[str]]:
    ticks = ticks_of(read(app, entry=name, limit=RUNS * RECORDS_OF_A_RUN), lambda task: _tells(app, task))
    write = Writing(get_current_timezone(), took)
    return [_run_told(tick, ticks, write) for tick in reversed(ticks[-RUNS:])]


def _tells(app: Any, task: str) -> bool:
    return isinstance(app.tasks.get(task), LockedTask)


def _run_told(tick: Tick, ticks: Sequence[Tick], write: Writing) -> Sequence[str]:
    last = tick.last
    took_ = took(last.took) if last is not None and last.took is not None and last.status != "skipped" else ""
    return at(tick.at), tick.outcome, took_, (last and last.worker) or "", sentence_of(tick, ticks, write)


def _time(text: str | None) -> str:
    when = time_of(text or "", app_of_the_project())
    return shown(text) if when is None else at(when)

"""docs/journal.md: its tables are those of the code, and its example runs."""

from __future__ import annotations

import dataclasses
import re
import threading
from datetime import datetime, timezone
from pathlib import Path

from ledgers import published

import docs
from celery_lockbeat import Lock, LockedTask
from celery_lockbeat.journal import read
from celery_lockbeat.journal.records import ENDINGS, VERSION, WRITTEN_AS, Record
from celery_lockbeat.journal.ticks import OUTCOMES
from celery_lockbeat.journal.writer import journal_of
from celery_lockbeat.observe.events import _JOURNALED

PACKAGE = Path(__file__).parents[2] / "celery_lockbeat"
PAGE = (docs.DOCS / "journal.md").read_text("utf-8")

#: Who writes what no run says of itself.
WRITERS = (
    "beat/recorder.py",
    "beat/controls.py",
    "beat/silence.py",
    "control/acts.py",
    "control/locks.py",
    "control/schedules.py",
    "journal/writer.py",
    "locks/children.py",
    "locks/streaks.py",
    "journal/records.py",
    "web/acts.py",
)

_NAME = re.compile(r"`(\w+)`")


def table(head: str) -> list[list[str]]:
    """The cells of the rows of the table that begins so."""
    (rows,) = re.findall(rf"^\| {head} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return [[cell.strip() for cell in row[1:-1].split("|")] for row in rows.splitlines()]


def names_in(head: str) -> list[str]:
    return [name for cell, *_ in table(head) for name in _NAME.findall(cell)]


def fields_of_events() -> dict[str, set[str]]:
    """The fields that the page has for each event."""
    (of_runs,) = re.findall(r"^The fields of a run are (.*)$", PAGE, re.MULTILINE)
    found: dict[str, set[str]] = {}
    before: set[str] = set()
    for cell, _, what in table("event"):
        fields = set(_NAME.findall(what))
        fields |= set(_NAME.findall(of_runs)) if "the fields of a run" in what else set()
        before = before | fields if what.startswith("the same") else fields
        found |= dict.fromkeys(_NAME.findall(cell), before)
    return found


def test_each_event_that_is_written_is_in_the_table_and_no_other():
    written = set(_JOURNALED)
    for name in WRITERS:
        written |= set(
            re.findall(r'"((?:tick|records|entry|task)_\w+|lock_freed|unreadable)"', (PACKAGE / name).read_text())
        )
    written -= set(WRITTEN_AS)
    assert set(names_in("event")) == written
    assert set(ENDINGS) < written


def test_each_field_of_a_record_is_in_the_table_and_no_other():
    fields = {each.name for each in dataclasses.fields(Record)} - {"position", "more"}
    assert sorted(names_in("field")) == sorted(fields)
    assert set(WRITTEN_AS) == fields - {"event", "at"}
    assert f"\nVersion {VERSION}. " in PAGE
    assert set().union(*fields_of_events().values()) <= fields


def test_units_are_those_of_the_names_and_types():
    units = {name: unit for cell, unit, _ in table("field") for name in _NAME.findall(cell)}
    for each in dataclasses.fields(Record):
        if each.name in units:
            assert (units[each.name] == "time") == ("datetime" in str(each.type)), each.name
            assert (units[each.name] == "milliseconds") == each.name.endswith("_ms"), each.name
            assert (units[each.name] == "true") == ("bool" in str(each.type)), each.name


def test_each_outcome_is_explained():
    assert sorted(names_in("outcome")) == sorted(OUTCOMES)


def test_the_example_runs(make_app, server):
    scope = docs.run("journal.md", url=server.url)
    app = scope["app"]
    task = app.task(base=LockedTask, name="breaks")(_break)
    found = threading.Event()

    def fail() -> None:
        while not found.wait(0.1):  # it may begin to follow after the first of them
            task.apply(throw=False)

    failing = threading.Thread(target=fail)
    failing.start()
    record = scope["first_failure"](app)
    found.set()
    failing.join()
    assert (record.task_name, record.error_name) == ("breaks", "ZeroDivisionError")
    app.close()


def _break() -> None:
    1 / 0  # noqa: B018


def test_what_runs_write_has_the_fields_of_the_table(make_app):
    app = make_app(lockbeat_driver="memory", task_always_eager=False)
    works = app.task(base=LockedTask, name="works", lock_key="one")(_nothing)
    breaks = app.task(base=LockedTask, name="breaks", lock_key="one", autoretry_for=(OSError,), max_retries=1)(
        _no_route
    )
    works.apply(headers={"lockbeat": {"entry": "e", "due": "2026-03-01T12:00:00+00:00", "run": 1, "kind": "cron"}})
    breaks.apply(throw=False)
    with Lock("one", app=app):
        works.apply()
    journal_of(app).write(within=5)
    documented = fields_of_events()
    seen = {}
    for record in read(app, limit=None):
        seen.setdefault(record.event, set()).update(set(record.fields()) - {"event", "at", "status"})
    assert set(seen) == {"task_succeeded", "task_failed", "task_retried", "task_skipped"}
    assert {event: fields - documented[event] for event, fields in seen.items()} == {event: set() for event in seen}


def _nothing() -> None: ...


def _no_route() -> None:
    raise OSError("no route")


def test_what_is_written_here_is_what_the_page_says():
    told = published(1, 0).fields()
    assert set(told) - {"event", "at"} <= fields_of_events()["tick_published"]
    assert datetime.fromisoformat(told["due"]).tzinfo == timezone.utc

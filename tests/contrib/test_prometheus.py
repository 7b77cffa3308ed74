"""What ``celery lockbeat metrics`` exports: of records, of a store that is there or away, and by Prometheus' own rules."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import threading
import time
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import debian_binary, wait_until

import docs
from celery_lockbeat import Lock
from celery_lockbeat.contrib.measures import Labels
from celery_lockbeat.journal import Record
from celery_lockbeat.journal.records import WRITTEN_AS, read_record
from celery_lockbeat.journal.writer import journal_of
from celery_lockbeat.stores import home_store_of
from celery_lockbeat.stores.base import EntryState, StoredRecord

pytest.importorskip("prometheus_client")

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition, parser

from celery_lockbeat.contrib.prometheus import LockbeatCollector, looks
from celery_lockbeat.contrib.prometheus.tally import Tally

NOW = datetime(2026, 3, 1, tzinfo=timezone.utc)


class Scraped:
    """A registry with what is to be scraped."""

    def __init__(self, collector) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(collector)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    def samples(self, name: str) -> dict[tuple[tuple[str, str], ...], float]:
        return {
            tuple(sorted(sample.labels.items())): sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == name
        }


class Counted:
    """A tally, as a collector."""

    def __init__(self, *records: Record, entries: int = 100, tasks: int = 100) -> None:
        self.tally = Tally(Labels(entries), Labels(tasks))
        for record in records:
            self.tally.count(record)

    def collect(self):
        return self.tally.families()


def counted(*records: Record, **at_most: int) -> Scraped:
    return Scraped(Counted(*records, **at_most))


def tick(event: str, **fields) -> Record:
    return Record(event=event, at=NOW, **{"entry": "report", "task_name": "shop.report", **fields})


def run(event: str, **fields) -> Record:
    return Record(event=event, at=NOW, **{"task_name": "shop.report", "driver": "redis", **fields})


# -- what records add up to --------------------------------------------------------------------------------------------


def test_ticks_are_counted_by_entry_and_outcome():
    told = counted(
        tick("tick_published", late=0.3),
        tick("tick_published", late=7.0, taken_over=True),
        tick("tick_published", late=40.0, entry="other-job"),
        tick("tick_late", late=40.0, entry="other-job"),
        tick("tick_missed", count=3),
        tick("tick_missed"),
        tick("entry_silent"),
    )
    assert told.value("lockbeat_ticks_total", entry="report", outcome="published") == 2
    assert told.value("lockbeat_ticks_total", entry="report", outcome="missed") == 4
    assert told.value("lockbeat_ticks_total", entry="other-job", outcome="published") == 1
    assert told.samples("lockbeat_late_ticks_total") == {(("entry", "report"),): 0, (("entry", "other-job"),): 1}
    assert told.value("lockbeat_taken_over_ticks_total", entry="report") == 1
    assert told.value("lockbeat_silences_total", entry="report") == 1
    assert told.value("lockbeat_tick_lateness_seconds_bucket", le="0.5") == 1
    assert told.value("lockbeat_tick_lateness_seconds_bucket", le="10.0") == 2
    assert told.value("lockbeat_tick_lateness_seconds_count") == 3
    assert told.value("lockbeat_tick_lateness_seconds_sum") == pytest.approx(47.3)
    assert told.value("lockbeat_journal_records_total") == 7


def test_runs_are_counted_by_task_status_and_reason():
    told = counted(
        run("task_started"),
        run("task_succeeded", duration_ms=2000.0, acquire_ms=3.0),
        run("task_failed", duration_ms=0.0, error_name="StoreUnavailable"),
        run("task_failed", duration_ms=70.0, error_name="ValueError"),
        run("task_retried", duration_ms=20.0),
        run("task_skipped", reason="locked", holder="celery@w1 pid 7", acquire_ms=700.0),
        run("task_skipped", reason="What Somebody Wrote There"),
        run("task_died", signal=9),
        run("lock_expired_before_finish"),
        run("driver_fallback"),
        run("run_overdue"),
        run("lock_expired_before_finish", task_name=None),
    )
    runs = {
        tuple(value for _, value in labels): number for labels, number in told.samples("lockbeat_runs_total").items()
    }
    assert {labels: number for labels, number in runs.items() if number} == {
        ("", "success", "shop.report"): 1,
        ("", "failed", "shop.report"): 2,
        ("", "retry", "shop.report"): 1,
        ("locked", "skipped", "shop.report"): 1,
        ("other", "skipped", "shop.report"): 1,
        ("", "died", "shop.report"): 1,
    }
    assert told.value("lockbeat_run_duration_seconds_count", task="shop.report") == 3
    assert told.value("lockbeat_run_duration_seconds_sum", task="shop.report") == pytest.approx(2.09)
    assert told.value("lockbeat_acquire_seconds_count", driver="redis") == 2
    assert told.samples("lockbeat_locks_lost_total") == {(("task", ""),): 1, (("task", "shop.report"),): 1}
    assert told.value("lockbeat_fallbacks_total", task="shop.report") == 1
    assert told.value("lockbeat_overdue_runs_total", task="shop.report") == 1


def test_dropped_records_are_counted_by_how_many_they_were():
    told = counted(Record(event="records_dropped", at=NOW, count=120), Record(event="records_dropped", at=NOW, count=1))
    assert told.value("lockbeat_journal_records_dropped_total") == 121


def test_what_is_known_but_has_not_happened_is_there_as_0():
    told = counted(tick("tick_published", late=0.0))
    assert told.value("lockbeat_ticks_total", entry="report", outcome="missed") == 0
    assert told.value("lockbeat_runs_total", task="shop.report", status="skipped", reason="locked") == 0
    assert told.value("lockbeat_locks_lost_total", task="shop.report") == 0
    assert told.value("lockbeat_locks_lost_total", task="") == 0


def test_more_entries_and_tasks_than_there_may_be_are_other_ones():
    records = [
        each
        for number in range(300)
        for each in (
            tick("tick_published", entry=f"entry-{number}", task_name=f"task-{number}", late=0.1),
            run("task_succeeded", entry=f"entry-{number}", task_name=f"task-{number}", duration_ms=1.0),
        )
    ]
    told = counted(*records, entries=10, tasks=5)
    assert len(told.samples("lockbeat_ticks_total")) == 3 * 11
    assert told.value("lockbeat_ticks_total", entry="entry-9", outcome="published") == 1
    assert told.value("lockbeat_ticks_total", entry="other", outcome="published") == 290
    assert len(told.samples("lockbeat_run_duration_seconds_count")) == 6
    assert told.value("lockbeat_runs_total", task="other", status="success", reason="") == 295


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
EVENTS = ["tick_published", "tick_missed", "task_succeeded", "task_skipped", "task_died", "records_dropped", "new"]


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.dictionaries(st.sampled_from([*WRITTEN_AS.values()]), JSON))))
def test_whatever_is_in_a_journal_can_be_counted_and_written(records):
    read = [read_record(StoredRecord("1-1", 1.0, json.dumps({"e": event, **fields}))) for event, fields in records]
    told = counted(*read, tick("tick_published", entry="half \ud800", late=math.nan))
    text = generate_latest(told.registry).decode()
    assert 'entry="half ?"' in text
    assert "nan" not in text.lower()


# -- the collector, over a store ---------------------------------------------------------------------------------------


@pytest.fixture
def export():
    collectors = []

    def make(app, **at_most: int) -> Scraped:
        collectors.append(LockbeatCollector(app, **at_most))
        return Scraped(collectors[-1])

    yield make
    for each in collectors:
        each.stop()


def write(app, event, **fields):
    journal = journal_of(app)
    journal.put(event, {"schedule": "report", "task_name": "shop.report", **fields})
    wait_until(lambda: journal.write(within=5) and not journal._waiting, message="it is written")


def published(told) -> float | None:
    return told.value("lockbeat_ticks_total", entry="report", outcome="published")


def test_what_was_there_is_seen_and_what_comes_is_counted(app, export):
    write(app, "task_succeeded", duration_ms=1.0)
    write(app, "tick_published", late=0.0)
    told = export(app)
    wait_until(lambda: published(told) == 0, message="it has seen the past")
    assert 0 <= told.value("lockbeat_since_success_seconds", entry="report") < 60
    write(app, "tick_published", late=0.0)
    write(app, "tick_missed", count=2)
    wait_until(lambda: told.value("lockbeat_ticks_total", entry="report", outcome="missed") == 2)
    assert published(told) == 1
    assert told.value("lockbeat_journal_records_total") == 2
    wait_until(lambda: told.value("lockbeat_journal_lag_seconds") < 1)


def test_a_second_exporter_begins_at_0(app, export):
    first = export(app)
    assert first.value("lockbeat_store_up") == 1
    wait_until(lambda: first.value("lockbeat_journal_lag_seconds") < 0.4)
    write(app, "tick_published", late=0.0)
    wait_until(lambda: published(first) == 1)
    second = export(app)
    wait_until(lambda: published(second) == 0)
    write(app, "tick_published", late=0.0)
    wait_until(lambda: (published(first), published(second)) == (2, 1))


def test_locks_beats_and_claims_are_gauges(app, export):
    told = export(app)
    assert (told.value("lockbeat_beats_alive"), told.value("lockbeat_locks_held")) == (0, 0)
    beats = home_store_of(app).beats
    beats.join(app.main, "a")
    beats.list_entries(
        app.main, "a", [("report", EntryState(0, "then")), ("old", EntryState(0, "then"))], complete=True
    )
    with Lock("key", app=app), Lock("another", app=app):
        wait_until(lambda: told.value("lockbeat_locks_held") == 2)
        wait_until(lambda: told.value("lockbeat_beats_alive") == 1)
    assert told.value("lockbeat_entries") == 2
    assert told.value("lockbeat_claims_pending") == 0
    assert told.value("lockbeat_claims_overdue") == 0


def test_an_entry_that_no_beat_lists_any_more_is_not_silent(app, export):
    beats, then = home_store_of(app).beats, EntryState(0, "then")
    beats.join(app.main, "a")
    beats.list_entries(app.main, "a", [("report", then), ("other", then)], complete=True)
    for entry in ("report", "other"):
        write(app, "task_succeeded", schedule=entry, duration_ms=1.0)
    told = export(app)
    silent = "lockbeat_since_success_seconds"
    wait_until(lambda: told.samples(silent).keys() == {(("entry", "report"),), (("entry", "other"),)})
    beats.list_entries(app.main, "a", [], removed=["other"], complete=True)
    wait_until(lambda: told.samples(silent).keys() == {(("entry", "report"),)})
    beats.leave(app.main, "a")
    # nobody knows any more what there is
    wait_until(lambda: len(told.samples(silent)) == 2)


def test_a_store_that_is_away_is_said_and_what_happened_meanwhile_is_counted(make_app, spare_server, export):
    app = make_app(lockbeat_redis_url=spare_server.url, lockbeat_redis_options={"socket_timeout": 0.2})
    told = export(app)
    wait_until(lambda: told.value("lockbeat_store_up") == 1)
    write(app, "tick_published", late=0.0)
    wait_until(lambda: published(told) == 1)
    spare_server.pause()
    journal_of(app).put("tick_published", {"schedule": "report", "late": 0.0})
    wait_until(lambda: told.value("lockbeat_store_up") == 0)
    wait_until(lambda: told.value("lockbeat_journal_lag_seconds") > 1.5)
    assert published(told) == 1
    for name in ("lockbeat_beats_alive", "lockbeat_claims_pending", "lockbeat_locks_held"):
        assert told.value(name) is None
    spare_server.resume()
    wait_until(lambda: told.value("lockbeat_store_up") == 1)
    wait_until(lambda: published(told) == 2)
    wait_until(lambda: told.value("lockbeat_journal_lag_seconds") < 1)


def test_a_store_that_is_away_at_the_start_is_waited_for(make_app, spare_server, export):
    app = make_app(lockbeat_redis_url=spare_server.url, lockbeat_redis_options={"socket_timeout": 0.2})
    write(app, "task_succeeded", duration_ms=1.0)
    spare_server.pause()
    told = export(app)
    assert told.value("lockbeat_store_up") == 0
    spare_server.resume()
    wait_until(lambda: told.samples("lockbeat_since_success_seconds"))


def test_however_many_scrape_the_store_is_asked_twice_a_second(app, export, monkeypatch):
    asked = []
    beats = home_store_of(app).beats
    status = beats.status
    monkeypatch.setattr(beats, "status", lambda *args: asked.append(time.monotonic()) or status(*args), raising=True)
    told = export(app)
    until = time.monotonic() + 1.2

    def scrape():
        while time.monotonic() < until:
            told.value("lockbeat_store_up")

    threads = [threading.Thread(target=scrape) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 2 <= len(asked) <= 4
    assert all(later - earlier >= looks.EVERY for earlier, later in itertools.pairwise(asked))


def test_the_locks_are_counted_for_a_twentieth_of_the_time_and_nobody_waits_for_that(app, export, monkeypatch):
    began = []

    def held(*_, **__):
        began.append(time.monotonic())
        time.sleep(0.2)
        return []

    monkeypatch.setattr(home_store_of(app).locks, "held", held)
    monkeypatch.setattr(looks, "PATIENCE", 0.0)
    told = export(app)
    assert told.value("lockbeat_locks_held") is None
    wait_until(lambda: told.value("lockbeat_locks_held") == 0)
    asked = time.monotonic()
    while time.monotonic() - asked < 1:
        told.value("lockbeat_locks_held")
    assert len(began) == 1
    monkeypatch.setattr(looks, "RESTS", 0.0)
    wait_until(lambda: told.value("lockbeat_locks_held") is not None and time.monotonic() - began[0] > 0.2 * 20)
    wait_until(lambda: (told.value("lockbeat_locks_held"), len(began))[1] > 1)


def test_the_collector_goes_into_a_registry_that_refuses_names_that_are_taken(app, export):
    registry = CollectorRegistry()
    collector = LockbeatCollector(app)
    registry.register(collector)
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(LockbeatCollector(app))
    assert collector._follower._thread is None, "nothing is begun before somebody scrapes"


def test_the_page_says_how_to_put_it_into_an_exporter_of_ones_own(server):
    page = docs.run("how-to/metrics.md", "In an exporter of your own", url=server.url)
    try:
        assert b"\nlockbeat_store_up 1.0\n" in generate_latest(REGISTRY)
    finally:
        REGISTRY.unregister(page["collector"])
        page["collector"].stop()
        page["app"].close()


# -- Prometheus' rules -------------------------------------------------------------------------------------------------


@pytest.fixture
def full(app, export) -> Scraped:
    """All metrics that there are."""
    told = export(app)
    wait_until(lambda: told.value("lockbeat_journal_lag_seconds") < 0.4)
    beats = home_store_of(app).beats
    beats.join(app.main, "a")
    beats.list_entries(app.main, "a", [("report", EntryState(0, "then"))], complete=True)
    write(app, "tick_published", late=0.0)
    write(app, "task_succeeded", duration_ms=1.0, acquire_ms=1.0, driver="redis")
    wait_until(lambda: told.value("lockbeat_acquire_seconds_count", driver="redis"))
    return told


def test_promtool_has_nothing_to_say_against_names_and_help(full):
    promtool = debian_binary("promtool", "prometheus")
    checked = subprocess.run([promtool, "check", "metrics"], input=generate_latest(full.registry), capture_output=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_the_names_follow_prometheus_rules(full):
    """What ``promtool check metrics`` looks at, for where it is not installed."""
    for family in full.registry.collect():
        assert family.documentation
        assert family.name.startswith("lockbeat_")
        assert family.name == family.name.lower()
        assert not {"counter", "gauge", "histogram", "ms", "milliseconds"} & set(family.name.split("_"))
        exported = {sample.name for sample in family.samples}
        if family.type == "counter":
            assert exported == {f"{family.name}_total"}
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
            assert exported == {f"{family.name}_{end}" for end in ("bucket", "count", "sum")}
        if family.type == "gauge":
            assert not family.name.endswith(("_total", "_count", "_sum", "_bucket"))
        for sample in family.samples:
            assert set(sample.labels) <= {"entry", "outcome", "task", "status", "reason", "driver", "le"}


def test_the_page_has_all_of_them_with_their_labels(full):
    page = (docs.DOCS / "how-to" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(lockbeat_\w+)` \| (\w+) \| (.*?) \|", page, re.MULTILINE)
    written = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    exported = {
        family.name + ("_total" if family.type == "counter" else ""): (
            family.type,
            {label for sample in family.samples for label in sample.labels} - {"le"},
        )
        for family in full.registry.collect()
    }
    assert written == exported


def test_openmetrics_reads_it_too(full):
    text = exposition.generate_latest(full.registry).decode()
    read = list(parser.text_string_to_metric_families(text))
    assert {family.name for family in read} == {family.name for family in full.registry.collect()}


def test_since_success_is_by_the_clock_of_the_records(app, export, monkeypatch):
    write(app, "task_succeeded", duration_ms=1.0)
    told = export(app)
    wait_until(lambda: told.samples("lockbeat_since_success_seconds"))
    later = time.time() + timedelta(hours=2).total_seconds()
    monkeypatch.setattr(time, "time", lambda: later)
    assert told.value("lockbeat_since_success_seconds", entry="report") == pytest.approx(7200, abs=30)

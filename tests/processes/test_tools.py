"""What watches Celery watches locked tasks too: each tool for real, beside a task and a beat of stock Celery."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from celery import Celery
from servers import free_port, wait_until

from celery_lockbeat import Lock


class Watched:
    """A fleet that is watched by a tool, and what that has told."""

    def __init__(self, fleet, tool: str) -> None:
        self.fleet = fleet
        self._path = fleet.directory / "told.jsonl"
        self.settings = {"imports": ["watched"], "test_tool": tool, "test_record": str(self._path)}

    def worker(self, **options):
        # one child: it runs what it is sent in order
        [worker] = self.fleet.workers("a", concurrency=1, **self.settings, **options)
        return worker

    def beat(self, scheduler: str, entries: dict[str, list[str]]):
        more = ["-s", str(self.fleet.directory / "schedule")] if "Persistent" in scheduler else []
        arguments = ["beat", "-S", scheduler, "-l", "INFO", "--pidfile=", *more]
        return self.fleet._start("beat", arguments, {**self.settings, "test_entries": entries})

    def told(self, **fields: object) -> list[dict[str, Any]]:
        """What it was told so far."""
        # the last line may be half written
        lines = self._path.read_text().split("\n")[:-1] if self._path.exists() else []
        told = map(json.loads, lines)
        return [each for each in told if all(each.get(name) == value for name, value in fields.items())]


@pytest.fixture
def watch(make_fleet, locks) -> Callable[[str], Watched]:
    return lambda tool: Watched(make_fleet(lockbeat_redis_url=locks.url), tool)


# -- Sentry ------------------------------------------------------------------------------------------------------------


ENDINGS = ["return", "raise", "retry", "give up", "ignore", "reject"]


def exceptions_of(events: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    """What Sentry groups by, of each event: the chain of exceptions, and where the last one was raised."""
    return [
        tuple((each["module"], each["type"], each["stacktrace"]["frames"][-1]["function"]) for each in values)
        for event in events
        for values in [event.get("exception", {}).get("values", [])]
    ]


def test_sentry_has_one_event_of_each_failure_grouped_by_its_exception_and_none_of_a_retry_as_with_stock_celery(
    watch, key
):
    sentry = watch("Sentry")
    sentry.worker()
    send = sentry.fleet.send
    runs = {
        (name, how): send(f"{name}.fail", f"{key}-{name}-{how}", how) for name in ("stock", "locked") for how in ENDINGS
    }
    runs |= {(name, "by itself"): send(f"{name}.fail_by_itself", f"{key}-{name}") for name in ("stock", "locked")}
    for (_, how), run in runs.items():
        if how not in ("ignore", "reject"):
            run.get(timeout=30, propagate=False)
    assert send("stock.fail", key, "return").get(timeout=20) == "well"  # so it has come to all before
    by_task = defaultdict(list)
    for event in sentry.told(type="event"):
        by_task[event["tags"]["celery_task_id"]].append(event)
    [failed] = by_task[runs["locked", "raise"].id]
    assert "celery_lockbeat.events" in {each["category"] for each in failed["breadcrumbs"]["values"]}
    seen = {run: exceptions_of(by_task.pop(result.id, [])) for run, result in runs.items()}
    assert not by_task
    trouble = [(("watched", "Trouble", "fail"),)]
    expected = {how: trouble if how == "raise" else [] for how in [*ENDINGS, "by itself"]}
    for how, events in expected.items():
        if how == "give up":
            assert len(seen["locked", how]) == 1
            assert seen["locked", how] == seen["stock", how]
        else:
            assert seen["locked", how] == seen["stock", how] == events, how


def test_sentry_has_one_issue_of_lost_locks_and_one_of_falling_back_with_a_title_and_the_fields(watch, key):
    sentry = watch("Sentry")
    sentry.worker(lockbeat_connections={"gone": f"redis://127.0.0.1:{free_port()}/0"})
    fallen = sentry.fleet.send("locked.fall_back", key, "return")
    assert fallen.get(timeout=30) == "well"
    runs = [sentry.fleet.send("locked.lose", f"{key}-{number}") for number in range(2)]
    for run in runs:
        run.get(timeout=30, propagate=False)
        assert run.state == "FAILURE"
    # Celery's own of the failed run
    raised = [event for event in sentry.told(type="event") if "exception" in event]
    assert [event["exception"]["values"][-1]["type"] for event in raised] == ["LockLost", "LockLost"]
    lost = [event for event in sentry.told(type="event") if event.get("logentry", {}).get("message") == "lock lost: %s"]
    assert [event["logentry"]["formatted"] for event in lost] == [f"lock lost: {key}-{number}" for number in range(2)]
    assert {tuple(event["fingerprint"]) for event in lost} == {("{{ default }}", "locked.lose")}
    assert [event["contexts"]["lockbeat"]["task_id"] for event in lost] == [run.id for run in runs]
    others = [event for event in sentry.told(type="event") if event not in raised and event not in lost]
    assert [event["logentry"]["message"] for event in others] == [
        "%s falls back to memory: %s",
        "lock not extended: %s: %s",
        "lock not extended: %s: %s",
    ]
    assert others[0]["logentry"]["formatted"].startswith(f"locked.fall_back [{key}] falls back to memory: StoreUnavail")
    assert others[0]["contexts"]["lockbeat"]["task_id"] == fallen.id


@pytest.mark.parametrize("scheduler", ["celery.beat:PersistentScheduler", "celery_lockbeat:LockedScheduler"])
def test_a_skipped_run_ends_its_check_in_as_ok_and_all_others_end_as_with_stock_celery(watch, locks, key, scheduler):
    sentry = watch("Sentry")
    sentry.worker()
    held = Celery("holder", set_as_current=False)
    held.conf.lockbeat_redis_url = locks.url
    entries = {
        "well": ["locked.fail", f"{key}-1", "return"],
        "badly": ["locked.fail", f"{key}-2", "raise"],
        "skipped": ["locked.fail", f"{key}-3", "return"],
        "stock": ["stock.fail", f"{key}-4", "return"],
        "stock badly": ["stock.fail", f"{key}-5", "raise"],
    }
    ends = {"badly": "error", "stock badly": "error"}

    def check_ins() -> list[list[tuple[str, str]]]:
        by_id = defaultdict(list)
        for told in sentry.told(type="check_in"):
            by_id[told["check_in_id"]].append((told["monitor_slug"], told["status"]))
        return list(by_id.values())

    with Lock(f"{key}-3", app=held, ttl=60):
        sentry.beat(scheduler, entries)
        wait_until(
            lambda: [len(told) for told in check_ins()] == [2] * len(entries), message="all check-ins have ended"
        )
    assert sorted(check_ins()) == sorted([(name, "in_progress"), (name, ends.get(name, "ok"))] for name in entries)
    [skipped] = sentry.fleet.events(event="task_skipped")
    assert skipped["lock_key"] == f"{key}-3"


# -- logs as JSON ------------------------------------------------------------------------------------------------------


def whole_lines(process) -> str:
    """Its log so far, but for a last line that is half written."""
    return process.log().rpartition("\n")[0]


@pytest.mark.parametrize(
    ("tool", "text", "level", "name"),
    [("python-json-logger", "message", "levelname", "name"), ("structlog", "event", "level", "logger")],
)
def test_celerys_own_lines_and_ours_are_one_json_stream_with_each_field_once_in_workers_and_beats(
    watch, key, tool, text, level, name
):
    logs = watch(tool)
    worker = logs.worker()
    beat = logs.beat("celery_lockbeat:LockedScheduler", {"entry": ["locked.fail", key, "raise"]})
    wait_until(
        lambda: "raised unexpected" in whole_lines(worker) and "Sending due task" in whole_lines(beat),
        message="it has run",
    )
    lines = {json.loads(line).get("execution_id"): [] for line in whole_lines(worker).splitlines()}
    for line in whole_lines(worker).splitlines():
        lines[json.loads(line).get("execution_id")].append(line)
    celerys = [json.loads(line) for line in lines.pop(None)]
    [(run, told)] = lines.items()
    assert [line.count(run) for line in told] == [1, 1, 1]
    started, failed, finished = map(json.loads, told)
    assert [line["event"] for line in (started, failed, finished)] == ["task_started", "task_failed", "task_finished"]
    assert [line[level].lower() for line in (started, failed, finished)] == ["info", "warning", "info"]
    assert {line[name] for line in (started, failed, finished)} == {"celery_lockbeat.events"}
    assert failed["lock_key"] == key
    assert failed["error_name"] == "Trouble"
    if tool == "python-json-logger":
        assert started["message"] == f"locked.fail [{key}] has started"
        assert finished["message"] == f"locked.fail [{key}] is over: failed"
    [error] = [line for line in celerys if line[level].lower() == "error"]
    assert error[name] == "celery.app.trace"
    assert error[text].startswith("Task locked.fail[")
    assert "Traceback" in (error.get("exc_info") or error["exception"])
    sent = [json.loads(line) for line in whole_lines(beat).splitlines()]
    assert [line[name] for line in sent if line[text].startswith("Scheduler: Sending due task")] == ["celery.beat"]
    assert [line[name] for line in sent if "has joined the replicas" in line[text]] == ["celery_lockbeat.beat"]


# -- traces ------------------------------------------------------------------------------------------------------------


HOWS = ["return", "raise", "retry"]


def run_all(watched, key: str, locks) -> dict[tuple[str, str], str]:
    """Send, by a beat and from here, runs that end in these ways, with and without a lock; return their ids."""
    watched.worker()
    watched.beat("celery_lockbeat:LockedScheduler", {"tick": ["locked.fail", f"{key}-tick", "return"]})
    runs = {
        (name, how): watched.fleet.send(f"{name}.fail", f"{key}-{how}", how)
        for name in ("stock", "locked")
        for how in HOWS
    }
    holder = Celery("holder", set_as_current=False)
    holder.conf.lockbeat_redis_url = locks.url
    with Lock(f"{key}-skip", app=holder, ttl=60):
        runs["locked", "skip"] = watched.fleet.send("locked.fail", f"{key}-skip", "return")
        for run in runs.values():
            run.get(timeout=30, propagate=False)
    wait_until(lambda: watched.fleet.events(schedule="tick", event="task_finished"), message="the tick has run")
    ids = {run: result.id for run, result in runs.items()}
    return {**ids, ("locked", "tick"): watched.fleet.events(schedule="tick")[0]["task_id"]}


def of_each(ids: dict[tuple[str, str], str], spans: list[dict[str, Any]], id_of) -> dict[tuple[str, str], list[Any]]:
    """The spans of each run."""
    return {run: [span for span in spans if id_of(span) == task_id] for run, task_id in ids.items()}


def assert_end_alike(shapes: dict[tuple[str, str], list[Any]]) -> None:
    """A locked run looks as a stock one does, however it ends."""
    for how in HOWS:
        assert shapes["locked", how] == shapes["stock", how], how


def test_opentelemetry_has_one_trace_from_a_tick_to_its_run_and_shows_each_ending_as_with_stock_celery(
    watch, key, locks
):
    telemetry = watch("OpenTelemetry")
    ids = run_all(telemetry, key, locks)

    def spans():
        return of_each(ids, telemetry.told(), lambda span: span["attributes"].get("messaging.message.id"))

    def runs(run) -> list[tuple[str, str]]:
        told = [span for span in spans()[run] if span["name"].startswith("run/")]
        return [(span["attributes"]["celery.state"], span["status"]["status_code"]) for span in told]

    wait_until(lambda: all(runs(run) for run in ids), message="each run has a span")
    assert_end_alike({run: runs(run) for run in ids})
    assert runs(("locked", "raise")) == [("FAILURE", "ERROR")]
    assert runs(("locked", "retry")) == [("RETRY", "UNSET"), ("RETRY", "UNSET"), ("SUCCESS", "UNSET")]
    assert runs(("locked", "skip")) == [("IGNORED", "UNSET")]
    sent, ran = spans()["locked", "tick"]
    assert (sent["name"], ran["name"]) == ("apply_async/locked.fail", "run/locked.fail")
    assert ran["context"]["trace_id"] == sent["context"]["trace_id"]
    assert ran["parent_id"] == sent["context"]["span_id"]
    assert ran["pid"] != sent["pid"]


def test_opentelemetry_has_a_span_of_each_lock_within_that_of_its_run_in_a_pools_child_however_it_ends(
    watch, key, locks
):
    telemetry = watch("OpenTelemetry")
    ids = run_all(telemetry, key, locks)
    lost = telemetry.fleet.send("locked.lose", f"{key}-lost")
    lost.get(timeout=30, propagate=False)
    ids["locked", "lose"] = lost.id

    def runs() -> dict[str, tuple[str, str]]:
        told = [span for span in telemetry.told() if span["name"].startswith("run/locked")]
        names = {task_id: how for (_, how), task_id in ids.items()}
        return {span["context"]["span_id"]: names[span["attributes"]["messaging.message.id"]] for span in told}

    def held() -> list[tuple[str, dict[str, Any]]]:
        told = [span for span in telemetry.told() if span["name"].startswith("lock/")]
        return [(runs().get(span["parent_id"]), span) for span in told]

    # a retry holds it once for each attempt; a skip never does
    expected = sorted(["return", "raise", "retry", "retry", "retry", "tick", "lose"])
    wait_until(lambda: sorted(str(how) for how, _ in held()) == expected, message="each lock has a span")
    for how, span in held():
        attributes = span["attributes"]
        assert attributes["lockbeat.lock.key"] == f"{key}-{'lost' if how == 'lose' else how}"
        assert attributes["lockbeat.lock.token"] > 0
        assert attributes["lockbeat.lock.driver"] == "redis"
        assert attributes["lockbeat.lock.attempts"] == 1
        assert attributes.get("lockbeat.entry") == ("tick" if how == "tick" else None)
        assert attributes.get("lockbeat.lock.lost", False) == (how == "lose")
        assert span["status"]["status_code"] == ("ERROR" if how == "lose" else "UNSET")
    [skipped] = [span for span in telemetry.told() if runs().get(span["context"]["span_id"]) == "skip"]
    assert [event["name"] for event in skipped["events"]] == ["lockbeat skipped"]


def test_datadog_has_spans_of_a_tick_and_of_its_run_and_shows_each_ending_as_with_stock_celery(watch, key, locks):
    datadog = watch("Datadog")
    ids = run_all(datadog, key, locks)

    def spans():
        return of_each(ids, datadog.told(), lambda span: span["celery.id"])

    def runs(run) -> list[tuple[str, int, str | None]]:
        told = [span for span in spans()[run] if span["name"] == "celery.run"]
        return [(span["celery.state"], span["error"], span["error.type"]) for span in told]

    wait_until(lambda: all(runs(run) for run in ids), message="each run has a span")
    assert_end_alike({run: runs(run) for run in ids})
    assert runs(("locked", "raise")) == [("FAILURE", 1, "watched.Trouble")]
    assert runs(("locked", "retry")) == [("RETRY", 0, None), ("RETRY", 0, None), ("SUCCESS", 0, None)]
    assert runs(("locked", "skip")) == [("IGNORED", 0, None)]

    def ancestry() -> list[tuple[str, str]]:
        by_id = {span["id"]: span for span in datadog.told()}
        [run] = [span for span in spans()["locked", "tick"] if span["name"] == "celery.run"]
        line = [run]
        while line[-1]["parent"] in by_id:
            line.append(by_id[line[-1]["parent"]])
        return [(span["name"], span["resource"]) for span in line]

    expected = [
        "celery.run locked.fail",
        "celery.apply locked.fail",
        "celery.beat.apply_entry tick",
        "celery.beat.tick celery.beat.tick",
    ]
    wait_until(
        lambda: [" ".join(each) for each in ancestry()] == expected, message=f"{expected} instead of {ancestry()}"
    )


# -- Flower ------------------------------------------------------------------------------------------------------------


def test_flower_shows_a_skipped_run_as_revoked_with_who_holds_its_lock_and_revokes_one_that_runs(
    watch, witness, key, broker
):
    fleet = watch("Flower").fleet
    fleet.workers("a", more=["-E"])
    open_api = {"FLOWER_UNAUTHENTICATED_API": "1"}
    flower = fleet._start("flower", ["flower", "--address=127.0.0.1", f"--port={(port := free_port())}"], {}, open_api)
    api = f"http://127.0.0.1:{port}/api"

    def ask(path: str, **form: str) -> Any:
        data = urlencode(form).encode() if form else None
        with urlopen(f"{api}/{path}", data, timeout=10) as answer:
            return json.load(answer)

    def state(run) -> str | None:
        with contextlib.suppress(HTTPError):
            return ask(f"task/info/{run.id}")["state"]
        return None

    def is_there() -> bool:
        with contextlib.suppress(URLError, ConnectionError):
            return "a@tests" in ask("workers?refresh=1")
        assert flower.process.poll() is None
        return False

    wait_until(is_there, 60, "Flower sees the worker")
    run = fleet.send("hold", key)
    witness.wait_for(key, "enter", run)
    skipped = fleet.send("hold", key)
    wait_until(lambda: (state(run), state(skipped)) == ("STARTED", "REVOKED"), message="Flower shows both")
    assert f"lock '{key}' is held by a@tests" in ask(f"task/info/{skipped.id}")["exception"]
    ask(f"task/revoke/{run.id}", terminate="true", signal="SIGKILL")
    assert fleet.send("hold_when_free", key, 0).get(timeout=20) == f"held {key}"
    wait_until(lambda: state(run) == "REVOKED", message="Flower shows that, too")

"""``celery lockbeat metrics`` beside real beats and workers, as a real Prometheus reads it: each query of ``docker/``."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil
import pytest
import yaml
from commands import running
from programs import Program
from prometheus_client.parser import text_string_to_metric_families
from servers import Server, debian_binary, free_port, wait_until

from celery_lockbeat.stores.redis.store import RedisStore

DOCKER = Path(__file__).parents[2] / "docker"
BOARD = DOCKER / "grafana" / "lockbeat.json"
RULES = DOCKER / "prometheus" / "lockbeat.rules.yml"

#: What happens rarely, or never where all is well; the names and labels of these are compared, too.
EMPTY_WHERE_ALL_IS_WELL = re.compile(r"> 0$|== 0$|> 60$|^absent\(")


def ask(url: str, **query: str) -> str:
    with urllib.request.urlopen(f"{url}?{urlencode(query)}" if query else url, timeout=10) as answer:
        return answer.read().decode()


def scrape(port: int) -> dict[str, list[Any]]:
    """The samples of an exporter, by their names."""
    samples: dict[str, list[Any]] = {}
    for family in text_string_to_metric_families(ask(f"http://127.0.0.1:{port}/metrics")):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append(sample)
    return samples


def queries_of_the_board() -> Iterator[str]:
    board = json.loads(BOARD.read_text())
    for panel in board["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))


def queries_of_the_rules() -> Iterator[str]:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


class Exported:
    """A beat, a worker, an exporter and a Prometheus."""

    def __init__(self, programs: list[Program], url: str, port: int, prometheus: str) -> None:
        self.beat, self.worker, self.exporter = programs
        self.url = url
        self.port = port
        self.prometheus = prometheus

    def samples(self) -> dict[str, list[Any]]:
        return scrape(self.port)

    def query(self, query: str) -> list[Any]:
        try:
            answer = json.loads(ask(f"{self.prometheus}/api/v1/query", query=query))
        except urllib.error.HTTPError as exc:
            pytest.fail(f"{query}: {exc.read().decode()}")
        return answer["data"]["result"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Iterator[Exported]:
    directory = tmp_path_factory.mktemp("exported")
    program = debian_binary("prometheus", "prometheus")
    (directory / "tasks.py").write_text((DOCKER / "tasks.py").read_text())
    port, own = free_port(), free_port()
    commands = [
        "celery -A tasks beat --pidfile=",
        "celery -A tasks worker --concurrency 2",
        f"celery -A tasks lockbeat metrics --port {port}",
    ]
    targets = [{"targets": [f"127.0.0.1:{port}"]}]
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "lockbeat", "static_configs": targets}],
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(settings))
    arguments = [
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{own}",
    ]
    with Server() as server, running([each.split() for each in commands], directory, REDIS_URL=server.url) as programs:
        prometheus = Program([program, *arguments], directory / "prometheus.log", directory, {})
        try:
            programs[2].wait_for_log(f"http://127.0.0.1:{port}/metrics")
            yield Exported(programs, server.url, port, f"http://127.0.0.1:{own}")
        finally:
            prometheus.end()


def test_what_the_processes_do_is_exported(exported):
    def total(name: str, **labels: str) -> float:
        return sum(
            sample.value for sample in exported.samples().get(name, ()) if labels.items() <= sample.labels.items()
        )

    wait_until(lambda: total("lockbeat_runs_total", task="heartbeat", status="success") >= 3, 60, "heartbeats")
    wait_until(lambda: total("lockbeat_runs_total", task="sync", status="skipped", reason="locked") >= 1, 60, "a skip")
    wait_until(lambda: total("lockbeat_locks_held") >= 1, message="sync holds its lock")
    assert total("lockbeat_ticks_total", entry="heartbeat", outcome="published") >= 3
    assert total("lockbeat_beats_alive") == total("lockbeat_store_up") == 1
    assert total("lockbeat_entries") == 3
    assert total("lockbeat_acquire_seconds_count", driver="redis") >= 4
    assert 0 <= total("lockbeat_since_success_seconds", entry="heartbeat") < 30
    assert total("lockbeat_journal_lag_seconds") < 5


def test_each_query_of_the_board_and_the_rules_has_what_is_exported(exported):
    wait_until(lambda: len(exported.query("lockbeat_run_duration_seconds_count{task='sync'} > 0")) == 1, 60)
    samples = exported.samples()
    labels = {name: {label for sample in found for label in sample.labels} for name, found in samples.items()}
    everywhere = {"job", "instance"}
    queries = [*queries_of_the_board(), *queries_of_the_rules()]
    assert len(queries) > 35
    variables = {"$__rate_interval": "10s", "$__range": "1m", '"$job"': '".*"', '"$entry"': '".*"', '"$task"': '".*"'}
    empty = []
    for query in queries:
        names = re.findall(r"\blockbeat_\w+", query)
        assert names
        assert set(names) <= samples.keys(), query
        for name, wanted in re.findall(r"\b(lockbeat_\w+)\{(.*?)\}", query):
            assert set(re.findall(r"(\w+)=", wanted)) <= labels[name] | everywhere, query
        for grouped in re.findall(r"\bby \((.*?)\)", query):
            assert set(grouped.split(", ")) <= set.union(*(labels[name] for name in names)) | everywhere, query
        asked = query
        for variable, value in variables.items():
            asked = asked.replace(variable, value)
        assert "$" not in asked
        if not exported.query(asked) and not EMPTY_WHERE_ALL_IS_WELL.search(query):
            empty.append(query)
    assert not empty


def test_the_legends_of_the_board_and_the_texts_of_the_rules_name_labels_that_are_there(exported):
    for panel in json.loads(BOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = {label for by in re.findall(r"\bby \((.*?)\)", target["expr"]) for label in by.split(", ")}
            assert shown <= kept or "topk" in target["expr"], target
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            shown = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
            by = re.search(r"\bby \((.*?)\)", rule["expr"])
            assert shown <= (set(by[1].split(", ")) if by else {"job", "instance"}), rule


def test_no_alert_fires_where_all_is_well(exported):
    wait_until(lambda: exported.query("lockbeat_ticks_total > 0"), 60, "something has happened")
    rules = json.loads(ask(f"{exported.prometheus}/api/v1/rules"))["data"]["groups"]
    wait_until(lambda: exported.query("count_over_time(lockbeat_store_up[1m]) > 5"), 60, "it has been looked at")
    rules = json.loads(ask(f"{exported.prometheus}/api/v1/rules"))["data"]["groups"][0]["rules"]
    assert {rule["name"]: rule["state"] for rule in rules} == {rule["name"]: "inactive" for rule in rules}
    assert {rule["health"] for rule in rules} == {"ok"}


def test_promtool_has_nothing_against_the_metrics_and_the_rules(exported):
    promtool = debian_binary("promtool", "prometheus")
    text = ask(f"http://127.0.0.1:{exported.port}/metrics")
    for command, given in ((["metrics"], text), (["rules", str(RULES)], None)):
        checked = subprocess.run([promtool, "check", *command], input=given, capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_composes_check_of_prometheus_tells_one_that_is_well(exported):
    service = yaml.safe_load((DOCKER / "compose.yml").read_text())["services"]["prometheus"]
    debian_binary("wget", "wget")
    (_, check) = service["healthcheck"]["test"]

    def is_well(at: str) -> bool:
        return subprocess.run(["sh", "-c", check.replace("http://127.0.0.1:9090", at)]).returncode == 0

    wait_until(lambda: is_well(exported.prometheus), 30, "it is well")
    assert not is_well(f"http://127.0.0.1:{free_port()}")


def test_a_run_whose_child_is_killed_has_died_and_has_an_alert(exported):
    died = {"task": "sync", "status": "died", "reason": ""}

    def value() -> float | None:
        runs = exported.samples().get("lockbeat_runs_total", ())
        return next((each.value for each in runs if each.labels == died), None)

    wait_until(lambda: value() == 0, 60, "the task is known")
    store = RedisStore(exported.url)
    wait_until(lambda: store.locks.held("sync"), 60, "sync holds its lock")
    for child in psutil.Process(exported.worker.pid).children():
        child.kill()
    wait_until(lambda: value() == 1, 60, "its death is counted")
    wait_until(
        lambda: exported.query('ALERTS{alertname="LockbeatRunDied", task="sync", alertstate="firing"}'), 60, "an alert"
    )


#: For each alert, what has it fire: a series, and its values, one each minute.
FIRING = {
    "LockbeatTickMissed": ('lockbeat_ticks_total{entry="a", outcome="missed", job="shop"}', "0 0 0 2 2 2 2"),
    "LockbeatEntrySilent": ('lockbeat_silences_total{entry="a", job="shop"}', "0 0 0 1 1 1 1"),
    "LockbeatLockLost": ('lockbeat_locks_lost_total{task="a", job="shop"}', "0 0 0 1 1 1 1"),
    "LockbeatFellBack": ('lockbeat_fallbacks_total{task="a", job="shop"}', "0 0 0 1 1 1 1"),
    "LockbeatRunOverdue": ('lockbeat_overdue_runs_total{task="a", job="shop"}', "0 0 0 1 1 1 1"),
    "LockbeatRunDied": ('lockbeat_runs_total{task="a", status="died", reason="", job="shop"}', "0 0 0 1 1 1 1"),
    "LockbeatNoBeat": ('lockbeat_beats_alive{job="shop"}', "2 2 1 0 0 0 0"),
    "LockbeatClaimsOverdue": ('lockbeat_claims_overdue{job="shop"}', "0 0 1 1 1 1 1"),
    "LockbeatStoreAway": ('lockbeat_store_up{job="shop"}', "1 1 0 0 0 0 0"),
    "LockbeatJournalLags": ('lockbeat_journal_lag_seconds{job="shop"}', "0 0 60 120 180 240 300"),
    "LockbeatRecordsDropped": ('lockbeat_journal_records_dropped_total{job="shop"}', "0 0 0 90 90 90 90"),
    "LockbeatNotExported": ('lockbeat_store_up{job="shop"}', ""),
}


def test_each_alert_fires_for_what_it_is_for_and_for_nothing_else(tmp_path):
    promtool = debian_binary("promtool", "prometheus")
    alerts = [rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    assert alerts == list(FIRING)
    always = {"series": 'lockbeat_store_up{job="other"}', "values": "1 1 1 1 1 1 1"}
    tests = []
    for alert, (series, values) in FIRING.items():
        given = [{"series": series, "values": values}, always] if values else []
        tests.append(
            {
                "interval": "1m",
                "input_series": given,
                "promql_expr_test": [
                    {
                        "expr": f'count(ALERTS{{alertstate="firing", alertname!="{name}"}})'
                        if name == alert
                        else f'count(ALERTS{{alertstate="firing", alertname="{name}"}})',
                        "eval_time": "6m",
                        "exp_samples": [],
                    }
                    for name in alerts
                ]
                + [
                    {
                        "expr": f'count(ALERTS{{alertstate="firing", alertname="{alert}"}})',
                        "eval_time": "6m",
                        "exp_samples": [{"labels": "{}", "value": 1}],
                    }
                ],
            }
        )
    told = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(told))
    done = subprocess.run([promtool, "test", "rules", "tests.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# -- the command -------------------------------------------------------------------------------------------------------


def exporter(directory: Path, server: Server, *arguments: str) -> list[str]:
    (directory / "tasks.py").write_text((DOCKER / "tasks.py").read_text())
    return ["celery", "-A", "tasks", "lockbeat", "metrics", *arguments]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_and_well_when_it_is_asked_to(spare_server, tmp_path, number):
    port = free_port()
    command = exporter(tmp_path, spare_server, "--port", str(port))
    with running([command], tmp_path, REDIS_URL=spare_server.url) as (process,):
        process.wait_for_log("/metrics")
        assert scrape(port)["lockbeat_store_up"][0].value == 1
        process.process.send_signal(number)
        assert process.process.wait(10) == 0
        assert process.log() == f"metrics of app 'docker': http://127.0.0.1:{port}/metrics\n"


def test_it_goes_on_while_the_store_is_away_and_says_so(spare_server, tmp_path):
    port = free_port()
    command = exporter(tmp_path, spare_server, "--port", str(port))
    with running([command], tmp_path, REDIS_URL=spare_server.url) as (process,):
        process.wait_for_log("/metrics")
        spare_server.kill()
        wait_until(lambda: scrape(port)["lockbeat_store_up"][0].value == 0, message="it is said")
        assert "lockbeat_beats_alive" not in scrape(port)
        spare_server.start()
        wait_until(lambda: scrape(port)["lockbeat_store_up"][0].value == 1, message="it is there again")
        wait_until(lambda: scrape(port)["lockbeat_journal_lag_seconds"][0].value < 2, message="it has caught up")
        assert "Traceback" not in process.log()


def test_a_port_that_is_taken_and_a_setting_that_is_wrong_are_one_line(spare_server, tmp_path):
    command = exporter(tmp_path, spare_server, "--port", str(spare_server.port))
    with running([command], tmp_path, REDIS_URL=spare_server.url) as (process,):
        assert process.process.wait(30) == 1
        assert process.log() == f"cannot listen at 127.0.0.1 port {spare_server.port}: Address already in use\n"
    with running([command], tmp_path, REDIS_URL="redis://127.0.0.1:nowhere/0") as (process,):
        assert process.process.wait(30) == 1
        assert "Traceback" not in process.log()

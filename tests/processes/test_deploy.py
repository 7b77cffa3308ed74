"""What ``docker/`` and ``deploy/`` say is valid, and what it has run runs: without an engine, as processes of this host.

Kubernetes' and Compose's own schemas are in ``tests/schemas``; systemd reads its units itself, where it is installed.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from commands import forker, running
from servers import Server, free_port, wait_until

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "tests" / "schemas"
KUBERNETES = ROOT / "deploy" / "kubernetes"
SYSTEMD = ROOT / "deploy" / "systemd"
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yml").read_text())["services"]

#: Where the files of health are, in containers.
RUN = "/run/lockbeat"
#: Seconds without a word after which one is not well, here.
SILENCE = "8"


# -- the files ---------------------------------------------------------------------------------------------------------


def manifests() -> list[dict[str, Any]]:
    files = [*KUBERNETES.glob("*.yaml")]
    assert len(files) >= 4
    return [each for file in sorted(files) for each in yaml.safe_load_all(file.read_text())]


def of_kind(kind: str, name: str) -> dict[str, Any]:
    (found,) = (each for each in manifests() if each["kind"] == kind and each["metadata"]["name"] == name)
    return found


def pod_of(name: str) -> dict[str, Any]:
    return of_kind("Deployment", name)["spec"]["template"]["spec"]


def container_of(name: str) -> dict[str, Any]:
    (container,) = pod_of(name)["containers"]
    return container


def validator(schema: dict[str, Any]) -> Any:
    jsonschema = importlib.import_module("jsonschema") if os.environ.get("CI") else pytest.importorskip("jsonschema")
    return jsonschema.Draft202012Validator(schema)


def test_the_manifests_are_valid_by_kubernetes_own_schemas():
    schemas = json.loads((SCHEMAS / "kubernetes.json").read_text())
    listed = of_a_kustomization()
    assert sorted(listed["resources"]) == sorted(
        file.name for file in KUBERNETES.glob("*.yaml") if file.name != "kustomization.yaml"
    )
    for each in manifests():
        if each["kind"] == "Kustomization":
            continue
        schema = {"$ref": f"#/definitions/{schemas['kinds'][each['apiVersion'] + ' ' + each['kind']]}", **schemas}
        assert [error.message for error in validator(schema).iter_errors(each)] == [], each["kind"]


def of_a_kustomization() -> dict[str, Any]:
    (found,) = (each for each in manifests() if each["kind"] == "Kustomization")
    return found


def test_a_manifest_with_an_unknown_field_would_be_noticed():
    schemas = json.loads((SCHEMAS / "kubernetes.json").read_text())
    wrong = of_kind("Deployment", "beat")
    wrong["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    schema = {"$ref": f"#/definitions/{schemas['kinds']['apps/v1 Deployment']}", **schemas}
    assert "livenessprobe" in str([error.message for error in validator(schema).iter_errors(wrong)])


def test_kustomize_makes_of_them_what_a_user_applies():
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is missing")
    done = subprocess.run([kubectl, "kustomize", str(KUBERNETES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = list(yaml.safe_load_all(done.stdout))
    images = {
        container["image"]
        for each in made
        if each["kind"] == "Deployment"
        for container in each["spec"]["template"]["spec"]["containers"]
    }
    assert images == {"registry.example.com/proj:1.2.3"}
    (secret,) = (each["metadata"]["name"] for each in made if each["kind"] == "Secret")
    assert done.stdout.count(f"name: {secret}\n") == 5, "each Deployment refers to it"


def test_what_the_manifests_promise_of_each_other_holds():
    beats, workers = of_kind("Deployment", "beat"), of_kind("Deployment", "worker")
    assert beats["spec"]["replicas"] == 3
    for name in ("beat", "worker", "metrics", "web"):
        spec = of_kind("Deployment", name)["spec"]
        assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
        container = container_of(name)
        assert container["resources"]["requests"]
        assert container["resources"]["limits"]["memory"]
        volumes = {volume["name"] for volume in pod_of(name).get("volumes", [])}
        assert {mount["name"] for mount in container.get("volumeMounts", [])} == volumes
    for name in ("beat", "worker"):
        budget = of_kind("PodDisruptionBudget", name)["spec"]
        assert budget["selector"]["matchLabels"] == of_kind("Deployment", name)["spec"]["selector"]["matchLabels"]
    (soft,) = re.findall(r"worker_soft_shutdown_timeout = (\d+)", (ROOT / "docker" / "tasks.py").read_text())
    assert workers["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > int(soft) + 10
    assert int(COMPOSE["worker"]["stop_grace_period"].removesuffix("s")) > int(soft)
    assert int(setting("lockbeat-worker@.service", "TimeoutStopSec")) > int(soft) + 10


def test_the_compose_file_is_valid_by_its_own_schema():
    whole = yaml.safe_load((ROOT / "docker" / "compose.yml").read_text())
    schema = json.loads((SCHEMAS / "compose-spec.json").read_text())
    assert [error.message for error in validator(schema).iter_errors(whole)] == []
    whole["services"]["beat"]["healtcheck"] = {}
    assert "healtcheck" in str([error.message for error in validator(schema).iter_errors(whole)])


def test_each_service_of_the_compose_file_is_looked_after_and_comes_back():
    assert {"redis", "beat", "worker", "metrics", "web", "prometheus", "grafana"} <= COMPOSE.keys()
    for name, service in COMPOSE.items():
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"], name
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (ROOT / "docker" / source).exists(), volume


def test_compose_and_kubernetes_ask_the_same_of_beats_and_workers():
    for name in ("beat", "worker"):
        (kind, asked) = COMPOSE[name]["healthcheck"]["test"]
        assert kind == "CMD-SHELL"
        assert ["sh", "-c", asked.replace("$$", "$")] == container_of(name)["livenessProbe"]["exec"]["command"]
    for name in ("beat", "worker", "metrics"):
        assert ["celery", "-A", "tasks", *COMPOSE[name]["command"]] == container_of(name)["command"]


# -- systemd -----------------------------------------------------------------------------------------------------------


def settings_of(unit: str) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", " ", (SYSTEMD / unit).read_text())
    lines = [line for line in text.splitlines() if "=" in line and not line.startswith("#")]
    return [(name, value) for name, _, value in (line.partition("=") for line in lines)]


def setting(unit: str, name: str) -> str:
    (found,) = (value for each, value in settings_of(unit) if each == name)
    return found


def command_of(unit: str, instance: str) -> list[str]:
    """What systemd makes of ExecStart."""
    words = shlex.split(setting(unit, "ExecStart"))
    return [re.sub(r"%([%i])", lambda m: instance if m[1] == "i" else "%", word).replace("$$", "$") for word in words]


def test_systemd_finds_no_fault_in_the_units(tmp_path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is missing: apt-get install systemd")
    celery = Path(sys.executable).parent / "celery"
    for unit in SYSTEMD.glob("*.*"):
        if unit.suffix in (".service", ".timer"):
            text = (
                unit.read_text().replace("/srv/proj/.venv/bin/celery", str(celery)).replace("/srv/proj", str(tmp_path))
            )
            instance = "beat-1" if "probe" in unit.name else "1"
            (tmp_path / unit.name.replace("@.", f"@{instance}.")).write_text(text)
    units = sorted(map(str, [*tmp_path.glob("*.service"), *tmp_path.glob("*.timer")]))
    assert len(units) == 5
    done = subprocess.run([analyze, "verify", "--man=no", *units], capture_output=True, text=True)
    told = [line for line in done.stderr.splitlines() if "lockbeat" in line]
    assert (done.returncode, told) == (0, []), done.stderr
    wrong = tmp_path / "lockbeat-wrong.service"
    wrong.write_text("[Service]\nExecStart=/bin/true\nRestartSecs=2\n")
    done = subprocess.run([analyze, "verify", "--man=no", str(wrong)], capture_output=True, text=True)
    assert "RestartSecs" in done.stderr, "it would be noticed"


def test_the_units_let_the_app_know_where_its_file_is_and_have_that_directory():
    for kind in ("beat", "worker"):
        unit = f"lockbeat-{kind}@.service"
        assert ("Environment", f"HEALTH_FILE=/run/lockbeat-{kind}-%i/{{kind}}") in settings_of(unit)
        assert setting(unit, "RuntimeDirectory") == f"lockbeat-{kind}-%i"
    assert not [line for line in (SYSTEMD / "lockbeat.env").read_text().splitlines() if "HEALTH" in line]


@pytest.mark.parametrize(("age", "active", "killed"), [(5, True, False), (100, True, True), (100, False, False)])
def test_the_probe_of_systemd_kills_what_is_stuck_and_nothing_else(tmp_path, age, active, killed):
    directory, tools = tmp_path / "run" / "lockbeat-beat-1", tmp_path / "bin"
    directory.mkdir(parents=True)
    tools.mkdir()
    (directory / "beat").touch()
    os.utime(directory / "beat", (time.time() - age,) * 2)
    fake = tools / "systemctl"
    fake.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\ntest "$1" != is-active || exit {int(not active)}\n')
    fake.chmod(0o755)
    command = [word.replace("/run/", f"{tmp_path}/run/") for word in command_of("lockbeat-probe@.service", "beat-1")]
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    subprocess.run(command, env=environment, check=True)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[0] == "is-active --quiet lockbeat-beat@1.service"
    assert asked[1:] == (["kill --signal=SIGKILL lockbeat-beat@1.service"] if killed else [])


# -- what they run -----------------------------------------------------------------------------------------------------


class Deployed:
    """The commands of Kubernetes' manifests and of systemd's units, as processes, with files of health in directories of each."""

    def __init__(self, directory: Path, server: Server) -> None:
        self.directory = directory
        self.url = server.url
        tasks = (ROOT / "docker" / "tasks.py").read_text()
        for app in ("tasks", "proj"):
            (directory / f"{app}.py").write_text(tasks)
        self.ports = {"kubernetes": free_port(), "systemd": free_port()}

    def commands(self) -> dict[tuple[str, str], list[str]]:
        found = {("kubernetes", kind): container_of(kind)["command"] for kind in ("beat", "worker", "metrics")}
        for kind, unit in (("beat", "beat@"), ("worker", "worker@"), ("metrics", "metrics")):
            program, *arguments = command_of(f"lockbeat-{unit}.service", "1")
            assert program == "/srv/proj/.venv/bin/celery"
            found["systemd", kind] = ["celery", *arguments]
        for (of, kind), command in found.items():
            if kind == "metrics":
                found[of, kind] = [str(self.ports[of]) if word == "9808" else word for word in command]
            elif of == "kubernetes" and kind == "worker":
                # a pod has a host name of its own
                found[of, kind] = [*command, "--hostname", "pod@tests"]
        return found

    def health_file(self, of: str) -> str:
        (self.directory / of).mkdir(exist_ok=True)
        return f"{self.directory / of}/{{kind}}"

    def probe(self, kind: str, which: str) -> int:
        """Run a probe of Kubernetes, with shorter times."""
        words = [
            word.replace(RUN, str(self.directory / "kubernetes")).replace("-lt 30", "-lt 6").replace("30", SILENCE)
            for word in container_of(kind)[which]["exec"]["command"]
        ]
        if words[0] == "celery":
            return forker.run(words[1:], self.directory, {"REDIS_URL": self.url}).returncode
        return subprocess.run(words, cwd=self.directory, capture_output=True).returncode

    def rss(self, pid: int) -> float:
        """MiB of a process and its children, what they share counted once for each."""
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        return sum(each.memory_info().rss for each in processes) / 2**20


@pytest.fixture
def deployed(spare_server: Server, tmp_path: Path) -> Deployed:
    return Deployed(tmp_path, spare_server)


def mebibytes(text: str) -> int:
    assert text.endswith("Mi")
    return int(text.removesuffix("Mi"))


@pytest.mark.timeout(240)
def test_each_command_runs_and_each_probe_tells_a_frozen_one_from_one_that_is_well(deployed):
    commands = deployed.commands()
    assert len(commands) == 6
    environment = {"REDIS_URL": deployed.url}
    before = set(deployed.directory.iterdir())
    by_of = {of: [command for (each, _), command in commands.items() if each == of] for of in ("kubernetes", "systemd")}
    with (
        started(by_of["kubernetes"], deployed, "kubernetes", environment) as (beat, worker, _metrics),
        started(by_of["systemd"], deployed, "systemd", environment) as (other_beat, other_worker, _other),
    ):
        for port in deployed.ports.values():
            wait_until(lambda port=port: scraped(port), 60, "the exporter exports")
            assert exporter_is_well(port)
        for kind in ("beat", "worker"):
            wait_until(lambda kind=kind: deployed.probe(kind, "startupProbe") == 0, 60, f"the {kind} has started")
            wait_until(lambda kind=kind: deployed.probe(kind, "readinessProbe") == 0, 60, f"the {kind} is ready")
            assert deployed.probe(kind, "livenessProbe") == 0
        wait_until(lambda: 'outcome="published"' in scraped(deployed.ports["kubernetes"]), 30, "ticks are counted")
        for kind, process in (("beat", beat), ("worker", worker)):
            limit = mebibytes(container_of(kind)["resources"]["limits"]["memory"])
            assert deployed.rss(process.pid) < 0.9 * limit, kind
        for one in (beat, worker, other_beat, other_worker):
            os.killpg(one.pid, signal.SIGSTOP)
        for kind in ("beat", "worker"):
            wait_until(
                lambda kind=kind: deployed.probe(kind, "livenessProbe") != 0, 30, f"the {kind} is missed by its file"
            )
            wait_until(lambda kind=kind: deployed.probe(kind, "readinessProbe") != 0, 40, f"the {kind} is missed")
        for one in (beat, worker, other_beat, other_worker):
            os.killpg(one.pid, signal.SIGCONT)
    assert not any(map(exporter_is_well, deployed.ports.values()))
    # the root file system of a pod is read-only
    left = {path.name for path in set(deployed.directory.iterdir()) - before}
    assert {name for name in left if not name.startswith("log")} <= {"kubernetes", "systemd", "__pycache__"}


def started(commands: list[list[str]], deployed: Deployed, of: str, environment: dict[str, str]) -> Any:
    directory = deployed.directory / f"log-{of}"
    directory.mkdir()
    path = os.pathsep.join([str(deployed.directory), os.environ.get("PYTHONPATH", "")])
    return running(commands, directory, HEALTH_FILE=deployed.health_file(of), PYTHONPATH=path, **environment)


def scraped(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def exporter_is_well(port: int) -> bool:
    """Whether Compose would say so."""
    (*_, check) = COMPOSE["metrics"]["healthcheck"]["test"]
    return subprocess.run([sys.executable, "-c", check.replace("9808", str(port))], capture_output=True).returncode == 0


def test_the_page_of_compose_asks_who_is_there_and_knows_the_password_that_the_readme_tells(deployed):
    importlib.import_module("uvicorn") if os.environ.get("CI") else pytest.importorskip("uvicorn")
    user, password = re.findall(r"user `(\w+)`, password `(\w+)`", (ROOT / "docker" / "README.md").read_text())[0]
    shutil.copy(ROOT / "docker" / "page.hash", deployed.directory)
    port, of_the_pod = str(free_port()), str(free_port())
    command = ["celery", "-A", "tasks", *(port if word == "9809" else word for word in COMPOSE["web"]["command"])]
    in_a_pod = [of_the_pod if word == "9809" else word for word in container_of("web")["command"]]
    basic = base64.b64encode(f"{user}:{password}".encode()).decode()

    def status(port: str = port, **headers: str) -> int:
        try:
            asked = urllib.request.Request(f"http://127.0.0.1:{port}/", headers=headers)
            return urllib.request.urlopen(asked, timeout=10).status
        except urllib.error.HTTPError as refused:
            return refused.code
        except OSError:
            return 0

    with running([command, in_a_pod], deployed.directory, REDIS_URL=deployed.url):
        wait_until(lambda: status(Authorization=f"Basic {basic}") == 200, 60, "the page is there")
        assert status() == 401
        wait_until(lambda: status(of_the_pod) == 200, 60, "a pod has its page for itself")
        (*_, probe) = COMPOSE["web"]["healthcheck"]["test"]
        assert subprocess.run([sys.executable, "-c", probe.replace("9809", port)]).returncode == 0
    assert subprocess.run([sys.executable, "-c", probe.replace("9809", port)], capture_output=True).returncode == 1
    asked = pod_of("web")["containers"][0]["livenessProbe"]["exec"]["command"]
    assert asked == ["python", "-c", probe]


def test_prometheus_reads_what_compose_gives_it_where_compose_has_it():
    told = yaml.safe_load((ROOT / "docker" / "prometheus" / "prometheus.yml").read_text())
    assert all((ROOT / "docker" / "prometheus" / file).exists() for file in told["rule_files"])
    ((target,),) = (config["targets"] for job in told["scrape_configs"] for config in job["static_configs"])
    host, port = target.split(":")
    assert host in COMPOSE
    assert port in COMPOSE[host]["command"]
    board = COMPOSE["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    provider = yaml.safe_load(
        (ROOT / "docker" / "grafana" / "provisioning" / "dashboards" / "lockbeat.yml").read_text()
    )
    assert Path(board).parent == Path(provider["providers"][0]["options"]["path"])
    assert f"./grafana/lockbeat.json:{board}:ro" in COMPOSE["grafana"]["volumes"]

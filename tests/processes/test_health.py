"""`lockbeat health`, the file of health, and the manifests of docs/how-to/health.md, with real beats and workers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from commands import forker, running
from servers import Server, wait_until

import docs
from celery_lockbeat.stores.redis.store import RedisStore

PROJ = """
import json, os
from celery import Celery
from celery_lockbeat import LockedTask

app = Celery("shop", broker=os.environ["URL"])
app.conf.update(
    beat_scheduler="lockbeat",
    beat_schedule={"hourly": {"task": "proj.report", "schedule": 3600}},
    broker_connection_retry_on_startup=True,
    **json.loads(os.environ.get("SETTINGS", "{}")),
)

@app.task(base=LockedTask)
def report():
    pass
"""

BEAT = ["celery", "-A", "proj", "beat", "-l", "INFO", "--pidfile="]
WORKER = ["celery", "-A", "proj", "worker", "-l", "INFO", "-c", "1"]
#: Seconds without a word after which a member is not well, here.
SILENCE = "8"


class Project:
    def __init__(self, directory: Path, server: Server) -> None:
        self.directory, self.server = directory, server
        self.environment = {"URL": server.url, "SETTINGS": "{}"}
        (directory / "proj.py").write_text(PROJ)

    def set(self, **settings: object) -> None:
        self.environment["SETTINGS"] = json.dumps(settings)

    def run(self, *command: str) -> subprocess.CompletedProcess:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**os.environ, **self.environment, "PATH": path}
        return subprocess.run(
            command, cwd=self.directory, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    def health(self, *options: str) -> subprocess.CompletedProcess:
        done = forker.run(["-A", "proj", "lockbeat", "health", *options], self.directory, self.environment)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def start(self, *commands: list[str]):
        return running(commands, self.directory, **self.environment)

    def wait_for(self, status: int, *options: str, timeout: float, message: str) -> None:
        def is_so() -> bool:
            time.sleep(0.3)  # each look is a process, beside those that are to get on
            return self.health(*options).returncode == status

        wait_until(is_so, timeout, message)


DEPLOY = docs.DOCS.parent / "deploy" / "kubernetes"


@pytest.fixture
def project(server: Server, tmp_path: Path) -> Project:
    return Project(tmp_path, server)


# -- the command -------------------------------------------------------------------------------------------------------


def test_who_is_missing_is_not_well(project):
    for options in ([], ["--beat"], ["--worker"]):
        done = project.health(*options)
        assert done.returncode == 1
        assert done.stdout.startswith("not well: n")
        assert done.stdout.count("\n") == 1


def test_a_beat_is_well_and_one_that_is_stopped_is_not_and_is_again_when_it_goes_on(project):
    with project.start(BEAT) as (beat,):
        project.wait_for(0, "--beat", timeout=60, message="the beat is well")
        assert project.health().returncode == 0
        done = project.health("--worker")
        assert (done.returncode, done.stdout[:29]) == (1, "not well: no worker of host " + done.stdout[28])
        os.kill(beat.process.pid, signal.SIGSTOP)
        project.wait_for(1, "--beat", "--max-silence", SILENCE, timeout=40, message="it is missed")
        done = project.health("--max-silence", SILENCE, "--json")
        assert done.returncode == 1
        told = json.loads(done.stdout)
        assert told["healthy"] is False
        assert "was heard of" in told["ill"][0]
        os.kill(beat.process.pid, signal.SIGCONT)
        project.wait_for(0, "--beat", "--max-silence", SILENCE, timeout=20, message="it is well again")
    done = project.health("--beat")
    assert done.returncode == 1, "it has ended, and said so"
    assert "no beat of host" in done.stdout


def test_an_idle_worker_is_well_and_can_lock_and_one_that_is_stopped_is_not(project):
    with project.start(WORKER) as (worker,):
        project.wait_for(0, "--worker", timeout=60, message="the worker is well")
        done = project.health("--worker")
        assert f"locks are granted in {project.server.url}" in done.stdout
        time.sleep(float(SILENCE))
        assert project.health("--worker", "--max-silence", SILENCE).returncode == 0, "it has nothing to do"
        os.kill(worker.process.pid, signal.SIGSTOP)
        project.wait_for(1, "--max-silence", SILENCE, timeout=40, message="it is missed")
        os.kill(worker.process.pid, signal.SIGCONT)
    assert project.health("--worker").returncode == 1


def test_a_store_that_cannot_lock_is_not_well_and_is_named_in_one_line(project):
    store = RedisStore(project.server.url)
    store.announcements.announce(
        "shop", "member", {"w": json.dumps({"kind": "worker", "host": os.uname().nodename})}, ttl=60
    )
    assert project.health("--worker").returncode == 0
    assert RedisStore(project.server.url).locks.held() == []
    with project.server.client() as client:
        client.acl_setuser("reader", enabled=True, passwords=["+geheim"], keys=["lockbeat:{beat:*"], commands=["+@all"])
    project.set(lockbeat_redis_url=project.server.url.replace("//", "//reader:geheim@"))
    done = project.health("--worker")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "geheim" not in done.stdout + done.stderr


def test_it_costs_a_fraction_of_a_second_beside_the_start_of_celery(project):
    def seconds(*command: str) -> float:
        started = time.monotonic()
        project.run(sys.executable, "-m", "celery", "-A", "proj", *command)
        return time.monotonic() - started

    pairs: list[tuple[float, float]] = []
    while not any(mine - celerys < 0.5 for mine, celerys in pairs):  # other tests run meanwhile
        assert len(pairs) < 6, pairs
        pairs.append((seconds("lockbeat", "health"), seconds("lockbeat", "--help")))


# -- the file ----------------------------------------------------------------------------------------------------------


def age(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def test_the_file_of_each_is_touched_while_it_has_nothing_to_do_and_not_while_it_is_stopped(project):
    project.set(lockbeat_health_file=str(project.directory / "{kind}-{host}-{pid}"))
    workers = [[*WORKER, "-P", pool, "-n", f"{pool}@here"] for pool in ("prefork", "threads", "solo", "gevent")]
    with project.start(BEAT, *workers) as started:
        kinds = ["beat", *["worker"] * len(workers)]
        files = [
            project.directory / f"{kind}-{os.uname().nodename}-{each.process.pid}"
            for kind, each in zip(kinds, started, strict=True)
        ]
        wait_until(lambda: all(file.exists() for file in files), 60, "all are there")
        assert project.run("sh", "-c", f"find {files[0]} -mmin -1").stdout.strip() == str(files[0])
        wait_until(lambda: all(" ready." in each.log() for each in started[1:]), 60, "the workers are ready")
        for _ in range(3):
            time.sleep(1)
            assert all(age(file) < 10 for file in files)
        for each in started:
            os.killpg(each.process.pid, signal.SIGSTOP)
        time.sleep(0.5)
        before = [file.stat().st_mtime for file in files]
        time.sleep(3)
        assert [file.stat().st_mtime for file in files] == before
        for each in started:
            os.killpg(each.process.pid, signal.SIGCONT)
        wait_until(lambda: all(age(file) < 2 for file in files), 20, "all go on")


def test_a_beat_that_waits_for_its_store_is_alive_by_its_file(project, spare_server):
    project.set(lockbeat_health_file=str(project.directory / "health"), lockbeat_redis_url=spare_server.url)
    with project.start(BEAT):
        wait_until((project.directory / "health").exists, 60, "it has begun")
        spare_server.kill()
        time.sleep(6)
        assert age(project.directory / "health") < 6, "to end it would bring no store back"


@pytest.mark.parametrize("value", ["{nobody}", "{kind", "", 5, "{0}"])
def test_a_file_that_cannot_be_is_refused_in_one_line(project, value):
    project.set(lockbeat_health_file=value)
    for command in (BEAT, WORKER):
        done = forker.run(command[1:], project.directory, project.environment)
        assert done.returncode == 1
        assert f"lockbeat_health_file is {value!r}" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_file_in_a_directory_that_is_not_there_is_refused_at_start(project):
    project.set(lockbeat_health_file="/nonexistent/health")
    for command in (BEAT, WORKER):
        done = forker.run(command[1:], project.directory, project.environment)
        assert done.returncode == 1
        assert "lockbeat_health_file is '/nonexistent/health'" in done.stderr
        assert "Traceback" not in done.stderr


# -- the page ----------------------------------------------------------------------------------------------------------


def pods(text: str) -> dict[str, dict]:
    """The pods of manifests, by the kind of what they run."""
    specs = [each["spec"]["template"]["spec"] for each in yaml.safe_load_all(text) if each["kind"] == "Deployment"]
    return {each["containers"][0]["command"][3]: each for each in specs}


def test_the_pages_manifests_ask_what_those_to_deploy_ask_which_are_tried():
    """tests/processes/test_deploy.py runs these, and stops what they ask for."""
    page = (docs.DOCS / "how-to" / "health.md").read_text()
    (shown,) = (pods(block) for block in re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    tried = {kind: pods((DEPLOY / f"{kind}.yaml").read_text())[kind] for kind in ("beat", "worker")}
    assert shown.keys() == tried.keys()
    for kind, pod in shown.items():
        (container,), (of_deploy,) = pod["containers"], tried[kind]["containers"]
        for probe in ("livenessProbe", "readinessProbe"):
            assert [word.replace("proj", "tasks") for word in container[probe]["exec"]["command"]] == of_deploy[probe][
                "exec"
            ]["command"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert set(re.findall(r'lockbeat_health_file = "(.*)"', page)) == {"/run/lockbeat/{kind}"}
    assert {"name": "HEALTH_FILE", "value": "/run/lockbeat/{kind}"} in tried["beat"]["containers"][0]["env"]

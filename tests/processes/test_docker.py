"""What ``docker/`` says runs: the commands of its compose file, each as often as it says, as processes of this host."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import yaml
from commands import running
from programs import Program
from servers import Server, debian_binary, free_port, wait_until

DOCKER = Path(__file__).parents[2] / "docker"


def test_the_compose_files_beats_and_workers_run_and_a_killed_beat_stops_no_tick(spare_server: Server, tmp_path: Path):
    services = yaml.safe_load((DOCKER / "compose.yml").read_text())["services"]
    (entrypoint,) = re.findall(r"^ENTRYPOINT (.*)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    commands = [
        [*yaml.safe_load(entrypoint), *service["command"]]
        for service in (services["beat"], services["worker"])
        for _ in range(service["deploy"]["replicas"])
    ]
    assert len(commands) == 5
    for number, command in enumerate(commands):
        if "worker" in command:
            # containers have host names of their own
            command += ["--hostname", f"w{number}@test"]
    (tmp_path / "tasks.py").write_text((DOCKER / "tasks.py").read_text())
    assert set(services["beat"]["environment"]) == {"REDIS_URL", "HEALTH_FILE"}
    environment = {"REDIS_URL": spare_server.url, "HEALTH_FILE": f"{tmp_path}/{{kind}}"}
    with running(commands, tmp_path, **environment) as (first, second, third, *workers):

        def ticks() -> list[str]:
            logs = "".join(worker.log() for worker in workers)
            return re.findall(r'"event":"task_succeeded".*"schedule":"heartbeat".*"tick":"([^"]+)"', logs)

        wait_until(lambda: len(ticks()) >= 3, 60, "heartbeats of all")
        first.kill()
        second.kill()
        before = len(ticks())
        wait_until(lambda: len(ticks()) >= before + 4, 30, "heartbeats of the last beat")
        assert third.process.poll() is None
        wait_until(lambda: any('"event":"task_skipped"' in worker.log() for worker in workers), 30, "a skip")
    assert len(ticks()) == len(set(ticks()))


def test_the_readme_kills_beats_by_the_names_that_compose_gives_them():
    compose = yaml.safe_load((DOCKER / "compose.yml").read_text())
    readme = (DOCKER / "README.md").read_text()
    killed = re.findall(r"^docker kill (\S+)$", readme, re.MULTILINE)
    assert killed == [f"{compose['name']}-beat-1", f"{compose['name']}-beat-2"]
    for command in re.findall(r"^docker compose.*$", readme, re.MULTILINE):
        assert shlex.split(command)[3] in ("docker/compose.yml", "docker/redis-versions.yml")
    for service in re.findall(r" exec (\S+) celery", readme):
        assert service in compose["services"]


def test_what_the_image_is_made_of_is_sent_to_the_engine():
    copied = re.findall(r"^COPY (.*) \S+$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    sent = (DOCKER.parent / ".dockerignore").read_text().splitlines()
    files = [file for line in copied for file in line.split() if file != "."]
    assert files
    assert [file for file in files if f"!{file}" not in sent] == []


def test_the_compose_files_redis_runs_and_its_check_tells_one_that_does_not_answer(tmp_path: Path):
    service = yaml.safe_load((DOCKER / "compose.yml").read_text())["services"]["redis"]
    debian_binary("redis-cli", "redis-server")
    program, *arguments = service["command"]
    port = str(free_port())
    kind, *check = service["healthcheck"]["test"]
    assert kind == "CMD"
    asked = [check[0], "-p", port, *check[1:]]

    def told() -> str:
        return subprocess.run(asked, capture_output=True, text=True, timeout=10).stdout

    command = [debian_binary(program, "redis-server"), *arguments, "--port", port, "--dir", str(tmp_path)]
    server = Program(command, tmp_path / "log", tmp_path, {})
    try:
        wait_until(lambda: told() == "PONG\n", 20, "it answers")
        settings = subprocess.run([*asked[:3], "config", "get", "*a*"], capture_output=True, text=True).stdout.split()
        assert settings[settings.index("maxmemory-policy") + 1] == "noeviction"
        assert settings[settings.index("appendonly") + 1] == "yes"
    finally:
        server.end()
    assert subprocess.run(asked, capture_output=True).returncode != 0

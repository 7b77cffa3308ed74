"""``celery -A proj lockbeat ...`` from outside, on real servers, with each trouble made for it to find."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
import time
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path

import pytest
from commands import forker, running
from proxy import Proxy
from servers import Server, free_port, wait_until

from celery_lockbeat import Lock
from celery_lockbeat.cli import COMMANDS
from celery_lockbeat.insight.doctor.kinds import KINDS
from celery_lockbeat.stores.base import BACKLOG, Claim, EntryState, Lease
from celery_lockbeat.stores.redis.store import RedisStore

#: An app in which nothing is to be found but what its server lacks.
PROJ = """
import json, os
from celery import Celery
from celery_lockbeat import LockedTask

app = Celery(os.environ.get("NAME", "shop"))
app.conf.update(
    broker_url="memory://",
    beat_scheduler="lockbeat",
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    beat_schedule={"hourly": {"task": "proj.report", "schedule": 3600}},
    **json.loads(os.environ["SETTINGS"]),
)

@app.task(base=LockedTask, lock_driver=os.environ.get("DRIVER", "redis"), time_limit=60, lock_ttl=float(os.environ.get("TTL", 30)))
def report():
    pass
"""


class Project:
    """The app, and the commands that are run for it."""

    def __init__(self, directory: Path, server: Server) -> None:
        self.directory = directory
        self.url = server.url
        self.settings: dict[str, object] = {}
        self.misses_its_beat = False  # nearly no test has one
        (directory / "proj.py").write_text(PROJ)

    def environment(self, more: dict[str, str], settings: dict[str, object]) -> dict[str, str]:
        memory = str(self.directory / "memory")
        given = {"lockbeat_redis_url": self.url, "lockbeat_memory_path": memory, **self.settings, **settings}
        return {**more, "SETTINGS": json.dumps({name: value for name, value in given.items() if value is not None})}

    def run(self, *arguments: str, environment: dict[str, str] | None = None, **settings: object):
        if arguments[0] == "doctor" and not self.misses_its_beat:
            arguments = (*arguments, "--ignore", "no-beat")
        command = ["-A", "proj", "lockbeat", *arguments]
        return forker.run(command, self.directory, self.environment(environment or {}, settings))

    def told(self, *arguments: str, **more):
        done = self.run(*arguments, "--json", **more)
        assert "Traceback" not in done.stderr, done.stderr
        return json.loads(done.stdout)

    def finds(self, **more) -> dict[str, str]:
        """What the doctor finds, by kind; and that its status tells whether there is an error."""
        done = self.run("doctor", "--json", **more)
        assert "Traceback" not in done.stderr, done.stderr
        findings = json.loads(done.stdout)["findings"]
        levels = {finding["level"] for finding in findings}
        assert done.returncode == (1 if "error" in levels else 0)
        return {finding["kind"]: finding["what"] for finding in findings}


@pytest.fixture(scope="module")
def saving():
    """A server as it should be."""
    with Server(persistent=True) as server:
        yield server


@pytest.fixture
def project(saving: Server, tmp_path: Path) -> Project:
    with saving.client() as client:
        client.flushall()
    return Project(tmp_path, saving)


@pytest.fixture
def spare(project: Project, spare_server: Server) -> Server:
    """A server of this test alone, that saves nothing."""
    project.url = spare_server.url
    return spare_server


@contextlib.contextmanager
def configured(server: Server, **settings: object):
    """Set the server's settings for a while."""
    with server.client() as client:
        before = {name: client.config_get(name)[name] for name in settings}
        for name, value in settings.items():
            client.config_set(name, value)
        yield client
        for name, value in before.items():
            client.config_set(name, value)


# -- doctor ------------------------------------------------------------------------------------------------------------


def test_where_all_is_well_nothing_is_found_and_the_status_is_0(project, saving):
    done = project.run("doctor")
    assert (done.returncode, done.stdout, done.stderr) == (0, "errors: 0, warnings: 0, notes: 0\n", "")
    with saving.client() as client:
        assert client.keys() == []


def test_a_finding_says_what_why_and_what_to_do(project, spare):
    done = project.run("doctor")
    kind = KINDS["persistence"]
    assert done.returncode == 0
    assert f"warning persistence: {spare.url}: appendonly is no" in done.stdout
    assert f"  why: {kind.why}\n  do:  {kind.do}\n" in done.stdout
    assert done.stdout.endswith("errors: 0, warnings: 1, notes: 0\n")
    (finding,) = project.told("doctor")["findings"]
    assert finding.keys() == {"kind", "level", "about", "what", "why", "do"}


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"maxmemory-policy": "allkeys-lru"}, {"eviction-policy": "allkeys-lru"}),
        ({"maxmemory-policy": "volatile-lru", "maxmemory": 10**9}, {"eviction": "volatile-lru"}),
        ({"maxmemory": 1}, {"writes-refused": "OOM"}),
        ({"appendonly": "no"}, {"persistence": "no snapshots"}),
        ({"appendonly": "no", "save": "3600 1"}, {"snapshots-only": "3600 1"}),
    ],
    ids=str,
)
def test_a_servers_settings_are_found(project, saving, settings, found):
    with configured(saving, **settings):
        findings = project.finds()
    assert findings.keys() == found.keys()
    for kind, words in found.items():
        assert words in findings[kind]


def test_saving_that_fails_is_found(project, spare):
    shutil.rmtree(spare.directory)
    with spare.client() as client:
        client.config_set("save", "3600 1")
        client.bgsave()
        wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", message="it fails")
    assert "rdb_last_bgsave_status is err" in project.finds()["saving-fails"]


def test_permissions_that_are_missing_are_named(project, saving):
    with saving.client() as client:
        client.execute_command("ACL", "SETUSER", "limited", "on", ">geheim", "~lockbeat:*", "+@all", "-hset", "-info")
        project.url = saving.url.replace("//", "//limited:geheim@")
        findings = project.finds()
        client.execute_command("ACL", "DELUSER", "limited")
    assert findings.keys() == {"permissions", "unchecked"}
    assert "HSET" in findings["permissions"]
    assert "INFO" in findings["unchecked"]
    assert "geheim" not in str(findings)


def test_a_replica_its_primary_and_too_few_of_them_are_found(project, saving):
    with Server("--appendonly", "yes", "--replicaof", "127.0.0.1", str(saving.port)) as replica:
        with saving.client() as client:
            wait_until(lambda: client.info("replication")["connected_slaves"] == 1, message="it follows")
        assert project.finds().keys() == {"failover"}
        assert project.finds(lockbeat_redis_min_replicas=1).keys() == set()
        assert "is 2, and 1 are connected" in project.finds(lockbeat_redis_min_replicas=2)["min-replicas"]
        project.url = replica.url
        findings = project.finds()
    assert findings["replica"] == f"it is a replica of 127.0.0.1:{saving.port}"
    assert "READONLY" in findings["writes-refused"]


def test_a_node_of_a_cluster_is_found(project):
    # its own port for the cluster's bus: ten thousand higher there may be none
    with Server("--cluster-enabled", "yes", "--cluster-port", str(free_port()), persistent=True) as node:
        with node.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            wait_until(lambda: "ok" in str(client.execute_command("CLUSTER", "INFO")), message="it is a cluster")
        project.url = node.url
        assert "cluster" in project.finds()


def test_a_server_that_is_away_is_found_at_once_and_a_frozen_one_in_bounded_time(project, spare):
    spare.pause()
    started = time.monotonic()
    findings = project.finds()
    assert time.monotonic() - started < 20
    assert "Timeout" in findings["store-unreachable"]
    spare.kill()
    findings = project.finds()
    assert "refused" in findings["store-unreachable"]
    assert findings.keys() == {"store-unreachable"}


def test_a_wrong_password_is_found_and_not_told(project, saving):
    project.url = saving.url.replace("//", "//nobody:geheim@")
    done = project.run("doctor")
    assert done.returncode == 1
    assert "store-refuses" in done.stdout
    assert "geheim" not in done.stdout + done.stderr


def test_an_open_connection_and_an_unverified_one_are_found(project):
    project.url = "redis://redis.invalid:6379/0"
    assert {"unencrypted", "no-password"} < project.finds().keys()
    project.url = "rediss://:geheim@redis.invalid:6379/0?ssl_cert_reqs=none"
    assert project.finds().keys() == {"unverified", "store-unreachable"}


def test_a_clock_that_is_wrong_is_found(project):
    with (project.directory / "proj.py").open("a") as file:
        file.write("import time\ntrue = time.time\ntime.time = lambda: true() - 5\n")
    assert "5.0 s behind" in project.finds()["clock-skew"]


def test_a_round_trip_that_is_long_for_the_ttl_is_found(project, saving):
    with Proxy(saving.port) as proxy:
        proxy.delay(0.05)
        project.url = f"redis://127.0.0.1:{proxy.port}/0"
        assert project.finds().keys() == set()
        assert "slow" in project.finds(environment={"TTL": "0.3"})
        assert "too-slow" in project.finds(environment={"TTL": "0.1"})


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({"lockbeat_tll": 3}, {"settings"}),
        ({"imports": ["nowhere"]}, {"app-not-loaded"}),
        ({"environment": {"NAME": ""}}, {"app-name"}),
        ({"environment": {"DRIVER": "auto"}}, {"fallback"}),
        ({"environment": {"DRIVER": "memory"}, "lockbeat_driver": "memory"}, set()),
        (
            {"environment": {"DRIVER": "memory"}, "lockbeat_driver": "memory", "broker_url": "redis://127.0.0.1:1"},
            {"one-host"},
        ),
        ({"broker_url": "redis://", "broker_transport_options": {"visibility_timeout": 59}}, {"visibility-timeout"}),
        (
            {
                "broker_url": "redis://",
                "broker_transport_options": {"visibility_timeout": 9999},
                "lockbeat_dedupe_ttl": 3600,
            },
            {"forgets-copies"},
        ),
    ],
    ids=str,
)
def test_an_apps_settings_are_found(project, more, found):
    more = {"environment": {}, **more}
    if "broker_url" in more:
        source = (project.directory / "proj.py").read_text()
        (project.directory / "proj.py").write_text(source.replace("memory://", more.pop("broker_url")))
    assert project.finds(**more).keys() == found


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ('"task": "proj.report"', '"task": "proj.reprot"', ["unknown-task"]),
        ("task_reject_on_worker_lost=True", "task_reject_on_worker_lost=False", ["acks-late"]),
        ("task_acks_late=True", "task_acks_late=False", ["acks-early", "reject-without-acks-late"]),
        ("base=LockedTask, lock_driver", "base=LockedTask, lock_auto_extend=False, lock_driver", ["outlives-lease"]),
        ('beat_scheduler="lockbeat"', 'beat_scheduler="celery.beat:PersistentScheduler"', ["plain-beat"]),
        ("base=LockedTask, lock_driver=", "ignored=", ["unlocked-task"]),
    ],
    ids=str,
)
def test_an_apps_code_is_judged(project, old, new, found):
    source = (project.directory / "proj.py").read_text()
    assert old in source
    (project.directory / "proj.py").write_text(source.replace(old, new))
    assert sorted(project.finds()) == found
    (ignored, *others) = found
    done = project.run("doctor", "--ignore", ignored)
    assert done.returncode == 0
    assert ignored not in done.stdout
    assert all(other in done.stdout for other in others)


BLOG = PROJ.replace("hourly", "daily")


def test_beats_of_another_app_of_the_same_name_are_found(project):
    (project.directory / "blog.py").write_text(BLOG)
    command = ["celery", "-A", "blog", "beat", "-l", "INFO", "--pidfile="]
    with running([command], project.directory, **project.environment({}, {})) as (beat,):
        wait_until(lambda: "has joined the replicas" in beat.log(), 60, "it runs")
        wait_until(lambda: project.told("status")["entries"] == 2, 60, "it has listed its entries")
        what = project.finds()["shared-app"]
        assert "lists daily" in what
        assert "this app lists hourly" in what
        assert project.finds(environment={"NAME": "another"}).keys() == set()


# -- the other commands ------------------------------------------------------------------------------------------------


def test_status_and_entries_show_the_beats_that_run(project):
    command = ["celery", "-A", "proj", "beat", "-l", "INFO", "--pidfile="]
    with running([command, command], project.directory, **project.environment({}, {})) as beats:
        for beat in beats:
            wait_until(lambda beat=beat: "has joined the replicas" in beat.log(), 60, "it runs")
        wait_until(lambda: [beat["entries"] for beat in project.told("status")["beats"]] == [2, 2], 60, "both list")
        told = project.told("status")
        assert (told["app"], told["store"], told["pending"], told["overdue"]) == ("shop", project.url, 0, 0)
        assert all(beat["silent_for"] < 10 for beat in told["beats"])
        (_, hourly) = project.told("entries")
        assert (hourly["name"], hourly["runs"], hourly["pending"], hourly["beats"]) == ("hourly", 0, 0, 2)
        assert "2 beats, 2 entries" in project.run("status").stdout
        assert "hourly" in project.run("entries").stdout
    assert project.told("status")["beats"] == []


def test_status_shows_what_waits_to_be_published(project):
    store = RedisStore(project.url)
    store.beats.claim("shop", "dead", [Claim("id", "hourly", EntryState(1, "t"), {})], ttl=1)
    wait_until(lambda: project.told("status")["overdue"] == 1, message="it is overdue")
    told = project.told("status")
    assert (told["pending"], told["overdue"], told["beats"]) == (1, 1, [])


def test_locks_are_shown_and_released_whoever_holds_them(project):
    store = RedisStore(project.url)
    held = store.locks.acquire("k 1", holder="h", ttl=600, description="w1 pid 7")
    store.locks.acquire("k2", holder="h", ttl=600)
    assert [lock["key"] for lock in project.told("locks")] == ["k 1", "k2"]
    assert len(project.told("locks", "--limit", "1")) == 1
    _, first, _ = project.run("locks").stdout.splitlines()
    assert "w1 pid 7" in first
    done = project.run("release", "k 1")
    assert done.returncode == 0
    assert "'k 1' is free; it was held by w1 pid 7" in done.stdout
    assert store.locks.extend([(held, 600)]) == [False]
    assert isinstance(store.locks.acquire("k 1", holder="other", ttl=600), Lease)
    (freed,) = project.told("release", "k 1")
    assert freed["holder"] == "other"
    done = project.run("release", "k 1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "'k 1' is not held" in done.stderr
    assert [lock["key"] for lock in project.told("locks")] == ["k2"]


@pytest.mark.parametrize("driver", ["redis", "memory"])
def test_locks_are_shown_with_the_time_since_which_they_are_held_however_often_they_are_renewed(
    project, make_app, driver
):
    options = {"environment": {"DRIVER": driver}, "lockbeat_driver": driver}
    before = datetime.now(timezone.utc)
    with Lock("here", app=make_app(lockbeat_driver=driver, lockbeat_redis_url=project.url), ttl=0.6) as lock:
        after = datetime.now(timezone.utc)
        time.sleep(1)
        assert not lock.lost
        (told,) = project.told("locks", **options)
        slack = timedelta(milliseconds=20)  # the server has a clock of its own
        assert before - slack < datetime.fromisoformat(told["held_since"]) < after + slack
        head, line = project.run("locks", **options).stdout.splitlines()
        assert "held since" in head
        assert datetime.fromisoformat(told["held_since"]).isoformat(" ", "seconds") in line


def test_locks_of_the_memory_store_are_shown_while_their_process_lives(project, tmp_path, make_app):
    options = {"environment": {"DRIVER": "memory"}, "lockbeat_driver": "memory"}
    with Lock("here", app=make_app(lockbeat_driver="memory")):
        (lock,) = project.told("locks", **options)
        assert lock["key"] == "here"
    assert project.told("locks", **options) == []


@pytest.mark.parametrize("command", [["status"], ["locks"], ["entries"], ["release", "k"], ["run", "e"]], ids=str)
def test_a_store_that_is_away_is_said_in_one_line_without_its_password(project, spare, command):
    spare.kill()
    project.url = spare.url.replace("//", "//:geheim@")
    done = project.run(*command)
    assert done.returncode == 1
    assert done.stderr.startswith(f"the Redis at 127.0.0.1:{spare.port} (lockbeat_redis_url) does not answer: ")
    assert done.stderr.count("\n") == 1
    assert "geheim" not in done.stderr


@pytest.mark.parametrize(
    ("command", "setting"),
    [
        ("beat --pidfile=", "lockbeat_ttl"),
        ("beat --pidfile=", "lockbeat_claim_ttl"),
        ("worker -P solo", "lockbeat_ttl"),
        ("lockbeat status", "lockbeat_redis_url"),
        pytest.param("beat --pidfile=", "lockbeat_redis_url", marks=pytest.mark.soak),
        pytest.param("worker -P solo", "lockbeat_claim_ttl", marks=pytest.mark.soak),
        pytest.param("worker -P solo", "lockbeat_redis_url", marks=pytest.mark.soak),
        pytest.param("lockbeat status", "lockbeat_ttl", marks=pytest.mark.soak),
        pytest.param("lockbeat status", "lockbeat_claim_ttl", marks=pytest.mark.soak),
    ],
)
def test_a_wrong_setting_ends_every_command_with_one_line_and_status_1(project, command, setting):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "celery", "-A", "proj", *command.split()],
        cwd=project.directory,
        env={**os.environ, **project.environment({}, {setting: "wrong"})},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"{setting} is 'wrong'; allowed: " in line
    assert "Traceback" not in done.stdout


def sent(server: Server) -> list[dict]:
    """The headers of all messages, the oldest first."""
    with server.client() as client:
        return [json.loads(message)["headers"] for message in reversed(client.lrange("celery", 0, -1))]


@contextlib.contextmanager
def beats(project: Project, count: int, scheduler: str = "lockbeat"):
    """Real beats that send to a Redis."""
    (project.directory / "proj.py").write_text(
        (project.directory / "proj.py").read_text().replace("memory://", project.url)
    )
    command = ["celery", "-A", "proj", "beat", "-S", scheduler, "-l", "INFO", "--pidfile="]
    with running([command] * count, project.directory, **project.environment({}, {})) as started:
        wait_until(
            lambda: [beat["entries"] > 0 for beat in project.told("status")["beats"]] == [True] * count, 60, "all list"
        )
        yield started


def test_an_entry_is_run_once_now_and_is_due_when_it_was(project, saving):
    with beats(project, 2):
        before = {entry["name"]: entry for entry in project.told("entries")}
        told = [project.told("run", "hourly") for _ in range(2)]
        assert [each["run"] for each in told] == [1, 2]
        wait_until(lambda: len(sent(saving)) >= 2, 10, "they are published")
        wait_until(lambda: project.told("status")["pending"] == 0, 10, "they are settled")
        headers = sent(saving)
        assert [each["id"] for each in headers] == [each["task_id"] for each in told]
        assert [each["lockbeat"]["run"] for each in headers] == [1, 2]
        assert {each["task"] for each in headers} == {"proj.report"}
        after = {entry["name"]: entry for entry in project.told("entries")}
        assert before["hourly"]["last_published_at"] is None
        # by hand: when it was due last stays as it is
        published = {"published": 2, "last_published_at": before["hourly"]["last_run_at"]}
        assert after["hourly"] == {**before["hourly"], "runs": 2, **published}
        done = project.run("run", "daily")
        assert (done.returncode, done.stdout) == (1, "")
        assert "'daily' names no one entry: no beat that runs lists it" in done.stderr


def test_ticks_go_on_in_time_beside_runs_by_hand(project, saving):
    source = (project.directory / "proj.py").read_text()
    (project.directory / "proj.py").write_text(source.replace('"schedule": 3600', '"schedule": 2'))
    with beats(project, 2):
        by_hand = [project.told("run", "hourly") for _ in range(4)]
        ids = {each["task_id"] for each in by_hand}
        wait_until(lambda: ids <= {each["id"] for each in sent(saving)}, 30, "what was run by hand is published")
        wait_until(lambda: len(sent(saving)) >= 8, 30, "ticks go on")
    headers = sent(saving)
    runs = [each["lockbeat"]["run"] for each in headers]
    assert sorted(runs) == list(range(1, len(runs) + 1))
    ticks = [datetime.fromisoformat(each["lockbeat"]["due"]) for each in headers if each["id"] not in ids]
    assert all(1.5 < (later - earlier).total_seconds() < 3.5 for earlier, later in pairwise(sorted(ticks)))


def test_an_entry_of_redbeat_is_shown_and_run_by_its_name_or_its_key(project, saving):
    with (project.directory / "proj.py").open("a") as file:
        file.write("app.conf.redbeat_redis_url = app.conf.lockbeat_redis_url\n")
    with beats(project, 2, "lockbeat-redbeat"):
        shown = {entry["name"]: entry for entry in project.told("entries")}
        assert shown.keys() == {"hourly", "celery.backend_cleanup"}
        assert shown["hourly"]["key"].startswith("redbeat:hourly@")
        assert "redbeat:" not in project.run("entries").stdout
        told = [project.told("run", name) for name in ("redbeat:hourly", "hourly")]
        assert {each["entry"] for each in told} == {"hourly"}
        wait_until(lambda: len(sent(saving)) >= 2, 10, "they are published")
        wait_until(lambda: project.told("status")["pending"] == 0, 10, "they are settled")
    assert [each["id"] for each in sent(saving)] == [each["task_id"] for each in told]


def test_nothing_is_run_where_no_beat_runs(project):
    store = RedisStore(project.url)
    store.beats.list_entries("shop", "dead", [("hourly", EntryState(0, "t"))], complete=True)
    store.beats.leave("shop", "dead")
    done = project.run("run", "hourly")
    assert (done.returncode, done.stdout) == (1, "")
    assert store.beats.status("shop").entries[0].state.total_run_count == 0


def test_a_run_by_hand_waits_its_turn_where_too_many_ticks_wait(project):
    store = RedisStore(project.url)
    store.beats.join("shop", "busy")
    store.beats.list_entries("shop", "busy", [("hourly", EntryState(0, "t"))], complete=True)
    for run in range(1, BACKLOG + 1):
        store.beats.claim("shop", "busy", [Claim(f"id{run}", "hourly", EntryState(run, "t"), {})], ttl=600)
    done = project.run("run", "hourly")
    assert (done.returncode, done.stdout) == (1, "")
    assert "too many ticks of 'hourly' wait to be published" in done.stderr


def test_that_no_beat_is_there_is_an_error_and_one_that_is_heard_of_is_none(project):
    project.misses_its_beat = True
    assert project.finds() == {"no-beat": "beat_scheduler is ours, and no beat is running"}
    store = RedisStore(project.url)
    store.beats.join("shop", "one")
    store.beats.list_entries("shop", "one", [("hourly", EntryState(0, "t"))], complete=True)
    assert project.finds() == {}
    store.beats.leave("shop", "one")
    assert project.finds().keys() == {"no-beat"}


def test_a_terminal_of_80_columns_shows_a_table_of_80_and_a_pipe_gets_it_whole(project):
    store = RedisStore(project.url)
    store.beats.join("shop", "one")
    name = "reports.of.all.the.customers.by.region.and.by.the.hour"
    store.beats.list_entries("shop", "one", [(name, EntryState(3, "2026-11-27T10:00:00.123456+00:00"))], complete=True)
    assert name in project.run("entries").stdout
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    subprocess.run(
        [sys.executable, "-m", "celery", "-A", "proj", "lockbeat", "entries"],
        cwd=project.directory,
        env={**{k: v for k, v in os.environ.items() if k != "COLUMNS"}, **project.environment({}, {})},
        stdout=follower,
        timeout=60,
    )
    lines = os.read(leader, 10_000).decode().splitlines()
    assert [len(line) <= 80 for line in lines] == [True, True], lines
    assert "2026-11-27 10:00:00+00:00" in lines[1]
    assert "…" in lines[1]
    os.close(leader)
    os.close(follower)


def test_every_command_has_help(project):
    done = project.run("--help")
    assert all(command in done.stdout for command in COMMANDS), done.stderr
    for command in ("doctor", "entries", "health", "history", "locks", "release", "run", "status"):
        assert "--json" in project.run(command, "--help").stdout

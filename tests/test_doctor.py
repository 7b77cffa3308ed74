"""Each kind of finding, of facts that are given; that the facts are gathered as they are; and that the page tells all kinds."""

from __future__ import annotations

import math
import re
import ssl
from dataclasses import replace

import pytest
from celery import Celery

import docs
from celery_lockbeat import Lock, LockedTask
from celery_lockbeat.insight.doctor.facts import Facts, MemberFacts, StoreFacts, TaskFacts, gather
from celery_lockbeat.insight.doctor.kinds import KINDS, LEVELS
from celery_lockbeat.insight.doctor.rules import CLEANUP, examine
from celery_lockbeat.options import LockOptions
from celery_lockbeat.schedules import Every
from celery_lockbeat.stores.base import Beats, EntryState, Replica
from celery_lockbeat.stores.redis.store import ServerFacts

SERVER = ServerFacts(
    address="redis:6379",
    info={
        "redis_version": "7.2.4",
        "redis_mode": "standalone",
        "role": "master",
        "connected_slaves": 0,
        "maxmemory": 0,
        "maxmemory_policy": "noeviction",
        "aof_enabled": 1,
        "aof_last_write_status": "ok",
        "rdb_last_bgsave_status": "ok",
    },
    save="",
    clock_ahead=0.01,
    round_trips=[0.001] * 5,
    refused={},
    failing={},
)
STORE = StoreFacts(name="rediss://redis:6379/0", driver="redis", patience=5.0, servers=(SERVER,), remote=True)
STORE = replace(STORE, encrypted=True, password=True)
TASK = TaskFacts(name="report", lock=LockOptions(), acks_late=True, survives_its_worker=True, time_limit=600)
MEMBER = MemberFacts(
    name="one", kind="beat", home="redis", locks={"report": "lock_key 'report'"}, definitions={"hourly": "a"}
)
BEAT = Replica("one", 0.5, frozenset({"hourly", CLEANUP, "once@1795604538911"}), complete=True)
FINE = Facts(
    app="shop",
    stores=(STORE,),
    tasks=(TASK,),
    entries={"hourly": "report", "once": "report"},
    broker="redis",
    delivers_again=3600.0,
    locked_beat=True,
    beats=Beats([BEAT], [], 0),
    members=(MEMBER, replace(MEMBER, name="two", kind="worker", definitions={})),
    locks=MEMBER.locks,
    home="redis",
)


def server(**changes) -> Facts:
    return store(servers=(replace(SERVER, **changes),))


def info(**changes) -> Facts:
    return server(info={**SERVER.info, **changes})


def store(**changes) -> Facts:
    return replace(FINE, stores=(replace(STORE, **changes),))


def task(**changes) -> Facts:
    return replace(FINE, tasks=(replace(TASK, **changes),))


def beats(*lists: set[str], **changes) -> Facts:
    replicas = [replace(BEAT, name=f"b{i}", entries=frozenset(names), **changes) for i, names in enumerate(lists)]
    return replace(FINE, beats=Beats(replicas, [], 0))


def member(**changes) -> Facts:
    return replace(FINE, members=(*FINE.members, replace(MEMBER, name="three", **changes)))


def with_store(facts: Facts, **changes) -> Facts:
    return replace(facts, stores=(replace(facts.stores[0], **changes),))


#: (kind, facts that it is found in, what is told)
FOUND = [
    ("settings", replace(FINE, wrong_settings=("lockbeat_ttl is 'x'",)), "lockbeat_ttl is 'x'"),
    ("app-not-loaded", replace(FINE, not_loaded="ModuleNotFoundError: nope"), "ModuleNotFoundError: nope"),
    ("store-unreachable", store(trouble="refused", servers=()), "refused"),
    ("store-refuses", store(trouble="WRONGPASS", refuses=True, servers=()), "WRONGPASS"),
    ("database-unreachable", store(trouble="gone", driver="database", servers=()), "gone"),
    ("memory-unusable", store(trouble="full", driver="memory", servers=()), "full"),
    ("version", info(redis_version="6.0.16"), "Redis 6.0.16"),
    ("permissions", server(refused={"SET": "NOPERM", "DEL": "NOPERM"}), "SET, DEL"),
    ("writes-refused", server(failing={"SET": "OOM command not allowed"}), "SET: OOM"),
    ("replica", info(role="slave", master_host="primary", master_port=6379), "primary:6379"),
    ("sentinel", info(redis_mode="sentinel"), "a Sentinel"),
    ("cluster", info(redis_mode="cluster", cluster_enabled=1), "one node of a cluster"),
    ("min-replicas", with_store(info(connected_slaves=1), min_replicas=2), "is 2, and 1 are connected"),
    ("failover", info(connected_slaves=2), "2 replicas"),
    ("eviction", info(maxmemory_policy="volatile-lru", maxmemory=1024, evicted_keys=7), "7 keys were evicted"),
    ("eviction-policy", info(maxmemory_policy="allkeys-lru"), "allkeys-lru"),
    ("saving-fails", info(aof_last_write_status="err"), "aof_last_write_status is err"),
    ("saving-fails", info(rdb_last_bgsave_status="err"), "rdb_last_bgsave_status is err"),
    ("persistence", info(aof_enabled=0), "no snapshots"),
    ("snapshots-only", server(info={**SERVER.info, "aof_enabled": 0}, save="3600 1 300 100"), "3600 1 300 100"),
    ("unencrypted", store(encrypted=False), "not encrypted"),
    ("unverified", store(verified=False), "not verified"),
    ("no-password", store(password=False), "no password"),
    ("clock-skew", server(clock_ahead=-2.5), "2.5 s behind"),
    ("clock-skew", server(clock_ahead=3600.0), "3600.0 s ahead of"),
    ("too-slow", server(round_trips=[6.0] * 5), "6000.0 ms"),
    ("slow", server(round_trips=[0.001, 0.6, 0.6, 0.6, 9.0]), "600.0 ms"),
    ("one-host", store(driver="memory", servers=()), "redis"),
    ("fallback", task(falls_back=True), "report"),
    ("unchecked", server(info={}), "INFO"),
    ("unchecked", server(info={**SERVER.info, "aof_enabled": 0}, save=None), "CONFIG GET"),
    ("unchecked", replace(FINE, beats=None, beats_trouble="no SSCAN"), "no SSCAN"),
    ("unchecked", replace(FINE, entries_trouble="RedBeat's Redis does not answer"), "RedBeat's Redis does not answer"),
    ("visibility-timeout", task(time_limit=3601), "report"),
    ("visibility-timeout", task(lock=None, time_limit=None), "3600 s"),
    ("unbounded-run", task(time_limit=None), "report"),
    ("remembers-much", server(info={**SERVER.info, "maxmemory": 10 * 2**20}, remembered=1.5 * 2**20), "1.5 MiB of its"),
    ("forgets-copies", replace(FINE, delivers_again=43200.0), "43200 s"),
    ("acks-late", task(survives_its_worker=False), "report"),
    ("reject-without-acks-late", task(acks_late=False), "report"),
    ("acks-early", task(acks_late=False, survives_its_worker=False), "report"),
    ("outlives-lease", task(lock=LockOptions(auto_extend=False)), "report"),
    ("unlocked-task", task(lock=None), "report"),
    ("unknown-task", replace(FINE, entries={**FINE.entries, "daily": "reprot"}), "no task 'reprot'"),
    ("app-name", replace(FINE, app=""), "''"),
    ("shared-app", beats({"hourly", "once", CLEANUP}, {"mail", CLEANUP}), "b1 lists mail"),
    ("shared-app", beats({"mail"}), "this app lists hourly, once"),
    ("lists-differ", beats({"hourly", "once"}, {"hourly", "mail"}), "b1 lists mail"),
    (
        "not-counted",
        replace(task(plain=True), pausing={"hourly": 3}),
        "pause_after_failures=3, and 'report' is no LockedTask",
    ),
    ("broken-entry", replace(FINE, broken={"daily": "it has no task"}), "entry daily"),
    ("no-beat", replace(FINE, beats=Beats([], [], 0)), "no beat is running"),
    ("no-beat", beats({"hourly"}, silent_for=35.2), "b0, was heard of 35 s ago"),
    ("no-beat", beats({"hourly"}, silent_for=math.inf), "no beat is running"),
    (
        "definitions-differ",
        replace(member(definitions={"hourly": "b"}), newest={"hourly": "b"}),
        "three have the newest, one an",
    ),
    ("locks-differ", member(locks={"report": "lock_key 'other'"}), "lock_key 'other' for beat three"),
    ("locks-differ", replace(FINE, locks={"report": "no lock"}), "no lock for this app"),
    ("homes-differ", member(home="memory", elsewhere=True), "live in memory, ours in redis"),
    ("long-lease", task(lock=LockOptions(ttl=3601, extend_interval=5)), "report"),
    ("plain-redbeat", replace(FINE, plain_redbeat="somebody holds RedBeat's lock 'x'"), "holds RedBeat's lock 'x'"),
    ("plain-beat", replace(FINE, locked_beat=False, beats=Beats([], [], 0)), "not one of ours"),
]

#: What comes with it, and is right as well.
ALONG = {"acks-early": {"reject-without-acks-late"}, "reject-without-acks-late": {"acks-early"}}
ALONG["visibility-timeout"] = {"unlocked-task"}
ALONG["memory-unusable"] = {"one-host"}


def kinds(facts: Facts) -> set[str]:
    return {finding.kind.name for finding in examine(facts)}


def test_nothing_is_found_where_all_is_well():
    assert examine(FINE) == []
    # a dead member's settings are of no interest, nor are its definitions; and one server has several names
    assert examine(member(locks={"report": "no lock"}, silent_for=31.0)) == []
    assert examine(replace(member(definitions={"hourly": "b"}, silent_for=31.0), newest={"hourly": "b"})) == []
    assert examine(member(home="redis", elsewhere=True)) == []


@pytest.mark.parametrize(("kind", "facts", "told"), FOUND, ids=[f"{kind}-{told[:20]}" for kind, _, told in FOUND])
def test_what_is_wrong_is_found_and_nothing_else(kind, facts, told):
    assert kinds(facts) - ALONG.get(kind, set()) == {kind}
    assert any(told in finding.what or told in finding.about for finding in examine(facts) if finding.kind.name == kind)


def test_the_worst_comes_first():
    facts = replace(info(connected_slaves=2), entries={"a": "reprot"}, tasks=(replace(TASK, falls_back=True),))
    levels = [finding.kind.level for finding in examine(replace(facts, beats=None))]
    assert levels == sorted(levels, key=LEVELS.index) == ["error", "warning", "note"]


@pytest.mark.parametrize(
    "facts",
    [
        info(redis_version="6.2.0"),
        server(info={**SERVER.info, "maxmemory": 10 * 2**20}, remembered=0.9 * 2**20),
        server(info={**SERVER.info, "maxmemory": 10 * 2**20}, remembered=None),
        info(role="master", redis_mode="cluster", cluster_enabled=0),
        with_store(info(connected_slaves=1), min_replicas=1),
        replace(FINE, delivers_again=None, tasks=(replace(TASK, time_limit=None),)),
        task(lock=LockOptions(auto_extend=False, ttl=600), time_limit=600),
        # a list that is not yet complete, a beat that is gone, an older release, an entry of another name for the store
        beats({"mail"}, complete=False),
        replace(FINE, beats=Beats([BEAT, replace(BEAT, entries=frozenset({"mail"}), silent_for=math.inf)], [], 0)),
        beats({"hourly"}),
        beats({"hourly@0123456789abcdef.0123456789abcdef", "once"}),
        beats(set(), {CLEANUP}),
        replace(FINE, entries={}, locked_beat=False, beats=Beats([], [], 0)),
        # beats that were started with -S lockbeat
        replace(FINE, locked_beat=False),
        replace(FINE, tasks=(TASK, TaskFacts(name="other", acks_late=True))),
    ],
)
def test_what_is_right_is_no_finding(facts):
    assert examine(facts) == []


def test_the_page_tells_each_kind_as_the_code_does():
    rows = re.findall(
        r"^\| `(.*)` \| (.*) \| (.*) \| (.*) \|$", (docs.DOCS / "how-to" / "doctor.md").read_text(), re.MULTILINE
    )
    assert rows == [(kind.name, kind.level, kind.why, kind.do) for kind in KINDS.values()]


# -- gathering ---------------------------------------------------------------------------------------------------------


def made(server, tmp_path, name="shop", **settings) -> Celery:
    app = Celery(name, broker="memory://", set_as_current=False)
    app.conf.update(lockbeat_redis_url=server.url, lockbeat_memory_path=str(tmp_path / "memory"))
    app.conf.update(settings)
    return app


def locked(app, name, **options) -> None:
    @app.task(base=LockedTask, name=name, **options)
    def body(): ...


def test_the_tasks_and_entries_are_those_of_the_app(server, tmp_path):
    app = made(
        server,
        tmp_path,
        task_time_limit=90,
        beat_schedule={
            "e": {"task": "one", "schedule": 3},
            "f": {"task": "one", "schedule": Every(3, pause_after_failures=2)},
        },
        lockbeat_entries={"e": {"pause_after_failures": 5}},
    )
    locked(app, "one", acks_late=True, lock_ttl=3)
    locked(app, "two", time_limit=7, reject_on_worker_lost=True, lock_driver="redis")
    locked(app, "three", lock_enabled=False, soft_time_limit=4)
    app.task(name="four")(locked)
    facts = gather(app)
    tasks = {task.name: task for task in facts.tasks}
    assert facts.entries["e"] == "one"
    assert facts.pausing == {"e": 5, "f": 2}
    one, two, three = tasks["one"], tasks["two"], tasks["three"]
    assert (one.acks_late, one.survives_its_worker, one.time_limit, one.falls_back) == (True, False, 90, True)
    assert (two.acks_late, two.survives_its_worker, two.time_limit, two.falls_back) == (False, True, 7, False)
    assert three.lock is None
    assert [name for name, task in tasks.items() if task.plain and not name.startswith("celery.")] == ["four"]
    assert one.lock.ttl == 3
    (store,) = facts.stores
    assert (store.patience, store.trouble, store.remote) == (2, None, False)


def test_each_store_is_asked_once_and_without_a_trace(server, tmp_path):
    app = made(server, tmp_path, lockbeat_connections={"other": server.url.replace("/0", "/1")})
    for number, connection in enumerate(["default", "other", "other"]):
        locked(app, str(number), lock_connection=connection)
    locked(app, "here", lock_driver="memory")
    stores = gather(app).stores
    assert sorted(store.name for store in stores) == sorted(
        [server.url, server.url.replace("/0", "/1"), "the memory store"]
    )
    with server.client() as client:
        assert client.keys() == []


def test_the_beats_are_those_of_the_apps_own_name(server, tmp_path):
    app = made(server, tmp_path)
    from celery_lockbeat.stores import stores_of

    store, _ = stores_of(app).choose("auto", "default")
    store.beats.join("shop", "a")
    store.beats.list_entries("shop", "a", [("x", EntryState(0, "t"))], complete=True)
    store.beats.join("blog", "b")
    (beat,) = gather(app).beats.replicas
    assert (beat.name, beat.entries) == ("a", {"x"})


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"lockbeat_ttl": "soon"}, "settings"),
        ({"lockbeat_tll": 3}, "settings"),
        ({"beat_schedule": {"e": {"task": "one", "schedule": "often"}}}, "settings"),
        ({"imports": ["there_is_no_such_module"]}, "app-not-loaded"),
    ],
)
def test_what_keeps_a_worker_from_starting_is_one_finding(server, tmp_path, settings, kind):
    findings = [f for f in examine(gather(made(server, tmp_path, **settings))) if f.kind.level == "error"]
    assert [finding.kind.name for finding in findings] == [kind]


def test_a_wrong_option_of_a_task_is_a_finding_and_the_store_is_asked_all_the_same(server, tmp_path):
    app = made(server, tmp_path)
    locked(app, "one", lock_ttl=-1)
    facts = gather(app)
    assert "lock_ttl of one is -1" in facts.wrong_settings[0]
    assert facts.stores[0].servers


def test_settings_that_cannot_be_read_are_a_finding(server):
    app = Celery("broken", set_as_current=False)
    app.config_from_object("there_is_no_such_module")
    assert kinds(gather(app)) == {"app-not-loaded"}


SECRET = "s3cret/p:w;d"
QUOTED = "s3cret%2Fp%3Aw%3Bd"


@pytest.mark.parametrize(
    "settings",
    [
        {"lockbeat_redis_url": f"redis://:{QUOTED}@127.0.0.1:1/0"},
        {"lockbeat_redis_url": f"redis://user:{QUOTED}@127.0.0.1:1/0?db=2"},
        {"lockbeat_redis_url": f"redis://127.0.0.1:1/0?password={QUOTED}"},
        {"lockbeat_redis_url": f"redis://u:{SECRET}@127.0.0.1:1/0"},
        {"lockbeat_redis_url": f"unix://:{QUOTED}@/nowhere/socket"},
        {"lockbeat_redis_url": f"http://:{QUOTED}@127.0.0.1"},
        {"lockbeat_redis_url": f"rediss://:{QUOTED}@127.0.0.1:1/0"},
        {"lockbeat_redis_options": {"password": SECRET}},
        {"lockbeat_redis_options": {"password": SECRET, "url": "redis://h"}},
        {"lockbeat_redis_options": {"password": SECRET, "no_such_option": 1}},
        {"lockbeat_connections": {"x": {"url": "redis://127.0.0.1:1", "password": SECRET, "socket_timeout": "x"}}},
        {"lockbeat_connections": {"x": f"ftp://:{QUOTED}@h"}},
        {"lockbeat_connections": f"redis://:{QUOTED}@h"},
        {"lockbeat_redis_url": None, "broker_url": f"redis://:{QUOTED}@127.0.0.1:1/0"},
        {"lockbeat_redis_url": None, "broker_url": f"redis://:{QUOTED}@127.0.0.1:1/0;redis://:{QUOTED}@127.0.0.1:2"},
        {
            "lockbeat_redis_url": None,
            "broker_url": f"sentinel://:{QUOTED}@127.0.0.1:1;sentinel://:{QUOTED}@127.0.0.1:2",
        },
    ],
    ids=str,
)
def test_no_password_is_told(server, tmp_path, settings):
    facts = gather(made(server, tmp_path, **settings))
    told = "".join(f"{finding.about} {finding.what}" for finding in examine(facts)) + "".join(
        store.name for store in facts.stores
    )
    assert told
    for part in ("s3cret", "p:w", "p%3Aw"):
        assert part not in told


def test_a_password_that_the_server_refuses_is_not_told(spare_server, tmp_path):
    with spare_server.client() as client:
        client.config_set("requirepass", "right")
    app = made(spare_server, tmp_path, lockbeat_redis_url=spare_server.url.replace("//", "//:wrong-one@"))
    (finding,) = [finding for finding in examine(gather(app)) if finding.kind.name == "store-refuses"]
    assert "wrong-one" not in finding.what + finding.about
    assert "password" in finding.what


@pytest.mark.parametrize(
    ("url", "remote", "encrypted", "verified", "password"),
    [
        ("redis://localhost:1/0", False, False, True, False),
        ("redis://:p@127.0.0.1:1/0", False, False, True, True),
        ("redis://[::1]:1/0", False, False, True, False),
        ("unix:///nowhere/socket", False, False, True, False),
        ("redis://localhost.example.invalid:1/0", True, False, True, False),
        ("rediss://u:p@store.invalid:1/0", True, True, True, True),
        ("rediss://store.invalid:1/0?ssl_cert_reqs=none", True, True, False, False),
        ("rediss://store.invalid:1/0?ssl_cert_reqs=CERT_NONE", True, True, False, False),
        ("rediss://store.invalid:1/0?ssl_cert_reqs=CERT_REQUIRED", True, True, True, False),
    ],
)
def test_a_url_tells_how_safe_the_connection_is(server, tmp_path, url, remote, encrypted, verified, password):
    (store,) = gather(made(server, tmp_path, lockbeat_redis_url=url)).stores
    assert (store.remote, store.encrypted, store.verified, store.password) == (remote, encrypted, verified, password)


def test_a_certificate_that_is_not_asked_for_is_seen_in_the_options_too(server, tmp_path):
    for given, verified in (
        (ssl.CERT_NONE, False),
        ("none", False),
        (None, False),
        (ssl.CERT_REQUIRED, True),
        ("required", True),
    ):
        options = {"ssl_cert_reqs": given}
        app = made(server, tmp_path, lockbeat_redis_url="rediss://127.0.0.1:1/0", lockbeat_redis_options=options)
        assert gather(app).stores[0].verified is verified


def test_a_broker_with_a_visibility_timeout_of_its_own_is_asked_for_that(server, tmp_path):
    def told(url, **options):
        facts = gather(made(server, tmp_path, broker_url=url, broker_transport_options=options))
        return facts.broker, facts.delivers_again

    assert told(server.url) == ("redis", 3600)
    assert told(server.url, visibility_timeout=60) == ("redis", 60)
    assert told("memory://") == ("memory", None)
    assert told("filesystem://") == ("filesystem", None)
    assert told("amqp://localhost")[1] == 1800
    assert told("no-such-transport://x")[1] is None


def test_looking_does_not_disturb_a_lock_that_is_held(server, tmp_path):
    app = made(server, tmp_path)
    with Lock("k", app=app) as lock:
        gather(app)
        lock.check()


def test_our_schedulers_are_known_as_ours(server, tmp_path):
    def ours(scheduler):
        return gather(made(server, tmp_path, beat_scheduler=scheduler)).locked_beat

    assert ours("lockbeat")
    assert ours("celery_lockbeat:LockedScheduler")
    assert not ours("celery.beat:PersistentScheduler")
    assert not ours("there_is_no_such_module:Scheduler")

"""A store that answers "no" is no outage: it is told as what it is, never fallen back from, and refused at start-up."""

from __future__ import annotations

import contextlib
import functools
import os
import socketserver
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import redis
from servers import Server, free_port
from tls import TlsServer, tls
from topologies import Member

from celery_lockbeat import ConfigurationError, Lock, LockedTask, StoreUnavailable, signals
from celery_lockbeat.exceptions import StoreRefused
from celery_lockbeat.journal.writer import journal_of

SHORT = {"socket_timeout": 0.5}
SECRET = "s3cret"


@contextlib.contextmanager
def a_listener(says: bytes, *, first: bool = False):
    """What is no Redis: it says this, at once or to the first line, and hangs up."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            with contextlib.suppress(OSError):
                if first or self.request.recv(999):
                    self.request.sendall(says)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture(scope="module", params=[False, True], ids=["valkey", "redis7"])
def closed(request):
    """A server that knows one user, who may do nothing but look whether it is there."""
    with Server(redis=request.param) as server:
        with server.client() as admin:
            admin.execute_command("ACL", "SETUSER", "guest", "on", f">{SECRET}", "~*", "+ping", "+select")
            admin.execute_command("ACL", "SETUSER", "stranger", "on", f">{SECRET}", "~others:*", "+@all")
            admin.execute_command("ACL", "SETUSER", "admin", "on", ">admin", "~*", "+@all")
            admin.execute_command("ACL", "SETUSER", "default", "resetpass", ">other")
        yield server


NO = [
    ("{host}/0", "asks for a password, and none is given"),
    (":wrong-s3cret@{host}/0", "invalid username-password"),
    ("nobody:s3cret@{host}/0", "invalid username-password"),
    ("guest:s3cret@{host}/0", "(?i)evalsha"),
    ("stranger:s3cret@{host}/0", "(?i)key"),
    ("admin:admin@{host}/99", "DB index is out of range"),
]


@pytest.fixture
def make_app(make_app):
    """Make apps without a journal: the end of each waits for a store that is away, in case it comes back."""
    return functools.partial(make_app, lockbeat_journal=0)


def assert_refused(make_app, url, reason, place, **settings):
    """By a store that is asked, by a task that could fall back, and at the start of a worker and a beat."""
    options = {**SHORT, **settings.pop("lockbeat_redis_options", {})}
    app = make_app(lockbeat_redis_url=url, lockbeat_redis_options=options, **settings)
    runs, fallbacks = [], []

    @app.task(base=LockedTask)
    def body():
        runs.append(1)

    def fell_back(**told):
        fallbacks.append(told)

    signals.driver_fallback.connect(fell_back)
    with pytest.raises(StoreRefused, match=reason) as by_task:
        body()
    signals.driver_fallback.disconnect(fell_back)
    assert (runs, fallbacks) == ([], []), "neither unlocked, nor locked on this host alone"
    with pytest.raises(ConfigurationError, match=reason) as at_start:
        Lock("key", app=app)._store.check()
    for refused in (by_task, at_start):
        told = str(refused.value)
        assert place in told
        assert "(lockbeat_redis_url)" in told
        assert "does not answer" not in told
        assert SECRET not in told


@pytest.mark.parametrize(("url", "reason"), NO, ids=[url.format(host="host") for url, _ in NO])
def test_a_server_that_says_no_is_refused_with_host_setting_and_reason(closed, make_app, url, reason):
    place = f"127.0.0.1:{closed.port}"
    assert_refused(make_app, f"redis://{url.format(host=place)}", reason, place)


def test_a_journal_waits_at_its_end_for_a_store_that_is_away_and_not_for_one_that_refuses_it(make_app, closed, mute):
    def seconds(url, within):
        journal = journal_of(make_app(lockbeat_redis_url=url, lockbeat_redis_options=SHORT, lockbeat_journal=10))
        journal.put("task_started", {})
        started = time.monotonic()
        journal.end(within=within)
        return time.monotonic() - started

    assert seconds(closed.url, 60.0) < 20
    assert seconds(f"redis://127.0.0.1:{mute}/0", 1.0) > 0.9


def test_a_server_that_speaks_no_tls_is_not_taken_for_a_slow_one(server, make_app):
    url = server.url.replace("redis:", "rediss:")
    assert_refused(make_app, url, "it speaks no TLS there", f"127.0.0.1:{server.port}")


def test_a_server_that_speaks_tls_alone_is_not_taken_for_a_broken_one(certificates, make_app):
    with TlsServer(certificates) as server:
        url = server.url.replace("rediss:", "redis:")
        assert_refused(make_app, url, "it speaks TLS there", f"localhost:{server.port}")
        # and whose certificate is not to be trusted
        trusted = {"lockbeat_redis_options": tls(certificates, "other")}
        assert_refused(make_app, server.url, "CERTIFICATE_VERIFY_FAILED", f"localhost:{server.port}", **trusted)


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
@pytest.mark.parametrize(
    ("says", "first"), [(b"HTTP/1.1 400 Bad Request\r\n\r\n", False), (b"SSH-2.0-OpenSSH_9.2\r\n", True)]
)
def test_what_is_no_redis_is_told_by_how_it_answers(make_app, says, first, scheme):
    with a_listener(says, first=first) as port:
        reason = f"no Redis: it says '{says.splitlines()[0].decode()}"
        assert_refused(make_app, f"{scheme}://127.0.0.1:{port}/0", reason, f"127.0.0.1:{port}")


def test_a_node_of_a_cluster_is_not_asked_alone_and_a_server_is_no_cluster(server, nodes, make_app):
    other = nodes.primaries[0]
    with pytest.raises(StoreRefused, match="needs 'cluster': True"):
        Lock(nodes.key_on(nodes.primaries[1]), app=make_app(lockbeat_redis_url=other.url)).acquire()
    with pytest.raises(
        ConfigurationError, match=rf":{other.port} \(lockbeat_redis_url\) refuses us: .*needs 'cluster': True"
    ):
        Lock("key", app=make_app(lockbeat_redis_url=other.url))._store.check()
    options = {"lockbeat_redis_options": {"cluster": True}}
    assert_refused(make_app, server.url, "cluster support disabled", f"127.0.0.1:{server.port}", **options)


def test_sentinels_that_ask_for_a_password_are_told_as_such(tmp_path, make_app):
    port = free_port()
    config = tmp_path / "sentinel.conf"
    with Server() as primary:
        monitored = f"sentinel monitor locks 127.0.0.1 {primary.port} 1"
        config.write_text(f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\nrequirepass x\n{monitored}\n")
        process = subprocess.Popen([primary.binary, str(config), "--sentinel"], stdout=subprocess.DEVNULL)
        try:
            with redis.Redis(port=port, password="x") as client:
                for _ in range(200):
                    with contextlib.suppress(redis.ConnectionError):
                        if client.ping():
                            break
                    threading.Event().wait(0.02)
            options = {"lockbeat_redis_options": {"master_name": "locks"}}
            assert_refused(
                make_app,
                f"sentinel://127.0.0.1:{port}",
                r"No master found for 'locks' \(AuthenticationError\)$",
                f"127.0.0.1:{port}",
                **options,
            )
        finally:
            process.kill()
            process.wait()


# -- what is an outage still -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
@pytest.mark.parametrize("kind", ["nobody listens", "it hangs up", "it says nothing"])
def test_a_server_that_is_away_is_still_fallen_back_from(make_app, kind, scheme, request):
    port = free_port()
    if kind == "it hangs up":
        port = request.getfixturevalue("hanging_up")
    if kind == "it says nothing":
        port = request.getfixturevalue("mute")
    app = make_app(lockbeat_redis_url=f"{scheme}://127.0.0.1:{port}/0", lockbeat_redis_options=SHORT)
    with Lock("key", app=app) as lock:
        assert lock._store.driver == "memory"
    with pytest.raises(StoreUnavailable, match=rf"127\.0\.0\.1:{port} \(lockbeat_redis_url\) does not answer") as away:
        Lock("key", app=app)._store.check()
    assert not isinstance(away.value, StoreRefused)


@pytest.fixture
def hanging_up():
    with a_listener(b"") as port:
        yield port


@pytest.fixture
def mute():
    """It accepts, and is stopped."""
    with Server() as server:
        server.pause()
        yield server.port
        server.resume()


def test_a_password_that_changes_while_a_worker_runs_fails_the_run_and_never_runs_it_on_this_host_alone(make_app):
    with Server() as server, server.client() as admin:

        def change(password):
            admin.execute_command("ACL", "SETUSER", "locks", "reset", "on", f">{password}", "~*", "+@all")
            admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

        change("old")
        app = make_app(lockbeat_redis_url=server.url.replace("//", "//locks:old@"))
        with Lock("key", app=app, ttl=60) as lock:
            assert lock._store.driver == "redis"
            lock._store.check()
            change("new")
            with pytest.raises(StoreRefused, match=r"\(lockbeat_redis_url\) refuses us: .*invalid username-password"):
                Lock("other", app=app).acquire()
            assert lock.held, "its lease still runs"
            change("old")
            assert lock._store.locks.extend([(lock.lease, 60)]) == [True]
        # who has begun waits, as a beat does, and does not end
        change("new")
        lock._store.check()


# -- at the start ------------------------------------------------------------------------------------------------------

PROJ = """
from celery import Celery
from celery_lockbeat import LockedTask

app = Celery("proj", set_as_current=False)
app.config_from_object("settings", namespace="CELERY")

@app.task(base=LockedTask)
def body():
    pass
"""


@pytest.mark.processes
@pytest.mark.parametrize("program", ["worker", "beat"])
def test_a_worker_and_a_beat_do_not_start_with_a_wrong_password(server, tmp_path, program):
    with Member("right", "--requirepass", "right") as locks:
        wrong = locks.url.replace("//", "//:s3cret@")
        (tmp_path / "proj.py").write_text(PROJ)
        settings = f"CELERY_BROKER_URL = {server.url!r}\nCELERY_LOCKBEAT_REDIS_URL = {wrong!r}\n"
        (tmp_path / "settings.py").write_text(settings)
        arguments = ["-P", "solo"] if program == "worker" else ["-S", "lockbeat", "--pidfile="]
        ended = subprocess.run(
            [sys.executable, "-m", "celery", "-A", "proj", program, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        told = ended.stdout + ended.stderr
    assert ended.returncode != 0
    place = f"the Redis at 127.0.0.1:{locks.port} (CELERY_LOCKBEAT_REDIS_URL) refuses us: "
    assert (
        f"{place}AuthenticationError: invalid username-password" in told
        or f"{place}AuthenticationError: WRONGPASS" in told
    )
    assert "s3cret" not in told

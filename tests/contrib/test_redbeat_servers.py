"""RedBeat's Redis as its settings can describe it, and as it can fail; in real time."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
import redis
from celery.schedules import schedule
from redbeat import RedBeatSchedulerEntry
from redbeat.schedulers import RetryingConnection, get_redis
from servers import Server, _binary, free_port, wait_until

from celery_lockbeat.contrib.redbeat import LockedRedBeatScheduler


@pytest.fixture
def start(make_app, server):
    """Start two replicas and an entry of every second; return (tick all, runs that were sent, load the entry)."""
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(server.client())

        def start(**settings):
            app = make_app(task_default_queue="queue", beat_max_loop_interval=1, **settings)
            replicas = [LockedRedBeatScheduler(app=app) for _ in range(2)]
            for replica in replicas:
                stack.callback(replica.close)

            def runs():
                headers = [json.loads(message)["headers"]["lockbeat"] for message in client.lrange("queue", 0, -1)]
                return Counter((each["entry"], each["run"]) for each in headers)

            def tick_until(condition):
                def ticked():
                    for replica in replicas:
                        replica.tick()
                    return condition()

                wait_until(ticked)

            return app, tick_until, runs

        yield start


def save(app, name="a", seconds=1.0):
    return RedBeatSchedulerEntry(name, "t", schedule(seconds, app=app), app=app).save()


# Whoever asks for one of these and for ``start`` names it first: beats that leave wait for a server that is gone.
@pytest.fixture
def entries():
    """A server for RedBeat's entries, to be killed and started again."""
    with Server(persistent=True) as server:
        yield server


@pytest.fixture
def cluster():
    """A cluster of one node, which keeps to the rules of one with many."""
    with Server("--cluster-enabled", "yes", "--cluster-port", str(free_port())) as node:
        with node.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            wait_until(lambda: "cluster_state:ok" in str(client.execute_command("CLUSTER", "INFO")))
        yield node


@pytest.fixture
def sentinel(tmp_path):
    """A master, and the port of its Sentinel."""
    with Server() as master:
        port, config = free_port(), Path(tmp_path, "sentinel.conf")
        config.write_text(f"port {port}\nbind 127.0.0.1\nsentinel monitor master 127.0.0.1 {master.port} 1\n")
        process = subprocess.Popen(
            [_binary(), str(config), "--sentinel", "--dir", str(tmp_path)], stdout=subprocess.DEVNULL
        )
        try:
            with redis.Redis(port=port) as client:
                wait_until(lambda: _answers(client))
            yield master, port
        finally:
            process.kill()
            process.wait()


def _answers(client):
    with contextlib.suppress(redis.RedisError):
        return client.ping()


def test_entries_live_in_a_cluster(cluster, start):
    # RedBeat's other way to name one, redis-cluster://, ends in an AttributeError of its own (RedBeat 2.4, redis-py 5 to 8)
    app, tick_until, runs = start(redbeat_redis_url=cluster.url, redbeat_redis_options={"cluster": True})
    save(app)
    for name in "bcdefgh":
        save(app, name)
    tick_until(lambda: sum(runs().values()) >= 16)
    assert set(runs().values()) == {1}
    entry = RedBeatSchedulerEntry.from_key("redbeat:a", app=app)
    assert entry.total_run_count >= 2
    with cluster.client() as client:
        assert client.hget("redbeat:a", "lockbeat")
        # deleted between the run and the writing down of it
        for name in "abcdefgh":
            RedBeatSchedulerEntry.from_key(f"redbeat:{name}", app=app).delete()
        tick_until(lambda: client.dbsize() == 0)


def test_static_entries_are_put_back_into_a_cluster_that_has_lost_its_data(cluster, start, caplog):
    static = {name: {"task": "t", "schedule": 1.0} for name in ("x", "y", "z")}
    app, tick_until, runs = start(
        redbeat_redis_url=cluster.url, redbeat_redis_options={"cluster": True}, beat_schedule=static
    )
    save(app)
    tick_until(lambda: len(runs()) >= 8)
    with cluster.client() as client:
        client.flushall()
        tick_until(lambda: all(client.exists(f"redbeat:{name}") for name in static))
        so_far = sum(count for (entry, _), count in runs().items() if entry == "x")
        client.delete("redbeat:x")
        tick_until(lambda: client.exists("redbeat:x"))
        assert not client.exists("redbeat:a")
    tick_until(lambda: sum(count for (entry, _), count in runs().items() if entry == "x") >= so_far + 2)
    assert set(runs().values()) == {1}
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert errors == ["RedBeat's Redis has lost its data: these entries are gone, save them again: 'a'"]


def test_entries_live_behind_a_sentinel(sentinel, start):
    master, port = sentinel
    app, tick_until, runs = start(
        redbeat_redis_url="redis-sentinel://ignored:1/0",
        redbeat_redis_options={"sentinels": [("127.0.0.1", port)], "service_name": "master", "socket_timeout": 1},
    )
    save(app)
    tick_until(lambda: runs()["a", 2])
    with master.client() as client:
        assert set(client.keys()) == {"redbeat:a", "redbeat::schedule"}


@pytest.fixture(params=["cluster", "sentinel"])
def claims(request):
    """Where claims are apart from entries: the server to look into, and the settings that lead there."""
    found = request.getfixturevalue(request.param)
    if request.param == "cluster":
        return found, {"lockbeat_redis_url": found.url, "lockbeat_redis_options": {"cluster": True}}
    master, port = found
    return master, {
        "lockbeat_redis_url": f"sentinel://127.0.0.1:{port}",
        "lockbeat_redis_options": {"master_name": "master"},
    }


def test_ticks_are_claimed_behind_sentinels_and_in_a_cluster(claims, start, server):
    there, settings = claims
    app, tick_until, runs = start(**settings)
    save(app)
    tick_until(lambda: runs()["a", 3])
    assert set(runs().values()) == {1}
    with there.client() as claimed, server.client() as here:
        assert any(":entries" in name for name in claimed.keys("lockbeat:*"))
        assert here.exists("redbeat:a")
        # but for what is announced to members with other settings, which is where all that Celery has is
        assert all(name.endswith(":home") for name in here.keys("lockbeat:*"))


def test_options_are_redbeats_and_retrying_is_its_own(start, server):
    app, tick_until, runs = start(
        redbeat_redis_url=server.url, redbeat_redis_options={"retry_period": 5, "socket_timeout": 3, "db": 0}
    )
    assert isinstance(get_redis(app), RetryingConnection)
    save(app)
    tick_until(lambda: runs()["a", 1])


def test_the_broker_is_where_the_entries_are_by_default(start, server):
    app, tick_until, runs = start()
    save(app)
    tick_until(lambda: runs()["a", 1])
    with server.client() as client:
        assert client.exists("redbeat:a")


def test_a_redis_that_is_not_there_yet_or_for_a_while_is_waited_for(entries, start, caplog):
    entries.kill()
    app, tick_until, runs = start(redbeat_redis_url=entries.url)
    tick_until(lambda: "RedBeat's Redis does not answer" in caplog.text)
    entries.start()
    save(app)
    tick_until(lambda: runs()["a", 1])
    entries.restart()
    tick_until(lambda: runs()["a", 2])
    entries.kill()
    end = time.monotonic() + 2
    tick_until(lambda: time.monotonic() > end)
    entries.start()
    tick_until(lambda: runs()["a", 4])
    assert set(runs().values()) == {1}
    assert caplog.text.count("RedBeat's Redis does not answer") <= 4


def test_runs_that_cannot_be_written_down_are_settled_and_written_later(entries, start, caplog):
    app, tick_until, runs = start(redbeat_redis_url=entries.url)
    sent = LockedRedBeatScheduler.record_runs

    def cut_off(self, keys):
        entries.kill()
        sent(self, keys)
        entries.start()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LockedRedBeatScheduler, "record_runs", cut_off)
        # due once, so that no other run writes in place of this one
        save(app, seconds=3600.0).reschedule(last_run_at=app.now() - timedelta(hours=1))
        tick_until(lambda: runs()["a", 1])
    assert RedBeatSchedulerEntry.from_key("redbeat:a", app=app).total_run_count == 0
    assert "cannot write down runs" in caplog.text
    tick_until(lambda: RedBeatSchedulerEntry.from_key("redbeat:a", app=app).total_run_count == 1)
    save(app, "b")
    tick_until(lambda: runs()["b", 2])
    assert set(runs().values()) == {1}
    assert runs()["a", 2] == 0

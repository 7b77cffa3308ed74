"""``celery lockbeat`` where the store is several servers: a Cluster, and a primary that Sentinels name."""

from __future__ import annotations

from pathlib import Path

import pytest
from servers import Server
from test_cli import Project
from topologies import NAME, Nodes, Trio

from celery_lockbeat.stores.redis.store import RedisStore


@pytest.fixture(scope="module")
def nodes():
    with Nodes() as nodes:
        yield nodes


@pytest.fixture
def cluster(nodes: Nodes, tmp_path: Path) -> Project:
    nodes.flush()
    project = Project(tmp_path, nodes.primaries[0])
    project.settings = {"lockbeat_redis_options": {"cluster": True}}
    return project


def test_each_node_of_a_cluster_is_judged_by_itself(cluster, nodes):
    findings = cluster.told("doctor")["findings"]
    assert {finding["kind"] for finding in findings} == {"persistence"}
    assert sorted(finding["about"].split()[-1] for finding in findings) == sorted(
        f"127.0.0.1:{node.port}" for node in nodes.primaries
    )
    assert [nodes.command(node, "DBSIZE") for node in nodes.primaries] == [0, 0, 0]


def test_a_permission_that_is_missing_on_one_node_is_found_there(cluster, nodes):
    for node in nodes.primaries:
        nodes.command(node, "ACL", "SETUSER", "worker", "on", ">geheim", "~*", "+@all")
    nodes.command(nodes.primaries[1], "ACL", "SETUSER", "worker", "-set")
    cluster.url = nodes.url.replace("//", "//worker:geheim@")
    (finding,) = [each for each in cluster.told("doctor")["findings"] if each["level"] == "error"]
    assert finding["kind"] == "permissions"
    assert str(nodes.primaries[1].port) in finding["about"]
    assert "SET" in finding["what"]
    assert "geheim" not in str(finding)


def test_locks_of_all_nodes_are_shown_and_released(cluster, nodes):
    store = RedisStore(nodes.url, options={"cluster": True})
    keys = [nodes.key_on(node) for node in nodes.primaries]
    for key in keys:
        store.locks.acquire(key, holder="h", ttl=600)
    assert sorted(lock["key"] for lock in cluster.told("locks")) == sorted(keys)
    for key in keys:
        assert cluster.run("release", key).returncode == 0
    assert cluster.told("locks") == []


def test_the_primary_that_sentinels_name_is_asked(tmp_path):
    with Trio(tmp_path) as trio:
        project = Project(tmp_path, trio.primary_at_first)
        project.url = trio.url
        project.settings = {"lockbeat_redis_options": {"master_name": NAME}}
        assert project.finds().keys() == {"failover", "persistence"}
        assert project.finds(lockbeat_redis_min_replicas=1).keys() == {"persistence"}
        assert project.told("locks") == []


def test_a_sentinel_that_is_taken_for_the_server_is_found(tmp_path):
    with Trio(tmp_path) as trio:
        project = Project(tmp_path, trio.primary_at_first)
        project.url = trio.url.split(";")[0].replace("sentinel://", "redis://")
        assert "sentinel" in project.finds()


def test_a_cluster_that_has_lost_a_node_is_found(tmp_path):
    with Nodes() as nodes:
        project = Project(tmp_path, nodes.primaries[0])
        project.settings = {"lockbeat_redis_options": {"cluster": True}}
        lost: Server = nodes.primaries[2]
        lost.kill()
        findings = project.finds()
        assert {"store-unreachable", "writes-refused"} & findings.keys()

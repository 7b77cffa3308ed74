"""What beats and workers say at their start: where their locks and ticks live, and what may be a mistake there."""

from __future__ import annotations

import logging

import pytest
from celery import Celery
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport.memory import Transport

from celery_lockbeat import ConfigurationError, LockedTask
from celery_lockbeat.membership.health import HealthFile
from celery_lockbeat.membership.identity import home_of, meeting_store_of, work_of
from celery_lockbeat.membership.startup import say_what_is_set


def made(broker: str, tmp_path, **settings) -> Celery:
    app = Celery("shop", broker=broker, set_as_current=False)
    app.conf.update(lockbeat_memory_path=str(tmp_path / "memory"), **settings)
    return app


def said(app: Celery, caplog, level: int) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="celery_lockbeat"):
        say_what_is_set(app, "ticks")
    return [record.getMessage() for record in caplog.records if record.levelno == level]


@pytest.mark.parametrize(
    ("broker", "settings", "home"),
    [
        ("redis://:geheim@cache:6379/2", {}, "redis://cache:6379/2, under 'lockbeat:'"),
        ("amqp://u:geheim@rabbit//", {"lockbeat_redis_url": "redis://locks/0"}, "redis://locks/0, under 'lockbeat:'"),
        ("redis://cache/2", {"lockbeat_key_prefix": "shop:"}, "redis://cache/2, under 'shop:'"),
    ],
)
def test_each_start_names_the_store_in_one_line_without_a_password(broker, settings, home, tmp_path, caplog):
    app = made(broker, tmp_path, **settings)
    assert home_of(app) == home
    assert said(app, caplog, logging.INFO) == [f"ticks live in {home}"]
    assert said(app, caplog, logging.WARNING) == []


class Cloud(Transport):
    driver_type = "sqs"


@pytest.mark.parametrize(
    ("broker", "named"),
    [("amqp://u:geheim@rabbit//", "amqp://rabbit"), ("pyamqp://10.0.0.7//", "pyamqp://10.0.0.7"), ("sqs://", "sqs")],
)
def test_memory_beside_a_broker_that_other_hosts_can_reach_is_a_warning_that_says_what_to_set(
    broker, named, tmp_path, caplog, monkeypatch
):
    # kombu's own needs boto3
    monkeypatch.setitem(TRANSPORT_ALIASES, "sqs", f"{__name__}:Cloud")
    app = made(broker, tmp_path)
    (warning,) = said(app, caplog, logging.WARNING)
    assert f"other hosts can reach the broker, {named}:" in warning
    assert "lockbeat_redis_url" in warning
    assert "each host with a beat sends every tick" in warning
    assert "geheim" not in warning
    assert str(tmp_path / "memory") in said(app, caplog, logging.INFO)[0]
    app.conf.lockbeat_driver = "memory"
    (warning,) = said(made(broker, tmp_path, lockbeat_driver="memory"), caplog, logging.WARNING)
    assert "lockbeat_driver is 'memory'" in warning


@pytest.mark.parametrize("driver", ["auto", "memory"])
def test_settings_are_told_as_their_user_spells_them(driver, tmp_path, caplog):
    app = Celery("shop", set_as_current=False)
    health = str(tmp_path / "health")
    settings = {
        "CELERY_BROKER_URL": "amqp://rabbit//",
        "CELERY_LOCKBEAT_DRIVER": driver,
        "CELERY_LOCKBEAT_MEMORY_PATH": str(tmp_path / "memory"),
        "CELERY_LOCKBEAT_HEALTH_FILE": health,
    }
    app.config_from_object(settings, namespace="CELERY")
    (warning,) = said(app, caplog, logging.WARNING)
    assert f"(CELERY_LOCKBEAT_DRIVER is {driver!r}" in warning
    assert "Set CELERY_LOCKBEAT_" in warning
    assert "lockbeat_" not in warning

    file = HealthFile(app, "beat")
    (tmp_path / "health").unlink()
    (tmp_path / "health").symlink_to("/nonexistent/health")
    with caplog.at_level(logging.WARNING, logger="celery_lockbeat"):
        file.touch()
    assert caplog.messages[-1].startswith(f"CELERY_LOCKBEAT_HEALTH_FILE {health} cannot be touched: ")
    with pytest.raises(ConfigurationError, match=f"^CELERY_LOCKBEAT_HEALTH_FILE is {health!r}"):
        HealthFile(app, "beat")


@pytest.mark.parametrize(
    "broker",
    ["memory://", "filesystem://", "amqp://", "amqp://guest@localhost//", "amqp://127.0.0.1:5673//", "amqp://[::1]//"],
)
def test_memory_beside_a_broker_of_this_host_is_no_warning(broker, tmp_path, caplog):
    assert said(made(broker, tmp_path), caplog, logging.WARNING) == []


def test_a_lease_of_more_than_an_hour_is_one_line_at_the_start(tmp_path, caplog):
    app = made("memory://", tmp_path, task_annotations={"second": {"lock_ttl": 3600}})
    for name, ttl in (("first", 60_000), ("second", None), ("third", 30), ("fourth", 7200)):
        app.task(base=LockedTask, name=name, lock_ttl=ttl)(nothing)
    (warning,) = said(app, caplog, logging.WARNING)
    assert warning.startswith("lock_ttl of task first and 1 more is 60000 s, more than an hour: seconds are meant")


def nothing():
    pass


# -- where those with other settings meet ------------------------------------------------------------------------------


def test_who_shares_a_broker_meets_in_its_redis_whatever_store_and_prefix_each_has(server, tmp_path):
    one = made(server.url, tmp_path, lockbeat_driver="memory")
    other = made(server.url, tmp_path, lockbeat_key_prefix="shop:")
    meeting_store_of(one).announcements.announce("shop", "home", {"a": "1"}, ttl=60)
    assert [each.name for each in meeting_store_of(other).announcements.announced("shop", "home")] == ["a"]
    assert work_of(one) == work_of(other)
    assert work_of(made(server.url, tmp_path, task_default_queue="staging")) != work_of(one)
    assert work_of(made("redis://elsewhere/0", tmp_path)) != work_of(one)
    assert meeting_store_of(made("memory://", tmp_path)) is None
    own = meeting_store_of(made("memory://", tmp_path, lockbeat_redis_url=server.url, lockbeat_key_prefix="x:"))
    assert [each.name for each in own.announcements.announced("shop", "home")] == ["a"]


def test_what_is_announced_to_those_with_other_settings_begins_as_all_that_celery_has_there_must(server, tmp_path):
    app = made(server.url, tmp_path, broker_transport_options={"global_keyprefix": "shop-"}, lockbeat_key_prefix="x:")
    meeting_store_of(app).announcements.announce("shop", "home", {"a": "1"}, ttl=60)
    with server.client() as client:
        keys = client.keys()
        assert len(keys) == 2
        assert all(key.startswith("shop-lockbeat:") and 0 < client.pttl(key) <= 60_000 for key in keys)

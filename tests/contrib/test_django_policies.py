"""Policies of django-celery-beat's rows: in the admin beside the row, and what beats make of them."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

START = datetime(2026, 6, 1, tzinfo=timezone.utc)


@pytest.fixture
def make_world(make_django_world):
    return make_django_world


def with_policy(world, every=60, **policy):
    from celery_lockbeat.contrib.django.policies.models import EntryPolicy

    EntryPolicy.objects.create(task=world.create("a", every), **policy)


def away(world, seconds):
    world.stop()
    world.run(seconds)


def dues(world):
    found = [datetime.fromisoformat(message.headers["lockbeat"]["due"]) for message in world.messages()]
    return [(due - START).total_seconds() for due in found]


@pytest.mark.parametrize(
    ("policy", "count"),
    [
        ({"catchup": "all"}, 5),
        ({"catchup": "all", "catchup_limit": 2}, 3),
        ({"catchup": "none"}, 2),
        ({"max_runs": 1}, 1),
    ],
)
def test_a_row_goes_by_its_policy(world, policy, count):
    with_policy(world, **policy)
    world.start()
    world.run(65)
    away(world, 245)
    world.start()
    world.run(20)
    found = dues(world)
    assert len(found) == count
    assert found == sorted(found)
    if policy.get("catchup") == "all":
        # on one grid, whenever the beats were there
        assert {due % 60 for due in found} == {found[0] % 60}


def test_a_rows_runs_are_told_what_to_pause_after_so_many_failures(world):
    with_policy(world, 10, pause_after_failures=3)
    world.start()
    world.run(25)
    told = [message.headers["lockbeat"]["pause_after"] for message in world.messages()]
    assert told
    # it stays paused whatever becomes of the row
    assert all(each == [3, f"periodictask:{world.row().pk}"] for each in told)


def test_a_policy_that_is_changed_or_deleted_is_followed(world):
    from celery_lockbeat.contrib.django.policies.models import EntryPolicy

    with_policy(world, 10, max_runs=2)
    world.start()
    world.run(60)
    assert len(dues(world)) == 2
    policy = EntryPolicy.objects.get()
    policy.max_runs = 4
    policy.save()
    world.run(60)
    assert len(dues(world)) == 4
    policy.delete()
    world.run(60)
    assert len(dues(world)) > 6


def test_a_policy_that_no_beat_could_go_by_stops_no_other_row(world, caplog):
    with_policy(world, 10, jitter=60)
    world.create("b", 10)
    world.start()
    world.run(25)
    assert "jitter" in caplog.text
    assert "b" in {message.entry for message in world.messages()}


# -- the admin ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(world):
    from django.contrib.auth.models import User
    from django.test import Client

    User.objects.create_superuser("root", "", "secret")
    client = Client()
    client.login(username="root", password="secret")
    return client


def save(client, row, **policy):
    """Send the form of a row, as a browser does."""
    data = {"name": row.name, "task": row.task, "regtask": "", "enabled": "on", "interval": row.interval_id}
    data |= {"args": "[]", "kwargs": "{}", "headers": "{}"}
    management = {"TOTAL_FORMS": 1, "INITIAL_FORMS": 0, "MIN_NUM_FORMS": 0, "MAX_NUM_FORMS": 1}
    data |= {f"lockbeat_policy-{name}": value for name, value in management.items()}
    data |= {f"lockbeat_policy-0-{name}": value for name, value in {"catchup": "latest", **policy}.items()}
    return client.post(f"/admin/django_celery_beat/periodictask/{row.pk}/change/", data)


def test_the_admin_of_a_row_has_its_policy_and_beats_see_the_change(world, client):
    row = world.create("a", 10)
    world.start()
    world.run(12)
    assert b"lockbeat_policy-0-catchup" in client.get(
        f"/admin/django_celery_beat/periodictask/{row.pk}/change/"
    ).content.replace(b"__prefix__", b"0")
    answer = save(client, row, catchup="none", max_runs=2)
    assert answer.status_code == 302, answer.content.decode()
    world.run(60)
    assert len(dues(world)) == 2
    assert world.row().lockbeat_policy.policy().catchup == "none"


def test_the_admin_refuses_what_no_beat_could_go_by_and_says_what_is_allowed(world, client):
    row = world.create("a", 10)
    answer = save(client, row, catchup="all", jitter=30)
    assert answer.status_code == 200
    assert "jitter of entry" in answer.content.decode()
    assert "allowed: " in answer.content.decode()


# -- without -----------------------------------------------------------------------------------------------------------


def test_rows_of_a_project_without_the_app_or_its_table_go_on_as_ever(world, caplog):
    from django.core.management import call_command

    world.create("a", 10)
    call_command("migrate", "lockbeat_policies", "zero", verbosity=0)
    world.start()
    world.run(25)
    assert len(dues(world)) == 2
    assert "has 'manage.py migrate lockbeat_policies' been run?" in caplog.text

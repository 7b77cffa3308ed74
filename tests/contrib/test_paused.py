"""What is paused stays so over RedBeat's entries and Django's, whatever becomes of these; what they say themselves is kept apart."""

from __future__ import annotations

import pytest

from celery_lockbeat.beat.agenda import flag_of
from celery_lockbeat.beat.controls import Wanted
from celery_lockbeat.contrib.redbeat import policy_headers
from celery_lockbeat.contrib.schedulers import definition_of, known_schedules
from celery_lockbeat.schedules.policy import Policy


@pytest.fixture(params=["redbeat", "django"])
def world(request):
    make = request.getfixturevalue(f"make_{request.param}_world")
    return make(2)


def flag(world):
    (name,) = {
        flag_of(each.name)
        for each in world.simulation.store.store.beats.status("simulated").entries
        if "cleanup" not in each.name
    }
    return name


def controls(world):
    return world.simulation.store.store.controls


def test_what_is_paused_is_passed_over_and_goes_on(world):
    world.add(every=10)
    world.start()
    world.run(25)
    before = len(world.times())
    assert before >= 2
    controls(world).pause("simulated", [flag(world)], "")
    world.run(60)
    assert len(world.times()) == before
    # its own place knows of no pause
    assert world.total_run_count() == before
    (paused,) = controls(world).flags("simulated")
    assert 5 <= paused.passed <= 7
    controls(world).resume("simulated", [paused.name])
    world.run(21)
    assert len(world.times()) == before + 2


def change(world):
    """Let the entry be due every 7 s."""
    if hasattr(world, "redis"):
        world.add(every=7)
        return
    from django_celery_beat.models import PeriodicTask

    row = PeriodicTask.objects.get(name="a")
    row.name, row.interval = "renamed", world.every(7)
    row.save()


def test_a_pause_outlives_the_beats_and_a_change_of_the_entry(world):
    world.add(every=10)
    world.start()
    world.run(15)
    name, before = flag(world), len(world.times())
    controls(world).pause("simulated", [name], "")
    change(world)
    world.run(30)
    world.stop()
    world.start()
    world.run(30)
    assert len(world.times()) == before
    assert flag(world) == name
    controls(world).resume("simulated", [name])
    world.run(22)
    assert before + 2 <= len(world.times()) <= before + 4


def test_a_run_and_a_backfill_of_them_are_published_under_their_entries(world):
    world.add(every=600)
    world.start()
    world.run(5)
    at = [world.at(-1200 + 600 * number).isoformat() for number in range(3)]
    text = Wanted("backfill", "", "", since=at[0], until=at[2], at_once=10).text()
    controls(world).ask("simulated", "r", flag(world), text)
    world.run(10)
    sent = [each for each in world.messages() if each.headers["lockbeat"].get("origin") == "backfill"]
    assert [each.entry for each in sent] == ["a"] * 3
    assert controls(world).asked("simulated").asked == []


def test_the_definition_is_told_from_where_it_is_kept(world):
    world.add(every=10)
    world.start()
    app = world.app(beat_scheduler=f"{world.ours.__module__}:{world.ours.__qualname__}")
    found = definition_of(app, "a")
    assert (found.task, found.schedule.run_every.total_seconds(), found.enabled) == ("t", 10, True)
    assert "RedBeat" in found.where or "django-celery-beat" in found.where
    assert definition_of(app, "nonsense") is None


def test_the_policy_that_stands_beside_an_entry_is_told_with_it(world):
    world.add(every=10)
    world.start()
    app = world.app(beat_scheduler=f"{world.ours.__module__}:{world.ours.__qualname__}")
    assert definition_of(app, "a").policy is None
    if hasattr(world, "redis"):
        world.entry("a", options={"headers": policy_headers(max_runs=3)}).save()
    else:
        from celery_lockbeat.contrib.django.policies.models import EntryPolicy

        EntryPolicy.objects.create(task=world.row(), max_runs=3)
    when, policy = known_schedules(app)["a"]
    assert definition_of(app, "a").policy == policy == Policy(max_runs=3)
    assert definition_of(app, "a").schedule == when

"""What was due before a row of django-celery-beat was enabled, or came to be what it is, is not made up for; all else is.

Time is simulated. A crontab is due every two minutes here, or in the first of each hour.
"""

from __future__ import annotations

from datetime import datetime

import pytest
from simulation import let_them_sleep

from celery_lockbeat import ConfigurationError


@pytest.fixture
def make_world(make_django_world):
    return make_django_world


class Changes:
    """A world, and who of its beats is there when somebody does something."""

    def __init__(self, world, who):
        self.world, self.who = world, who

    def start(self, **settings):
        self.settings = settings
        self.world.start(**settings)

    def restart(self):
        self.world.stop()
        self.world.start(**self.settings)

    def pass_unseen(self, seconds):
        self.world.simulation.world.elapsed += seconds

    def do(self, *changes, at):
        """Do one thing after the other, at these seconds."""
        if self.who == "no beat":
            self.world.stop()
        for change, then in zip(changes, at, strict=True):
            pause = then - self.world.simulation.world.elapsed
            if self.who == "a frozen beat":
                self.pass_unseen(pause)
            else:
                self.world.run(pause)
            change(self.world)
        if self.who == "no beat":
            self.world.start(**self.settings)
        self.world.run(10)


@pytest.fixture(params=["one beat", pytest.param("three beats", marks=pytest.mark.soak), "no beat", "a frozen beat"])
def changes(request, make_world):
    return Changes(make_world(3 if request.param == "three beats" else 1), request.param)


@pytest.fixture(params=[pytest.param("one beat", marks=pytest.mark.soak), "three beats"])
def seen_changes(request, make_world):
    return Changes(make_world(3 if request.param == "three beats" else 1), request.param)


def cron(minute="*/2", **fields):
    from django_celery_beat.models import CrontabSchedule

    return CrontabSchedule.objects.get_or_create(minute=minute, **fields)[0]


def saved(**columns):
    """Change a row as a form does."""

    def save(world):
        row = world.row()
        for column, value in columns.items():
            setattr(row, column, value() if callable(value) else value)
        row.save()

    return save


def acted(action):
    """Carry out one of the admin's actions on the row."""

    def act(_world):
        from django.contrib.admin import site
        from django_celery_beat.admin import PeriodicTaskAdmin
        from django_celery_beat.models import PeriodicTask

        admin = PeriodicTaskAdmin(PeriodicTask, site)
        admin.message_user = lambda *_: None
        getattr(admin, action)(None, PeriodicTask.objects.filter(name="a"))

    return act


OFF_AND_ON = {
    "saved": (saved(enabled=False), saved(enabled=True)),
    "by actions": (acted("disable_tasks"), acted("enable_tasks")),
    "saved, then by an action": (saved(enabled=False), acted("enable_tasks")),
    "toggled": (acted("toggle_tasks"), acted("toggle_tasks")),
}

#: What a row tells of it by itself.
TOLD = ["saved", "by actions"]


def multiples_of(seconds, world):
    return [round(at / seconds) for at in world.times() if round(at) % seconds in (0, 1)]


# -- enabled again -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", TOLD)
def test_a_crontab_that_is_enabled_again_runs_at_its_next_time(changes, how):
    _let_it_be_off_for_a_while(changes, how)


@pytest.mark.parametrize("how", ["saved, then by an action", "toggled"])
def test_a_crontab_that_beats_have_seen_disabled_runs_at_its_next_time(seen_changes, how):
    _let_it_be_off_for_a_while(seen_changes, how)


def _let_it_be_off_for_a_while(changes, how):
    world = changes.world
    world.create(crontab=cron())
    changes.start()
    world.run(130)
    changes.do(*OFF_AND_ON[how], at=[140, 250])
    assert world.times() == pytest.approx([120], abs=1)
    changes.restart()
    world.run(130)
    assert world.times() == pytest.approx([120, 360], abs=1)
    assert world.row().total_run_count == 2
    changes.do(*OFF_AND_ON[how], at=[400, 610])
    changes.restart()
    world.run(230)
    assert world.times() == pytest.approx([120, 360, 720, 840], abs=1)


@pytest.mark.parametrize("how", ["saved, then by an action", "by actions", "toggled"])
def test_a_row_that_beats_have_seen_disabled_and_that_is_enabled_while_none_is_there_runs_at_its_next_time(
    seen_changes, how
):
    world = seen_changes.world
    off, on = OFF_AND_ON[how]
    world.create(crontab=cron())
    seen_changes.start()
    world.run(140)
    off(world)
    world.run(10)
    world.stop()
    world.run(100)
    on(world)
    seen_changes.start()
    world.run(130)
    assert world.times() == pytest.approx([120, 360], abs=1)


@pytest.mark.parametrize("how", OFF_AND_ON)
def test_an_interval_that_is_enabled_again_counts_from_then(seen_changes, how):
    world = seen_changes.world
    world.create(every=100, start_time=world.at(20))
    seen_changes.start()
    world.run(130)
    seen_changes.do(*OFF_AND_ON[how], at=[130, 300])
    seen_changes.restart()
    world.run(190)
    assert world.times() == pytest.approx([20, 120, 400, 500], abs=1.5)


@pytest.mark.parametrize("how", OFF_AND_ON)
def test_what_is_to_run_once_and_is_enabled_again_runs_at_its_next_time(seen_changes, how):
    world = seen_changes.world
    world.create(crontab=cron(), one_off=True)
    seen_changes.start()
    world.run(130)
    assert world.row().enabled is False
    seen_changes.do(OFF_AND_ON[how][1], at=[250])
    assert world.times() == pytest.approx([120], abs=1)
    seen_changes.restart()
    world.run(220)
    assert world.times() == pytest.approx([120, 360], abs=1)


def test_a_row_that_was_created_disabled_runs_at_its_first_time_after_it_is_enabled(seen_changes):
    world = seen_changes.world
    world.create(crontab=cron(), enabled=False)
    seen_changes.start()
    seen_changes.do(acted("enable_tasks"), at=[250])
    assert world.times() == []
    world.run(230)
    assert world.times() == pytest.approx([360, 480], abs=1)


# -- edited ------------------------------------------------------------------------------------------------------------


def _edit_the_schedule(world):
    when = cron(minute="1")
    when.minute = "*/2"
    when.save()


def _edit_past_all_signals(world):
    from django_celery_beat.models import PeriodicTask

    PeriodicTask.objects.filter(name="a").update(crontab=cron())


EDITS = {"another crontab": saved(crontab=cron), "the crontab itself": _edit_the_schedule}


@pytest.mark.parametrize("edit", EDITS)
def test_a_crontab_that_is_edited_runs_at_its_next_time(changes, edit):
    world = changes.world
    world.create(crontab=cron(minute="1"))
    changes.start()
    world.run(130)
    changes.do(EDITS[edit], at=[250])
    assert world.times() == pytest.approx([60], abs=1)
    changes.restart()
    world.run(230)
    assert world.times() == pytest.approx([60, 360, 480], abs=1)


def test_a_crontab_that_is_edited_past_all_signals_runs_at_its_next_time(seen_changes):
    world = seen_changes.world
    world.create(crontab=cron(minute="1"))
    seen_changes.start()
    world.run(130)
    seen_changes.do(_edit_past_all_signals, at=[250])
    world.run(320)
    # which is seen within five minutes
    times = world.times()
    assert times[0] == pytest.approx(60, abs=1)
    assert multiples_of(120, world) == [3, 4] or multiples_of(120, world) == [4]
    assert len(times) == 1 + len(multiples_of(120, world))


def test_an_interval_that_becomes_a_crontab_runs_at_its_next_time(seen_changes):
    world = seen_changes.world
    world.create(every=200)
    seen_changes.start()
    world.run(210)
    seen_changes.do(saved(interval=None, crontab=cron), at=[250])
    seen_changes.restart()
    world.run(110)
    assert world.times() == pytest.approx([200, 360], abs=1)


def test_a_tick_that_comes_right_after_an_edit_is_not_lost(seen_changes):
    world = seen_changes.world
    world.create(crontab=cron(minute="1"))
    seen_changes.start()
    world.run(119.9)
    saved(crontab=cron)(world)
    world.create("b", crontab=cron(), task="b")
    world.run(10)
    assert world.times() == pytest.approx([60, 120], abs=1.1)
    assert world.times("b") == pytest.approx([120], abs=1.1)


def test_a_tick_that_is_due_when_its_arguments_are_edited_is_not_lost(seen_changes):
    world = seen_changes.world
    world.create(crontab=cron())
    seen_changes.start()
    world.run(239.99)
    seen_changes.pass_unseen(0.5)
    saved(args="[1]")(world)
    world.run(10)
    assert world.times() == pytest.approx([120, 240.5], abs=0.5)
    assert world.messages()[1].args == [1]


# -- what was missed by a row that was there all the time --------------------------------------------------------------


@pytest.mark.parametrize("saves", [False, True], ids=["left alone", "saved as it is"])
def test_what_a_row_missed_while_no_beat_was_there_runs_at_once(seen_changes, saves):
    world = seen_changes.world
    world.create(crontab=cron())
    world.create("b", every=3600)
    seen_changes.start()
    world.run(130)
    world.stop()
    world.run(170)
    if saves:
        # as a deployment does that brings all its rows along
        saved(queue="q")(world)
    seen_changes.start()
    world.run(70)
    assert world.times() == pytest.approx([120, 300, 360], abs=1)


def test_what_was_missed_after_it_was_enabled_again_runs_at_once(seen_changes):
    world = seen_changes.world
    off, on = OFF_AND_ON["saved"]
    world.create(crontab=cron())
    seen_changes.start()
    world.run(130)
    seen_changes.do(off, on, at=[140, 250])
    world.stop()
    world.run(200)
    seen_changes.start()
    world.run(10)
    # 360 was missed
    assert world.times() == pytest.approx([120, 460], abs=1)


def test_without_a_word_from_the_beats_before_the_rows_alone_tell(seen_changes):
    world = seen_changes.world
    off, on = OFF_AND_ON["saved"]
    world.create(crontab=cron())
    seen_changes.start()
    world.run(130)
    world.stop()
    off(world)
    world.run(120)
    on(world)
    # the Redis was emptied, say
    world.simulation.store.announcements.announced = lambda *_args, **_options: []
    seen_changes.start()
    world.run(130)
    assert world.times() == pytest.approx([120, 360], abs=1)


# -- unless it is asked for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["enabled", "edited"])
def test_what_was_missed_runs_at_once_where_that_is_asked_for(seen_changes, what):
    world = seen_changes.world
    world.create(crontab=cron() if what == "enabled" else cron(minute="1"))
    seen_changes.start(lockbeat_django_run_missed_when_changed=True)
    world.run(130)
    if what == "enabled":
        seen_changes.do(*OFF_AND_ON["by actions"], at=[140, 250])
    else:
        seen_changes.do(EDITS["another crontab"], at=[250])
    first = 120 if what == "enabled" else 60
    assert world.times() == pytest.approx([first, 250], abs=2)


@pytest.mark.parametrize(("catchup", "made_up"), [("all", [240, 360]), ("latest", []), ("none", [])])
def test_what_was_due_while_a_row_was_off_is_made_up_for_where_its_policy_says_all(changes, catchup, made_up):
    from celery_lockbeat.contrib.django.policies.models import EntryPolicy

    world = changes.world
    EntryPolicy.objects.create(task=world.create(crontab=cron()), catchup=catchup)
    changes.start()
    world.run(130)
    changes.do(*OFF_AND_ON["saved"], at=[140, 400])
    world.run(100)
    dues = [datetime.fromisoformat(each.headers["lockbeat"]["due"]).timestamp() for each in world.messages()]
    start = world.simulation.world.start.timestamp()
    assert [due - start for due in dues] == [120, *made_up, 480]


def test_a_wrong_setting_is_refused(make_world):
    with pytest.raises(
        ConfigurationError, match="lockbeat_django_run_missed_when_changed is 1; allowed: True or False"
    ):
        make_world().start(lockbeat_django_run_missed_when_changed=1)


# -- start times -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [-86400, 0.001, 130])
@pytest.mark.parametrize("one_off", [False, True])
def test_a_crontab_that_has_never_run_runs_at_its_first_time_after_its_start_time(seen_changes, start, one_off):
    world = seen_changes.world
    world.create(crontab=cron(minute="3,5"), start_time=world.at(start), one_off=one_off)
    seen_changes.start()
    world.run(170)
    assert world.times() == []
    seen_changes.restart()
    world.run(200)
    assert world.times() == pytest.approx([180] if one_off else [180, 300], abs=1)


def test_a_start_time_that_is_one_of_its_times_is_the_first_one(seen_changes):
    world = seen_changes.world
    world.create(crontab=cron(), start_time=world.at(240))
    seen_changes.start()
    world.run(370)
    assert world.times() == pytest.approx([240, 360], abs=1.1)


def test_a_first_time_that_no_beat_was_there_for_is_made_up_for(seen_changes):
    world = seen_changes.world
    world.create(crontab=cron(), start_time=world.at(-86400))
    world.run(130)
    seen_changes.start()
    world.run(10)
    assert world.times() == pytest.approx([130], abs=1)


def test_a_start_time_far_ahead_is_no_last_run_that_is_yet_to_come(make_world, monkeypatch, caplog):
    let_them_sleep(monkeypatch)
    monkeypatch.setattr("celery_lockbeat.beat.replicas.LOOK_EVERY", 300.0)
    world = make_world()
    world.create(crontab=cron(minute="0", hour="3"), start_time=world.at(3 * 86400))
    world.start(beat_max_loop_interval=300, lockbeat_claim_ttl=1200)
    world.run(3.5 * 86400)
    assert world.times() == pytest.approx([3 * 86400 + 3 * 3600], abs=1)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []

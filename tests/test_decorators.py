"""cron, interval, timeout: what they refuse, what they make, and that any beat of Celery's fires it."""

from __future__ import annotations

import copy
import itertools
import pickle
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import celery
import pytest
from celery import Celery, _state
from celery.beat import PersistentScheduler, Scheduler
from celery.schedules import crontab, schedule
from simulation import assert_same, let_them_sleep

from celery_lockbeat import LockedTask, cron, interval, timeout
from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.schedules import Cron, Every
from celery_lockbeat.schedules.dues import iter_dues
from celery_lockbeat.schedules.policy import Policy
from celery_lockbeat.schedules.when import Timeout

DAY = 86400.0


@pytest.fixture(autouse=True)
def _shared_by_no_other_test():
    """Keep what is shared here out of every app of the tests that come."""
    shared = set(_state._on_app_finalizers)
    yield
    _state._on_app_finalizers.clear()
    _state._on_app_finalizers.update(shared)


@pytest.fixture
def app():
    app = Celery("decorated", broker="memory://", set_as_current=False)
    app.conf.lockbeat_driver = "memory"
    yield app
    app.close()


def nothing(): ...


def entry_of(app, name):
    return app.conf.beat_schedule[name]


# -- what is refused, where it stands ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("61 * * * *", r"minute of @cron is '61'.*allowed: 0-59"),
        ("* 24 * * *", r"hour of @cron is '24'.*allowed: 0-23"),
        ("* * 0 * *", r"day_of_month of @cron is '0'.*allowed: 1-31"),
        ("* * * 13 *", r"month_of_year of @cron is '13'.*allowed: 1-12"),
        ("* * * * 8", r"day_of_week of @cron is '8'.*allowed: 0-6 or sun-sat"),
        ("* * * * moonday", r"day_of_week of @cron is 'moonday'"),
        ("*/0 * * * *", r"minute of @cron is '\*/0'"),
        ("5-x * * * *", r"minute of @cron is '5-x'"),
        ("1,,2 * * * *", r"minute of @cron is '1,,2'"),
        ("* * * *", r"expression of @cron is '\* \* \* \*'; allowed: five fields, minute hour"),
        ("* * * * * * *", r"allowed: five fields"),
        ("", r"allowed: five fields"),
        ("@reboot", r"expression of @cron is '@reboot'; allowed: five fields.*; @yearly, @annually, @monthly"),
        (5, r"expression of @cron is 5; allowed: five fields"),
        (None, r"expression of @cron is None"),
        (["0", "*", "*", "*", "*"], r"expression of @cron is \["),
        ("0 0 30 2 *", r"0 0 30 2 \*.*allowed: a date that there is"),
    ],
)
def test_a_wrong_cron_expression_is_refused_with_its_field_its_value_and_what_is_allowed(expression, told):
    with pytest.raises(ConfigurationError, match=told):
        cron(expression)


@pytest.mark.parametrize("decorator", [interval, timeout])
@pytest.mark.parametrize(
    "seconds", ["10", None, -1, float("nan"), float("inf"), True, timedelta(seconds=-1), [1], 1e12, timedelta.max]
)
def test_wrong_seconds_are_refused_with_their_value(decorator, seconds):
    with pytest.raises(ConfigurationError, match=rf"the time of @{decorator.__name__} is .*allowed: seconds"):
        decorator(seconds)


def test_an_interval_of_nothing_is_refused_and_a_timeout_of_nothing_is_not(app):
    with pytest.raises(ConfigurationError, match=r"@interval is 0"):
        interval(0)
    timeout(0)


@pytest.mark.parametrize(
    ("decorator", "hint"), [(cron, r"@cron\("), (interval, r"@interval\(10\)"), (timeout, r"@timeout\(10\)")]
)
def test_without_parentheses_it_is_refused_with_how_to_write_it(decorator, hint):
    with pytest.raises(ConfigurationError, match=hint):

        @decorator
        def body(): ...


@pytest.mark.parametrize("zone", ["Europe/Bärlin", "Mars", "", "../etc/passwd", 5, "/UTC", "Europe"])
def test_a_wrong_timezone_is_refused(zone):
    with pytest.raises(ConfigurationError, match=r"timezone of @cron is .*allowed: a name such as 'Europe/Berlin'"):
        cron("0 * * * *", timezone=zone)


@pytest.mark.parametrize(
    "decorator", [lambda **o: cron("0 * * * *", **o), lambda **o: interval(1, **o), lambda **o: timeout(1, **o)]
)
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"name": ""}, "name of @"),
        ({"name": 5}, "name of @"),
        ({"args": 5}, "args of @"),
        ({"args": "abc"}, "args of @"),
        ({"kwargs": [1]}, "kwargs of @"),
        ({"options": "queue"}, "options of @"),
        ({"base": object}, "base of @"),
        ({"base": "LockedTask"}, "base of @"),
        ({"lock_tll": 5}, "lock_tll"),
        ({"lock_ttl": "soon"}, "lock_ttl"),
        ({"lock_ttl": -1}, "lock_ttl"),
        ({"lock_on_lost": "shrug"}, "lock_on_lost"),
        ({"lock_driver": "etcd"}, "lock_driver"),
    ],
)
def test_a_wrong_argument_is_refused_with_its_name(decorator, wrong, told):
    with pytest.raises(ConfigurationError, match=told):
        decorator(**wrong)


# -- what is made ------------------------------------------------------------------------------------------------------

OPTIONS = {
    "lock_enabled": False,
    "lock_key": "report",
    "lock_driver": "memory",
    "lock_connection": "other",
    "lock_ttl": 61,
    "lock_auto_extend": False,
    "lock_extend_interval": 7,
    "lock_retry_attempts": 3,
    "lock_retry_delay": 0.4,
    "lock_retry_jitter": 0.1,
    "lock_skip_if_locked": False,
    "lock_wait_at_most": 60,
    "lock_line_limit": 9,
    "lock_limit": 4,
    "lock_hold_at_least": 2,
    "lock_hold_at_most": 90,
    "lock_on_lost": "warn",
    "lock_dedupe_ttl": 0,
    "lock_unique": "until_finished",
    "lock_unique_ttl": 120,
    "lock_logging": "verbose",
    # and Celery's
    "bind": True,
    "acks_late": True,
    "max_retries": 9,
    "time_limit": 30,
    "autoretry_for": (KeyError,),
    "rate_limit": "5/m",
    "ignore_result": True,
    "serializer": "json",
}


@pytest.mark.parametrize("decorator", [cron, interval, timeout])
@pytest.mark.parametrize("shared", [True, False])
def test_every_option_of_a_task_goes_to_the_task_and_none_to_the_entry(app, decorator, shared):
    name = f"{decorator.__name__}-{shared}"
    when = "0 * * * *" if decorator is cron else 5

    @decorator(when, name=name, **OPTIONS, **({} if shared else {"app": app}))
    def body(self): ...

    app.finalize()
    task = app.tasks[name]
    assert isinstance(task, LockedTask)
    for option, value in OPTIONS.items():
        if option not in ("bind", "autoretry_for"):
            assert getattr(task, option) == value, option
    assert entry_of(app, name) == {
        "task": name,
        "schedule": entry_of(app, name)["schedule"],
        "args": (),
        "kwargs": {},
        "options": {},
    }


def test_args_kwargs_and_message_options_go_to_the_entry(app):
    kwargs, options = {"k": 1}, {"queue": "q", "expires": 5}

    @interval(5, name="e", app=app, args=[1, 2], kwargs=kwargs, options=options)
    def body(a, b, k): ...

    app.finalize()
    kwargs["k"] = options["queue"] = "changed later"
    entry = entry_of(app, "e")
    assert entry["args"] == (1, 2)
    assert entry["kwargs"] == {"k": 1}
    assert entry["options"] == {"queue": "q", "expires": 5}


def test_the_schedules_are_what_the_decorators_say(app):
    @cron("*/5 1-3 1,15 * mon-fri", name="c", app=app, shared=False)
    def c(): ...

    @interval(timedelta(minutes=2), name="i", app=app, shared=False)
    def i(): ...

    @timeout(1.5, name="t", app=app, shared=False)
    def t(): ...

    app.finalize()
    assert entry_of(app, "c")["schedule"] == Cron("*/5 1-3 1,15 * mon-fri")
    assert entry_of(app, "i")["schedule"] == schedule(120)
    assert entry_of(app, "t")["schedule"] == Timeout(1.5)


POLICY = {"jitter": 2, "catchup": "none", "catchup_window": 60, "start_within": timedelta(seconds=5)}
OF_MANY = {
    **POLICY,
    "start": datetime(2026, 1, 1, tzinfo=timezone.utc),
    "end": datetime(2027, 1, 1, tzinfo=timezone.utc),
    "max_runs": 5,
    "catchup_limit": 7,
    "pause_after_failures": 3,
}


@pytest.mark.parametrize(
    ("decorator", "when", "policy"),
    [(cron, "0 * * * *", OF_MANY), (interval, 5, {**OF_MANY, "run_at_start": True}), (timeout, 5, POLICY)],
)
def test_the_keywords_of_a_policy_go_to_the_schedule_and_none_to_the_task(app, decorator, when, policy):
    @decorator(when, name="e", app=app, lock_ttl=7, **policy)
    def body(): ...

    app.finalize()
    assert entry_of(app, "e")["schedule"].policy == Policy.read(policy, owner="x")
    assert entry_of(app, "e")["options"] == {}
    assert app.tasks["e"].lock_ttl == 7
    assert not policy.keys() & {name for each in type(app.tasks["e"]).__mro__ for name in vars(each)}


def test_with_a_policy_an_interval_is_an_every_and_without_one_celerys(app):
    interval(5, name="plain", app=app)(nothing)
    interval(5, name="spread", app=app, jitter=1)(nothing)
    app.finalize()
    assert type(entry_of(app, "plain")["schedule"]) is schedule
    assert isinstance(entry_of(app, "spread")["schedule"], Every)


def test_what_celery_can_say_is_a_crontab_for_those_who_know_no_other(app):
    cron("*/15 * * * mon", name="plain", app=app, timezone="Europe/Berlin")(nothing)
    cron("*/15 * * * * *", name="seconds", app=app)(nothing)
    app.finalize()
    assert isinstance(entry_of(app, "plain")["schedule"], crontab)
    assert not isinstance(entry_of(app, "seconds")["schedule"], crontab)


@pytest.mark.parametrize("shared", [True, False])
def test_the_name_of_the_entry_decides_what_h_is_and_the_jitter(app, shared):
    where = {} if shared else {"app": app}
    for name in ("one", "other"):
        cron("H H * * *", name=name, **where)(nothing)
        interval(600, name=f"every {name}", jitter=300, **where)(nothing)
    app.finalize()
    for name in ("one", "other"):
        assert entry_of(app, name)["schedule"] == Cron("H H * * *").bound_to(name)
        assert entry_of(app, f"every {name}")["schedule"] == Every(600, jitter=300).bound_to(f"every {name}")
    assert entry_of(app, "one")["schedule"] != entry_of(app, "other")["schedule"]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: cron("0 * * * *", jitter=3601), r"jitter of @cron is 3601.*allowed: at most 3600"),
        (lambda: cron("0 * * * *", start=datetime(2026, 1, 1)), r"start of @cron is '2026.*a datetime with a timezone"),
        (lambda: cron("0 * * * *", run_at_start=True), r"run_at_start of @cron is True"),
        (lambda: interval(0.5, catchup="all"), r"catchup of @interval is 'all'"),
        (lambda: interval(5, catchup="some"), r"catchup of @interval is 'some'; allowed: 'latest', 'all', 'none'"),
        (lambda: timeout(5, max_runs=2), r"max_runs of @timeout is not an option"),
    ],
)
def test_a_wrong_policy_is_refused_where_it_stands(make, told):
    with pytest.raises(ConfigurationError, match=told):
        make()


def test_without_a_name_task_and_entry_have_the_functions_full_name(app):
    @interval(5, app=app)
    def unnamed(): ...

    @interval(5)
    def unnamed_and_shared(): ...

    app.finalize()
    for function in ("unnamed", "unnamed_and_shared"):
        name = f"{__name__}.{function}"
        assert app.tasks[name].name == name == entry_of(app, name)["task"]


def test_an_app_that_names_tasks_its_own_way_is_followed():
    class Named(Celery):
        def gen_task_name(self, name, module):
            return f"ours.{name}"

    app = Named("named", set_as_current=False)

    @interval(5, app=app)
    def body(): ...

    app.finalize()
    assert entry_of(app, "ours.body")["task"] == app.tasks["ours.body"].name == "ours.body"


def test_a_subclass_of_locked_task_can_be_the_base(app):
    class Own(LockedTask):
        lock_ttl = 77

    @interval(5, name="own", app=app, base=Own)
    def body(): ...

    assert isinstance(app.tasks["own"], Own)
    assert app.tasks["own"].lock_ttl == 77


def test_it_is_a_task_like_any_other(app):
    app.conf.task_always_eager = True

    @interval(5, name="a task", app=app)
    def double(x=4):
        """Docs."""
        return 2 * x

    @cron("0 0 * * *", name="another task", app=app, bind=True)
    def own_name(self):
        return self.name

    assert double(5) == 10
    assert double.delay(6).get() == 12
    assert double.apply_async().get() == 8
    assert (double.s(1) | double.s()).apply().get() == 4
    assert own_name() == "another task"
    assert double.__doc__ == "Docs."
    assert double.__name__ == "double"


def test_a_shared_one_is_in_every_app_those_before_and_those_after():
    before, finalized = (Celery(name, set_as_current=False) for name in ("before", "finalized"))
    finalized.finalize()

    @interval(5, name="in every app")
    def body(): ...

    after = Celery("after", set_as_current=False)
    for app in (before, finalized, after):
        app.finalize()
        assert entry_of(app, "in every app")["task"] == "in every app"
        assert isinstance(app.tasks["in every app"], LockedTask)
    assert len({id(app.tasks["in every app"]) for app in (before, finalized, after)}) == 3


def test_a_shared_cron_runs_in_the_timezone_of_each_app():
    @cron("30 9 * * *", name="at half past nine")
    def body(): ...

    moments = []
    for zone in ("Europe/Berlin", "America/New_York"):
        app = Celery(zone, set_as_current=False)
        app.conf.timezone = zone
        app.finalize()
        scheduler = Scheduler(app)
        when = scheduler.schedule["at half past nine"].schedule
        assert when.app is app
        assert str(when.tz) == zone
        moments.append(when)
    assert [str(when.tz) for when in moments] == ["Europe/Berlin", "America/New_York"]
    assert moments[0].app is not moments[1].app


def test_one_of_an_app_is_in_no_other(app):
    @interval(5, name="of one app", app=app)
    def body(): ...

    other = Celery("other", set_as_current=False)
    other.finalize()
    app.finalize()
    assert "of one app" in app.conf.beat_schedule
    assert "of one app" not in other.conf.beat_schedule


@pytest.mark.parametrize("finalized_first", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_it_may_come_before_and_after_the_app_is_finalized(app, finalized_first, shared):
    if finalized_first:
        app.finalize()

    @interval(5, name=f"late-{finalized_first}-{shared}", **({} if shared else {"app": app}))
    def body(): ...

    app.finalize()
    assert entry_of(app, f"late-{finalized_first}-{shared}")["schedule"] == schedule(5)


@pytest.mark.parametrize("finalized_first", [True, False])
def test_an_entry_of_the_same_name_in_the_users_schedule_wins(app, finalized_first):
    own = {"task": "e", "schedule": 99.0}
    app.conf.beat_schedule = {"e": own, "other": {"task": "x", "schedule": 5}}
    if finalized_first:
        app.finalize()

    @interval(5, name="e", app=app)
    def body(): ...

    @interval(5, name="f", app=app)
    def another(): ...

    app.finalize()
    assert entry_of(app, "e") == own
    assert set(app.conf.beat_schedule) >= {"e", "f", "other"}


def test_the_users_own_schedule_object_is_not_written_to(app):
    users = {"other": {"task": "x", "schedule": 5}}
    app.conf.beat_schedule = users

    @interval(5, name="e", app=app)
    def body(): ...

    app.finalize()
    assert set(users) == {"other"}
    assert "e" in app.conf.beat_schedule


def test_settings_that_are_loaded_later_keep_the_entries():
    app = Celery("lazy", set_as_current=False)

    @interval(5, name="e", app=app)
    def body(): ...

    app.config_from_object({"beat_schedule": {"other": {"task": "x", "schedule": 5}}, "timezone": "Europe/Berlin"})
    app.finalize()
    assert {"e", "other"} <= set(app.conf.beat_schedule)


# -- their schedules ---------------------------------------------------------------------------------------------------


def schedules():
    made = {}
    app = Celery("made", set_as_current=False)
    for name, decorator in {
        "cron": cron("5 4 * * *", name="cron", app=app),
        "zoned": cron("5 4 * * mon", name="zoned", app=app, timezone="Australia/Lord_Howe"),
        "interval": interval(7, name="interval", app=app),
        "timeout": timeout(7, name="timeout", app=app),
    }.items():
        decorator(nothing)
        made[name] = app.conf.beat_schedule
    app.finalize()
    return {name: app.conf.beat_schedule[name]["schedule"] for name in made}


@pytest.mark.parametrize("name", ["cron", "zoned", "interval", "timeout"])
def test_schedules_are_equal_by_what_they_say_and_survive_pickle_and_copy(name):
    one, other = schedules()[name], schedules()[name]
    assert one == other
    if name != "interval":  # Celery's own have no hash
        assert hash(one) == hash(other)
    for twin in (pickle.loads(pickle.dumps(one)), copy.copy(one), copy.deepcopy(one)):
        assert twin == one
        assert repr(twin) == repr(one)
    assert all(one != each for key, each in schedules().items() if key != name)


def test_a_cron_of_another_timezone_or_another_time_is_another_schedule():
    def made(expression, zone):
        app = Celery("made", set_as_current=False)
        app.finalize()
        cron(expression, name="e", app=app, timezone=zone)(nothing)
        return app.conf.beat_schedule["e"]["schedule"]

    berlin = made("5 4 * * *", "Europe/Berlin")
    assert berlin == made("5 4 * * *", "Europe/Berlin")
    assert berlin != made("5 4 * * *", "Europe/Paris")
    assert berlin != made("6 4 * * *", "Europe/Berlin")
    assert berlin != made("5 4 * * *", None)
    assert made("5 4 * * *", None) != berlin


def test_a_timeout_tells_its_time_and_is_due_once():
    now = [datetime(2026, 6, 1, tzinfo=timezone.utc)]
    app = Celery("t", set_as_current=False)
    when = Timeout(10, nowfun=lambda: now[0], app=app)
    before = now[0] - timedelta(days=3)
    assert tuple(when.is_due(before)) == (False, 10)
    now[0] += timedelta(seconds=4)
    assert tuple(when.is_due(before)) == (False, 6)
    assert when.remaining_estimate(before) == timedelta(seconds=6)
    now[0] += timedelta(seconds=6.5)
    assert when.is_due(before).is_due
    assert not when.is_due(now[0]).is_due
    assert when.is_due(now[0]).next > DAY
    # the next start is another one
    assert not pickle.loads(pickle.dumps(when)).is_due(before).is_due


# -- any beat fires them -----------------------------------------------------------------------------------------------


@pytest.fixture
def driver():
    return "memory"


def decorated(app, zone=None):
    @cron("*/15 * * * *", name="cron", app=app, timezone=zone, shared=False)
    def c(): ...

    @interval(600, name="interval", app=app, shared=False)
    def i(): ...

    @timeout(100, name="timeout", app=app, shared=False)
    def t(): ...

    return app


@pytest.mark.parametrize("scheduler", [Scheduler, PersistentScheduler])
def test_under_celerys_own_schedulers_they_fire_as_under_ours_and_a_timeout_once_per_start(
    simulation, scheduler, tmp_path
):
    file = {"schedule_filename": str(tmp_path / "schedule")} if scheduler is PersistentScheduler else {}
    brokers = []
    for _ in range(2):
        started = simulation.world.elapsed
        theirs = simulation.celery({}, scheduler, prepare=decorated, **file)
        brokers.append(theirs.broker)
        ours = simulation.beat(decorated(simulation.app()))
        simulation.world.run(theirs, ours, seconds=3601)
        theirs.close()
        ours.close()
        times = theirs.broker.times()
        assert times["timeout"] == pytest.approx([started + 100], abs=0.1)
        if not started:
            assert_same(simulation.times(), times)
        simulation.world.elapsed += 60
    assert len(simulation.times()["timeout"]) == 2


CHANGES = {
    "Europe/Berlin": ("2026-03-28T20:00:00.500000+00:00", "2026-10-24T20:00:00.500000+00:00"),
    "America/New_York": ("2026-03-08T01:00:00.500000+00:00", "2026-11-01T01:00:00.500000+00:00"),
    "Australia/Lord_Howe": ("2026-04-04T10:00:00.500000+00:00", "2026-10-03T10:00:00.500000+00:00"),
    "Asia/Kolkata": ("2026-03-28T20:00:00.500000+00:00",),
}
EXPRESSIONS = ["*/30 * * * *", "30 1-3 * * *", "0 2 * * *", "15 0 * * sun", "45 9 * * *", "5 2 1-31 * *"]


@pytest.mark.parametrize(("zone", "start"), [(zone, start) for zone, starts in CHANGES.items() for start in starts])
def test_over_a_change_of_the_clocks_a_cron_fires_when_it_is_due_in_our_beat_and_in_celerys(
    simulation, monkeypatch, zone, start
):
    let_them_sleep(monkeypatch)
    world = simulation.restart(start)
    settings = {"lockbeat_claim_ttl": 3600, "beat_max_loop_interval": 900, "enable_utc": zone != "Europe/Berlin"}

    def decorate(app):
        for expression in EXPRESSIONS:
            cron(expression, name=expression, app=app, timezone=zone)(nothing)

    app = simulation.app(timezone="Asia/Tokyo", **settings)
    decorate(app)
    ours = simulation.beat(app)
    theirs = simulation.celery({}, prepare=decorate, timezone="Asia/Tokyo", **settings)
    world.run(ours, theirs, seconds=1.4 * DAY)
    assert_same(simulation.times(), theirs.broker.times())
    end = world.start + timedelta(seconds=1.4 * DAY)
    for expression in EXPRESSIONS:
        # tests/schedules/test_clock_changes.py has a watchman for these
        due = list(iter_dues_until(Cron(expression, timezone=zone), world.start, end))
        sent = [world.start + timedelta(seconds=at) for at in simulation.times().get(expression, [])]
        assert len(sent) == len(due)
        assert all(timedelta(0) <= at - moment < timedelta(seconds=2) for at, moment in zip(sent, due, strict=True))


def iter_dues_until(when, after, end):
    return itertools.takewhile(lambda due: due <= end, iter_dues(when, after))


@pytest.mark.skipif(celery.VERSION < (5, 7), reason="older Celerys answer otherwise for other zones")
@pytest.mark.parametrize("zone", CHANGES)
def test_where_no_clock_is_changed_a_cron_fires_as_celerys_crontab_in_an_app_of_its_timezone(
    simulation, monkeypatch, zone
):
    let_them_sleep(monkeypatch)
    world = simulation.restart("2026-06-06T10:00:00.500000+00:00")
    settings = {"lockbeat_claim_ttl": 3600, "beat_max_loop_interval": 900}
    app = simulation.app(timezone="Asia/Tokyo", **settings)
    for expression in EXPRESSIONS:
        cron(expression, name=expression, app=app, timezone=zone)(nothing)
    celerys = {
        each: {"task": each, "schedule": crontab(minute, hour, dow, dom, moy)}
        for each in EXPRESSIONS
        for minute, hour, dom, moy, dow in [each.split()]
    }
    theirs = simulation.celery(celerys, timezone=zone, **settings)
    world.run(simulation.beat(app), theirs, seconds=1.4 * DAY)
    assert_same(simulation.times(), theirs.broker.times())
    local = [world.start + timedelta(seconds=at) for at in simulation.times()["45 9 * * *"]]
    assert {(at.astimezone(ZoneInfo(zone)).hour, at.astimezone(ZoneInfo(zone)).minute) for at in local} == {(9, 45)}

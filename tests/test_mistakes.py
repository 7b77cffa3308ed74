"""Mistakes that nothing would ever notice are refused at start-up, in the words of whoever made them."""

from __future__ import annotations

import types

import pytest
from celery import Task

from celery_lockbeat import ConfigurationError, LockedTask, cron, interval, timeout
from celery_lockbeat.options import LockOptions
from celery_lockbeat.tasks.checks import check_beat, check_worker


@pytest.fixture
def app(make_app):
    return make_app(lockbeat_driver="memory")


def worker_starts(app):
    app.finalize()
    pool = type("Pool", (), {"__module__": "celery.concurrency.prefork"})
    check_worker(types.SimpleNamespace(app=app, pool_cls=pool))


def beat_starts(app):
    app.finalize()
    check_beat(types.SimpleNamespace(app=app))


@pytest.mark.parametrize("start", [worker_starts, beat_starts])
def test_a_locks_option_of_a_task_without_a_lock_is_refused_with_the_right_spelling(app, start):
    @app.task(name="it", lock_ttl=60)
    def body():
        pass

    expected = r"^ConfigurationError: lock_ttl of it is 60, but this task has no lock; allowed: .* @app\.task\(base=LockedTask, lock_ttl=60\)$"
    with pytest.raises(SystemExit, match=expected):
        start(app)


@pytest.mark.parametrize("start", [worker_starts, beat_starts])
def test_what_another_base_reads_or_all_tasks_are_given_is_not_ours_to_refuse(make_app, start):
    app = make_app(lockbeat_driver="memory", task_annotations={"*": {"lock_ttl": 60}})

    class Own(Task):
        """Somebody's own locking."""

        abstract = True
        lock_key = None
        lock_timeout = 5

    @app.task(base=Own, name="own", lock_key="mine", lock_timeout=7)
    def own():
        pass

    @app.task(name="plain", lock_of_the_door=True)
    def plain():
        pass

    class Classy(Task):
        name = "classy"
        lock_ttl = 5

        def run(self):
            return self.lock_ttl

    @app.task(base=LockedTask, name="ours", lock_key="ours")
    def ours():
        pass

    app.register_task(Classy())
    start(app)
    assert ours.lock_ttl == 60


@pytest.mark.parametrize(
    "decorate", [lambda **o: interval(10, **o), lambda **o: cron("* * * * *", **o), lambda **o: timeout(5, **o)]
)
@pytest.mark.parametrize("option", ["ttl", "key", "on_lost", "driver", "hold_at_least"])
def test_a_locks_option_without_its_prefix_is_refused_with_the_right_spelling(decorate, option):
    with pytest.raises(
        ConfigurationError, match=rf"^{option} of @\w+ is 60; allowed: lock_{option}=60, an option of the task's lock"
    ):
        decorate(**{option: 60})


def test_options_of_celery_and_of_a_base_are_not_taken_for_the_locks(app):
    class Base(LockedTask):
        abstract = True
        key = None

    @interval(10, app=app, base=Base, key="mine", retry_jitter=False, autoretry_for=(ValueError,), name="it")
    def body():
        pass

    assert app.tasks["it"].key == "mine"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: LockOptions.read({}, {"ttl": 2_592_001}, owner="it"), r"^ttl of it is 2592001; allowed: seconds, a number from 0\.1 to 2592000 \(2592001 ms are 2592\.001 s\)$"),
        (lambda: LockOptions.read({}, {"ttl": 0.01}, owner="it"), r"a number from 0\.1 to 2592000$"),
        (lambda: LockOptions.read({}, {"ttl": 86_400_000}, owner="it"), r"\(86400000 ms are 86400 s\)$"),
        (lambda: interval(86_400_000), r"a number from 0\.001 to 31104000, or a timedelta \(86400000 ms are 86400 s\)$"),
        (lambda: timeout("5"), r"a number from 0 to 31104000, or a timedelta$"),
        (lambda: LockOptions.read({}, {"ttl": 1_234_567, "extend_interval": 2_000_000}, owner="it"), r"a time below ttl of it, which is 1234567$"),
    ],
)  # fmt: skip
def test_numbers_are_told_as_people_write_them_and_milliseconds_are_guessed(make, expected):
    with pytest.raises(ConfigurationError, match=expected):
        make()


# -- functions that make a key -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [lambda: "x", lambda customer, day, hour: "x", lambda self: "x", lambda other, *, hour: "x", lambda **_: "x"],
)
def test_a_function_that_no_call_fits_is_refused_when_it_is_bound(app, function):
    @app.task(base=LockedTask, name="it", lock_key=function)
    def body(customer, /, day="mon"):
        pass

    expected = r"lock_key of it is <function .*>; allowed: a function of the arguments of the task: lambda customer, /, day='mon': \.\.\.$"
    with pytest.raises(ConfigurationError, match=expected):
        body.apply((1,))


@pytest.mark.parametrize(
    ("function", "kwargs"),
    [
        (lambda customer, day="mon": "x", None),
        (lambda *_, **__: "x", None),
        (lambda self, customer, *_: f"{self.name and 'x'}", None),
        (lambda self, customer: "x", None),
        ("x".format, None),
        (str, None),
        (lambda **_: "x", {"customer": 1}),
        (lambda customer, **_: "x", {"customer": 1, "day": "tue"}),
    ],
)
def test_a_function_that_some_call_fits_is_taken(app, function, kwargs):
    @app.task(base=LockedTask, name="it", lock_key=function)
    def body(customer, day="mon"):
        return "ran"

    assert body.apply(() if kwargs else (1,), kwargs).get() == "ran"


def test_a_call_that_the_function_does_not_fit_says_so_and_its_own_errors_are_its_own(app):
    @app.task(base=LockedTask, name="it", lock_key=lambda customer: f"k:{customer + 1}")
    def body(customer, day="mon"):
        return "ran"

    assert body.apply((1,)).get() == "ran"
    with pytest.raises(
        ConfigurationError,
        match=r"allowed: a function of the arguments of this call \(.*takes 1 positional argument but 2",
    ):
        body(1, "tue")
    with pytest.raises(TypeError, match="concatenate"):
        body("one")


def test_a_key_that_must_be_awaited_is_refused(app):
    async def function(customer):
        return "x"

    @app.task(base=LockedTask, name="it", lock_key=function)
    def body(customer):
        pass

    with pytest.raises(ConfigurationError, match="allowed: a function that returns the key, or keys, not a coroutine"):
        body(1)

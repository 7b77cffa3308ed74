"""Where the lock is taken: around ``run``, whoever calls it, in one process. In real workers: processes/test_bases.py."""

from __future__ import annotations

import functools
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from celery import Task, states
from celery.app.trace import build_tracer, reset_worker_optimizations, setup_worker_optimizations

from celery_lockbeat import ConfigurationError, Lock, LockedTask, LockNotAcquired, TaskSkipped, current_lock


@pytest.fixture
def app(make_app):
    return make_app(lockbeat_driver="memory")


@pytest.fixture
def in_worker(app):
    """Run a task as a worker does; what Celery patches within a worker is patched meanwhile."""
    setup_worker_optimizations(app)

    def run(task, *args, **request):
        tracer = build_tracer(task.name, app.tasks[task.name], app=app, eager=False)
        request = {"id": "id", "delivery_info": {}, "retries": 0, **request}
        return tracer(request["id"], args, {}, request)

    yield run
    reset_worker_optimizations(app)


class Plain(Task):
    """As Flask's documentation writes it."""

    abstract = True

    def __call__(self, *args, **kwargs):
        return self.run(*args, **kwargs)


class Through(Task):
    abstract = True

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


def ways(task):
    """Each way to call a task here and now."""
    return {"()": task, "run": task.run, "apply": lambda *args: task.apply(args).get()}


@pytest.mark.parametrize(
    "bases", [(LockedTask,), (Plain, LockedTask), (LockedTask, Plain), (Through, LockedTask), (LockedTask, Through)]
)
@pytest.mark.parametrize("bind", [False, True])
def test_every_way_to_the_body_leads_through_its_lock_which_is_taken_once(app, bases, bind):
    def body(*args):
        return current_lock().key, args[-1]

    def bound(self, *args):
        return body(*args)

    task = app.task(bind=bind, base=type("Base", bases, {"abstract": True}), name="it")(bound if bind else body)
    for name, way in ways(task).items():
        assert way(7) == ("it", 7), name
        with Lock("it", app=app), pytest.raises(TaskSkipped if name != "apply" else Exception, match="locked"):
            way(7)


@pytest.mark.parametrize("kind", ["method", "static", "class", "partial", "inherited", "mixin"])
def test_a_class_may_have_its_body_in_whatever_way_python_knows(app, kind):
    def run(*args):
        return current_lock().key, args[-1]

    def one(x):
        return run(x)

    class Mixin:
        def run(self, x):
            return run(self, x)

    class Below(LockedTask):
        def run(self, x):
            return run(self, x)

    attributes = {
        "method": {"run": lambda _, x: run(x)},
        "static": {"run": staticmethod(one)},
        "class": {"run": classmethod(lambda _, x: run(x))},
        "partial": {"run": functools.partialmethod(lambda self, _, x: run(x), "first")},
        "inherited": {},
        "mixin": {},
    }[kind]
    bases = {"inherited": (Below,), "mixin": (Mixin, LockedTask)}.get(kind, (LockedTask,))
    task = app.register_task(type("Report", bases, {"name": "it", "lock_key": "k:{x}", **attributes})())
    assert list(inspect.signature(task.run).parameters) == ["x"]
    for name, way in ways(task).items():
        assert way(7) == ("k:7", 7), name
        with Lock("k:7", app=app), pytest.raises(TaskSkipped if name != "apply" else Exception, match="locked"):
            way(7)


def test_a_run_that_an_instance_gets_in_its_init_is_locked_too(app):
    class Report(LockedTask):
        name = "it"

        def __init__(self):
            self.run = lambda: current_lock().key

    task = app.register_task(Report())
    assert [way() for way in ways(task).values()] == ["it"] * 3


def test_two_instances_of_a_class_have_each_the_key_of_its_own_name(app):
    class Report(LockedTask):
        def run(self):
            return current_lock().key

    nameless, other = Report(), Report()
    other.name = "other"
    for task in (nameless, other):
        app.register_task(task)
    assert [task.apply().get() for task in (nameless, other)] == [nameless.name, "other"]


@pytest.mark.parametrize("how", ["decorated", "registered", "registered once the class is bound"])
def test_what_autoretry_adds_is_inside_of_the_lock_and_sees_a_held_one(app, in_worker, how):
    """Outside of it a try that is to be repeated would count as the end of the task, and the next one as a duplicate."""
    options = {
        "name": "it",
        "autoretry_for": (ZeroDivisionError, LockNotAcquired),
        "retry_kwargs": {"countdown": 0},
        "lock_skip_if_locked": False,
    }

    def divide():
        return 1 / 0

    if how == "decorated":
        task = app.task(base=LockedTask, **options)(divide)
    else:
        report = type("Report", (LockedTask,), {"run": lambda self: 1 / 0, **options})
        if how != "registered":
            report.bind(app)
        task = app.register_task(report())
    sent = []
    task.signature_from_request = lambda *args, **kwargs: type("S", (), {"apply_async": lambda self: sent.append(1)})()
    for number in (1, 2):
        assert in_worker(task, retries=number - 1).info.state == states.RETRY
        assert len(sent) == number
    with Lock("it", app=app):
        assert in_worker(task, retries=2).info.state == states.RETRY
    assert len(sent) == 3
    outcome = in_worker(task, retries=3)
    assert outcome.info.state == states.FAILURE
    assert isinstance(outcome.info.retval, ZeroDivisionError)


def test_a_body_that_calls_its_own_run_is_one_run_and_one_that_calls_the_task_is_another(app, in_worker):
    seen = []

    @app.task(base=LockedTask, bind=True, name="it")
    def body(self, depth=0):
        seen.append((depth, current_lock().token, self.request.id))
        if depth == 0:
            self.run(1)
            with pytest.raises(TaskSkipped):
                self(2)
            with ThreadPoolExecutor(1) as threads, pytest.raises(TaskSkipped):
                threads.submit(self.run, 3).result()

    for call in (body, body.run, body.apply, lambda: in_worker(body)):
        call()
        first, second = seen
        assert first[1:] == second[1:]
        assert (first[0], second[0]) == (0, 1)
        seen.clear()


def test_a_call_that_runs_the_body_twice_locks_it_twice(app, in_worker):
    """A base that tries again by itself: the second time is not a copy of the first, which is over."""
    tokens = []

    class Again(LockedTask):
        abstract = True

        def __call__(self, *args, **kwargs):
            self.run(*args, **kwargs)
            return self.run(*args, **kwargs)

    @app.task(base=Again, name="it")
    def body():
        tokens.append(current_lock().token)

    assert in_worker(body).info is None
    assert tokens[0] < tokens[1]


def test_a_message_cannot_say_that_its_run_is_under_way(app, in_worker):
    @app.task(base=LockedTask, name="it")
    def body():
        return current_lock().key

    assert in_worker(body, lockbeat_taken=True, headers={"lockbeat_taken": True}).retval == "it"
    with Lock("it", app=app):
        assert in_worker(body, id="another", lockbeat_taken=True).info.state == states.IGNORED


def test_a_copy_is_known_for_one_though_another_base_calls_the_body(app, in_worker):
    def body():
        return "ran"

    for base in (LockedTask, type("One", (Plain, LockedTask), {}), type("Two", (Through, LockedTask), {})):
        task = app.task(base=base, name=base.__name__)(body)
        assert in_worker(task, id=base.__name__).info is None
        again = in_worker(task, id=base.__name__)
        assert again.info.state == states.IGNORED
        assert again.info.retval.reason == "duplicate"


def test_annotations_of_run_stay_inside_of_the_lock(make_app):
    seen = []

    def around(run):
        def annotated(*args, **kwargs):
            seen.append(current_lock().key)
            return run(*args, **kwargs)

        return annotated

    app = make_app(lockbeat_driver="memory", task_annotations={"it": {"@run": around}})

    class Report(LockedTask):
        name = "it"

        def run(self):
            return "body"

    task = app.register_task(Report())
    assert task.apply().get() == "body"
    assert seen == ["it"]


def test_a_task_is_locked_once_however_often_it_is_bound_and_whoever_wraps_its_run(app):
    @app.task(base=LockedTask, name="it", autoretry_for=(ValueError,))
    def body():
        return current_lock().key

    task = app.tasks["it"]
    before = task.run
    task.bind(app)
    assert task.run == before

    # as error trackers do
    wrapped = task.run = functools.wraps(task.run)(lambda: before())  # noqa: PLW0108
    task.bind(app)
    assert task.run is wrapped
    assert task.apply().get() == "it"


def test_apps_that_share_a_task_lock_it_in_each(make_app):
    from celery import shared_task

    apps = [make_app(lockbeat_driver="memory", lockbeat_ttl=ttl) for ttl in (7, 9)]

    @shared_task(base=LockedTask, name="shared", lock_key="s:{x}")
    def shared(x):
        return current_lock().ttl

    assert [app.tasks["shared"].apply((1,)).get() for app in apps] == [7, 9]


def test_a_task_whose_body_is_its_call_is_refused_when_it_is_bound(app):
    class Odd(LockedTask):
        name = "odd"

        def __call__(self):
            raise AssertionError("unlocked")

    with pytest.raises(ConfigurationError, match=r"__call__ of odd is its body.*allowed: a body in run\(\)"):
        app.register_task(Odd())


def test_a_task_whose_run_is_made_up_at_each_look_is_refused_when_it_is_bound(app):
    class Odd(LockedTask):
        name = "odd"

        def __getattribute__(self, name):
            return (lambda: "unlocked") if name == "run" else super().__getattribute__(name)

    with pytest.raises(ConfigurationError, match="run of odd is <function"):
        app.register_task(Odd())


def test_a_base_without_a_body_is_bound_as_ever(app):
    class Base(Plain, LockedTask):
        abstract = True

    Base.bind(app)

    @app.task(base=Base, name="it")
    def body():
        return current_lock().key

    assert body.apply().get() == "it"


def test_threads_that_run_one_task_have_each_their_own_run(app):
    meet = threading.Barrier(3, timeout=20)

    @app.task(base=type("Base", (Plain, LockedTask), {}), name="it", lock_key="k:{x}")
    def body(x):
        meet.wait()
        return current_lock().key

    app.finalize()  # which threads would do at the same time
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(lambda x: body.apply((x,)).get(), range(3))) == ["k:0", "k:1", "k:2"]

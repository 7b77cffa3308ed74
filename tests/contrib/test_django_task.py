"""A locked task under Django: what Celery gives its own tasks there, ours have."""

from __future__ import annotations

import subprocess
import sys

import pytest
from celery import Celery
from servers import need_django

from celery_lockbeat import LockedTask, cron

ON_COMMIT = ["delay_on_commit", "apply_async_on_commit"]


@pytest.fixture
def make_app(monkeypatch):
    """Make apps as in a process that has DJANGO_SETTINGS_MODULE set, which is all that Celery asks for."""
    need_django()
    import djangos

    djangos.configure()
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "any")
    monkeypatch.setattr(sys, "path", list(sys.path))  # Celery puts the working directory into it
    apps = []

    def make(**options):
        apps.append(Celery("django", broker="memory://", set_as_current=False, **options))
        apps[-1].conf.update(lockbeat_driver="memory", task_always_eager=True)
        return apps[-1]

    yield make
    for app in apps:
        app.close()


@pytest.fixture
def database(tmp_path):
    """A database of Django's with a table in it."""
    import djangos
    from django.db import connections

    djangos.use(djangos.make_sqlite(tmp_path / "db.sqlite3"), "default")
    yield
    connections["default"].close()


def noted(into):
    def note(*args, **kwargs):
        into.append((args, kwargs))

    return note


def made_by_base(app, body):
    return app.task(base=LockedTask, name="t")(body)


def made_by_decorator(app, body):
    return cron("0 3 * * *", name="t", app=app, shared=False)(body)


def made_of_the_apps_class(app, body):
    app.task_cls = LockedTask
    return app.task(name="t")(body)


def made_of_a_subclass(app, body):
    class Own(LockedTask):
        abstract = True

        def delay_on_commit(self, *args, **kwargs):
            return super().delay_on_commit(*args, **kwargs)

    return app.task(base=Own, name="t")(body)


@pytest.mark.parametrize("make", [made_by_base, made_by_decorator, made_of_the_apps_class, made_of_a_subclass])
def test_a_task_that_is_sent_on_commit_runs_after_the_commit_and_never_without_it(make_app, database, make):
    from django.db import transaction

    runs = []
    task = make(make_app(), noted(runs))
    with transaction.atomic():
        task.delay_on_commit(1, x=2)
        task.apply_async_on_commit((3,))
        assert runs == []
    assert runs == [((1,), {"x": 2}), ((3,), {})]
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        task.delay_on_commit(4)
        raise ZeroDivisionError
    assert len(runs) == 2


def test_an_app_that_was_given_locked_tasks_as_its_class_has_them_too(make_app, database):
    runs = []
    task = make_app(task_cls=LockedTask).task(name="t")(noted(runs))
    task.delay_on_commit(1)  # outside of any transaction
    assert runs == [((1,), {})]


def test_another_bases_own_method_is_the_one_that_is_called(make_app):
    class Base:
        def delay_on_commit(self, *args):
            return ("own", *args)

    class Task(LockedTask, Base):
        abstract = True

    assert make_app().task(base=Task, name="t")(noted([])).delay_on_commit(1) == ("own", 1)


def test_without_celerys_support_for_django_no_task_has_them(monkeypatch):
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    app = Celery("plain", broker="memory://", set_as_current=False)
    app.conf.lockbeat_driver = "memory"
    task = app.task(base=LockedTask, name="t")(noted([]))
    for name in ON_COMMIT:
        assert not hasattr(task, name)
        assert not hasattr(LockedTask, name)
    with pytest.raises(AttributeError, match="no delay_on_commit: its app has no support for Django"):
        task.delay_on_commit()


WITHOUT_DJANGO = """
import sys
from celery import Celery
from celery_lockbeat import LockedTask
app = Celery("plain", broker="memory://")
app.conf.lockbeat_driver = "memory"
def body(): ...


task = app.task(base=LockedTask, name="t")(body)
assert not hasattr(task, "delay_on_commit")
# kombu has a look at django.utils by itself
assert "django.db" not in sys.modules
"""


def test_a_locked_task_imports_no_django_by_itself():
    subprocess.run([sys.executable, "-c", WITHOUT_DJANGO], check=True)

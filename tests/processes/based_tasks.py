"""Locked tasks with a second base whose ``__call__`` does something of its own, for workers that ``include`` this module.

Each kind is made with LockedTask after and before the other base, and once without it, as a control.
"""

from __future__ import annotations

from contextvars import ContextVar

import flask
from apps import app, hold
from celery import Task
from celery.contrib.django.task import DjangoTask

from celery_lockbeat import LockedTask, TaskSkipped, current_lock

web = flask.Flask(__name__)
tenant: ContextVar[str | None] = ContextVar("tenant", default=None)


class FlaskTask(Task):
    """As Flask's documentation writes it."""

    def __call__(self, *args: object, **kwargs: object) -> object:
        with web.app_context():
            return self.run(*args, **kwargs)


class SuperTask(Task):
    """The same with super(), as many write it."""

    abstract = True

    def __call__(self, *args: object, **kwargs: object) -> object:
        with web.app_context():
            return super().__call__(*args, **kwargs)


class TenantTask(SuperTask):
    """Three bases deep; each run needs what is set before its start."""

    abstract = True

    def before_start(self, task_id, args, kwargs):
        tenant.set("a tenant")

    def __call__(self, *args: object, **kwargs: object) -> object:
        assert tenant.get() == "a tenant"
        return super().__call__(*args, **kwargs)


class Named(type):
    """A metaclass, which has a say in each of its classes."""

    def __new__(cls, name, bases, namespace, **kwargs):
        return super().__new__(cls, name, bases, {"made_by": "Named", **namespace}, **kwargs)


class MetaTask(FlaskTask, metaclass=Named):
    abstract = True

    def __call__(self, *args: object, **kwargs: object) -> object:
        assert type(self).made_by == "Named"
        return super().__call__(*args, **kwargs)


class CommitTask(DjangoTask):
    """Celery's own for Django."""

    abstract = True

    def __call__(self, *args: object, **kwargs: object) -> object:
        assert self.delay_on_commit
        with web.app_context():
            return super().__call__(*args, **kwargs)


def body(task, key: str, seconds: float | None = None) -> list[bool]:
    hold(task, key, seconds)
    lock = current_lock()
    return [lock is not None and lock.held, flask.has_app_context()]


for name, other in {
    "flask": FlaskTask,
    "super": SuperTask,
    "tenant": TenantTask,
    "meta": MetaTask,
    "django": CommitTask,
}.items():
    orders = {"last": (other, LockedTask), "first": (LockedTask, other), "control": (other,)}
    for order, bases in orders.items():
        base = type(other)(f"{name}_{order}", bases, {"abstract": True})
        options = {} if order == "control" else {"lock_key": "{key}", "lock_ttl": 300}
        app.task(bind=True, base=base, name=f"{name}_{order}", **options)(body)


class Report(SuperTask, LockedTask):
    """A class of its own; its subclass's body calls this one."""

    abstract = True
    lock_key = "{key}"
    lock_ttl = 300

    def run(self, key: str, seconds: float | None = None) -> list[bool]:
        return body(self, key, seconds)


class Yearly(Report):
    name = "yearly"

    def run(self, key: str, seconds: float | None = None, deep: bool = True) -> list[bool]:
        lock = current_lock()
        answer = super().run(key, seconds)
        if deep:
            # the run of this request is under way, so this is a part of it
            assert self.run(key, 0, deep=False) == answer
        assert current_lock() is lock
        try:
            self(key, 0)
        except TaskSkipped:
            return answer
        raise AssertionError("whoever calls the task itself wants another run")


app.register_task(Yearly())

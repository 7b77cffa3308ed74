"""A project that does what docs/how-to/django.md says, and no more, with its commands, real beats and a real worker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import running
from servers import Server, need_django, wait_until

import docs

PAGE = "how-to/django.md"
IN_REDIS, IN_DATABASE = ["Schedules in the database"], ["Schedules in the database", "Locks and ticks in the database"]

#: As in Celery's first steps with Django, which the page leads to.
CELERY = """
import os
from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.settings")
app = Celery("proj")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
"""

#: ``INSTALLED_APPS = [...]  # and yours``
SETTINGS = """
yours = INSTALLED_APPS
{page}
INSTALLED_APPS += ["orders", *yours]
CELERY_BROKER_URL = "{url}"
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
"""

TASKS = """
from celery import shared_task
from celery_lockbeat import LockedTask, interval


@shared_task(base=LockedTask, lock_key="ship:{order}")
def ship(order):
    print(f"shipped {order}")


@interval(1)
def sweep(): ...
"""

SAVES = """
from django.db import transaction
from orders.tasks import ship

with transaction.atomic():
    ship.delay_on_commit(7)
try:
    with transaction.atomic():
        ship.delay_on_commit(8)
        raise ZeroDivisionError
except ZeroDivisionError:
    ship.delay_on_commit(9)
"""

BEAT = ["celery", "-A", "proj", "beat", "-l", "INFO", "--pidfile="]
WORKER = ["celery", "-A", "proj", "worker", "-l", "INFO", "-c", "1"]


class Project:
    """One that ``startproject`` has made, with these sections of the page."""

    def __init__(self, directory: Path, server: Server) -> None:
        self.directory, self._server = directory, server
        self.python("-m", "django", "startproject", "proj", ".")
        self._settings = (directory / "proj" / "settings.py").read_text()
        (directory / "proj" / "celery.py").write_text(CELERY)
        (directory / "proj" / "__init__.py").write_text("from .celery import app as celery_app\n")
        (directory / "orders").mkdir()
        (directory / "orders" / "__init__.py").touch()
        (directory / "orders" / "tasks.py").write_text(TASKS)

    def follow(self, sections: list[str], *, leave_out: str = "") -> None:
        page = "\n".join(docs.python_of(PAGE, section) for section in sections).replace(leave_out or "\0", "")
        (self.directory / "proj" / "settings.py").write_text(
            self._settings + SETTINGS.format(page=page, url=self._server.url)
        )

    def migrate(self, sections: list[str]) -> None:
        """By the commands of these sections."""
        text = (docs.DOCS / PAGE).read_text("utf-8")
        for section in sections:
            (body,) = re.findall(rf"^## {section}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
            (command,) = re.findall(r"^    python (manage\.py migrate.*)$", body, re.MULTILINE)
            self.python(*command.split())

    def python(self, *arguments: str, check: bool = True, **options: object) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.directory,
            env={name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **options,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def celery(self, *arguments: str) -> subprocess.CompletedProcess:
        return self.python("-W", "ignore", "-m", "celery", "-A", "proj", *arguments, check=False)


@pytest.fixture
def project(server: Server, tmp_path: Path) -> Project:
    need_django()
    return Project(tmp_path, server)


@pytest.mark.parametrize("sections", [IN_REDIS, IN_DATABASE], ids=["ticks in Redis", "ticks in the database"])
def test_who_follows_the_page_has_beats_workers_tasks_on_commit_and_a_probe(project, sections):
    project.follow(sections)
    project.migrate(sections)
    with running([BEAT, BEAT, WORKER], project.directory) as (*beats, worker):
        wait_until(lambda: "ready." in worker.log(), 60, "the worker is ready")
        project.python("manage.py", "shell", input=SAVES)
        wait_until(lambda: "shipped 9" in worker.log(), 30, "what was sent on commit runs")
        assert "shipped 7" in worker.log()
        assert "shipped 8" not in worker.log()
        wait_until(lambda: worker.log().count('"event":"task_succeeded"') >= 5, 30, "entries run")
        assert all("has joined the replicas of 'proj'" in beat.log() for beat in beats)
        probe = project.celery("lockbeat", "health", "--beat", "--worker")
        assert (probe.returncode, probe.stderr) == (0, "")
        logs = [each.log() for each in (*beats, worker)]
    assert [line for log in logs for line in log.splitlines() if "Traceback" in line or "ERROR" in line] == []


def test_a_beat_without_django_celery_beats_app_ends_with_one_line_that_says_so(project):
    project.follow(IN_REDIS, leave_out='"django_celery_beat"')
    done = project.celery(*BEAT[3:])
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "allowed: with 'django_celery_beat' in INSTALLED_APPS" in done.stderr


def test_a_beat_whose_tables_are_not_there_yet_says_so_and_goes_on_when_they_are(project):
    project.follow(IN_REDIS)
    with running([BEAT], project.directory) as (beat,):
        wait_until(lambda: "(has 'manage.py migrate' been run?)" in beat.log(), 60, "it says what is missing")
        project.migrate(IN_REDIS)
        wait_until(lambda: "Sending due task" in beat.log(), 60, "it goes on")


def test_before_the_last_migration_beats_and_workers_end_with_one_line_that_says_so_and_work_after_it(project):
    project.follow(IN_DATABASE)
    project.migrate(IN_DATABASE)
    project.python("manage.py", "migrate", "lockbeat", "0004")
    project.python("manage.py", "shell", input=SAVES)
    for command in (BEAT, WORKER):
        done = project.celery(*command[3:])
        assert done.returncode == 1
        assert "has 'manage.py migrate lockbeat' been run?" in done.stderr.splitlines()[-1]
        assert done.stderr.count("migrate lockbeat") == 1
        assert "Traceback" not in done.stderr
    project.migrate(IN_DATABASE)
    with running([BEAT, WORKER], project.directory) as (_, worker):
        wait_until(lambda: "shipped 7" in worker.log(), 60, "what was sent before runs")
        wait_until(lambda: worker.log().count('"event":"task_succeeded"') >= 2, 60, "entries run")

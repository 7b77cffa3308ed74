"""Django in a process of tests: its settings are made once, its databases come and go."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from django.core.management import call_command
from django.db import connections

import celery_lockbeat

OURS = Path(celery_lockbeat.__file__).parent
APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django_celery_beat",
    "celery_lockbeat.contrib.django",
    "celery_lockbeat.contrib.django.policies",
]

_numbers = itertools.count()


def configure(database: dict[str, Any] | None = None) -> None:
    """Set Django up, if it is not; the default database is to be told by :func:`use` where none is given."""
    if settings.configured:
        return
    settings.configure(
        ALLOWED_HOSTS=["*"],
        DATABASES={"default": database or sqlite("/nonexistent/db.sqlite3")},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        # a process of the release before the policies' app has none
        INSTALLED_APPS=[
            app for app in APPS if not app.startswith(OURS.name) or (OURS.parent / Path(*app.split("."))).exists()
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        ROOT_URLCONF="djangos",
        SECRET_KEY="tests",
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        TIME_ZONE="UTC",
        USE_TZ=True,
    )
    django.setup()


def sqlite(path: object) -> dict[str, Any]:
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(path), "OPTIONS": {"timeout": 20}}


def use(database: dict[str, Any], alias: str | None = None) -> str:
    """Let this database be the one of an alias, a new one if none is given; return the alias."""
    configure()
    alias = alias or f"tests{next(_numbers)}"
    if alias in connections.settings:
        connections[alias].close()
        del connections[alias]
    connections.settings[alias] = connections.configure_settings({**connections.settings, alias: dict(database)})[alias]
    connections.settings[alias] = {**connections.settings["default"], **connections.settings[alias]}
    return alias


def migrate(alias: str, *labels: str) -> None:
    call_command("migrate", *labels, database=alias, verbosity=0)


_template: Path | None = None


def make_sqlite(path: Path) -> dict[str, Any]:
    """A migrated database in a file of its own."""
    global _template
    if _template is None:
        _template = Path(tempfile.mkdtemp(prefix="lockbeat-django-"), "db.sqlite3")
        _template.touch()
        alias = use(sqlite(_template))
        migrate(alias)
        connections[alias].close()
    shutil.copy(_template, path)
    return sqlite(path)


def urlpatterns_of_the_admin() -> list[Any]:
    from django.contrib import admin
    from django.urls import path

    return [path("admin/", admin.site.urls)]


def as_text(database: dict[str, Any]) -> str:
    """For a process that shares nothing with the tests but text."""
    return json.dumps(database)


def __getattr__(name: str) -> Any:
    if name == "urlpatterns":
        return urlpatterns_of_the_admin()
    raise AttributeError(name)

"""Django: its database as a store (``lock_driver="database"``), and the schedules of django-celery-beat on any number of beats.

As an app, ``INSTALLED_APPS += ["celery_lockbeat.contrib.django"]``, it brings the migration of the store. The scheduler needs it
only where its ticks are claimed in that store.
"""

from __future__ import annotations

from typing import Any

from celery_lockbeat.exceptions import ConfigurationError

__all__ = ["LockedDatabaseScheduler"]


def __getattr__(name: str) -> Any:
    # late, for it needs the models, and Django imports this package before there are any
    if name != "LockedDatabaseScheduler":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import django_celery_beat  # noqa: F401, PLC0415
    except ImportError as exc:
        allowed = "as soon as it is installed: pip install 'celery-lockbeat[django]'"
        raise ConfigurationError(f"beat_scheduler needs django-celery-beat ({exc}); allowed: {allowed}") from exc
    from django.apps import apps  # noqa: PLC0415

    if apps.ready and not apps.is_installed("django_celery_beat"):
        allowed = "with 'django_celery_beat' in INSTALLED_APPS, and 'manage.py migrate' run"
        raise ConfigurationError(f"beat_scheduler is of django-celery-beat; allowed: {allowed}")
    from celery_lockbeat.contrib.django.scheduler import LockedDatabaseScheduler  # noqa: PLC0415

    return LockedDatabaseScheduler

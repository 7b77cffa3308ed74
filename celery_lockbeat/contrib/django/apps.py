"""The Django app: a migration, and nothing else."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["LockbeatConfig"]


class LockbeatConfig(AppConfig):  # type: ignore[misc]
    """``INSTALLED_APPS += ["celery_lockbeat.contrib.django"]``, then ``manage.py migrate lockbeat``."""

    name = "celery_lockbeat.contrib.django"
    label = "lockbeat"
    verbose_name = "Lockbeat"

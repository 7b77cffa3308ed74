"""The app, as Django finds it."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["LockbeatPoliciesConfig"]


class LockbeatPoliciesConfig(AppConfig):  # type: ignore[misc]
    """What a row's policy is stored in."""

    name = "celery_lockbeat.contrib.django.policies"
    label = "lockbeat_policies"
    verbose_name = "celery-lockbeat: policies"
    default_auto_field = "django.db.models.BigAutoField"

"""What Django's admin gets of us, all of it: importing it registers it."""

from __future__ import annotations

from django.apps import apps

from celery_lockbeat.admin.entries import EntryAdmin
from celery_lockbeat.admin.journal import EVENTS, JournalRecordAdmin
from celery_lockbeat.admin.locks import LockAdmin

__all__ = ["EVENTS", "EntryAdmin", "JournalRecordAdmin", "LockAdmin"]

if apps.is_installed("django_celery_beat"):
    from celery_lockbeat.admin import rows  # noqa: F401  it adds to their admin

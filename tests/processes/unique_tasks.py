"""Tasks with ``lock_unique``, for workers that ``include`` this module."""

from __future__ import annotations

from apps import app, hold
from unique_publisher import OPTIONS

from celery_lockbeat import LockedTask

for name, options in OPTIONS.items():
    app.task(bind=True, base=LockedTask, name=name, lock_key="{key}", **options)(hold)

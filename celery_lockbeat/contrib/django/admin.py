"""Where Django looks for the admin."""

from __future__ import annotations

from celery_lockbeat.admin.registered import EVENTS, EntryAdmin, JournalRecordAdmin, LockAdmin

__all__ = ["EVENTS", "EntryAdmin", "JournalRecordAdmin", "LockAdmin"]

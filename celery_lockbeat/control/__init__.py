"""Hands on the schedule: what operators can see of an entry, and ask of it, from Python; the commands are thin over it."""

from celery_lockbeat.control.locks import free_lock
from celery_lockbeat.control.schedules import Backfill, ScheduledEntry, Schedules, schedules_of

__all__ = ["Backfill", "ScheduledEntry", "Schedules", "free_lock", "schedules_of"]

"""The path under which users know the beat's scheduler; see ``beat``."""

from celery_lockbeat.beat.scheduler import LockedScheduler, LockedSchedulerMixin

__all__ = ["LockedScheduler", "LockedSchedulerMixin"]

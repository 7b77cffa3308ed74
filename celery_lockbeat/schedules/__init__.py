"""What says when: ``Cron``, ``Every`` and ``Once``, and the decorators that make a task of a function and such an entry at once."""

from celery_lockbeat.schedules.when import Cron, Every, Once

__all__ = ["Cron", "Every", "Once"]

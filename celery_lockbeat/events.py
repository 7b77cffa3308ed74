"""The path under which users know how events are written down; see ``observe``."""

from celery_lockbeat.observe.events import log_fields, log_json_lines

__all__ = ["log_fields", "log_json_lines"]

"""Sentry: a skipped run ends its check-in, and a lost lock's issue has a title, fields and a task.

Promises: a run that was skipped ends the check-in that Sentry Crons has begun for its tick, as ok: the work is being done,
or has been. Sentry's own Celery integration does so for runs that end; of a run that Celery ignores it hears nothing.

Not promised: that a check-in ends whose run ended in ``Ignore`` or ``Reject``, which are left open with Celery alone, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import sentry_sdk
from sentry_sdk.integrations import Integration
from sentry_sdk.integrations.celery.beat import crons_task_success
from sentry_sdk.scope import add_global_event_processor

from celery_lockbeat import signals
from celery_lockbeat.observe.events import text_of

if TYPE_CHECKING:
    from sentry_sdk._types import Event, Hint

__all__ = ["LockbeatIntegration"]

_EVENTS: Final = "celery_lockbeat.events"


class LockbeatIntegration(Integration):
    """What Sentry is to know of locks and skips, beside its own integration for Celery.

    >>> sentry_sdk.init(integrations=[CeleryIntegration(monitor_beat_tasks=True), LockbeatIntegration()])  # doctest: +SKIP
    """

    identifier = "celery_lockbeat"

    @staticmethod
    def setup_once() -> None:
        """Listen to skips, and read the events that are logged as errors."""
        signals.task_skipped.connect(_end_check_in)
        add_global_event_processor(_describe)


def _is_on() -> bool:
    return sentry_sdk.get_client().get_integration(LockbeatIntegration) is not None


def _end_check_in(sender: Any, task_id: str | None = None, **_: Any) -> None:
    # A direct call within another task's run has no message, so no check-in either: its request would be that run's.
    # A copy whose run is over may have a check-in of its own, from a beat that took its tick over. Where it is that run's,
    # it stays as it ended: Sentry lets none but those in progress be changed.
    if _is_on() and task_id is not None and sender.request.id == task_id:
        crons_task_success(sender=sender)


def _describe(event: Event, hint: Hint) -> Event:
    record = hint.get("log_record")
    if record is None or record.name != _EVENTS or not _is_on():
        return event
    fields = getattr(record, "lockbeat", None)
    if fields is None:  # log_fields() was asked for: the message is the text, and Sentry has the fields
        return event
    event["logentry"] = {**event["logentry"], "formatted": text_of(record)}  # its title
    event.get("extra", {}).pop("lockbeat", None)
    event.setdefault("contexts", {})["lockbeat"] = fields
    # a lost lock is an issue of its task; what is made of arguments is not in it
    event.setdefault("fingerprint", ["{{ default }}", str(fields.get("task_name"))])
    return event

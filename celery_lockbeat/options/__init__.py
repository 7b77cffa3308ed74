"""The options of a lock (``lock_*``) and of an app (``lockbeat_*``): read once, validated as a whole, in the user's terms.

Promises: what comes out of here is right, so nobody checks it again; what is wrong is a ConfigurationError that names
the setting, the value and what is allowed, and unknown names are refused with the nearest right one.
"""

from celery_lockbeat.options.app import AppOptions
from celery_lockbeat.options.lock import (
    DELIVERS_AGAIN,
    LOCK_NAMES,
    MARGIN,
    RETRY_EVERY,
    TASK_PREFIX,
    LockKeywords,
    LockOptions,
    check_key,
    check_keys,
    check_options,
    check_unprefixed,
    check_wait,
    shown_keys,
)
from celery_lockbeat.options.refusals import refusal, spelling, unit, written
from celery_lockbeat.options.rules import LONGEST
from celery_lockbeat.options.servers import timeouts

__all__ = [
    "DELIVERS_AGAIN",
    "LOCK_NAMES",
    "LONGEST",
    "MARGIN",
    "RETRY_EVERY",
    "TASK_PREFIX",
    "AppOptions",
    "LockKeywords",
    "LockOptions",
    "check_key",
    "check_keys",
    "check_options",
    "check_unprefixed",
    "check_wait",
    "refusal",
    "shown_keys",
    "spelling",
    "timeouts",
    "unit",
    "written",
]

"""Policies of entries that others keep: as JSON can write them, among the headers of an entry's messages.

Promises: who knows nothing of them, plain RedBeat or an earlier release, reads the entry, and sends them along as one header more.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from celery_lockbeat.beat.messages import POLICY as HEADER
from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.schedules.policy import Policy

__all__ = ["HEADER", "policy_headers", "policy_in"]

_TIMES: Final = ("start", "end")


def policy_headers(**keywords: Any) -> dict[str, Any]:
    """Return headers that give an entry these keywords, those of ``Cron`` and ``Every``. Raises ConfigurationError.

    >>> policy_headers(catchup="none", jitter=30)
    {'lockbeat_policy': {'jitter': 30.0, 'catchup': 'none'}}
    """
    told = Policy.read(keywords, owner="policy_headers()").as_keywords()
    return {HEADER: {name: value.isoformat() if isinstance(value, datetime) else value for name, value in told.items()}}


def policy_in(options: Any, *, owner: str) -> Policy | None:
    """Return the policy among the options of an entry; None: there is none. Raises ConfigurationError."""
    headers = options.get("headers") if isinstance(options, Mapping) else None
    told = headers.get(HEADER) if isinstance(headers, Mapping) else None
    if told is None:
        return None
    if not isinstance(told, Mapping):
        raise ConfigurationError(f"{HEADER} of {owner} is {told!r}; allowed: a mapping of keywords")
    return Policy.read({name: _read(name, value) for name, value in told.items()}, owner=owner)


def _read(name: str, value: Any) -> Any:
    if name not in _TIMES or not isinstance(value, str):
        return value
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return value  # it is refused as what it is

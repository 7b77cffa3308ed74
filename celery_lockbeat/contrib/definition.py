"""The definition of an entry, as whoever keeps it has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from celery_lockbeat.schedules.policy import Policy

__all__ = ["Definition"]


class Definition(NamedTuple):
    """What an entry is: ``enabled`` by whoever keeps it, who is ``where`` says. ``policy``: one that is kept beside the schedule."""

    task: str
    schedule: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    enabled: bool
    where: str
    #: what whoever keeps it says of its ticks beside the schedule
    policy: Policy | None = None

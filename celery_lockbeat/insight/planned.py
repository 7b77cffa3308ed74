"""When entries are due, for those who look at them: by the same policies as in a beat, those of ``lockbeat_entries`` too."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, NamedTuple

from celery_lockbeat.beat.rules import Rules
from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.options import AppOptions
from celery_lockbeat.schedules.dues import next_due
from celery_lockbeat.schedules.policy import Policy
from celery_lockbeat.schedules.when import bound

__all__ = ["Plan", "Plans"]


class Plan(NamedTuple):
    """When an entry is due: ``dues`` is what the functions of ``schedules/dues.py`` take for a schedule."""

    name: str
    dues: Any
    policy: Policy = Policy()

    def next(self, after: datetime) -> datetime | None:
        """Return when it is due next after an aware moment; None: not any more, or nobody can tell."""
        return next_due(self.dues, after)

    def fires(self, due: datetime) -> datetime:
        """Return the moment to which its jitter puts a tick off."""
        return due + timedelta(seconds=self.policy.offset(self.name, due))

    def runs_left(self, runs: int) -> int | None:
        """Return how many are to come after so many; None: whoever knows."""
        return None if self.policy.max_runs is None else max(0, self.policy.max_runs - runs)


class Plans:
    """Those of the entries of an app. Raises ConfigurationError where its settings do."""

    def __init__(self, app: Any) -> None:
        options = AppOptions.read(app.conf)
        self._rules = Rules(options.entries or {}, options.late_after)

    def of(self, name: str, when: Any, policy: Policy | None = None) -> Plan:
        """Return that of an entry of this name; ``policy``: what whoever keeps it says."""
        try:
            rule = self._rules.made(name, when, policy)
        except ConfigurationError:  # a beat goes on without it, and says so
            rule = None
        return Plan(name, bound(when, name)) if rule is None else Plan(name, rule.dues, rule.policy)

"""A row's policy, one to one beside the ``PeriodicTask``: what becomes of its ticks that nobody fired, and when there are any."""

from __future__ import annotations

from typing import Any, ClassVar

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models.signals import post_delete, post_save
from django.dispatch import receiver
from django_celery_beat.models import PeriodicTask, PeriodicTasks

from celery_lockbeat.contrib.django.times import by_the_clock
from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.schedules.dues import check_policy
from celery_lockbeat.schedules.policy import POLICY_NAMES, Policy

__all__ = ["EntryPolicy"]

CATCHUPS = [("latest", "latest: one run stands for all"), ("all", "all: each is run"), ("none", "none: each is missed")]


class EntryPolicy(models.Model):  # type: ignore[misc]
    """The keywords of ``Cron`` and ``Every`` for one row; what is empty is the default."""

    task = models.OneToOneField(
        PeriodicTask, on_delete=models.CASCADE, primary_key=True, related_name="lockbeat_policy"
    )
    catchup = models.CharField(
        max_length=10, choices=CATCHUPS, default="latest", help_text="of ticks that no beat published in time"
    )
    catchup_limit = models.PositiveIntegerField(
        null=True, blank=True, help_text="with 'all': as many are caught up with, the newest (100)"
    )
    catchup_window = models.FloatField(null=True, blank=True, help_text="seconds: what is older is missed")
    start_within = models.FloatField(
        null=True, blank=True, help_text="seconds after its time, after which no worker begins a run any more"
    )
    jitter = models.FloatField(null=True, blank=True, help_text="seconds: each tick is put off by less than this")
    start = models.DateTimeField(null=True, blank=True, help_text="no tick is due before")
    end = models.DateTimeField(null=True, blank=True, help_text="no tick is due from then on")
    max_runs = models.PositiveIntegerField(null=True, blank=True, help_text="then the entry is over")
    run_at_start = models.BooleanField(
        default=False, help_text="an interval: once when a beat first knows it, then by its interval"
    )
    pause_after_failures = models.PositiveIntegerField(
        null=True, blank=True, help_text="so many failures in a row pause it, until somebody resumes it"
    )

    class Meta:  # noqa: D106  Django's
        verbose_name = "policy"
        verbose_name_plural = "policies"

    #: the fields that hold times
    TIMES: ClassVar[tuple[str, ...]] = ("start", "end")

    def __str__(self) -> str:
        return f"policy of {self.task}"

    def policy(self) -> Policy:
        """Return it as beats take it. Raises ConfigurationError."""
        values: dict[str, Any] = {name: getattr(self, name) for name in POLICY_NAMES}
        told = {
            name: by_the_clock(value) if name in self.TIMES else value
            for name, value in values.items()
            if value is not None
        }
        return Policy.read(told, owner=self._owner)

    @property
    def _owner(self) -> str:
        # in the admin's form of a row it has none yet
        return f"entry {self.task.name!r}" if self.task_id is not None else "this policy"

    def clean(self) -> None:
        """Refuse what no beat could go by."""
        try:
            policy = self.policy()
            if self.task_id is not None and self.task.scheduler is not None:
                check_policy(self.task.schedule, policy, owner=self._owner)
        except ConfigurationError as exc:
            raise ValidationError(str(exc)) from exc


@receiver([post_save, post_delete], sender=EntryPolicy)  # type: ignore[untyped-decorator]
def _tell_beats(**_: Any) -> None:
    """Let beats see it in about a second, as a change of the row."""
    PeriodicTasks.update_changed()

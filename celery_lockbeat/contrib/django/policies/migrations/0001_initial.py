"""The table of policies, one to one beside that of the rows."""

from __future__ import annotations

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):  # type: ignore[misc]
    """As Django has made it."""

    initial = True

    dependencies = (("django_celery_beat", "0019_alter_periodictasks_options"),)

    operations = (
        migrations.CreateModel(
            name="EntryPolicy",
            fields=[
                (
                    "task",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="lockbeat_policy",
                        serialize=False,
                        to="django_celery_beat.periodictask",
                    ),
                ),
                (
                    "catchup",
                    models.CharField(
                        choices=[
                            ("latest", "latest: one run stands for all"),
                            ("all", "all: each is run"),
                            ("none", "none: each is missed"),
                        ],
                        default="latest",
                        help_text="of ticks that no beat published in time",
                        max_length=10,
                    ),
                ),
                (
                    "catchup_limit",
                    models.PositiveIntegerField(
                        blank=True, help_text="with 'all': as many are caught up with, the newest (100)", null=True
                    ),
                ),
                (
                    "catchup_window",
                    models.FloatField(blank=True, help_text="seconds: what is older is missed", null=True),
                ),
                (
                    "start_within",
                    models.FloatField(
                        blank=True,
                        help_text="seconds after its time, after which no worker begins a run any more",
                        null=True,
                    ),
                ),
                (
                    "jitter",
                    models.FloatField(
                        blank=True, help_text="seconds: each tick is put off by less than this", null=True
                    ),
                ),
                ("start", models.DateTimeField(blank=True, help_text="no tick is due before", null=True)),
                ("end", models.DateTimeField(blank=True, help_text="no tick is due from then on", null=True)),
                ("max_runs", models.PositiveIntegerField(blank=True, help_text="then the entry is over", null=True)),
                (
                    "run_at_start",
                    models.BooleanField(
                        default=False, help_text="an interval: once when a beat first knows it, then by its interval"
                    ),
                ),
            ],
            options={
                "verbose_name": "policy",
                "verbose_name_plural": "policies",
            },
        ),
    )

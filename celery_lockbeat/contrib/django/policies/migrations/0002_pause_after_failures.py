"""After how many failures in a row a row is paused."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):  # type: ignore[misc]
    """As Django has made it."""

    dependencies = (("lockbeat_policies", "0001_initial"),)

    operations = (
        migrations.AddField(
            model_name="entrypolicy",
            name="pause_after_failures",
            field=models.PositiveIntegerField(
                blank=True, help_text="so many failures in a row pause it, until somebody resumes it", null=True
            ),
        ),
    )

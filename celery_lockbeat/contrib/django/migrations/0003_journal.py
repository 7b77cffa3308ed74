"""The tables of the journal, on PostgreSQL its functions, and for Django a model that reads it."""

from __future__ import annotations

from typing import Any

from django.db import migrations, models

from celery_lockbeat.contrib.django.migrations._sql import drop, run

FUNCTIONS = "lockbeat_append, lockbeat_records"


def create(_apps: Any, schema_editor: Any) -> None:
    """Run the file of this database."""
    run(schema_editor, "0003")


def undo(_apps: Any, schema_editor: Any) -> None:
    """Undo it."""
    drop(schema_editor, functions=FUNCTIONS, tables=("journal", "batch", "tail"))


class Migration(migrations.Migration):  # type: ignore[misc]
    """SQL, as in 0001; of the model Django only takes note, for it is not managed."""

    dependencies = (("lockbeat", "0002_announcements"),)
    operations = (
        migrations.RunPython(create, undo),
        migrations.CreateModel(
            name="JournalRecord",
            fields=[
                ("position", models.BigIntegerField(primary_key=True, serialize=False)),
                ("app", models.BinaryField()),
                ("written", models.FloatField()),
                ("text", models.TextField()),
            ],
            options={
                "verbose_name": "record",
                "verbose_name_plural": "journal",
                "db_table": "lockbeat_journal",
                "managed": False,
                "default_permissions": ("view",),
            },
        ),
    )

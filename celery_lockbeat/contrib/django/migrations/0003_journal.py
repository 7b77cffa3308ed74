"""The tables of the journal, on PostgreSQL its functions, and for Django a model that reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.db import migrations, models

VENDORS = ("postgresql", "sqlite")

DROP = "DROP FUNCTION lockbeat_append, lockbeat_records"

TABLES = ("journal", "batch", "tail")


def create(_apps: Any, schema_editor: Any) -> None:
    """Run the file of this database."""
    vendor = schema_editor.connection.vendor
    if vendor not in VENDORS:
        return
    sql = Path(__file__).with_name(f"0003_{vendor}.sql").read_text("utf-8")
    # one statement at a time, for SQLite's executescript() would commit
    for statement in sql.split(";\n") if vendor == "sqlite" else [sql]:
        schema_editor.execute(statement, params=None)


def drop(_apps: Any, schema_editor: Any) -> None:
    """Undo it."""
    vendor = schema_editor.connection.vendor
    if vendor == "postgresql":
        schema_editor.execute(DROP, params=None)
    for table in TABLES if vendor in VENDORS else ():
        schema_editor.execute(f"DROP TABLE lockbeat_{table}", params=None)


class Migration(migrations.Migration):  # type: ignore[misc]
    """SQL, as in 0001; of the model Django only takes note, for it is not managed."""

    dependencies = (("lockbeat", "0002_announcements"),)
    operations = (
        migrations.RunPython(create, drop),
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

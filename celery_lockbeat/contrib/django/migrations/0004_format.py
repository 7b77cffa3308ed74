"""The format in which all tables are kept, for the releases that do not know a later one."""

from __future__ import annotations

from typing import Any

from django.db import migrations

from celery_lockbeat.contrib.django.migrations._sql import drop, run


def create(_apps: Any, schema_editor: Any) -> None:
    """Run the file of this database."""
    run(schema_editor, "0004")


def undo(_apps: Any, schema_editor: Any) -> None:
    """Undo it."""
    is_sqlite = schema_editor.connection.vendor == "sqlite"
    drop(schema_editor, functions="lockbeat_format", tables=("format",) if is_sqlite else ())


class Migration(migrations.Migration):  # type: ignore[misc]
    """SQL, as in 0001."""

    dependencies = (("lockbeat", "0003_journal"),)
    operations = (migrations.RunPython(create, undo),)

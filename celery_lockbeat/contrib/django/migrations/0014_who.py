"""Who has superseded one that waited: on SQLite a table of its own, on PostgreSQL a column, and the functions that tell so."""

from __future__ import annotations

from typing import Any

from django.db import migrations

from celery_lockbeat.contrib.django.migrations._sql import drop, put_back, run


def create(_apps: Any, schema_editor: Any) -> None:
    """Run the file of this database."""
    run(schema_editor, "0014")


def undo(_apps: Any, schema_editor: Any) -> None:
    """Give back to earlier releases the functions that they came with."""
    drop(schema_editor, functions="lockbeat_give_up")
    put_back(schema_editor, "0013", "lockbeat_wait")
    put_back(schema_editor, "0009", "lockbeat_take")
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute("ALTER TABLE lockbeat_done DROP COLUMN who", params=None)
    if schema_editor.connection.vendor == "sqlite":
        drop(schema_editor, tables=("superseded",))


class Migration(migrations.Migration):  # type: ignore[misc]
    """SQL, as in 0001; there are no models."""

    dependencies = (("lockbeat", "0013_replace"),)
    operations = (migrations.RunPython(create, undo),)

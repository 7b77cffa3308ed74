"""The table of those who wait for a lock, and on PostgreSQL the functions that know of it."""

from __future__ import annotations

from typing import Any

from django.db import migrations

from celery_lockbeat.contrib.django.migrations._sql import drop, run

FUNCTIONS = (
    "lockbeat_take(bytea, bytea, bytea, bytea, bigint, bigint, bytea, bigint, bigint, json), lockbeat_wait,"
    " lockbeat_call, lockbeat_serve, lockbeat_clear, lockbeat_line_of, lockbeat_acquire_reserved("
    "bytea, bytea, bytea, bytea, bigint, bigint, bytea, bigint, bigint, json, bytea, bytea, text)"
)


def create(_apps: Any, schema_editor: Any) -> None:
    """Run the file of this database."""
    run(schema_editor, "0009")


def undo(_apps: Any, schema_editor: Any) -> None:
    """Undo it: the functions that it has changed are put back as 0005 made them."""
    drop(schema_editor, functions=FUNCTIONS)
    if schema_editor.connection.vendor == "postgresql":
        run(schema_editor, "0005")
    drop(schema_editor, tables=("line",))


class Migration(migrations.Migration):  # type: ignore[misc]
    """SQL, as in 0001; there are no models."""

    dependencies = (("lockbeat", "0008_reserved"),)
    operations = (migrations.RunPython(create, undo),)

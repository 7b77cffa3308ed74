"""The tables of the `database` store, and on PostgreSQL its functions. Other databases get none of them."""

from __future__ import annotations

from typing import Any

from django.db import migrations

from celery_lockbeat.contrib.django.migrations._sql import drop, run

FUNCTIONS = (
    "lockbeat_leave, lockbeat_settle, lockbeat_take_over, lockbeat_claim, lockbeat_list, lockbeat_join,"
    " lockbeat_somebody_lists, lockbeat_alone, lockbeat_purge, lockbeat_free, lockbeat_release, lockbeat_extend,"
    " lockbeat_acquire, lockbeat_locks, lockbeat_beats, lockbeat_now"
)

TABLES = {
    "postgresql": ("lock", "done", "app", "replica", "entry", "listed", "claim"),
    "sqlite": ("host", "lock", "done", "entry", "claim", "replica", "listed", "cold_start"),
}


def create(_apps: Any, schema_editor: Any) -> None:
    """Run the file of this database."""
    run(schema_editor, "0001")


def undo(_apps: Any, schema_editor: Any) -> None:
    """Undo it, with whatever locks there are."""
    drop(schema_editor, functions=FUNCTIONS, tables=TABLES.get(schema_editor.connection.vendor, ()))


class Migration(migrations.Migration):  # type: ignore[misc]
    """SQL, for what the ORM has no words for; there are no models."""

    initial = True
    dependencies = ()
    operations = (migrations.RunPython(create, undo),)

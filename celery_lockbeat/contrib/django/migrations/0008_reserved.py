"""The table of what messages have reserved, and on PostgreSQL its functions."""

from __future__ import annotations

from typing import Any

from django.db import migrations

from celery_lockbeat.contrib.django.migrations._sql import drop, run

FUNCTIONS = "lockbeat_reserve, lockbeat_unreserve, lockbeat_acquire_reserved"


def create(_apps: Any, schema_editor: Any) -> None:
    """Run the file of this database."""
    run(schema_editor, "0008")


def undo(_apps: Any, schema_editor: Any) -> None:
    """Undo it."""
    drop(schema_editor, functions=FUNCTIONS, tables=("reserved",))


class Migration(migrations.Migration):  # type: ignore[misc]
    """SQL, as in 0001."""

    dependencies = (("lockbeat", "0007_controls"),)
    operations = (migrations.RunPython(create, undo),)

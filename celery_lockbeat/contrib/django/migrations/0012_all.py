"""On PostgreSQL, the functions that take several keys at once, and end several leases."""

from __future__ import annotations

from typing import Any

from django.db import migrations

from celery_lockbeat.contrib.django.migrations._sql import drop, run


def create(_apps: Any, schema_editor: Any) -> None:
    """Run the file of this database."""
    run(schema_editor, "0012")


def undo(_apps: Any, schema_editor: Any) -> None:
    """Drop what it has made."""
    drop(schema_editor, functions="lockbeat_take_all, lockbeat_end_all, lockbeat_prolong_all")


class Migration(migrations.Migration):  # type: ignore[misc]
    """SQL, as in 0001; there are no models."""

    dependencies = (("lockbeat", "0011_streak"),)
    operations = (migrations.RunPython(create, undo),)

"""The table of what beats and workers announce to each other, and on PostgreSQL its functions."""

from __future__ import annotations

from typing import Any

from django.db import migrations

from celery_lockbeat.contrib.django.migrations._sql import drop, run

FUNCTIONS = "lockbeat_announce, lockbeat_announced_of"


def create(_apps: Any, schema_editor: Any) -> None:
    """Run the file of this database."""
    run(schema_editor, "0002")


def undo(_apps: Any, schema_editor: Any) -> None:
    """Undo it."""
    drop(schema_editor, functions=FUNCTIONS, tables=("announced",))


class Migration(migrations.Migration):  # type: ignore[misc]
    """SQL, as in 0001; there are no models."""

    dependencies = (("lockbeat", "0001_initial"),)
    operations = (migrations.RunPython(create, undo),)

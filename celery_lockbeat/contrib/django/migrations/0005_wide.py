"""The table of the locks with more than one holder, and on PostgreSQL the functions that know of it."""

from __future__ import annotations

from typing import Any

from django.db import migrations

from celery_lockbeat.contrib.django.migrations._sql import drop, run

FUNCTIONS = (
    "lockbeat_take, lockbeat_prolong, lockbeat_end, lockbeat_drop, lockbeat_held, lockbeat_clean, lockbeat_summarize"
)


def create(_apps: Any, schema_editor: Any) -> None:
    """Run the file of this database."""
    run(schema_editor, "0005")


def undo(_apps: Any, schema_editor: Any) -> None:
    """Undo it."""
    drop(schema_editor, functions=FUNCTIONS, tables=("wide",))


class Migration(migrations.Migration):  # type: ignore[misc]
    """SQL, as in 0001; there are no models."""

    dependencies = (("lockbeat", "0004_format"),)
    operations = (migrations.RunPython(create, undo),)

"""On PostgreSQL, those who wait to replace a holder, and those who listen; SQLite's are in Python."""

from __future__ import annotations

from typing import Any

from django.db import migrations

from celery_lockbeat.contrib.django.migrations._sql import drop, put_back, run


def create(_apps: Any, schema_editor: Any) -> None:
    """Let the functions know of them."""
    run(schema_editor, "0013")


def undo(_apps: Any, schema_editor: Any) -> None:
    """Give back to earlier releases the functions that they came with."""
    drop(schema_editor, functions="lockbeat_is_called")
    put_back(schema_editor, "0009", "lockbeat_wait")
    put_back(schema_editor, "0005", "lockbeat_prolong")


class Migration(migrations.Migration):  # type: ignore[misc]
    """SQL, as in 0001."""

    dependencies = (("lockbeat", "0012_all"),)
    operations = (migrations.RunPython(create, undo),)

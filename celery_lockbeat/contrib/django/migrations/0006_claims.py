"""On PostgreSQL, claims that count only while nobody else has moved their entry on; SQLite's are in Python."""

from __future__ import annotations

from typing import Any

from django.db import migrations

from celery_lockbeat.contrib.django.migrations._sql import drop, put_back, run


def create(_apps: Any, schema_editor: Any) -> None:
    """Make the function of this release, and let that of earlier ones call it."""
    run(schema_editor, "0006")


def undo(_apps: Any, schema_editor: Any) -> None:
    """Give back to earlier releases the function that they came with."""
    put_back(schema_editor, "0001", "lockbeat_claim")
    drop(schema_editor, functions="lockbeat_claim_ticks")


class Migration(migrations.Migration):  # type: ignore[misc]
    """SQL, as in 0001."""

    dependencies = (("lockbeat", "0005_wide"),)
    operations = (migrations.RunPython(create, undo),)

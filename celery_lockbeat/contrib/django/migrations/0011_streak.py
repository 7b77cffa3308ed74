"""The table of what has failed in a row; on PostgreSQL the functions that count it, and a resume that ends it."""

from __future__ import annotations

from typing import Any

from django.db import migrations

from celery_lockbeat.contrib.django.migrations._sql import drop, put_back, run


def create(_apps: Any, schema_editor: Any) -> None:
    """Run the file of this database."""
    run(schema_editor, "0011")


def undo(_apps: Any, schema_editor: Any) -> None:
    """Undo it: resume and keep become again what they were."""
    for function in ("lockbeat_resume", "lockbeat_keep"):
        put_back(schema_editor, "0007", function)
    drop(schema_editor, functions="lockbeat_failed, lockbeat_succeeded", tables=("streak",))


class Migration(migrations.Migration):  # type: ignore[misc]
    """SQL, as in 0001."""

    dependencies = (("lockbeat", "0010_admin"),)
    operations = (migrations.RunPython(create, undo),)

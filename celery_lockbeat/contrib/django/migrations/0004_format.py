"""The format in which all tables are kept, for the releases that do not know a later one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.db import migrations

DROP = {"postgresql": "DROP FUNCTION lockbeat_format", "sqlite": "DROP TABLE lockbeat_format"}


def create(_apps: Any, schema_editor: Any) -> None:
    """Run the file of this database."""
    vendor = schema_editor.connection.vendor
    if vendor in DROP:
        schema_editor.execute(Path(__file__).with_name(f"0004_{vendor}.sql").read_text("utf-8"), params=None)


def drop(_apps: Any, schema_editor: Any) -> None:
    """Undo it."""
    vendor = schema_editor.connection.vendor
    if vendor in DROP:
        schema_editor.execute(DROP[vendor], params=None)


class Migration(migrations.Migration):  # type: ignore[misc]
    """SQL, as in 0001."""

    dependencies = (("lockbeat", "0003_journal"),)
    operations = (migrations.RunPython(create, drop),)

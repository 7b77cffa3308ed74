"""The table of what messages have reserved, and on PostgreSQL its functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.db import migrations

VENDORS = ("postgresql", "sqlite")

DROP = "DROP FUNCTION lockbeat_reserve, lockbeat_unreserve, lockbeat_acquire_reserved"


def create(_apps: Any, schema_editor: Any) -> None:
    """Run the file of this database."""
    vendor = schema_editor.connection.vendor
    if vendor not in VENDORS:
        return
    sql = Path(__file__).with_name(f"0008_{vendor}.sql").read_text("utf-8")
    # one statement at a time, for SQLite's executescript() would commit
    for statement in sql.split(";\n") if vendor == "sqlite" else [sql]:
        schema_editor.execute(statement, params=None)


def drop(_apps: Any, schema_editor: Any) -> None:
    """Undo it."""
    vendor = schema_editor.connection.vendor
    if vendor == "postgresql":
        schema_editor.execute(DROP, params=None)
    if vendor in VENDORS:
        schema_editor.execute("DROP TABLE lockbeat_reserved", params=None)


class Migration(migrations.Migration):  # type: ignore[misc]
    """SQL, as in 0001."""

    dependencies = (("lockbeat", "0007_controls"),)
    operations = (migrations.RunPython(create, drop),)

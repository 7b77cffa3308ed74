"""The table of the locks with more than one holder, and on PostgreSQL the functions that know of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.db import migrations

VENDORS = ("postgresql", "sqlite")

DROP = (
    "DROP FUNCTION lockbeat_take, lockbeat_prolong, lockbeat_end, lockbeat_drop, lockbeat_held, lockbeat_clean,"
    " lockbeat_summarize"
)


def create(_apps: Any, schema_editor: Any) -> None:
    """Run the file of this database."""
    vendor = schema_editor.connection.vendor
    if vendor not in VENDORS:
        return
    sql = Path(__file__).with_name(f"0005_{vendor}.sql").read_text("utf-8")
    # one statement at a time, for SQLite's executescript() would commit
    for statement in sql.split(";\n") if vendor == "sqlite" else [sql]:
        schema_editor.execute(statement, params=None)


def drop(_apps: Any, schema_editor: Any) -> None:
    """Undo it."""
    vendor = schema_editor.connection.vendor
    if vendor == "postgresql":
        schema_editor.execute(DROP, params=None)
    if vendor in VENDORS:
        schema_editor.execute("DROP TABLE lockbeat_wide", params=None)


class Migration(migrations.Migration):  # type: ignore[misc]
    """SQL, as in 0001; there are no models."""

    dependencies = (("lockbeat", "0004_format"),)
    operations = (migrations.RunPython(create, drop),)

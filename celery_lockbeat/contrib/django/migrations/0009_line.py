"""The table of those who wait for a lock, and on PostgreSQL the functions that know of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.db import migrations

VENDORS = ("postgresql", "sqlite")

DROP = (
    "DROP FUNCTION lockbeat_take(bytea, bytea, bytea, bytea, bigint, bigint, bytea, bigint, bigint, json), lockbeat_wait,"
    " lockbeat_call, lockbeat_serve, lockbeat_clear, lockbeat_line_of, lockbeat_acquire_reserved("
    "bytea, bytea, bytea, bytea, bigint, bigint, bytea, bigint, bigint, json, bytea, bytea, text)"
)


def create(_apps: Any, schema_editor: Any) -> None:
    """Run the file of this database."""
    vendor = schema_editor.connection.vendor
    if vendor not in VENDORS:
        return
    sql = Path(__file__).with_name(f"0009_{vendor}.sql").read_text("utf-8")
    # one statement at a time, for SQLite's executescript() would commit
    for statement in sql.split(";\n") if vendor == "sqlite" else [sql]:
        schema_editor.execute(statement, params=None)


def drop(_apps: Any, schema_editor: Any) -> None:
    """Undo it: the functions that it has changed are put back as 0005 made them."""
    vendor = schema_editor.connection.vendor
    if vendor == "postgresql":
        schema_editor.execute(DROP, params=None)
        schema_editor.execute(Path(__file__).with_name("0005_postgresql.sql").read_text("utf-8"), params=None)
    if vendor in VENDORS:
        schema_editor.execute("DROP TABLE lockbeat_line", params=None)


class Migration(migrations.Migration):  # type: ignore[misc]
    """SQL, as in 0001; there are no models."""

    dependencies = (("lockbeat", "0008_reserved"),)
    operations = (migrations.RunPython(create, drop),)

"""The tables of the `database` store, and on PostgreSQL its functions. Other databases get none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.db import migrations

VENDORS = ("postgresql", "sqlite")

DROP = (
    "DROP FUNCTION lockbeat_leave, lockbeat_settle, lockbeat_take_over, lockbeat_claim, lockbeat_list, lockbeat_join,"
    " lockbeat_somebody_lists, lockbeat_alone, lockbeat_purge, lockbeat_free, lockbeat_release, lockbeat_extend,"
    " lockbeat_acquire, lockbeat_locks, lockbeat_beats, lockbeat_now"
)

TABLES = {
    "postgresql": ("lock", "done", "app", "replica", "entry", "listed", "claim"),
    "sqlite": ("host", "lock", "done", "entry", "claim", "replica", "listed", "cold_start"),
}


def create(_apps: Any, schema_editor: Any) -> None:
    """Run the file of this database."""
    vendor = schema_editor.connection.vendor
    if vendor not in VENDORS:
        return
    sql = Path(__file__).with_name(f"0001_{vendor}.sql").read_text("utf-8")
    if vendor == "sqlite":
        # one statement at a time, for executescript() would commit
        for statement in sql.split(";\n"):
            schema_editor.execute(statement, params=None)
    else:
        schema_editor.execute(sql, params=None)


def drop(_apps: Any, schema_editor: Any) -> None:
    """Undo it, with whatever locks there are."""
    vendor = schema_editor.connection.vendor
    if vendor == "postgresql":
        schema_editor.execute(DROP, params=None)
    for table in TABLES.get(vendor, ()):
        schema_editor.execute(f"DROP TABLE lockbeat_{table}", params=None)


class Migration(migrations.Migration):  # type: ignore[misc]
    """SQL, for what the ORM has no words for; there are no models."""

    initial = True
    dependencies = ()
    operations = (migrations.RunPython(create, drop),)

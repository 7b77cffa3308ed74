"""The tables of what operators want of entries; on PostgreSQL its functions, and a claim that obeys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from django.db import migrations

VENDORS = ("postgresql", "sqlite")

DROP = (
    "DROP FUNCTION lockbeat_take_over_or_pass, lockbeat_pass, lockbeat_passes, lockbeat_over, lockbeat_cancel,"
    " lockbeat_asked, lockbeat_ask, lockbeat_keep, lockbeat_flags, lockbeat_skip, lockbeat_resume, lockbeat_pause,"
    " lockbeat_flag_told"
)

TABLES = ("flag", "request")


def create(_apps: Any, schema_editor: Any) -> None:
    """Run the file of this database."""
    vendor = schema_editor.connection.vendor
    if vendor not in VENDORS:
        return
    sql = Path(__file__).with_name(f"0007_{vendor}.sql").read_text("utf-8")
    # one statement at a time, for SQLite's executescript() would commit
    for statement in sql.split(";\n") if vendor == "sqlite" else [sql]:
        schema_editor.execute(statement, params=None)


def drop(_apps: Any, schema_editor: Any) -> None:
    """Undo it: the claim becomes again what it was."""
    vendor = schema_editor.connection.vendor
    if vendor == "postgresql":
        before = Path(__file__).with_name("0006_postgresql.sql").read_text("utf-8")
        (claim,) = re.findall(
            r"^CREATE (FUNCTION lockbeat_claim_ticks\(.*?^END \$\$;)", before, re.MULTILINE | re.DOTALL
        )
        schema_editor.execute(f"CREATE OR REPLACE {claim}", params=None)
        schema_editor.execute(DROP, params=None)
    for table in TABLES if vendor in VENDORS else ():
        schema_editor.execute(f"DROP TABLE lockbeat_{table}", params=None)


class Migration(migrations.Migration):  # type: ignore[misc]
    """SQL, as in 0001; there are no models."""

    dependencies = (("lockbeat", "0006_claims"),)
    operations = (migrations.RunPython(create, drop),)

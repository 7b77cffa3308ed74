"""On PostgreSQL, claims that count only while nobody else has moved their entry on; SQLite's are in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.db import migrations


def create(_apps: Any, schema_editor: Any) -> None:
    """Make the function of this release, and let that of earlier ones call it."""
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(Path(__file__).with_name("0006_postgresql.sql").read_text("utf-8"), params=None)


def drop(_apps: Any, schema_editor: Any) -> None:
    """Give back to earlier releases the function that they came with."""
    if schema_editor.connection.vendor == "postgresql":
        first = Path(__file__).with_name("0001_postgresql.sql").read_text("utf-8")
        begin = first.index("CREATE FUNCTION lockbeat_claim(")
        earlier = first[begin : first.index("END $$;", begin) + 7].replace("CREATE", "CREATE OR REPLACE", 1)
        schema_editor.execute(earlier, params=None)
        schema_editor.execute("DROP FUNCTION lockbeat_claim_ticks", params=None)


class Migration(migrations.Migration):  # type: ignore[misc]
    """SQL, as in 0001."""

    dependencies = (("lockbeat", "0005_wide"),)
    operations = (migrations.RunPython(create, drop),)

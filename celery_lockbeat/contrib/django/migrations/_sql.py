"""How a migration here is carried out: by the file of its number for the database. Django takes a name with this underscore for none."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["drop", "put_back", "run"]

VENDORS = ("postgresql", "sqlite")


def run(schema_editor: Any, number: str) -> None:
    """Run the file of this number, if there is one for this database."""
    vendor = schema_editor.connection.vendor
    file = Path(__file__).with_name(f"{number}_{vendor}.sql")
    if vendor not in VENDORS or not file.exists():
        return
    sql = file.read_text("utf-8")
    # one statement at a time, for SQLite's executescript() would commit
    for statement in sql.split(";\n") if vendor == "sqlite" else [sql]:
        schema_editor.execute(statement, params=None)


def drop(schema_editor: Any, *, functions: str = "", tables: Iterable[str] = ()) -> None:
    """Drop PostgreSQL's functions, and then these tables, by what stands behind ``lockbeat_``."""
    vendor = schema_editor.connection.vendor
    if vendor == "postgresql" and functions:
        schema_editor.execute(f"DROP FUNCTION {functions}", params=None)
    for table in tables if vendor in VENDORS else ():
        schema_editor.execute(f"DROP TABLE lockbeat_{table}", params=None)


def put_back(schema_editor: Any, number: str, function: str) -> None:
    """Make a function of PostgreSQL again what it was in the file of this number."""
    if schema_editor.connection.vendor == "postgresql":
        sql = Path(__file__).with_name(f"{number}_postgresql.sql").read_text("utf-8")
        (made,) = re.findall(
            rf"^CREATE (?:OR REPLACE )?(FUNCTION {function}\(.*?^END \$\$;)", sql, re.MULTILINE | re.DOTALL
        )
        schema_editor.execute(f"CREATE OR REPLACE {made}", params=None)

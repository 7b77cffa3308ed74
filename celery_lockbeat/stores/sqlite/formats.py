"""The format of the tables in a SQLite file, in a table of its own."""

from __future__ import annotations

import sqlite3

from celery_lockbeat.stores.formats import BEGUN_BY, FORMAT, refuse_unknown
from celery_lockbeat.stores.sqlite.database import Tables

__all__ = ["TABLES", "check_format"]

TABLES = Tables(
    schema=("CREATE TABLE IF NOT EXISTS lockbeat_format (number INTEGER, begun_by TEXT)",),
    begin_a_new_boot=lambda _connection, _now, _sees: None,
)


def check_format(connection: sqlite3.Connection, place: str) -> None:
    """Say which format this release writes, and refuse a newer one. Raises ConfigurationError."""
    told = connection.execute("SELECT number, begun_by FROM lockbeat_format ORDER BY number DESC").fetchone()
    if told is not None and told[0] >= FORMAT:
        refuse_unknown(place, *told)
        return
    connection.execute("DELETE FROM lockbeat_format")
    connection.execute("INSERT INTO lockbeat_format VALUES (?, ?)", (FORMAT, BEGUN_BY))

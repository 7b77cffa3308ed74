"""Whether PostgreSQL has what all migrations of this release have made, and the format of the tables, which a function says."""

from __future__ import annotations

from celery_lockbeat.contrib.django.postgresql.client import Client
from celery_lockbeat.stores.formats import refuse_unknown

__all__ = ["check_format", "check_migrations"]


def check_migrations(client: Client) -> None:
    """Refuse a database in which the last migration of this release has not been run. Raises StoreUnavailable."""
    # of the functions that it has made, one that changes nothing
    client.ask("lockbeat_give_up", (b"", b"", 0), client.timeout)


def check_format(client: Client) -> None:
    """Refuse a format that only later releases know. Raises ConfigurationError, StoreUnavailable."""
    number, begun_by = client.ask("lockbeat_format", (), client.timeout)
    refuse_unknown(client.where, int(number), str(begun_by))

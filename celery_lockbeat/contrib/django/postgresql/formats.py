"""The format of the tables in PostgreSQL: what a function of the last migration says."""

from __future__ import annotations

from celery_lockbeat.contrib.django.postgresql.client import Client, NotMigrated
from celery_lockbeat.stores.formats import refuse_unknown

__all__ = ["check_format"]


def check_format(client: Client) -> None:
    """Refuse a format that only later releases know. Raises ConfigurationError, StoreUnavailable."""
    try:
        number, begun_by = client.ask("lockbeat_format", (), client.timeout)
    except NotMigrated:
        # the first: locks and beats go on before the migration, as they do without what it brings
        return
    refuse_unknown(client.where, int(number), str(begun_by))

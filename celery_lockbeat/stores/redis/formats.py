"""The format of the keys under one prefix, in a key of its own, which no lock and no beat reads.

It is the only key without an end: an earlier release must be refused however long ago the later one began.
"""

from __future__ import annotations

from celery_lockbeat.exceptions import ConfigurationError, StoreRefused
from celery_lockbeat.stores.formats import BEGUN_BY, FORMAT, refuse_unknown
from celery_lockbeat.stores.redis.client import Client
from celery_lockbeat.stores.redis.names import shown
from celery_lockbeat.stores.redis.scripts import Script

__all__ = ["check_format"]


def check_format(client: Client, *, begins: bool = True) -> None:
    """Say which format this release writes, and refuse a newer one. Raises ConfigurationError, StoreUnavailable.

    Who does not begin has been let in before: it waits for a server that refuses it now, and does not end.
    """
    try:
        told, begun_by = client.call(Script.of("format"), (f"{client.prefix}format",), (str(FORMAT), BEGUN_BY))
    except StoreRefused as exc:
        if not begins:
            return
        # as all else that is refused to who begins
        raise ConfigurationError(str(exc)) from exc
    refuse_unknown(f"{client.where}, prefix {client.prefix!r},", int(told), shown(begun_by))

"""The format of what a store keeps: a number, in the store itself, and of which numbers this release knows what they mean.

Promises: a release that does not know a store's format is refused at its start, by name. It costs no operation anything: only
``Store.check`` looks. So who has begun before goes on until it is ended; a release that begins a new format says how to get there.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

from celery_lockbeat.exceptions import ConfigurationError

__all__ = ["BEGUN_BY", "FORMAT", "refuse_unknown"]

#: Greater by one with the first release beside whose keys those of the release before would do harm; what is merely added, and
#: what earlier ones leave alone, changes nothing. Where none is told, it is the first.
FORMAT: Final = 1

#: The release that has begun it.
BEGUN_BY: Final = "0.1.0"


def refuse_unknown(place: str, told: int, begun_by: str) -> None:
    """Refuse what a later release keeps in a format that this one does not know. Raises ConfigurationError."""
    if told > FORMAT:
        raise ConfigurationError(
            f"{place} is kept in format {told}, which celery-lockbeat {begun_by} has begun; allowed: up to format {FORMAT}, "
            f"as this is celery-lockbeat {version('celery-lockbeat')}. Install {begun_by} or newer here, or take another store "
            "or another lockbeat_key_prefix"
        )

"""What Django's admin shows of the stores: the journal, which is only read, and what Django needs to know of locks and entries."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Final

from django.db import models

from celery_lockbeat.journal.records import Record, read_record
from celery_lockbeat.stores.base import StoredRecord

__all__ = ["Entry", "JournalRecord", "Lock"]

#: An app as it stands in a row: what PostgreSQL's rows have in front, the length of the prefix, the prefix and the name.
_APP: Final = re.compile(r"[=#]?(\d{1,9}) (.*)", re.ASCII | re.DOTALL)


class JournalRecord(models.Model):  # type: ignore[misc]
    """A row of the journal, of whichever app and prefix. The store writes them, and makes their table (migrations/0003_*)."""

    position = models.BigIntegerField(primary_key=True)
    app = models.BinaryField()
    written = models.FloatField()
    text = models.TextField()

    class Meta:  # noqa: D106  Django's
        managed = False
        db_table = "lockbeat_journal"
        default_permissions = ("view",)
        verbose_name = "record"
        verbose_name_plural = "journal"

    def __str__(self) -> str:
        return f"{self.record.event} ({self.position})"

    @cached_property
    def record(self) -> Record:
        """What the text tells."""
        return read_record(StoredRecord(str(self.position), self.written, str(self.text)))

    @property
    def app_name(self) -> str:
        """The name of the app, as far as it can be told."""
        try:
            told = bytes(self.app).decode("utf-8", "backslashreplace")
        except TypeError:  # SQLite takes anything
            told = str(self.app)
        found = _APP.fullmatch(told)
        return found[2][int(found[1]) :] if found else told


# Locks and entries are no rows of Django's: they are where the app's stores are, which may be Redis. Models there are for the
# permissions and the index of the admin; proxies, for a model of its own would have a table, and ``dumpdata`` would ask for it.


class Lock(JournalRecord):
    """A lock that is held: whoever may change one may take it away."""

    class Meta:  # noqa: D106  Django's
        proxy = True
        default_permissions = ("view", "change")
        verbose_name = "lock"
        verbose_name_plural = "locks"


class Entry(JournalRecord):
    """An entry that beats know: whoever may change one may pause, resume, skip and run it."""

    class Meta:  # noqa: D106  Django's
        proxy = True
        default_permissions = ("view", "change")
        verbose_name = "entry"
        verbose_name_plural = "entries"

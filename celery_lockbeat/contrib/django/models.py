"""What Django's admin shows of the store: the journal, to be read only."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Final

from django.db import models

from celery_lockbeat.journal.records import Record, read_record
from celery_lockbeat.stores.base import StoredRecord

__all__ = ["JournalRecord"]

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

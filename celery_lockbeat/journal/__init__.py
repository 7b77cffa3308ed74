"""What happened to the ticks and runs of an app: the journal, as it is read.

    from celery_lockbeat import journal

    for record in journal.read(app, entry="report-job", since=yesterday):
        print(record.at, record.event, record.status, record.reason)

docs/journal.md has all events, fields and units.
"""

from __future__ import annotations

from celery_lockbeat.journal.reader import follow, read
from celery_lockbeat.journal.records import Record

__all__ = ["Record", "follow", "read"]

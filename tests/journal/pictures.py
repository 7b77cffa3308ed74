"""What the pages show of ``watch`` and ``timeline``, drawn of one night: ``python tests/journal/pictures.py`` draws it anew."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from pathlib import Path

from celery.schedules import schedule

from celery_lockbeat.cli.timeline.svg import svg_of
from celery_lockbeat.cli.timeline.text import lines_of
from celery_lockbeat.cli.watch.view import View
from celery_lockbeat.insight.lanes import timeline_of
from celery_lockbeat.insight.model import Model
from celery_lockbeat.journal.records import Record
from celery_lockbeat.journal.ticks import ticks_of
from celery_lockbeat.stores.base import Beats, EntryState, LiveLock, Replica, StoredEntry

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "watch.md"
PICTURE = ROOT / "docs" / "timeline.svg"

BEGIN = datetime(2026, 3, 1, 2, 30, tzinfo=timezone.utc)
END = BEGIN + timedelta(minutes=30)

#: Seconds from one tick to the next, and that a run takes; where it runs.
JOBS = {
    "clean-carts": (60, 4, "w1@blue"),
    "import-prices": (300, 100, "w2@green"),
    "mail-digest": (240, 15, "w1@blue"),
    "report-job": (600, 130, "w2@green"),
    "sync-orders": (120, 170, "w1@blue"),
}

#: The beats were gone for some time.
AWAY = range(730, 1075)


def at(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


class Night:
    """The records of one night, in the order of time."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        for entry, (every, takes, worker) in JOBS.items():
            self._entry(entry, every, takes, worker)
        self.records.sort(key=lambda record: record.at)

    def _entry(self, entry: str, every: int, takes: float, worker: str) -> None:
        busy, runner, missed = 0.0, 0, 0
        for run, due in enumerate(range(every // 2, 1800, every), 1):
            if due in AWAY:
                missed += 1
                continue
            if missed:
                told = {"count": missed, "last_due": at(due - every), "reason": "nobody published them in time"}
                self._put("tick_missed", due, entry=entry, hostname="beat-b", **told)
                missed = 0
            name = {"entry": entry, "due": at(due), "task_id": f"{entry}-{run}", "task_name": f"shop.{entry}"}
            self._put(
                "tick_published", due + 0.1, **name, run=run, late=0.1, hostname="beat-a" if due < 700 else "beat-b"
            )
            of_run = {
                **name,
                "execution_id": f"{entry}-{run}",
                "hostname": worker,
                "lock_key": f"shop.{entry}",
                "token": run,
            }
            if due < busy:
                holder = f"{worker} pid 7 shop.{entry}[{entry}-{runner}]"
                self._put("task_skipped", due + 0.2, **of_run, reason="locked", holder=holder)
                continue
            self._put("task_started", due + 0.2, **of_run)
            busy, runner = due + takes, run
            self._end(of_run, entry, run, busy, takes * 1000)

    def _end(self, of_run: dict, entry: str, run: int, end: float, took: float) -> None:
        if (entry, run) == ("import-prices", 2):
            self._put("task_died", end - 40, **of_run, reason="its process was killed by SIGKILL", signal=9)
        elif entry == "mail-digest" and run in (2, 6):
            error = {"error_name": "SMTPServerDisconnected", "error_message": "connection <lost>"}
            self._put("task_failed", end, **of_run, duration_ms=took, **error)
        elif end < 1800:
            if (entry, run) == ("report-job", 1):
                self._put("lock_expired_before_finish", end - 50, **of_run)
            self._put("task_succeeded", end, **of_run, duration_ms=took)

    def _put(self, event: str, seconds: float, **fields: object) -> None:
        self.records.append(Record(event=event, at=at(seconds), position=str(len(self.records)), **fields))


def frame() -> list[str]:
    """A frame of a terminal of 80 columns and 24 lines."""
    plans = {name: (f"shop.{name}", schedule(timedelta(seconds=every))) for name, (every, _, _) in JOBS.items()}
    model = Model(plans, lambda task: True, END)
    model.take_records(Night().records)
    model.is_read = True
    listed = [
        Replica("beat-b", 1.0, frozenset(JOBS), complete=True),
        Replica("beat-c", 2.0, frozenset(JOBS), complete=True),
    ]
    states = [StoredEntry(name, EntryState(1, BEGIN.isoformat()), 0) for name in JOBS]
    model.take_beats(Beats(listed, states, 0), {}, {})
    lock = LiveLock(
        "shop.sync-orders", "h", "w1@blue pid 7 shop.sync-orders", "r", int(at(1740).timestamp() * 1e6), 21.0
    )
    model.take_locks("redis", [lock])
    view = View(model, "shop", "redis://redis:6379/0", timezone.utc, True)
    return [line.plain.rstrip() for line in view.frame(80, 24, END)]


def drawn():
    return timeline_of(ticks_of(Night().records), BEGIN, END, BEGIN, timezone.utc)


def text() -> list[str]:
    return lines_of(drawn(), 80, lambda sign: sign.text)


def picture() -> str:
    return svg_of(drawn(), "celery-lockbeat, app 'shop'")


def page(before: str) -> str:
    """The page, with what it shows drawn anew."""
    shown = {"watch": frame(), "timeline": text()}
    for command, lines in shown.items():
        block = "```text\n" + "\n".join(lines) + "\n```\n"
        before = re.sub(
            rf"(<!-- {command} -->\n)```text\n.*?^```\n",
            lambda m, block=block: m[1] + block,
            before,
            flags=re.MULTILINE | re.DOTALL,
        )
    return before


if __name__ == "__main__":
    PICTURE.write_text(picture(), "utf-8")
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")

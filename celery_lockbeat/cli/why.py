"""``celery lockbeat why``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import click

from celery_lockbeat.cli.journals import refuse_unknown
from celery_lockbeat.cli.output import command, print_json, printable
from celery_lockbeat.insight.journals import Story, audited, calendars_of, names_known, story_since
from celery_lockbeat.insight.times import moment_of, now
from celery_lockbeat.journal.audit import Gap
from celery_lockbeat.journal.sentences import Writing, sentence_of
from celery_lockbeat.journal.ticks import Tick
from celery_lockbeat.observe.vocabulary import took

__all__ = ["why"]

#: A tick that was due so near to the time is the one that is meant.
NEAR: Final = timedelta(seconds=60)

#: Seconds by which a tick may differ from its time in the schedule.
SLACK: Final = timedelta(seconds=5)

#: So far back other ticks are looked for, which may be nearest, or have held the lock.
BEFORE: Final = timedelta(days=1)


class _Answer(NamedTuple):
    """A sentence, the tick that it tells of, and whether the journal could tell."""

    text: str
    tick: Tick | None = None
    is_known: bool = True


@command
@click.argument("entry")
@click.option("--at", required=True, metavar="TIME", help="ISO 8601, 03:00 (the last one), or 10m ago.")
def why(ctx: click.Context, entry: str, at: str, as_json: bool) -> None:
    """Say in one sentence what became of the tick of ENTRY at a TIME, and who or what decided so.

    Exits with 1 where the journal cannot tell.
    """
    app = ctx.obj.app
    moment = moment_of(at, app)
    story = story_since(app, moment - BEFORE)
    ticks = [tick for tick in story.ticks if tick.entry == entry]
    if not ticks:
        refuse_unknown(ctx, entry, names_known(app, story))
    answer = _Question(app, entry, moment, story, ticks).answer()
    if as_json:
        told = {"entry": entry, "at": moment.isoformat(), "answer": answer.text, "known": answer.is_known}
        print_json({**told, "tick": answer.tick and answer.tick.fields()})
    else:
        ctx.obj.echo(printable(answer.text))
    ctx.exit(0 if answer.is_known else 1)


class _Question:
    """What became of the tick of an entry at a moment."""

    def __init__(self, app: Any, entry: str, moment: datetime, story: Story, ticks: Sequence[Tick]) -> None:
        self._app = app
        self._entry = entry
        self._moment = moment
        self._story = story
        self._ticks = ticks
        self._calendar = calendars_of(app).get(entry)
        self._write = Writing(app.timezone, took)
        self._when = self._write.full(moment)

    def answer(self) -> _Answer:
        nearest = min(self._ticks, key=self._distance, default=None)
        due = self._due_by_schedule()
        away = None if nearest is None else self._distance(nearest)
        if nearest is not None and away is not None and away <= SLACK:
            return self._of(nearest)
        reach = self._story.reach
        if reach is not None and self._moment >= reach and (gap := self._gap()) is not None:
            return gap
        if nearest is not None and away is not None and away <= NEAR and due is None:
            return self._of(nearest)
        if reach is None or self._moment < reach:
            back = f"reaches back to {self._write.full(reach)} only" if reach is not None else "is empty"
            return _Answer(f"What {self._entry!r} did at {self._when} is not known: the journal {back}.", None, False)
        return self._not_due(due, nearest)

    def _of(self, tick: Tick) -> _Answer:
        return _Answer(sentence_of(tick, self._story.ticks, self._write), tick)

    def _distance(self, tick: Tick) -> timedelta:
        if tick.is_missed and tick.due_after is not None and tick.due_after + SLACK < self._moment <= tick.at:
            return timedelta(0)
        return abs(tick.at - self._moment)

    def _due_by_schedule(self) -> datetime | None:
        """The moment of the entry's schedule that is meant, if it has moments and there is one."""
        if self._calendar is None or not self._calendar.by_the_clock:
            return None
        found = self._calendar.dues(self._moment - SLACK, self._moment + SLACK)
        return None if found is None else found[1]

    def _gap(self) -> _Answer | None:
        """What the ledger says of the time."""
        ledger = audited(self._app, self._story, self._moment - BEFORE, now())
        for first, last, what in ledger.blind:
            if first <= self._moment <= last:
                text = f"What {self._entry!r} did at {self._when} is not known: {what}, until {self._write.full(last)}."
                return _Answer(text, None, False)
        for gap in ledger.gaps:
            if gap.entry == self._entry and gap.first - SLACK <= self._moment <= gap.last + SLACK:
                return _Answer(self._said(gap), None, False)
        return None

    def _said(self, gap: Gap) -> str:
        between = f"{self._write.full(gap.first)} and {self._write.full(gap.last)}"
        ticks = "a tick" if gap.count == 1 else f"{gap.count} ticks"
        lacks = "lacks" if gap.count == 1 else "lack"
        return f"Of {self._entry!r} {ticks} between {between} {lacks}: {gap.why}."

    def _not_due(self, due: datetime | None, nearest: Tick | None) -> _Answer:
        if due is not None:
            was = f"{self._entry!r} is due at {self._write.full(due)} by its schedule, {self._calendar and self._calendar.text}"
            return _Answer(
                f"{was}, and no beat has published it: it is not late enough to be missed, or new.", None, False
            )
        if nearest is None:
            begin = self._write.full(self._moment - BEFORE)
            return _Answer(
                f"{self._entry!r} was not due at {self._when}: no tick of it since {begin} is in the journal."
            )
        first = min(self._ticks, key=lambda tick: tick.at)
        if first.run == 1 and self._moment < first.at:
            said = f"{self._entry!r} did not exist at {self._when}, or was not due yet; its first tick is this one"
        else:
            said = f"{self._entry!r} was not due at {self._when}; the nearest tick is this one"
        return _Answer(f"{said}. {sentence_of(nearest, self._story.ticks, self._write)}", nearest)

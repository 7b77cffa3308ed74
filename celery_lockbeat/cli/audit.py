"""``celery lockbeat audit``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import click

from celery_lockbeat.cli.output import command, print_json, printable, table_lines, width_of_terminal
from celery_lockbeat.cli.times import since_option
from celery_lockbeat.insight.journals import Story, audited, story_since
from celery_lockbeat.insight.times import now, since_of, to_the_second
from celery_lockbeat.journal.audit import Account, Gap, Ledger
from celery_lockbeat.journal.ticks import OUTCOMES

__all__ = ["audit", "settled_ledger"]

#: Seconds after which a gap that was but a record on its way is closed.
ON_ITS_WAY: Final = 2.0

#: Columns that stand there though they are 0.
ALWAYS: Final = ("due", "succeeded", "missed")


@command
@since_option("24h")
def audit(ctx: click.Context, since: str, as_json: bool) -> None:
    """Prove that each due tick was published or missed, and say what became of it; exits with 1 at a gap.

    Where an entry's schedule is in the settings, its dues are counted by themselves, and compared.
    """
    app = ctx.obj.app
    begin = since_of(since, app)
    story, ledger = settled_ledger(app, begin)
    if as_json:
        print_json(_as_json(ledger, story, begin))
    else:
        for line in _lines(ledger, story, begin, app):
            ctx.obj.echo(printable(line))
    ctx.exit(1 if ledger.gaps else 0)


def settled_ledger(app: Any, since: datetime) -> tuple[Story, Ledger]:
    """Return the ledger since a time, and what it is made of; a gap is looked at twice."""
    story = story_since(app, since)
    ledger = audited(app, story, since, now())
    if ledger.gaps:
        time.sleep(ON_ITS_WAY)
        story = story_since(app, since)
        ledger = audited(app, story, since, now())
    return story, ledger


def _as_json(ledger: Ledger, story: Story, since: datetime) -> dict[str, Any]:
    return {
        "since": since.isoformat(),
        "until": ledger.until.isoformat(),
        "reaches_back_to": story.reach and story.reach.isoformat(),
        "adds_up": not ledger.gaps,
        "entries": [account.fields() for account in ledger.accounts],
        "gaps": [
            {
                "entry": gap.entry,
                "from": gap.first.isoformat(),
                "until": gap.last.isoformat(),
                "count": gap.count,
                "why": gap.why,
            }
            for gap in ledger.gaps
        ],
        "not_known": [
            {"from": first.isoformat(), "until": last.isoformat(), "why": why} for first, last, why in ledger.blind
        ],
    }


def _lines(ledger: Ledger, story: Story, since: datetime, app: Any) -> list[str]:
    lines = [f"the ledger from {to_the_second(since, app)} to {to_the_second(ledger.until, app)}", ""]
    if ledger.accounts:
        lines += [*_table(ledger.accounts), ""]
    if story.reach is None:
        lines.append("the journal is empty: no beat has written anything")
    elif story.reach > since:
        lines.append(f"not known: the journal reaches back to {to_the_second(story.reach, app)} only")
    lines += [f"not known: {_span(first, last, app)}: {why}" for first, last, why in ledger.blind]
    lines += [_gap(gap, app) for gap in ledger.gaps]
    lines.append(_verdict(ledger))
    return lines


def _table(accounts: Sequence[Account]) -> list[str]:
    counts = [account.fields() for account in accounts]
    columns = ("due", *OUTCOMES, "waiting", "unknown", "unaccounted")
    head = ["entry", *(each for each in columns if each in ALWAYS or any(row[each] for row in counts))]
    rows = ([row[each] for each in head] for row in counts)
    return table_lines(head, rows, width_of_terminal(), right=head[1:])


def _span(first: datetime, last: datetime, app: Any) -> str:
    return (
        f"from {to_the_second(first, app)} until {to_the_second(last, app)}"
        if first.year > 1
        else (f"until {to_the_second(last, app)}")
    )


def _gap(gap: Gap, app: Any) -> str:
    ticks = "1 tick" if gap.count == 1 else f"{gap.count} ticks"
    return f"gap: {gap.entry}, {_span(gap.first, gap.last, app)}, {ticks}: {gap.why}"


def _verdict(ledger: Ledger) -> str:
    due = sum(account.due for account in ledger.accounts)
    unknown = sum(account.unknown for account in ledger.accounts)
    entries = f"{len(ledger.accounts)} {'entry' if len(ledger.accounts) == 1 else 'entries'}"
    but = f", but for {unknown} that the journal cannot know" if unknown else ""
    if ledger.gaps:
        gone = sum(gap.count for gap in ledger.gaps)
        return f"it does not add up: nobody can say what became of {gone} of {due} due ticks of {entries}"
    return f"it adds up: {due} due ticks of {entries}{but}"

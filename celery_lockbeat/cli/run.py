"""``celery lockbeat run``."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import click
from celery.utils import uuid

from celery_lockbeat.cli.output import command, print_json
from celery_lockbeat.exceptions import StoreUnavailable
from celery_lockbeat.insight.entries import NamedEntry, named_entries
from celery_lockbeat.membership.used import stores_in_use
from celery_lockbeat.options import AppOptions
from celery_lockbeat.stores import Store, name_of
from celery_lockbeat.stores.base import Claim, StoredEntry

__all__ = ["run"]


@command
@click.argument("entry")
def run(ctx: click.Context, entry: str, as_json: bool) -> None:
    """Have a beat publish ENTRY once, within seconds; when it is due next stays as it is.

    ENTRY is its name, as `entries` shows it, or the key that the store has it under.
    """
    app = ctx.obj.app
    home = stores_in_use(app)[0].store
    found = _matching([each for each in named_entries(app, home) if each.beats], entry)
    if len(found) != 1:
        why = (
            f"these are such: {', '.join(each.entry.name for each in found)}" if found else "no beat that runs lists it"
        )
        ctx.obj.error(f"{entry!r} names no one entry: {why}")
        ctx.exit(1)
    claim, name = _claim_for_the_beats(home, app, found[0].entry), found[0].name
    number = claim.state.total_run_count
    if as_json:
        print_json({"entry": name, "task_id": claim.task_id, "run": number, "key": claim.entry})
    else:
        ctx.obj.echo(f"a beat publishes {name!r}, run {number}, as task {claim.task_id}")


def _matching(listed: Sequence[NamedEntry], wanted: str) -> list[NamedEntry]:
    by_name = [each for each in listed if each.name == wanted]
    return by_name or [each for each in listed if wanted in (each.entry.name, each.entry.name.rpartition("@")[0])]


def _claim_for_the_beats(store: Store, app: Any, entry: StoredEntry) -> Claim:
    """Claim a tick of now, and hand it over at once: to whichever beat is first, and knows the message to make of it.

    So the run is numbered like all others, and published at least once whatever dies now. Its state keeps the time of the
    last tick: the beats find the next one due when it was. Raises StoreUnavailable.
    """
    replica, state = f"command-{uuid()}", entry.state
    while True:
        due = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        claim = Claim(uuid(), entry.name, replace(state, total_run_count=state.total_run_count + 1), {"due": due})
        (refusal,) = store.beats.claim(name_of(app), replica, [claim], ttl=AppOptions.read(app.conf).claim_ttl).refusals
        if refusal is None:
            break
        if refusal.total_run_count <= state.total_run_count:
            raise click.ClickException(f"too many ticks of {entry.name!r} wait to be published")
        state = refusal  # a beat was faster
    with contextlib.suppress(StoreUnavailable):  # then it is overdue when its ttl is over
        store.beats.settle(name_of(app), replica, [], handed_over=[claim.task_id])
    return claim

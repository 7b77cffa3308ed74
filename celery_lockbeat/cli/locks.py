"""``celery lockbeat locks``."""

from __future__ import annotations

from dataclasses import asdict

import click

from celery_lockbeat.cli.output import command, print_json, print_table
from celery_lockbeat.membership.used import stores_in_use
from celery_lockbeat.stores.base import LISTED_AT_MOST

__all__ = ["locks"]


@command
@click.option("--limit", default=LISTED_AT_MOST, show_default=True, help="At most so many of each store.")
def locks(ctx: click.Context, limit: int, as_json: bool) -> None:
    """Show the locks that are held, and how many wait for each."""
    held = [(used.name, lock) for used in stores_in_use(ctx.obj.app) for lock in used.store.locks.held(limit=limit)]
    held.sort(key=lambda each: each[1].key)
    if as_json:
        print_json([{"store": name, **asdict(lock), "held_since": lock.held_since.isoformat()} for name, lock in held])
        return
    rows = (
        (
            lock.key,
            lock.held_since.isoformat(" ", "seconds"),
            f"{lock.remaining:.1f} s",
            lock.token,
            lock.waiting or "",
            lock.description,
        )
        for _, lock in held
    )
    print_table(ctx, ("key", "held since", "rest", "token", "waiting", "holder"), rows)

"""``celery lockbeat release``."""

from __future__ import annotations

from dataclasses import asdict

import click

from celery_lockbeat.cli.output import command, print_json
from celery_lockbeat.control import free_lock
from celery_lockbeat.membership.used import stores_in_use

__all__ = ["release"]


@command
@click.argument("key")
@click.option("--line", is_flag=True, help="Send away those who wait for it, and leave its holder alone.")
def release(ctx: click.Context, key: str, line: bool, as_json: bool) -> None:
    """Free the lock KEY, whoever holds it.

    A run that is still going on under it goes on until it ends or is told, at its next renewal, that its lock is lost;
    until then another may run beside it.
    """
    if line:
        _clear(ctx, key, as_json)
        return
    freed = [{"store": name, **asdict(lock)} for name, lock in free_lock(ctx.obj.app, key)]
    if as_json:
        print_json(freed)
    else:
        for lock in freed:
            ctx.obj.echo(f"{key!r} is free; it was held by {lock['description']} for {lock['remaining']:.1f} s more")
    if not freed:
        ctx.obj.error(f"{key!r} is not held")
        ctx.exit(1)


def _clear(ctx: click.Context, key: str, as_json: bool) -> None:
    cleared = [(used.name, used.store.locks.clear_line(key)) for used in stores_in_use(ctx.obj.app)]
    waited = sum(count for _, count in cleared)
    if as_json:
        print_json([{"store": name, "key": key, "waited": count} for name, count in cleared if count])
    elif waited:
        ctx.obj.echo(f"{waited} wait for {key!r} no more")
    if not waited:
        ctx.obj.error(f"nobody waits for {key!r}")
        ctx.exit(1)

"""``celery lockbeat health``."""

from __future__ import annotations

import click

from celery_lockbeat.cli.output import command, print_json
from celery_lockbeat.membership.health import health_of

__all__ = ["health"]


@command
@click.option("--beat", is_flag=True, help="A beat of this host must be there, and tick.")
@click.option("--worker", is_flag=True, help="A worker of this host must be there, and be able to lock.")
@click.option(
    "--max-silence",
    type=click.FloatRange(min=1),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Who has not been heard of for longer is not well.",
)
def health(ctx: click.Context, beat: bool, worker: bool, max_silence: float, as_json: bool) -> None:
    """Tell in one line whether the beat and the worker of this host are well; exits with 1 where one is not.

    Without --beat and --worker: whichever of them this host has, and one of them at least.
    """
    found = health_of(ctx.obj.app, beat=beat, worker=worker, max_silence=max_silence)
    if as_json:
        print_json({"healthy": not found.ill, "well": list(found.well), "ill": list(found.ill)})
    else:
        ctx.obj.echo(str(found))
    ctx.exit(1 if found.ill else 0)

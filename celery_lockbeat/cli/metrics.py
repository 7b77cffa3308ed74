"""``celery lockbeat metrics``."""

from __future__ import annotations

import signal
import sys

import click

from celery_lockbeat.cli.output import textual
from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.membership.used import stores_in_use
from celery_lockbeat.options import AppOptions

__all__ = ["metrics"]


@textual
@click.option("--port", default=9808, show_default=True, type=click.IntRange(1, 65535), help="Where to listen.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at; 0.0.0.0: any.")
def metrics(ctx: click.Context, port: int, host: str) -> None:
    """Export metrics to Prometheus, until it is ended. One such process per app is enough.

    It needs the extra "prometheus".
    """
    try:
        from celery_lockbeat.contrib.prometheus import serve  # noqa: PLC0415  it may not be there
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] != "prometheus_client":
            raise
        msg = "prometheus_client is missing: pip install 'celery-lockbeat[prometheus]'"
        raise ConfigurationError(msg) from exc
    app = ctx.obj.app
    stores_in_use(app)  # what is set wrong is said now
    if not AppOptions.read(app.conf).journal:
        ctx.obj.error("lockbeat_journal is 0: nothing is written that could be counted, and only gauges are exported")
    # else the first process of a container would not hear of SIGTERM
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        serve(app, host, port)
    except OSError as exc:
        ctx.obj.error(f"cannot listen at {host} port {port}: {exc.strerror or exc}")
        ctx.exit(1)
    ctx.obj.echo(f"metrics of app {app.main!r}: http://{f'[{host}]' if ':' in host else host}:{port}/metrics")
    while True:
        signal.pause()

"""Prometheus: what became of the ticks and runs of an app, by its journal, and how its beats and locks are.

Promises: a scrape costs the store a few round trips, twice a second at most, however many scrape; the number of series is
bounded, and no key, id or message is in a label. While the store is away the rest is exported, with ``lockbeat_store_up`` 0, and
what happened meanwhile is counted once it is back, as far as the journal has kept it.

Not promised: that counters go on where an earlier exporter of the app ended: they begin at 0, as all of Prometheus' do, with what is
written from then on. So one exporter per app is enough, and two of them count everything twice.

docs/how-to/metrics.md has all names.
"""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.process_collector import ProcessCollector

from celery_lockbeat.contrib.prometheus.collector import LockbeatCollector

__all__ = ["LockbeatCollector", "serve"]


def serve(app: Any, host: str, port: int) -> None:
    """Export an app's metrics over HTTP, in a thread, for as long as this process lives. Raises OSError."""
    registry = CollectorRegistry()
    collector = LockbeatCollector(app)
    registry.register(collector)
    ProcessCollector(registry=registry)
    start_http_server(port, addr=host, registry=registry)
    collector.start()

"""What a beat or a worker logs at its start: one line that names the store, and a warning for each likely mistake.

The mistakes: locks that are kept on this host only while other hosts can reach the broker, and leases of hours.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from celery_lockbeat.membership.identity import home_of, is_loopback, lock_options_of
from celery_lockbeat.options import AppOptions, LockOptions

__all__ = ["LONG_LEASE", "say_what_is_set"]

logger: Final = logging.getLogger("celery_lockbeat")

#: A longer lease is most often one of milliseconds.
LONG_LEASE: Final = 3600.0

#: What kombu calls the transports whose messages stay on this host, and those that are elsewhere though their URL names no host.
OF_ONE_HOST: Final = ("memory", "filesystem")
OF_A_CLOUD: Final = ("sqs", "gcpubsub", "azureservicebus", "azurestoragequeues", "kafka", "slmq")


def say_what_is_set(app: Any, what: str) -> None:
    """Log in one line where ``what`` lives, and in one more each what may be a mistake. Raises ConfigurationError."""
    logger.info("%s live in %s", what, home_of(app))
    _warn_of_one_host(app, what)
    _warn_of_long_leases(app)


def _warn_of_one_host(app: Any, what: str) -> None:
    options, locks = AppOptions.read(app.conf), LockOptions.read(app.conf, {}, owner="the app")
    if options.connection(locks.driver, locks.connection) is not None:
        return
    broker = _reachable_broker(app)
    if broker is None:
        return
    if locks.driver == "auto":
        because = "(lockbeat_driver is %r, and no Redis is configured)"
        do = "Set lockbeat_redis_url, or lockbeat_driver='database' with Django,"
    else:
        because = "(lockbeat_driver is %r)"
        do = "Set lockbeat_driver='redis' and lockbeat_redis_url,"
    text = (
        f"%s live on this host only {because}, while other hosts can reach the broker, %s: each host with a beat sends every"
        f" tick, and runs exclude each other on one host only. {do} unless all beats and workers are on this host"
    )
    logger.warning(options.spell(text), what, locks.driver, broker)


def _warn_of_long_leases(app: Any) -> None:
    leases = [(name, options.ttl) for name, options in lock_options_of(app) if options is not None]
    long = [(name, ttl) for name, ttl in leases if ttl > LONG_LEASE]
    if not long:
        return
    name, ttl = max(long, key=lambda lease: lease[1])
    logger.warning(
        "lock_ttl of %s is %s s, more than an hour: seconds are meant, not milliseconds. A lease is renewed while its run"
        " goes on, so it need not be as long as a run; but when a host dies, its locks are held for so long",
        f"task {name} and {len(long) - 1} more" if len(long) > 1 else f"task {name}",
        f"{ttl:.15g}",
    )


def _reachable_broker(app: Any) -> str | None:
    """Name the broker, without credentials, where other hosts can reach it; None: they cannot, or nobody knows."""
    try:
        connection = app.connection_for_write()
        kind, scheme = str(connection.transport.driver_type).lower(), str(connection.transport_cls)
    except Exception:  # noqa: BLE001  a transport's own
        return None
    host = str(connection.hostname or "")
    if kind in OF_ONE_HOST or "sqlite" in scheme or is_loopback(host) or (not host and kind not in OF_A_CLOUD):
        return None
    return f"{scheme}://{host}" if host else scheme

"""What tells a member of an app from another: the store of its locks, the lock of each of its tasks, and the work it shares.

Promises: no credentials are in what is returned, and two members that return the same have the same.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.options import AppOptions, LockOptions
from celery_lockbeat.stores import Store, home_store_of, open_store
from celery_lockbeat.stores.sqlite.store import MemoryStore
from celery_lockbeat.tasks.plan import LockPlan
from celery_lockbeat.tasks.task import LockedTask

__all__ = [
    "digest_of",
    "home_of",
    "is_loopback",
    "lock_options_of",
    "locks_of_tasks",
    "meeting_store_of",
    "place_of",
    "work_of",
]

_LOOPBACK: Final = re.compile(r"(localhost|127\.[\d.]+|\[?::1\]?|0\.0\.0\.0)([:/;,]|$)")


def place_of(arguments: Mapping[str, Any] | None) -> str:
    """Name a store by its connection's arguments, without credentials."""
    if arguments is None:
        return "memory"
    if "alias" in arguments:
        return f"the database {arguments['alias']!r} of Django"
    scheme, _, rest = str(arguments.get("url", "")).partition("://")
    if "@" in rest.partition("?")[2]:
        return f"{scheme}://..."  # nobody knows which "?" begins the query
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"


def is_loopback(host: str) -> bool:
    """Whether a host, or a URL, is this host alone."""
    name = host.rpartition("://")[2].rpartition("@")[2].lower()
    return name.startswith("/") or _LOOPBACK.match(name) is not None


def home_of(app: Any) -> str:
    """Say where the app's locks and ticks live: the store, and the prefix of its keys. Raises ConfigurationError."""
    options, locks = AppOptions.read(app.conf), LockOptions.read(app.conf, {}, owner="the app")
    arguments = options.connection(locks.driver, locks.connection)
    place = place_of(arguments)
    if arguments is None:
        home = home_store_of(app)
        place = f"the memory store of this host, {home.place if isinstance(home, MemoryStore) else ''}"
    return f"{place}, under {options.key_prefix!r}"


def lock_options_of(app: Any) -> Iterator[tuple[str, LockOptions | None]]:
    """Yield each task's name and the options of its lock, None where it has none. Raises ConfigurationError."""
    for name, task in sorted(app.tasks.items()):
        options = LockPlan(type(task), app).options if isinstance(task, LockedTask) else None
        yield name, options if options is not None and options.enabled else None


def locks_of_tasks(app: Any) -> dict[str, str]:
    """Say for each task what its lock is: what must be equal wherever it runs. Raises ConfigurationError."""
    options, default = AppOptions.read(app.conf), LockOptions.read(app.conf, {}, owner="the app")
    home = options.connection(default.driver, default.connection)
    described = {}
    for name, lock in lock_options_of(app):
        if name.startswith("celery."):
            continue
        if lock is None:
            described[name] = "no lock"
            continue
        where = options.connection(lock.driver, lock.connection)
        # one server may have many names; members that are heard of in the same store call it alike
        place = "the app's store" if where == home else place_of(where)
        described[name] = f"lock_key {_key_of(lock.key, name)} in {place}"
    return described


def _key_of(key: Any, name: str) -> str:
    if callable(key):
        return f"by {getattr(key, '__module__', '?')}.{getattr(key, '__qualname__', type(key).__qualname__)}"
    return ascii(name if key is None else sorted(key) if isinstance(key, tuple) else key)


def digest_of(mapping: Mapping[str, str]) -> str:
    """Return a short text that is the same for equal mappings, in all processes."""
    import hashlib  # noqa: PLC0415  it costs a start, and not all need it

    text = json.dumps(mapping, sort_keys=True, separators=(",", ":"))
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:16]


def meeting_store_of(app: Any) -> Store | None:
    """Return where members with different stores or prefixes find each other; None: there is no such place.

    It is the Redis that Celery itself uses, which they must share to share their work, else that of the locks; the prefix is
    always the same.
    """
    options = AppOptions.read(app.conf)
    celerys = AppOptions.of_celery(app.conf)
    chosen = options if celerys.redis_url in (None, options.redis_url) else celerys
    if chosen.redis_url is None:
        return None
    with contextlib.suppress(ConfigurationError):  # of a Redis that is not the locks', and may be used in other ways
        return open_store(celerys, chosen.connection("redis", "default"))
    return None


def work_of(app: Any) -> str:
    """Return a digest of the broker and queue that members who share their work have in common; "" if it is not known."""
    try:
        connection = app.connection_for_write()
        broker = [connection.transport_cls, connection.hostname, connection.port, connection.virtual_host]
    except Exception:  # noqa: BLE001  a transport's own
        return ""
    return digest_of({"broker": str(broker), "queue": str(app.conf.task_default_queue)})

"""A beat or a worker as a member of its app: what it says at its start, what it announces, and the file of its health.

Promises: each start names the store in one line, and warns where that keeps locks on this host only while others may share
the broker; a member that lives is heard of by the store every few seconds, and touches ``lockbeat_health_file`` every second,
also when it has nothing to do; one that is stopped, frozen or dead does neither. No round trip is made for a run or a tick,
and what cannot be announced stops nothing.

Not promised: that its pool works or its broker answers; a probe that ends workers for a broker that is away ends their runs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from celery import signals
from celery.utils import uuid

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import ConfigurationError, LockbeatError
from celery_lockbeat.options import AppOptions, LockOptions
from celery_lockbeat.stores import Store, open_store, stores_of
from celery_lockbeat.tasks.task import LockedTask, _Plan

__all__ = [
    "HEARD_EVERY",
    "REMEMBERED",
    "HealthFile",
    "Member",
    "digest_of",
    "home_of",
    "home_store_of",
    "locks_of_tasks",
    "meeting_store_of",
    "place_of",
    "say_what_is_set",
    "work_of",
]

logger: Final = logging.getLogger("celery_lockbeat")

#: Seconds between two announcements of a member, and for which one that fell silent is remembered.
HEARD_EVERY: Final = 5.0
REMEMBERED: Final = 600.0

#: Seconds after which what members have announced once is announced again, and for which it is kept.
KEPT_EVERY: Final = 3600.0
KEPT: Final = 3 * KEPT_EVERY

#: The same for what is announced to those with other settings.
MET_EVERY: Final = 60.0
MET: Final = 3 * MET_EVERY

#: Seconds between two touches of the file.
TOUCHED_EVERY: Final = 1.0

#: A longer lease is most often one of milliseconds.
LONG_LEASE: Final = 3600.0

#: So many names are told of a longer list.
NAMES_AT_MOST: Final = 5

#: What kombu calls the transports whose messages stay on this host, and those that are elsewhere though their URL names no host.
OF_ONE_HOST: Final = ("memory", "filesystem")
OF_A_CLOUD: Final = ("sqs", "gcpubsub", "azureservicebus", "azurestoragequeues", "kafka", "slmq")


# -- what it says at its start -----------------------------------------------------------------------------------------


def say_what_is_set(app: Any, what: str) -> None:
    """Tell in one line where ``what`` lives, and what of it may be a mistake in one more each. Raises ConfigurationError."""
    options, locks = AppOptions.read(app.conf), LockOptions.read(app.conf, {}, owner="the app")
    logger.info("%s live in %s", what, home_of(app))
    if options.connection(locks.driver, locks.connection) is None:
        broker = _reachable_broker(app)
        if broker is not None:
            said = (
                "%s live on this host only (lockbeat_driver is %r, and no Redis is configured), while other hosts can reach the broker, %s:"
                " each host with a beat sends every tick, and runs exclude each other on one host only. Set lockbeat_redis_url, or"
                " lockbeat_driver='database' with Django, unless all beats and workers are on this host"
                if locks.driver == "auto"
                else "%s live on this host only (lockbeat_driver is %r), while other hosts can reach the broker, %s: each host"
                " with a beat sends every tick, and runs exclude each other on one host only. Set lockbeat_driver='redis' and"
                " lockbeat_redis_url, unless all beats and workers are on this host"
            )
            logger.warning(options.spell(said), what, locks.driver, broker)
    long = [(name, ttl) for name, ttl in _leases(app) if ttl > LONG_LEASE]
    if long:
        name, ttl = max(long, key=lambda pair: pair[1])
        told = f"{name} and {len(long) - 1} more" if len(long) > 1 else name
        logger.warning(
            "lock_ttl of %s is %s s, more than an hour: seconds are meant, not milliseconds. A lease is renewed while its run"
            " goes on, so it need not be as long as a run; but when a host dies, its locks are held for so long",
            *(told, f"{ttl:.15g}"),
        )


def _leases(app: Any) -> Iterator[tuple[str, float]]:
    for name, task in sorted(app.tasks.items()):
        options = _options_of(task, app)
        if options is not None:
            yield f"task {name}", options.ttl


def _reachable_broker(app: Any) -> str | None:
    """Name the broker, without credentials, where other hosts can reach it; None: they cannot, or nobody knows."""
    try:
        connection = app.connection_for_write()
        kind, scheme = str(connection.transport.driver_type).lower(), str(connection.transport_cls)
    except Exception:  # noqa: BLE001  a transport's own
        return None
    host = str(connection.hostname or "")
    if kind in OF_ONE_HOST or "sqlite" in scheme or _is_loopback(host) or (not host and kind not in OF_A_CLOUD):
        return None
    return f"{scheme}://{host}" if host else scheme


def _is_loopback(host: str) -> bool:
    name = host.rpartition("://")[2].rpartition("@")[2].lower()
    return name.startswith("/") or bool(re.match(r"(localhost|127\.[\d.]+|\[?::1\]?|0\.0\.0\.0)([:/;,]|$)", name))


# -- what it is, in short ----------------------------------------------------------------------------------------------


def place_of(arguments: Mapping[str, Any] | None) -> str:
    """Name a store by its connection's arguments, without credentials."""
    if arguments is None:
        return "memory"
    if "alias" in arguments:
        return f"the database {arguments['alias']!r} of Django"
    scheme, _, rest = str(arguments.get("url", "")).partition("://")
    if "@" in rest.partition("?")[2]:
        return f"{scheme}://..."  # which "?" begins the query cannot be told
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"


def home_of(app: Any) -> str:
    """Say where the app's locks and ticks live: the store, and the prefix of its keys. Raises ConfigurationError."""
    options, locks = AppOptions.read(app.conf), LockOptions.read(app.conf, {}, owner="the app")
    arguments = options.connection(locks.driver, locks.connection)
    place = place_of(arguments)
    if arguments is None:
        place = f"the memory store of this host, {getattr(home_store_of(app), '_path', '')}"
    return f"{place}, under {options.key_prefix!r}"


def home_store_of(app: Any) -> Store:
    """Return the store of the beats, and of the tasks that name no other. Raises ConfigurationError."""
    locks = LockOptions.read(app.conf, {}, owner="the app")
    return stores_of(app).choose(locks.driver, locks.connection)[0]


def locks_of_tasks(app: Any) -> dict[str, str]:
    """Say for each task what its lock is: what must be equal wherever it runs. Raises ConfigurationError."""
    options, default = AppOptions.read(app.conf), LockOptions.read(app.conf, {}, owner="the app")
    home = options.connection(default.driver, default.connection)
    told = {}
    for name, task in sorted(app.tasks.items()):
        if name.startswith("celery."):
            continue
        lock = _options_of(task, app)
        if lock is None:
            told[name] = "no lock"
            continue
        where = options.connection(lock.driver, lock.connection)
        # one server has many names: who is heard of in the same store has the same
        place = "the app's store" if where == home else place_of(where)
        told[name] = f"lock_key {_key_of(lock.key, name)} in {place}"
    return told


def _options_of(task: Any, app: Any) -> LockOptions | None:
    options = _Plan(type(task), app).options if isinstance(task, LockedTask) else None
    return options if options is not None and options.enabled else None


def _key_of(key: Any, name: str) -> str:
    if callable(key):
        return f"by {getattr(key, '__module__', '?')}.{getattr(key, '__qualname__', type(key).__qualname__)}"
    return ascii(name if key is None else key)


def digest_of(told: Mapping[str, str]) -> str:
    """Tell one mapping from another."""
    import hashlib  # noqa: PLC0415  it costs a start, and not all need it

    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:16]


# -- where those with other settings look -----------------------------------------------------------------------------


def meeting_store_of(app: Any) -> Store | None:
    """Return where members of an app find each other whatever store and prefix they are given, as far as there is such a place.

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
    """Tell the broker and queue that members who share their work have in common; "" if it cannot be told."""
    try:
        connection = app.connection_for_write()
        broker = [connection.transport_cls, connection.hostname, connection.port, connection.virtual_host]
    except Exception:  # noqa: BLE001  a transport's own
        return ""
    return digest_of({"broker": str(broker), "queue": str(app.conf.task_default_queue)})


class Member:
    """One beat or worker, as the others of its app know it.

    ``name`` is its own among all; ``kind`` is "beat" or "worker". What is announced is JSON: ``kind``, ``host``, ``pid``,
    ``version``, ``home`` (the store and its prefix), ``tasks`` (the digest of :func:`locks_of_tasks`), and what is ``more``.
    """

    def __init__(
        self, app: Any, kind: str, name: str | None = None, *, clock: Callable[[], float] = monotonic, **more: Any
    ) -> None:
        self.name = name or f"{socket.gethostname()}-{os.getpid()}-{uuid()[:8]}"
        self.more = more
        self._clock = clock
        self._app_name = str(app.main or "")
        self._tasks = locks_of_tasks(app)
        self._told = {
            "kind": kind,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": version("celery-lockbeat"),
            "home": home_of(app),
            "tasks": digest_of(self._tasks),
            "work": work_of(app),
        }
        self._kept_at: float | None = None
        self._meeting = meeting_store_of(app)
        self._met_at: float | None = None

    def announce(self, store: Store) -> None:
        """Be heard of. Raises StoreUnavailable."""
        now = self._clock()
        if self._kept_at is None or now - self._kept_at > KEPT_EVERY:
            tasks = {str(self._told["tasks"]): json.dumps(self._tasks, separators=(",", ":"))}
            store.announce(self._app_name, "tasks", tasks, ttl=KEPT)
            self._kept_at = now
        told = json.dumps({**self._told, **self.more}, separators=(",", ":"))
        store.announce(self._app_name, "member", {self.name: told}, ttl=REMEMBERED)
        if self._meeting is not None and (self._met_at is None or now - self._met_at > MET_EVERY):
            self._met_at = now
            try:
                self._meeting.announce(self._app_name, "home", {self.name: told}, ttl=MET)
            except LockbeatError as exc:
                # another server, or a user who may not write there: it is but for those with other settings
                logger.debug("a %s cannot be announced to those with other settings: %s", self._told["kind"], exc)

    def begin_anew(self) -> None:
        """Announce everything again: the store has forgotten it."""
        self._kept_at = None

    def withdraw(self, store: Store) -> None:
        """Be heard of no more: it has not died, it has ended. Raises StoreUnavailable."""
        store.announce(self._app_name, "member", {self.name: "{}"}, ttl=0)
        if self._meeting is not None:
            with contextlib.suppress(LockbeatError):
                self._meeting.announce(self._app_name, "home", {self.name: "{}"}, ttl=0)
            self._meeting.close()


# -- the file ----------------------------------------------------------------------------------------------------------


class HealthFile:
    """``lockbeat_health_file`` of one process, if it is set: its time of change is when the process was well last.

    Raises ConfigurationError where it cannot be written when it is made; later that is a warning, once.
    """

    def __init__(self, app: Any, kind: str) -> None:
        options = AppOptions.read(app.conf)
        template = options.health_file
        path = template and template.format(kind=kind, host=socket.gethostname(), pid=os.getpid())
        self._path: Final = Path(path) if path else None
        self._setting: Final = options.spell("lockbeat_health_file")
        self._next = 0.0
        self._complained = False
        if self._path is not None:
            try:
                self._touch(self._path)
            except OSError as exc:
                allowed = "the path of a file that can be written, its directory is there"
                raise ConfigurationError(f"{self._setting} is {template!r} ({exc}); allowed: {allowed}") from exc

    def touch(self) -> None:
        """Say that this process is well; at most once a second."""
        if self._path is None or monotonic() < self._next:
            return
        self._next = monotonic() + TOUCHED_EVERY * 0.9
        try:
            self._touch(self._path)
        except OSError as exc:
            if not self._complained:
                logger.warning("%s %s cannot be touched: %s", self._setting, self._path, exc)
            self._complained = True
        else:
            self._complained = False

    @staticmethod
    def _touch(path: Path) -> None:
        try:
            os.utime(path)
        except FileNotFoundError:
            path.touch()


# -- a worker ----------------------------------------------------------------------------------------------------------


class _Worker:
    """What a worker does about its health, in a thread of its own: no other is there in all pools, whatever they run."""

    def __init__(self, app: Any, node: str) -> None:
        self._app = app
        self._pid: Final = os.getpid()
        self._file = HealthFile(app, "worker")
        self._member = Member(app, "worker", node=node)
        self._ends = threading.Event()
        self._next = 0.0
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="lockbeat-member", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                self._look()
            except Exception:  # whatever it was, the next look comes
                if not self._failed:
                    logger.exception("a worker cannot tell that it is well")
                self._failed = True
            else:
                self._failed = False
            if self._ends.wait(TOUCHED_EVERY):
                return

    def _look(self) -> None:
        self._file.touch()
        now = monotonic()
        if now < self._next:
            return
        self._next = now + HEARD_EVERY
        try:
            self._member.announce(home_store_of(self._app))
        except LockbeatError as exc:
            # it is told by whoever needs the store for a lock
            self._member.begin_anew()
            logger.debug("a worker cannot be announced: %s", exc)

    def end(self) -> None:
        self._ends.set()
        if os.getpid() != self._pid:
            return
        self._thread.join(timeout=5.0)
        try:
            self._member.withdraw(home_store_of(self._app))
        except LockbeatError as exc:
            logger.debug("a worker leaves without a word: %s", exc)


_worker: _Worker | None = None


@signals.celeryd_after_setup.connect  # type: ignore[untyped-decorator]
def _say_what_is_set(instance: Any, **_: Any) -> None:
    try:
        say_what_is_set(instance.app, "locks")
        HealthFile(instance.app, "worker")
    except ConfigurationError as exc:
        # Celery swallows all but what ends the process
        raise SystemExit(str(exc)) from exc


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def _be_a_member(sender: Any, **_: Any) -> None:
    global _worker  # noqa: PLW0603  the one that this process is
    _leave()
    _worker = _Worker(sender.app, str(getattr(sender, "hostname", "")))


@signals.worker_shutdown.connect  # type: ignore[untyped-decorator]
def _leave(**_: Any) -> None:
    global _worker
    worker, _worker = _worker, None
    if worker is not None:
        worker.end()


def _forget_the_parents() -> None:
    global _worker  # noqa: PLW0603  as above
    _worker = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents)

"""What one would otherwise learn at 3 a.m.: the facts are gathered once, and judged by functions of them alone.

Promises: nothing is changed, but for a key of a second that nobody else uses; a store that does not answer is a finding, in
the time that its options give it; no password is in what is told. The kinds of findings are one table, ``KINDS``, which
docs/how-to/doctor.md repeats.

Not promised: that all is well where nothing is found. It sees the settings of one process, and one moment of the servers.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from itertools import combinations, permutations
from statistics import median
from typing import Any, Final
from urllib.parse import unquote

from celery_lockbeat.beat.announcements import definitions_of, differing, groups_of, named
from celery_lockbeat.beat.entries import Entries, entries_of, is_ours, names_of, plain_redbeat
from celery_lockbeat.beat.scheduler import SKEW, LockedScheduler
from celery_lockbeat.exceptions import ConfigurationError, StoreRefused, StoreUnavailable
from celery_lockbeat.membership.identity import home_of, locks_of_tasks, meeting_store_of, work_of
from celery_lockbeat.membership.members import fields_of
from celery_lockbeat.membership.startup import LONG_LEASE
from celery_lockbeat.options import DELIVERS_AGAIN, AppOptions, LockOptions, written
from celery_lockbeat.stores import Store, stores_of
from celery_lockbeat.stores.base import ALIVE, Beats, Replica
from celery_lockbeat.stores.redis.store import RedisStore, ServerFacts
from celery_lockbeat.tasks.plan import LockPlan
from celery_lockbeat.tasks.task import LockedTask

__all__ = ["KINDS", "LEVELS", "Facts", "Finding", "Kind", "examine", "gather", "name_of", "redactor", "stores_in_use"]

#: The oldest Redis that has all that the scripts use.
OLDEST: Final = (6, 2)

#: A round trip is slow when so many of them do not fit into the time that a renewal has.
ROUND_TRIPS_TO_SPARE: Final = 10

#: Celery adds it to each schedule.
CLEANUP: Final = "celery.backend_cleanup"

#: Seconds after which a member that has announced itself and fell silent is not asked any more whether it agrees.
GONE: Final = 30.0

#: This part of its maxmemory a server may well need for finished runs.
REMEMBERED_PART: Final = 10

#: So many names are told of a longer list.
NAMES_AT_MOST: Final = 5


# -- what can be found -------------------------------------------------------------------------------------------------


#: The worst first.
LEVELS: Final = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Kind:
    """One thing that can be found: how bad it is, why it matters, and what to do."""

    name: str
    level: str
    why: str
    do: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A kind, what it was found about, and what was found."""

    kind: Kind
    about: str
    what: str


_ALL_KINDS: Final = (
    # -- the settings and the store
    Kind(
        "settings",
        "error",
        "Workers and beats of this app do not start, or fail at their first run.",
        "Set it to what is allowed.",
    ),
    Kind(
        "app-not-loaded",
        "error",
        "Its tasks and entries are not known, so they were not checked.",
        "Make the modules of the tasks importable from here.",
    ),
    Kind(
        "store-unreachable",
        "error",
        "Beats publish nothing, and locked runs fail with StoreUnavailable or, with lock_driver auto, lock on their own host"
        " only.",
        "Start the server, or correct lockbeat_redis_url and lockbeat_redis_options.",
    ),
    Kind(
        "store-refuses",
        "error",
        "Workers and beats do not start, and what runs already fails with StoreRefused; nothing falls back from a server that is there.",
        "Correct the user, the password, the database and the scheme in lockbeat_redis_url, and lockbeat_redis_options.",
    ),
    Kind(
        "database-unreachable",
        "error",
        "Beats publish nothing, and locked runs fail with StoreUnavailable.",
        "Start the database, correct DATABASES in Django's settings, or run 'manage.py migrate lockbeat'.",
    ),
    Kind(
        "memory-unusable",
        "error",
        "Beats publish nothing, and locked runs fail.",
        "Let lockbeat_memory_path be a directory on a local disk that is this user's alone (mode 0700), with room in it.",
    ),
    Kind(
        "version",
        "error",
        "The scripts use commands that came with Redis 6.2.",
        "Use Redis 6.2 or newer, or Valkey.",
    ),
    Kind(
        "permissions",
        "error",
        "What needs these commands fails with StoreUnavailable, some of it only in rare cases, such as a take-over.",
        "Grant them to the user of the URL with ACL SETUSER, on the keys that start with lockbeat_key_prefix.",
    ),
    Kind(
        "writes-refused",
        "error",
        "No lock can be taken and no tick be claimed.",
        "Look up the server's words: it is out of memory, cannot save, is a replica, or part of a cluster that is down.",
    ),
    Kind(
        "replica",
        "error",
        "A replica is read-only: no lock can be taken there.",
        "Let the URL name the primary, or the Sentinels that know it.",
    ),
    Kind(
        "sentinel",
        "error",
        "A Sentinel knows where the primary is; it keeps no data.",
        "Let the URL name the server that keeps the data.",
    ),
    Kind(
        "cluster",
        "error",
        "Each lock lives on the node of its key; the client asks this node only and fails for the others' keys.",
        "Use a client for clusters, or a server that is none.",
    ),
    Kind(
        "min-replicas",
        "error",
        "No lock counts before so many replicas have it: nothing can run.",
        "Connect the replicas, or lower lockbeat_redis_min_replicas.",
    ),
    Kind(
        "failover",
        "warning",
        "A replica that takes over may not have received the newest locks and claims: two runs of one key, or a tick twice.",
        "Set lockbeat_redis_min_replicas to 1, and guard writes that must never collide with the fencing token.",
    ),
    Kind(
        "eviction",
        "error",
        "A full server deletes keys: with a lock, so that a second run starts beside the first, or with the state of entries.",
        "Set maxmemory-policy to noeviction, or give the locks a server of their own.",
    ),
    Kind(
        "eviction-policy",
        "warning",
        "As soon as maxmemory is set, a full server deletes locks and the state of entries.",
        "Set maxmemory-policy to noeviction.",
    ),
    Kind(
        "remembers-much",
        "warning",
        "What is remembered of finished runs grows with their number; at maxmemory no lock can be taken any more.",
        "Raise maxmemory, or lower lock_dedupe_ttl, but not below the time after which the broker delivers again.",
    ),
    Kind(
        "saving-fails",
        "error",
        "The server may refuse writes at any time, and comes back from a restart without its newest locks.",
        "See its log: mostly the disk is full, or its directory not writable.",
    ),
    Kind(
        "persistence",
        "warning",
        "After a restart all locks are free while their runs go on, finished runs are forgotten, and entries begin anew.",
        "Set appendonly to yes.",
    ),
    Kind(
        "snapshots-only",
        "note",
        "A crash loses the locks, finished runs and ticks since the last snapshot.",
        "Set appendonly to yes.",
    ),
    Kind(
        "unencrypted",
        "warning",
        "Whoever sees the traffic reads the password, and can change locks on their way.",
        "Use rediss://, unless the network is your own.",
    ),
    Kind(
        "unverified",
        "warning",
        "Whoever can redirect the traffic can be the server.",
        "Set ssl_cert_reqs to required, with ssl_ca_certs where the CA is your own.",
    ),
    Kind(
        "no-password",
        "warning",
        "Whoever reaches the server can free locks and change ticks.",
        "Set a password, best with an ACL user of its own, in the URL.",
    ),
    Kind(
        "clock-skew",
        "warning",
        "Crontabs are due by this host's clock: they fire as much too early or too late. Locks do not care.",
        "Synchronise both clocks (NTP).",
    ),
    Kind(
        "too-slow",
        "error",
        "A lock is lost before its renewal arrives.",
        "Raise lock_ttl (and lockbeat_claim_ttl), or move the server nearer.",
    ),
    Kind(
        "slow",
        "warning",
        "A few slow answers in a row lose a lock.",
        "Raise lock_ttl (and lockbeat_claim_ttl), or move the server nearer.",
    ),
    Kind(
        "one-host",
        "warning",
        "A run excludes others on its own host only; workers on other hosts share the broker, but not the locks.",
        "Set lockbeat_redis_url, unless all workers and beats are on one host.",
    ),
    Kind(
        "fallback",
        "note",
        "While Redis is out of reach, these tasks exclude on their own host only (driver_fallback in the log).",
        'Set lock_driver="redis" where a run must rather fail than run twice.',
    ),
    Kind(
        "unchecked",
        "note",
        "Something may be wrong there that this command would find.",
        "Run it as a user who may do this, once.",
    ),
    # -- the tasks and the broker
    Kind(
        "visibility-timeout",
        "warning",
        "The broker delivers the message of a long run again while it goes on: a LockedTask postpones the copy over and over,"
        " another task runs beside itself.",
        "Raise visibility_timeout in broker_transport_options (RabbitMQ: consumer_timeout) above the longest run, or set a"
        " time_limit below it.",
    ),
    Kind(
        "unbounded-run",
        "note",
        "A run that takes longer than that gets its message again while it goes on; its copies are postponed until it ends.",
        "Set a time_limit.",
    ),
    Kind(
        "forgets-copies",
        "warning",
        "A copy that comes after its run has been forgotten runs again: a worker that dies right after a run leaves such one.",
        "Set lock_dedupe_ttl, or lockbeat_dedupe_ttl, to more than the visibility timeout, or not at all: it follows by itself.",
    ),
    Kind(
        "acks-late",
        "warning",
        "When a pool child dies (out of memory, say), Celery acknowledges the message all the same: the run is lost.",
        "Set task_reject_on_worker_lost too.",
    ),
    Kind(
        "reject-without-acks-late",
        "warning",
        "The message is acknowledged before the run: there is nothing left to reject, and a run whose worker dies is lost.",
        "Set acks_late too.",
    ),
    Kind(
        "acks-early",
        "note",
        "The message is acknowledged before the run: a tick whose worker dies is not run again.",
        "Set acks_late and reject_on_worker_lost where each tick must come to its end.",
    ),
    Kind(
        "outlives-lease",
        "warning",
        "The lock is not renewed: a run that takes longer than its lock_ttl goes on without it, and another may begin.",
        "Set lock_auto_extend, or a time_limit below lock_ttl.",
    ),
    Kind(
        "long-lease",
        "warning",
        "When a host dies, its locks are held for so long. Most often it is a time in milliseconds.",
        "Give seconds. A lease is renewed while its run goes on: it need not be as long as a run.",
    ),
    Kind(
        "unlocked-task",
        "note",
        "A tick is published at least once: only a LockedTask tells the copies.",
        "Set base=LockedTask, or let the task bear to run twice.",
    ),
    # -- the beats
    Kind(
        "unknown-task",
        "error",
        "Each of its ticks is sent, and refused by every worker of this app.",
        "Correct the name, or add its module to imports. Where another app's workers run it: --ignore unknown-task.",
    ),
    Kind(
        "broken-entry",
        "error",
        "Every beat skips it.",
        "Correct or delete it, where it is kept.",
    ),
    Kind(
        "no-beat",
        "error",
        "Nothing of the schedule is published.",
        "Start one, or more; see their logs. Where this is asked before they are started: --ignore no-beat.",
    ),
    Kind(
        "definitions-differ",
        "error",
        "Who has an older definition leaves the entry to those with the newer one: of two apps that share a name and a store one"
        " is never served.",
        'Finish the release; or give each app a name of its own, Celery("shop"), or a lockbeat_key_prefix of its own.',
    ),
    Kind(
        "locks-differ",
        "error",
        "Runs of the same task under different keys, or in different stores, do not exclude each other.",
        "Finish the release, or give all workers the same settings; see docs/how-to/rolling-updates.md.",
    ),
    Kind(
        "homes-differ",
        "error",
        "Beats and workers of one app that keep their locks and ticks in different places do not see each other: ticks are"
        " doubled, and runs overlap.",
        "Finish the release, or give all beats and workers the same settings; see docs/how-to/rolling-updates.md.",
    ),
    Kind(
        "app-name",
        "warning",
        "Beats keep their state by the name of the app: all apps without one that share a store mix up their schedules.",
        'Give it a name of its own: Celery("shop").',
    ),
    Kind(
        "shared-app",
        "error",
        "Beats of two apps that share a name and a store count each other as replicas: they mix up entries of one name, and"
        " leave each other's claims lying.",
        'Give each app a name of its own, Celery("shop"), or a lockbeat_key_prefix of its own.',
    ),
    Kind(
        "lists-differ",
        "warning",
        "Either a release is under way, which is fine, or beats of two apps share a name and a store.",
        "Look again after the release; then give each app a name of its own.",
    ),
    Kind(
        "plain-redbeat",
        "error",
        "A plain RedBeat knows nothing of claims: each tick is sent by it and by one of ours.",
        "Stop it. The lock of one that was killed ends by itself, after redbeat_lock_timeout.",
    ),
    Kind(
        "plain-beat",
        "warning",
        "Celery's own beat knows no replicas: two send everything twice, and the only one is missed when it dies.",
        'Set beat_scheduler = "celery_lockbeat:LockedScheduler", or start beats with -S lockbeat.',
    ),
)

KINDS: Final[Mapping[str, Kind]] = {kind.name: kind for kind in _ALL_KINDS}


# -- facts -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreFacts:
    """A store that locks or beats use. ``patience`` is the least time that anything in it has for one answer.

    ``trouble`` is why it did not answer, or what it answered if it ``refuses`` us; ``servers`` are several in a Cluster, and none where there is no server. The other
    fields are of its URL.
    """

    name: str
    driver: str
    patience: float
    trouble: str | None = None
    refuses: bool = False
    servers: tuple[ServerFacts, ...] = ()
    min_replicas: int = 0
    remote: bool = False
    encrypted: bool = False
    verified: bool = True
    password: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFacts:
    """A task of the app; ``lock`` is None where it runs without one. ``time_limit``: its longest run, None: none is set."""

    name: str
    lock: LockOptions | None = None
    falls_back: bool = False
    acks_late: bool = False
    survives_its_worker: bool = False
    time_limit: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberFacts:
    """A beat or a worker, as it has announced itself: the locks of its tasks and, of a beat, the definitions of its entries.

    ``elsewhere``: it is not heard of in the store of this app, but shares its work.
    """

    name: str
    kind: str
    silent_for: float = 0.0
    home: str = ""
    locks: Mapping[str, str] = field(default_factory=dict)
    definitions: Mapping[str, str] = field(default_factory=dict)
    elsewhere: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """All that is judged. ``entries`` are names of entries with their tasks', ``beats`` None where nobody could be asked.

    ``broken`` are entries that are none, and why; ``locks`` and ``home`` are this app's as ``members`` tell theirs; ``newest``
    has the newest definition of each entry of which there are several. ``plain_redbeat`` tells of RedBeat's own lock, if one
    of the schedulers is over RedBeat and somebody holds it.
    """

    app: str
    wrong_settings: tuple[str, ...] = ()
    not_loaded: str | None = None
    stores: tuple[StoreFacts, ...] = ()
    tasks: tuple[TaskFacts, ...] = ()
    entries: Mapping[str, str] = field(default_factory=dict)
    broker: str = "memory"
    delivers_again: float | None = None
    plain_redbeat: str | None = None
    locked_beat: bool = True
    beats: Beats | None = None
    beats_trouble: str | None = None
    broken: Mapping[str, str] = field(default_factory=dict)
    entries_trouble: str | None = None
    members: tuple[MemberFacts, ...] = ()
    locks: Mapping[str, str] = field(default_factory=dict)
    home: str = ""
    newest: Mapping[str, str] = field(default_factory=dict)


def gather(app: Any) -> Facts:
    """Look at the app's settings and tasks, and ask its stores."""
    wrong: list[str] = []
    not_loaded: str | None = None
    tasks: list[TaskFacts] = []
    entries = Entries()
    try:
        tell = redactor(app)
    except Exception as exc:  # noqa: BLE001  it is read now: whatever a user's module raises
        return Facts(app=name_of(app), not_loaded=f"{type(exc).__name__}: {exc}")
    try:
        app.loader.import_default_modules()
        app.finalize()
        tasks = [_task_facts(app, task) for _, task in sorted(app.tasks.items())]
        entries = Entries({name: entry.task for name, entry in sorted(LockedScheduler(app).data.items())})
    except ConfigurationError as exc:
        wrong.append(tell(exc))
    except Exception as exc:  # noqa: BLE001  whatever a user's modules raise
        not_loaded = tell(f"{type(exc).__name__}: {exc}")
    broker, delivers_again = _broker_of(app)
    stores: list[StoreFacts] = []
    beats, beats_trouble = None, None
    members: list[MemberFacts] = []
    newest: dict[str, str] = {}
    plain: str | None = None
    entries_trouble: str | None = None
    locks: dict[str, str] = {}
    home = ""
    if not wrong and not_loaded is None:
        try:
            entries = entries_of(app)
            locks = locks_of_tasks(app)
        except Exception as exc:  # noqa: BLE001  whatever a library, or what it is kept in, says
            entries_trouble = tell(exc)
    try:
        options = AppOptions.read(app.conf)
        default = LockOptions.read(app.conf, {}, owner="the app")
        used = _patience_by_store(app, options, default, tasks)
    except ConfigurationError as exc:
        wrong.append(tell(exc))
    else:
        stores = [_store_facts(app, store, url, options, patience, tell) for store, url, patience in used]
        home = home_of(app)
        if stores[0].trouble is None:  # the first is that of the beats
            try:
                beats = _named_beats(app, used[0][0])
                members, newest = _members(app, used[0][0])
                plain = plain_redbeat(app, announced_schedulers(app, used[0][0]))
            except (StoreUnavailable, ConfigurationError) as exc:
                beats_trouble = tell(exc)
    return Facts(
        app=name_of(app),
        wrong_settings=tuple(dict.fromkeys(wrong)),
        not_loaded=not_loaded,
        plain_redbeat=plain,
        stores=tuple(stores),
        tasks=tuple(tasks),
        entries=entries.tasks,
        broken=entries.broken,
        entries_trouble=entries_trouble,
        broker=broker,
        delivers_again=delivers_again,
        locked_beat=is_ours(app),
        beats=beats,
        beats_trouble=beats_trouble,
        members=tuple(members),
        locks=locks,
        home=home,
        newest=newest,
    )


def _named_beats(app: Any, store: Store) -> Beats:
    """Return the beats, and what they list by the names that users know."""
    beats = store.beats(name_of(app))
    names = names_of(app, {key for beat in beats.replicas for key in beat.entries}, announced_schedulers(app, store))
    return replace(
        beats,
        replicas=[replace(beat, entries=frozenset(names[key] for key in beat.entries)) for beat in beats.replicas],
    )


def announced_schedulers(app: Any, store: Store) -> list[str]:
    """Return the names of the scheduler classes that beats have announced. Raises StoreUnavailable."""
    told = [fields_of(member) for member in store.announced(name_of(app), "member")]
    return sorted({str(each["scheduler"]) for each in told if "scheduler" in each})


def _members(app: Any, store: Store) -> tuple[list[MemberFacts], dict[str, str]]:
    """Return who has announced itself, and the newest definition of each entry of which there are several."""
    name = name_of(app)
    announced = store.announced(name, "member")
    groups = groups_of(store, name, announced)
    definitions = {beat: group.definitions for group in groups.values() for beat in group.beats}
    locks = {each.name: fields_of(each) for each in store.announced(name, "tasks")}
    members = []
    for each in announced:
        told = fields_of(each)
        members.append(
            MemberFacts(
                name=each.name,
                kind=str(told.get("kind")),
                silent_for=each.silent_for,
                home=str(told.get("home")),
                locks=locks.get(str(told.get("tasks")), {}),
                definitions=definitions.get(each.name, {}),
            )
        )
    several = {
        (key, one.definitions[key])
        for one, other in permutations(groups.values(), 2)
        for key in differing(one.definitions, other.definitions)
    }
    first = definitions_of(store, name, [named(*pair) for pair in several]) if several else {}
    newest = dict(sorted(several, key=lambda pair: (first.get(named(*pair), 0.0), pair[1])))
    return [*members, *_elsewhere(app, {each.name for each in announced})], newest


def _elsewhere(app: Any, known: AbstractSet[str]) -> list[MemberFacts]:
    """Return who shares the work of this app without being heard of in its store, as far as there is a place to look."""
    store, work = meeting_store_of(app), work_of(app)
    if store is None:
        return []
    try:
        announced = [
            (each, fields_of(each)) for each in store.announced(name_of(app), "home") if each.name not in known
        ]
    except StoreUnavailable:
        return []
    finally:
        store.close()
    return [
        MemberFacts(name=each.name, kind=str(told.get("kind")), home=str(told.get("home")), elsewhere=True)
        for each, told in announced
        if work and told.get("work") == work
    ]


def stores_in_use(app: Any) -> list[tuple[str, Store]]:
    """Return each store that locks of the app are in, with what to call it, that of the beats first. Raises ConfigurationError."""
    app.loader.import_default_modules()
    app.finalize()
    options, default = AppOptions.read(app.conf), LockOptions.read(app.conf, {}, owner="the app")
    tasks = [_task_facts(app, task) for _, task in sorted(app.tasks.items())]
    return [(_named(store, told), store) for store, told, _ in _patience_by_store(app, options, default, tasks)]


def name_of(app: Any) -> str:
    """Return the name by which beats know the app."""
    return str(app.main or "")


def _task_facts(app: Any, task: Any) -> TaskFacts:
    options = LockPlan(task, app).options if isinstance(task, LockedTask) else None
    limits = (task.time_limit, app.conf.task_time_limit, task.soft_time_limit, app.conf.task_soft_time_limit)
    lock = options if options is not None and options.enabled else None
    return TaskFacts(
        name=task.name,
        lock=lock,
        falls_back=lock is not None and stores_of(app).choose(lock.driver, lock.connection)[1] is not None,
        acks_late=bool(task.acks_late),
        survives_its_worker=bool(task.reject_on_worker_lost or getattr(task, "retry_on_worker_lost", False)),
        time_limit=next((limit for limit in limits if limit), None),
    )


def _patience_by_store(
    app: Any, options: AppOptions, default: LockOptions, tasks: Iterable[TaskFacts]
) -> list[tuple[Store, Mapping[str, Any] | None, float]]:
    """Tell each store once, with its arguments and the least time that anything has for an answer; that of the beats first."""
    users = [(default, options.claim_ttl), (default, _patience(default))]
    users += [(task.lock, _patience(task.lock)) for task in tasks if task.lock is not None]
    patience: dict[Store, tuple[Mapping[str, Any] | None, float]] = {}
    for lock, seconds in users:
        store, _ = stores_of(app).choose(lock.driver, lock.connection)
        known = patience.get(store)
        arguments = options.connection(lock.driver, lock.connection)
        patience[store] = (arguments, seconds if known is None else min(seconds, known[1]))
    return [(store, arguments, seconds) for store, (arguments, seconds) in patience.items()]


def _patience(lock: LockOptions) -> float:
    return lock.ttl - (lock.extends_every if lock.auto_extend else 0.0)


def _store_facts(
    app: Any,
    store: Store,
    arguments: Mapping[str, Any] | None,
    options: AppOptions,
    patience: float,
    tell: Callable[[object], str],
) -> StoreFacts:
    servers: list[ServerFacts] = []
    trouble, refuses = None, False
    try:
        if isinstance(store, RedisStore):
            servers = store.facts(name_of(app))
        else:
            store.locks(limit=1)
    except (StoreUnavailable, ConfigurationError) as exc:
        trouble, refuses = tell(exc), store.driver == "redis" and isinstance(exc, StoreRefused)
    except Exception as exc:  # noqa: BLE001  a client's own, of arguments that it does not take
        trouble = tell(f"{type(exc).__name__}: {exc}")
    told = arguments or {}
    url = str(told.get("url", ""))
    scheme = url.partition("://")[0]
    encrypted = scheme == "rediss" or bool(told.get("ssl"))
    requires = told.get("ssl_cert_reqs", "".join(re.findall(r"ssl_cert_reqs=(\w*)", url)))
    required = str(getattr(requires, "name", requires)).lower().removeprefix("cert_")  # ssl.CERT_NONE, or a word
    return StoreFacts(
        name=_named(store, arguments),
        refuses=refuses,
        driver=store.driver,
        patience=patience,
        trouble=trouble,
        servers=tuple(servers),
        min_replicas=options.redis_min_replicas,
        remote=scheme not in ("", "unix") and not re.match(r"(localhost|127\.[\d.]+|\[::1\]|)([:/;]|$)", _place(url)),
        encrypted=encrypted,
        verified=not encrypted or required not in ("none", "optional"),
        password=bool(
            _passwords_in(url) or told.get("password") or told.get("credential_provider") or told.get("ssl_certfile")
        ),
    )


def _broker_of(app: Any) -> tuple[str, float | None]:
    """Name the transport, and the seconds after which it delivers again what is not acknowledged; None: not known."""
    try:
        connection = app.connection_for_write()
        name = str(connection.transport_cls)
        given = (connection.transport_options or {}).get("visibility_timeout")
        return name, DELIVERS_AGAIN.get(name.lower()) if given is None else float(given)
    except Exception:  # noqa: BLE001  a transport's own
        return "its broker", None


# -- no password is told -----------------------------------------------------------------------------------------------


def _place(url: str) -> str:
    """What a URL has between its credentials and its query."""
    rest = url.partition("://")[2]
    if "@" in rest.partition("?")[2]:
        return "..."  # which "?" begins the query cannot be told
    return rest.partition("?")[0].rpartition("@")[2]


def _named(store: Store, arguments: Mapping[str, Any] | None) -> str:
    url = str((arguments or {}).get("url", ""))
    return f"{url.partition('://')[0]}://{_place(url)}" if url else f"the {store.driver} store"


def _passwords_in(text: str) -> set[str]:
    # a list of URLs, as a whole too: a password may have what separates them
    wholes = [whole for part in {text, *re.split("[;,]", text)} for whole in re.findall(r"://(\S*)@", part)]
    return {whole.partition(":")[2] for whole in wholes} | set(re.findall(r"password=([^&;\s]+)", text))


def _secrets_of(settings: Any, name: str = "") -> set[str]:
    """All passwords in some settings, as they are written and as they are meant."""
    found: set[str] = set()
    if isinstance(settings, str):
        found = {settings} if "password" in name.lower() else _passwords_in(settings)
    elif isinstance(settings, Mapping):
        for key in list(settings):
            found |= _secrets_of(settings.get(key), str(key))
    elif isinstance(settings, (list, tuple)):
        for each in settings:
            found |= _secrets_of(each, name)
    written = found | {unquote(secret) for secret in found}
    return {each for secret in written for each in (secret, repr(secret)[1:-1]) if each}


def redactor(app: Any) -> Callable[[object], str]:
    """Return what blots the app's passwords out of a text."""
    secrets = _secrets_of(app.conf)
    pattern = re.compile("|".join(re.escape(secret) for secret in sorted(secrets, key=len, reverse=True)) or r"(?!)")
    return lambda text: pattern.sub("**", str(text))


# -- judging -----------------------------------------------------------------------------------------------------------


def examine(facts: Facts) -> list[Finding]:
    """Judge facts: what is wrong with them, the worst first, then in the order of the table."""
    checks = (_app, _stores, _servers, _tasks, _beats, _beside_ours, _members_agree)
    findings = [finding for check in checks for finding in check(facts)]
    order = {kind: (LEVELS.index(kind.level), number) for number, kind in enumerate(KINDS.values())}
    return sorted(findings, key=lambda finding: order[finding.kind])


def _app(facts: Facts) -> Iterator[Finding]:
    for what in facts.wrong_settings:
        yield _found("settings", "the settings", what)
    if facts.not_loaded is not None:
        yield _found("app-not-loaded", "the app", facts.not_loaded)


def _stores(facts: Facts) -> Iterator[Finding]:
    for store in facts.stores:
        if store.trouble is not None:
            away = {"database": "database-unreachable", "memory": "memory-unusable"}.get(
                store.driver, "store-unreachable"
            )
            yield _found("store-refuses" if store.refuses else away, store.name, store.trouble)
        if store.remote and not store.encrypted:
            yield _found("unencrypted", store.name, "the connection is not encrypted")
        if not store.verified:
            yield _found("unverified", store.name, "the certificate of the server is not verified")
        if store.remote and not store.password:
            yield _found("no-password", store.name, "there is no password for the server")
        if store.driver == "memory" and facts.broker not in ("memory", "filesystem"):
            yield _found("one-host", store.name, f"locks are kept on this host, messages with {facts.broker}")
    falling = [task.name for task in facts.tasks if task.falls_back]
    if falling:
        yield _found("fallback", "lock_driver", f"it is 'auto' for {_names(falling)}")
    if facts.beats_trouble is not None:
        yield _found("unchecked", "the beats", f"they cannot be listed: {facts.beats_trouble}")
    if facts.entries_trouble is not None:
        yield _found(
            "unchecked", "the entries", f"those that the scheduler keeps cannot be read: {facts.entries_trouble}"
        )


def _servers(facts: Facts) -> Iterator[Finding]:
    for store in facts.stores:
        for server in store.servers:
            about = store.name if len(store.servers) == 1 else f"{store.name}, its node {server.address}"
            for check in (_server, _replication, _memory, _saving, _times):
                for name, what in check(store, server):
                    yield _found(name, about, what)


def _server(_store: StoreFacts, server: ServerFacts) -> Iterator[tuple[str, str]]:
    version = str(server.info.get("redis_version", ""))
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers and numbers < OLDEST:
        yield "version", f"it is Redis {version}"
    if server.refused:
        words = next(iter(server.refused.values()))
        yield "permissions", f"not permitted: {', '.join(server.refused)} ({words})"
    if server.failing:
        yield "writes-refused", "; ".join(f"{command}: {words}" for command, words in server.failing.items())
    if not server.info:
        yield "unchecked", "its version, role, memory and saving are not known: INFO is not permitted"


def _replication(store: StoreFacts, server: ServerFacts) -> Iterator[tuple[str, str]]:
    info = server.info
    replicas = int(info.get("connected_slaves", 0))
    if info.get("redis_mode", info.get("server_mode")) == "sentinel":
        yield "sentinel", "a Sentinel answers there"
    elif info.get("cluster_enabled") and not server.asks_cluster:
        yield "cluster", "it is one node of a cluster"
    elif info.get("role") == "slave":
        yield "replica", f"it is a replica of {info.get('master_host')}:{info.get('master_port')}"
    elif store.min_replicas > replicas and "role" in info:
        yield "min-replicas", f"lockbeat_redis_min_replicas is {store.min_replicas}, and {replicas} are connected"
    elif replicas and not store.min_replicas:
        yield "failover", f"it has {replicas} replicas, and lockbeat_redis_min_replicas is 0"


def _memory(_store: StoreFacts, server: ServerFacts) -> Iterator[tuple[str, str]]:
    policy = server.info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        limit, evicted = int(server.info.get("maxmemory", 0)), server.info.get("evicted_keys", 0)
        if limit:
            yield (
                "eviction",
                f"maxmemory-policy is {policy}, maxmemory {limit} bytes; {evicted} keys were evicted so far",
            )
        else:
            yield "eviction-policy", f"maxmemory-policy is {policy}, though maxmemory is not set"
    limit, remembered = int(server.info.get("maxmemory", 0)), server.remembered or 0.0
    if remembered * REMEMBERED_PART > limit > 0:
        what = f"finished runs take some {remembered / 2**20:.1f} MiB of its maxmemory of {limit / 2**20:.1f} MiB"
        yield "remembers-much", what


def _saving(_store: StoreFacts, server: ServerFacts) -> Iterator[tuple[str, str]]:
    info = server.info
    for status in ("rdb_last_bgsave_status", "aof_last_write_status"):
        if info.get(status, "ok") != "ok":
            yield "saving-fails", f"{status} is {info[status]}"
    if info and not info.get("aof_enabled"):
        if server.save is None:
            yield "unchecked", "appendonly is no; whether snapshots are saved is not known: CONFIG GET is not permitted"
        elif server.save:
            yield "snapshots-only", f"appendonly is no, save is {server.save!r}"
        else:
            yield "persistence", "appendonly is no, and no snapshots are saved"


def _times(store: StoreFacts, server: ServerFacts) -> Iterator[tuple[str, str]]:
    round_trip = median(server.round_trips)
    if abs(server.clock_ahead) > SKEW + round_trip:
        than = "ahead of" if server.clock_ahead > 0 else "behind"
        yield "clock-skew", f"the clock of this host is {abs(server.clock_ahead):.1f} s {than} the server's"
    if round_trip * ROUND_TRIPS_TO_SPARE > store.patience:
        what = f"a round trip takes {round_trip * 1000:.1f} ms; the shortest renewal has {store.patience:.3g} s"
        yield "too-slow" if round_trip > store.patience else "slow", what


def _tasks(facts: Facts) -> Iterator[Finding]:
    scheduled = set(facts.entries.values()) - {CLEANUP}
    late = [task for task in facts.tasks if task.acks_late and (task.lock or task.name in scheduled)]
    locked = [task for task in facts.tasks if task.lock is not None]
    again = facts.delivers_again
    told = f"{written(again)} s, after which {facts.broker} delivers again" if again is not None else ""
    groups = {
        "visibility-timeout": (
            [task for task in late if again and (task.time_limit or (0 if task.lock else again + 1)) > again],
            f"acks_late, and a run may take longer than {told}",
        ),
        "unbounded-run": (
            [task for task in late if again and task.lock and task.time_limit is None],
            f"acks_late, and no time limit ends a run before {told}",
        ),
        "forgets-copies": (
            [task for task in late if again and task.lock and task.lock.dedupe_ttl < again],
            f"acks_late, and a run is remembered for less than {told}",
        ),
        "acks-late": (
            [task for task in late if not task.survives_its_worker],
            "acks_late without reject_on_worker_lost",
        ),
        "reject-without-acks-late": (
            [task for task in locked if task.survives_its_worker and not task.acks_late],
            "reject_on_worker_lost without acks_late",
        ),
        "acks-early": (
            [task for task in locked if not task.acks_late and task.name in scheduled],
            "in the schedule, without acks_late",
        ),
        "outlives-lease": (
            [task for task in locked if _may_outlive(task)],
            "lock_auto_extend is off, and no time limit ends a run before its lock_ttl",
        ),
        "long-lease": (
            [task for task in locked if task.lock and task.lock.ttl > LONG_LEASE],
            "lock_ttl is more than an hour",
        ),
        "unlocked-task": (
            [task for task in facts.tasks if task.name in scheduled and task.lock is None],
            "in the schedule, without a lock",
        ),
    }
    for name, (tasks, what) in groups.items():
        if tasks:
            yield _found(name, _names(task.name for task in tasks), what)


def _may_outlive(task: TaskFacts) -> bool:
    lock = task.lock
    return lock is not None and not lock.auto_extend and not (task.time_limit and task.time_limit <= lock.ttl)


def _beats(facts: Facts) -> Iterator[Finding]:
    known = {task.name for task in facts.tasks}
    if known:
        for name, task in facts.entries.items():
            if task not in known:
                yield _found("unknown-task", f"entry {name}", f"there is no task {task!r} in this app")
    if facts.app in ("", "__main__"):
        yield _found("app-name", "the app", f"its name (app.main) is {facts.app!r}")
    beats = _running(facts)
    for name, why in facts.broken.items():
        yield _found("broken-entry", f"entry {name}", why)
    own = _schedule_of(facts.entries)
    if own and facts.beats is not None and not beats and facts.locked_beat:
        yield _found("no-beat", f"app {facts.app!r}", _last_heard(facts.beats))
    if own and facts.beats is not None and not beats and not facts.locked_beat:
        yield _found("plain-beat", "beat_scheduler", "it is not one of ours, and no beat of ours is running")
    lists = {f"beat {beat.name}": _schedule_of(beat.entries) for beat in beats if beat.complete}
    lists["this app"] = own
    lists = {who: names for who, names in lists.items() if names}
    pairs = list(combinations(lists, 2))
    for kind, differ in (("shared-app", set.isdisjoint), ("lists-differ", _neither_has_all)):
        pair = next(((one, two) for one, two in pairs if differ(lists[one], lists[two])), None)
        if pair is not None:
            what = "; ".join(f"{who} lists {_names(lists[who] - lists[other])}" for who, other in (pair, pair[::-1]))
            yield _found(kind, f"app {facts.app!r}", what)
            return


def _running(facts: Facts) -> list[Replica]:
    return [] if facts.beats is None else [beat for beat in facts.beats.replicas if beat.silent_for < ALIVE]


def _beside_ours(facts: Facts) -> Iterator[Finding]:
    if facts.plain_redbeat and _running(facts):
        yield _found("plain-redbeat", "RedBeat's Redis", facts.plain_redbeat)


def _last_heard(beats: Beats) -> str:
    silent = [beat for beat in beats.replicas if math.isfinite(beat.silent_for)]
    if not silent:
        return "beat_scheduler is ours, and no beat is running"
    last = min(silent, key=lambda beat: beat.silent_for)
    return f"beat_scheduler is ours, and the last beat, {last.name}, was heard of {last.silent_for:.0f} s ago"


def _members_agree(facts: Facts) -> Iterator[Finding]:
    for member in facts.members:
        if member.elsewhere and member.home != facts.home:
            yield _found(
                "homes-differ", f"{member.kind} {member.name}", f"its locks live in {member.home}, ours in {facts.home}"
            )
    living = [member for member in facts.members if member.silent_for < GONE and not member.elsewhere]
    locks = {f"{member.kind} {member.name}": member.locks for member in living} | {"this app": facts.locks}
    for task in sorted({task for each in locks.values() for task in each}):
        told: dict[str, list[str]] = defaultdict(list)
        for who, each in locks.items():
            if task in each:
                told[each[task]].append(who)
        if len(told) > 1:
            what = "; ".join(f"{lock} for {_names(who)}" for lock, who in sorted(told.items()))
            yield _found("locks-differ", f"task {task}", what)
    for entry, newest in facts.newest.items():
        newer = [member.name for member in living if member.definitions.get(entry) == newest]
        older = [member.name for member in living if member.definitions.get(entry, newest) != newest]
        if newer and older:
            yield _found(
                "definitions-differ", f"entry {entry}", f"{_names(newer)} have the newest, {_names(older)} an older one"
            )


def _schedule_of(keys: Iterable[str]) -> set[str]:
    """Tell the names of entries, without what a scheduler has added to make them keys."""
    return {re.sub(r"@[0-9a-f.]+$", "", key) for key in keys} - {CLEANUP}


def _neither_has_all(one: set[str], two: set[str]) -> bool:
    return not (one <= two or two <= one)


def _found(kind: str, about: str, what: str) -> Finding:
    return Finding(KINDS[kind], about, what)


def _names(names: Iterable[str]) -> str:
    known = sorted(names)
    more = len(known) - NAMES_AT_MOST
    return ", ".join(known[:NAMES_AT_MOST]) + (f" and {more} more" if more > 0 else "")

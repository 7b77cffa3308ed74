"""The facts that the doctor judges: the app's settings, tasks and entries, and what its stores, beats and workers say.

They are gathered once. What cannot be had is a fact too, in the words of whoever refused it, without passwords.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import permutations
from typing import Any, Final

from celery_lockbeat.beat.announcements import definitions_of, differing, groups_of, named
from celery_lockbeat.beat.scheduler import LockedScheduler
from celery_lockbeat.contrib.schedulers import (
    announced_schedulers,
    entries_of,
    is_ours,
    known_schedules,
    names_of,
    plain_redbeat,
)
from celery_lockbeat.exceptions import ConfigurationError, StoreRefused, StoreUnavailable
from celery_lockbeat.insight.entries import named_entries
from celery_lockbeat.insight.planned import Plans
from celery_lockbeat.insight.redaction import passwords_in, redactor
from celery_lockbeat.insight.times import now, time_of
from celery_lockbeat.journal import Record, read
from celery_lockbeat.membership.identity import (
    home_of,
    is_loopback,
    lock_options_of,
    locks_of_tasks,
    meeting_store_of,
    place_of,
    work_of,
)
from celery_lockbeat.membership.members import fields_of
from celery_lockbeat.membership.used import UsedStore, stores_of_locks
from celery_lockbeat.options import DELIVERS_AGAIN, AppOptions, LockOptions
from celery_lockbeat.stores import Store, name_of, stores_of
from celery_lockbeat.stores.base import Beats
from celery_lockbeat.stores.redis.store import RedisStore, ServerFacts
from celery_lockbeat.tasks.task import LockedTask

__all__ = ["READ_AT_MOST", "Facts", "JournalFacts", "MemberFacts", "StoreFacts", "TaskFacts", "gather"]

_Redact = Callable[[object], str]

#: The newest records of the journal, which are judged.
READ_AT_MOST: Final = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreFacts:
    """A store that locks or beats use. ``patience`` is the least time that anything in it has for one answer.

    ``trouble`` is why it did not answer, or what it answered if it ``refuses`` us; ``servers`` are several in a Cluster, and
    none where there is no server. The other fields are of its URL.
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
    """A task of the app; ``lock`` is None where it runs without one, and it is ``plain`` where it is no LockedTask.

    ``time_limit``: its longest run, None: none is set.
    """

    name: str
    lock: LockOptions | None = None
    plain: bool = False
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
class JournalFacts:
    """The journal as it is ``now``: the newest ``records``, of ``keep`` that are kept (0: it is off), oldest first.

    ``trouble`` is why it cannot be read; ``last_published`` is when the last tick was, as the beats' own store has it.
    ``silent_after`` is the app's lockbeat_silent_after.
    """

    now: datetime
    keep: int = 10_000
    silent_after: int = 5
    records: tuple[Record, ...] = ()
    last_published: datetime | None = None
    trouble: str | None = None


@dataclass(kw_only=True, slots=True)
class Facts:
    """All that is judged. ``entries`` are names of entries with their tasks', ``beats`` None where nobody could be asked.

    ``broken`` are entries that are none, and why; ``pausing`` those that are to be paused, after so many failures; ``locks`` and
    ``home`` are this app's as ``members`` tell theirs; ``newest`` has the newest definition of each entry of which there are several.
    ``plain_redbeat`` tells of RedBeat's own lock, if one of the schedulers is over RedBeat and somebody holds it. ``journal`` is None
    where nobody could be asked.
    """

    app: str
    wrong_settings: tuple[str, ...] = ()
    not_loaded: str | None = None
    stores: tuple[StoreFacts, ...] = ()
    tasks: tuple[TaskFacts, ...] = ()
    entries: Mapping[str, str] = field(default_factory=dict)
    pausing: Mapping[str, int] = field(default_factory=dict)
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
    journal: JournalFacts | None = None


# -- gathering ---------------------------------------------------------------------------------------------------------


def gather(app: Any) -> Facts:
    """Look at the app's settings and tasks, and ask its stores."""
    facts = Facts(app=name_of(app))
    try:
        redact = redactor(app)
    except Exception as exc:  # noqa: BLE001  the settings are read now: whatever a user's module raises
        facts.not_loaded = f"{type(exc).__name__}: {exc}"
        return facts
    for add in (_add_tasks, _add_entries, _add_broker, _add_stores):
        add(app, facts, redact)
    return facts


def _add_tasks(app: Any, facts: Facts, redact: _Redact) -> None:
    try:
        app.loader.import_default_modules()
        app.finalize()
        facts.tasks = tuple(_task_facts(app, *each) for each in lock_options_of(app))
        facts.entries = {name: entry.task for name, entry in sorted(LockedScheduler(app).data.items())}
    except ConfigurationError as exc:
        facts.wrong_settings = (redact(exc),)
    except Exception as exc:  # noqa: BLE001  whatever a user's modules raise
        facts.not_loaded = redact(f"{type(exc).__name__}: {exc}")


def _task_facts(app: Any, name: str, lock: LockOptions | None) -> TaskFacts:
    task = app.tasks[name]
    limits = (task.time_limit, app.conf.task_time_limit, task.soft_time_limit, app.conf.task_soft_time_limit)
    return TaskFacts(
        name=name,
        lock=lock,
        plain=not isinstance(task, LockedTask),
        falls_back=lock is not None and stores_of(app).choose(lock.driver, lock.connection)[1] is not None,
        acks_late=bool(task.acks_late),
        survives_its_worker=bool(task.reject_on_worker_lost or getattr(task, "retry_on_worker_lost", False)),
        time_limit=next((limit for limit in limits if limit), None),
    )


def _add_entries(app: Any, facts: Facts, redact: _Redact) -> None:
    facts.locked_beat = is_ours(app)
    if facts.wrong_settings or facts.not_loaded is not None:
        return
    try:
        entries = entries_of(app)
        facts.entries, facts.broken = entries.tasks, entries.broken
        facts.pausing = _pausing(app)
        facts.locks = locks_of_tasks(app)
    except Exception as exc:  # noqa: BLE001  whatever a library, or what it is kept in, says
        facts.entries_trouble = redact(exc)


def _pausing(app: Any) -> dict[str, int]:
    plans = Plans(app)
    policies = {name: plans.of(name, *kept).policy for name, kept in known_schedules(app).items()}
    return {name: policy.pause_after_failures for name, policy in policies.items() if policy.pause_after_failures}


def _add_broker(app: Any, facts: Facts, _redact: _Redact) -> None:
    try:
        connection = app.connection_for_write()
        name = str(connection.transport_cls)
        given = (connection.transport_options or {}).get("visibility_timeout")
        facts.delivers_again = DELIVERS_AGAIN.get(name.lower()) if given is None else float(given)
        facts.broker = name
    except Exception:  # noqa: BLE001  a transport's own
        facts.broker = "its broker"


def _add_stores(app: Any, facts: Facts, redact: _Redact) -> None:
    try:
        used = stores_of_locks(app, [task.lock for task in facts.tasks if task.lock is not None])
        min_replicas = AppOptions.read(app.conf).redis_min_replicas
    except ConfigurationError as exc:
        facts.wrong_settings = tuple(dict.fromkeys((*facts.wrong_settings, redact(exc))))
        return
    facts.stores = tuple(replace(_store_facts(app, each, redact), min_replicas=min_replicas) for each in used)
    facts.home = home_of(app)
    if facts.stores[0].trouble is not None:  # the first is that of the beats
        return
    home = used[0].store
    try:
        schedulers = announced_schedulers(app, home)
        facts.beats = _named_beats(app, home, schedulers)
        facts.members, facts.newest = _members(app, home)
        facts.plain_redbeat = plain_redbeat(app, schedulers)
    except (StoreUnavailable, ConfigurationError) as exc:
        facts.beats_trouble = redact(exc)
    facts.journal = _journal_facts(app, home, redact)


def _journal_facts(app: Any, home: Store, redact: _Redact) -> JournalFacts:
    options = AppOptions.read(app.conf)
    facts = JournalFacts(now=now(), keep=options.journal, silent_after=options.silent_after)
    if not options.journal:
        return facts
    try:
        records = read(app, limit=READ_AT_MOST)
    except Exception as exc:  # noqa: BLE001  whatever it is, it is no reason to say nothing of all else
        return replace(facts, trouble=redact(exc))
    return replace(
        facts,
        records=tuple(_without_passwords(record, redact) for record in records),
        last_published=_last_published(app, home),
    )


def _without_passwords(record: Record, redact: _Redact) -> Record:
    # errors of a user's code may have any URL in them
    return record if record.error_message is None else replace(record, error_message=redact(record.error_message))


def _last_published(app: Any, home: Store) -> datetime | None:
    try:
        told = [each.last_published_at for each in named_entries(app, home)]
    except (StoreUnavailable, ConfigurationError):  # which is told of the beats
        return None
    return max((at for text in told if text and (at := time_of(text, app)) is not None), default=None)


def _store_facts(app: Any, used: UsedStore, redact: _Redact) -> StoreFacts:
    store = used.store
    facts = _connection_facts(used)
    try:
        if isinstance(store, RedisStore):
            return replace(facts, servers=tuple(store.facts(name_of(app))))
        store.locks.held(limit=1)
    except (StoreUnavailable, ConfigurationError) as exc:
        refuses = store.driver == "redis" and isinstance(exc, StoreRefused)
        return replace(facts, trouble=redact(exc), refuses=refuses)
    except Exception as exc:  # noqa: BLE001  a client's own, of arguments that it does not take
        return replace(facts, trouble=redact(f"{type(exc).__name__}: {exc}"))
    return facts


def _connection_facts(used: UsedStore) -> StoreFacts:
    arguments = used.arguments or {}
    url = str(arguments.get("url", ""))
    scheme, place = url.partition("://")[0], place_of({"url": url}).partition("://")[2]
    local = scheme in ("", "unix") or not place or place.startswith(":") or is_loopback(place)
    encrypted = scheme == "rediss" or bool(arguments.get("ssl"))
    requires = arguments.get("ssl_cert_reqs", "".join(re.findall(r"ssl_cert_reqs=(\w*)", url)))
    required = str(getattr(requires, "name", requires)).lower().removeprefix("cert_")  # ssl.CERT_NONE, or a word
    credentials = (arguments.get(name) for name in ("password", "credential_provider", "ssl_certfile"))
    return StoreFacts(
        name=used.name,
        driver=used.store.driver,
        patience=used.patience,
        remote=not local,
        encrypted=encrypted,
        verified=not encrypted or required not in ("none", "optional"),
        password=bool(passwords_in(url)) or any(credentials),
    )


def _named_beats(app: Any, store: Store, schedulers: list[str]) -> Beats:
    """Return the beats, and what they list by the names that users know."""
    beats = store.beats.status(name_of(app))
    names = names_of(app, {key for beat in beats.replicas for key in beat.entries}, schedulers)
    renamed = [replace(beat, entries=frozenset(names[key] for key in beat.entries)) for beat in beats.replicas]
    return replace(beats, replicas=renamed)


def _members(app: Any, store: Store) -> tuple[tuple[MemberFacts, ...], dict[str, str]]:
    """Return who has announced itself, and the newest definition of each entry of which there are several."""
    name = name_of(app)
    announced = store.announcements.announced(name, "member")
    groups = groups_of(store, name, announced)
    definitions = {beat: group.definitions for group in groups.values() for beat in group.beats}
    locks = {each.name: fields_of(each) for each in store.announcements.announced(name, "tasks")}
    members = [
        MemberFacts(
            name=each.name,
            kind=str(fields.get("kind")),
            silent_for=each.silent_for,
            locks=locks.get(str(fields.get("tasks")), {}),
            definitions=definitions.get(each.name, {}),
        )
        for each, fields in zip(announced, map(fields_of, announced), strict=True)
    ]
    several = {
        (key, one.definitions[key])
        for one, other in permutations(groups.values(), 2)
        for key in differing(one.definitions, other.definitions)
    }
    first = definitions_of(store, name, [named(*pair) for pair in several]) if several else {}
    newest = dict(sorted(several, key=lambda pair: (first.get(named(*pair), 0.0), pair[1])))
    return (*members, *_elsewhere(app, {each.name for each in announced})), newest


def _elsewhere(app: Any, known: AbstractSet[str]) -> list[MemberFacts]:
    """Return who shares the work of this app without being heard of in its store, as far as there is a place to look."""
    store, work = meeting_store_of(app), work_of(app)
    if store is None:
        return []
    try:
        announced = {each.name: fields_of(each) for each in store.announcements.announced(name_of(app), "home")}
    except StoreUnavailable:
        return []
    finally:
        store.close()
    return [
        MemberFacts(name=name, kind=str(fields.get("kind")), home=str(fields.get("home")), elsewhere=True)
        for name, fields in announced.items()
        if name not in known and work and fields.get("work") == work
    ]

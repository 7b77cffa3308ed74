"""The rules by which the doctor judges: functions of the facts alone, which yield what is found of which kind, and about what."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations
from statistics import median
from typing import Final

from celery_lockbeat.beat.clocks import SKEW
from celery_lockbeat.insight.doctor.facts import Facts, StoreFacts, TaskFacts
from celery_lockbeat.insight.doctor.journal import bare, what_happened
from celery_lockbeat.insight.doctor.kinds import KINDS, LEVELS, Finding
from celery_lockbeat.membership.members import enumerate_some
from celery_lockbeat.membership.startup import LONG_LEASE
from celery_lockbeat.options import written
from celery_lockbeat.stores.base import ALIVE, Beats
from celery_lockbeat.stores.redis.store import ServerFacts

__all__ = ["CLEANUP", "examine"]

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

#: Kind, about what, and what was found.
_Found = Iterator[tuple[str, str, str]]


def examine(facts: Facts) -> list[Finding]:
    """Judge facts: what is wrong with them, the worst first, then in the order of the table."""
    rules = (_app, _stores, _servers, _tasks, _entries, _schedules, _members, what_happened)
    findings = [Finding(KINDS[kind], about, what) for rule in rules for kind, about, what in rule(facts)]
    order = {kind: (LEVELS.index(kind.level), number) for number, kind in enumerate(KINDS.values())}
    return sorted(findings, key=lambda finding: order[finding.kind])


# -- the app and its stores --------------------------------------------------------------------------------------------


def _app(facts: Facts) -> _Found:
    for what in facts.wrong_settings:
        yield "settings", "the settings", what
    if facts.not_loaded is not None:
        yield "app-not-loaded", "the app", facts.not_loaded
    if facts.app in ("", "__main__"):
        yield "app-name", "the app", f"its name (app.main) is {facts.app!r}"
    if facts.beats_trouble is not None:
        yield "unchecked", "the beats", f"they cannot be listed: {facts.beats_trouble}"
    if facts.entries_trouble is not None:
        what = f"those that the scheduler keeps cannot be read: {facts.entries_trouble}"
        yield "unchecked", "the entries", what


def _stores(facts: Facts) -> _Found:
    for store in facts.stores:
        for kind, what in _store(facts, store):
            yield kind, store.name, what
    falling = [task.name for task in facts.tasks if task.falls_back]
    if falling:
        yield "fallback", "lock_driver", f"it is 'auto' for {enumerate_some(falling)}"


def _store(facts: Facts, store: StoreFacts) -> Iterator[tuple[str, str]]:
    if store.trouble is not None:
        away = {"database": "database-unreachable", "memory": "memory-unusable"}
        yield "store-refuses" if store.refuses else away.get(store.driver, "store-unreachable"), store.trouble
    if store.remote and not store.encrypted:
        yield "unencrypted", "the connection is not encrypted"
    if not store.verified:
        yield "unverified", "the certificate of the server is not verified"
    if store.remote and not store.password:
        yield "no-password", "there is no password for the server"
    if store.driver == "memory" and facts.broker not in ("memory", "filesystem"):
        yield "one-host", f"locks are kept on this host, messages with {facts.broker}"


# -- servers -----------------------------------------------------------------------------------------------------------


def _servers(facts: Facts) -> _Found:
    for store in facts.stores:
        for server in store.servers:
            about = store.name if len(store.servers) == 1 else f"{store.name}, its node {server.address}"
            for rule in (_access, _replication, _memory, _saving, _times):
                for kind, what in rule(store, server):
                    yield kind, about, what


def _access(_store: StoreFacts, server: ServerFacts) -> Iterator[tuple[str, str]]:
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
    limit, evicted = int(server.info.get("maxmemory", 0)), server.info.get("evicted_keys", 0)
    if policy != "noeviction" and limit:
        what = f"maxmemory-policy is {policy}, maxmemory {limit} bytes; {evicted} keys were evicted so far"
        yield "eviction", what
    elif policy != "noeviction":
        yield "eviction-policy", f"maxmemory-policy is {policy}, though maxmemory is not set"
    remembered = server.remembered or 0.0
    if remembered * REMEMBERED_PART > limit > 0:
        what = f"finished runs take some {remembered / 2**20:.1f} MiB of its maxmemory of {limit / 2**20:.1f} MiB"
        yield "remembers-much", what


def _saving(_store: StoreFacts, server: ServerFacts) -> Iterator[tuple[str, str]]:
    info = server.info
    for status in ("rdb_last_bgsave_status", "aof_last_write_status"):
        if info.get(status, "ok") != "ok":
            yield "saving-fails", f"{status} is {info[status]}"
    if not info or info.get("aof_enabled"):
        return
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


# -- locks of tasks ----------------------------------------------------------------------------------------------------


def _tasks(facts: Facts) -> _Found:
    scheduled = set(facts.entries.values()) - {CLEANUP}
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for task in facts.tasks:
        for kind_and_what in _task(facts, task, task.name in scheduled):
            found[kind_and_what].append(task.name)
    for (kind, what), tasks in found.items():
        yield kind, enumerate_some(tasks), what


def _task(facts: Facts, task: TaskFacts, scheduled: bool) -> Iterator[tuple[str, str]]:
    lock, limit = task.lock, task.time_limit
    if task.acks_late and (lock or scheduled):
        if facts.delivers_again:
            yield from _delivered_again(task, facts.delivers_again, facts.broker)
        if not task.survives_its_worker:
            yield "acks-late", "acks_late without reject_on_worker_lost"
    if lock and not task.acks_late and task.survives_its_worker:
        yield "reject-without-acks-late", "reject_on_worker_lost without acks_late"
    if lock and not task.acks_late and scheduled:
        yield "acks-early", "in the schedule, without acks_late"
    if lock and not lock.auto_extend and not (limit and limit <= lock.ttl):
        yield "outlives-lease", "lock_auto_extend is off, and no time limit ends a run before its lock_ttl"
    if lock and lock.ttl > LONG_LEASE:
        yield "long-lease", "lock_ttl is more than an hour"
    if scheduled and not lock:
        yield "unlocked-task", "in the schedule, without a lock"


def _delivered_again(task: TaskFacts, again: float, broker: str) -> Iterator[tuple[str, str]]:
    """Judge a run that is acknowledged late by when the broker delivers its message again."""
    when = f"{written(again)} s, after which {broker} delivers again"
    # without a limit a run may take for ever; of a lock's run that is the next finding
    if (task.time_limit or (0 if task.lock else math.inf)) > again:
        yield "visibility-timeout", f"acks_late, and a run may take longer than {when}"
    if task.lock and task.time_limit is None:
        yield "unbounded-run", f"acks_late, and no time limit ends a run before {when}"
    if task.lock and task.lock.dedupe_ttl < again:
        yield "forgets-copies", f"acks_late, and a run is remembered for less than {when}"


# -- beats and entries -------------------------------------------------------------------------------------------------


def _entries(facts: Facts) -> _Found:
    known = {task.name for task in facts.tasks}
    for name, task in facts.entries.items():
        if known and task not in known:
            yield "unknown-task", f"entry {name}", f"there is no task {task!r} in this app"
    plain = {task.name for task in facts.tasks if task.plain}
    for name, limit in facts.pausing.items():
        its_task = facts.entries.get(name, "")
        if its_task in plain:
            yield (
                "not-counted",
                f"entry {name}",
                f"it has pause_after_failures={limit}, and {its_task!r} is no LockedTask",
            )
    for name, why in facts.broken.items():
        yield "broken-entry", f"entry {name}", why


def _schedules(facts: Facts) -> _Found:
    """Judge who publishes the schedule, and whether all of them have the same."""
    if facts.beats is None:
        return
    beats = [beat for beat in facts.beats.replicas if beat.silent_for < ALIVE]
    own = _listed(facts.entries)
    if own and not beats:
        if facts.locked_beat:
            yield "no-beat", f"app {facts.app!r}", _last_heard(facts.beats)
        else:
            yield "plain-beat", "beat_scheduler", "it is not one of ours, and no beat of ours is running"
    if beats and facts.plain_redbeat:
        yield "plain-redbeat", "RedBeat's Redis", facts.plain_redbeat
    lists = {f"beat {beat.name}": _listed(beat.entries) for beat in beats if beat.complete} | {"this app": own}
    pairs = list(combinations([who for who, names in lists.items() if names], 2))
    for kind, differ in (("shared-app", set.isdisjoint), ("lists-differ", lambda one, two: one - two and two - one)):
        pair = next(((one, two) for one, two in pairs if differ(lists[one], lists[two])), None)
        if pair is not None:
            ways = (pair, pair[::-1])
            what = "; ".join(f"{who} lists {enumerate_some(lists[who] - lists[other])}" for who, other in ways)
            yield kind, f"app {facts.app!r}", what
            return


def _last_heard(beats: Beats) -> str:
    silent = [(beat.silent_for, beat.name) for beat in beats.replicas if math.isfinite(beat.silent_for)]
    if not silent:
        return "beat_scheduler is ours, and no beat is running"
    silence, name = min(silent)
    return f"beat_scheduler is ours, and the last beat, {name}, was heard of {silence:.0f} s ago"


def _listed(keys: Iterable[str]) -> set[str]:
    """Return the names of entries, without what a scheduler has added to make them keys."""
    return set(map(bare, keys)) - {CLEANUP}


# -- members -----------------------------------------------------------------------------------------------------------


def _members(facts: Facts) -> _Found:
    """Judge whether beats and workers agree about where locks are, about each task's lock, and about each entry."""
    for member in facts.members:
        if member.elsewhere and member.home != facts.home:
            what = f"its locks live in {member.home}, ours in {facts.home}"
            yield "homes-differ", f"{member.kind} {member.name}", what
    living = [member for member in facts.members if member.silent_for < GONE and not member.elsewhere]
    locks = {f"{member.kind} {member.name}": member.locks for member in living} | {"this app": facts.locks}
    for task in sorted({task for each in locks.values() for task in each}):
        holders: dict[str, list[str]] = defaultdict(list)
        for who in (who for who, each in locks.items() if task in each):
            holders[locks[who][task]].append(who)
        if len(holders) > 1:
            what = "; ".join(f"{lock} for {enumerate_some(who)}" for lock, who in sorted(holders.items()))
            yield "locks-differ", f"task {task}", what
    for entry, newest in facts.newest.items():
        newer = [member.name for member in living if member.definitions.get(entry) == newest]
        older = [member.name for member in living if member.definitions.get(entry, newest) != newest]
        if newer and older:
            what = f"{enumerate_some(newer)} have the newest, {enumerate_some(older)} an older one"
            yield "definitions-differ", f"entry {entry}", what

"""The store in Redis or Valkey: one Lua script, one round trip, one hash tag per operation.

Promises the contract of ``base.py`` as far as the server keeps what it acknowledged. A failover to a replica that had
not yet received a write loses that write: ``min_replicas`` narrows this (WAIT), the fencing token answers the rest.
Times are the server's. This is the only place of Redis keys and of milliseconds.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import os
import re
import time
import weakref
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Final
from urllib.parse import quote, unquote

from redis.exceptions import MovedError, NoScriptError, RedisError, ResponseError

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import ConfigurationError, StoreRefused, StoreUnavailable, UnreadableKey
from celery_lockbeat.stores.base import (
    ALIVE,
    ANNOUNCED,
    BACKLOG,
    LISTED_AT_MOST,
    OVERDUE_AT_ONCE,
    STATE_MEMORY,
    Announcement,
    AnnouncementStore,
    Beats,
    BeatStore,
    Claim,
    Claims,
    EntryState,
    Finished,
    Held,
    Joined,
    Lease,
    LiveLock,
    LockStore,
    Overdue,
    Replica,
    Store,
    StoredEntry,
)
from celery_lockbeat.stores.redis.servers import (
    SLOTS,
    Call,
    Cluster,
    Node,
    Request,
    Script,
    TooFewReplicas,
    WrongServer,
    info_of,
    open_servers,
    refuses,
    to_word,
    where,
    why,
)
from celery_lockbeat.tasks.copies import told_apart

__all__ = ["RedisStore", "ServerFacts"]

logger: Final = logging.getLogger("celery_lockbeat")

#: ZMSCORE, in list.lua, is the newest that is needed.
OLDEST: Final = (6, 2)

EVICTS: Final = (
    "the Redis of the locks may drop them: its maxmemory_policy is %s, with a maxmemory of %.0f MiB. A lock that is evicted is "
    "free while its run goes on, a run that is evicted may run again, and a beat's entries lose their past. Set the policy to "
    "noeviction, or give the locks a server of their own (lockbeat_redis_url)"
)

#: Longer keys are cut and told apart by a digest: Redis compares whole keys, and operators read them.
LONGEST_KEY: Final = 200

#: A description is cut after so many bytes, for a lock has to be read whole (lock.lua).
LONGEST_DESCRIPTION: Final = 1000

#: No duration is longer: 30 years, so that a lock's end has its 13 digits.
LONGEST: Final = 1e9

#: Bytes of a claim, of which none of ours has a hundredth.
CLAIM_AT_MOST: Final = 65536

#: What the keys of an app's beats hold, but for the cold start, of which join.lua makes sure itself.
BEAT_KEYS: Final = {
    "replicas": "zset",
    "entries": "hash",
    "claims": "hash",
    "pending": "zset",
    "listing": "set",
    "unlisted": "zset",
    **{f"announced:{kind}": "hash" for kind in ANNOUNCED},
    **{f"until:{kind}": "zset" for kind in ANNOUNCED},
}

#: '<replica> <run> <length of the entry> <entry><details>', see claim.lua.
_CLAIM: Final = re.compile(rb"[^ ]* (\d{1,15}) (\d{1,5}) (.*)", re.DOTALL)

#: '<first ms> <last ms> <until ms> <text>', see announce.lua.
_ANNOUNCED: Final = re.compile(rb"(\d{1,15}) (\d{1,15}) (\d{1,15}) (.*)", re.DOTALL)

#: A lock, as acquire.lua writes it.
_LOCK: Final = re.compile(
    rb"(?P<token>\d{16})(?P<until>\d{13})(?P<holder>[^ ]*) (?P<run>[^ #]*)[^ ]* (?P<description>.*)", re.DOTALL
)

#: What stands behind the description of a lock whose key had been used before, see lock.lua.
_USED_BEFORE: Final = " #"

#: The name of the keys of a trial, which no lock and nothing of the beats has.
_TRIAL: Final = "%~trial"

#: Of so many keys one is on another node, if the server is one of a Cluster's.
SPREAD: Final = 32

#: What needs no quoting and no cutting: nearly all keys, holders and runs.
_is_plain: Final = re.compile(rf"[\w!$&'()*+,/:;=@.~-]{{0,{LONGEST_KEY}}}", re.ASCII).fullmatch


#: As many keys or fields are asked for in one round trip of a listing.
SCANNED_AT_ONCE: Final = 1000

#: So many of these are enough to estimate what all keys are.
SAMPLES: Final = 20

#: What a finished run takes in memory beside the name of its key, bytes: measured by ``benchmarks/remembered.py``.
BESIDE_ITS_NAME: Final = 108

#: Round trips that are measured for :meth:`RedisStore.facts`.
ROUND_TRIPS: Final = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerFacts:
    """What a server tells about itself, to those who look for trouble before it comes.

    ``info`` is its answer to INFO, empty where that is not permitted, and ``save`` its setting, None likewise.
    ``clock_ahead`` is by how much the wall clock of this host is ahead of its own; ``round_trips`` are seconds. ``refused``
    are the commands that the store needs and may not use, by what was tried on which key, and ``failing`` those that
    failed for another reason, each with the server's words. ``asks_cluster``: whether the client knows clusters. ``remembered``
    is about how many bytes finished runs take, None where nothing limits them or it may not be asked.
    """

    address: str
    info: Mapping[str, Any]
    save: str | None
    clock_ahead: float
    round_trips: Sequence[float]
    refused: Mapping[str, str]
    failing: Mapping[str, str]
    asks_cluster: bool = False
    remembered: float | None = None


class RedisStore(Store, LockStore, BeatStore, AnnouncementStore):
    """Locks in one Redis or Valkey database, or in a Cluster; every operation costs one round trip.

    ``url`` and ``options`` are what :func:`~celery_lockbeat.stores.redis.servers.open_servers` takes. With ``min_replicas``, what
    was granted, extended or remembered counts only once so many replicas have it. ``setting`` says where the URL is from,
    and ``spell`` writes settings as their user does, in what is told.
    """

    driver: ClassVar[str] = "redis"

    @property
    def locks(self) -> LockStore:  # type: ignore[override]
        return self

    @property
    def beats(self) -> BeatStore:  # type: ignore[override]
        return self

    @property
    def announcements(self) -> AnnouncementStore:  # type: ignore[override]
        return self

    def __init__(
        self,
        url: str,
        *,
        options: Mapping[str, Any] | None = None,
        key_prefix: str = "lockbeat:",
        min_replicas: int = 0,
        setting: str = "",
        spell: Callable[[str], str] = str,
    ) -> None:
        self._servers = open_servers(url, options, setting or "the Redis URL")
        self._where = f"{where(url)} ({setting})" if setting else where(url)
        self._spell = spell
        self._prefix = key_prefix
        self._min_replicas = min_replicas
        #: when an operation was begun, and the server's time (ms) when it was carried out
        self._seen: tuple[float, int] | None = None
        self._checked = False
        _stores.add(self)
        locks, beats = ("acquire", "extend", "release", "free", "join"), ("list", "claim", "settle")
        self._acquire, self._extend, self._release, self._free, self._join = (Script.of("lock", name) for name in locks)
        self._list, self._claim, self._settle = (Script.of("state", name) for name in beats)
        self._take_over, self._leave = Script.of("take_over"), Script.of("leave")
        self._announce, self._announced = Script.of("announce"), Script.of("announced")
        self._set_aside, self._drop, self._probe = Script.of("set_aside"), Script.of("drop"), Script.of("probe")

    def acquire(
        self,
        key: str,
        *,
        holder: str,
        ttl: float,
        run: str | None = None,
        whole: str | None = None,
        description: str = "",
    ) -> Lease | Held | Finished:
        keys = self._keys(key, run, whole)
        owner, lasts = f"{_plain(holder)} {_plain(run or '')} {_readable(description)}", _ms(ttl)
        again = _USED_BEFORE if _mark(run or "")[1] else ""
        within = min(ttl, self._servers.time_allowed)  # a later answer grants nothing
        for _ in range(2):
            asked = monotonic()
            args = (owner, lasts, self._waits_until(asked, within), again)
            answer = self._call(self._acquire, keys, args, replicated=True, within=within)
            if isinstance(answer, int):
                self._seen = (asked, answer // 1000)
                return Lease(key, holder, run, answer, whole)
            kind, *answer = answer
            if kind == b"finished":
                return Finished(bool(answer[0]))
            if kind == b"unreadable":
                where, what, begins = map(_text, answer)
                raise UnreadableKey(
                    f"key {where!r} in Redis is no lock of ours, but a {what} ({begins!r}...): nothing runs under lock {key!r}"
                    f" until that key is deleted, and nothing that holds it may be running then"
                )
            if kind == b"held":
                remaining, same_run, their_run, described = answer
                return Held(
                    _described(described), remaining / 1000, bool(same_run), unquote(their_run, errors="replace")
                )
            self._seen = (asked, answer[0])
            if kind == b"granted":
                return Lease(key, holder, run, answer[1], whole)
            # Late: the answer took too long, or the server's clock was set forward; its time is known now.
        msg = f"{self._where} takes longer to answer than lockbeat_redis_options['socket_timeout'] allows"
        raise StoreUnavailable(self._spell(msg))

    def extend(
        self, leases: Sequence[tuple[Lease, float]], *, within: float = math.inf
    ) -> list[bool | StoreUnavailable]:
        calls = [
            Call(
                self._extend,
                self._keys(lease.key),
                (_digits(lease.token), _plain(lease.holder), _ms(ttl)),
            )
            for lease, ttl in leases
        ]
        if not calls:
            return []
        within = min(within, self._servers.time_allowed)
        answers = self._servers.ask(calls, within, min_replicas=self._min_replicas)
        extended = [
            self._unavailable(answer, call) if isinstance(answer, Exception) else self._is_ours(lease, answer)
            for (lease, _), call, answer in zip(leases, calls, answers, strict=True)
        ]
        errors = [each for each in extended if isinstance(each, StoreUnavailable)]
        if len(errors) == len(extended):
            raise errors[0]
        return extended

    def release(self, lease: Lease, *, hold_for: float = 0, remember_for: float = 0, whole: bool = False) -> bool:
        run = lease.whole if whole else lease.run
        answer = self._call(
            self._release,
            self._keys(lease.key, run),
            (_digits(lease.token), _plain(lease.holder), _ms(hold_for), _ms(remember_for), _mark(run or "")[1]),
            # a run that is known to have ended must not be forgotten
            replicated=run is not None and remember_for > 0,
            released=lease.token,
        )
        return self._is_ours(lease, answer)

    def free(self, key: str, *, holder: str) -> bool:
        answer = self._call(self._free, self._keys(key), (_plain(holder),))
        return bool(answer == 1)

    def _is_ours(self, lease: Lease, answer: int) -> bool:
        if answer == -1:
            (where,) = self._keys(lease.key)
            logger.error(
                "lock %r is lost: key %r in Redis was overwritten by what is no lock; delete it", lease.key, where
            )
        return answer in (1, -lease.token)

    def _waits_until(self, asked: float, within: float) -> str:
        """The server's time until which an answer to what is asked now has somebody who waits for it; 0: not known."""
        if self._seen is None:
            return "0"
        then, server_ms = self._seen
        return str(server_ms + math.ceil(((asked - then) * 1.01 + within) * 1000))

    def join(self, app: str, replica: str, *, cold_start: float | None = None) -> Joined:
        names = ("replicas", "listing", "cold_start", f"names:{_plain(replica)}")
        earlier = "" if cold_start is None else round(cold_start * 1000)
        args = (_plain(replica), _ms(ALIVE), _ms(STATE_MEMORY), earlier)
        started, now = self._call_beats(app, self._join, names, args)
        if started < 0:
            (where,) = self._beat_keys(app, "cold_start")
            raise UnreadableKey(
                f"key {where!r} in Redis is no time: this beat joins the others once it is deleted, or once they are gone"
            )
        return Joined(started / 1000, now / 1000)

    def list_entries(
        self,
        app: str,
        replica: str,
        entries: Sequence[tuple[str, EntryState]],
        *,
        removed: Sequence[str] = (),
        complete: bool = False,
    ) -> list[EntryState]:
        listed = f"names:{_plain(replica)}"
        names = ("entries", "unlisted", "replicas", "listing", listed, "claims", "pending", "cold_start")
        args: list[Any] = [_plain(replica), _ms(STATE_MEMORY), int(complete), self._beat_keys(app, "names:")[0]]
        args += (len(removed), *map(_exact, removed))
        for name, state in entries:
            args += (_exact(name), state.total_run_count, _exact(state.last_run_at))
        states, unreadable = self._call_beats(app, self._list, names, args, replicated=bool(entries))
        self._tell_unreadable(app, unreadable)
        return [_state(text) for text in states]

    def claim(self, app: str, replica: str, claims: Sequence[Claim], *, ttl: float, skip: int = 0) -> Claims:
        names = ("entries", "claims", "pending", "replicas", "listing", "unlisted")
        prefix = self._beat_keys(app, "names:")[0]
        args: list[Any] = [
            _plain(replica),
            _ms(ttl),
            _ms(ALIVE),
            _ms(STATE_MEMORY),
            BACKLOG,
            OVERDUE_AT_ONCE,
            skip,
            prefix,
        ]
        for claim in claims:
            entry = _exact(claim.entry)
            told = b"%d %b%b" % (len(entry), entry, json.dumps(claim.details, separators=(",", ":")).encode())
            args += (entry, claim.state.total_run_count, _exact(claim.state.last_run_at), _plain(claim.task_id), told)
        within = min(ttl, self._servers.time_allowed)  # a later answer is not published
        answer = self._call_beats(app, self._claim, names, args, replicated=bool(claims), within=within)
        now, listed, until, refusals, told, unreadable = answer
        self._tell_unreadable(app, unreadable)
        overdue = {pair: _overdue(*pair) for pair in zip(told[::2], told[1::2], strict=True)}
        self._drop_unreadable(app, [pair for pair, claim in overdue.items() if claim is None])
        return Claims(
            [_state(refusal) if refusal else None for refusal in refusals],
            [claim for claim in overdue.values() if claim is not None],
            None if until < 0 else until / 1000,
            now / 1000,
            bool(listed),
        )

    def take_over(self, app: str, replica: str, task_ids: Sequence[str], *, ttl: float) -> list[bool]:
        args = (_plain(replica), _ms(ttl), *map(_plain, task_ids))
        taken = self._call_beats(app, self._take_over, ("claims", "pending"), args, replicated=True)
        return [answer == 1 for answer in taken]

    def settle(
        self, app: str, replica: str, published: Sequence[tuple[str, str]], *, handed_over: Sequence[str] = ()
    ) -> list[bool]:
        args: list[Any] = [_plain(replica), len(published)]
        for task_id, entry in published:
            args += (_plain(task_id), _exact(entry))
        args += map(_plain, handed_over)
        settled = self._call_beats(app, self._settle, ("entries", "claims", "pending"), args)
        return [answer == 1 for answer in settled]

    def leave(self, app: str, replica: str) -> None:
        self._call_beats(app, self._leave, ("replicas", "listing"), (_plain(replica),))

    # -- announcements -------------------------------------------------------------------------------------------------

    def announce(self, app: str, kind: str, told: Mapping[str, str], *, ttl: float) -> None:
        args: list[Any] = [_ms(ttl)]
        for name, text in told.items():
            args += (_exact(name), text)
        self._call_beats(app, self._announce, (f"announced:{kind}", f"until:{kind}"), args)

    def announced(
        self, app: str, kind: str, names: Sequence[str] | None = None, *, limit: int = LISTED_AT_MOST
    ) -> list[Announcement]:
        if names is not None and not names:
            return []
        args = [limit, *map(_exact, names or ())]
        now, told = self._call_beats(app, self._announced, (f"announced:{kind}", f"until:{kind}"), args)
        found = []
        for name, value in zip(told[::2], told[1::2], strict=True):
            match = _ANNOUNCED.fullmatch(value)
            if match is not None and int(match[3]) > now:  # else it was not written by us
                first, last = int(match[1]) / 1000, (now - int(match[2])) / 1000
                found.append(Announcement(_read(name), _text(match[4]), first, last))
        return found

    # -- operators -----------------------------------------------------------------------------------------------------

    def held(self, key: str | None = None, *, limit: int = LISTED_AT_MOST) -> list[LiveLock]:
        if key is not None:
            (name,) = self._keys(key)
            return self._live_locks(self._node_of(name), [name.encode()])
        # the prefix as it is, though some of its characters stand for others in a pattern
        pattern = re.sub(r"([*?\[\]\\^])", r"\\\1", self._prefix) + "lock:{*"
        found: dict[str, LiveLock] = {}  # SCAN may tell a key twice
        for node in self._primaries():
            for keys in self._scan(node, "SCAN", "MATCH", pattern):
                found.update((lock.key, lock) for lock in self._live_locks(node, keys))
                if len(found) >= limit:
                    return list(found.values())[:limit]
        return list(found.values())

    def _live_locks(self, node: Node, keys: Sequence[bytes]) -> list[LiveLock]:
        time_, *values = self._answers(node, ("TIME",), *(("GET", key) for key in keys))
        now = _seconds(self._told(time_))
        locks = []
        for key, value in zip(keys, values, strict=True):
            if isinstance(value, ResponseError) and refuses(value):
                self._told(value)
            # what is not a lock's text was not written by us
            match = _LOCK.fullmatch(value) if isinstance(value, bytes) else None
            if match is None or int(match["until"]) <= now * 1000:
                continue
            tag = _unquoted(key[len(f"{self._prefix}lock:{{".encode()) : -1])
            holder, run = _unquoted(match["holder"]), _unquoted(match["run"])
            remaining = int(match["until"]) / 1000 - now
            locks.append(LiveLock(tag, holder, _described(match["description"]), run, int(match["token"]), remaining))
        return locks

    def status(self, app: str, *, limit: int = LISTED_AT_MOST) -> Beats:
        entries, replicas, listing, pending = self._beat_keys(app, "entries", "replicas", "listing", "pending")
        node = self._node_of(entries)
        time_, answer = self._answers(node, ("TIME",), ("ZRANGE", replicas, 0, limit - 1))
        now, names = _seconds(self._told(time_)), self._told(answer)
        overdue, *heard = self._answers(
            node, ("ZCOUNT", pending, "-inf", f"{now * 1000:.0f}"), *(("ZSCORE", replicas, name) for name in names)
        )
        incomplete = set(self._members(node, "SSCAN", listing, limit=limit))
        lists = [
            self._members(node, "SSCAN", f"{self._beat_keys(app, 'names:')[0]}{name.decode('latin-1')}", limit=limit)
            for name in names
        ]
        fields = self._members(node, "HSCAN", entries, limit=2 * limit)
        try:
            told = [
                Replica(
                    _unquoted(name),
                    now - float(last) / 1000 if float(self._told(last) or 0) else math.inf,
                    frozenset(map(_read, listed)),
                    name not in incomplete,
                )
                for name, last, listed in zip(names, heard, lists, strict=True)
            ]
            states = dict(zip(fields[::2], fields[1::2], strict=True))
            stored = [
                StoredEntry(_read(name), _state(text), int(text.split(b" ", 2)[1])) for name, text in states.items()
            ]
        except ValueError as exc:
            raise StoreUnavailable(f"{self._where} has what no beat wrote, in {entries} or near it: {exc}") from exc
        return Beats(told, stored, self._told(overdue))

    def _members(self, node: Node, command: str, key: str, *, limit: int) -> list[bytes]:
        found: list[bytes] = []
        for some in self._scan(node, command, key):
            found += some
            if len(found) >= limit:
                break
        return found[:limit]

    def _scan(self, node: Node, command: str, *arguments: str) -> Iterator[list[bytes]]:
        """Go through all keys (SCAN), or what is in one of them, by and by. Raises StoreUnavailable."""
        cursor: Any = 0
        before, after = ((), arguments) if command == "SCAN" else (arguments, ())
        while True:
            (answer,) = self._answers(node, (command, *before, cursor, *after, "COUNT", SCANNED_AT_ONCE))
            cursor, some = self._told(answer)
            yield some
            if int(cursor) == 0:
                return

    def facts(self, app: str) -> list[ServerFacts]:
        """Ask each server about itself, and try what this store and the beats of ``app`` need. Raises StoreUnavailable.

        What is not permitted is among the facts. The trial leaves nothing behind.
        """
        return [self._facts_of(node, app) for node in self._primaries()]

    def _facts_of(self, node: Node, app: str) -> ServerFacts:
        notes: dict[str, ResponseError] = {}
        self._note(notes, node, ("TIME",))  # it connects
        round_trips, clock_ahead = [], 0.0
        for _ in range(ROUND_TRIPS):
            asked, wall = monotonic(), time.time()
            told = self._note(notes, node, ("TIME",))
            round_trips.append(monotonic() - asked)
            if told is not None:
                clock_ahead = wall + round_trips[-1] / 2 - _seconds(told)
        self._try_all(notes, node, app)
        info, save = self._answers(node, ("INFO",), ("CONFIG", "GET", "save"))
        refused = {command: str(exc) for command, exc in notes.items() if refuses(exc)}
        told_info = _info(info)
        return ServerFacts(
            address=node.address,
            info=told_info,
            remembered=self._remembered(node) if told_info.get("maxmemory") else None,
            save=None if isinstance(save, ResponseError) else _text((_pairs(save) or {}).get(b"save", b"")),
            clock_ahead=clock_ahead,
            round_trips=round_trips,
            refused=refused,
            failing={command: str(exc) for command, exc in notes.items() if command not in refused},
            asks_cluster=isinstance(self._servers, Cluster),
        )

    def _remembered(self, node: Node) -> float | None:
        """Estimate the bytes that finished runs take, by some of the keys: SCAN tells them in the order of their hashes."""
        (keys,) = self._answers(node, ("DBSIZE",))
        seen, ended, size = 0, 0, 0
        lock, done = (f"{self._prefix}{kind}:".encode() for kind in ("lock", "done"))
        try:
            for number, some in enumerate(self._scan(node, "SCAN"), 1):
                seen += len(some)
                locks = [key for key in some if key.startswith(lock)]
                values = self._answers(node, *(("GET", key) for key in locks)) if locks else []
                # without a holder: what is remembered in the lock's own key, or the counter of its tokens
                over = [key for key, value in zip(locks, values, strict=True) if _is_over(value)]
                over += [key for key in some if key.startswith(done)]
                ended, size = ended + len(over), size + sum(map(len, over))
                if number == SAMPLES:
                    break
            return (size + ended * BESIDE_ITS_NAME) * self._told(keys) / seen if seen else 0.0
        except StoreUnavailable:  # not permitted
            return None

    def _try_all(self, notes: dict[str, ResponseError], node: Node, app: str) -> None:
        """Try all that locks and beats need of a node; note what fails."""
        for key in self._trial_keys(node, app):
            source = ("EVAL", self._probe.source, 1, key, 0)
            _, told = self._note(notes, node, ("EVALSHA", self._probe.sha, 1, key, 0), source) or (0, [])
            for command, error in zip(told[::2], told[1::2], strict=True):
                notes.setdefault(_text(command), ResponseError(_text(error)))
        if self._min_replicas:
            self._note(notes, node, ("WAIT", 0, 1))

    def _trial_keys(self, node: Node, app: str) -> list[str]:
        """Name keys that this node has and that nobody uses: a lock's, a run's and, where it has them, of the beats."""
        tags = (f"{_TRIAL}{number}" for number in range(SLOTS))
        tag = next((tag for tag in tags if self._node_of(f"{self._prefix}lock:{{{tag}}}") is node), None)
        locks = [] if tag is None else [f"{self._prefix}lock:{{{tag}}}", f"{self._prefix}done:{{{tag}}}:{_TRIAL}"]
        return [*locks, *(key for key in self._beat_keys(app, _TRIAL) if self._node_of(key) is node)]

    def _note(self, notes: dict[str, ResponseError], node: Node, *commands: tuple[Any, ...]) -> Any:
        """Carry out one command, and the next where the server knows no such script; note what it says to the last."""
        answer: Any = None
        for command in commands:
            (answer,) = self._answers(node, command)
            if not isinstance(answer, NoScriptError):
                break
        if not isinstance(answer, ResponseError):
            return answer
        notes.setdefault(str(command[0]), answer)
        return None

    def _told(self, answer: Any) -> Any:
        """Return an answer that is none of refusal. Raises StoreUnavailable."""
        if isinstance(answer, ResponseError):
            raise self._unavailable(answer) from answer
        return answer

    def _answers(self, node: Node, *commands: tuple[Any, ...]) -> list[Any]:
        """Carry out commands; a refusal is an answer too. Raises StoreUnavailable."""
        try:
            return node.converse([Request.of(*words) for words in commands], self._servers.timeout)
        except (RedisError, OSError) as exc:
            raise self._unavailable(exc) from exc

    def _primaries(self) -> list[Node]:
        try:
            return list(self._servers.primaries())
        except (RedisError, OSError) as exc:
            raise self._unavailable(exc) from exc

    def _node_of(self, key: str) -> Node:
        try:
            return self._servers.node_of(key)
        except (RedisError, OSError) as exc:
            raise self._unavailable(exc) from exc

    def check(self) -> None:
        if self._checked:
            return
        try:
            facts = self._check_versions()
            self._check_permissions()
        except StoreRefused as exc:
            # who only begins here has done nothing yet under settings that were right
            raise ConfigurationError(str(exc)) from exc
        self._checked = True
        for memory in facts:
            if memory.get("maxmemory", "0") != "0" and memory.get("maxmemory_policy") != "noeviction":
                logger.warning(EVICTS, memory.get("maxmemory_policy"), int(memory["maxmemory"]) / 2**20)
                break

    def _check_versions(self) -> list[dict[str, str]]:
        """Refuse a server that is too old; return what each tells of its memory."""
        try:
            facts = self._servers.facts()
        except (RedisError, OSError) as exc:
            raise self._unavailable(exc) from exc
        for version, _ in facts:
            if version and tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
                oldest = ".".join(map(str, OLDEST))
                raise ConfigurationError(f"the Redis of the locks is of version {version}; allowed: from {oldest} on")
        return [memory for _, memory in facts]

    def _check_permissions(self) -> None:
        for node in self._primaries():
            # in a Cluster they are on all of its nodes
            spread = [("EXISTS", f"{self._prefix}lock:{{{_TRIAL}{number}}}") for number in range(SPREAD)]
            for answer in self._answers(node, *spread):
                if isinstance(answer, MovedError) and not isinstance(self._servers, Cluster):
                    raise self._unavailable(answer)
            notes: dict[str, ResponseError] = {}
            self._try_all(notes, node, "")
            refused = [f"{command}: {exc}" for command, exc in notes.items() if refuses(exc)]
            if refused:
                raise StoreRefused(f"{self._where} refuses us: {'; '.join(refused)}")

    def close(self) -> None:
        self._servers.close()

    def twin(self) -> RedisStore:
        twin = copy.copy(self)
        twin._servers = self._servers.anew()
        _stores.add(twin)
        return twin

    def leave_the_parents(self) -> object:
        """Start anew in a forked child; returns what must not be touched there."""
        parents, self._servers = self._servers, self._servers.anew()
        return parents

    def _keys(self, key: str, *runs: str | None) -> tuple[str, ...]:
        """Name the keys of one operation; the tag in braces puts them on one Cluster node."""
        tag = _plain(key)
        lock, done = f"{self._prefix}lock:{{{tag}}}", f"{self._prefix}done:{{{tag}}}:"
        return (lock, *[done + _mark(run)[0] for run in runs if run is not None])

    def _beat_keys(self, app: str, *names: str) -> tuple[str, ...]:
        """Name keys of an app's beats; what stands before the app's name keeps the tag from being empty."""
        return tuple(f"{self._prefix}{{beat:{_plain(app)}}}:{name}" for name in names)

    def _call_beats(
        self,
        app: str,
        script: Script,
        names: Sequence[str],
        args: Sequence[Any],
        *,
        replicated: bool = False,
        within: float | None = None,
    ) -> Any:
        """Call a script on keys of an app's beats; those that hold another type are renamed, and count as lost."""
        keys, words = self._beat_keys(app, *names), tuple(map(to_word, args))
        try:
            return self._call(script, keys, words, replicated=replicated, within=within)
        except StoreUnavailable as exc:
            if not isinstance(exc.__cause__, ResponseError) or "WRONGTYPE" not in str(exc.__cause__):
                raise
        prefix = self._beat_keys(app, "names:")[0]
        what = (prefix, _ms(STATE_MEMORY), *BEAT_KEYS.values())
        renamed = self._call(self._set_aside, self._beat_keys(app, *BEAT_KEYS), what)
        for key, kind in zip(renamed[::2], renamed[1::2], strict=True):
            logger.error(
                "key %r in Redis is a %s, which no beat of %r has written: what it held is lost, and it is renamed to"
                " '...:unreadable' for a week, unless you delete it before",
                *(_text(key), _text(kind), app),
            )
        # whatever of it was carried out before it failed, it can be repeated
        return self._call(script, keys, words, replicated=replicated, within=within)

    def _tell_unreadable(self, app: str, unreadable: Sequence[bytes]) -> None:
        for entry, begins in zip(unreadable[::2], unreadable[1::2], strict=True):
            (where,) = self._beat_keys(app, "entries")
            text = "the state of entry %r in key %r in Redis is none (%r...): it counts as lost, and is written anew"
            logger.error(text, _read(entry), where, begins)

    def _drop_unreadable(self, app: str, unreadable: Sequence[tuple[bytes, bytes]]) -> None:
        if not unreadable:
            return
        for task_id, told in unreadable:
            (where,) = self._beat_keys(app, "claims")
            text = (
                "claim %r in key %r in Redis is none (%r...), and is dropped: its tick is lost, if it was not yet sent"
            )
            logger.error(text, _text(task_id), where, told[:64])
        pairs = [part[:CLAIM_AT_MOST] for pair in unreadable for part in pair]
        self._call_beats(app, self._drop, ("claims", "pending"), pairs)

    def _call(
        self,
        script: Script,
        keys: tuple[str, ...],
        args: tuple[str, ...],
        *,
        replicated: bool = False,
        within: float | None = None,
        released: int = 0,
    ) -> Any:
        call = Call(script, keys, args, released)
        within = self._servers.time_allowed if within is None else within
        if replicated and self._min_replicas:
            (answer,) = self._servers.ask([call], within, min_replicas=self._min_replicas)
        else:
            answer = self._servers.ask_one(call, within)
        if isinstance(answer, Exception):
            raise self._unavailable(answer, call) from answer
        return answer

    def _unavailable(self, exc: Exception, call: Call | None = None) -> StoreUnavailable:
        # Nothing is undone: a lease that was written ends with its ttl, and asking again gives it back.
        told = why(exc, call, self._min_replicas)
        if self._servers.says_no(exc):
            says = "is not as its URL says" if isinstance(exc, WrongServer) else "refuses us"
            return StoreRefused(self._spell(f"{self._where} {says}: {told}"))
        says = "answers" if isinstance(exc, (ResponseError, TooFewReplicas)) else "does not answer"
        return StoreUnavailable(self._spell(f"{self._where} {says}: {told}"))


def _seconds(answer: Any) -> float:
    """Read an answer to TIME."""
    whole, micro = map(int, answer)
    return whole + micro / 1e6


def _info(answer: Any) -> dict[str, Any]:
    """Read an answer to INFO, its numbers as such."""
    return {name: int(value) if value.isdigit() else value for name, value in info_of(answer).items()}


def _pairs(answer: Any) -> Any:
    """Read a mapping, which RESP2 has no form for."""
    return dict(zip(answer[::2], answer[1::2], strict=True)) if isinstance(answer, list) else answer


def _is_over(lock: Any) -> bool:
    return isinstance(lock, bytes) and lock[29:30] == b" "


def _described(description: bytes) -> str:
    return _text(description.removesuffix(_USED_BEFORE.encode()))


def _text(text: bytes) -> str:
    """Read what is only shown."""
    shown = text.decode("utf-8", "replace")
    return shown if shown.isprintable() else "".join(char if char.isprintable() else "?" for char in shown)


@lru_cache(maxsize=256)  # they are few: a task's ttl, and that of what is remembered
def _ms(seconds: float) -> str:
    """Round up: a lease must not end before its holder expects."""
    return str(math.ceil(min(seconds, LONGEST) * 1000))


def _digits(token: int) -> str:
    return f"{token:016d}"


def _readable(text: str) -> str:
    if text.isascii():
        return text[:LONGEST_DESCRIPTION]
    return to_word(text.encode("utf-8", "backslashreplace")[:LONGEST_DESCRIPTION])


def _exact(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _read(exact: bytes) -> str:
    try:
        return exact.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        # not written by us
        return exact.decode("utf-8", "backslashreplace")


def _unquoted(plain: bytes) -> str:
    """Read what ``_plain`` has written; what was cut is read as it is."""
    try:
        return plain.decode() if b"%~" in plain else unquote(plain, errors="surrogatepass")
    except UnicodeDecodeError:  # it has not written this
        return _text(plain)


def _state(text: bytes) -> EntryState:
    count, _pending, last_run_at = text.split(b" ", 2)
    return EntryState(int(count), _read(last_run_at))


def _overdue(id_: bytes, told: bytes) -> Overdue | None:
    """Read a claim; None: it is none that we have written."""
    match = _CLAIM.fullmatch(told) if len(told) <= CLAIM_AT_MOST else None
    if match is None:
        return None
    run, length, rest = int(match[1]), int(match[2]), match[3]
    try:
        task_id, entry = unquote(id_.decode()), rest[:length].decode("utf-8", "surrogatepass")
        details = json.loads(rest[length:])
    except (ValueError, RecursionError):
        return None
    # an id that we would write in another way could never be taken over
    ours = isinstance(details, dict) and (task_id.encode() == id_ or _plain(task_id).encode() == id_)
    return Overdue(task_id, entry, run, details) if ours else None


def _plain(text: str) -> str:
    """Write any text, one to one, without blanks, braces and control characters: it fits a hash tag and a field.

    ``quote`` puts out no ``%`` that two hex digits do not follow: ``%~`` can come from nowhere else.
    """
    if _is_plain(text):
        return text
    quoted = quote(text, safe="!$&'()*+,/:;=@", errors="surrogatepass")
    if len(quoted) <= LONGEST_KEY:
        return quoted
    return f"{quoted[:64]}%~{hashlib.sha256(quoted.encode()).hexdigest()}"


@lru_cache(maxsize=256)  # an acquire asks for what its release will
def _mark(run: str) -> tuple[str, str]:
    """Write the name of a run as what remembers its end is named, and as a lock itself remembers it, "" where it must not.

    Release 0.1.0 may look for those that it would name alike. The others have 12 characters, for they are kept for long:
    72 bits, among the runs of one key in an hour or two.
    """
    if not told_apart(run):
        return _plain(run), ""
    name = run.encode("utf-8", "surrogatepass")
    digest = urlsafe_b64encode(hashlib.blake2b(name, digest_size=9).digest()).decode()
    return digest, digest


# In a forked child redis-py waits for its own locks, which a thread that is not there may hold: each store gets new
# clients, and the parent's are kept, unused, for their destructors take those locks too.
_stores: weakref.WeakSet[RedisStore] = weakref.WeakSet()
_inherited: list[object] = []


def _leave_the_parents() -> None:
    _inherited.extend([store.leave_the_parents() for store in _stores])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_the_parents)

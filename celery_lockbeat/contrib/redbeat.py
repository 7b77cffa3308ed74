"""RedBeat's schedule and API, fired by any number of beats at once.

Promises: entries stay RedBeat's, in its Redis and its format, and what "due" means is RedBeat's own: by the score in its
sorted set, and by the entry's schedule since its last run. Each entry is read again right before it is claimed, and a tick
that nobody has published in time is dropped when its entry has been deleted or disabled meanwhile. RedBeat may run in turn
with this scheduler, not beside it. What a Redis that has lost its data lacks of the static entries is put back.

When did an entry run last? Between two writes by others the truth is the store's, where ticks are claimed; RedBeat's meta and
score follow once a tick is published. A meta that is not the one we wrote (``reschedule()``, a new entry, plain RedBeat)
is the new truth from then on: the entry goes on under another key in the store, so nothing that was claimed before counts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import MINYEAR, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from typing import Any, Final
from uuid import uuid4

from redbeat.decoder import RedBeatJSONDecoder, RedBeatJSONEncoder
from redbeat.schedulers import RedBeatScheduler, RedBeatSchedulerEntry, ensure_conf, get_redis
from redbeat.schedulers import logger as redbeats_logger
from redis.cluster import RedisCluster
from redis.exceptions import RedisError, ResponseError

from celery_lockbeat.beat.scheduler import LockedSchedulerMixin, logger
from celery_lockbeat.exceptions import ConfigurationError, StoreUnavailable

__all__ = ["LockedRedBeatScheduler"]

#: The oldest RedBeat that will do.
OLDEST: Final = (2, 2)

#: So many entries are read or written in one round trip.
AT_ONCE: Final = 500

#: So many entries are told by name in one line.
NAMED_AT_MOST: Final = 100

#: Redis's word for the rest of the time of a key that is not there.
FREE: Final = -2

#: Our own field in the hash of an entry: '<life> <epoch> <digest of the meta that goes with them>'. A life begins where a
#: hash does, or where plain RedBeat has run; an epoch with each meta that is not ours. RedBeat deletes it with the hash.
MARK: Final = "lockbeat"

FIELDS: Final = ("definition", "meta", MARK)

#: Stands among the names of the static entries, so that this set, once there, is there until its Redis loses its data, though a
#: new release has no static entry any more. RedBeat's own setup takes it for one of an earlier release, and off.
KEPT: Final = ":lockbeat"

_KEY: Final = re.compile(r"(.*)@([0-9a-f]{16})\.[0-9a-f]{16}", re.DOTALL)

# Write down what entries have become by their runs.
# KEYS     RedBeat's sorted set, then the hashes of the entries
# ARGV     for each: the score that it had, then its new meta, mark and score
# Returns  for each 1, or 0: it is gone, or its score has changed, so that somebody else has written meanwhile
# Atomic:  a deleted entry must not come to life again, nor a newer run or reschedule() be overwritten.
_WRITE: Final = """
local scores = redis.call('ZMSCORE', KEYS[1], unpack(KEYS, 2))
local written, changed = {}, {}
for i = 1, #KEYS - 1 do
  local given = 4 * i - 3
  written[i] = 0
  if scores[i] and tonumber(scores[i]) == tonumber(ARGV[given]) then
    redis.call('HSET', KEYS[i + 1], 'meta', ARGV[given + 1], 'lockbeat', ARGV[given + 2])
    changed[#changed + 1], changed[#changed + 2] = ARGV[given + 3], KEYS[i + 1]
    written[i] = 1
  end
end
if #changed > 0 then
  redis.call('ZADD', KEYS[1], unpack(changed))
end
return written
"""


# Put an entry back that Redis has lost.
# KEYS     its hash
# ARGV     its definition, meta and mark
# Returns  1, or 0: it is there, for another beat was first, or somebody has made it anew
# Atomic:  a meta goes with its mark; with that of another beat it would be plain RedBeat's.
_PUT_BACK: Final = """
if redis.call('HEXISTS', KEYS[1], 'definition') == 1 then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'definition', ARGV[1], 'meta', ARGV[2], 'lockbeat', ARGV[3])
return 1
"""


@dataclass(slots=True)
class _Stored:
    """An entry as RedBeat's Redis has it. ``key`` is its name in our store, ``run`` the one that its meta tells of."""

    entry: Any
    key: str
    fields: tuple[str, str, str]
    score: float
    run: int


class LockedRedBeatScheduler(LockedSchedulerMixin, RedBeatScheduler):  # type: ignore[misc]
    """RedBeat's scheduler, on any number of replicas, without its leader lock; settings and entries are RedBeat's.

    What RedBeat cannot keep of ``beat_schedule`` (a ``@timeout``, a ``@cron`` with a timezone, a solar schedule) is kept
    here, as :class:`~celery_lockbeat.LockedScheduler` does. Raises ConfigurationError for a RedBeat that is too old.
    """

    trusted_for = 0.5
    gather = 0.2

    def __init__(self, app: Any, **kwargs: Any) -> None:
        _refuse_old_redbeat()
        self._stored: dict[str, _Stored] = {}  # by the keys of the hashes
        self._own: dict[str, Any] = {}  # what RedBeat cannot keep, by name
        self._statics: set[str] = set()  # the keys of the static entries
        self._gone: dict[str, _Stored] = {}  # what was not there any more since the look before the last one
        self._to_set_up = self._is_set_up = self._has_looked = False
        self._has_kept = False  # whether KEPT is in Redis, unless that has lost its data
        self._unwritten: set[str] = set()
        super().__init__(app, **kwargs)
        # before RedBeat's receiver of beat_init looks for it
        self.lock_key = None

    def setup_schedule(self) -> None:
        """Leave it to the first tick: a Redis that does not answer yet is waited for."""
        self._to_set_up = True

    def update_from_dict(self, dict_: Mapping[str, Any]) -> None:
        """Store static entries, as far as RedBeat can read them again."""
        for name, definition in dict_.items():
            try:
                entry = self._maybe_entry(name, definition)
            except Exception:  # noqa: BLE001  whatever a user wrote
                logger.exception("static entry %r is skipped, for it is broken: %r", name, definition)
                continue
            if not _can_be_stored(entry):
                self._own[name] = entry
                continue
            self._statics.add(self.app.redbeat_conf.key_prefix + name)
            try:
                super().update_from_dict({name: definition})
            except (RedisError, OSError):
                raise
            except Exception:  # noqa: BLE001  whatever is in there
                logger.exception("static entry %r is broken in Redis, and stored anew", name)
                entry.save()

    @property
    def schedule(self) -> dict[str, Any]:
        """All entries by their names: those in Redis, and those of our own. Raises StoreUnavailable before the first look."""
        if not self._has_looked:
            self.refresh_schedule()
        return {**{each.entry.name: each.entry for each in self._stored.values()}, **self._own}

    def _entries_by_key(self) -> Mapping[str, Any]:
        # not by their names: of what was written by hand, two may have one
        prefix = self.app.redbeat_conf.key_prefix
        hidden = {prefix + name for name in self._own}
        stored = {each.key: each.entry for key, each in self._stored.items() if key not in hidden}
        return {**stored, **self._keyed(self._own)}

    def defines(self, entry: Any) -> bool:
        """Whether the entry is one of our own, that the others cannot read from where the rest is."""
        return getattr(entry, "lockbeat_stored", None) is None

    def reserve(self, entry: Any) -> Any:
        """Keep the entry; :meth:`record_runs` tells Redis of its run."""
        return entry

    def is_due(self, entry: Any) -> tuple[bool, float | None]:
        """Tell (is due, seconds until the next look), by RedBeat's two rules: the score, and the schedule."""
        stored = getattr(entry, "lockbeat_stored", None)
        if stored is None:
            due: tuple[bool, float | None] = super().is_due(entry)
            return due
        if stored.score < 0:
            return False, None
        wait = stored.score - self.app.now().timestamp()
        is_due, delay = entry.is_due()
        if wait > 0:
            # scores are whole seconds, and so a little early
            return False, wait if is_due or delay is None else max(wait, delay)
        if not is_due and delay is not None:
            # what has its score behind it may become due by a mere change of its fields
            delay = min(delay, self.max_interval)
        return is_due, delay

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send a message as RedBeat's ``maybe_due`` does, by ``apply_async`` alone: what wraps both would count it twice."""
        redbeats_logger.info("Scheduler: Sending due task %s (%s)", entry.name, entry.task)
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except Exception as exc:  # noqa: BLE001  as RedBeat
            redbeats_logger.exception("Scheduler: Message Error: %s", exc)

    # -- read ----------------------------------------------------------------------------------------------------------

    def refresh_schedule(self) -> None:
        """Follow what was added, removed, or made due earlier; all else is seen when it is due."""
        with _redbeats_redis():
            if self._to_set_up and not self._is_set_up:
                self._set_up()
                self._is_set_up = True
            self._write_down()
            scores, has_kept = self._look()
            gone, self._gone = self._gone, {key: self._stored.pop(key) for key in self._stored.keys() - scores.keys()}
            gone |= self._gone
            # without static entries there is no such set; then several that are gone at once must do
            if not has_kept if self._has_kept else len(gone) > 1 and not scores:
                scores |= self._make_up_for(gone, scores)
            changed = self._without_hash(scores)
            for key, score in scores.items():
                stored = self._stored.get(key)
                if stored is None or stored.score < 0 <= score or score < stored.score:
                    changed.append(key)
                else:
                    # it has run, most often: to be read when it is due again
                    stored.score = score
            self._read(changed, anew=True)
            self._has_looked = True

    def _set_up(self) -> None:
        """Store the static entries, and remove those of earlier releases, as RedBeat does; ``KEPT`` is there all the while."""
        client, conf = get_redis(self.app), self.app.redbeat_conf
        stored = {_text(name) for name in client.smembers(conf.statics_key)}
        self._has_kept = bool(stored or conf.schedule)
        if self._has_kept:
            client.sadd(conf.statics_key, KEPT)
        for name in stored - {KEPT} - conf.schedule.keys():
            RedBeatSchedulerEntry(name, app=self.app).delete()
            client.srem(conf.statics_key, name)
        self.install_default_entries(conf.schedule)
        self.update_from_dict(conf.schedule)
        if conf.schedule:
            client.sadd(conf.statics_key, *conf.schedule)

    def _look(self) -> tuple[dict[str, float], bool]:
        """Return the scores of all entries, and whether the set with ``KEPT`` is there."""
        conf = self.app.redbeat_conf
        with get_redis(self.app).pipeline(transaction=False) as pipe:
            # before the scores: what is lost from here on is seen as gone now, and as lost at the next look
            pipe.exists(conf.statics_key)
            pipe.zrange(conf.schedule_key, 0, -1, withscores=True)
            if conf.lock_key:
                pipe.pttl(conf.lock_key)
            has_kept, found, *rest = _answers(pipe)
        if rest:
            self._notice_plain_redbeat(rest[0])
        return {_text(key): score for key, score in found}, bool(has_kept)

    def _notice_plain_redbeat(self, rest: int) -> None:
        """Say that a plain RedBeat holds its lock, for another ``rest`` milliseconds."""
        about, key = "plain RedBeat", self.app.redbeat_conf.lock_key
        if rest == FREE:
            if self._complaints.end(about):
                logger.info("nobody holds RedBeat's lock %r any more", key)
            return
        text = (
            "a beat of plain RedBeat runs beside this one, and they double each other's ticks: it holds RedBeat's lock %r. "
            "Stop it; if it was killed, its lock ends in %.0f s"
        )
        self._complaints.make(about, text, key, max(0, rest) / 1000)

    def _make_up_for(self, gone: Mapping[str, _Stored], scores: Mapping[str, float]) -> dict[str, float]:
        """Put the static entries back into a Redis that has lost its data, as they were; tell what else is gone.

        What has been deleted while Redis has its data stays deleted, as with RedBeat, until the next start of a beat.
        """
        client, conf = get_redis(self.app), self.app.redbeat_conf
        gone = {key: each for key, each in gone.items() if key not in scores}
        static = {key: each for key, each in gone.items() if key in self._statics}
        for key, stored in static.items():
            self._put_back(key, stored)
        keys = {name: conf.key_prefix + name for name in conf.schedule}
        there = {*scores, *static, *map(keys.get, self._own)}
        self.update_from_dict({name: conf.schedule[name] for name, key in keys.items() if key not in there})
        if self._has_kept:
            client.sadd(conf.statics_key, KEPT, *keys)
        if static:
            names = _listed(each.entry.name for each in static.values())
            logger.warning("RedBeat's Redis has lost its data: the static entries are put back: %s", names)
        if dynamic := _listed(each.entry.name for key, each in gone.items() if key not in static):
            doubt = "" if self._has_kept else ", unless somebody has deleted them all"
            text = "RedBeat's Redis has lost its data%s: these entries are gone, save them again: %s"
            logger.error(text, doubt, dynamic)
        self._stored.update(static)
        self._gone = {}
        return {key: stored.score for key, stored in static.items()}

    def _without_hash(self, scores: Mapping[str, float]) -> list[str]:
        """Return the static entries that are in the sorted set, but have lost their hashes."""
        client, keys = get_redis(self.app), list(self._statics & scores.keys() & self._stored.keys())
        if not keys or client.exists(*keys) == len(keys):
            return []
        return [key for key in keys if not client.exists(key)]

    def _put_back(self, key: str, stored: _Stored) -> bool:
        """Store an entry as it was last seen here, unless it is there; return whether it was not."""
        client, (definition, meta, mark) = get_redis(self.app), stored.fields
        was_gone = client.eval(_PUT_BACK, 1, key, definition, meta or "", mark)
        client.zadd(self.app.redbeat_conf.schedule_key, {key: stored.score}, nx=True)
        return bool(was_gone)

    def reread(self, keys: Sequence[str]) -> Mapping[str, tuple[str, Any]]:
        """Tell what is behind these keys now, straight from Redis."""
        lives = {key: (match[1], match[2]) for key in keys if (match := _KEY.fullmatch(key))}
        with _redbeats_redis():
            self._read(list({where for where, _ in lives.values()}))
        told = {}
        for key in keys:
            where, life = lives.get(key, ("", ""))
            stored = self._stored.get(where)
            if stored is not None and _life_of(stored.key) == life:
                told[key] = (stored.key, stored.entry)
            elif not life and (item := self._agenda.get(key)):
                told[key] = (key, item.entry)
        return told

    def _stand_in(self, key: str) -> Any:
        # deleted, rescheduled, or not seen yet
        return self.Entry(key, app=self.app, total_run_count=-1) if _KEY.fullmatch(key) else None

    def _read(self, keys: Sequence[str], *, anew: bool = False) -> None:
        """Bring ``_stored`` up to date. ``anew``: with new entries, so that each of them is planned anew."""
        rest = iter(keys)
        while some := list(islice(rest, AT_ONCE)):
            scores, found = self._fetch(some)
            for key, score, fields in zip(some, scores, found, strict=True):
                self._take_in(key, score, fields, anew=anew)

    def _fetch(self, keys: list[str]) -> tuple[list[float | None], list[Any]]:
        with get_redis(self.app).pipeline(transaction=False) as pipe:
            pipe.zmscore(self.app.redbeat_conf.schedule_key, keys)
            for key in keys:
                pipe.hmget(key, FIELDS)
            scores, *hashes = _answers(pipe)
            found = [_fields(each) for each in hashes]
            unmarked = [n for n, each in enumerate(found) if isinstance(each, tuple) and each[0] and not each[2]]
            if not unmarked:
                return scores, found
            for n in unmarked:
                life = uuid4().hex[:16]
                # of several beats one is the first
                pipe.hsetnx(keys[n], MARK, f"{life} {life} {_digest(found[n][1])}")
                pipe.hmget(keys[n], FIELDS)
            for n, answer in zip(unmarked, _answers(pipe)[1::2], strict=True):
                found[n] = fields = _fields(answer)
                if not fields[0]:
                    # deleted just now: the mark must not stay behind
                    get_redis(self.app).hdel(keys[n], MARK)
        return scores, found

    def _take_in(self, key: str, score: float | None, fields: Any, *, anew: bool) -> None:
        known = self._stored.get(key)
        if known is not None and known.fields == fields and score is not None and not anew:
            known.score = score
            return
        self._stored.pop(key, None)
        if score is None:
            if known is not None:
                # deleted, or lost: the next look tells
                self._gone[key] = known
            return
        if not isinstance(fields, Exception) and not fields[0]:
            if known is not None and key in self._statics:
                self._stored[key] = known
                if self._put_back(key, known):
                    logger.warning("static entry %r was gone from Redis, and is put back", known.entry.name)
            else:
                self._drop(key, score)
            return
        try:
            stored = self._load(key, score, fields)
        except Exception as exc:  # noqa: BLE001  whatever is in there
            self._complaints.make(
                f"entry {key}", "entry %r in Redis is skipped, for it is broken: %s: %s", key, type(exc).__name__, exc
            )
            return
        entry = stored.entry
        if known is not None and known.key == stored.key:
            if known.fields[0] == fields[0] and not anew:
                # nothing but a run: the agenda keeps its entry
                entry = stored.entry = known.entry
            # what the store has told of its runs counts, not what has been written here of them
            entry.last_run_at, entry.total_run_count = known.entry.last_run_at, known.entry.total_run_count
        entry.lockbeat_stored = self._stored[key] = stored

    def _load(self, key: str, score: float, fields: Any) -> _Stored:
        """Make the entry of a hash. Raises whatever is wrong with it."""
        if isinstance(fields, Exception):
            raise fields
        definition, meta, mark = fields
        told = self.Entry.decode_meta(meta)
        life, epoch, digest = mark.split()
        if digest != _digest(meta):
            epoch = _digest(mark + (meta or ""))
            if "total_run_count" in told:
                # plain RedBeat has run: what we had claimed before, it has seen due too
                life = epoch
        entry = self.Entry(app=self.app, **{**self.Entry.decode_definition(definition), **told})
        if not entry.task or entry.schedule is None:
            raise ValueError("it has no task or no schedule")
        # RedBeat's own idea of the last run of what has never run
        entry.last_run_at = told["last_run_at"] or datetime(MINYEAR, 1, 2, tzinfo=entry.schedule.tz)
        entry.last_run_at.isoformat()
        return _Stored(entry, f"{key}@{life}.{epoch}", fields, score, int(told.get("total_run_count") or 0))

    def _drop(self, key: str, score: float) -> None:
        """Take a key without a definition off the sorted set, as RedBeat does; but not while it may be being written."""
        if score <= self.app.now().timestamp() and f"entry {key}" in self._complaints:
            get_redis(self.app).zrem(self.app.redbeat_conf.schedule_key, key)
        self._complaints.make(f"entry {key}", "entry %r in Redis has no definition", key)

    # -- write ---------------------------------------------------------------------------------------------------------

    def record_runs(self, keys: Sequence[str]) -> None:
        """Write last runs and scores, as RedBeat does; what cannot be written now is with the next look."""
        for key in keys:
            match = _KEY.fullmatch(key)
            stored = self._stored.get(match[1]) if match else None
            if match and stored is not None and stored.key == key:
                self._unwritten.add(match[1])
        try:
            with _redbeats_redis():
                self._write_down()
        except StoreUnavailable as exc:
            # the ticks are published: they are settled all the same
            self._complaints.make("redbeat", "beat cannot write down runs, and goes on: %s", exc)

    def _write_down(self) -> None:
        for _ in range(2):
            missed: list[str] = []
            rest = iter([key for key in self._unwritten if self._has_run(key)])
            while some := list(islice(rest, AT_ONCE)):
                written = self._write({key: _after_run(self._stored[key]) for key in some})
                missed += [key for key, done in zip(some, written, strict=True) if not done]
            self._unwritten = set(missed)
            if not missed:
                return
            # somebody else has changed these meanwhile
            self._read(missed)

    def _has_run(self, key: str) -> bool:
        stored = self._stored.get(key)
        return stored is not None and stored.entry.total_run_count > stored.run

    def _write(self, becoming: Mapping[str, _Stored]) -> list[bool]:
        client, schedule_key = get_redis(self.app), self.app.redbeat_conf.schedule_key
        if isinstance(getattr(client, "wrapped_connection", client), RedisCluster):
            written = self._write_to_cluster(client, becoming)
        else:
            args: list[Any] = []
            for key, each in becoming.items():
                args += [self._stored[key].score, *each.fields[1:], each.score]
            written = [done == 1 for done in client.eval(_WRITE, 1 + len(becoming), schedule_key, *becoming, *args)]
        for done, (key, each) in zip(written, becoming.items(), strict=True):
            if done:
                each.entry.lockbeat_stored = self._stored[key] = each
        return written

    def _write_to_cluster(self, client: Any, becoming: Mapping[str, _Stored]) -> list[bool]:
        """Write as the script does, which cannot reach all nodes, but for the moment between its looking and its writing."""
        schedule_key = self.app.redbeat_conf.schedule_key
        scores = client.zmscore(schedule_key, list(becoming))
        written = [self._stored[key].score == score for key, score in zip(becoming, scores, strict=True)]
        ours = [key for key, done in zip(becoming, written, strict=True) if done]
        if ours:
            with client.pipeline(transaction=False) as pipe:
                for key in ours:
                    _, meta, mark = becoming[key].fields
                    pipe.hset(key, mapping={"meta": meta, MARK: mark})
                pipe.zadd(schedule_key, {key: becoming[key].score for key in ours}, xx=True)
                for key in ours:
                    pipe.hexists(key, "definition")
                alive = _answers(pipe)[len(ours) + 1 :]
            for key, there in zip(ours, alive, strict=True):
                if not there:
                    client.hdel(key, "meta", MARK)
        return written


# -- for those who look at them ----------------------------------------------------------------------------------------


def names_of(app: Any, keys: Sequence[str]) -> dict[str, str]:
    """Return the names of entries by their keys in our store, or in RedBeat's Redis."""
    prefix = ensure_conf(app).key_prefix
    told = {key: match[1] if (match := _KEY.fullmatch(key)) else key for key in keys}
    return {key: where.removeprefix(prefix) for key, where in told.items() if where.startswith(prefix)}


def stored_entries(app: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Tell what is in RedBeat's Redis: the tasks of enabled entries, and why others are none. Raises StoreUnavailable."""
    tasks: dict[str, str] = {}
    broken: dict[str, str] = {}
    with _redbeats_redis():
        conf, client = ensure_conf(app), get_redis(app)
        keys = [_text(key) for key in client.zrange(conf.schedule_key, 0, -1)]
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            with client.pipeline(transaction=False) as pipe:
                for key in some:
                    pipe.hget(key, "definition")
                answers = _answers(pipe)
            for key, answer in zip(some, answers, strict=True):
                name = key.removeprefix(conf.key_prefix)
                try:
                    if not answer or isinstance(answer, Exception):
                        raise ValueError("it has no definition")
                    definition = RedBeatScheduler.Entry.decode_definition(_text(answer))
                    if not definition.get("task") or definition.get("schedule") is None:
                        raise ValueError("it has no task or no schedule")
                except Exception as exc:  # noqa: BLE001  whatever is in there
                    broken[name] = f"{type(exc).__name__}: {exc}"
                    continue
                if definition.get("enabled", True):
                    tasks[name] = str(definition["task"])
    return tasks, broken


def plain_redbeat(app: Any) -> str | None:
    """Tell of RedBeat's own lock, if somebody holds it. Raises StoreUnavailable."""
    with _redbeats_redis():
        key, client = ensure_conf(app).lock_key, get_redis(app)
        # without RedBeat's retries, which may have no end
        rest = getattr(client, "wrapped_connection", client).pttl(key) if key else FREE
    return None if rest == FREE else f"somebody holds RedBeat's lock {key!r}, for another {max(0, rest) / 1000:.0f} s"


def _after_run(stored: _Stored) -> _Stored:
    entry = stored.entry
    meta = json.dumps(
        {"last_run_at": entry.last_run_at, "total_run_count": entry.total_run_count}, cls=RedBeatJSONEncoder
    )
    life, _, epoch = stored.key.rpartition("@")[2].partition(".")
    mark = f"{life} {epoch} {_digest(meta)}"
    return _Stored(entry, stored.key, (stored.fields[0], meta, mark), float(entry.score), run=entry.total_run_count)


def _life_of(key: str) -> str:
    return key.rpartition("@")[2].partition(".")[0]


def _can_be_stored(entry: Any) -> bool:
    """Whether RedBeat would read the same entry again."""
    try:
        json.dumps([entry.args, entry.kwargs, entry.options], cls=RedBeatJSONEncoder)
        schedule = json.loads(json.dumps(entry.schedule, cls=RedBeatJSONEncoder), cls=RedBeatJSONDecoder)
    except (TypeError, ValueError):
        return False
    return type(schedule) is type(entry.schedule)


def _answers(pipe: Any) -> list[Any]:
    """Execute; a hash that is none is an answer too, all other errors are raised."""
    answers = []
    for answer in pipe.execute(raise_on_error=False):
        if isinstance(answer, Exception) and not (isinstance(answer, ResponseError) and "WRONGTYPE" in str(answer)):
            raise answer
        answers.append(answer)
    return answers


def _fields(answer: Any) -> Any:
    return answer if isinstance(answer, Exception) else tuple(map(_text, answer))


def _listed(names: Iterable[str]) -> str:
    """List names, but not thousands."""
    listed = sorted(names)
    rest = [f"and {len(listed) - NAMED_AT_MOST} more"] if len(listed) > NAMED_AT_MOST else []
    return ", ".join([*map(repr, listed[:NAMED_AT_MOST]), *rest])


def _text(value: Any) -> Any:
    # RedBeat's client for {"cluster": True} does not decode
    return value.decode() if isinstance(value, bytes) else value


def _digest(text: str | None) -> str:
    return hashlib.sha1((text or "").encode(), usedforsecurity=False).hexdigest()[:16]


@contextmanager
def _redbeats_redis() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as exc:
        raise StoreUnavailable(f"RedBeat's Redis does not answer: {type(exc).__name__}: {exc}") from exc


def _refuse_old_redbeat() -> None:
    try:
        installed = version("celery-redbeat")
    except PackageNotFoundError:
        return  # somebody's own copy
    if tuple(int(part) for part in re.findall(r"\d+", installed)[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ConfigurationError(f"celery-redbeat is {installed}; allowed: {oldest} or newer")

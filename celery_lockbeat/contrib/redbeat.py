"""RedBeat's schedule and API, fired by any number of beats at once.

Promises: entries stay RedBeat's, in its Redis and its format, and what "due" means is RedBeat's own: by the score in its
sorted set, and by the entry's schedule since its last run. Each entry is read again right before it is claimed, and a tick
that nobody has published in time is dropped when its entry has been deleted or disabled meanwhile. RedBeat may run in turn
with this scheduler, not beside it.

When did an entry run last? Between two writes by others the truth is the store's, where ticks are claimed; RedBeat's meta and
score follow once a tick is published. A meta that is not the one we wrote (``reschedule()``, a new entry, plain RedBeat)
is the new truth from then on: the entry goes on under another key in the store, so nothing that was claimed before counts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import MINYEAR, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from typing import Any, Final
from uuid import uuid4

from redbeat.decoder import RedBeatJSONDecoder, RedBeatJSONEncoder
from redbeat.schedulers import RedBeatScheduler, get_redis
from redis.cluster import RedisCluster
from redis.exceptions import RedisError, ResponseError

from celery_lockbeat.agenda import Item
from celery_lockbeat.exceptions import ConfigurationError, StoreUnavailable
from celery_lockbeat.scheduler import LockedSchedulerMixin, logger

__all__ = ["LockedRedBeatScheduler"]

#: The oldest RedBeat that will do.
OLDEST: Final = (2, 2)

#: So many entries are read or written in one round trip.
AT_ONCE: Final = 500

#: Our own field in the hash of an entry: '<life> <epoch> <digest of the meta that goes with them>'. A life begins where a
#: hash does, or where plain RedBeat has run; an epoch with each meta that is not ours. RedBeat deletes it with the hash.
MARK: Final = "lockbeat"

FIELDS: Final = ("definition", "meta", MARK)

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
        self._is_set_up = False
        self._unwritten: set[str] = set()
        super().__init__(app, **kwargs)
        # before RedBeat's receiver of beat_init looks for it
        self.lock_key = None

    def setup_schedule(self) -> None:
        """Leave it to the first tick: a Redis that does not answer yet is waited for."""

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
            try:
                super().update_from_dict({name: definition})
            except (RedisError, OSError):
                raise
            except Exception:  # noqa: BLE001  whatever is in there
                logger.exception("static entry %r is broken in Redis, and stored anew", name)
                entry.save()

    @property
    def schedule(self) -> dict[str, Any]:
        """All entries: those in Redis, by their keys there, and those of our own, by their names."""
        prefix = self.app.redbeat_conf.key_prefix
        hidden = {prefix + name for name in self._own}
        return {**{key: each.entry for key, each in self._stored.items() if key not in hidden}, **self._own}

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

    def _key(self, name: str, entry: Any) -> str:
        stored = getattr(entry, "lockbeat_stored", None)
        return super()._key(name, entry) if stored is None else stored.key

    # -- read ----------------------------------------------------------------------------------------------------------

    def refresh_schedule(self) -> None:
        """Follow what was added, removed, or made due earlier; all else is seen when it is due."""
        with _redbeats_redis():
            if not self._is_set_up:
                super().setup_schedule()
                self._is_set_up = True
            self._write_down()
            found = get_redis(self.app).zrange(self.app.redbeat_conf.schedule_key, 0, -1, withscores=True)
            scores = {_text(key): score for key, score in found}
            for key in self._stored.keys() - scores.keys():
                del self._stored[key]
            changed = []
            for key, score in scores.items():
                stored = self._stored.get(key)
                if stored is None or stored.score < 0 <= score or score < stored.score:
                    changed.append(key)
                else:
                    # it has run, most often: to be read when it is due again
                    stored.score = score
            self._read(changed, anew=True)

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

    def _item_of(self, key: str) -> Item | None:
        item = super()._item_of(key)
        if item is None and _KEY.fullmatch(key):
            # deleted, rescheduled, or not seen yet: it is read before it is published
            item = Item(key, self.Entry(key, app=self.app, total_run_count=-1))
        return item

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
            return
        if not isinstance(fields, Exception) and not fields[0]:
            self._drop(key, score)
            return
        try:
            stored = self._load(key, score, fields)
        except Exception as exc:  # noqa: BLE001  whatever is in there
            self._complain(
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
        if score <= self.app.now().timestamp() and f"entry {key}" in self._complained:
            get_redis(self.app).zrem(self.app.redbeat_conf.schedule_key, key)
        self._complain(f"entry {key}", "entry %r in Redis has no definition", key)

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
            self._complain("redbeat", "beat cannot write down runs, and goes on: %s", exc)

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

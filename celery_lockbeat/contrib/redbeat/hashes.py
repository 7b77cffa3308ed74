"""What is read from and written to RedBeat's Redis: the sorted set of its entries by their scores, and a hash for each entry.

Promises: a write brings no deleted entry back to life, and overwrites nothing that others have written meanwhile; in a Cluster,
whose nodes a script cannot all reach, but for the moment between looking and writing. Nothing is remembered here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from redbeat.schedulers import get_redis
from redis.cluster import RedisCluster
from redis.exceptions import RedisError, ResponseError

from celery_lockbeat.contrib.redbeat.stored import MARK, Stored, first_mark
from celery_lockbeat.exceptions import StoreUnavailable

__all__ = ["AT_ONCE", "FREE", "Hashes", "Look", "answers_of", "decoded", "redbeats_redis"]

#: So many entries are read or written in one round trip.
AT_ONCE: Final = 500

#: Redis's word for the rest of the time of a key that is not there.
FREE: Final = -2

FIELDS: Final = ("definition", "meta", MARK)

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


class Look(NamedTuple):
    """What one look at Redis has found."""

    #: of all entries, by the keys of their hashes
    scores: dict[str, float]
    #: whether the set of the static entries is there
    has_statics: bool
    #: milliseconds for which RedBeat's own lock is still held, or FREE; None: RedBeat is set to have no lock
    lock_rest: int | None


class Hashes:
    """RedBeat's Redis, as the settings of an app have it. All methods raise what redis-py does."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def look(self) -> Look:
        """Look at what there is, without the entries themselves."""
        conf = self._app.redbeat_conf
        with get_redis(self._app).pipeline(transaction=False) as pipe:
            # before the scores: what is lost from here on is seen as gone now, and as lost at the next look
            pipe.exists(conf.statics_key)
            pipe.zrange(conf.schedule_key, 0, -1, withscores=True)
            if conf.lock_key:
                pipe.pttl(conf.lock_key)
            has_statics, found, *rest = answers_of(pipe)
        return Look({decoded(key): score for key, score in found}, bool(has_statics), rest[0] if rest else None)

    def fetch(self, keys: list[str]) -> tuple[list[float | None], list[Any]]:
        """Return the scores and the fields of these entries; hashes without a mark get one."""
        with get_redis(self._app).pipeline(transaction=False) as pipe:
            pipe.zmscore(self._app.redbeat_conf.schedule_key, keys)
            for key in keys:
                pipe.hmget(key, FIELDS)
            scores, *hashes = answers_of(pipe)
            found = [_fields(each) for each in hashes]
            unmarked = [n for n, each in enumerate(found) if isinstance(each, tuple) and each[0] and not each[2]]
            if not unmarked:
                return scores, found
            for n in unmarked:
                # of several beats one is the first
                pipe.hsetnx(keys[n], MARK, first_mark(found[n][1]))
                pipe.hmget(keys[n], FIELDS)
            for n, answer in zip(unmarked, answers_of(pipe)[1::2], strict=True):
                found[n] = fields = _fields(answer)
                if not fields[0]:
                    # deleted just now: the mark must not stay behind
                    get_redis(self._app).hdel(keys[n], MARK)
        return scores, found

    def missing(self, keys: Collection[str]) -> list[str]:
        """Return those of these keys that have no hash."""
        client = get_redis(self._app)
        if not keys or client.exists(*keys) == len(keys):
            return []
        return [key for key in keys if not client.exists(key)]

    def put_back(self, key: str, stored: Stored) -> bool:
        """Store an entry as it was last seen here, unless it is there; return whether it was not."""
        client, (definition, meta, mark) = get_redis(self._app), stored.fields
        was_gone = client.eval(_PUT_BACK, 1, key, definition, meta or "", mark)
        client.zadd(self._app.redbeat_conf.schedule_key, {key: stored.score}, nx=True)
        return bool(was_gone)

    def forget(self, key: str) -> None:
        """Take a key off the sorted set."""
        get_redis(self._app).zrem(self._app.redbeat_conf.schedule_key, key)

    def write(self, becoming: Mapping[str, Stored], known: Mapping[str, Stored]) -> list[bool]:
        """Write what entries have become by their runs; return for each whether it is written.

        One whose score is not the ``known`` one any more is not: it is gone, or somebody else has written meanwhile.
        """
        client, schedule_key = get_redis(self._app), self._app.redbeat_conf.schedule_key
        if isinstance(getattr(client, "wrapped_connection", client), RedisCluster):
            return self._write_to_cluster(client, becoming, known)
        args: list[Any] = []
        for key, each in becoming.items():
            args += [known[key].score, *each.fields[1:], each.score]
        return [done == 1 for done in client.eval(_WRITE, 1 + len(becoming), schedule_key, *becoming, *args)]

    def _write_to_cluster(self, client: Any, becoming: Mapping[str, Stored], known: Mapping[str, Stored]) -> list[bool]:
        """Write as the script does, but for the moment between looking and writing."""
        schedule_key = self._app.redbeat_conf.schedule_key
        scores = client.zmscore(schedule_key, list(becoming))
        written = [known[key].score == score for key, score in zip(becoming, scores, strict=True)]
        ours = [key for key, done in zip(becoming, written, strict=True) if done]
        if ours:
            with client.pipeline(transaction=False) as pipe:
                for key in ours:
                    _, meta, mark = becoming[key].fields
                    pipe.hset(key, mapping={"meta": meta, MARK: mark})
                pipe.zadd(schedule_key, {key: becoming[key].score for key in ours}, xx=True)
                for key in ours:
                    pipe.hexists(key, "definition")
                alive = answers_of(pipe)[len(ours) + 1 :]
            for key, there in zip(ours, alive, strict=True):
                if not there:
                    client.hdel(key, "meta", MARK)
        return written


@contextmanager
def redbeats_redis() -> Iterator[None]:
    """Turn what redis-py raises into StoreUnavailable."""
    try:
        yield
    except (RedisError, OSError) as exc:
        raise StoreUnavailable(f"RedBeat's Redis does not answer: {type(exc).__name__}: {exc}") from exc


def answers_of(pipe: Any) -> list[Any]:
    """Execute; a hash that is none is an answer too, all other errors are raised."""
    answers = []
    for answer in pipe.execute(raise_on_error=False):
        if isinstance(answer, Exception) and not (isinstance(answer, ResponseError) and "WRONGTYPE" in str(answer)):
            raise answer
        answers.append(answer)
    return answers


def decoded(value: Any) -> Any:
    """Return text: RedBeat's client for {"cluster": True} does not decode."""
    return value.decode() if isinstance(value, bytes) else value


def _fields(answer: Any) -> Any:
    return answer if isinstance(answer, Exception) else tuple(map(decoded, answer))

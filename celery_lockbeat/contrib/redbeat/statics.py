"""The static entries: those of ``beat_schedule``, which a beat stores in RedBeat's Redis as far as RedBeat can read them again.

Promises: each start stores them, and removes those of earlier releases, as RedBeat does. While a beat has static entries, the
set of their names is in Redis, so that a Redis without it has lost its data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from redbeat.decoder import RedBeatJSONDecoder, RedBeatJSONEncoder
from redbeat.schedulers import RedBeatSchedulerEntry, get_redis

from celery_lockbeat.contrib.redbeat.hashes import decoded

__all__ = ["Statics"]

#: Stands among the names of the static entries, so that this set, once there, is there until its Redis loses its data, though a
#: new release has no static entry any more. RedBeat's own setup takes it for one of an earlier release, and off.
KEPT: Final = ":lockbeat"


class Statics:
    """The static entries of one beat. ``store`` stores some of them, ``store_defaults`` Celery's own unless they are given."""

    def __init__(
        self,
        app: Any,
        store: Callable[[Mapping[str, Any]], None],
        store_defaults: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._app = app
        self._store = store
        self._store_defaults = store_defaults
        #: the keys of the hashes of those that are stored
        self.keys: set[str] = set()
        #: what RedBeat cannot keep, by name
        self.own: dict[str, Any] = {}
        #: whether their names are in Redis, unless it has lost its data
        self.are_named = False

    def set_up(self) -> None:
        """Store them, and remove those of earlier releases; ``KEPT`` is there all the while."""
        client, conf = get_redis(self._app), self._app.redbeat_conf
        named = {decoded(name) for name in client.smembers(conf.statics_key)}
        self.are_named = bool(named or conf.schedule)
        if self.are_named:
            client.sadd(conf.statics_key, KEPT)
        for name in named - {KEPT} - conf.schedule.keys():
            RedBeatSchedulerEntry(name, app=self._app).delete()
            client.srem(conf.statics_key, name)
        self._store_defaults(conf.schedule)
        self._store(conf.schedule)
        if conf.schedule:
            client.sadd(conf.statics_key, *conf.schedule)

    def note(self, name: str, entry: Any) -> bool:
        """Take notice of an entry; return whether it is to be stored."""
        if not _can_be_stored(entry):
            self.own[name] = entry
            return False
        self.keys.add(self._app.redbeat_conf.key_prefix + name)
        return True

    def store_missing(self, there: Iterable[str]) -> None:
        """Store those that are not ``there``, by the keys of their hashes, after Redis has lost its data."""
        conf = self._app.redbeat_conf
        keys = {name: conf.key_prefix + name for name in conf.schedule}
        there = {*there, *(keys[name] for name in self.own if name in keys)}
        self._store({name: conf.schedule[name] for name, key in keys.items() if key not in there})
        if self.are_named:
            get_redis(self._app).sadd(conf.statics_key, KEPT, *keys)


def _can_be_stored(entry: Any) -> bool:
    """Whether RedBeat would read the same entry again."""
    try:
        json.dumps([entry.args, entry.kwargs, entry.options], cls=RedBeatJSONEncoder)
        schedule = json.loads(json.dumps(entry.schedule, cls=RedBeatJSONEncoder), cls=RedBeatJSONDecoder)
    except (TypeError, ValueError):
        return False
    return type(schedule) is type(entry.schedule)

"""The settings of an app that are not a lock's: ``lockbeat_*``, and what Celery itself says of its Redis."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from string import Formatter
from typing import Any, Final

from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.options.lock import ATTEMPTS, LOCK_NAMES, LockOptions
from celery_lockbeat.options.refusals import SETTING_PREFIX, refusal, refuse_unknown, spelled_for, spelling, written
from celery_lockbeat.options.rules import LONGEST, Rule, count, flag, path, seconds
from celery_lockbeat.options.servers import (
    carried_by,
    client_arguments,
    connections,
    redis_of_celery,
    redis_url,
    without_options,
)

__all__ = ["AppOptions"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AppOptions:
    """The settings of one app that are not a lock's. ``redis_url`` is resolved: None means that no Redis is configured."""

    # none of these may show a password in a repr
    redis_url: str | None = field(default=None, repr=False)
    #: the setting that says so
    redis_setting: str = "lockbeat_redis_url"
    redis_options: Mapping[str, Any] | None = field(default=None, repr=False)
    #: what Celery says of the same servers: the Sentinels' names, and TLS
    redis_of_celery: Mapping[str, Any] | None = field(default=None, repr=False)
    redis_min_replicas: int = 0
    connections: Mapping[str, Mapping[str, Any]] | None = field(default=None, repr=False)
    key_prefix: str = "lockbeat:"
    claim_ttl: float = 5.0
    memory_path: str | None = None
    django_run_missed_when_changed: bool = False
    health_file: str | None = None
    journal: int = 10_000
    late_after: float = 30.0
    silent_after: int = 5
    #: keywords of policies by patterns of entries' names
    entries: Mapping[str, Mapping[str, Any]] | None = None
    #: writes the settings in a text as the user does
    spell: Callable[[str], str] = field(default=str, repr=False, compare=False)

    @classmethod
    def read(cls, conf: Any) -> AppOptions:
        """Read and validate all ``lockbeat_*`` settings of ``app.conf``. Raises ConfigurationError."""
        with spelled_for(conf):
            return cls._read(conf)

    @classmethod
    def _read(cls, conf: Any) -> AppOptions:
        known = [SETTING_PREFIX + name for name in (*LOCK_NAMES, *_APP_RULES)]
        refuse_unknown(_lockbeat_names(conf), known, owner="the app's settings")
        LockOptions.read(conf, {}, owner="the app")
        values = {
            name: rule(SETTING_PREFIX + name, conf.get(SETTING_PREFIX + name))
            for name, rule in _APP_RULES.items()
            if conf.get(SETTING_PREFIX + name) is not None
        }
        if "default" not in values.get("connections", ()):
            setting, url, values["redis_of_celery"] = redis_of_celery(conf, values.get("redis_url"))
            if "redis_url" not in values:
                values |= {"redis_url": url, "redis_setting": setting}
        elif "redis_url" in values:
            raise refusal(
                "lockbeat_connections", "default", "no connection of this name beside lockbeat_redis_url, which is it"
            )
        return cls(**values, spell=spelling(conf))

    @classmethod
    def of_celery(cls, conf: Any) -> AppOptions:
        """Return what these would be if nothing were set but what Celery itself is told of its Redis."""
        setting, url, said = redis_of_celery(conf, None)
        # all that Celery itself has there may have to begin with something
        before = str((getattr(conf, "broker_transport_options", None) or {}).get("global_keyprefix", ""))
        prefix = re.sub(r"[{}\s]", "", before) + cls().key_prefix
        return cls(redis_url=url, redis_setting=setting, redis_of_celery=said, key_prefix=prefix)

    def connection(self, driver: str, name: str) -> Mapping[str, Any] | None:
        """Return the Redis client arguments, with ``url``, that ``lock_driver`` and ``lock_connection`` stand for.

        None: the memory store; ``alias``: that database of Django's. Raises ConfigurationError.
        """
        try:
            return self._connection(driver, name)
        except ConfigurationError as exc:
            raise ConfigurationError(self.spell(str(exc))) from exc.__cause__

    def setting_of(self, name: str) -> str:
        """Return the setting that says where the servers of a connection are, as the user spells it."""
        own = name in (self.connections or ())
        return self.spell(f"lockbeat_connections[{name!r}]" if own else self.redis_setting)

    def _connection(self, driver: str, name: str) -> Mapping[str, Any] | None:
        if driver == "memory":
            return None
        if driver == "database":
            if find_spec("django") is None:
                allowed = (
                    "'auto', 'redis' or 'memory', unless Django is installed: pip install 'celery-lockbeat[django]'"
                )
                raise refusal("lock_driver", driver, allowed)
            return {"alias": name}
        return self._redis(driver, name)

    def _redis(self, driver: str, name: str) -> Mapping[str, Any] | None:
        connections = dict(self.connections or {})
        if self.redis_url is not None:
            connections["default"] = {"url": self.redis_url}
        if name not in connections and name != "default":
            raise refusal(
                "lock_connection", name, f"a name in lockbeat_connections: {', '.join(connections) or 'none'}"
            )
        if name not in connections:
            if driver == "redis":
                allowed = "'auto' or 'memory', as long as neither lockbeat_redis_url nor Celery's broker names a Redis"
                raise refusal("lock_driver", driver, allowed)
            return None
        return self._client_arguments(name, connections[name])

    def _client_arguments(self, name: str, own: Mapping[str, Any]) -> Mapping[str, Any]:
        chosen = {**(self.redis_options or {}), **own}
        if name == "default":
            chosen = {**(self.redis_of_celery or {}), **chosen}
        if carried := carried_by(self.setting_of(name), chosen["url"]):
            # what is in the URL counts more
            chosen |= {**carried, "url": without_options(carried, chosen["url"])}
        sentinels = chosen["url"].startswith("sentinel://")
        if sentinels and not chosen.get("master_name"):
            setting, allowed = (
                "master_name of lockbeat_redis_options",
                "the name of the primary that the Sentinels know",
            )
            raise refusal(setting, chosen.get("master_name"), f"{allowed} (or broker_transport_options has it)")
        if ";" in chosen["url"] and not sentinels and not chosen.get("cluster"):
            allowed = "one URL, but for Sentinels, and with 'cluster': True in lockbeat_redis_options"
            raise refusal("lockbeat_redis_url", chosen["url"], allowed)
        return chosen

    def check_timeouts(self, lock: LockOptions, *, owner: str) -> None:
        """Refuse time-outs of which three do not fit into the leases of ``owner``. Raises ConfigurationError."""
        arguments = self.connection(lock.driver, lock.connection) or {}
        for name in ("socket_timeout", "socket_connect_timeout"):
            if lock.auto_extend and arguments.get(name, 0) > lock.attempt:
                wrong = refusal(
                    f"{name} of the Redis connection {lock.connection!r}",
                    arguments[name],
                    f"at most {written(math.floor(lock.attempt * 1000) / 1000)}, for {ATTEMPTS} attempts to extend fit into the ttl "
                    f"of {owner}, {written(lock.ttl)}, after its extend_interval of {written(lock.extends_every)} (it is said in {self.setting_of(lock.connection)} or lockbeat_redis_options)",
                )
                raise ConfigurationError(self.spell(str(wrong)))


def _lockbeat_names(conf: Any) -> list[str]:
    """All settings that are meant for us, spelled as Celery's own would be after ``namespace=`` is taken off."""
    namespace = conf.prefix or ""
    names = [name for name in conf if isinstance(name, str) and name.lower().startswith(namespace.lower())]
    if namespace:
        names = [name[len(namespace) :].lower() for name in names]
        names += [name for name in conf if isinstance(name, str) and name.startswith(SETTING_PREFIX)]
    return [name for name in names if name.lower().startswith(SETTING_PREFIX)]


def _health_file(setting: str, value: Any) -> str:
    allowed = "the path of a file, in which {kind} (beat or worker), {host} and {pid} stand for those of the process"
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise refusal(setting, value, allowed)
    template = str(os.fspath(value))
    try:
        if not template.format(kind="", host="", pid="") and not any(True for _ in Formatter().parse(template)):
            raise refusal(setting, value, allowed)
    except (LookupError, ValueError, AttributeError, TypeError) as exc:
        raise refusal(setting, value, allowed) from exc
    return template


def _key_prefix(setting: str, value: Any) -> str:
    if not isinstance(value, str) or not value or re.search(r"[{}\s\x00-\x1f]", value):
        # a brace would start or end the Cluster hash tag, which belongs to the lock's key
        raise refusal(setting, value, "a non-empty string without braces and blanks")
    return value


def _entries(setting: str, value: Any) -> Mapping[str, Mapping[str, Any]]:
    allowed = "a mapping of patterns of entries' names to keywords of their schedules, as {'report-*': {'jitter': 30}}"
    if not isinstance(value, Mapping):
        raise refusal(setting, value, allowed)
    for pattern, keywords in value.items():
        if not isinstance(pattern, str) or not pattern or not isinstance(keywords, Mapping):
            raise refusal(setting, {pattern: keywords}, allowed)
    return value


_APP_RULES: Final[dict[str, Rule]] = {
    "redis_url": redis_url,
    "redis_options": client_arguments,
    "redis_min_replicas": count,
    "connections": connections,
    "key_prefix": _key_prefix,
    "claim_ttl": seconds(0.1, high=3600),
    "memory_path": path,
    "django_run_missed_when_changed": flag,
    "health_file": _health_file,
    "journal": count,
    "entries": _entries,
    "late_after": seconds(0, high=LONGEST),
    "silent_after": count,
}

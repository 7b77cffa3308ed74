"""The options of a lock (``lock_*``) and of an app (``lockbeat_*``): read once, validated whole, in the user's terms.

Promises: what comes out of here is right, so nobody checks it again; what is wrong is a ConfigurationError that names
the setting, the value and what is allowed, and unknown names are refused with the nearest right one.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import math
import os
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from typing import Any, Final, Literal, TypedDict
from urllib.parse import parse_qsl, urlencode, urlsplit

from celery.utils.imports import symbol_by_name

from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.tasks.keytext import PLAIN, Nameless, text_of

__all__ = ["AppOptions", "LockOptions", "bound_key", "check_key", "check_options"]

TASK_PREFIX: Final = "lock_"
SETTING_PREFIX: Final = "lockbeat_"

#: A lease of more than a month is a mistake in the unit.
LONGEST: Final = 30 * 86400.0

#: Seconds to wait for a connection, and for an answer, where ``socket_connect_timeout`` and ``socket_timeout`` of
#: ``lockbeat_redis_options`` say nothing else. redis-py would wait for ever, or try for longer than a lease lasts.
TIMEOUT: Final = 2.0

_FORMATTER: Final = string.Formatter()

_REDIS_SCHEMES: Final = ("redis", "rediss", "unix", "redis+socket", "sentinel")

#: Of what Celery tells kombu about its Redis: the setting of the URL, that of the transport's options, and that of TLS.
_REDIS_OF_CELERY: Final = (
    ("broker_url", "broker_transport_options", "broker_use_ssl"),
    ("result_backend", "result_backend_transport_options", "redis_backend_use_ssl"),
)

#: What belongs into a mapping of options: a URL has text alone, which redis-py would take for the thing itself.
_OBJECTS: Final = frozenset(
    {
        "address_remap",
        "command_packer",
        "connection_class",
        "driver_info",
        "encoder_class",
        "event_dispatcher",
        "maint_notifications_config",
        "parser_class",
        "redis_connect_func",
        "retry",
        "retry_on_error",
        "sentinel_kwargs",
        "socket_keepalive_options",
        "ssl_ocsp_context",
    }
)

#: Of a URL that is Celery's: who asks which database, and how that is kept secret. The rest is kombu's, such as its
#: ``heartbeat``, or what Celery's own client is to do, such as its ``socket_timeout``.
_OF_SERVERS: Final = ("credential_provider", "db", "password", "username")

#: What kombu calls differently in a URL.
_KOMBU_CALLS: Final = {"virtual_host": "db", "userid": "username"}

#: Settings, in what is told.
_SETTING: Final = re.compile(
    r"\b(?:lockbeat_[a-z_]+|broker_url|broker_use_ssl|broker_transport_options|result_backend|redis_backend_use_ssl"
    r"|result_backend_transport_options|beat_scheduler|beat_schedule)\b"
)

#: What a lease may end earlier by the local clock, as a part of it: 1 % is far beyond what NTP lets a clock do.
MARGIN: Final = 0.01

#: Seconds between two attempts to extend, after one that failed, or less where the lease is short.
RETRY_EVERY: Final = 1.0

#: Seconds after which a broker delivers a message again that is not acknowledged, unless it is told otherwise: kombu's
#: visibility_timeout, and RabbitMQ's consumer_timeout.
DELIVERS_AGAIN: Final = {
    "redis": 3600.0,
    "rediss": 3600.0,
    "sentinel": 3600.0,
    "sqs": 1800.0,
    "amqp": 1800.0,
    "amqps": 1800.0,
    "pyamqp": 1800.0,
}

#: Seconds for which a finished run is remembered, unless copies of its message may come later.
REMEMBERED: Final = 3600.0

#: Seconds that such a copy may take beyond that until a worker has it: until somebody looks for it (kombu: ten), and in its
#: queue. The time until the run's end is on our side: a message is delivered before it runs, and remembered from its end on.
ON_ITS_WAY: Final = 600.0

#: So many attempts to extend fit into a lease.
ATTEMPTS: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class LockOptions:
    """How one task, or one :class:`~celery_lockbeat.Lock`, takes its lock. Durations are seconds."""

    enabled: bool = True
    key: str | Callable[..., str] | None = None
    driver: str = "auto"
    connection: str = "default"
    ttl: float = 30.0
    auto_extend: bool = True
    extend_interval: float | None = None
    retry_attempts: int = 0
    retry_delay: float = 0.2
    retry_jitter: float = 0.05
    skip_if_locked: bool = True
    hold_at_least: float = 0.0
    on_lost: str = "fail"
    dedupe_ttl: float = REMEMBERED
    logging: str | bool = "auto"

    @property
    def extends_every(self) -> float:
        """Seconds between two renewals: a third of the ttl leaves two more tries while the lease lasts."""
        return self.ttl / 3 if self.extend_interval is None else self.extend_interval

    @property
    def retries_every(self) -> float:
        """Seconds between two attempts to extend, after one that failed."""
        return min(RETRY_EVERY, self.extends_every / 4, (self.ttl - self.extends_every) / 8)

    @property
    def attempt(self) -> float:
        """Seconds that an attempt to extend may take: ``interval + 3 attempts + 2 pauses = ttl`` without its margin."""
        left = self.ttl * (1 - MARGIN) - self.extends_every - (ATTEMPTS - 1) * self.retries_every
        return max(0.01, left / ATTEMPTS)

    @classmethod
    def read(
        cls,
        conf: Mapping[str, Any],
        own: Mapping[str, Any],
        *,
        owner: str,
        prefix: str = "",
        without: frozenset[str] = frozenset(),
    ) -> LockOptions:
        """Merge default, ``lockbeat_*`` of the app and the ``own`` values, given as ``prefix`` + name by ``owner``.

        ``without``: the options that make no sense for this owner. Raises ConfigurationError.
        """
        with spelled_for(conf):
            return cls._read(conf, own, owner, prefix, without)

    @classmethod
    def _read(
        cls, conf: Mapping[str, Any], own: Mapping[str, Any], owner: str, prefix: str, without: frozenset[str]
    ) -> LockOptions:
        _refuse_unknown(own, [prefix + name for name in LOCK_NAMES if name not in without], owner=owner)
        values: dict[str, Any] = {}
        named: dict[str, str] = {}
        for name in LOCK_NAMES:
            if own.get(prefix + name) is not None:
                named[name], values[name] = f"{prefix}{name} of {owner}", own[prefix + name]
            elif conf.get(SETTING_PREFIX + name) is not None:
                named[name], values[name] = SETTING_PREFIX + name, conf[SETTING_PREFIX + name]
            else:
                continue
            values[name] = _LOCK_RULES[name](named[name], values[name])
        values.setdefault("dedupe_ttl", _remembers(conf))
        options = cls(**values)
        if options.extends_every >= options.ttl:
            setting = named.get("extend_interval", "extend_interval")
            ttl = named.get("ttl", "the default ttl")
            raise _refusal(setting, options.extend_interval, f"a time below {ttl}, which is {written(options.ttl)}")
        return options


def _remembers(conf: Mapping[str, Any]) -> float:
    """Return the seconds for which a run is remembered by default: for longer than copies of its message come."""
    url = getattr(conf, "broker_read_url", None) or getattr(conf, "broker_url", None)
    url = url[0] if isinstance(url, (list, tuple)) and url else url
    again = DELIVERS_AGAIN.get(str(url or "").partition(":")[0].lower(), 0.0)
    given = (getattr(conf, "broker_transport_options", None) or {}).get("visibility_timeout")
    # as text it may come from the environment
    with contextlib.suppress(TypeError, ValueError):
        again = again if given is None else float(given)
    return min(max(REMEMBERED, again + ON_ITS_WAY), LONGEST) if again > 0 else REMEMBERED


class LockKeywords(TypedDict, total=False):
    """The keywords of :class:`~celery_lockbeat.Lock`, each of which may be None: as the app's settings say. Durations are seconds."""

    driver: Literal["auto", "redis", "memory", "database"] | None
    connection: str | None
    ttl: float | None
    auto_extend: bool | None
    extend_interval: float | None
    retry_attempts: int | None
    retry_delay: float | None
    retry_jitter: float | None
    hold_at_least: float | None
    on_lost: Literal["fail", "abort", "warn"] | None
    logging: Literal["auto", "brief", "default", "verbose", False] | None


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
        _refuse_unknown(_lockbeat_names(conf), known, owner="the app's settings")
        LockOptions.read(conf, {}, owner="the app")
        values = {
            name: rule(SETTING_PREFIX + name, conf.get(SETTING_PREFIX + name))
            for name, rule in _APP_RULES.items()
            if conf.get(SETTING_PREFIX + name) is not None
        }
        if "default" not in values.get("connections", ()):
            setting, url, values["redis_of_celery"] = _redis_of_celery(conf, values.get("redis_url"))
            if "redis_url" not in values:
                values |= {"redis_url": url, "redis_setting": setting}
        elif "redis_url" in values:
            raise _refusal(
                "lockbeat_connections", "default", "no connection of this name beside lockbeat_redis_url, which is it"
            )
        return cls(**values, spell=spelling(conf))

    @classmethod
    def of_celery(cls, conf: Any) -> AppOptions:
        """Return what these would be if nothing were set but what Celery itself is told of its Redis."""
        setting, url, said = _redis_of_celery(conf, None)
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
                raise _refusal("lock_driver", driver, allowed)
            return {"alias": name}
        return self._redis(driver, name)

    def _redis(self, driver: str, name: str) -> Mapping[str, Any] | None:
        connections = dict(self.connections or {})
        if self.redis_url is not None:
            connections["default"] = {"url": self.redis_url}
        if name not in connections and name != "default":
            raise _refusal(
                "lock_connection", name, f"a name in lockbeat_connections: {', '.join(connections) or 'none'}"
            )
        if name not in connections:
            if driver == "redis":
                allowed = "'auto' or 'memory', as long as neither lockbeat_redis_url nor Celery's broker names a Redis"
                raise _refusal("lock_driver", driver, allowed)
            return None
        chosen = {**(self.redis_options or {}), **connections[name]}
        if name == "default":
            chosen = {**(self.redis_of_celery or {}), **chosen}
        if carried := _carried(self.setting_of(name), chosen["url"]):
            # what is in the URL counts more
            chosen |= {**carried, "url": _without(carried, chosen["url"])}
        sentinels = chosen["url"].startswith("sentinel://")
        if sentinels and not chosen.get("master_name"):
            setting, allowed = (
                "master_name of lockbeat_redis_options",
                "the name of the primary that the Sentinels know",
            )
            raise _refusal(setting, chosen.get("master_name"), f"{allowed} (or broker_transport_options has it)")
        if ";" in chosen["url"] and not sentinels and not chosen.get("cluster"):
            allowed = "one URL, but for Sentinels, and with 'cluster': True in lockbeat_redis_options"
            raise _refusal("lockbeat_redis_url", chosen["url"], allowed)
        return chosen

    def check_timeouts(self, lock: LockOptions, *, owner: str) -> None:
        """Refuse time-outs of which three do not fit into the leases of ``owner``. Raises ConfigurationError."""
        arguments = self.connection(lock.driver, lock.connection) or {}
        for name in ("socket_timeout", "socket_connect_timeout"):
            if lock.auto_extend and arguments.get(name, 0) > lock.attempt:
                refusal = _refusal(
                    f"{name} of the Redis connection {lock.connection!r}",
                    arguments[name],
                    f"at most {written(math.floor(lock.attempt * 1000) / 1000)}, for {ATTEMPTS} attempts to extend fit into the ttl "
                    f"of {owner}, {written(lock.ttl)}, after its extend_interval of {written(lock.extends_every)} (it is said in {self.setting_of(lock.connection)} or lockbeat_redis_options)",
                )
                raise ConfigurationError(self.spell(str(refusal)))


KeyOf = Callable[[Any, tuple[Any, ...], dict[str, Any]], str]


def bound_key(options: LockOptions, run: Callable[..., Any], *, owner: str) -> KeyOf:
    """Make the function of (task, args, kwargs) that tells a call's lock key, for a task ``owner`` with the body ``run``.

    Raises ConfigurationError, now for a placeholder that ``run`` has no argument for, and at the call for a key that
    is empty or no string.
    """
    template = options.key
    setting = f"lock_key of {owner}"
    if callable(template):
        return _called_key(setting, template, run)
    if template is None or all(field is None for _, field, _, _ in _FORMATTER.parse(template)):
        # format() all the same: {{ and }} are its way to write a brace
        key = owner if template is None else check_key(setting, template.format())
        return lambda _task, _args, _kwargs: key
    signature = inspect.signature(run)
    _check_placeholders(setting, template, signature)
    names = signature.parameters.keys()
    parts = list(_FORMATTER.parse(template))
    roots = set(_roots(template))
    direct = all(name is None or name in roots for _, name, _, _ in parts)
    plain = all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in signature.parameters.values())

    def formatted(_task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        if not plain or len(args) + len(kwargs) != len(names) or arguments.keys() != names:
            # binding by the signature is ten times slower: only where there are defaults to fill in, or *args and the like
            arguments = _named_arguments(signature, args, kwargs)
        try:
            for root in roots:
                if type(arguments[root]) not in PLAIN or not direct:
                    return check_key(setting, _filled(setting, template, parts, arguments))
            return check_key(setting, template.format(**arguments))
        except (KeyError, AttributeError, IndexError, ValueError, TypeError) as exc:
            raise _refusal(setting, template, f"what the arguments of this call can fill ({exc!r})") from exc

    return formatted


def _called_key(setting: str, function: Callable[..., Any], run: Callable[..., Any]) -> KeyOf:
    """Of a ``lock_key`` that is a function of the task's arguments, or of the task and them."""
    if inspect.iscoroutinefunction(function):
        raise _refusal(setting, function, "a function that returns the key, not a coroutine")
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # one of C, which does not tell
        signature = inspect.Signature([inspect.Parameter("arguments", inspect.Parameter.VAR_POSITIONAL)])
    takes_task = next(iter(signature.parameters), None) == "self"
    before = (None,) if takes_task else ()
    _check_parameters(setting, function, signature, inspect.signature(run), before)

    def called(task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        try:
            key = function(task, *args, **kwargs) if takes_task else function(*args, **kwargs)
        except TypeError as exc:
            if _takes(signature, (*before, *args), kwargs):
                raise  # its own
            raise _refusal(setting, function, f"a function of the arguments of this call ({exc})") from exc
        return check_key(setting, key)

    return called


def _check_parameters(
    setting: str, function: Any, signature: inspect.Signature, run: inspect.Signature, before: tuple[Any, ...]
) -> None:
    """Refuse a function that no call of ``run`` with what it must be given fits, be that by position or by name."""
    needed = [p for p in run.parameters.values() if p.default is p.empty]
    by_name = {p.name for p in needed if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    by_position = [p.name for p in needed if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    only_by_name = [p.name for p in needed if p.kind is p.KEYWORD_ONLY]
    only_by_position = [p.name for p in needed if p.kind is p.POSITIONAL_ONLY]
    if not (
        _takes(signature, (*before, *by_position), dict.fromkeys(only_by_name))
        or _takes(signature, (*before, *only_by_position), dict.fromkeys(by_name))
    ):
        raise _refusal(setting, function, f"a function of the arguments of the task: lambda {_shown(run)}: ...")


def _takes(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _shown(signature: inspect.Signature) -> str:
    plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(inspect.Signature(plain))[1:-1]


def _filled(
    setting: str,
    template: str,
    parts: Iterable[tuple[str, str | None, str | None, str | None]],
    arguments: dict[str, Any],
) -> str:
    """What ``template.format()`` makes, but with one text for what is equal."""
    texts = []
    for literal, name, spec, conversion in parts:
        texts.append(literal)
        if name is None:
            continue
        value, _ = _FORMATTER.get_field(name, (), arguments)
        try:
            if not spec:
                texts.append(text_of(value, conversion))
            else:
                texts.append(format(text_of(value, conversion) if conversion else value, spec.format(**arguments)))
        except Nameless as exc:
            allowed = (
                f"what has a text of its own, such as an attribute; {{{name}}} holds a {exc}, which has but its address"
            )
            raise _refusal(setting, template, allowed) from None
    return "".join(texts)


def _named_arguments(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name)
    return arguments


def check_options(own: Mapping[str, Any], *, owner: str, prefix: str) -> None:
    """Check options of a lock one by one, for whoever has no app yet to merge them with. Raises ConfigurationError."""
    _refuse_unknown(own, [prefix + name for name in LOCK_NAMES], owner=owner)
    for name in LOCK_NAMES:
        if own.get(prefix + name) is not None:
            _LOCK_RULES[name](f"{prefix}{name} of {owner}", own[prefix + name])


def check_unprefixed(given: Mapping[str, Any], base: type, *, owner: str) -> None:
    """Refuse a lock's option without its ``lock_``, unless it is Celery's, or its base's, own. Raises ConfigurationError."""
    for name, value in given.items():
        if name in LOCK_NAMES and name not in _CELERYS and not hasattr(base, name):
            raise _refusal(f"{name} of {owner}", value, f"{TASK_PREFIX}{name}={value!r}, an option of the task's lock")


def check_key(setting: str, key: Any) -> str:
    """Return a key that can be locked. Raises ConfigurationError."""
    if not isinstance(key, str) or not key:
        raise _refusal(setting, key, "a non-empty string")
    return key


def _check_placeholders(setting: str, template: str, signature: inspect.Signature) -> None:
    named = [p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    any_name = len(named) < len(signature.parameters)
    allowed = ", ".join(f"{{{name}}}" for name in named) or "no placeholder, for it takes no arguments"
    for root in _roots(template):
        if root not in named and not (any_name and root.isidentifier()):
            raise _refusal(setting, template, f"the arguments of the task, by name: {allowed}")


def _roots(template: str) -> Iterator[str]:
    """The arguments that a template starts from: ``user`` of ``{user.id}``, ``rows`` and ``n`` of ``{rows[0]:>{n}}``."""
    for _, name, spec, _ in _FORMATTER.parse(template):
        if name is not None:
            yield re.split(r"[.\[]", name, maxsplit=1)[0]
            yield from _roots(spec or "")


def _refusal(setting: str, value: Any, allowed: str) -> ConfigurationError:
    return ConfigurationError(f"{setting} is {_without_passwords(value)!r}; allowed: {allowed}")


def _without_passwords(value: Any) -> Any:
    """Blot out what may be a password, in URLs and in what has a name."""
    if isinstance(value, Mapping):
        return {name: "**" if "pass" in str(name).lower() else _without_passwords(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_passwords(each) for each in value]
    if not isinstance(value, str):
        return value
    parts = [re.sub(r"^([^:]*://[^:@]*:).*@", r"\1**@", part, flags=re.DOTALL) for part in value.split(";")]
    return re.sub(r"([?&]\w*pass\w*=)[^&;]*", r"\1**", ";".join(parts))


def spelling(conf: Any) -> Callable[[str], str]:
    """Return what writes the settings in a text as the user of ``conf`` does: CELERY_LOCKBEAT_TTL, with that namespace."""
    next(iter(conf), None)  # Celery reads settings when they are first asked for, and tells no prefix before
    prefix = getattr(conf, "prefix", None)
    if not prefix:
        return str
    maps = conf.maps

    def spelled(found: re.Match[str]) -> str:
        name = found[0]
        if name.startswith(SETTING_PREFIX) and any(name in each for each in maps):
            return name  # app.conf.lockbeat_ttl = 5
        return str((prefix + name).upper() if prefix.isupper() else prefix + name)

    return lambda text: _SETTING.sub(spelled, text)


@contextlib.contextmanager
def spelled_for(conf: Any) -> Iterator[None]:
    """Let a refusal name the settings as the user of ``conf`` writes them."""
    try:
        yield
    except ConfigurationError as exc:
        raise ConfigurationError(spelling(conf)(str(exc))) from exc.__cause__


def timeouts(options: Mapping[str, Any] | None) -> tuple[float, float]:
    """Return the seconds that a store waits for a connection and for an answer, of its client arguments."""
    options = options or {}
    answer = options.get("socket_timeout", TIMEOUT)
    return options.get("socket_connect_timeout", answer), answer


def _refuse_unknown(names: Iterable[str], known: list[str], *, owner: str) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0)
            raise ConfigurationError(
                f"{name} of {owner} is not an option of celery-lockbeat; did you mean {near[0]}? "
                f"allowed: {', '.join(known)}"
            )


def _lockbeat_names(conf: Any) -> list[str]:
    """All settings that are meant for us, spelled as Celery's own would be after ``namespace=`` is taken off."""
    namespace = conf.prefix or ""
    names = [name for name in conf if isinstance(name, str) and name.lower().startswith(namespace.lower())]
    if namespace:
        names = [name[len(namespace) :].lower() for name in names]
        names += [name for name in conf if isinstance(name, str) and name.startswith(SETTING_PREFIX)]
    return [name for name in names if name.lower().startswith(SETTING_PREFIX)]


# -- rules: (setting, value) -> the value, or a ConfigurationError -----------------------------------------------------

_Rule = Callable[[str, Any], Any]


def _flag(setting: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refusal(setting, value, "True or False")
    return value


def _seconds(low: float, *, high: float = LONGEST) -> _Rule:
    def rule(setting: str, value: Any) -> Any:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not low <= value <= high:
            raise _refusal(
                setting, value, f"seconds, a number from {written(low)} to {written(high)}{unit(value, high)}"
            )
        return value

    return rule


def _count(setting: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _refusal(setting, value, "a whole number from 0")
    return value


def written(number: float) -> str:
    """Write a number as people do, not 2.592e+06."""
    return f"{number:.12g}"


def unit(value: Any, high: float) -> str:
    """A hint, where a number is too great for seconds, and would not be for milliseconds."""
    number = isinstance(value, (int, float)) and high < value <= high * 1000
    return f" ({written(value)} ms are {written(value / 1000)} s)" if number else ""


def _one_of(*allowed: Any) -> _Rule:
    def rule(setting: str, value: Any) -> Any:
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise _refusal(setting, value, ", ".join(repr(one) for one in allowed))
        return value

    return rule


def _text(setting: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _refusal(setting, value, "a non-empty string")
    return value


def _path(setting: str, value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise _refusal(setting, value, "the path of a directory")
    return str(os.fspath(value))


def _health_file(setting: str, value: Any) -> str:
    allowed = "the path of a file, in which {kind} (beat or worker), {host} and {pid} stand for those of the process"
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise _refusal(setting, value, allowed)
    path = str(os.fspath(value))
    try:
        if not path.format(kind="", host="", pid="") and not any(True for _ in _FORMATTER.parse(path)):
            raise _refusal(setting, value, allowed)
    except (LookupError, ValueError, AttributeError, TypeError) as exc:
        raise _refusal(setting, value, allowed) from exc
    return path


def _key(setting: str, value: Any) -> Any:
    if callable(value):
        return value
    if not isinstance(value, str) or not value:
        raise _refusal(setting, value, "a non-empty string, or a callable of the task's arguments")
    try:
        list(_FORMATTER.parse(value))
    except ValueError as exc:
        raise _refusal(setting, value, f"a str.format template ({exc}; a brace is written {{{{ or }}}})") from exc
    return value


def _key_prefix(setting: str, value: Any) -> str:
    if not isinstance(value, str) or not value or re.search(r"[{}\s\x00-\x1f]", value):
        # a brace would start or end the Cluster hash tag, which belongs to the lock's key
        raise _refusal(setting, value, "a non-empty string without braces and blanks")
    return value


def _redis_url(setting: str, value: Any) -> str:
    parts = [part.partition("://") for part in value.split(";")] if isinstance(value, str) else []
    if not parts or any(part[0] not in _REDIS_SCHEMES or not part[1] or part[0] != parts[0][0] for part in parts):
        allowed = "a URL that starts with redis://, rediss://, unix://, redis+socket:// or sentinel://"
        raise _refusal(setting, value, allowed)
    try:
        [urlsplit(part).port for part in value.split(";")]
    except ValueError:
        raise _refusal(setting, value, "a URL whose port is a number, and whose password is URL-encoded") from None
    _carried(setting, value)
    if value.startswith("redis+socket://"):
        # Celery's own spelling of a unix socket; redis-py's is unix://, and its database is ?db= for ?virtual_host=
        value = value.replace("redis+socket://", "unix://", 1).replace("virtual_host=", "db=")
    # Celery spells ssl_cert_reqs as the ssl module does, redis-py in small letters
    return re.sub(r"ssl_cert_reqs=CERT_(\w+)", lambda match: f"ssl_cert_reqs={match[1].lower()}", value)


def _client_arguments(setting: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        # not itself, for there may be a password anywhere in it
        raise _refusal(setting, type(value).__name__, "a mapping of arguments of redis.Redis")
    if "url" in value:
        raise _refusal(setting, value, "arguments of redis.Redis; the URL goes into lockbeat_redis_url")
    for name, rule in _CLIENT_RULES.items():
        if name in value:
            rule(f"{setting}[{name!r}]", value[name])
    return dict(value)


def _reads_bytes(setting: str, value: Any) -> None:
    if value:
        raise _refusal(setting, value, "False: the store reads bytes")


def _carried(setting: str, url: str) -> dict[str, Any]:
    """Read the options that a URL carries and that have a rule; redis-py reads the rest, but not that of Sentinels' URLs."""
    carried: dict[str, Any] = {}
    for name, text in (pair for part in url.split(";") for pair in parse_qsl(part.partition("?")[2])):
        named = f"?{name}= of {setting}"
        if name in _OBJECTS:
            raise _refusal(named, text, "in lockbeat_redis_options, or not at all: a URL carries text only")
        if name in _IN_URLS or url.startswith("sentinel://"):
            carried[name] = _IN_URLS[name](named, text) if name in _IN_URLS else text
            if name in _CLIENT_RULES:
                _CLIENT_RULES[name](named, carried[name])
    return carried


def _without(carried: Iterable[str], url: str) -> str:
    """Take these options off a URL, and a database that another is preferred to."""
    parts = []
    for part in url.split(";"):
        address, _, query = part.partition("?")
        if "db" in carried and not address.startswith("unix://"):
            address = re.sub(r"^(\w+://[^/]*)/.*", r"\1", address)
        left = [pair for pair in parse_qsl(query) if pair[0] not in carried]
        parts.append(f"{address}?{urlencode(left)}" if left else address)
    return ";".join(parts)


def _of_servers(url: str) -> str:
    """Leave of what a URL of Celery's carries what the servers need of any client."""
    parts = []
    for part in url.split(";"):
        address, _, query = part.partition("?")
        pairs = [(_KOMBU_CALLS.get(name, name), text) for name, text in parse_qsl(query)]
        left = [pair for pair in pairs if pair[0] in _OF_SERVERS or pair[0].startswith("ssl_")]
        if "credential_provider" in dict(left):
            # which knows the user, too: kombu heeds no other then
            address = re.sub(r"//.*@", "//", address)
        if any(name.startswith("ssl_") for name, _ in left):
            address = re.sub("^redis:", "rediss:", address)
        parts.append(f"{address}?{urlencode(left, safe='/')}" if left else address)
    return ";".join(parts)


def _connections(setting: str, value: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) and name for name in value):
        raise _refusal(setting, value, "a mapping of names to a Redis URL, or to a mapping with 'url' and options")
    connections: dict[str, dict[str, Any]] = {}
    for name, given in value.items():
        own = f"{setting}[{name!r}]"
        arguments = dict(given) if isinstance(given, Mapping) else {"url": given}
        url = _redis_url(own, arguments.pop("url", None))
        connections[name] = {**_client_arguments(own, arguments), "url": url}
    return connections


def _redis_of_celery(conf: Any, own: str | None) -> tuple[str, str | None, dict[str, Any]]:
    """The Redis that Celery itself uses: its broker, else its result backend, else none; and what is said of it elsewhere.

    With a URL of our ``own``: what Celery says of that one, or of the Sentinels, whose names are not in a URL.
    """
    for setting, options, tls in _REDIS_OF_CELERY:
        given = getattr(conf, setting, None)
        url = ";".join(given) if isinstance(given, (list, tuple)) else given
        if not isinstance(url, str) or url.partition("://")[0] not in _REDIS_SCHEMES:
            continue
        sentinels = url.startswith("sentinel://")
        if not sentinels:
            url = url.split(";")[0]  # Celery: brokers to fail over to; every process must agree on one store
        url, whole = _redis_url(setting, _of_servers(url)), url
        if own not in (None, url, whole) and not (sentinels and own.startswith("sentinel://")):
            continue
        said = {}
        if sentinels:
            names = ("master_name", "sentinel_kwargs", "min_other_sentinels")
            said = {name: value for name, value in (getattr(conf, options, None) or {}).items() if name in names}
        secured = getattr(conf, tls, None)
        if secured:
            said |= {"ssl": True, **(secured if isinstance(secured, Mapping) else {})}
        return setting, url, said
    return "", None, {}


def _provider(setting: str, text: str) -> Any:
    """Make the credential provider that a URL names, as kombu does."""
    try:
        return symbol_by_name(text)()
    except Exception as exc:
        raise _refusal(setting, text, f"the path of a class that can be made without arguments ({exc})") from exc


def _word_for_flag(setting: str, text: str) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if text.lower() not in words:
        raise _refusal(setting, text, ", ".join(words))
    return words[text.lower()]


def _number(kind: Callable[[str], float]) -> _Rule:
    def rule(setting: str, text: str) -> float:
        try:
            return kind(text)
        except ValueError:
            raise _refusal(setting, text, "a whole number" if kind is int else "a number") from None

    return rule


#: How the text in a URL is read, where redis-py would leave it text, or take any for true.
_IN_URLS: Final[dict[str, _Rule]] = {
    "credential_provider": _provider,
    **dict.fromkeys(
        ("db", "health_check_interval", "max_connections", "min_other_sentinels", "protocol"), _number(int)
    ),
    **dict.fromkeys(("socket_read_size", "ssl_min_version"), _number(int)),
    **dict.fromkeys(("socket_connect_timeout", "socket_timeout"), _number(float)),
    **dict.fromkeys(("cluster", "decode_responses", "legacy_responses", "retry_on_timeout"), _word_for_flag),
    **dict.fromkeys(("socket_keepalive", "ssl", "ssl_check_hostname"), _word_for_flag),
    **dict.fromkeys(("ssl_validate_ocsp", "ssl_validate_ocsp_stapled"), _word_for_flag),
}
#: Of the client's options, wherever they are said. Without a time-out, a server that hangs would hang every run.
_CLIENT_RULES: Final[dict[str, _Rule]] = {
    "decode_responses": _reads_bytes,
    "cluster": _flag,
    "socket_timeout": _seconds(0.01, high=3600),
    "socket_connect_timeout": _seconds(0.01, high=3600),
}
_LOCK_RULES: Final[dict[str, _Rule]] = {
    "enabled": _flag,
    "key": _key,
    "driver": _one_of("auto", "redis", "memory", "database"),
    "connection": _text,
    "ttl": _seconds(0.1),
    "auto_extend": _flag,
    "extend_interval": _seconds(0.01),
    "retry_attempts": _count,
    "retry_delay": _seconds(0),
    "retry_jitter": _seconds(0),
    "skip_if_locked": _flag,
    "hold_at_least": _seconds(0),
    "on_lost": _one_of("fail", "abort", "warn"),
    "dedupe_ttl": _seconds(0),
    "logging": _one_of("auto", "brief", "default", "verbose", False),
}
_APP_RULES: Final[dict[str, _Rule]] = {
    "redis_url": _redis_url,
    "redis_options": _client_arguments,
    "redis_min_replicas": _count,
    "connections": _connections,
    "key_prefix": _key_prefix,
    "claim_ttl": _seconds(0.1, high=3600),
    "memory_path": _path,
    "django_run_missed_when_changed": _flag,
    "health_file": _health_file,
}
#: What is an option of Celery's, too: of autoretry_for.
_CELERYS: Final = frozenset({"retry_jitter"})
LOCK_NAMES: Final = tuple(field.name for field in fields(LockOptions))

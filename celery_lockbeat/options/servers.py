"""Where the Redis servers are, and how they are talked to: URLs, client arguments, and what Celery says of its own Redis.

Promises: a URL means here what it means to Celery, or to redis-py where Celery has no say; what it carries is read as
numbers and flags, and checked by the rules of ``lockbeat_redis_options``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from celery.utils.imports import symbol_by_name

from celery_lockbeat.options.refusals import refusal
from celery_lockbeat.options.rules import Rule, flag, seconds

__all__ = [
    "carried_by",
    "client_arguments",
    "connections",
    "redis_of_celery",
    "redis_url",
    "timeouts",
    "without_options",
]

#: Seconds to wait for a connection, and for an answer, where ``socket_connect_timeout`` and ``socket_timeout`` of
#: ``lockbeat_redis_options`` say nothing else. redis-py would wait for ever, or try for longer than a lease lasts.
TIMEOUT: Final = 2.0

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


def timeouts(options: Mapping[str, Any] | None) -> tuple[float, float]:
    """Return the seconds that a store waits for a connection and for an answer, of its client arguments."""
    options = options or {}
    answer = options.get("socket_timeout", TIMEOUT)
    return options.get("socket_connect_timeout", answer), answer


def redis_of_celery(conf: Any, own: str | None) -> tuple[str, str | None, dict[str, Any]]:
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
        url, whole = redis_url(setting, _of_servers(url)), url
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


def redis_url(setting: str, value: Any) -> str:
    """A URL of a server, or several with semicolons between them; returned as redis-py spells it."""
    parts = [part.partition("://") for part in value.split(";")] if isinstance(value, str) else []
    if not parts or any(part[0] not in _REDIS_SCHEMES or not part[1] or part[0] != parts[0][0] for part in parts):
        allowed = "a URL that starts with redis://, rediss://, unix://, redis+socket:// or sentinel://"
        raise refusal(setting, value, allowed)
    try:
        [urlsplit(part).port for part in value.split(";")]
    except ValueError:
        raise refusal(setting, value, "a URL whose port is a number, and whose password is URL-encoded") from None
    carried_by(setting, value)
    if value.startswith("redis+socket://"):
        # Celery's own spelling of a unix socket; redis-py's is unix://, and its database is ?db= for ?virtual_host=
        value = value.replace("redis+socket://", "unix://", 1).replace("virtual_host=", "db=")
    # Celery spells ssl_cert_reqs as the ssl module does, redis-py in small letters
    return re.sub(r"ssl_cert_reqs=CERT_(\w+)", lambda match: f"ssl_cert_reqs={match[1].lower()}", value)


def connections(setting: str, value: Any) -> dict[str, dict[str, Any]]:
    """Servers by name: ``lockbeat_connections``."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) and name for name in value):
        raise refusal(setting, value, "a mapping of names to a Redis URL, or to a mapping with 'url' and options")
    connections: dict[str, dict[str, Any]] = {}
    for name, given in value.items():
        own = f"{setting}[{name!r}]"
        arguments = dict(given) if isinstance(given, Mapping) else {"url": given}
        url = redis_url(own, arguments.pop("url", None))
        connections[name] = {**client_arguments(own, arguments), "url": url}
    return connections


def client_arguments(setting: str, value: Any) -> dict[str, Any]:
    """Arguments of ``redis.Redis``: ``lockbeat_redis_options``."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        # not itself, for there may be a password anywhere in it
        raise refusal(setting, type(value).__name__, "a mapping of arguments of redis.Redis")
    if "url" in value:
        raise refusal(setting, value, "arguments of redis.Redis; the URL goes into lockbeat_redis_url")
    for name, rule in _CLIENT_RULES.items():
        if name in value:
            rule(f"{setting}[{name!r}]", value[name])
    return dict(value)


def _reads_bytes(setting: str, value: Any) -> None:
    if value:
        raise refusal(setting, value, "False: the store reads bytes")


def carried_by(setting: str, url: str) -> dict[str, Any]:
    """Read the options that a URL carries and that have a rule; redis-py reads the rest, but not that of Sentinels' URLs."""
    carried: dict[str, Any] = {}
    for name, text in (pair for part in url.split(";") for pair in parse_qsl(part.partition("?")[2])):
        named = f"?{name}= of {setting}"
        if name in _OBJECTS:
            raise refusal(named, text, "in lockbeat_redis_options, or not at all: a URL carries text only")
        if name in _IN_URLS or url.startswith("sentinel://"):
            carried[name] = _IN_URLS[name](named, text) if name in _IN_URLS else text
            if name in _CLIENT_RULES:
                _CLIENT_RULES[name](named, carried[name])
    return carried


def without_options(carried: Iterable[str], url: str) -> str:
    """Take these options off a URL, and a database that another is preferred to."""
    parts = []
    for part in url.split(";"):
        address, _, query = part.partition("?")
        if "db" in carried and not address.startswith("unix://"):
            address = re.sub(r"^(\w+://[^/]*)/.*", r"\1", address)
        left = [pair for pair in parse_qsl(query) if pair[0] not in carried]
        parts.append(f"{address}?{urlencode(left)}" if left else address)
    return ";".join(parts)


def _provider(setting: str, text: str) -> Any:
    """Make the credential provider that a URL names, as kombu does."""
    try:
        return symbol_by_name(text)()
    except Exception as exc:
        raise refusal(setting, text, f"the path of a class that can be made without arguments ({exc})") from exc


def _word_for_flag(setting: str, text: str) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if text.lower() not in words:
        raise refusal(setting, text, ", ".join(words))
    return words[text.lower()]


def _number(kind: Callable[[str], float]) -> Rule:
    def rule(setting: str, text: str) -> float:
        try:
            return kind(text)
        except ValueError:
            raise refusal(setting, text, "a whole number" if kind is int else "a number") from None

    return rule


#: How the text in a URL is read, where redis-py would leave it text, or take any for true.
_IN_URLS: Final[dict[str, Rule]] = {
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
_CLIENT_RULES: Final[dict[str, Rule]] = {
    "decode_responses": _reads_bytes,
    "cluster": flag,
    "socket_timeout": seconds(0.01, high=3600),
    "socket_connect_timeout": seconds(0.01, high=3600),
}

"""How a wrong option is refused: with its setting as the user spells it, its value, and what is allowed.

Promises: no password is in a refusal, as far as a URL or a name shows that it is one.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from celery_lockbeat.exceptions import ConfigurationError

__all__ = [
    "SETTING_PREFIX",
    "refusal",
    "refuse_unknown",
    "spelled_for",
    "spelling",
    "unit",
    "without_passwords",
    "written",
]

SETTING_PREFIX: Final = "lockbeat_"

#: Settings, in what is told.
_SETTING: Final = re.compile(
    r"\b(?:lockbeat_[a-z_]+|broker_url|broker_use_ssl|broker_transport_options|result_backend|redis_backend_use_ssl"
    r"|result_backend_transport_options|beat_scheduler|beat_schedule)\b"
)


def refusal(setting: str, value: Any, allowed: str) -> ConfigurationError:
    """Make the refusal of a value, for whoever raises it."""
    return ConfigurationError(f"{setting} is {without_passwords(value)!r}; allowed: {allowed}")


def refuse_unknown(names: Iterable[str], known: list[str], *, owner: str) -> None:
    """Refuse a name that is not known, with the nearest that is. Raises ConfigurationError."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0)
            raise ConfigurationError(
                f"{name} of {owner} is not an option of celery-lockbeat; did you mean {near[0]}? "
                f"allowed: {', '.join(known)}"
            )


def without_passwords(value: Any) -> Any:
    """Blot out what may be a password, in URLs and in what has a name."""
    if isinstance(value, Mapping):
        return {name: "**" if "pass" in str(name).lower() else without_passwords(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_passwords(each) for each in value]
    if not isinstance(value, str):
        return value
    parts = [re.sub(r"^([^:]*://[^:@]*:).*@", r"\1**@", part, flags=re.DOTALL) for part in value.split(";")]
    return re.sub(r"([?&]\w*pass\w*=)[^&;]*", r"\1**", ";".join(parts))


def written(number: float) -> str:
    """Write a number as people do, not 2.592e+06."""
    return f"{number:.12g}"


def unit(value: Any, high: float) -> str:
    """A hint, where a number is too great for seconds, and would not be for milliseconds."""
    number = isinstance(value, (int, float)) and high < value <= high * 1000
    return f" ({written(value)} ms are {written(value / 1000)} s)" if number else ""


@contextlib.contextmanager
def spelled_for(conf: Any) -> Iterator[None]:
    """Let a refusal name the settings as the user of ``conf`` writes them."""
    try:
        yield
    except ConfigurationError as exc:
        raise ConfigurationError(spelling(conf)(str(exc))) from exc.__cause__


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

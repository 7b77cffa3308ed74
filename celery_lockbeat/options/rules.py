"""Rules of single options: each takes a setting's name and a value, and returns the value or raises ConfigurationError."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, Final

from celery_lockbeat.options.refusals import refusal, unit, written

__all__ = ["LONGEST", "Rule", "count", "flag", "one_of", "path", "seconds", "text"]

#: A lease of more than a month is a mistake in the unit.
LONGEST: Final = 30 * 86400.0

Rule = Callable[[str, Any], Any]


def flag(setting: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise refusal(setting, value, "True or False")
    return value


def seconds(low: float, *, high: float = LONGEST) -> Rule:
    """A number of seconds from ``low`` to ``high``."""

    def rule(setting: str, value: Any) -> Any:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not low <= value <= high:
            raise refusal(
                setting, value, f"seconds, a number from {written(low)} to {written(high)}{unit(value, high)}"
            )
        return value

    return rule


def count(setting: str, value: Any) -> int:
    """A whole number from 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise refusal(setting, value, "a whole number from 0")
    return value


def one_of(*allowed: Any) -> Rule:
    """One of a few values, of the same type."""

    def rule(setting: str, value: Any) -> Any:
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise refusal(setting, value, ", ".join(repr(one) for one in allowed))
        return value

    return rule


def text(setting: str, value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value:
        raise refusal(setting, value, "a non-empty string")
    return value


def path(setting: str, value: Any) -> str:
    """The path of a directory."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise refusal(setting, value, "the path of a directory")
    return str(os.fspath(value))

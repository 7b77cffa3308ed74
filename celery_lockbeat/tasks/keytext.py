"""The one text of a value in a lock key: equal values have one, whatever order they came in and in whatever process.

Promises: what Python itself writes, but that mappings and sets are in one order. So a key that was made of strings, numbers,
dates, UUIDs, Decimals, lists of them, or of mappings in the order of their names, is what it ever was. What has no text of
its own, but for its address, is refused.

Not promised: an order inside of what writes its text itself, such as a class with a ``__repr__`` of its own.
"""

from __future__ import annotations

import datetime as dt
import enum
import inspect
import re
from collections import Counter, UserDict, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

__all__ = ["PLAIN", "Nameless", "text_of"]

#: What always has one text, and holds nothing else.
PLAIN: Final = frozenset({
    str, int, float, bool, type(None), bytes, complex, Decimal, Fraction, UUID,
    dt.datetime, dt.date, dt.time, dt.timedelta, dt.timezone,
})  # fmt: skip

#: The repr of mappings whose equality knows no order, as that of an OrderedDict does.
_OF_MAPPINGS: Final[tuple[Any, ...]] = tuple(
    kind.__repr__ for kind in (dict, UserDict, defaultdict, Counter, MappingProxyType)
)

_ADDRESS: Final = re.compile(r"\bat 0x[0-9a-fA-F]+")


class Nameless(Exception):  # noqa: N818  it never leaves the call that makes a key
    """Raised when a value has no text of its own."""


def text_of(value: Any, conversion: str | None = None) -> str:  # noqa: PLR0911  one kind of value each
    """Write a value as ``str.format`` does, after ``!s``, ``!r``, ``!a`` or none of them. Raises Nameless."""
    if conversion == "r":
        return _repr(value)
    if conversion == "a":
        return _repr(value).encode("ascii", "backslashreplace").decode("ascii")
    kind: Any = type(value)
    if kind in PLAIN:
        return str(value)
    if kind.__str__ is object.__str__ and (conversion == "s" or kind.__format__ is object.__format__):
        return _repr(value)
    if kind is MappingProxyType:
        return _repr(dict(value))
    if conversion == "s":
        return _checked(value, str(value))
    if isinstance(value, enum.Enum) and isinstance(value, (str, int, float)) and _has_the_text_of_an_enum(kind):
        # as it arrives in a message; Python 3.12 began to write its name
        return str(value.value)
    return _checked(value, format(value))


def _repr(value: Any) -> str:  # noqa: PLR0911  one kind of value each
    kind: Any = type(value)
    if kind in PLAIN:
        return repr(value)
    how = kind.__repr__
    if how is list.__repr__:
        return f"[{_joined(map(_repr, value))}]"
    if how is tuple.__repr__:
        return f"({_joined(map(_repr, value))}{',' * (len(value) == 1)})"
    if how in (set.__repr__, frozenset.__repr__):
        return _set(kind, value)
    if isinstance(value, Mapping) and (how in _OF_MAPPINGS or how is object.__repr__):
        return _mapping(kind, value)
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return _call(kind.__name__, zip(kind._fields, value, strict=True))
    if is_dataclass(value) and _is_made_by_dataclass(how):
        return _call(kind.__qualname__, ((f.name, getattr(value, f.name)) for f in fields(value) if f.repr))
    return _checked(value, repr(value))


def _set(kind: Any, value: Iterable[Any]) -> str:
    inside = _joined(_repr(each) for each in _in_order(value))
    text = f"{{{inside}}}"
    if kind is set and inside:
        return text
    return f"{kind.__name__}({text if inside else ''})"


def _mapping(kind: Any, value: Mapping[Any, Any]) -> str:
    text = f"{{{_joined(f'{_repr(name)}: {_repr(value[name])}' for name in _in_order(value))}}}"
    if kind.__repr__ in (dict.__repr__, UserDict.__repr__):
        return text
    if isinstance(value, defaultdict):
        return f"defaultdict({_repr(value.default_factory)}, {text})"
    return f"{kind.__name__}({text})"


def _in_order(values: Iterable[Any]) -> list[Any]:
    values = list(values)
    kinds = set(map(type, values))
    # others may compare without being in an order, as sets do
    return sorted(values) if kinds <= {str} or kinds <= {int, bool} else sorted(values, key=_repr)


def _call(name: str, arguments: Iterable[tuple[str, Any]]) -> str:
    return f"{name}({_joined(f'{name}={_repr(value)}' for name, value in arguments)})"


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(texts)


def _is_made_by_dataclass(how: Any) -> bool:
    code = getattr(inspect.unwrap(how), "__code__", None)
    return code is not None and code.co_filename == "<string>"


def _has_the_text_of_an_enum(kind: Any) -> bool:
    return kind.__str__ is enum.Enum.__str__ and kind.__format__ is enum.Enum.__format__


def _checked(value: Any, text: str) -> str:
    if not isinstance(value, (str, bytes)) and _ADDRESS.search(text):
        raise Nameless(f"{type(value).__module__}.{type(value).__qualname__}")
    return text

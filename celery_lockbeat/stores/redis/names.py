"""How text and seconds are written in keys, fields and arguments, and read again: one to one, whatever is in them."""

from __future__ import annotations

import hashlib
import math
import re
from base64 import urlsafe_b64encode
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote, unquote

__all__ = ["app_keys", "exact", "mark", "ms", "plain", "read", "seconds", "shown", "unquoted"]

#: Longer keys are cut and told apart by a digest: Redis compares whole keys, and operators read them.
LONGEST_KEY: Final = 200

#: No duration is longer: 30 years, so that a lock's end has its 13 digits.
LONGEST: Final = 1e9

#: What needs no quoting and no cutting: nearly all keys, holders and runs.
_is_plain: Final = re.compile(rf"[\w!$&'()*+,/:;=@.~-]{{0,{LONGEST_KEY}}}", re.ASCII).fullmatch


def plain(text: str) -> str:
    """Write any text, one to one, without blanks, braces and control characters: it fits a hash tag and a field.

    ``quote`` puts out no ``%`` that two hex digits do not follow: ``%~`` can come from nowhere else.
    """
    if _is_plain(text):
        return text
    quoted = quote(text, safe="!$&'()*+,/:;=@", errors="surrogatepass")
    if len(quoted) <= LONGEST_KEY:
        return quoted
    return f"{quoted[:64]}%~{hashlib.sha256(quoted.encode()).hexdigest()}"


@lru_cache(maxsize=256)  # an acquire asks for what its release will
def mark(run: str) -> tuple[str, str]:
    """Write the name of a run as what remembers its end is named, and as a lock itself remembers it, "" where it must not.

    Release 0.1.0 may look for those that it would name alike (tasks/copies.py): of messages without a nonce. The others have 12
    characters, for they are kept for long: 72 bits, among the runs of one key in an hour or two.
    """
    nonce = run.rfind("~")
    if nonce < 0 or ":" in run[nonce:]:
        return plain(run), ""
    name = run.encode("utf-8", "surrogatepass")
    digest = urlsafe_b64encode(hashlib.blake2b(name, digest_size=9).digest()).decode()
    return digest, digest


def exact(text: str) -> bytes:
    """Write any text, one to one, where its length is told."""
    return text.encode("utf-8", "surrogatepass")


def read(text: bytes) -> str:
    """Read what ``exact`` has written."""
    try:
        return text.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:  # it has not written this
        return text.decode("utf-8", "backslashreplace")


def shown(text: bytes) -> str:
    """Read what is only shown."""
    told = text.decode("utf-8", "replace")
    return told if told.isprintable() else "".join(char if char.isprintable() else "?" for char in told)


def unquoted(text: bytes) -> str:
    """Read what ``plain`` has written; what was cut is read as it is."""
    try:
        return text.decode() if b"%~" in text else unquote(text, errors="surrogatepass")
    except UnicodeDecodeError:  # it has not written this
        return shown(text)


@lru_cache(maxsize=256)  # they are few: a task's ttl, and that of what is remembered
def ms(seconds: float) -> str:
    """Round up: a lease must not end before its holder expects."""
    return str(math.ceil(min(seconds, LONGEST) * 1000))


def seconds(answer: Any) -> float:
    """Read an answer to TIME."""
    whole, micro = map(int, answer)
    return whole + micro / 1e6


def app_keys(prefix: str, app: str, *names: str) -> tuple[str, ...]:
    """Name keys of an app's beats; what stands before the app's name keeps the tag from being empty."""
    return tuple(f"{prefix}{{beat:{plain(app)}}}:{name}" for name in names)

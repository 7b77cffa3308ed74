"""How text and seconds are written for the functions of the database, and read again."""

from __future__ import annotations

import hashlib
import math
from typing import Final

__all__ = ["cut", "exact", "named", "readable", "short", "text", "us"]

#: Longer keys are cut and told apart by a digest: an index of PostgreSQL takes 2,700 bytes.
LONGEST_KEY: Final = 500


def us(seconds: float) -> int:
    """Round up: a lease must not end before its holder expects."""
    return math.ceil(seconds * 1_000_000)


def cut(blob: bytes) -> bytes:
    """Keep what is short, and cut what is long; one to one, by the first byte."""
    if len(blob) <= LONGEST_KEY:
        return b"=" + blob
    return b"#" + blob[:64] + hashlib.sha256(blob).digest()


def short(name: str) -> str:
    """Write a name as an argument in JSON."""
    return cut(exact(name)).hex()


def exact(text: str) -> bytes:
    """Write any text, one to one."""
    return text.encode("utf-8", "surrogatepass")


def text(blob: str) -> str:
    """Read what ``exact`` has written, in hex digits."""
    return bytes.fromhex(blob).decode("utf-8", "surrogatepass")


def named(blob: str, skip: int = 0) -> str:
    """Read what ``cut`` has written, after so many bytes; what was too long ends where it was cut."""
    told = bytes.fromhex(blob)
    if told[:1] == b"=":
        return told[1 + skip :].decode("utf-8", "surrogatepass")
    return told[1 + skip : 65].decode("utf-8", "replace")


def readable(blob: str) -> str:
    """Read, in hex digits, what is only shown."""
    return bytes.fromhex(blob).decode("utf-8", "replace")

"""A Lua script, and one call of it: how both are written for Redis.

Promises: what is sent is packed once for each script, and the answer bears the number of what was asked for, so that no answer
is taken for another's (see ``node.py``). A lone surrogate in a word stands for a byte, as in file names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

__all__ = ["Call", "Request", "Script", "to_word"]

#: Around each script: its answer bears the number of what was asked for. On a connection on which anything was answered
#: twice, or an answer was left unread, each answer would be taken for the next one's: a lock for one that was refused.
#: A new token, and the same with a minus when it is released, tell by themselves what they answer, and nothing is read
#: faster than a lone number. With a negative number even these bear it: there is more than one answer to read.
_FRAME: Final = """local asked = ARGV[#ARGV]
ARGV[#ARGV] = nil
local answer = (function()
%s
end)()
if type(answer) == 'number' and math.abs(answer) > 1e9 and asked > '0' then
  return answer
end
return {asked, answer}
"""


class Script:
    """A script, and its digest, for EVALSHA."""

    def __init__(self, source: str) -> None:
        self.source: Final = source
        self.sha: Final = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        #: how a command begins that names it by its digest, and how one that has its source
        self.packed: Final = _packed(("EVALSHA", self.sha)), _packed(("EVAL", self.source))

    @classmethod
    @cache
    def of(cls, *names: str) -> Script:
        """Make one of Lua files; they are read once."""
        lua = files("celery_lockbeat.stores.redis").joinpath("lua")
        return cls(_FRAME % "".join(lua.joinpath(f"{name}.lua").read_text("utf-8") for name in names))

    def command_at(self, line: int) -> str:
        """Return what a line of the source calls."""
        return " or ".join(re.findall(r"redis\.call\('(\w+)'", self.source.splitlines()[line - 1]))


class Call(NamedTuple):
    """One script to run; all its keys have one hash tag. A lone surrogate in a word stands for a byte, as in file names."""

    script: Script
    keys: tuple[str, ...]
    args: tuple[str, ...]
    #: the token that this gives back, which tells with a minus that it is done; 0: it gives back none
    released: int = 0

    def packed(self, number: int, *, with_source: bool = False) -> bytes:
        """Return what is sent for it, if its answer is to bear ``number``."""
        words = (str(len(self.keys)), *self.keys, *self.args, str(number))
        return b"*%d\r\n%b%b" % (len(words) + 2, self.script.packed[with_source], _packed(words))

    def request(self, number: int, *, with_source: bool = False) -> Request:
        """Return the same, with what is known of its answer."""
        return Request(self.packed(number, with_source=with_source), number, self.released, with_source)


class Request(NamedTuple):
    """What is sent for one answer."""

    packed: bytes
    #: the number of a script's request, which its answer bears; 0: it has none, and its answer is no list; None: any answer
    number: int | None = None
    released: int = 0
    with_source: bool = False

    @classmethod
    def of(cls, *words: str | bytes | int, number: int | None = None) -> Request:
        """Make one of a command that is no script of ours."""
        texts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        return cls(b"*%d\r\n%b" % (len(texts), _packed_bytes(texts)), number)


def _packed(words: Sequence[str]) -> bytes:
    # redis-py's packing asks many questions of each word: 8 us for a script's, against 2
    text = ""
    for word in words:
        text += f"${len(word)}\r\n{word}\r\n"
    if text.isascii():
        return text.encode()
    return _packed_bytes([word.encode("utf-8", "surrogateescape") for word in words])


def _packed_bytes(words: Iterable[bytes]) -> bytes:
    return b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


def to_word(word: str | bytes | int) -> str:
    """Return a word of a Call for this."""
    return word.decode("utf-8", "surrogateescape") if isinstance(word, bytes) else str(word)

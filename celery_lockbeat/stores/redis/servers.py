"""How a script reaches the Redis that has its keys: one server, the primary that Sentinels name, or the nodes of a Cluster.

Promises: what is asked is answered, or given up, within the time that the caller has; what a server refuses only for now
(it loads, fails over, moves a slot, runs another's script) is asked again while that time lasts. However a call is broken
off, its connection is closed then and there: no answer is left behind for the next call. There are never more
connections to a node than threads that talk to it at one moment, and no password is in what is raised here.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import os
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from itertools import count
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import TimeoutError as NoAnswer
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool

from celery_lockbeat.clock import monotonic
from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.options import timeouts
from celery_lockbeat.stores.redis.listeners import what_listens

__all__ = [
    "SLOTS",
    "Call",
    "Cluster",
    "Node",
    "Request",
    "Script",
    "Servers",
    "info_of",
    "open_servers",
    "refuses",
    "to_word",
    "where",
    "why",
]

#: Slots of a Cluster.
SLOTS: Final = 16384

#: Seconds between two tries.
PAUSE: Final = 0.05

#: Seconds that a server is given however little time is left.
LEAST: Final = 0.01

#: Tries to reach a server that refuses connections or closes them, where no other stands in for it.
TRIES: Final = 2

#: Refusals that may be none in a moment; redis-py has no class for those that are told by their first word.
_FOR_NOW: Final = (BusyLoadingError, ClusterDownError, ReadOnlyError, TryAgainError, AskError)
_FOR_NOW_TOO: Final = ("BUSY ", "NOREPLICAS ", "UNBLOCKED ")

#: Words of a server that says no to us, and will in a moment too. In a script, and before Redis 7, some have no class.
_NO: Final = re.compile(
    r"NOPERM|NOAUTH|WRONGPASS|DENIED|ACL failure|can't run this command|(?i:unknown (redis )?command)|DB index|'auth' command"
    r"|SELECT is not allowed|cluster support disabled|no password is set"
)

#: Of OpenSSL's reasons: not that a connection broke off, but that one of the two does not want the other.
_NO_TLS: Final = re.compile(r"\[SSL: \w*(CERTIFICATE|ALERT|UNSUPPORTED_PROTOCOL)")

#: What redis-py 5 tells apart only on the connections of its own Cluster.
_OF_CLUSTERS: Final[dict[str, type[ResponseError]]] = {
    "ASK": AskError,
    "CLUSTERDOWN": ClusterDownError,
    "MASTERDOWN": MasterDownError,
    "MOVED": MovedError,
    "TRYAGAIN": TryAgainError,
}

#: Options whose files OpenSSL would only say of that there is one that it does not find.
_FILES: Final = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")

#: Options that redis-py's pools know, and its connections do not.
_OF_POOLS: Final = ("connection_class", "max_connections", "ssl")


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

#: Bytes that are read at first: the usual answer has 20, and for up to 512 Python has memory at hand.
AT_ONCE: Final = 256

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

#: Of the requests of this process: next() is atomic.
_numbers: Final = count(1)


class Script:
    """A script, and its digest, for EVALSHA."""

    def __init__(self, source: str) -> None:
        self.source: Final = source
        self.sha: Final = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        #: how a command begins that names it by its digest, and how one that has its source
        self.packed: Final = _packed(("EVALSHA", self.sha)), _packed(("EVAL", self.source))

    @classmethod
    def of(cls, *names: str) -> Script:
        """Make one of Lua files."""
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
    text = "".join([f"${len(word)}\r\n{word}\r\n" for word in words])
    return (
        text.encode() if text.isascii() else _packed_bytes([word.encode("utf-8", "surrogateescape") for word in words])
    )


def _packed_bytes(words: Iterable[bytes]) -> bytes:
    return b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


def to_word(word: str | bytes | int) -> str:
    """Return a word of a Call for this."""
    return word.decode("utf-8", "surrogateescape") if isinstance(word, bytes) else str(word)


class TooFewReplicas(Exception):  # noqa: N818  as the exceptions of the package are named
    """Raised when fewer replicas than asked for have confirmed a write; ``args`` has their number."""


class WrongServer(RedisError):  # noqa: N818  as above
    """Raised when what listens is no Redis, or when one side speaks TLS and the other does not."""


class _Line:
    """One connection of redis-py's to a server."""

    __slots__ = ("connection", "timeout", "told")

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        #: seconds that it waits for an answer; None: it is not connected
        self.timeout: float | None = None
        #: the last token that it told: they only grow, or the server's clock was set back, and then it is asked again
        self.told = 0

    def open(self, timeout: float) -> None:
        """Be connected, and wait for so many seconds from now on. Raises RedisError and OSError."""
        connection = self.connection
        connection.socket_timeout = connection.socket_connect_timeout = timeout
        if self.timeout is None:
            connection.connect()  # sending would do it too, but not ask the Sentinels (redis-py 8.1)
        else:
            connection._sock.settimeout(timeout)
        self.timeout = timeout

    def close(self) -> None:
        """Disconnect: whatever is still to be read is read by nobody."""
        self.timeout, self.told = None, 0
        self.connection.disconnect()

    def ask(self, call: Call) -> Any:
        """Run one script; return its answer, or its refusal. Raises RedisError and OSError for none.

        The usual answer is a lone number. To read it takes redis-py longer than all else that is done for it here.
        """
        number = next(_numbers)
        if self.connection.health_check_interval:
            return self.converse((call.request(number),))[0]
        sock = self.connection._sock
        sock.sendall(call.packed(number))
        read = sock.recv(AT_ONCE)
        if read[:1] == b":" and read.find(b"\r\n") == len(read) - 2 > 0:
            answer = int(read[1:-2])
        else:
            answer = self._answer_from(read)
        return self._ours(answer, number, call.released)

    def converse(self, requests: Sequence[Request]) -> list[Any]:
        """Send requests, and read as many answers; a refusal is an answer too. Raises RedisError and OSError for none."""
        self.connection.send_packed_command((b"".join([request.packed for request in requests]),))
        return [
            self._ours(self._answer(), number, released, with_source) for _, number, released, with_source in requests
        ]

    def _answer(self) -> Any:
        try:
            return self.connection.read_response()
        except ResponseError as exc:
            word, _, rest = str(exc).partition(" ")
            return _OF_CLUSTERS[word](rest) if word in _OF_CLUSTERS else exc

    def _answer_from(self, read: bytes) -> Any:
        """Let redis-py read the answer that begins with what we have read."""
        connection, sock = self.connection, self.connection._sock
        connection._sock = _Begun(sock, read)
        connection._parser.on_connect(connection)
        try:
            answer = self._answer()
            if _has_more(connection):
                raise LostConnection(f"there is more than an answer: it begins with {read!r}")
            return answer
        finally:
            if connection._sock is not None:  # or redis-py has given it up
                connection._sock = sock
                connection._parser.on_connect(connection)

    def _ours(self, answer: Any, number: int | None, released: int, with_source: bool = False) -> Any:
        """Take off an answer the number of its request (see Request). Raises LostConnection, if it was another's."""
        if number is None:
            return answer
        if isinstance(answer, Exception):
            if not (with_source and isinstance(answer, NoScriptError)):
                return answer
        elif number == 0:
            if not isinstance(answer, list):
                return answer
        elif isinstance(answer, int):
            if number > 0 and (answer == -released if released else answer > self.told):
                self.told = max(answer, self.told)
                return answer
        elif isinstance(answer, list) and len(answer) == 2 and answer[0] == b"%d" % number:  # noqa: PLR2004  see _FRAME
            return answer[1]
        raise LostConnection(f"an answer is to another request: {answer}")


def _has_more(connection: Any) -> bool:
    try:
        return bool(connection.can_read())
    except (RedisError, OSError):
        return False  # it was closed behind its answer, which is one all the same


class _Begun:
    """A socket of which something has been read that is to be read again."""

    def __init__(self, sock: Any, read: bytes) -> None:
        self._sock = sock
        self._read: bytes | None = read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Return what was read; after that, what comes."""
        if self._read is None:
            return bytes(self._sock.recv(size, flags))
        read = self._read[:size]
        if not flags & socket.MSG_PEEK:
            self._read = self._read[size:] or None
        return read

    def recv_into(self, buffer: Any) -> int:
        """Write the same into ``buffer``; return how many bytes."""
        read = self.recv(len(buffer))
        buffer[: len(read)] = read
        return len(read)


class Node:
    """One server, and our connections to it of which no answer is outstanding."""

    def __init__(self, pool: Any) -> None:
        # It makes connections, and is not asked to lend any: it polls the socket of each that it lends. With its bookkeeping
        # that is nearly half of what a command costs, and it finds no answer there that is still under way.
        self._pool = pool
        self._idle: deque[_Line] = deque()
        self._has_answered = False
        self.fails = False

    def run(self, call: Call, timeout: float) -> Any:
        """Run one script; return its answer, or its refusal. Raises RedisError and OSError for none."""
        return self._talk(_Line.ask, call, timeout)

    def converse(self, requests: Sequence[Request], timeout: float) -> list[Any]:
        """Send requests, and read as many answers; a refusal is an answer too. Raises RedisError and OSError for none."""
        return self._talk(_Line.converse, requests, timeout)

    def _talk(self, ask: Callable[[_Line, Asked], Answer], what: Asked, timeout: float) -> Answer:
        try:
            line = self._idle.pop()
        except IndexError:
            line = _Line(self._pool.make_connection())
        try:
            if self._is_outdated(line):
                line.close()
            if line.timeout != timeout:
                line.open(timeout)
            answer = ask(line, what)
        except BaseException as exc:
            # What a soft time limit throws between a command and its answer ends the connection too: the next call would
            # read that answer.
            line.close()
            self._idle.append(line)
            self.fails = isinstance(exc, Exception)
            if not self._has_answered and isinstance(exc, (RedisError, OSError)):
                _look_who_listens(line.connection, exc)
            raise
        self._idle.append(line)
        self.fails = False
        self._has_answered = True
        return answer

    def _is_outdated(self, _line: _Line) -> bool:
        return False

    @property
    def address(self) -> str:
        """Where it is, as far as that is known."""
        said = self._pool.connection_kwargs
        return str(said.get("path") or f"{said.get('host', '')}:{said.get('port', '')}")

    def close(self) -> None:
        """Close the connections that nobody uses now."""
        for _ in range(len(self._idle)):
            try:
                line = self._idle.popleft()  # it is nobody else's meanwhile
            except IndexError:
                return
            line.close()
            self._idle.append(line)


class _Primary(Node):
    """The server that is the primary now."""

    def _is_outdated(self, line: _Line) -> bool:
        # another thread may have learned of a new primary, while the old one still answers
        address = self._pool.master_address
        return address is not None and (line.connection.host, line.connection.port) != address


def _look_who_listens(connection: Any, exc: Exception) -> None:
    """Raise WrongServer if that is why nothing was understood; redis-py tells of time-outs and closed connections."""
    said, encrypted = str(exc), isinstance(connection, redis.SSLConnection)
    unreachable = isinstance(exc, LostConnection) and "connecting to" in said and "[SSL" not in said
    if unreachable or refuses(exc) or not hasattr(connection, "port") or (isinstance(exc, NoAnswer) and not encrypted):
        return
    found = what_listens(connection.host, connection.port)
    if found == "redis" and encrypted:
        raise WrongServer("it speaks no TLS there: redis:// in place of rediss://, or another port") from exc
    if found == "tls" and not encrypted:
        raise WrongServer("it speaks TLS there: rediss:// in place of redis://, or another port") from exc
    if found not in (None, "redis", "tls"):
        raise WrongServer(f"what listens there is no Redis: it says {found!r}") from exc


def _lacks_replicas(answer: Any) -> bool:
    refused = isinstance(answer, ResponseError) and str(answer).startswith("NOREPLICAS ")
    return refused or isinstance(answer, TooFewReplicas)


def _for_now(answer: Any) -> bool:
    return isinstance(answer, _FOR_NOW) or (isinstance(answer, ResponseError) and str(answer).startswith(_FOR_NOW_TOO))


class Servers:
    """One server; the classes below find the right one among several."""

    #: options that are ours
    own_options: tuple[str, ...] = ()

    def __init__(self, url: str, options: Mapping[str, Any], setting: str) -> None:
        self._settings = url, options, setting
        #: seconds to wait for a connection, for an answer, and for which an operation asks again at most
        self.connect_timeout, self.timeout = timeouts(options)
        self.time_allowed = self.connect_timeout + self.timeout
        self._arguments = {
            "socket_timeout": self.timeout,
            "socket_connect_timeout": self.connect_timeout,
            "retry": Retry(NoBackoff(), 0),
            **options,
            "decode_responses": False,
        }
        self._open(url)

    def _open(self, url: str) -> None:
        if self._arguments.pop("ssl", False):
            url = re.sub("^redis:", "rediss:", url)
        self._only = Node(self._checked(redis.ConnectionPool.from_url(url, **self._arguments)))

    def _checked(self, pool: Any) -> Any:
        """Return the pool, if its connections take all that the URL and the options say."""
        known = {
            name
            for each in pool.connection_class.__mro__
            for name, parameter in inspect.signature(each.__init__).parameters.items()
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        }
        known = known.difference(["self", "connection_pool"]).union(_OF_POOLS, self.own_options)
        for name in self._settings[1].keys() | pool.connection_kwargs.keys():
            if name not in known and name != "connection_pool":
                near = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
                raise ConfigurationError(
                    f"{name} of lockbeat_redis_options or {self._settings[2]} is no argument of redis-py {redis.__version__}; "
                    f"did you mean {near}? allowed: {', '.join(sorted(known))}"
                )
            if name in _FILES and not os.path.exists(path := pool.connection_kwargs.get(name) or "/"):  # noqa: PTH110
                raise ConfigurationError(
                    f"{name} of lockbeat_redis_options or {self._settings[2]} is {path!r}: it is not there"
                )
        pool.connection_class(**pool.connection_kwargs)
        return pool

    def anew(self) -> Servers:
        """Return the same servers without a connection to them."""
        return type(self)(*self._settings)

    def nodes(self) -> Iterable[Node]:
        """Return the servers that have keys of ours, as far as they are known."""
        return [self._only]

    def primaries(self) -> Iterable[Node]:
        """Return the servers that may be written to. Raises RedisError and OSError."""
        return self.nodes()

    def facts(self) -> list[tuple[str | None, dict[str, str]]]:
        """Return of each server its version and what it tells of its memory, as far as it may tell them.

        Raises RedisError and OSError.
        """
        return [_facts(node, self.timeout) for node in self.primaries()]

    def close(self) -> None:
        """Close all connections that nobody uses now; they open again when they are used."""
        for node in self.nodes():
            node.close()

    # -- asking --------------------------------------------------------------------------------------------------------

    def ask_one(self, call: Call, within: float) -> Any:
        """Do as ``ask`` does, with one call: nearly all are answered at once, and pay for nothing else."""
        started = monotonic()
        try:
            answer = self.node_of(call.keys[0]).run(call, min(self.timeout, max(within, LEAST)))
        except (RedisError, OSError) as exc:
            answer = exc
        if isinstance(answer, Exception):
            (answer,) = self.ask([call], within - (monotonic() - started), first=answer)
        return answer

    def ask(self, calls: Sequence[Call], within: float, *, min_replicas: int = 0, first: Any = None) -> list[Any]:
        """Run scripts; return for each its answer, or the exception that it ended in.

        A write that fewer than ``min_replicas`` have confirmed ends in TooFewReplicas. ``first``: the answer of a try that
        was made before.
        """
        deadline = monotonic() + max(within, LEAST)
        answers: list[Any] = [first] * len(calls)
        progress = _Progress()
        waiting = list(range(len(calls)))
        while True:
            if first is None or progress.rounds:
                self._ask_all(calls, waiting, progress, answers, deadline, min_replicas)
            progress.begin_another_round()
            waiting = [each for each in waiting if self._ask_again(each, calls[each], answers[each], progress)]
            now = monotonic()
            if waiting and not progress.pause:
                # the server is there, and says what it lacks: slow greetings must not have used up the time for that
                deadline = max(deadline, now + self.timeout)
            if not waiting or now + progress.pause >= deadline:
                return [progress.told(each, answer) for each, answer in enumerate(answers)]
            time.sleep(progress.pause)

    def _ask_all(
        self,
        calls: Sequence[Call],
        waiting: Iterable[int],
        progress: _Progress,
        answers: list[Any],
        deadline: float,
        min_replicas: int,
    ) -> None:
        groups = self._by_node(calls, waiting, progress, answers)
        # those that failed last come last: what they cost must not be at the others' expense
        for position, node in enumerate(sorted(groups, key=lambda node: node.fails)):
            share = (deadline - monotonic()) / (len(groups) - position)
            timeout = min(self.timeout, max(share, LEAST))
            asked = [(calls[each], each in progress.asking, each in progress.unknown) for each in groups[node]]
            for each, answer in zip(groups[node], _ask(node, asked, timeout, min_replicas), strict=True):
                if isinstance(answer, NoAnswer) and timeout < self.timeout and _for_now(answers[each]):
                    progress.refusals[each] = answers[each]
                answers[each] = answer

    def _by_node(
        self, calls: Sequence[Call], waiting: Iterable[int], progress: _Progress, answers: list[Any]
    ) -> dict[Node, list[int]]:
        groups: dict[Node, list[int]] = {}
        for each in waiting:
            try:
                node = progress.asking.get(each) or self.node_of(calls[each].keys[0])
            except (RedisError, OSError) as exc:  # noqa: PERF203  free where nothing is raised
                answers[each] = exc
            else:
                groups.setdefault(node, []).append(each)
        return groups

    def _ask_again(self, each: int, call: Call, answer: Any, progress: _Progress) -> bool:
        """Whether another answer may come; learn from this one where to ask, and how."""
        if _lacks_replicas(answer):
            self._doubt()
        if not isinstance(answer, Exception) or isinstance(answer, TooFewReplicas) or refuses(answer):
            return False
        if isinstance(answer, NoScriptError):
            known, progress.unknown = each not in progress.unknown, progress.unknown | {each}
            return known
        if isinstance(answer, AskError):
            return self._follow(each, call, answer, progress)
        if _for_now(answer):
            progress.pause = PAUSE
            return True
        if isinstance(answer, ResponseError):
            return False
        progress.pause = PAUSE
        # one round may have gone to learn that the server does not know the script
        return self._reach_another() or progress.rounds - bool(progress.unknown) < TRIES

    # -- what there is more than one of --------------------------------------------------------------------------------

    def node_of(self, _key: str) -> Node:
        """Return the server that has this key. Raises RedisError and OSError."""
        return self._only

    def _follow(self, _each: int, _call: Call, _answer: AskError, _progress: _Progress) -> bool:
        """Follow a slot to its node."""
        return False

    def _reach_another(self) -> bool:
        """Whether another server may stand in for one that does not answer."""
        return False

    def says_no(self, answer: Exception) -> bool:
        """Whether it is no outage, but a server that will not do what is asked of it for as long as the settings are these."""
        return refuses(answer) or isinstance(answer, MovedError)

    def _doubt(self) -> None:
        """Learn that a primary has no replicas: it may have been replaced."""


class _Progress:
    """What is known of the calls that wait for an answer."""

    def __init__(self) -> None:
        self.rounds = 0
        self.pause = 0.0
        self.unknown: set[int] = set()  # scripts that the server does not know
        self.asking: dict[int, Node] = {}  # a slot is on its way there
        self.refusals: dict[int, Exception] = {}  # and had no time left to be said again

    def begin_another_round(self) -> None:
        self.rounds += 1
        self.pause = 0.0 if self.rounds == 1 else PAUSE
        self.asking = {}

    def told(self, each: int, answer: Any) -> Any:
        """Return why a call was refused, rather than that this was not said again in the rest of the time."""
        return self.refusals.get(each, answer) if isinstance(answer, NoAnswer) else answer


def _ask(node: Node, asked: list[tuple[Call, bool, bool]], timeout: float, min_replicas: int) -> list[Any]:
    """Run scripts on one node; ``asked`` has for each whether its slot is still on its way there, and whether to send it whole."""
    requests: list[Request] = []
    for call, asking, whole in asked:
        if asking:
            requests.append(Request.of("ASKING", number=0))
        requests.append(call.request(-next(_numbers), with_source=whole))
    if min_replicas:
        requests.append(Request.of("WAIT", min_replicas, int(timeout * 500), number=0))
    try:
        answers = node.converse(requests, timeout)
    except (RedisError, OSError) as exc:
        return [exc] * len(asked)
    reached = answers.pop() if min_replicas else 0
    if isinstance(reached, Exception):
        return [reached] * len(asked)
    ran = [answer for request, answer in zip(requests, answers, strict=False) if request.number]
    if reached < min_replicas:
        return [answer if isinstance(answer, Exception) else TooFewReplicas(reached) for answer in ran]
    return ran


def _facts(node: Node, timeout: float) -> tuple[str | None, dict[str, str]]:
    # HELLO needs no permission; a server that does not know it tells its version by INFO, which does
    hello, server, memory = node.converse(
        [Request.of("HELLO"), Request.of("INFO", "server"), Request.of("INFO", "memory")], timeout
    )
    if isinstance(hello, list):
        hello = dict(zip(hello[::2], hello[1::2], strict=True))
    version = hello.get(b"version") if isinstance(hello, dict) else info_of(server).get("redis_version")
    return version.decode() if isinstance(version, bytes) else version, info_of(memory)


def info_of(answer: Any) -> dict[str, str]:
    """Read an answer to INFO; nothing where it was refused."""
    lines = answer.decode("utf-8", "replace").splitlines() if isinstance(answer, bytes) else []
    return {name: value for name, colon, value in (line.partition(":") for line in lines) if colon}


class Sentinels(Servers):
    """The primary that Sentinels name: ``sentinel://host:port;sentinel://host:port`` and the option ``master_name``."""

    own_options = ("master_name", "min_other_sentinels", "sentinel_kwargs")

    _only: _Primary

    def _open(self, url: str) -> None:
        parts = [urlsplit(each) for each in url.split(";")]
        arguments = self._arguments
        name = arguments.pop("master_name")
        # all of them may be asked in turn before one answers
        each_timeout = self.connect_timeout / len(parts)
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            [(part.hostname or "localhost", part.port or 26379) for part in parts],
            min_other_sentinels=arguments.pop("min_other_sentinels", 0),
            sentinel_kwargs={
                "socket_timeout": each_timeout,
                "socket_connect_timeout": each_timeout,
                "retry": Retry(NoBackoff(), 0),
                **(arguments.pop("sentinel_kwargs", None) or {}),
            },
        )
        for part in reversed(parts):  # the first that says it counts
            if part.username:
                arguments["username"] = unquote(part.username)
            if part.password:
                arguments["password"] = unquote(part.password)
            if part.path.strip("/"):
                arguments["db"] = int(part.path.strip("/"))
        pool = SentinelConnectionPool(name, sentinel, **arguments)  # type: ignore[no-untyped-call]
        self._only = _Primary(self._checked(pool))

    def _reach_another(self) -> bool:
        return True

    def _doubt(self) -> None:
        # A primary that stood still while it was replaced takes itself for it still, and its replicas are another's. The
        # Sentinels make it a replica, and close our connections to it, only after ten seconds.
        self._only.close()


class Cluster(Servers):
    """The nodes of a Cluster: the option ``cluster``. One node of it is enough to know; more, separated by ``;``, are better."""

    own_options = ("address_remap", "cluster")

    def _open(self, url: str) -> None:
        self._remap = self._arguments.pop("address_remap", None) or (lambda address: address)
        self._nodes: dict[tuple[str, int], Node] = {}
        #: the address of the node of each slot that we know of
        self._slots: dict[int, tuple[str, int]] = {}
        scheme = "rediss" if self._arguments.pop("ssl", False) else None
        pools = [
            redis.ConnectionPool.from_url(re.sub("^redis:", f"{scheme}:", each) if scheme else each, **self._arguments)
            for each in url.split(";")
        ]
        self._checked(pools[0])
        self._shared = {**pools[0].connection_kwargs, "connection_class": pools[0].connection_class}
        if self._shared.get("db"):
            raise ValueError("a Cluster has database 0 only")
        for pool in pools:
            said = pool.connection_kwargs
            self._node((said.get("host", "localhost"), int(said.get("port", 6379))))

    def _node(self, address: tuple[str, int]) -> Node:
        node = self._nodes.get(address)
        if node is None:
            shared = {**self._shared, "host": address[0], "port": address[1]}
            node = self._nodes.setdefault(address, Node(redis.ConnectionPool(**shared)))
        return node

    def nodes(self) -> Iterable[Node]:
        """Return those that we have heard of."""
        return list(self._nodes.values())

    def primaries(self) -> Iterable[Node]:
        """Return the nodes that have slots."""
        self._learn(self.timeout)
        return [self._node(address) for address in set(self._slots.values())]

    def node_of(self, key: str) -> Node:
        """Return the node of this key's slot, having asked for it if it is not known."""
        slot = key_slot(key.encode())
        if slot not in self._slots:
            self._learn(self.timeout)
        if slot not in self._slots:
            raise ClusterDownError(f"CLUSTERDOWN no node has the slot {slot}")
        return self._node(self._slots[slot])

    def _learn(self, timeout: float) -> None:
        """Ask any node which slots are where."""
        error: Exception = ClusterDownError("CLUSTERDOWN no node is known")
        known = sorted(self._nodes.items(), key=lambda each: each[1].fails)
        for address, node in known:
            try:
                (ranges,) = node.converse([Request.of("CLUSTER", "SLOTS")], timeout / len(known))
                if isinstance(ranges, Exception):
                    raise ranges
            except (RedisError, OSError) as exc:  # noqa: PERF203  free where nothing is raised
                error = exc
            else:
                # range by range: after a failover all threads come here, and there are 16384 slots
                slots: dict[int, tuple[str, int]] = {}
                for first, last, primary, *_ in ranges:
                    its = self._address(primary[0], primary[1], address[0])
                    slots.update(dict.fromkeys(range(first, last + 1), its))
                if slots:
                    self._slots = slots
                    return
        raise error

    def _address(self, host: Any, port: int, unnamed: str) -> tuple[str, int]:
        name = host.decode() if isinstance(host, bytes) else host
        address: tuple[str, int] = self._remap((unnamed if name in (None, "", "?") else name, int(port)))
        return address

    def _follow(self, each: int, call: Call, answer: AskError, progress: _Progress) -> bool:
        slot = key_slot(call.keys[0].encode())
        address = self._address(answer.host, answer.port, self._slots[slot][0])
        if isinstance(answer, MovedError):
            self._slots = {**self._slots, slot: address}
        else:
            progress.asking[each] = self._node(address)
        return True

    def _reach_another(self) -> bool:
        self._slots = {}  # a replica may have taken the place of the node that does not answer
        return True

    def says_no(self, answer: Exception) -> bool:
        """Of the nodes of a Cluster, a slot that has moved on once more says nothing."""
        return refuses(answer)


def open_servers(url: str, options: Mapping[str, Any] | None = None, setting: str = "the Redis URL") -> Servers:
    """Choose by the URL, which ``setting`` says, and the options; connects at the first call. Raises ConfigurationError."""
    arguments = dict(options or {})
    kind = Sentinels if url.startswith("sentinel://") else Cluster if arguments.pop("cluster", False) else Servers
    try:
        return kind(url, arguments, setting)
    except ConfigurationError:
        raise
    except (ValueError, TypeError, RedisError) as exc:
        msg = f"cannot make a Redis client of lockbeat_redis_options and {setting}: {exc}"
        raise ConfigurationError(msg) from None


def where(url: str) -> str:
    """Say where a URL leads, without who asks there."""
    parts = [urlsplit(part) for part in url.split(";")]
    sentinels = url.startswith("sentinel://")
    port = 26379 if sentinels else 6379
    places = [
        part.path if part.scheme == "unix" else f"{part.hostname or 'localhost'}:{part.port or port}" for part in parts
    ]
    return f"the Redis {'that Sentinels name ' if sentinels else ''}at {', '.join(places)}"


def refuses(exc: Exception) -> bool:
    """Whether a server has said no to us: who we are, what we may do, or how we speak is not to its liking."""
    if isinstance(exc, (AuthenticationError, NoPermissionError, WrongServer)):
        return True
    said = str(exc)
    if isinstance(exc, ResponseError):
        return _NO.search(said) is not None
    return _NO_TLS.search(said) is not None or "AuthenticationError" in _said_by_sentinels(exc)


def _said_by_sentinels(exc: Exception) -> set[str]:
    """Read of an error that no Sentinel knows the primary which errors they ended in; redis-py tells them there alone."""
    return set(re.findall(r"> - (?:\w+:)?(\w+)", str(exc))) if isinstance(exc, MasterNotFoundError) else set()


def why(exc: Exception, call: Call | None = None, min_replicas: int = 0) -> str:
    """Say why a call has no answer, in the terms of whoever looks after the server."""
    if isinstance(exc, TooFewReplicas):
        return f"only {exc.args[0]} of lockbeat_redis_min_replicas={min_replicas} replicas confirmed the write"
    told = _in_short(exc)
    if isinstance(exc, MovedError):
        return f"{told}: it is a node of a Cluster, for which lockbeat_redis_options needs 'cluster': True"
    if isinstance(exc, OutOfMemoryError):
        return f"{told}: it is full (maxmemory)"
    if call and "can't run this command" in told and (line := re.search(r"user_script:(\d+)", told)):
        # Redis 7.0 tells where, and not what
        return f"{told}: the user has no permission for {call.script.command_at(int(line[1]))}"
    return told


def _in_short(exc: Exception) -> str:
    told = f"{type(exc).__name__}: {exc}"
    if isinstance(exc, WrongServer):
        return str(exc)
    if isinstance(exc, AuthenticationError) and ("HELLO must be" in told or "Authentication required" in told):
        return "NOAUTH: it asks for a password, and none is given"
    errors = _said_by_sentinels(exc)
    return f"{told.partition(' : <')[0]} ({', '.join(sorted(errors))})" if errors else told

"""One server, and the connections to it.

Promises: however a call is broken off, its connection is closed then and there, so no answer is left behind for the next call;
an answer that bears another number is none. There are never more connections to a server than threads that talk to it at one
moment.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, ClassVar, Final, TypeVar

import redis
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoScriptError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import TimeoutError as NoAnswer

from celery_lockbeat.stores.redis.listeners import what_listens
from celery_lockbeat.stores.redis.refusals import TooFewReplicas, WrongServer, refuses
from celery_lockbeat.stores.redis.scripts import Call, Request

__all__ = ["Line", "Node"]

#: What redis-py 5 tells apart only on the connections of its own Cluster.
_OF_CLUSTERS: Final[dict[str, type[ResponseError]]] = {
    "ASK": AskError,
    "CLUSTERDOWN": ClusterDownError,
    "MASTERDOWN": MasterDownError,
    "MOVED": MovedError,
    "TRYAGAIN": TryAgainError,
}

#: Bytes that are read at first: the usual answer has 20, and for up to 512 Python has memory at hand.
AT_ONCE: Final = 256

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

#: Of the requests of this process: next() is atomic.
_numbers: Final = count(1)


class Line:
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

    #: whether it may be another server by now
    moves: ClassVar[bool] = False

    def __init__(self, pool: Any) -> None:
        # It makes connections, and is not asked to lend any: it polls the socket of each that it lends. With its bookkeeping
        # that is nearly half of what a command costs, and it finds no answer there that is still under way.
        self._pool = pool
        self._idle: deque[Line] = deque()
        self._has_answered = False
        self.fails = False

    def converse(self, requests: Sequence[Request], timeout: float) -> list[Any]:
        """Send requests, and read as many answers; a refusal is an answer too. Raises RedisError and OSError for none."""
        return self.talk(Line.converse, requests, timeout)

    def run_all(self, asked: Sequence[tuple[Call, bool, bool]], timeout: float, min_replicas: int = 0) -> list[Any]:
        """Run scripts; return for each its answer, or the exception that it ended in.

        ``asked`` has for each whether its slot is still on its way here, and whether to send its source. A write that fewer
        than ``min_replicas`` have confirmed ends in TooFewReplicas.
        """
        requests: list[Request] = []
        for call, asking, with_source in asked:
            if asking:
                requests.append(Request.of("ASKING", number=0))
            requests.append(call.request(-next(_numbers), with_source=with_source))
        if min_replicas:
            requests.append(Request.of("WAIT", min_replicas, int(timeout * 500), number=0))
        try:
            answers = self.converse(requests, timeout)
        except (RedisError, OSError) as exc:
            return [exc] * len(asked)
        reached = answers.pop() if min_replicas else 0
        if isinstance(reached, Exception):
            return [reached] * len(asked)
        ran = [answer for request, answer in zip(requests, answers, strict=False) if request.number]
        if reached < min_replicas:
            return [answer if isinstance(answer, Exception) else TooFewReplicas(reached) for answer in ran]
        return ran

    def talk(self, ask: Callable[[Line, Asked], Answer], what: Asked, timeout: float) -> Answer:
        """Ask something on a connection that is nobody else's meanwhile. Raises RedisError and OSError."""
        try:
            line = self._idle.pop()
        except IndexError:
            line = Line(self._pool.make_connection())
        try:
            if self.moves and self._is_outdated(line):
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

    def _is_outdated(self, _line: Line) -> bool:
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

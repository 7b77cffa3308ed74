"""A server that speaks Redis's protocol, and answers as a test says."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Callable, Iterator

#: What connections ask at their beginning, and what most servers say to it.
GREETINGS = {b"CLIENT": b"+OK\r\n", b"SELECT": b"+OK\r\n", b"PING": b"+PONG\r\n"}


def tried(words: list[bytes]) -> bytes:
    """What a server says to the trial of all commands that it has, and to who asks for the format of its keys."""
    told = b"*2\r\n$1\r\n1\r\n$5\r\n0.1.0\r\n" if words[3].endswith(b"format") else b"*0\r\n"
    return b"*2\r\n$%d\r\n%b\r\n%b" % (len(words[-1]), words[-1], told)


class FakeRedis(socketserver.ThreadingTCPServer):
    """``answer``: from the words of a command to the bytes of its answer. Greetings are answered by themselves (RESP2)."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, answer: Callable[[list[bytes]], bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.asked: list[list[bytes]] = []
        self.url = f"redis://127.0.0.1:{self.server_address[1]}/0"


class _Handler(socketserver.StreamRequestHandler):
    server: FakeRedis

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while line := self.rfile.readline():
                words = [self._word() for _ in range(int(line[1:]))]
                name = words[0].upper()
                if name not in GREETINGS:
                    self.server.asked.append(words)
                self.wfile.write(GREETINGS.get(name) or self.server.answer(words))

    def _word(self) -> bytes:
        size = int(self.rfile.readline()[1:])
        return self.rfile.read(size + 2)[:-2]


@contextlib.contextmanager
def fake_redis(answer: Callable[[list[bytes]], bytes]) -> Iterator[FakeRedis]:
    with FakeRedis(answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()


def hello(version: str) -> bytes:
    words = [b"server", b"redis", b"version", version.encode(), b"proto"]
    return b"*6\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words) + b":2\r\n"


def of_version(version: str) -> Callable[[list[bytes]], bytes]:
    """A server of this version, of which those before 6.0 do not know HELLO."""

    def answer(words: list[bytes]) -> bytes:
        if words[0].upper() == b"HELLO" and not version.startswith("5."):
            return hello(version)
        if words[0].upper() == b"INFO":
            text = f"redis_version:{version}\r\n".encode()
            return b"$%d\r\n%b\r\n" % (len(text), text)
        if words[0].upper() == b"EVALSHA":
            return tried(words)
        return b"-ERR unknown command\r\n"

    return answer

"""A TCP proxy on loopback, to do to a connection what networks do: cut it, delay it, or swallow it.

A trap stops one conversation at a chosen point: before the server hears a request, or before the client hears its answer.
What the client does meanwhile, and what becomes of it, is seen without a hook in the client.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable


class Trap:
    """Holds the first request that ``matches``, or its answer, and all that follows in that direction of its connection."""

    def __init__(self, matches: Callable[[bytes], bool], *, answer: bool) -> None:
        self.matches = matches
        self.answer = answer
        self.dropped = False
        self.request = b""
        self.client_port = 0  # whose conversation it is
        self._holding = threading.Event()
        self._open = threading.Event()

    def springs(self, chunk: bytes, *, asks: bool) -> bool:
        """Whether it is this that it was set for; ``asks``: a request, not an answer."""
        return asks and self.matches(chunk)

    @property
    def caught(self) -> bool:
        """Whether it holds, or has held, what it was set for."""
        return self._holding.is_set()

    def hold(self) -> bool:
        """Wait until the trap opens; whether what it holds may pass."""
        self._holding.set()
        self._open.wait()
        return not self.dropped

    def passed(self) -> None:
        """Learn that what it has held was passed on."""

    def release(self) -> None:
        """Let pass what is held."""
        self._open.set()

    def drop(self) -> None:
        """Forget what is held, and end its connection."""
        self.dropped = True
        self._open.set()


class _Link:
    """One connection through the proxy."""

    def __init__(self, client_port: int) -> None:
        self.client_port = client_port
        self.trap: Trap | None = None


class Proxy:
    """Forwards connections to ``port``. What a black hole swallows arrives late, when it is over, as TCP would have it.

    ``rewrite``: what to make of each chunk of an answer.
    """

    def __init__(self, port: int, rewrite: Callable[[bytes], bytes] = lambda answer: answer) -> None:
        self._target = ("127.0.0.1", port)
        self._rewrite = rewrite
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._passing = threading.Event()
        self._passing.set()
        self._answering = threading.Event()
        self._answering.set()
        self._delay = self._answers_delay = 0.0
        self._traps: list[Trap] = []
        self._mutex = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._closed = False
        self.port = int(self._listener.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.cuts = 0  # connections that were open when they were cut
        threading.Thread(target=self._accept, daemon=True).start()

    def lead_to(self, port: int) -> None:
        """Forward the connections to come to another server."""
        self._target = ("127.0.0.1", port)

    def cut(self) -> None:
        """Reset every open connection; new ones pass."""
        with self._mutex:
            sockets, self._sockets = self._sockets, set()
        self.cuts += len(sockets) // 2
        for each in sockets:
            with contextlib.suppress(OSError):
                # no lingering: the peer sees a reset, as from a firewall that has forgotten the connection
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def delay(self, seconds: float) -> None:
        """Hold each chunk back for ``seconds``, in both directions."""
        self._delay = self._answers_delay = seconds

    def answer_late(self, seconds: float) -> None:
        """Pass what is asked at once, and the answers ``seconds`` later."""
        self._delay, self._answers_delay = 0.0, seconds

    def trap(self, matches: Callable[[bytes], bool], *, answer: bool = False) -> Trap:
        """Hold the next request that matches, or, with ``answer``, what the server answers to it."""
        trap = Trap(matches, answer=answer)
        self.arm(trap)
        return trap

    def arm(self, trap: Trap) -> None:
        """Set a trap; it may be set in several proxies, and springs once."""
        with self._mutex:
            self._traps.append(trap)

    def disarm(self, trap: Trap) -> None:
        """Take a trap away; what it holds already it goes on holding."""
        with self._mutex, contextlib.suppress(ValueError):
            self._traps.remove(trap)

    def black_hole(self) -> None:
        """Accept everything, and pass nothing on."""
        self._passing.clear()

    def swallow_answers(self) -> None:
        """Pass on what is asked, and keep the answers."""
        self._answering.clear()

    def restore(self) -> None:
        """End the black hole, the swallowing, the delays and all traps, with what they hold."""
        self._delay = self._answers_delay = 0.0
        self._passing.set()
        self._answering.set()
        with self._mutex:
            traps, self._traps = self._traps, []
        for trap in traps:
            trap.drop()

    def close(self) -> None:
        self._closed = True
        self._listener.close()
        self.restore()
        self.cut()

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, (_, client_port) = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(near, client_port), daemon=True).start()

    def _connect(self, near: socket.socket, client_port: int) -> None:
        self._passing.wait()
        try:
            far = socket.create_connection(self._target, timeout=5)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        with contextlib.suppress(OSError):
            # whoever waited out a black hole may have been cut since
            for each in (near, far):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._mutex:
            self._sockets |= {near, far}
        link = _Link(client_port)
        for source, sink, asks in ((near, far, True), (far, near, False)):
            threading.Thread(target=self._pump, args=(link, source, sink, asks), daemon=True).start()

    def _spring(self, link: _Link, chunk: bytes, *, asks: bool) -> None:
        with self._mutex:
            for trap in self._traps:
                if not trap.request and trap.springs(chunk, asks=asks):
                    trap.request, trap.client_port, link.trap = chunk, link.client_port, trap
                    return

    def _pump(self, link: _Link, source: socket.socket, sink: socket.socket, asks: bool) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                time.sleep(self._delay if asks else self._answers_delay)
                self._passing.wait()
                if not asks:
                    self._answering.wait()
                    chunk = self._rewrite(chunk)
                self._spring(link, chunk, asks=asks)
                trap = link.trap if link.trap is not None and asks != link.trap.answer else None
                if trap is not None and not trap.hold():
                    break
                sink.sendall(chunk)
                if trap is not None:
                    trap.passed()
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        with self._mutex:
            self._sockets -= {source, sink}

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

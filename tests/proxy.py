"""A TCP proxy on loopback, to do to a connection what networks do: cut it, delay it, or swallow it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class Proxy:
    """Forwards connections to ``port``. What a black hole swallows arrives late, when it is over, as TCP would have it."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._passing = threading.Event()
        self._passing.set()
        self._answering = threading.Event()
        self._answering.set()
        self._delay = 0.0
        self._mutex = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._closed = False
        self.port = int(self._listener.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.cuts = 0  # connections that were open when they were cut
        threading.Thread(target=self._accept, daemon=True).start()

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
        self._delay = seconds

    def black_hole(self) -> None:
        """Accept everything, and pass nothing on."""
        self._passing.clear()

    def swallow_answers(self) -> None:
        """Pass on what is asked, and keep the answers."""
        self._answering.clear()

    def restore(self) -> None:
        """End the black hole, the swallowing and the delay."""
        self._delay = 0.0
        self._passing.set()
        self._answering.set()

    def close(self) -> None:
        self._closed = True
        self._listener.close()
        self.restore()
        self.cut()

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
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
        for source, sink, answering in ((near, far, self._passing), (far, near, self._answering)):
            threading.Thread(target=self._pump, args=(source, sink, answering), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answering: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                time.sleep(self._delay)
                self._passing.wait()
                answering.wait()
                sink.sendall(chunk)
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

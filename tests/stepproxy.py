"""A TCP proxy that knows Redis's protocol: it numbers the messages of a conversation, and does one thing to one of them.

A message is a request before the server has it, or an answer before the client has it, on whichever connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

#: What can be done to a message. ``cut``: nothing of it arrives, and the connection ends; ``halve``: half of it does;
#: ``cut after``: all of it does; ``drop``: it vanishes; ``late``: it arrives when nobody waits for it any more, ``slow``:
#: just in time; ``double``: it arrives twice, ``double late``: the second time as late as the next message.
FAULTS = ("cut", "halve", "cut after", "drop", "late", "slow", "double", "double late")


def end_of_message(data: bytes, at: int = 0) -> int | None:
    """Where the message that begins at ``at`` ends; None: it is not whole yet."""
    end = data.find(b"\r\n", at)
    if end < 0:
        return None
    kind, rest, at = data[at : at + 1], data[at + 1 : end], end + 2
    if kind in b"$=!":
        at += max(0, int(rest) + 2)
        return at if at <= len(data) else None
    if kind in b"*~>%|":
        for _ in range(int(rest) * (2 if kind in b"%|" else 1)):
            found = end_of_message(data, at)
            if found is None:
                return None
            at = found
    return at


class StepProxy:
    """Forwards to ``port``; ``late`` seconds are more than the client waits."""

    def __init__(self, port: int, late: float) -> None:
        self._target, self._late = port, late
        self._step, self._fault, self.seen = -1, "", 0
        self._held = 0  # messages on their way
        self.messages: list[str] = []
        self._again: dict[object, bytes] = {}
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        threading.Thread(target=self._run, args=(ready,), daemon=True).start()
        ready.wait(10)
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def arm(self, step: int = -1, fault: str = "") -> None:
        """Count from 0 again, and do ``fault`` to the message number ``step``."""
        self.seen, self.messages, self._step, self._fault = 0, [], step, fault

    def disarm(self) -> None:
        """Do nothing more, and wait until what is late has arrived."""
        self._step = -1
        end = time.monotonic() + 10
        while self._held and time.monotonic() < end:
            time.sleep(0.005)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self, ready: threading.Event) -> None:
        async def serve() -> None:
            server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()

        self._loop.run_until_complete(serve())
        self._loop.run_forever()

    async def _connect(self, near_reader, near_writer) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        writers = (near_writer, far_writer)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(
                self._pump("request", near_reader, far_writer, writers),
                self._pump("answer", far_reader, near_writer, writers),
            )

    async def _pump(self, what, reader, writer, writers) -> None:
        data = b""
        try:
            while chunk := await reader.read(65536):
                data += chunk
                while (end := end_of_message(data)) is not None:
                    message, data = data[:end], data[end:]
                    if not await self._pass(what, message, writer):
                        return
        except OSError:
            pass
        finally:
            for each in writers:
                each.close()

    async def _pass(self, what, message, writer) -> bool:
        """Whether the connection goes on."""
        fault = self._fault if self.seen == self._step else ""
        self.seen += 1
        self.messages.append(f"{what} {message[:60]!r}")
        self._held += 1
        try:
            if fault in ("late", "slow"):
                await asyncio.sleep(self._late if fault == "late" else self._late / 8)
            parts = {"cut": b"", "halve": message[: len(message) // 2], "drop": b"", "double": 2 * message}
            writer.write(self._again.pop(writer, b"") + parts.get(fault, message))
            if fault == "double late":
                self._again[writer] = message
            await writer.drain()
        finally:
            self._held -= 1
        return fault not in ("cut", "halve", "cut after")

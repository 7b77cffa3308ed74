"""The terminal of ``watch``: keys as they are pressed, signals as they come, and all as it was when it ends.

Promises: whatever ends the view (a key, a signal that can be caught, an exception), the terminal has its modes, its screen and its
cursor again. Ctrl-Z gives it back too, and ``fg`` takes it again.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import signal
import termios
import tty
from collections.abc import Iterator
from typing import Any, Final

__all__ = ["KeyReader", "Terminal", "silenced_stderr"]

#: Seconds for which the rest of a key's bytes is waited for.
REST: Final = 0.05

_NAMED: Final = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1b[C": "right",
    "\x1b[D": "left",
    "\x1b[H": "home",
    "\x1b[F": "end",
    "\x1b[1~": "home",
    "\x1b[4~": "end",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "\x1b[7~": "home",
    "\x1b[8~": "end",
    "\r": "enter",
    "\n": "enter",
    "\x7f": "backspace",
    "\x08": "backspace",
    "\x15": "erase",
    "\x1b": "escape",
}


class KeyReader:
    """Makes keys of the bytes that a terminal sends."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def keys(self, data: bytes) -> Iterator[str]:
        """Yield the names of keys, and characters as they are; what no key of ours sends is passed over."""
        text = self._decoder.decode(data)
        while text:
            sequence = _sequence_of(text)
            text = text[len(sequence) :]
            # in the application's mode of the cursor keys a terminal says O for [
            named = _NAMED.get(sequence.replace("\x1bO", "\x1b[", 1))
            if named is not None:
                yield named
            elif len(sequence) == 1 and sequence.isprintable():
                yield sequence


def _sequence_of(text: str) -> str:
    if not text.startswith(("\x1b[", "\x1bO")):
        return text[0]
    for length in range(3, len(text) + 1):
        if "\x40" <= text[length - 1] <= "\x7e":
            return text[:length]
    return text


class Terminal:
    """The terminal of this process. ``noted`` are the signals that came and want the view to end."""

    def __init__(self, fileno: int) -> None:
        self._fileno = fileno
        self.noted: list[int] = []
        self.wants_stop = False
        self._reader = KeyReader()
        self._pipe: tuple[int, int] = (-1, -1)
        self._before: list[Any] = []
        self._handlers: dict[int, Any] = {}

    def open(self) -> None:
        """Have the keys and the signals."""
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        self._before = termios.tcgetattr(self._fileno)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                self._handlers[number] = signal.signal(number, self._note)
        self._handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._note_stop)
        self._handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: self.ring())
        self.take()

    def close(self) -> None:
        """Let all be as it was."""
        self.give_back()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        for end in self._pipe:
            os.close(end)
        self._pipe = (-1, -1)

    def take(self) -> None:
        """Have each key at once, and show none of them."""
        with contextlib.suppress(termios.error):  # it has gone
            tty.setcbreak(self._fileno, termios.TCSANOW)

    def give_back(self) -> None:
        """Let the terminal be as it was."""
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self._fileno, termios.TCSADRAIN, self._before)

    def ring(self) -> None:
        """Wake the view, from any thread or signal."""
        with contextlib.suppress(OSError):  # it rings already, or has ended
            os.write(self._pipe[1], b"!")

    def wait(self, seconds: float) -> list[str]:
        """Return the keys that were pressed, as soon as there are some, or something rings, or the time is over."""
        ready, _, _ = select.select([self._fileno, self._pipe[0]], [], [], max(0.0, seconds))
        if self._pipe[0] in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._pipe[0], 4096)
        return list(self._reader.keys(self._bytes())) if self._fileno in ready else []

    def _bytes(self) -> bytes:
        try:
            data = os.read(self._fileno, 4096)
            # a lone escape may be the first byte of an arrow
            while data.endswith((b"\x1b", b"\x1b[", b"\x1bO")) and select.select([self._fileno], [], [], REST)[0]:
                more = os.read(self._fileno, 4096)
                if not more:
                    break
                data += more
        except OSError:
            data = b""
        if not data:  # the terminal was closed
            self.noted.append(signal.SIGHUP)
        return data

    def _note(self, number: int, _frame: object) -> None:
        self.noted.append(number)
        self.ring()

    def _note_stop(self, *_: object) -> None:
        self.wants_stop = True
        self.ring()

    def stop(self) -> None:
        """Stop this process, as Ctrl-Z wants it to be, until it is continued."""
        self.wants_stop = False
        self.give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self.take()


@contextlib.contextmanager
def silenced_stderr() -> Iterator[None]:
    """Keep what libraries log off the screen, where stderr is a terminal: what matters is shown by the view."""
    if not os.isatty(2):
        yield
        return
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)

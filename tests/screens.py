"""A terminal for programs that draw on it: what stands on the screen, after all that was written to it."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

_SEQUENCE = re.compile(r"\x1b\[([?>]?)([\d;]*)([A-Za-z])")


class Screen:
    """What stands on a screen of so many columns and lines."""

    def __init__(self, columns: int, lines: int) -> None:
        self.resize(columns, lines)
        self.is_alternate = False
        self.has_cursor = True
        self._rest = ""

    def resize(self, columns: int, lines: int) -> None:
        self.columns, self.lines = columns, lines
        self._cells = [[" "] * columns for _ in range(lines)]
        self._row = self._column = 0

    def text(self) -> str:
        return "\n".join("".join(line).rstrip() for line in self._cells)

    def write(self, text: str) -> None:
        text, self._rest = self._rest + text, ""
        position = 0
        while position < len(text):
            char = text[position]
            if char == "\x1b":
                match = _SEQUENCE.match(text, position)
                if match is None:
                    self._rest = text[position:]
                    return
                self._obey(*match.groups())
                position = match.end()
                continue
            self._put(char)
            position += 1

    def _put(self, char: str) -> None:
        if char == "\r":
            self._column = 0
        elif char == "\n":
            if self._row == self.lines - 1:
                self._cells = [*self._cells[1:], [" "] * self.columns]
            self._row = min(self._row + 1, self.lines - 1)
        elif char >= " ":
            if self._column == self.columns:
                self._put("\r")
                self._put("\n")
            self._cells[self._row][self._column] = char
            self._column += 1

    def _obey(self, private: str, numbers: str, letter: str) -> None:
        if private == "?" and numbers == "1049":
            self.is_alternate = letter == "h"
        elif private == "?" and numbers == "25":
            self.has_cursor = letter == "h"
        elif letter == "H":
            row, column = (int(each or 1) for each in (numbers or ";").split(";"))
            self._row, self._column = min(row, self.lines) - 1, min(column, self.columns) - 1
        elif letter == "J":
            self._cells = [[" "] * self.columns for _ in range(self.lines)]
        elif letter == "K":
            for column in range(self._column if numbers != "2" else 0, self.columns):
                self._cells[self._row][column] = " "
        elif letter == "A":
            self._row = max(0, self._row - int(numbers or 1))


class Seat:
    """A program at a terminal of its own, which is its controlling one."""

    def __init__(
        self,
        command: Sequence[str],
        directory: Path,
        environment: Mapping[str, str],
        columns: int = 80,
        lines: int = 24,
    ) -> None:
        self.screen = Screen(columns, lines)
        self.written = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.ours, self.theirs = pty.openpty()
        self._set_size(columns, lines)
        self.before = termios.tcgetattr(self.theirs)
        self.process = subprocess.Popen(
            command,
            cwd=directory,
            env={**os.environ, "TERM": "xterm-256color", **environment},
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  no thread of a test is in a lock here
        )
        os.set_blocking(self.ours, False)

    def resize(self, columns: int, lines: int) -> None:
        self.read()
        self.screen.resize(columns, lines)
        self._set_size(columns, lines)

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self.ours, keys.encode())

    def read(self) -> str:
        with contextlib.suppress(BlockingIOError, OSError):
            while data := os.read(self.ours, 65536):
                text = self._decoder.decode(data)
                self.written += text
                self.screen.write(text)
        return self.screen.text()

    def wait_for(self, *texts: str, timeout: float = 20.0) -> str:
        deadline = time.monotonic() + timeout
        while not all(text in self.read() for text in texts):
            if time.monotonic() > deadline:
                pytest.fail(
                    f"not within {timeout} s: {texts}; this is on the screen:\n{self.read()}\n{self.written[-800:]}"
                )
            time.sleep(0.02)
        return self.screen.text()

    def wait_without(self, text: str, timeout: float = 20.0) -> str:
        deadline = time.monotonic() + timeout
        while text in self.read():
            assert time.monotonic() < deadline, f"{text!r} is on the screen still:\n{self.screen.text()}"
            time.sleep(0.02)
        return self.screen.text()

    def wait(self, timeout: float = 20.0) -> int:
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end:\n{self.read()}"
            self.read()
            time.sleep(0.02)
        self.read()
        return self.process.returncode

    def is_restored(self) -> bool:
        """Whether the terminal has its modes, its screen and its cursor again."""
        modes = termios.tcgetattr(self.theirs)[:4] == self.before[:4]
        return modes and not self.screen.is_alternate and self.screen.has_cursor

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)

    def __enter__(self) -> Seat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

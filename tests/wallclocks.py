"""Wall clocks of processes that can be set: what they read is off by so much, while what they measure goes on as it is."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path


class WallClock:
    """The wall clock of the Python processes that are started with its ``environment``; right until it is set."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._shift = mmap.mmap(file.fileno(), 8)
        # what Python imports first, from shifted/, reads the file
        self.environment = {"PYTHONPATH": str(Path(__file__).parent / "shifted"), "LOCKBEAT_TEST_CLOCK": str(path)}

    def set(self, seconds: float) -> WallClock:
        """Put it off by so many seconds, in the processes that run already too."""
        struct.pack_into("d", self._shift, 0, seconds)
        return self

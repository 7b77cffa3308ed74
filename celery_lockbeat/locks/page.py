"""What a pool's child and its parent tell each other without a round trip: memory that both have since the fork.

Promises: who is killed in the middle of writing has written nothing, and who reads in the middle of it reads a whole value, or
raises ValueError. So neither ever waits for the other.
"""

from __future__ import annotations

import marshal
import math
import mmap
import threading
import zlib
from typing import Any, Final, NamedTuple

__all__ = ["ROOM", "Hold", "Page"]

#: Bytes for what one child holds, and for what its parent keeps of it. Only the pages that are written to take memory.
ROOM: Final = 32 * 1024

#: How often to read what is written meanwhile.
TRIES: Final = 3


class Hold(NamedTuple):
    """What a child may have in a store; with a ``token`` of 0 nobody is to renew it in its place.

    ``what`` it is held for are fields of the journal, if it is a task's attempt. ``since`` is when its last lease was asked for, on the
    host's clock, ``patience`` after how many seconds the child is late to renew it, and ``until`` when it is to be renewed no more.
    """

    key: str
    driver: str
    connection: str
    ttl: float
    token: int = 0
    since: float = 0.0
    patience: float = 0.0
    what: tuple[tuple[str, str], ...] = ()
    until: float = math.inf


class Page:
    """The memory of one child: what it holds, which it writes, and what its parent keeps in its place."""

    def __init__(self) -> None:
        self._memory: Final = mmap.mmap(-1, 16 + 4 * ROOM)
        self._holds: Final = _Slate(self._memory, 0, 16)
        self._kept: Final = _Slate(self._memory, 2, 16 + 2 * ROOM)
        self._held: Final[dict[tuple[str, str], tuple[Any, ...]]] = {}
        self._mutex: Final = threading.Lock()

    @property
    def events_wanted(self) -> bool:
        """Whether the worker sends Celery's task events, as its parent saw last."""
        return bool(self._memory[1])

    @events_wanted.setter
    def events_wanted(self, wanted: bool) -> None:
        self._memory[1] = wanted

    @property
    def pid(self) -> int:
        """The child that writes here; 0: it has not come so far yet."""
        return int.from_bytes(self._memory[8:16], "little")

    @pid.setter
    def pid(self, pid: int) -> None:
        self._memory[8:16] = pid.to_bytes(8, "little")

    # -- the child -----------------------------------------------------------------------------------------------------

    def put(self, holder: str, hold: Hold) -> None:
        """From now on ``holder`` may have this, in place of what it had of that store."""
        with self._mutex:
            self._held.pop((holder, hold.driver), None)
            self._held[holder, hold.driver] = tuple(hold)
            if not self._holds.write(self._held):
                # no room for this one: nobody renews it in the child's place, and at its death it ends with its ttl
                del self._held[holder, hold.driver]

    def drop(self, holder: str, driver: str) -> None:
        """From now on ``holder`` has nothing in that store."""
        with self._mutex:
            if self._held.pop((holder, driver), None) is None:
                return
            if self._held:
                self._holds.write(self._held)
            else:
                self._holds.wipe()

    def kept_since(self, holder: str, driver: str, token: int) -> float | None:
        """When the parent asked for the last lease that it was granted in the child's place; None: for none."""
        try:
            since: float | None = (self._kept.read() or {}).get((holder, driver, token))
        except ValueError:
            return None
        return since

    # -- the parent ----------------------------------------------------------------------------------------------------

    def held(self) -> dict[tuple[str, str], Hold]:
        """Return what the child held last, by holder and driver. Raises ValueError, TypeError or EOFError, if nobody can tell."""
        held: dict[tuple[str, str], tuple[Any, ...]] = self._holds.read() or {}
        return {who: Hold(*hold) for who, hold in held.items()}

    def keep(self, kept: dict[tuple[str, str, int], float]) -> bool:
        """Tell the child what was extended in its place, and since when; False: there is no room for it."""
        return self._kept.write(kept)

    def close(self) -> None:
        """Give up the memory, in this process."""
        self._memory.close()


class _Slate:
    """A value that one process writes and another reads: two halves, and a byte that says which of them counts, if any."""

    def __init__(self, memory: mmap.mmap, switch: int, start: int) -> None:
        self._memory, self._switch, self._start = memory, switch, start

    def write(self, value: Any) -> bool:
        """Write it; False: it is too long, and what was written before still stands."""
        text = marshal.dumps(value)  # not JSON: six times as fast, and the same program reads it
        if len(text) > ROOM - 8:
            return False
        half = 2 if self._memory[self._switch] == 1 else 1
        start = self._start + (half - 1) * ROOM
        sealed = len(text).to_bytes(4, "little") + zlib.crc32(text).to_bytes(4, "little") + text
        self._memory[start : start + len(sealed)] = sealed
        self._memory[self._switch] = half
        return True

    def wipe(self) -> None:
        self._memory[self._switch] = 0

    def read(self) -> Any:
        """Return what was written last, None if nothing was. Raises ValueError, if it is no whole value."""
        for _ in range(TRIES):
            half = self._memory[self._switch]
            if half == 0:
                return None
            start = self._start + (half - 1) * ROOM
            size = int.from_bytes(self._memory[start : start + 4], "little")
            text = self._memory[start + 8 : start + 8 + size]
            # its writer may be here for the second time meanwhile
            if zlib.crc32(text) == int.from_bytes(self._memory[start + 4 : start + 8], "little"):
                return marshal.loads(text)  # noqa: S302  nobody else can write there
        raise ValueError("it is written over")

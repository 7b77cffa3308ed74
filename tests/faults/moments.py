"""Blows at chosen moments of the life of one tick: on each side of each call to the store and to the broker.

    process            proxy                     server
       |  -- request --> |  before the request      |
       |                 | ----------------------> |  after the request
       |                 |  before the answer  <--- |
       |  <-- answer --- |  after the answer        |

The proxy sees by the script or command which step goes by, and by the port whose call it is: that process is killed or
frozen there and then, with no hook in the product.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from proxy import Trap
from scripts import sha_of

from faults.system import Member

SIDES = ("before the request", "after the request", "before the answer", "after the answer")
BLOWS = ("kill", "freeze")


def _script(name: str, *texts: bytes) -> Callable[[bytes], bool]:
    sha = sha_of(name)
    return lambda chunk: sha in chunk and all(text in chunk for text in texts)


def _command(*texts: bytes) -> Callable[[bytes], bool]:
    return lambda chunk: all(text in chunk for text in texts)


#: step -> who takes it, over which way, and how it looks; in the order in which a tick lives
STEPS: dict[str, tuple[str, str, Callable[[bytes], bool]]] = {
    "claim": ("beat", "store", _script("claim", b'{"due"')),
    "publish": ("beat", "broker", _command(b"LPUSH", b'"lockbeat"')),
    "settle": ("beat", "store", _script("settle")),
    "take over": ("beat", "store", _script("take_over")),
    "deliver": ("worker", "broker", _command(b'"lockbeat"', b'"delivery_tag"')),
    "acquire": ("worker", "store", _script("acquire")),
    "take several": ("worker", "store", _script("acquire_all")),
    # with the place in line that it is to have where the key is held
    "wait": ("worker", "store", _script("acquire", b'"ticket"')),
    # its own message, or that of whoever is called
    "send on": ("worker", "broker", _command(b"LPUSH", b'"lockbeat_line"')),
    "renew": ("worker", "store", _script("extend")),
    "release": ("worker", "store", _script("release")),
    "acknowledge": ("worker", "broker", _command(b"ZREM", b"HDEL", b"unacked")),
}

#: Steps that are no call, so that there is but one moment of each: nothing is under way, and a body is being run.
BETWEEN = ("due", "run")

Cell = tuple[str, str, str]  # step, side, blow

#: Of the worker's waiting for a message only the answer is a moment.
CELLS: list[Cell] = [
    (step, side, blow) for step in STEPS for side in (SIDES[2:] if step == "deliver" else SIDES) for blow in BLOWS
] + [(step, "during", blow) for step in BETWEEN for blow in BLOWS]


class Strike:
    """One blow at one moment, to whichever member comes there first."""

    def __init__(self, cell: Cell, members: list[Member], blow: Callable[[Strike, Member, int], float]) -> None:
        self.cell = cell
        self._blow = blow
        self._mutex = threading.Lock()
        self._sprung = False
        self.over = threading.Event()
        _, way, _ = STEPS[cell[0]]
        self._snares = [(member.ways[way], _Snare(self, member)) for member in members]
        for proxy, snare in self._snares:
            proxy.arm(snare)

    def springs(self, chunk: bytes, *, asks: bool) -> bool:
        """Whether this is the moment, for the first time."""
        step = self.cell[0]
        if self._sprung or asks == (step == "deliver") or not STEPS[step][2](chunk):
            return False
        with self._mutex:
            first, self._sprung = not self._sprung, True
        return first

    def fall(self, member: Member, port: int) -> float:
        """Strike; return for how long the process is frozen, 0 if it is dead."""
        try:
            return self._blow(self, member, port)
        finally:
            self.over.set()

    def disarm(self) -> None:
        for proxy, snare in self._snares:
            proxy.disarm(snare)


class Sign(Trap):
    """Catches nothing: ``caught`` tells that a request that matches has gone by, and an answer after it."""

    def __init__(self, matches: Callable[[bytes], bool]) -> None:
        super().__init__(matches, answer=False)
        self._asked = False

    def springs(self, chunk: bytes, *, asks: bool) -> bool:
        if asks:
            self._asked = self._asked or self.matches(chunk)
        elif self._asked:
            self._holding.set()
        return False


class _Snare(Trap):
    def __init__(self, strike: Strike, member: Member) -> None:
        super().__init__(lambda _: False, answer="answer" in strike.cell[1])
        self._strike, self._member = strike, member
        self._struck = False

    def springs(self, chunk: bytes, *, asks: bool) -> bool:
        return self._strike.springs(chunk, asks=asks)

    def hold(self) -> bool:
        if not self._struck and self._strike.cell[1].startswith("before"):
            self._struck = True
            # what a dead process has not sent, or is not to hear, ends with its connection
            frozen = self._strike.fall(self._member, self.client_port)
            self.dropped = frozen == 0
            self._open.wait(frozen)
        return not self.dropped

    def passed(self) -> None:
        if not self._struck:
            self._struck = True
            self._strike.fall(self._member, self.client_port)

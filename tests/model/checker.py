"""An explicit-state model checker: every state that a model can reach, and the shortest way to one that must not be.

A model is a set of possible steps, not a run: whoever may take a step takes it in some behaviour, and stops in another.
So a process that is killed, frozen or slow at any moment needs no step of its own: it takes none any more, or not yet.
"""

from __future__ import annotations

import gc
import marshal
import time
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol


class Model(Protocol):
    def initial(self) -> Hashable: ...

    def steps(self, state: Any) -> Iterable[tuple[str, Any]]:
        """All that may happen next: what it is called, and the state after it."""

    def key(self, state: Any) -> object:
        """Plain tuples, the same for states that differ only in names that mean nothing: of replicas, of entries."""

    def broken(self, state: Any) -> str | None:
        """Which invariant does not hold here."""


@dataclass
class Found:
    """What a search has found: nothing that is broken, in ``states`` states, or the shortest way to ``broken``."""

    states: int
    steps: int
    depth: int
    seconds: float
    broken: str | None = None
    trace: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        size = f"{self.states:,} states, {self.steps:,} steps, depth {self.depth}, {self.seconds:.1f} s"
        if self.broken is None:
            return f"holds in {size}"
        return "\n".join([f"BROKEN: {self.broken} ({size})", *(f"{n:3}. {did}" for n, did in enumerate(self.trace, 1))])


def explore(model: Model, *, at_most: int = 5_000_000) -> Found:
    """Visit each state once, the nearest first, until one is broken or there are no more."""
    collects = gc.isenabled()
    gc.disable()  # millions of tuples, and no cycle among them
    try:
        return _explore(model, at_most)
    finally:
        if collects:
            gc.enable()


def _explore(model: Model, at_most: int) -> Found:
    def key_of(state: Any) -> bytes:
        return marshal.dumps(
            model.key(state), 2
        )  # a tenth of the memory; newer versions write equal things differently

    started = time.monotonic()
    first = model.initial()
    # by its key: how it was reached first. States keep their names, so that a trace tells one story.
    came: dict[bytes, tuple[bytes, str] | None] = {key_of(first): None}
    level, depth, steps = [(key_of(first), first)], 0, 0

    def found(broken: str | None, key: bytes) -> Found:
        trace: list[str] = []
        while broken and (before := came[key]) is not None:
            key, did = before
            trace.append(did)
        return Found(len(came), steps, depth, time.monotonic() - started, broken, trace[::-1])

    if broken := model.broken(first):
        return found(broken, key_of(first))
    while level:
        depth += 1
        following = []
        seen = set()  # most ways to one state are of one length, and keys are dear
        for key, state in level:
            for did, after in model.steps(state):
                steps += 1
                if after in seen:
                    continue
                seen.add(after)
                reached = key_of(after)
                if reached in came:
                    continue
                came[reached] = (key, did)
                if broken := model.broken(after):
                    return found(broken, reached)
                following.append((reached, after))
        if len(came) > at_most:
            raise MemoryError(f"more than {at_most:,} states")
        level = following
    return found(None, b"")

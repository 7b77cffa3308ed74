"""The process that this is, and the worker in it: its pid, whether it is shutting down, and what is done once it has ended.

Promises: all three are right in a forked child from its first line on, and so is what has asked to leave its parents' there.
"""

from __future__ import annotations

import os
import socket
import threading
import weakref
from collections.abc import Callable
from typing import Final, Protocol

from celery.utils import uuid

__all__ = [
    "leaves_its_parents",
    "name_of_its_own",
    "stopping",
    "this_process",
    "when_a_worker_has_ended",
    "worker_has_ended",
]

#: Set while a worker in this process shuts down. A prefork child does not hear of it; its parent waits for it.
stopping: Final = threading.Event()

#: What to do once a worker of this process has ended.
_at_the_end: Final[list[Callable[[], None]]] = []


class _Process:
    """The process that this is. It knows its pid; to ask the system for it is a call, six times a run."""

    __slots__ = ("pid",)

    def __init__(self) -> None:
        self.pid = os.getpid()


this_process: Final = _Process()


def name_of_its_own() -> str:
    """Make a name that this process alone has, among those of all hosts, and that tells people where it is."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid()[:8]}"


def when_a_worker_has_ended(do: Callable[[], None]) -> Callable[[], None]:
    """Call ``do`` then: nothing is left of a worker that ends before its process does, as in tests."""
    _at_the_end.append(do)
    return do


def worker_has_ended() -> None:
    """Do what is to be done then, the last that was asked for first."""
    for do in reversed(_at_the_end):
        do()


class Heir(Protocol):
    """What has connections, or the like, that a forked child would share with its parent."""

    def leave_the_parents(self) -> object:
        """Start anew in a forked child; returns what must not be touched there."""


_heirs: Final[weakref.WeakSet[Heir]] = weakref.WeakSet()

#: What a forked child has of its parent's. It is neither used nor closed there, nor freed: destructors close, and take locks.
_inherited: Final[list[object]] = []


def leaves_its_parents(heir: Heir) -> None:
    """Call ``leave_the_parents`` in each child that is forked while there is this object, and keep what it returns."""
    _heirs.add(heir)


def _in_the_child() -> None:
    this_process.pid = os.getpid()
    _inherited.extend([heir.leave_the_parents() for heir in _heirs])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_the_child)

"""Who is alive on this host: the kernel tells, by record locks that end with their process.

Promises: a process that has marked its row in a file is seen as alive by all others of this user until it is dead, however it
dies; one that gets the same pid later is another.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
from typing import Final

from celery_lockbeat.stores.sqlite.database import NOBODY

__all__ = ["ThisProcess", "this_process"]


class ThisProcess:
    """The proof that this process lives: one locked byte, at an offset of its own, in each file ``alive`` that it uses.

    The kernel frees it when the process dies, however it dies, and a process that gets the same pid has another offset.
    Record locks are not inherited by a fork, and a process loses them when it closes *any* descriptor of that file
    (fcntl(2)): each file is opened once, and never closed.
    """

    def __init__(self) -> None:
        self.offset: Final = random.SystemRandom().randrange(1, 2**62)
        self._descriptors: dict[tuple[int, int], int] = {}

    def marked_in(self, path: str) -> int:
        """Lock the byte in the file at ``path``; returns its descriptor."""
        descriptor = self._opened(path)
        # each time: an exception thrown into this thread may have come between the two before
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self.offset)
        return descriptor

    def sees(self, offset: int, descriptor: int) -> bool:
        """Whether the process that locked the byte at ``offset`` lives."""
        if offset in (NOBODY, self.offset):
            # our own lock would not keep us from taking it again
            return True
        try:
            # shared: two that look at the same time must not take each other for the holder
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, offset)
        except (BlockingIOError, PermissionError):
            return True
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, offset)
        return False

    def meets_others_in(self, path: str) -> bool:
        """Whether any process has a byte locked in the file at ``path``; this one counts, too."""
        try:
            if self._has_open(path) is not None:
                return True
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
        else:
            return False
        finally:
            os.close(descriptor)

    def _has_open(self, path: str) -> int | None:
        found = os.lstat(path)
        return self._descriptors.get((found.st_dev, found.st_ino))

    def _opened(self, path: str) -> int:
        with contextlib.suppress(FileNotFoundError):
            known = self._has_open(path)
            if known is not None:
                return known
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        found = os.fstat(descriptor)
        self._descriptors[found.st_dev, found.st_ino] = descriptor
        with contextlib.suppress(OSError):
            # systemd-tmpfiles removes no files, however old, from a directory that is locked so (tmpfiles.d(5))
            directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # noqa: PTH120
            fcntl.flock(directory, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return descriptor

    def leave_to_the_parent(self) -> None:
        """Close, in a forked child, the files that are marked by the parent; the child has no locks yet to lose."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)


_this_process = ThisProcess()


def this_process() -> ThisProcess:
    """Return the proof that this process lives: a forked child has its own."""
    return _this_process


def _begin_anew_in_the_child() -> None:
    global _this_process  # noqa: PLW0603  it is this process's, and that is another one now
    _this_process.leave_to_the_parent()
    _this_process = ThisProcess()


os.register_at_fork(after_in_child=_begin_anew_in_the_child)

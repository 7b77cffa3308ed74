"""The private directory in which the memory store of a user's processes on this host lives.

Promises: all of them agree on it, and nobody else can have put anything into it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from celery_lockbeat.exceptions import ConfigurationError

__all__ = ["default_path", "is_private", "make_private", "refuse_planted"]

#: What the directory has: the state, who is alive, and what whoever begins there holds meanwhile.
FILES: Final = ("state.db", "state.db-wal", "state.db-shm", "alive", "choosing")

#: Where the store's directory is made by default, in the first of these that there is. Not where the environment says,
#: nor at home: cron has another environment, and a home may be read-only, missing, or on another machine.
PLACES: Final = ("/var/tmp", "/tmp")  # noqa: S108  the directory in it is private


def default_path() -> Path:
    """Return the place that all processes of this user on this host agree on."""
    name = f"celery-lockbeat-{os.geteuid()}"
    usable = (Path(place, name) for place in PLACES if os.access(place, os.W_OK | os.X_OK))
    return next(usable, Path(tempfile.gettempdir(), name))


def is_private(path: Path) -> bool:
    """Whether it is a directory that nobody else can use."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def make_private(path: Path) -> None:
    """Make the directory, or make sure that nobody else can have put anything into it. Raises ConfigurationError."""
    allowed = "a directory that is ours alone (mode 0700), or that can be made"
    try:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError, PermissionError) as exc:
        msg = f"lockbeat_memory_path is {str(path)!r} ({exc.strerror}); allowed: {allowed}"
        raise ConfigurationError(msg) from exc
    if not is_private(path):
        is_now = f"{stat.filemode(found.st_mode)} of uid {found.st_uid}"
        msg = f"lockbeat_memory_path is {str(path)!r} ({is_now}); allowed: {allowed}"
        raise ConfigurationError(msg)


def refuse_planted(directory: Path) -> None:
    """Make sure that its files, where there are any, are regular ones of ours, and no links. Raises ConfigurationError."""
    for path in map(directory.joinpath, FILES):
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink > 1:
            is_now = f"{stat.filemode(found.st_mode)} of uid {found.st_uid}, {found.st_nlink} link(s)"
            msg = (
                f"lockbeat_memory_path has {str(path)!r} ({is_now}); allowed: only the files that the store made itself"
            )
            raise ConfigurationError(msg)

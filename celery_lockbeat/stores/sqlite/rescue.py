"""The state of the memory store outlives its files: what a cleaner has deleted is put back before anybody is granted anything.

A file that is deleted while processes have it open is still theirs, and nobody else's: who finds no state begins anew, and
grants what they hold. So it looks first whether a process of this user has such a file open (Linux, in /proc), copies it while
nobody can write to it, and puts it where it was. The others find it there at their next operation, and go on in it.
Where there is no /proc, only a process that has it open itself can do so, at its own next operation.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Mapping
from typing import Final

from celery_lockbeat.clock import monotonic

__all__ = ["lock_within", "publish", "rescue"]

#: Bytes of SQLite's WAL index that whoever writes to the database, or to its main file, has locked (sqlite.org/walformat.html).
WRITERS: Final = (120, 2)

_FILES: Final = ("", "-wal", "-shm")


def publish(source: sqlite3.Connection, state: str, changes: Mapping[str, str]) -> None:
    """Put a copy where the state is missing. One process at a time does so.

    ``changes`` are the SQL, by table, for what is not true of the copy any more: nobody's presence is marked beside it.
    """
    draft = _draft_of(state)
    try:
        # nothing is committed there any more that is not in the copy: who tries finds the new file first
        source.execute("BEGIN IMMEDIATE")
        try:
            os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as copy:
                _copy(source, copy)
                for table, change in changes.items():
                    # an earlier release has fewer
                    if copy.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
                        copy.execute(change)
            _remove(state)  # what belongs to the one that was deleted
            os.link(draft, state)
        finally:
            source.rollback()
    finally:
        _remove(draft)


def _copy(source: sqlite3.Connection, copy: sqlite3.Connection) -> None:
    """Copy what is seen in a transaction that is going to write, which SQLite's own backup waits for the end of."""
    copy.execute("BEGIN")
    # tables before indexes
    named = "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY type DESC"
    for kind, name, sql in source.execute(named).fetchall():
        copy.execute(sql)
        if kind == "table":
            rows = source.execute(f"SELECT * FROM {name}")  # noqa: S608  a name of ours
            places = ", ".join("?" * len(rows.description))
            copy.executemany(f"INSERT INTO {name} VALUES ({places})", rows)  # noqa: S608
    copy.execute("COMMIT")


def rescue(state: str, changes: Mapping[str, str], *, within: float) -> None:
    """Put back a state that was deleted while another process uses it. One process at a time does so.

    Raises OSError, if somebody is in the middle of a change for longer than ``within`` seconds.
    """
    files = _newest(state)
    if files is None:
        return
    main, wal, index = files
    draft = _draft_of(state)
    try:
        # Closing it would drop the locks that this process has there; but it has none, or would have used its own connection.
        with open(index, "r+b", buffering=0) as lockable:  # noqa: PTH123
            lock_within(lockable.fileno(), within, *WRITERS)
            os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            shutil.copyfile(main, draft)
            shutil.copyfile(wal, f"{draft}-wal")
            with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as copy:
                publish(copy, state, changes)
    finally:
        _remove(draft)


def lock_within(descriptor: int, seconds: float, start: int = 0, length: int = 0) -> None:
    """Lock bytes of a file for this process. Raises OSError, if another has them for so long."""
    deadline = monotonic() + seconds
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
        except (BlockingIOError, PermissionError):  # noqa: PERF203  it is what is waited for
            if monotonic() > deadline:
                raise
            time.sleep(0.001)
        else:
            return


def _newest(state: str) -> tuple[str, str, str] | None:
    """Return the three files of the state that was deleted last, as some process has them open."""
    state = os.path.realpath(state)
    found = [files for pid in _others() if (files := _deleted(pid, state))]
    return max(found, key=lambda files: os.stat(files[1]).st_mtime, default=None)  # noqa: PTH116


def _others() -> list[str]:
    """The processes of this user."""
    try:
        pids = [name for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    except FileNotFoundError:
        return []
    return [pid for pid in pids if int(pid) != os.getpid() and _owner(pid) == os.geteuid()]


def _owner(pid: str) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid  # noqa: PTH116
    except OSError:
        return None  # it has ended meanwhile


def _deleted(pid: str, state: str) -> tuple[str, str, str] | None:
    device = os.stat(os.path.dirname(state)).st_dev  # noqa: PTH116, PTH120
    try:
        opened = [f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd")]  # noqa: PTH208
    except OSError:
        return None  # it has ended meanwhile
    files = {target[len(state) :]: path for path in opened if (target := _target(path, device)).startswith(state)}
    gone = " (deleted)"
    main, wal, index = files.get(gone), *(files.get(name + gone, files.get(name)) for name in ("-wal", "-shm"))
    return None if main is None or wal is None or index is None else (main, wal, index)


def _target(path: str, device: int) -> str:
    """Return what this is a descriptor of, if it is on this device: a container may have another file of the same name."""
    try:
        target = os.readlink(path)  # noqa: PTH115
        return target if target.startswith("/") and os.stat(path).st_dev == device else ""  # noqa: PTH116
    except OSError:
        return ""  # it was closed meanwhile


def _draft_of(state: str) -> str:
    return f"{state}.{random.SystemRandom().randrange(2**62)}"


def _remove(draft: str) -> None:
    for suffix in _FILES:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft + suffix)  # noqa: PTH108

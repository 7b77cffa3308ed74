"""A real RabbitMQ on free ports, of Debian's package, ended by its pid."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
from servers import debian_binary, free_port, wait_until


class RabbitMQ:
    """One node, with an Erlang port mapper of its own; as whoever runs the tests, and not as Debian's service."""

    def __init__(self) -> None:
        wrapper = Path(debian_binary("rabbitmq-server", "rabbitmq-server"))
        # Debian's wrapper changes the user; what it calls lies beside its libraries
        (self.script,) = sorted(wrapper.parents[1].glob("lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server"))[-1:]
        self.port, self._mapper = free_port(), free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self.directory = Path(tempfile.mkdtemp(prefix="lockbeat-rabbitmq-"))
        self._environment = {
            **os.environ,
            "HOME": str(self.directory),
            "ERL_EPMD_PORT": str(self._mapper),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"lockbeat{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.directory / "log"),
            "RABBITMQ_PID_FILE": str(self.directory / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq"),
        }

    def start(self) -> RabbitMQ:
        with (self.directory / "out").open("wb") as out:
            self.process = subprocess.Popen(
                [str(self.script)], env=self._environment, stdout=out, stderr=out, start_new_session=True
            )
        wait_until(self._answers, 90, "RabbitMQ starts")
        return self

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            pytest.fail((self.directory / "out").read_text())
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
            # it answers a greeting that is none with its own
            connection.settimeout(5)
            connection.sendall(b"AMQP\x00\x00\x00\x00")
            return connection.recv(4) == b"AMQP"
        return False

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        # the port mapper has made itself a daemon, and ends once it knows no node
        mapper = shutil.which("epmd") or "epmd"
        wait_until(
            lambda: subprocess.run([mapper, "-kill"], env=self._environment, capture_output=True).returncode == 0,
            message="its port mapper ends",
        )
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> RabbitMQ:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

"""Real PostgreSQL clusters on free loopback ports, each ended by the ids of its processes."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psutil
import pytest
from servers import free_port, wait_until


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    path = str(found[-1]) if found else shutil.which("initdb")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL is missing: apt-get install postgresql")
        pytest.skip("PostgreSQL is missing: apt-get install postgresql")
    return Path(path).parent


def _user() -> dict[str, object]:
    """It does not run as root."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


class Postgres:
    """One cluster, without a password; what it has committed is there again after ``restart``, if the machine lives on."""

    def __init__(self, **settings: object) -> None:
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="lockbeat-postgres-"))
        self._programs = _programs()
        self._as = _user()
        self._settings = {
            "fsync": "off",
            "listen_addresses": "127.0.0.1",
            "max_connections": 200,
            "shared_buffers": "32MB",
            "unix_socket_directories": "",
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Postgres:
        data = self.directory / "data"
        if not data.exists():
            if self._as:
                os.chown(self.directory, self._as["user"], self._as["group"])
            initdb = [self._programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8"]
            subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd=self.directory, **self._as)
        command = [self._programs / "postgres", "-D", data, "-p", str(self.port)]
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.directory, **self._as)
        wait_until(self._answers, 60, message="the cluster starts")
        return self

    def _answers(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            pytest.fail((self.directory / "log").read_text())
        import psycopg

        with contextlib.suppress(psycopg.OperationalError):
            self.query("SELECT 1")
            return True
        return False

    @property
    def conninfo(self) -> dict[str, object]:
        return {"host": "127.0.0.1", "port": self.port, "user": "postgres", "dbname": "postgres"}

    @property
    def database(self) -> dict[str, object]:
        """As Django's DATABASES have it."""
        return {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "USER": "postgres",
            "NAME": "postgres",
        }

    def query(self, sql: str, *args: object) -> list[tuple]:
        import psycopg

        with psycopg.connect(**self.conninfo, autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(sql, args or None)
            return cursor.fetchall() if cursor.description else []

    def _family(self) -> list[psutil.Process]:
        # each of its processes is a session of its own
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        for each in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        if self.process is None:
            return
        # stopped first: it would start others in place of those that have gone
        self.process.send_signal(signal.SIGSTOP)
        family = self._family()
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self.process.wait()
        psutil.wait_procs(family, 10)
        self.process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Postgres:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

"""A server that speaks TLS alone, and certificates for it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import redis
from servers import Server, free_port


def make_certificates(directory: Path) -> Path:
    """Make two authorities; a server's and a client's certificate of the first."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is missing")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    for ca in ("ca", "other"):
        openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={ca}"),
            *("-keyout", f"{ca}.key", "-out", f"{ca}.crt", "-addext", "keyUsage=critical,keyCertSign"),
        )
    # the key of its authority is what Python 3.13 asks for, as RFC 5280 has it
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nauthorityKeyIdentifier=keyid\n")
    for name in ("server", "client"):
        openssl(
            *("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"),
            *("-keyout", f"{name}.key", "-out", f"{name}.csr"),
        )
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", "2", "-extfile", "names", "-out", f"{name}.crt"),
        )
    return directory


class TlsServer(Server):
    def __init__(self, certificates: Path) -> None:
        super().__init__(redis=True)
        self.port, self._files = free_port(), certificates
        self.url = f"rediss://localhost:{self.port}/0"
        self.options += [
            "--port",
            "0",
            "--tls-port",
            str(self.port),
            "--tls-ca-cert-file",
            str(certificates / "ca.crt"),
        ]
        self.options += ["--tls-cert-file", str(certificates / "server.crt")]
        self.options += ["--tls-key-file", str(certificates / "server.key")]

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, decode_responses=True, **tls(self._files))


def tls(directory: Path, ca: str = "ca") -> dict[str, str]:
    return {
        "ssl_ca_certs": str(directory / f"{ca}.crt"),
        "ssl_certfile": str(directory / "client.crt"),
        "ssl_keyfile": str(directory / "client.key"),
    }

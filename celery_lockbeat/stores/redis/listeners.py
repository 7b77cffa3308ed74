"""Who listens at an address where no Redis has answered: one that speaks TLS, or that does not, or no Redis at all.

Promises a guess within a second, for what is told to a user who has mixed up ``redis://`` and ``rediss://``, or two ports.
A server that is merely slow, dead or out of reach is none of these.
"""

from __future__ import annotations

import socket
import ssl
from typing import Final

__all__ = ["what_listens"]

#: Seconds to wait for each step. A server that listens answers a line at once.
PATIENCE: Final = 0.5

#: A record of TLS begins so: an alert, or a handshake.
_TLS: Final = (b"\x15\x03", b"\x16\x03")


def what_listens(host: str, port: int) -> str | None:
    """Return "redis", "tls", or what it says instead; None: that cannot be told."""
    greeting = _greeting(host, port)
    if greeting.startswith((b"+PONG", b"-")):
        return "redis"
    if greeting.startswith(_TLS):
        return "tls"
    if greeting:
        return greeting.splitlines()[0].decode("ascii", "replace")
    return "tls" if _shakes_hands(host, port) else None


def _greeting(host: str, port: int) -> bytes:
    try:
        with socket.create_connection((host, port), PATIENCE) as plain:
            plain.settimeout(PATIENCE)
            plain.sendall(b"PING\r\n")
            return plain.recv(64)
    except OSError:
        return b""


def _shakes_hands(host: str, port: int) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is said to it
    try:
        with socket.create_connection((host, port), PATIENCE) as plain, context.wrap_socket(plain):
            return True
    except ssl.SSLError as exc:
        return "ALERT" in str(exc.reason)  # it speaks TLS, and not with us
    except OSError:
        return False

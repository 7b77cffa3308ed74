"""Who may see the page, and what a browser may do with it.

Promises: nothing of the page is answered to who is not let in. Passwords are compared in a time that tells nothing, of a hash that is slow to
make, one at a time: so guessing is slow, too. A name in a header counts only where a trusted proxy has sent it. Without a password a
page is for this host alone: requests for other names, as a foreign page can make a browser send by a name that it points here, are
refused.

Not promised: that nobody reads along. For that there is TLS, here (``--certificate``) or at a proxy.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from starlette.datastructures import Headers as RequestHeaders
from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from celery_lockbeat.exceptions import ConfigurationError

__all__ = ["USER", "Guard", "Headers", "Password", "Prefixed", "Rooted", "hash_of", "header_of_a_proxy", "is_this_host"]

#: Where the name of who is let in stands in the scope of a request.
USER: Final = "lockbeat_user"

#: What goes with every answer: the browser runs, loads and sends nothing but to and from this app.
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

#: scrypt: 16 MiB and some 50 ms for each try.
_COST: Final = (2**14, 8, 1)

#: Seconds for which a password that was right needs not be tried again.
_TRUSTED_FOR: Final = 300.0

_MORE: Final = "made by: celery -A proj lockbeat web --hash"


class Headers:
    """Adds the headers to each answer of an app."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, add if scope["type"] == "http" else send)


class Rooted:
    """Serves an app that is mounted somewhere, whether its paths still have all of the root or a proxy has taken a part off.

    They have it all by ASGI; but with ``FastAPI(root_path="/api")`` behind a proxy that takes that off, the root of what is mounted is
    ``/api/lockbeat``, and the path ``/lockbeat/runs``.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "http":
            scope = {**scope, "path": _whole(scope["path"], scope.get("root_path", "").rstrip("/"))}
        await self._app(scope, receive, send)


def _whole(path: str, root: str) -> str:
    if _is_below(path, root):
        return path
    left = root
    while left:
        # without its first part
        _, _, rest = left.lstrip("/").partition("/")
        left = f"/{rest}" if rest else ""
        if left and _is_below(path, left):
            return root + path[len(left) :]
    return root + path


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(f"{root}/")


class Prefixed:
    """Serves an app under a prefix, whether a proxy passes it on or takes it off."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "http" and self._prefix:
            path = scope["path"]
            if not _is_below(path, self._prefix):
                path = self._prefix + path
            scope = {**scope, "root_path": self._prefix, "path": path}
        await self._app(scope, receive, send)


# -- who it is ---------------------------------------------------------------------------------------------------------


class Password:
    """One user, and the hash of a password, which a file has."""

    def __init__(self, given: str) -> None:
        self._user, _, path = given.partition(":")
        if not self._user or not path:
            raise ConfigurationError(f"--auth is {given!r}; allowed: USER:FILE, with a file that has a hash, {_MORE}")
        try:
            self._hash = Path(path).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigurationError(
                f"--auth is {given!r}, whose file cannot be read: {exc}; allowed: one that is {_MORE}"
            ) from exc
        if _parsed(self._hash) is None:
            raise ConfigurationError(
                f"--auth is {given!r}, whose file has no hash of a password; allowed: one that is {_MORE}"
            )
        self._lock = threading.Lock()
        #: who was let in, by a digest that means nothing elsewhere, and until when
        self._salt = secrets.token_bytes(32)
        self._trusted: dict[bytes, float] = {}

    def __call__(self, scope: Scope) -> str | None:
        """Return who it is."""
        scheme, _, told = RequestHeaders(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() != "basic" or len(told) > 2_000:  # noqa: PLR2004  nobody types more
            return None
        try:
            user, _, password = base64.b64decode(told, validate=True).decode("utf-8").partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        digest = hmac.digest(self._salt, told.encode("ascii", "replace"), "sha256")
        if self._trusted.get(digest, 0.0) > time.monotonic():
            return self._user
        with self._lock:
            # the hash is made for whichever user, so that it takes as long
            is_right = _is_right(password, self._hash)
        if not (hmac.compare_digest(user.encode(), self._user.encode()) and is_right):
            return None
        self._trusted = {digest: time.monotonic() + _TRUSTED_FOR}
        return self._user


def hash_of(password: str) -> str:
    """Return a hash of a password, for the file of ``--auth``."""
    salt = secrets.token_bytes(16)
    n, r, p = _COST
    return f"scrypt${n}${r}${p}${salt.hex()}${_scrypt(password, salt, _COST).hex()}"


class _Parsed(NamedTuple):
    cost: tuple[int, int, int]
    salt: bytes
    digest: bytes


def _parsed(text: str) -> _Parsed | None:
    kind, *rest = text.split("$")
    try:
        n, r, p, salt, digest = rest
        cost = int(n), int(r), int(p)
        is_one = kind == "scrypt" and 1 < cost[0] <= 2**20 and 0 < cost[1] <= 32 and 0 < cost[2] <= 16  # noqa: PLR2004
        return _Parsed(cost, bytes.fromhex(salt), bytes.fromhex(digest)) if is_one and salt and digest else None
    except ValueError:
        return None


def _is_right(password: str, known: str) -> bool:
    parsed = _parsed(known)
    return parsed is not None and hmac.compare_digest(_scrypt(password, parsed.salt, parsed.cost), parsed.digest)


def _scrypt(password: str, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    n, r, p = cost
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=256 * n * r, dklen=32)


def header_of_a_proxy(header: str, proxies: Iterable[str]) -> Callable[[Scope], str | None]:
    """Return what tells who it is by a header, where one of these proxies has sent it: addresses, or networks."""
    try:
        networks = [ipaddress.ip_network(each, strict=False) for each in proxies]
    except ValueError as exc:
        raise ConfigurationError(f"--trusted-proxy: {exc}; allowed: an address, or a network as 10.0.0.0/8") from exc

    def who(scope: Scope) -> str | None:
        try:
            address = ipaddress.ip_address((scope.get("client") or ("",))[0])
        except ValueError:
            return None
        if not any(address in network for network in networks):
            return None
        # two of them: somebody has added one to the proxy's
        told = RequestHeaders(scope=scope).getlist(header)
        return told[0] if len(told) == 1 and told[0].strip() else None

    return who


def is_this_host(host: str) -> bool:
    """Whether an address or a name is this host alone."""
    name = host.strip("[]")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"


class Guard:
    """Lets in who ``who`` knows; None: whoever asks for this host by a name that only this host has, or by ``host``."""

    def __init__(
        self, app: ASGIApp, who: Callable[[Scope], str | None] | None, *, host: str = "", asks: bool = False
    ) -> None:
        self._app = app
        self._who = who
        self._host = host
        self._asks = asks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        if self._who is None:
            name = _name_in(RequestHeaders(scope=scope).get("host", ""))
            if name == self._host.lower() or is_this_host(name):
                return None
            return Headers(PlainTextResponse("This page is asked for by its own address only.", 421))
        user = self._who(scope)
        if user is not None:
            scope[USER] = user
            return None
        if self._asks:
            challenge = {"WWW-Authenticate": 'Basic realm="lockbeat", charset="UTF-8"'}
            return Headers(PlainTextResponse("Who are you?", 401, challenge))
        return Headers(PlainTextResponse("The proxy has not said who you are.", 403))


def _name_in(host: str) -> str:
    """Return a Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0].strip("[").lower()
    return host.rpartition(":")[0].lower() if host.count(":") == 1 else host.lower()

"""``celery lockbeat web``: the page, served by uvicorn, to this host alone unless it knows who asks."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import click

from celery_lockbeat.cli.output import textual
from celery_lockbeat.exceptions import ConfigurationError
from celery_lockbeat.insight.plain import printable
from celery_lockbeat.membership.used import stores_in_use
from celery_lockbeat.options import AppOptions, refusal
from celery_lockbeat.stores import name_of

if TYPE_CHECKING:
    from celery_lockbeat.web.app import Page

__all__ = ["web"]

#: What the extra brings.
_NEEDED: Final = ("starlette", "uvicorn", "jinja2", "cron_descriptor")

_PREFIX: Final = re.compile(r"(/[\w.~-]+)+", re.ASCII)
_HEADER: Final = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)

#: Seconds that answers have to end in, when the page does.
PATIENCE: Final = 3


@textual
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at; 0.0.0.0: any.")
@click.option("--port", default=9809, show_default=True, type=click.IntRange(0, 65535), help="The port; 0: a free one.")
@click.option("--auth", metavar="USER:FILE", help="Ask for a name and a password, whose hash is in FILE.")
@click.option("--auth-header", metavar="NAME", help="Who it is stands in this header, which a proxy sends.")
@click.option(
    "--trusted-proxy",
    multiple=True,
    metavar="ADDRESS",
    default=("127.0.0.0/8", "::1"),
    show_default=True,
    help="The addresses, or networks, whose header counts.",
)
@click.option("--prefix", default="", metavar="/PATH", help="The path under which a proxy serves the page.")
@click.option("--certificate", metavar="FILE", help="Serve by TLS, with this certificate.")
@click.option("--key", metavar="FILE", help="The key of the certificate.")
@click.option(
    "--allow-changes", is_flag=True, help="Let who may see it pause, resume, run, skip, backfill and release."
)
@click.option("--hash", "hashes", is_flag=True, help="Ask for a password, print its hash for --auth, and end.")
def web(ctx: click.Context, hashes: bool, **given: Any) -> None:
    """Show schedules, runs, locks and beats on a page, until it is ended. It only looks, unless changes are allowed.

    It needs the extra "web".
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: pip install 'celery-lockbeat[web]'"
        )
    if hashes:
        from celery_lockbeat.web.guard import hash_of  # noqa: PLC0415  it needs the extra

        click.echo(hash_of(click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)))
        return
    app = ctx.obj.app
    who, asks = _who(given["auth"], given["auth_header"], given["trusted_proxy"], given["host"])
    prefix = _prefix_of(given["prefix"])
    if bool(given["certificate"]) != bool(given["key"]):
        raise ConfigurationError(f"{_pair(given)}; allowed: both of them, or neither")
    stores_in_use(app)  # what is set wrong is said now
    if not AppOptions.read(app.conf).journal:
        ctx.obj.error("lockbeat_journal is 0: nothing is written that could be shown of ticks and runs")
    try:
        listening = socket.create_server(
            (given["host"], given["port"]), family=socket.AF_INET6 if ":" in given["host"] else socket.AF_INET
        )
    except OSError as exc:
        why = str(exc.strerror or exc).partition(" (while ")[0]  # which only repeats what was given
        raise ConfigurationError(
            f"--host is {given['host']!r} and --port {given['port']}: {why}; "
            "allowed: an address of this host, and a port that is free there (0: whichever is)"
        ) from exc
    from celery_lockbeat.web.app import Page  # noqa: PLC0415  it needs the extra

    with listening:
        page = Page(app, allow_changes=given["allow_changes"])
        scheme, place = "https" if given["certificate"] else "http", listening.getsockname()
        host = f"[{given['host']}]" if ":" in given["host"] else given["host"]
        url = f"{scheme}://{host}:{place[1]}{prefix}/"

        def tell() -> None:
            ctx.obj.echo(printable(f"the page of app {name_of(app)!r}: {url}  (Ctrl-C ends it)"))

        _serve(page, listening, who, asks, prefix, given, tell)


def _who(auth: str | None, header: str | None, proxies: Sequence[str], host: str) -> tuple[Any, bool]:
    """Return what tells who asks, None: whoever is on this host, and whether it is asked for in the browser."""
    from celery_lockbeat.web.guard import Password, header_of_a_proxy, is_this_host  # noqa: PLC0415  it needs the extra

    if auth and header:
        raise ConfigurationError(f"--auth is {auth!r} and --auth-header {header!r}; allowed: one of them")
    if auth:
        return Password(auth), True
    if header:
        if not _HEADER.fullmatch(header):
            raise refusal("--auth-header", header, "the name of a header, as X-Forwarded-User")
        return header_of_a_proxy(header, proxies), False
    if not is_this_host(host):
        raise ConfigurationError(
            f"--host is {host!r}; allowed: 127.0.0.1, ::1 or localhost, unless --auth or --auth-header tells who may see it"
        )
    return None, False


def _pair(given: Mapping[str, Any]) -> str:
    return f"--certificate is {given['certificate']!r} and --key {given['key']!r}"


def _prefix_of(text: str) -> str:
    prefix = text.rstrip("/")
    if prefix and (".." in prefix or not _PREFIX.fullmatch(prefix)):
        raise refusal("--prefix", text, "a path as /lockbeat")
    return prefix


def _serve(
    page: Page,
    listening: socket.socket,
    who: Any,
    asks: bool,
    prefix: str,
    given: dict[str, Any],
    tell: Callable[[], None],
) -> None:
    import uvicorn  # noqa: PLC0415  it is an extra

    from celery_lockbeat.web.guard import Guard, Prefixed  # noqa: PLC0415  it needs the extra

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                tell()

        def handle_exit(self, sig: int, frame: Any) -> None:
            page.hub.end()  # who follows would be waited for
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        Guard(Prefixed(page.asgi, prefix), who, host=given["host"], asks=asks),
        log_level="warning",
        access_log=False,
        server_header=False,
        # who is a proxy says --trusted-proxy, and the address is that of who has connected
        proxy_headers=False,
        timeout_graceful_shutdown=PATIENCE,
        ssl_certfile=given["certificate"],
        ssl_keyfile=given["key"],
    )
    try:
        config.load()
    except OSError as exc:  # of OpenSSL, too
        raise ConfigurationError(
            f"{_pair(given)}: {exc}; allowed: files in PEM, of which the second is the key of the first"
        ) from exc
    server = Server(config)
    page.hub.start()
    with _ended_by_signals():
        server.run(sockets=[listening])
    page.hub.end()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let a signal that ends the page end it with status 0: uvicorn raises it anew when all is closed."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
